"""Parity: the arithmetic on arrays, and the gate that lets nothing wrong through."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from corom.export.checkpoint import load_checkpoint
from corom.export.parity import (
    GOLDEN_TEXTS,
    choose_golden,
    pass_gate,
    read_texts,
    reference_golden,
)
from corom.export.recipe import Recipe
from corom.export.reference import Reference
from corom.export.sources import resolve_source
from corom.runtime import load_manifest
from corom.runtime.errors import InputError, ParityError
from corom.runtime.golden import Golden
from corom.runtime.parity import compare, rank_agreement, row_cosines

Corom = Callable[..., subprocess.CompletedProcess[str]]


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)


def names(rows: int) -> list[str]:
    return [f"text {row}" for row in range(rows)]


# --- Arithmetic


def test_equal_vectors_have_perfect_parity() -> None:
    reference = vectors(20)
    parity = compare(names(20), reference, reference.copy(), [reference.copy()])
    assert parity.cosine_min == pytest.approx(1)
    assert (parity.max_abs_error, parity.batch_invariance, parity.non_finite) == (0, 0, 0)
    assert (parity.rank_agreement, parity.texts) == (1, 20)


@given(row=st.integers(0, 19), by=st.floats(0.01, 10), place=st.integers(0, 2))
def test_the_worst_text_is_found_in_whatever_shape_it_went_wrong(
    row: int, by: float, place: int
) -> None:
    reference = vectors(20)
    candidates = [reference.copy() for _ in range(3)]
    candidates[place][row, 3] += by
    parity = compare(names(20), reference, candidates[0], candidates[1:])
    assert parity.worst_text == f"text {row}"
    assert parity.max_abs_error == pytest.approx(by, rel=1e-3)
    assert parity.batch_invariance == pytest.approx(by, rel=1e-3)
    assert parity.cosine_min < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_never_passes(bad: float) -> None:
    reference = vectors(12)
    broken = reference.copy()
    broken[7, 2:4] = bad
    parity = compare(names(12), reference, reference, [reference, broken])
    assert parity.non_finite == 2
    assert parity.worst_text == "text 7"
    huge = np.finfo(np.float32).max
    assert (parity.cosine_min, parity.max_abs_error, parity.batch_invariance) == (-1, huge, huge)


def test_cosines_are_computed_in_double() -> None:
    a = np.full((1, 3), 1e30, np.float32)
    assert row_cosines(a, a)[0] == pytest.approx(1)


def test_rank_agreement_is_the_share_of_common_neighbours() -> None:
    reference = vectors(40)
    assert rank_agreement(reference, reference * 3) == 1
    assert rank_agreement(reference, vectors(40, seed=1)) < 0.6


def test_equal_rows_have_no_rank_among_themselves() -> None:
    reference = np.concatenate([vectors(15), vectors(15)])
    noisy = reference + 1e-6 * vectors(30, seed=1)
    assert rank_agreement(reference, noisy) == 1


def test_one_row_has_no_neighbours() -> None:
    assert rank_agreement(vectors(1), vectors(1)) == 1


# --- Texts


def test_the_texts_that_come_with_corom() -> None:
    texts = read_texts(None, "parity")
    assert len(texts) >= 200
    assert all(texts)
    assert min(map(len, texts)) == 1
    assert max(map(len, texts)) > 128
    assert sum(any("\u4e00" <= c <= "\u9fff" for c in text) for text in texts) >= 200


def test_golden_texts_are_spread_over_all() -> None:
    golden = choose_golden(Golden(names(300), vectors(300)))
    assert GOLDEN_TEXTS <= len(golden.texts) <= 2 * GOLDEN_TEXTS
    assert golden.texts[0] == "text 0"
    assert int(golden.texts[-1].split()[1]) > 280
    assert len(golden.vectors) == len(golden.texts)
    assert choose_golden(Golden(names(3), vectors(3))).texts == names(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "has 0 texts; parity needs at least 2"),
        (b"\n\n\n", "has 0 texts"),
        ("一\n".encode(), "has 1 texts"),
        ("头痛\n发烧".encode("gb18030"), "is not UTF-8"),
    ],
)
def test_a_file_without_texts_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(file, "parity")


# --- The gate


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(load_checkpoint(resolve_source(str(tiny_checkpoint))))


@pytest.fixture(scope="module")
def golden(tiny_checkpoint: Path, parity_texts: list[str], reference: Reference) -> Golden:
    checkpoint = load_checkpoint(resolve_source(str(tiny_checkpoint)))
    return reference_golden(checkpoint, reference, parity_texts[:60])


def perturb(graph: Path, layer: int, by: float) -> None:
    """Alter one weight matrix of a layer, in the file."""
    model = onnx.load(graph)
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    # The weight of a layer's last LayerNormalization; the embeddings have one, each layer two.
    name = norms[2 * layer + 2].input[1]
    (weight,) = [w for w in model.graph.initializer if w.name == name]
    altered = numpy_helper.to_array(weight).copy()
    altered[0] += by
    weight.CopyFrom(numpy_helper.from_array(altered, name))
    onnx.save(model, graph)


def test_the_gate_passes_what_was_exported(
    tiny_bundle: Path, golden: Golden, reference: Reference
) -> None:
    (variant,) = load_manifest(tiny_bundle).variants
    parity = pass_gate(tiny_bundle, variant, golden, reference)
    assert parity.texts == 60
    assert parity.failures(variant.tolerance) == []


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_graph_with_one_altered_layer_is_stopped_and_the_layer_named(
    altered: Path,
    rehash: Callable[..., None],
    golden: Golden,
    reference: Reference,
    layer: int,
) -> None:
    perturb(altered / "onnx" / "model.onnx", layer, 0.5)
    rehash(altered)
    (variant,) = load_manifest(altered).variants
    with pytest.raises(ParityError) as caught:
        pass_gate(altered, variant, golden, reference)
    message = str(caught.value)
    assert "fp32 by onnxruntime failed parity with torch: cosine" in message
    assert f"First layer that drifts: layer {layer} output (cosine" in message
    worst = message.split("Worst text: ")[1].split("\nFirst layer", maxsplit=1)[0]
    assert any(text.startswith(worst) for text in golden.texts)


def test_a_graph_that_gives_nan_is_stopped(
    altered: Path, rehash: Callable[..., None], golden: Golden, reference: Reference
) -> None:
    perturb(altered / "onnx" / "model.onnx", 1, float("nan"))
    rehash(altered)
    (variant,) = load_manifest(altered).variants
    with pytest.raises(ParityError, match="(?s)NaN or infinite.*layer 1 output"):
        pass_gate(altered, variant, golden, reference)


def test_an_added_token_that_no_text_has_is_looked_at_too(
    make_checkpoint: Callable[..., Path], vocabulary: list[str], reference: Reference
) -> None:
    folder = make_checkpoint(layout="huggingface", vocab_size=len(vocabulary) + 1)
    (folder / "added_tokens.json").write_text(json.dumps({"曲妥珠单抗": len(vocabulary)}))
    checkpoint = load_checkpoint(resolve_source(str(folder)), Recipe(source="", pooling="cls"))
    reference_golden(checkpoint, reference, ["头痛"])
    forgetful = json.loads(checkpoint.tokenizer_json)
    forgetful["added_tokens"] = [
        token for token in forgetful["added_tokens"] if token["content"] != "曲妥珠单抗"
    ]
    altered = replace(checkpoint, tokenizer_json=json.dumps(forgetful).encode())
    with pytest.raises(ParityError, match="(?s)tokenizer differs from transformers.*曲妥珠单抗"):
        reference_golden(altered, reference, ["头痛"])


def test_a_tokenizer_that_differs_from_transformers_is_stopped(
    make_checkpoint: Callable[..., Path],
) -> None:
    folder = make_checkpoint(layout="huggingface", tokenizer="tokenizer.json")
    resolved = resolve_source(str(folder))
    checkpoint = load_checkpoint(resolved, Recipe(source="", pooling="cls"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["do_lower_case"] = False  # after corom has read the folder
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ParityError, match="(?s)tokenizer differs from transformers.*Text: CT"):
        reference_golden(checkpoint, Reference(checkpoint), ["头痛", "CT 检查"])


@pytest.mark.usefixtures("traced_before")
def test_an_impossible_tolerance_publishes_nothing_and_is_exit_code_1(
    corom_here: Corom, tmp_path: Path, tiny_checkpoint: Path, parity_file: Path
) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text(
        f'source = "{tiny_checkpoint}"\n[tolerance.fp32]\ncosine_min = 1.1\nmax_abs_error = 0.0\n'
    )
    output = tmp_path / "new" / "bundle"
    done = corom_here("export", recipe, "-o", output, "--parity-texts", parity_file, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "fp32 by onnxruntime failed parity with torch: cosine 1.0000000 is below 1.1" in done.stderr
    )
    assert "max abs error" in done.stderr
    assert "Worst text: " in done.stderr
    assert "First layer that drifts: embeddings (cosine 1.000000" in done.stderr
    assert "Nothing was published." in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["strict.toml"]
