"""Model repositories for Triton: read by Triton's own protobuf, their steps executed by hand."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.export.profiles import default_profiles
from corom.runtime import Encoder
from corom.runtime.errors import BundleError, CoromError, InputError, UnavailableError
from corom.runtime.manifest import load_manifest, sha256_of
from corom.runtime.sidecar import Profile, Sidecar, sidecar_path
from corom.runtime.text_proto import text_proto
from corom.runtime.triton_config import configs
from corom.runtime.triton_options import TritonOptions, check_triton
from corom.runtime.triton_readme import repository_readme
from corom.runtime.triton_repository import write_repository
from corom.runtime.triton_shapes import rows_held, widths_for
from corom.runtime.triton_steps import EncoderStep, Ids, TokenizerStep
from corom.runtime.vectors import normalize

Corom = Callable[..., CompletedProcess[str]]
Parse = Callable[[str], Any]
ENGINE = "engines/h100.engine"
TEXTS = ["头痛怎么办", "", "a", "胃出血一般住院30-60天。" * 3, "CT 检查 café", "长" * 400]


@pytest.fixture(scope="session")
def parse() -> Parse:
    """Return the function that reads a config.pbtxt as Triton does, unknown fields refused."""
    with warnings.catch_warnings():
        # tritonclient's generated code is a version older than the protobuf that runs it.
        warnings.simplefilter("ignore")
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2

    def parse(text: str) -> Any:
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    return parse


@pytest.fixture(scope="module")
def engine_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, rehash: Callable[..., None]
) -> Path:
    """The tiny bundle with what looks like an engine: config.pbtxt is made of its sidecar alone."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("engine") / "bundle"))
    add_engine(bundle, ENGINE, default_profiles(128))
    rehash(bundle)
    return bundle


def add_engine(
    bundle: Path, path: str, profiles: tuple[Profile, ...], flavour: str = "tensorrt"
) -> None:
    engine = bundle / path
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(b"plan")
    graph = bundle / "onnx" / "model.onnx"
    sidecar = Sidecar(
        flavour=flavour,  # type: ignore[arg-type]
        version="10.13.3.9",
        precision="fp32",
        gpu="NVIDIA H100",
        compute_capability="9.0",
        driver="580.95.05",
        cuda="13.0",
        graph="onnx/model.onnx",
        graph_sha256=sha256_of(graph),
        engine_sha256=sha256_of(engine),
        dimension=48,
        profiles=profiles,
        options={},
    )
    sidecar_path(engine).write_bytes(msgspec.json.encode(sidecar))


def options(**given: Any) -> TritonOptions:
    return TritonOptions(**given)


def written(repository: Path, parse: Parse) -> dict[str, Any]:
    """Return the parsed configuration of every model of a repository."""
    return {
        path.parent.name: parse(path.read_text("utf-8"))
        for path in repository.glob("*/config.pbtxt")
    }


# --- config.pbtxt


@given(st.text(), st.text(min_size=1))
def test_text_of_every_kind_survives_the_text_format(parse: Parse, value: str, key: str) -> None:
    message = {"name": value, "parameters": [{"key": key, "value": {"string_value": value}}]}
    found = parse(text_proto(message))
    assert (found.name, found.parameters[key].string_value) == (value, value)


@pytest.mark.parametrize("encoder", ["python", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("normalized", [False, True])
def test_every_config_is_one_that_triton_reads(
    parse: Parse, engine_bundle: Path, encoder: str, normalized: bool
) -> None:
    manifest = msgspec.structs.replace(load_manifest(engine_bundle), normalize=normalized)
    serving = check_triton(engine_bundle, manifest, options(encoder=encoder, name="m"))
    models = {name: parse(text) for name, text in configs(serving).items()}
    normalizer = {"m_normalize"} if normalized and encoder != "python" else set()
    assert set(models) == {"m", "m_tokenizer", "m_encoder"} | normalizer
    for name, model in models.items():
        assert model.name == name
        assert model.max_batch_size == serving.max_batch_size > 0
        assert model.version_policy.latest.num_versions == 1
        assert not model.response_cache.enable
        assert model.WhichOneof("scheduling_choice") == (
            "ensemble_scheduling" if name == "m" else "dynamic_batching"
        )
    assert [(i.name, i.dims[:]) for i in models["m"].input] == [("TEXT", [1])]
    assert [(o.name, o.dims[:]) for o in models["m"].output] == [
        ("SENTENCE_EMBEDDING", [manifest.dimension]),
        ("TRUNCATED", [1]),
    ]
    check_ensemble(models)


def check_ensemble(models: dict[str, Any]) -> None:
    """Each step takes what is there, of the type and shape that its giver says, and all is used."""
    ensemble = models["m"]
    there = {i.name: (i.data_type, list(i.dims)) for i in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        inputs = {i.name: (i.data_type, list(i.dims)) for i in model.input}
        outputs = {o.name: (o.data_type, list(o.dims)) for o in model.output}
        assert set(step.input_map) == set(inputs)
        for name, source in step.input_map.items():
            assert there[source] == inputs[name], (step.model_name, name)
        assert set(step.output_map) == set(outputs)
        there |= {target: outputs[name] for name, target in step.output_map.items()}
    for output in ensemble.output:
        assert there[output.name] == (output.data_type, list(output.dims))


def test_the_onnx_models_tensors_are_those_of_the_graph(
    parse: Parse, tiny_bundle: Path, tmp_path: Path
) -> None:
    write_repository(tiny_bundle, tmp_path / "r", options(encoder="onnxruntime", threads=2))
    model = written(tmp_path / "r", parse)["tiny_encoder"]
    assert model.platform == "onnxruntime_onnx"
    assert model.parameters["intra_op_thread_count"].string_value == "2"
    graph = tmp_path / "r" / "tiny_encoder" / "1" / model.default_model_filename
    assert sha256_of(graph) == load_manifest(tiny_bundle).entry("onnx/model.onnx").sha256
    session = onnxruntime.InferenceSession(graph)
    kinds = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}
    for given_here, of_graph in (
        (model.input, session.get_inputs()),
        (model.output, session.get_outputs()),
    ):
        types = given_here[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
        found = {t.name: (types[t.data_type].name, list(t.dims)) for t in given_here}
        expected = {
            t.name: (kinds[t.type], [d if isinstance(d, int) else -1 for d in t.shape[1:]])
            for t in of_graph
        }
        assert found == expected


def test_the_tensorrt_model_names_every_profile_and_keeps_within_them(
    parse: Parse, engine_bundle: Path, tmp_path: Path
) -> None:
    serving = write_repository(engine_bundle, tmp_path / "r", options(encoder="tensorrt", name="m"))
    model = written(tmp_path / "r", parse)["m_encoder"]
    profiles = default_profiles(128)
    (group,) = model.instance_group
    assert list(group.profile) == [str(index) for index in range(len(profiles))]
    assert group.kind == group.KIND_GPU
    assert model.platform == "tensorrt_plan"
    assert (tmp_path / "r/m_encoder/1" / model.default_model_filename).read_bytes() == b"plan"
    lengths = next(tensor for tensor in model.input if tensor.name == "lengths")
    assert lengths.HasField("reshape")
    assert list(lengths.reshape.shape) == []
    assert list(model.dynamic_batching.preferred_batch_size) == [8, 64]
    for width in serving.widths:
        for rows in range(1, model.max_batch_size + 1):
            assert any(
                p.batch[0] <= rows <= p.batch[2] and p.length[0] <= width <= p.length[2]
                for p in profiles
            )
    assert {w.batch_size for w in model.model_warmup} == {1, 8, 64}


@pytest.mark.parametrize("encoder", ["python", "onnxruntime", "tensorrt"])
def test_every_warm_up_has_its_files_of_the_right_size(
    parse: Parse, engine_bundle: Path, tmp_path: Path, encoder: str
) -> None:
    serving = write_repository(engine_bundle, tmp_path / "r", options(encoder=encoder, name="m"))
    models = written(tmp_path / "r", parse)
    sizes = {"TYPE_INT32": 4, "TYPE_INT64": 8}
    for name in ("m_tokenizer", "m_encoder"):
        model = models[name]
        assert model.model_warmup
        for warmup in model.model_warmup:
            assert set(warmup.inputs) == {tensor.name for tensor in model.input}
            for value in warmup.inputs.values():
                file = tmp_path / "r" / name / "warmup" / value.input_data_file
                types = value.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
                kind = types[value.data_type].name
                if kind in sizes:
                    assert file.stat().st_size == sizes[kind] * int(np.prod(value.dims))
                else:
                    content = file.read_bytes()
                    assert int.from_bytes(content[:4], "little") == len(content) - 4
                    assert content[4:].decode()
    widths = {w.inputs["input_ids"].dims[0] for w in models["m_encoder"].model_warmup}
    assert widths == set(serving.widths or [128])


def test_what_is_asked_for_is_in_the_config(
    parse: Parse, tiny_bundle: Path, tmp_path: Path
) -> None:
    asked = options(
        name="search-1.0",
        instances=3,
        max_length=64,
        truncate=False,
        max_batch_size=32,
        preferred_batch_sizes=(16, 4, 16),
        queue_delay_us=500,
        backend="openvino",
        threads=2,
    )
    write_repository(tiny_bundle, tmp_path / "r", asked)
    models = written(tmp_path / "r", parse)
    encoder, tokenizer = models["search-1.0_encoder"], models["search-1.0_tokenizer"]
    assert encoder.instance_group[0].count == 3
    assert encoder.max_batch_size == 32
    assert list(encoder.dynamic_batching.preferred_batch_size) == [4, 16]
    assert encoder.dynamic_batching.max_queue_delay_microseconds == 500
    assert {k: v.string_value for k, v in encoder.parameters.items()} == {
        "backend": "openvino",
        "device": "cpu",
        "precision": "auto",
        "threads": "2",
    }
    assert tokenizer.parameters["max_length"].string_value == "64"
    assert tokenizer.parameters["truncate"].string_value == "error"


# --- Shapes


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(1, 6), st.integers(0, 6)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 12),
)
def test_every_number_of_rows_up_to_those_held_fits_a_profile(
    ranges: list[tuple[int, int, int, int]], width: int
) -> None:
    profiles = [
        Profile(name="p", batch=(b, b, b + more), length=(n, n, n + longer))
        for b, more, n, longer in ranges
    ]

    def fits(rows: int) -> bool:
        return any(
            p.batch[0] <= rows <= p.batch[2] and p.length[0] <= width <= p.length[2]
            for p in profiles
        )

    held = rows_held(profiles, width)
    assert all(fits(rows) for rows in range(1, held + 1))
    assert not fits(held + 1)


@pytest.mark.parametrize("max_length", [1, 16, 17, 100, 128, 512, 600])
def test_widths_end_with_the_longest_text(max_length: int) -> None:
    widths = widths_for(max_length)
    assert widths[-1] == max_length
    assert list(widths) == sorted(set(widths))


# --- What the models compute


def raw(texts: list[str]) -> Any:
    column = np.empty((len(texts), 1), object)
    column[:, 0] = [text.encode() for text in texts]
    return column


@pytest.mark.parametrize("bundle_name", ["tiny_bundle", "tiny_mean_bundle"])
def test_the_onnx_ensembles_steps_by_hand_give_the_encoders_vectors(
    request: pytest.FixtureRequest, tmp_path: Path, bundle_name: str
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    serving = write_repository(bundle, tmp_path / "r", options(encoder="onnxruntime", name="m"))
    step = TokenizerStep(
        tmp_path / "r/m_tokenizer/1", serving.max_length, True, list(serving.widths)
    )
    session = onnxruntime.InferenceSession(tmp_path / "r/m_encoder/1/model.onnx")
    with Encoder(bundle) as encoder:
        for texts in ([TEXTS[0]], TEXTS, TEXTS[1:3]):
            arrays = step(raw(texts), {})
            assert arrays["input_ids"].shape[1] in serving.widths
            inputs = {name: arrays[name] for name in ("input_ids", "attention_mask")}
            vectors = session.run(["sentence_embedding"], inputs)[0]
            if (tmp_path / "r/m_normalize").exists():
                vectors = normalize(vectors)
            np.testing.assert_allclose(vectors, encoder.encode(texts), atol=2e-5)
    assert (tmp_path / "r/m_normalize").exists() == serving.manifest.normalize


def test_the_python_ensembles_steps_by_hand_give_the_encoders_vectors(
    tiny_mean_bundle: Path, tmp_path: Path
) -> None:
    serving = write_repository(tiny_mean_bundle, tmp_path / "r", options(name="m"))
    tokenize = TokenizerStep(tmp_path / "r/m_tokenizer/1", serving.max_length, True, [])
    encode = EncoderStep(tmp_path / "r/m_encoder/1/bundle", threads=1)
    requests = [TEXTS[:1], TEXTS, TEXTS[3:]]
    arrays = [tokenize(raw(texts), {}) for texts in requests]
    ids = [Ids(a["input_ids"].astype(np.int32), a["lengths"].astype(np.int32)) for a in arrays]
    with Encoder(tiny_mean_bundle, threads=1) as encoder:
        for texts, vectors in zip(requests, encode(ids), strict=True):
            np.testing.assert_allclose(vectors, encoder.encode(texts), atol=2e-5)
    with pytest.raises(InputError, match="each must be 1 to"):
        encode([Ids(np.ones((1, 3), np.int32), np.array([[4]], np.int32))])
    encode.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="头痛 ab\n", max_size=24), min_size=1, max_size=5))
def test_cut_texts_are_flagged_and_no_others(step: TokenizerStep, texts: list[str]) -> None:
    found = step(raw(texts), {})
    with_all = step(raw(texts), {"truncate": False})
    expected = with_all["lengths"][:, 0] > 12
    assert found["TRUNCATED"][:, 0].tolist() == expected.tolist()
    assert found["lengths"][:, 0].tolist() == np.minimum(with_all["lengths"][:, 0], 12).tolist()
    mask = found["attention_mask"]
    assert (mask.sum(1) == found["lengths"][:, 0]).all()
    assert (found["input_ids"][mask == 0] == 0).all()


@pytest.fixture(scope="module")
def step(tiny_bundle: Path) -> TokenizerStep:
    return TokenizerStep(tiny_bundle, 12, True, [4, 8, 12, 160])


@pytest.mark.parametrize(
    ("texts", "asked", "message"),
    [
        ([b"ok", b"\xff\xfe"], {}, "text 1 is not UTF-8: invalid start byte at byte 0"),
        (["头" * 50], {"truncate": "error"}, "text 0 has 52 tokens"),
        (["头" * 50], {"truncate": "maybe"}, "truncate is 'maybe'"),
        (["头" * 150], {"truncate": "false"}, "the encoder takes up to 12"),
        (["头"], {"prompt_name": "query"}, "there is no prompt 'query'"),
        (["头"], {"prompt": 5}, "prompt is int"),
    ],
)
def test_what_cannot_be_tokenized_is_refused(
    tiny_bundle: Path, texts: list[Any], asked: dict[str, object], message: str
) -> None:
    step = TokenizerStep(tiny_bundle, 12, True, [4, 8, 12])
    column = np.empty((len(texts), 1), object)
    column[:, 0] = [t if isinstance(t, bytes) else t.encode() for t in texts]
    with pytest.raises(CoromError, match=message):
        step(column, asked)
    assert step(raw(["头"]), {"traceparent": "00-1"})["lengths"].tolist() == [[3]]


# --- Refusals


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"encoder": "tensorrt"}, UnavailableError, "has no TensorRT engine .*--engine tensorrt"),
        ({"encoder": "onnxruntime", "precision": "fp16"}, UnavailableError, "no variant"),
        ({"precision": "int8"}, UnavailableError, "no variant of precision 'int8'"),
        ({"encoder": "onnxruntime", "backend": "openvino"}, InputError, "for --encoder python"),
        ({"backend": "openvino", "device": "cuda"}, InputError, "only on: cpu"),
        ({"backend": "tensorrt", "device": "cpu"}, InputError, "only on: cuda"),
        ({"encoder": "tensorrt", "device": "cpu"}, InputError, "does not run on device 'cpu'"),
        ({"encoder": "tensorrt", "threads": 2}, InputError, "Leave it out"),
        ({"engine": "x.engine"}, InputError, "--engine is for --encoder tensorrt"),
        ({"encoder": "openvino"}, InputError, "there is no encoder 'openvino'"),
        ({"backend": "torch"}, InputError, "there is no backend 'torch'"),
        ({"name": "a/b"}, InputError, "Choose one with --name"),
        ({"name": "../up"}, InputError, "Choose one with --name"),
        ({"max_length": 161}, InputError, "160 positions"),
        ({"max_batch_size": 0}, InputError, "at least 1"),
        ({"instances": 0}, InputError, "at least 1"),
        ({"queue_delay_us": -1}, InputError, "at least 0"),
        ({"preferred_batch_sizes": (300,)}, InputError, "above max_batch_size 256"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_written(
    tiny_bundle: Path, tmp_path: Path, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_repository(tiny_bundle, tmp_path / "r", options(**asked))
    assert not list(tmp_path.iterdir())


def test_an_engine_that_triton_cannot_load_or_one_of_several_is_refused(
    engine_bundle: Path, tmp_path: Path, rehash: Callable[..., None]
) -> None:
    bundle = Path(shutil.copytree(engine_bundle, tmp_path / "bundle"))
    second = "engines/l4.engine"
    add_engine(bundle, second, (Profile(name="few", batch=(1, 2, 4), length=(8, 16, 64)),))
    add_engine(bundle, "engines/rtx.engine", default_profiles(128), "tensorrt-rtx")
    rehash(bundle)
    manifest = load_manifest(bundle)

    def check(**asked: Any) -> Any:
        return check_triton(bundle, manifest, options(encoder="tensorrt", **asked))

    with pytest.raises(InputError, match="several engines .* Choose one with --engine"):
        check()
    with pytest.raises(UnavailableError, match="not of tensorrt-rtx"):
        check(engine="engines/rtx.engine")
    with pytest.raises(UnavailableError, match="no TensorRT engine of precision fp16"):
        check(precision="fp16")
    with pytest.raises(InputError, match="up to 64 tokens.*--max-length 64"):
        check(engine=second)
    with pytest.raises(InputError, match="hold up to 4 texts"):
        check(engine=second, max_length=64, max_batch_size=5)
    serving = check(engine=second, max_length=64)
    assert (serving.max_batch_size, serving.preferred_batch_sizes) == (4, (2,))
    assert serving.widths == (8, 16, 32, 48, 64)


def test_an_altered_file_is_not_served(altered: Path, tmp_path: Path) -> None:
    (altered / "onnx/model.onnx").write_bytes(b"other")
    for encoder in ("python", "onnxruntime"):
        with pytest.raises(BundleError, match="was altered"):
            write_repository(altered, tmp_path / "new" / "r", options(encoder=encoder))
    assert not (tmp_path / "new").exists()


def test_a_repository_is_replaced_only_when_asked_and_only_if_it_is_one(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "r"
    write_repository(tiny_bundle, place, options(name="one"))
    with pytest.raises(InputError, match="exists. Choose another folder"):
        write_repository(tiny_bundle, place, options(name="two"))
    write_repository(tiny_bundle, place, options(name="two"), overwrite=True)
    assert {p.name for p in place.iterdir() if p.is_dir()} == {
        "two",
        "two_encoder",
        "two_tokenizer",
    }
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(InputError, match="is not a Triton model repository of corom's"):
        write_repository(tiny_bundle, tmp_path / "other", overwrite=True)
    with pytest.raises(InputError, match="is inside the bundle"):
        write_repository(tiny_bundle, tiny_bundle / "triton")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "r"]


def test_the_record_names_every_file_with_its_hash(tiny_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "r"
    write_repository(tiny_bundle, place)
    record = json.loads((place / "corom-triton.json").read_text())
    there = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert set(record["files"]) == there - {"corom-triton.json"}
    for name, digest in record["files"].items():
        assert sha256_of(place / name) == digest
    # Git and object stores keep files alone.
    assert {f"{name.split('/')[0]}/1" for name in there if "/" in name} <= {
        str(Path(name).parent) for name in there
    }


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino"])
def test_the_dockerfile_is_one_that_docker_takes_and_leaves_one_onnx_runtime(
    tiny_bundle: Path, backend: str
) -> None:
    device = "cpu" if backend == "openvino" else "cuda"
    asked = options(name="CoROM", backend=backend, device=device)
    text = repository_readme(check_triton(tiny_bundle, load_manifest(tiny_bundle), asked), "1.2")
    lines = text.split("DOCKERFILE\n")[0].split("<<'DOCKERFILE'\n")[1] + "\n"
    assert "docker build -t corom-triton -f" in text
    assert ":/models:ro corom-triton tritonserver" in text
    run = lines[lines.index("RUN") :]
    assert ("pip uninstall" in run) == (device == "cuda")
    if device == "cuda":  # each line but the last goes on
        first, second, third, *_ = run.splitlines()
        assert first.endswith("\\")
        assert second.endswith("-y onnxruntime onnxruntime-gpu \\")
        assert "'onnxruntime-gpu[cuda,cudnn]'" in third


# --- The command line


def test_the_command_writes_a_repository(corom: Corom, tiny_bundle: Path, tmp_path: Path) -> None:
    done = corom("triton", tiny_bundle, "-o", tmp_path / "r", "--encoder", "onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["model"], said["encoder"], said["widths"][-1]) == ("tiny", "onnxruntime", 128)
    assert (
        (tmp_path / "r" / "README.md").read_text("utf-8").startswith("# tiny: a model repository")
    )
    again = corom("triton", tiny_bundle, "-o", tmp_path / "r")
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert corom("triton", tiny_bundle, "-o", tmp_path / "r", "--overwrite").returncode == 0
    assert corom("triton", tmp_path / "none", "-o", tmp_path / "x").returncode == 2
    lacks = corom("triton", tiny_bundle, "-o", tmp_path / "x", "--encoder", "tensorrt")
    assert (lacks.returncode, "--engine tensorrt" in lacks.stderr) == (3, True)


@pytest.mark.slow
def test_export_writes_the_repository_too(
    corom: Corom, tiny_checkpoint: Path, parity_file: Path, tmp_path: Path
) -> None:
    command = ["export", tiny_checkpoint, "-o", tmp_path / "b", "--parity-texts", parity_file]
    done = corom(*command, "--triton", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "corom triton" not in done.stderr
    copied = tmp_path / "r/b_encoder/1/bundle/manifest.json"
    assert copied.read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_export_looks_at_the_repositorys_place_first(corom: Corom, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "precious").touch()
    command = ["export", tmp_path / "no checkpoint", "-o", tmp_path / "b"]
    occupied = corom(*command, "--triton", tmp_path / "r")
    assert (occupied.returncode, "r' exists" in occupied.stderr) == (2, True)
    inside = corom(*command, "--triton", tmp_path / "b" / "triton")
    assert (inside.returncode, "is inside the bundle" in inside.stderr) == (2, True)


def test_the_command_loads_nothing_heavy() -> None:
    import subprocess

    heavy = {"torch", "transformers", "onnx", "onnxruntime", "google.protobuf", "corom.export"}
    program = f"import sys, corom.runtime.cli_triton; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
