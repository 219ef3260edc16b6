"""A bundle to a model repository that NVIDIA Triton loads: the whole of `corom triton`.

Knows folders and files; `triton_options.py` says what is served, `triton_config.py` how.
"""

import shutil
from pathlib import Path

import msgspec

from .errors import InputError
from .manifest import MANIFEST_NAME, Manifest, checked_file, load_manifest, save_manifest, sha256_of
from .packages import installed_version
from .staging import Kind, refuse_occupied, staged
from .triton_config import configs, needs_normalize
from .triton_options import Serving, TritonOptions, check_triton
from .triton_readme import repository_readme
from .triton_warmup import warmup_files

REPOSITORY_NAME = "corom-triton.json"
REPOSITORY = Kind("Triton model repository of corom's", REPOSITORY_NAME)

_MODEL = '''"""{what} of {name}: corom.runtime, which Triton's Python must have, does the work."""

try:
    from corom.runtime.triton_models import {model} as TritonPythonModel
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{{error}}. Install corom for Triton's Python: pip install corom=={version}"
    ) from None

__all__ = ["TritonPythonModel"]
'''


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """corom-triton.json: what a repository was made of, and the sha256 of each of its files."""

    corom: str
    bundle: str
    weights_sha256: str
    options: TritonOptions
    files: dict[str, str]


def write_repository(
    bundle: Path,
    repository: Path,
    options: TritonOptions | None = None,
    *,
    overwrite: bool = False,
) -> Serving:
    """Write the model repository of a bundle, whole or not at all, and return what it serves.

    Files are copied after their hashes were found to be as recorded. ``overwrite`` replaces a
    repository that corom wrote, nothing else.

    Raises ``InputError`` for an option or a folder that cannot be used, ``UnavailableError`` for
    what the bundle lacks, ``BundleError`` for a file of it that was altered.
    """
    require_place(bundle, repository, overwrite=overwrite)
    manifest = load_manifest(bundle)
    serving = check_triton(bundle, manifest, options or TritonOptions())
    with staged(repository, overwrite=overwrite, kind=REPOSITORY) as staging:
        for name, config in configs(serving).items():
            (staging / name / "1").mkdir(parents=True)
            (staging / name / "config.pbtxt").write_text(config, "utf-8")
        # Git and object stores keep no empty folder, and Triton takes no model without a version.
        (staging / serving.name / "1" / ".keep").touch()
        for name, files in warmup_files(serving).items():
            (staging / name / "warmup").mkdir()
            for file, content in files.items():
                (staging / name / "warmup" / file).write_bytes(content)
        _fill_tokenizer(bundle, staging / f"{serving.name}_tokenizer", serving)
        _fill_encoder(bundle, staging / f"{serving.name}_encoder", serving)
        if needs_normalize(serving):
            folder = staging / f"{serving.name}_normalize" / "1"
            _write_model(folder, "NormalizeModel", "Scaling to length 1", serving)
        (staging / "README.md").write_text(repository_readme(serving, _version()), "utf-8")
        _write_record(staging, serving)
    return serving


def require_place(bundle: Path, repository: Path, *, overwrite: bool) -> None:
    """Raise ``InputError`` if the repository of this bundle cannot be written there."""
    if repository.resolve().is_relative_to(bundle.resolve()):
        raise InputError(f"'{repository}' is inside the bundle '{bundle}'. Choose another folder.")
    refuse_occupied(repository, overwrite=overwrite, kind=REPOSITORY)


def _fill_tokenizer(bundle: Path, model: Path, serving: Serving) -> None:
    folder = model / "1"
    save_manifest(serving.manifest, folder)
    _copy(bundle, "tokenizer.json", folder, serving.manifest)
    _write_model(folder, "TokenizerModel", "The tokenizer", serving)


def _fill_encoder(bundle: Path, model: Path, serving: Serving) -> None:
    manifest, folder = serving.manifest, model / "1"
    if serving.asked.encoder == "python":
        for entry in manifest.files:
            _copy(bundle, entry.path, folder / "bundle", manifest)
        shutil.copyfile(bundle / MANIFEST_NAME, folder / "bundle" / MANIFEST_NAME)
        _write_model(folder, "EncoderModel", "The encoder", serving)
        return
    if serving.engine is not None:
        _copy(bundle, serving.engine.path, folder, manifest, flat=True)
        return
    for entry in manifest.graph_entries(serving.variant.file):
        _copy(bundle, entry.path, folder, manifest, flat=True)


def _copy(bundle: Path, path: str, folder: Path, manifest: Manifest, *, flat: bool = False) -> None:
    source = checked_file(bundle, manifest.entry(path))
    target = folder / (source.name if flat else path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_model(folder: Path, model: str, what: str, serving: Serving) -> None:
    code = _MODEL.format(what=what, name=serving.name, model=model, version=_version())
    (folder / "model.py").write_text(code, "utf-8")


def _write_record(staging: Path, serving: Serving) -> None:
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    record = Record(
        corom=_version(),
        bundle=serving.manifest.name,
        weights_sha256=serving.manifest.source.weights_sha256,
        options=serving.asked,
        files={path.relative_to(staging).as_posix(): sha256_of(path) for path in files},
    )
    encoded = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    (staging / REPOSITORY_NAME).write_bytes(encoded)


def _version() -> str:
    return installed_version("corom") or "unknown"
