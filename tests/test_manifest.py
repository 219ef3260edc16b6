"""The manifest: what is written is read; anything else is a BundleError, never a traceback."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corom.runtime import Encoder, load_manifest
from corom.runtime.errors import BundleError, InputError
from corom.runtime.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Parity,
    Precision,
    Tolerance,
    checked_file,
    describe_files,
    save_manifest,
    sha256_of,
)

MANY = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
FRACTIONS = st.floats(0, 1)
PARITIES = st.builds(
    Parity,
    texts=st.integers(0, 1000),
    cosine_min=FRACTIONS,
    cosine_mean=FRACTIONS,
    max_abs_error=FRACTIONS,
    non_finite=st.integers(0, 3),
    rank_agreement=FRACTIONS,
    batch_invariance=FRACTIONS,
    worst_text=st.text(max_size=10),
)
TOLERANCES = st.builds(
    Tolerance,
    cosine_min=FRACTIONS,
    max_abs_error=st.none() | FRACTIONS,
    batch_invariance=st.none() | FRACTIONS,
)


@pytest.fixture
def fields(tiny_bundle: Path) -> dict[str, Any]:
    """The fields of a real manifest, to be changed."""
    content: dict[str, Any] = json.loads((tiny_bundle / MANIFEST_NAME).read_bytes())
    return content


def read(folder: Path, content: str | bytes | dict[str, Any]) -> Manifest:
    """Return the manifest that this content of manifest.json gives."""
    raw = json.dumps(content) if isinstance(content, dict) else content
    (folder / MANIFEST_NAME).write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return load_manifest(folder)


@MANY
@given(
    name=st.text(max_size=20),
    prompts=st.dictionaries(st.text(max_size=5), st.text(max_size=10), max_size=3),
    precision=st.sampled_from(get_args(Precision)),
    parity=st.dictionaries(st.sampled_from(["onnxruntime", "openvino"]), PARITIES),
    tolerance=TOLERANCES,
    revision=st.none() | st.text(max_size=10),
)
def test_what_is_written_is_read(
    tmp_path: Path, tiny_bundle: Path, name: str, prompts: dict[str, str], revision: str | None,
    precision: Precision, parity: dict[str, Parity], tolerance: Tolerance,
) -> None:  # fmt: skip
    real = load_manifest(tiny_bundle)
    variant = msgspec.structs.replace(
        real.variants[0], precision=precision, parity=parity, tolerance=tolerance
    )
    manifest = msgspec.structs.replace(
        real,
        name=name,
        prompts=prompts,
        source=msgspec.structs.replace(real.source, revision=revision),
        variants=(variant, real.variants[0]),
    )
    save_manifest(manifest, tmp_path)
    assert load_manifest(tmp_path) == manifest


@MANY
@given(data=st.data())
def test_any_damage_is_a_bundle_error_or_still_a_manifest(
    tmp_path: Path, tiny_bundle: Path, data: st.DataObject
) -> None:
    content = bytearray((tiny_bundle / MANIFEST_NAME).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from(["cut", "flip", "insert", "delete"]))
    if damage == "cut":
        del content[at:]
    elif damage == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    else:
        del content[at : at + data.draw(st.integers(1, 40))]
    try:
        manifest = read(tmp_path, bytes(content))
    except BundleError:
        return
    assert isinstance(manifest, Manifest)


@MANY
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
))  # fmt: skip
def test_any_other_json_is_a_bundle_error(tmp_path: Path, content: object) -> None:
    with pytest.raises(BundleError):
        read(tmp_path, json.dumps(content))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe{", id="not UTF-8"),
        pytest.param('{"schema_version": 1, "x": ' + "[" * 200_000, id="deep"),
        pytest.param('{"schema_version": ' + "9" * 5000 + "}", id="a number of 5000 digits"),
        pytest.param('{"schema_version": 1}', id="nothing else"),
        pytest.param('{"schema_version": 1, "schema_version": []}', id="twice"),
        pytest.param("null", id="null"),
    ],
)
def test_what_is_no_manifest_is_a_bundle_error(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json' is not a valid manifest"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", None),
        ("schema_version", "1"),
        ("schema_version", 1.5),
        ("schema_version", True),
        ("schema_version", 0),
        ("schema_version", -3),
        ("dimension", 0),
        ("dimension", -48),
        ("dimension", "48"),
        ("max_length", 0),
        ("max_length", 161),
        ("max_positions", 2),
        ("pooling", "max"),
        ("similarity", "l2"),
        ("normalize", "yes"),
        ("prompts", {"query": None}),
        ("default_prompt_name", "query"),
        ("variants", []),
        ("variants", {}),
        ("files", None),
        ("unknown", 1),
    ],
)
def test_a_field_that_cannot_be_is_a_bundle_error(
    tmp_path: Path, fields: dict[str, Any], field: str, value: object
) -> None:
    with pytest.raises(BundleError, match="is not a valid manifest"):
        read(tmp_path, fields | {field: value})


@pytest.mark.parametrize("version", [2, 99, 10**30])
def test_a_newer_schema_says_so_even_if_nothing_else_can_be_read(
    tmp_path: Path, version: int
) -> None:
    with pytest.raises(BundleError, match=r"schema version .* reads up to 1.*pip install"):
        read(tmp_path, {"schema_version": version, "of the future": {}})


ESCAPES = [
    "/etc/passwd",
    "../outside",
    "onnx/../../outside",
    "..",
    ".",
    "",
    "..\\outside",
    "C:/outside",
    "C:outside",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_leaves_the_bundle_is_refused(
    tmp_path: Path, fields: dict[str, Any], path: str
) -> None:
    fields["files"][0]["path"] = path
    with pytest.raises(BundleError, match="outside the bundle; refused"):
        read(tmp_path, fields)


@pytest.mark.parametrize("path", ESCAPES)
def test_a_variant_whose_file_is_not_listed_is_refused(
    tmp_path: Path, fields: dict[str, Any], path: str
) -> None:
    fields["variants"][0]["file"] = path
    with pytest.raises(BundleError, match="lists no file"):
        read(tmp_path, fields)


def test_a_link_that_leaves_the_bundle_is_refused(altered: Path, tmp_path: Path) -> None:
    outside = (altered / "onnx" / "model.onnx").rename(tmp_path / "outside.onnx")
    (altered / "onnx" / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle through a link"):
        Encoder(altered)


def test_a_folder_that_leaves_the_bundle_is_refused(altered: Path, tmp_path: Path) -> None:
    outside = (altered / "onnx").rename(tmp_path / "outside")
    (altered / "onnx").symlink_to(outside, target_is_directory=True)
    with pytest.raises(BundleError, match="leads out of the bundle through a link"):
        Encoder(altered)


def test_a_link_to_itself_is_refused(altered: Path) -> None:
    graph = altered / "onnx" / "model.onnx"
    graph.unlink()
    graph.symlink_to("model.onnx")
    with pytest.raises(BundleError, match="cannot be read"):
        Encoder(altered)


def test_a_bundle_behind_a_link_opens(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_bundle, target_is_directory=True)
    with Encoder(tmp_path / "link") as encoder:
        assert encoder.encode("好").shape == (48,)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", ["tokenizer.json", "onnx/model.onnx"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "cannot be read.*No such file"),
        (truncate, "altered or cut short: found [0-9]+ bytes"),
        (flip, "altered or cut short: found sha256"),
        (lambda path: path.write_bytes(b""), "altered or cut short: found 0 bytes"),
        (turn_into_folder, "altered or cut short|Is a directory"),
    ],
)
def test_a_missing_or_altered_file_is_named(
    altered: Path, file: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(altered / file)
    with pytest.raises(BundleError, match=f"{file}' .*(?:{message})"):
        Encoder(altered)


def test_a_file_that_the_manifest_does_not_list_is_not_used(
    altered: Path, fields: dict[str, Any]
) -> None:
    fields["files"] = [f for f in fields["files"] if f["path"] != "tokenizer.json"]
    read(altered, fields)
    with pytest.raises(BundleError, match=r"lists no file 'tokenizer\.json'"):
        Encoder(altered)


@pytest.mark.parametrize("kind", ["absent", "empty folder", "a file"])
def test_what_is_no_bundle_is_said_with_the_command_that_makes_one(
    tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "place"
    if kind == "empty folder":
        place.mkdir()
    elif kind == "a file":
        place.touch()
    with pytest.raises(BundleError, match="is not a bundle: .*corom export SOURCE"):
        load_manifest(place)


def test_a_pipe_in_place_of_the_manifest_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json' is a pipe"):
        load_manifest(tmp_path)


def test_a_name_that_is_no_path_is_bad_input() -> None:
    with pytest.raises(InputError, match="is no path: it holds a NUL character"):
        load_manifest(Path("a\0b"))


def test_files_are_described_sorted_with_size_and_hash(tmp_path: Path) -> None:
    for name in ("b/z.bin", "a.txt", "b/a.bin", MANIFEST_NAME):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    entries = describe_files(tmp_path)
    assert [entry.path for entry in entries] == ["a.txt", "b/a.bin", "b/z.bin"]
    for entry in entries:
        assert entry.size_bytes == len(entry.path)
        assert checked_file(tmp_path, entry) == tmp_path / entry.path


def test_an_altered_file_of_the_same_size_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"right")
    entry = FileEntry(path="file", sha256=sha256_of(tmp_path / "file"), size_bytes=5)
    (tmp_path / "file").write_bytes(b"wrong")
    with pytest.raises(BundleError, match="altered"):
        checked_file(tmp_path, entry)


def test_a_tolerance_finds_each_way_of_failing() -> None:
    tolerance = Tolerance(cosine_min=0.9, max_abs_error=0.1, batch_invariance=0.01)
    good = Parity(
        texts=2,
        cosine_min=0.9,
        cosine_mean=1.0,
        max_abs_error=0.1,
        non_finite=0,
        rank_agreement=1.0,
        batch_invariance=0.01,
        worst_text="",
    )
    assert good.failures(tolerance) == []
    nan = float("nan")
    for field, value, word in [
        ("cosine_min", 0.89, "cosine"),
        ("cosine_min", nan, "cosine"),
        ("max_abs_error", 0.11, "max abs error"),
        ("max_abs_error", nan, "max abs error"),
        ("batch_invariance", 0.02, "batch invariance"),
        ("non_finite", 1, "NaN or infinite"),
    ]:
        (line,) = msgspec.structs.replace(good, **{field: value}).failures(tolerance)
        assert word in line
