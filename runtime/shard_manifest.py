"""_manifest.json: whose vectors a folder holds, of which rows, and the hash of every shard."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from .corpus import InputFile
from .errors import InputError

MANIFEST = "_manifest.json"
PARTIAL = "_manifest.json.partial"
SCHEMA_VERSION = 1

Dtype = Literal["float32", "float16"]


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that decides what is in a folder of vectors."""

    bundle: str
    bundle_sha256: str
    """Of the bundle's manifest, which holds the hash of every file."""
    bundle_path: str
    """Where it lay, for those who search the folder on the same machine."""
    precision: str
    backend: str
    device: str
    dimension: int
    similarity: str
    dtype: Dtype
    normalize: bool
    prompt_name: str | None
    truncate: bool | Literal["error"]
    max_length: int
    batch_tokens: int
    """What is executed together decides the last digits of a vector."""
    shard_rows: int
    text_column: str | None
    id_column: str | None
    input_format: str | None
    inputs: tuple[InputFile, ...]


class Shard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of vectors. ``input_rows`` = ``rows`` + ``bad_rows``."""

    file: str
    rows: int
    bad_rows: int
    truncated_texts: int
    sha256: str
    size_bytes: int
    input_sha256: str
    """Of the ids and texts it was made from."""

    @property
    def number(self) -> int:
        """Which one it is, from 0."""
        return int(self.file.removeprefix("part-").removesuffix(".parquet"))

    @property
    def input_rows(self) -> int:
        """Rows of the input that this shard stands for."""
        return self.rows + self.bad_rows


class ShardManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of ``_manifest.json``. No time and no host: equal jobs give equal files."""

    schema_version: int
    job: Job
    rows: int
    bad_rows: int
    truncated_texts: int
    shards: tuple[Shard, ...]


def manifest_of(job: Job, shards: Sequence[Shard]) -> ShardManifest:
    """Return the manifest of a job and its shards, with the sums over them."""
    return ShardManifest(
        schema_version=SCHEMA_VERSION,
        job=job,
        rows=sum(shard.rows for shard in shards),
        bad_rows=sum(shard.bad_rows for shard in shards),
        truncated_texts=sum(shard.truncated_texts for shard in shards),
        shards=tuple(shards),
    )


def decoded(content: bytes, name: str) -> ShardManifest:
    """Return the manifest that a file of this name holds; raises ``InputError`` if it is none."""
    try:
        manifest = msgspec.json.decode(content, type=ShardManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"'{name}' is not the manifest of a folder that corom embed made, or a newer corom's: "
            f"{error}."
        ) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise InputError(f"'{name}' has schema {manifest.schema_version}, not {SCHEMA_VERSION}.")
    return manifest


def encoded(manifest: ShardManifest) -> bytes:
    """Return the content of the file."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
