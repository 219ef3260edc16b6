"""Checkpoints for the tests: tiny ones made on the spot in every layout, and the demo's real one.

Weights, configs and tokenizers are written by transformers and by hand, never by corom, so that
what corom reads is what users have. torch and transformers are imported where they are used: most
tests need neither.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner
from filelock import FileLock
from hypothesis import HealthCheck, settings
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from corom.export.sources import ResolvedSource, resolve_source
from corom.runtime import late_encoder
from corom.runtime.cli import cli
from corom.runtime.errors import UnavailableError
from corom.runtime.manifest import describe_files, load_manifest, save_manifest

if TYPE_CHECKING:
    import torch

# What corom is used with tells its makers nothing from here.
os.environ |= {
    "ANONYMIZED_TELEMETRY": "False",  # Chroma
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGSMITH_TRACING": "false",  # LangChain
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, where a test imports it itself
}

# As a process of its own has it: under nohup all that the tests start would ignore it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Other tests run beside these: how long an example takes says nothing.
settings.register_profile("corom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("corom")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector: what the tests import stays, but it would go through
    all of it again and again, for a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


State = dict[str, "torch.Tensor"]
MakeCheckpoint = Callable[..., Path]
ExportOnce = Callable[..., Path]

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}


@pytest.fixture(scope="session")
def parity_texts() -> list[str]:
    """The texts that `corom export` measures parity on."""
    content = resources.files("corom.export").joinpath("parity_texts.txt").read_text("utf-8")
    return [line for line in content.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def vocabulary(parity_texts: list[str]) -> list[str]:
    """About 2,000 WordPiece tokens: the characters of the parity texts and pieces of words."""
    characters = sorted({c for text in parity_texts for c in text if not c.isspace()})
    ascii_letters = [chr(c) for c in range(33, 127)]
    pieces = [f"##{c}" for c in ascii_letters if c.isalnum()]
    words = ["ct", "CT", "mg", "kg", "##mg", "café", "cafe", "über", "##ing", "[unused1]"]
    common = [chr(c) for c in range(0x4E00, 0x4E00 + 3000)]
    tokens = dict.fromkeys(SPECIAL_TOKENS + ascii_letters + pieces + words + characters + common)
    return list(tokens)[:2000]


@pytest.fixture(scope="session")
def make_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str], parity_texts: list[str]
) -> MakeCheckpoint:
    """Return the function that writes a tiny checkpoint with seeded random weights.

    ``layout``: huggingface, sentence-transformers or modelscope. ``edit``: changes the state dict
    before it is written. ``tokenizer``: vocab.txt or tokenizer.json (always so for RoBERTa). Other
    options go into config.json.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.set_num_threads(1)  # for models this small more threads only wait for each other

    def make(
        *,
        layout: str = "huggingface",
        model_type: str = "bert",
        prefix: str = "",
        pickled: bool = False,
        tokenizer: str = "vocab.txt",
        tokenizer_settings: dict[str, Any] | None = None,
        edit: Callable[[State], object] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        roberta = model_type != "bert"
        shape = {
            "vocab_size": len(vocabulary),
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 160 + 2 * roberta,
            "type_vocab_size": 1 if roberta else 2,
        }
        config = getattr(transformers, f"{CLASSES[model_type]}Config")(**(shape | options))
        config.save_pretrained(folder)
        model = getattr(transformers, f"{CLASSES[model_type]}Model")(config)
        state = {prefix + k: v for k, v in random_state(model.state_dict(), seed).items()}
        if edit is not None:
            edit(state)
        if layout == "modelscope" or pickled:
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors")
        if roberta:
            byte_level_tokenizer(parity_texts).save(str(folder / "tokenizer.json"))
            settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        else:
            vocab = {token: row for row, token in enumerate(vocabulary)}
            settings = {"do_lower_case": True} | (tokenizer_settings or {})
            if tokenizer == "vocab.txt":
                lines = "".join(f"{token}\n" for token in vocabulary)
                (folder / "vocab.txt").write_text(lines, "utf-8")
            else:
                transformers.BertTokenizer(vocab=vocab, **settings).save_pretrained(folder)
            settings = {"tokenizer_class": "BertTokenizer"} | settings
        write_json(folder / "tokenizer_config.json", settings)
        if layout == "modelscope":
            configuration = {
                "framework": "pytorch",
                "task": "sentence-embedding",
                "model": {"type": "bert"},
                "pipeline": {"type": "sentence-embedding"},
            }
            write_json(folder / "configuration.json", configuration)
            (folder / "tokenizer_config.json").unlink()
        if layout == "sentence-transformers":
            write_sentence_transformers(folder, config.hidden_size)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """A three-layer BERT of 48 in ModelScope's layout, as CoROM's are."""
    return make_checkpoint(layout="modelscope", prefix="bert.")


@pytest.fixture(scope="session")
def one_layer_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """``tiny_checkpoint`` with one layer, for what exports anew: that takes seconds a layer."""
    return make_checkpoint(layout="modelscope", prefix="bert.", num_hidden_layers=1)


@pytest.fixture(scope="session")
def demo_source() -> ResolvedSource:
    """m3e-small, trained weights, from the cache; skips if `make weights` has not put it there."""
    try:
        return resolve_source("demo", offline=True)
    except UnavailableError:
        if os.environ.get("COROM_TEST_WEIGHTS") == "required":
            raise
        pytest.skip("m3e-small is not in the cache; fetch it with: make weights")


def random_state(state: State, seed: int) -> State:
    """Return weights of the size that training gives, none of them zero or one by default."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator) * 0.15
        + float(name.endswith("LayerNorm.weight"))
        for name, weight in state.items()
    }


def byte_level_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Return a RoBERTa tokenizer trained on ``texts``."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def write_sentence_transformers(folder: Path, hidden: int) -> None:
    """Add the files of a sentence-transformers model with mean pooling and normalization."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": k, "name": str(k), "path": f"{k}_{kind}" if k else "", "type": f"st.models.{kind}"}
        for k, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    pooling = {
        "word_embedding_dimension": hidden,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 96, "do_lower_case": False})
    prompts = {"prompts": {"query": "查询：", "document": ""}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", prompts)


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON, making the folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


@pytest.fixture(autouse=True, scope="module")
def nothing_stays_open() -> Iterator[None]:
    """Close what is kept open until the process ends, whose threads other modules would count."""
    yield
    for kept in (late_encoder._batchers, late_encoder._opened):
        for opened in kept.values():
            opened.close()
        kept.clear()


# Bundles, and the commands that work on them.

Corom = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
SCRIPT = Path(sys.executable).with_name("corom")


@pytest.fixture(scope="session")
def parity_file(tmp_path_factory: pytest.TempPathFactory, parity_texts: list[str]) -> Path:
    """A short file of parity texts, spread over those that come with corom."""
    file = tmp_path_factory.mktemp("texts") / "parity.txt"
    file.write_text("".join(f"{text}\n" for text in parity_texts[::12]), "utf-8")
    return file


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the processes of this run of pytest."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def half_graphs_once(shared_folder: Path) -> Callable[[str], Path]:
    """Return the function that gives the fp16 graphs of the random checkpoint of a pooling.

    They are made for all the processes of this run of pytest.
    """
    from random_checkpoint import random_checkpoint

    from corom.export.encoder import TorchEncoder
    from corom.export.precision import export_half_graphs

    def once(pooling: Any) -> Path:
        folder = shared_folder / f"half-graphs-{pooling}"
        with FileLock(shared_folder / f"{folder.name}.lock"):
            if not folder.exists():
                making = shared_folder / f"{folder.name}.partial"
                making.mkdir()
                encoder = TorchEncoder(random_checkpoint(pooling))
                export_half_graphs(encoder, making, 20, for_engines=True)
                making.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def export_once(shared_folder: Path, parity_file: Path) -> ExportOnce:
    """Return the function that exports a bundle for all the processes of this run of pytest."""
    from corom.export.bundle import export_bundle

    def once(name: str, source: str, **options: Any) -> Path:
        bundle = shared_folder / f"bundle-{name}" / name
        bundle.parent.mkdir(exist_ok=True)
        with FileLock(shared_folder / f"{name}.lock"):
            if not bundle.exists():
                export_bundle(source, bundle, **({"parity_texts": parity_file} | options))
        return bundle

    return once


@pytest.fixture(scope="session")
def tiny_bundle(export_once: ExportOnce, tiny_checkpoint: Path) -> Path:
    """The bundle of ``tiny_checkpoint``: [CLS], not normalized, 128 tokens of 160 positions."""
    return export_once("tiny", str(tiny_checkpoint))


@pytest.fixture(scope="session")
def tiny_mean_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """A sentence-transformers folder: mean pooling, normalized, a prompt for queries."""
    return make_checkpoint(layout="sentence-transformers", seed=1)


@pytest.fixture(scope="session")
def tiny_mean_bundle(export_once: ExportOnce, tiny_mean_checkpoint: Path) -> Path:
    """The bundle of ``tiny_mean_checkpoint``."""
    return export_once("tiny-mean", str(tiny_mean_checkpoint))


@pytest.fixture(scope="session")
def demo_bundle(
    export_once: ExportOnce,
    demo_source: ResolvedSource,
    tmp_path_factory: pytest.TempPathFactory,
    parity_texts: list[str],
) -> Path:
    """The bundle of m3e-small: trained weights, mean pooling, 512 tokens. Takes half a minute."""
    assert demo_source.folder.is_dir()
    # Each text is measured beside the longest, many times: fewer here, and none of the very long.
    file = tmp_path_factory.mktemp("texts") / "demo.txt"
    file.write_text("".join(f"{text}\n" for text in parity_texts[::19]), "utf-8")
    return export_once("demo", "demo", offline=True, parity_texts=file)


@pytest.fixture(scope="session")
def tracing_spared(tiny_bundle: Path) -> Callable[[], AbstractContextManager[None]]:
    """Return the context in which exports of ``tiny_checkpoint`` write the graph that is there.

    It would be the same again, as the tests of bundles say; to make it takes most of the time.
    """
    import onnx

    from corom.export import bundle
    from corom.export.graph import save_graph

    graph = onnx.load(tiny_bundle / "onnx" / "model.onnx")

    @contextmanager
    def spared() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundle, "export_graph", lambda _, path, opset: save_graph(graph, path))  # noqa: ARG005
            yield

    return spared


@pytest.fixture
def traced_before(tracing_spared: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """``tracing_spared`` for the whole of a test."""
    with tracing_spared():
        yield


@pytest.fixture
def altered(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A copy of the tiny bundle, for tests that damage it."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "altered"))


@pytest.fixture(scope="session")
def rehash() -> Callable[..., None]:
    """Return the function that makes a bundle's manifest agree with its files again."""

    def rehash(bundle: Path, **fields: Any) -> None:
        manifest = msgspec.structs.replace(load_manifest(bundle), **fields)
        save_manifest(msgspec.structs.replace(manifest, files=describe_files(bundle)), bundle)

    return rehash


@pytest.fixture(scope="session")
def offline_environment() -> dict[str, str]:
    """The environment of commands under test: no network, nothing of pytest's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV"))}
    return kept | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


@pytest.fixture(scope="session")
def start(offline_environment: dict[str, str]) -> Start:
    """Return the function that starts a real `corom` process, which Ctrl-C can interrupt."""

    def start(
        *arguments: object, program: str | Path = SCRIPT, **options: Any
    ) -> subprocess.Popen[str]:
        usual: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # A job in the background of a shell starts with Ctrl-C ignored.
        default = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            return subprocess.Popen(
                [program, *map(str, arguments)],
                encoding="utf-8",
                **(usual | {"env": offline_environment} | options),
            )
        finally:
            signal.signal(signal.SIGINT, default)

    return start


@pytest.fixture(scope="session")
def serve(start: Start) -> Callable[..., AbstractContextManager[str]]:
    """Return the context manager that starts `corom serve` on a free port and yields its URL.

    On leaving, SIGTERM must end it with exit code 0, and it must not have printed a traceback.
    """

    @contextmanager
    def serve(bundle: Path, *options: object, **popen: Any) -> Iterator[str]:
        with start("serve", bundle, "--port", "0", *options, **popen) as process:
            said: list[str] = []
            for line in process.stderr or ():
                said.append(line)
                if line.startswith("Listening on "):
                    break
            else:
                pytest.fail(f"corom serve ended with {process.wait()}: {''.join(said)}")
            url = said[-1].split()[-1]
            reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
            reader.start()
            try:
                yield url
            finally:
                process.terminate()
                code = process.wait(60)
                reader.join()
            assert (code, "Traceback" in "".join(said)) == (0, False), "".join(said)

    return serve


@pytest.fixture(scope="session")
def server(serve: Callable[..., AbstractContextManager[str]], tiny_bundle: Path) -> Iterator[str]:
    """The URL of a `corom serve` on the tiny bundle, with the options that it has by default."""
    with serve(tiny_bundle) as url:
        yield url


@pytest.fixture(scope="session")
def served_demo(
    serve: Callable[..., AbstractContextManager[str]], demo_bundle: Path
) -> Iterator[str]:
    """The URL of a `corom serve` on the demo bundle, which the documents speak to."""
    with serve(demo_bundle) as url:
        yield url


class CommandServer:
    """`command_server.py` as it runs; one command at a time.

    ``modules``: what it imports besides what most commands need.
    """

    def __init__(self, start: Start, *modules: str) -> None:
        self._connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with other:
            number = other.fileno()
            self._process = start(
                Path(__file__).with_name("command_server.py"),
                number,
                *modules,
                program=sys.executable,
                pass_fds=[number],
            )

    def run(
        self,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str],
        given: str,
        heard: Callable[[int, str], object] = lambda _process, _line: None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that is given this to read; returns what it said and its exit code.

        ``environment``: what is added to the usual one. ``heard`` is told the command's process and
        each line of its standard error as it comes.
        """
        request = {"arguments": arguments, "folder": str(folder), "environment": environment}
        (their_input, to), (out, their_out), (err, their_err) = (os.pipe() for _ in range(3))
        theirs = [their_input, their_out, their_err]
        with self._lock, ThreadPoolExecutor(2) as readers:
            socket.send_fds(self._connection, [json.dumps(request).encode()], theirs)
            for descriptor in theirs:
                os.close(descriptor)
            process = int(self._connection.recv(100))
            said = [
                readers.submit(read_all, out),
                readers.submit(read_all, err, partial(heard, process)),
            ]
            with suppress(BrokenPipeError), open(to, "w", encoding="utf-8") as pipe:  # noqa: PTH123
                pipe.write(given)
            code = self._connection.recv(100)
        assert code, self._process.communicate()
        return subprocess.CompletedProcess(arguments, int(code), *(part.result() for part in said))

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._process.communicate(timeout=60)


def read_all(descriptor: int, heard: Callable[[str], object] = lambda _line: None) -> str:
    """Read UTF-8 until its end; ``heard`` is told each line as it comes."""
    lines = []
    with open(descriptor, encoding="utf-8") as file:  # noqa: PTH123  # a descriptor is no path
        for line in file:
            lines.append(line)
            heard(line)
    return "".join(lines)


@pytest.fixture(scope="session")
def command_server(start: Start) -> Iterator[CommandServer]:
    """What runs the commands of ``corom``."""
    server = CommandServer(start)
    yield server
    server.close()


@pytest.fixture(scope="session")
def exporter(start: Start) -> Iterator[CommandServer]:
    """What runs the commands that need torch, which takes as long to import as they take."""
    server = CommandServer(start, "corom.export.bundle", "onnxscript")
    yield server
    server.close()


@pytest.fixture(scope="session")
def corom(
    start: Start, command_server: CommandServer, offline_environment: dict[str, str]
) -> Corom:
    """Return the function that runs `corom` with these arguments and collects what it says.

    ``input``, ``cwd`` and ``env`` are as in subprocess. The process is a fork of one that has
    imported what commands need; a new one with any other option of subprocess, or if anything of
    ``env`` is unusual but variables of corom, which are read when they are needed.
    """

    def corom(
        *arguments: object,
        input: str = "",  # noqa: A002
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> Any:
        env = offline_environment if env is None else env
        own = {k: v for k, v in env.items() if offline_environment.get(k) != v}
        usual = env.keys() >= offline_environment.keys() and all(k[:6] == "COROM_" for k in own)
        if usual and not options:
            words = [str(SCRIPT), *map(str, arguments)]
            result = command_server.run(words, cwd or Path.cwd(), own, input)
        else:
            with start(*arguments, cwd=cwd, env=env, **options) as process:
                out, err = process.communicate(input)
            code = process.returncode
            result = subprocess.CompletedProcess(process.args, code, out, err)
        assert "Traceback" not in (result.stderr or ""), result.stderr
        return result

    return corom


@pytest.fixture(scope="session")
def corom_here() -> Corom:
    """Return the function that does what ``corom`` does in this process, which has torch."""

    def corom_here(*arguments: object) -> Any:
        words = list(map(str, arguments))
        done = CliRunner().invoke(cli, words, prog_name="corom")
        assert isinstance(done.exception, SystemExit | None), done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return corom_here


@pytest.fixture(scope="session")
def transformers_vectors() -> Callable[..., np.ndarray]:
    """Return the function that computes vectors with nothing but transformers and the textbook."""

    import torch
    import transformers

    def vectors(folder: Path, texts: list[str], pooling: str, max_length: int) -> np.ndarray:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
        model = model.float().eval()
        rows = []
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**inputs).last_hidden_state[0]
            rows.append((hidden[0] if pooling == "cls" else hidden.mean(0)).numpy())
        return np.stack(rows)

    return vectors


@pytest.fixture(scope="session")
def shell(offline_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return the function that runs a line in bash, with `corom` on the PATH."""
    path = f"{SCRIPT.parent}{os.pathsep}{offline_environment['PATH']}"

    def shell(line: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            env=offline_environment | {"PATH": path},
            capture_output=True,
            encoding="utf-8",
            check=False,
            **options,
        )

    return shell
