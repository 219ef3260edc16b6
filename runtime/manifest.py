"""manifest.json: what a bundle holds, where it came from and how far it is from the reference.

The only thing that the exporter and the runtime share. Knows files and hashes, not graphs.
"""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec

from .errors import BundleError, InputError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1

Precision = Literal["fp32", "bf16", "fp16", "int8-per-token", "int8"]
Pooling = Literal["cls", "mean"]
Similarity = Literal["dot", "cosine"]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights came from."""

    uri: str
    revision: str | None
    weights_sha256: str
    architecture: str
    license: str | None = None


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the bundle; ``path`` is relative to the bundle and uses ``/``."""

    path: str
    sha256: str
    size_bytes: int


class Tolerance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a variant may differ from the reference, on un-normalized vectors."""

    cosine_min: float
    max_abs_error: float | None = None
    batch_invariance: float | None = None


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a variant was measured to differ from the reference, on un-normalized vectors.

    ``rank_agreement``: mean share of each text's ten nearest texts that the reference names too.
    ``batch_invariance``: largest absolute difference between a text's vector alone and in a batch.
    """

    texts: int
    cosine_min: float
    cosine_mean: float
    max_abs_error: float
    non_finite: int
    rank_agreement: float
    batch_invariance: float
    worst_text: str

    def failures(self, tolerance: Tolerance) -> list[str]:
        """Return one line for each bound of ``tolerance`` that this report exceeds."""
        lines = []
        if self.non_finite:
            lines.append(f"{self.non_finite} values are NaN or infinite")
        if not self.cosine_min >= tolerance.cosine_min:
            lines.append(f"cosine {self.cosine_min:.7f} is below {tolerance.cosine_min}")
        bounds = {
            "max abs error": (self.max_abs_error, tolerance.max_abs_error),
            "batch invariance": (self.batch_invariance, tolerance.batch_invariance),
        }
        for name, (found, allowed) in bounds.items():
            if allowed is not None and not found <= allowed:
                lines.append(f"{name} {found:.3g} is above {allowed:g}")
        return lines


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One executable form of the encoder.

    ``parity``: what was measured at export, by the backend that executed it.
    """

    precision: Precision
    file: str
    tolerance: Tolerance
    parity: dict[str, Parity]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of manifest.json."""

    schema_version: int
    name: str
    source: Source
    dimension: int
    max_length: int
    max_positions: int
    pooling: Pooling
    normalize: bool
    similarity: Similarity
    prompts: dict[str, str]
    default_prompt_name: str | None
    files: tuple[FileEntry, ...]
    variants: tuple[Variant, ...]
    tools: dict[str, str]

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError("it has no variants")
        if not 1 <= self.max_length <= self.max_positions or self.dimension < 1:
            raise ValueError(
                f"dimension {self.dimension}, max_length {self.max_length} and max_positions "
                f"{self.max_positions} cannot be"
            )
        if self.default_prompt_name not in {None, *self.prompts}:
            raise ValueError(f"there is no prompt '{self.default_prompt_name}'")

    def variant(self, precision: Precision) -> Variant | None:
        """Return the variant of this precision, or None."""
        return next((v for v in self.variants if v.precision == precision), None)

    def entry(self, path: str) -> FileEntry:
        """Return the entry of a file of the bundle; ``BundleError`` if the manifest has none."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise BundleError(f"{MANIFEST_NAME} lists no file '{path}'. Export the bundle again.")

    def has(self, path: str) -> bool:
        """Return whether the bundle has this file."""
        return any(entry.path == path for entry in self.files)

    def graph_entries(self, graph: str) -> list[FileEntry]:
        """Return the entry of a graph, and of its weights where they have a file of their own."""
        weights = weights_beside(graph)
        return [self.entry(graph), *(entry for entry in self.files if entry.path == weights)]


def weights_beside(graph: str) -> str:
    """Return the file that a graph's weights are in if they are too large for the graph's own."""
    return f"{graph}.data"


class _Version(msgspec.Struct):
    """All that is read of a manifest before it is known whether this corom can read the rest."""

    schema_version: Annotated[int, msgspec.Meta(ge=1)]


def load_manifest(bundle: Path) -> Manifest:
    """Read and check ``bundle/manifest.json``.

    Raises ``BundleError`` if the folder is no bundle, the manifest is malformed, newer than this
    corom, or names a path outside the bundle; ``InputError`` for what is no path.
    """
    path = bundle / MANIFEST_NAME
    try:
        if path.is_fifo():  # which would be waited for
            raise BundleError(f"'{path}' is a pipe, not a file. Export the bundle again.")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        reason, place = "there is no such folder", str(bundle)
        if bundle.is_dir():
            reason = "the folder has no manifest.json"
        elif bundle.exists():
            reason, place = "it is a file, and a bundle is a folder", "FOLDER"
        raise BundleError(
            f"'{bundle}' is not a bundle: {reason}. Make one with: corom export SOURCE -o {place}"
        ) from None
    except OSError as error:
        raise BundleError(f"'{path}' cannot be read: {error.strerror}.") from None
    except ValueError:
        raise InputError(f"{str(bundle)!r} is no path: it holds a NUL character.") from None
    try:
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"'{path}' has schema version {version}; this corom reads up to {SCHEMA_VERSION}. "
                "Run: pip install --upgrade corom"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"'{path}' is not a valid manifest: {error}. Export the bundle again."
        ) from None
    for entry in manifest.files:
        _refuse_escape(entry.path)
    for variant in manifest.variants:
        manifest.entry(variant.file)
    return manifest


def save_manifest(manifest: Manifest, bundle: Path) -> None:
    """Write ``bundle/manifest.json``."""
    encoded = msgspec.json.encode(manifest)
    (bundle / MANIFEST_NAME).write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


def checked_file(bundle: Path, entry: FileEntry) -> Path:
    """Return the path of a bundle file after its size and sha256 are found to be as recorded."""
    path = bundle / _refuse_escape(entry.path)
    try:
        if not path.resolve().is_relative_to(bundle.resolve()):
            raise BundleError(f"'{path}' leads out of the bundle through a link; this is refused.")
        size = path.stat().st_size
        found = f"{size} bytes"
        if size == entry.size_bytes:
            found = f"sha256 {sha256_of(path)}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise BundleError(f"'{path}' cannot be read: {error}. {_EXPORT_AGAIN}") from None
    if found != f"sha256 {entry.sha256}":
        raise BundleError(
            f"'{path}' was altered or cut short: found {found}, expected {entry.size_bytes} bytes, "
            f"sha256 {entry.sha256}. {_EXPORT_AGAIN}"
        )
    return path


def describe_files(bundle: Path) -> tuple[FileEntry, ...]:
    """Return an entry for each file below ``bundle`` except the manifest, sorted by path."""
    paths = sorted(p for p in bundle.rglob("*") if p.is_file() and p.name != MANIFEST_NAME)
    return tuple(
        FileEntry(
            path=p.relative_to(bundle).as_posix(), sha256=sha256_of(p), size_bytes=p.stat().st_size
        )
        for p in paths
    )


def manifest_sha256(bundle: Path) -> str:
    """Return what names a bundle: the hash of its manifest, which has the hash of every file."""
    return sha256_of(bundle / MANIFEST_NAME)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_EXPORT_AGAIN = "Export the bundle again or copy it anew."


def _refuse_escape(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path
    if outside or not path.isprintable() or not pure.name:
        raise BundleError(f"{MANIFEST_NAME} names {path!r}, a path outside the bundle; refused.")
    return pure
