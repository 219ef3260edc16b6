"""Graph: standard operators, free batch and length, nothing of this machine in it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from corom.export import graph as graph_module
from corom.export.checkpoint import Checkpoint, load_checkpoint
from corom.export.encoder import TorchEncoder
from corom.export.graph import OPSETS, OUTPUT, PORTABLE_INPUTS, export_graph, save_graph
from corom.export.sources import resolve_source
from corom.runtime import Encoder
from corom.runtime.errors import BundleError, InputError


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(resolve_source(str(tiny_checkpoint)))


@pytest.fixture(scope="module", params=["tiny_bundle", "tiny_mean_bundle"])
def exported(request: pytest.FixtureRequest) -> Path:
    bundle: Path = request.getfixturevalue(request.param)
    return bundle / "onnx" / "model.onnx"


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_graph_is_valid_and_standard(exported: Path) -> None:
    onnx.checker.check_model(exported, full_check=True)
    model = onnx.load(exported)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 20)}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LayerNormalization") == 7
    assert kinds.count("Gelu") == 3


def test_onnx_runtime_adds_the_bias_while_it_multiplies(exported: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    one_row = exported.parts[-3] == "tiny"  # [CLS]: the last layer makes no keys and values
    assert kinds.count("Gemm") == 6 * 3 - 2 * one_row
    assert sum("MatMul" in kind for kind in kinds) == 2 * 3 + 2 * one_row  # attention


def test_openvino_finds_the_permutation_of_keys_that_its_attention_takes(exported: Path) -> None:
    transposed = [n for n in onnx.load(exported).graph.node if n.op_type == "Transpose"]
    orders = [list(node.attribute[0].ints) for node in transposed]
    assert orders.count([0, 1, 3, 2]) >= 2
    assert [0, 2, 3, 1] not in orders


def test_inputs_and_output_are_as_the_bundle_promises(exported: Path) -> None:
    opened = session(exported)
    assert [(i.name, i.type) for i in opened.get_inputs()] == [
        (name, "tensor(int64)") for name in PORTABLE_INPUTS
    ]
    assert [i.shape for i in opened.get_inputs()] == [["batch", "tokens"]] * 2
    (output,) = opened.get_outputs()
    assert (output.name, output.type, output.shape) == (OUTPUT, "tensor(float)", ["batch", 48])


def test_nothing_of_this_machine_is_in_the_file(exported: Path) -> None:
    content = exported.read_bytes()
    for words in (b"/work", b"/root", b"/home", b"/tmp", b"site-packages", b".py", b'File "'):
        assert words not in content, words


@pytest.mark.parametrize("batch", [1, 2, 3, 33])
@pytest.mark.parametrize("tokens", [1, 2, 7, 128, 160])
def test_batch_and_length_are_free(exported: Path, batch: int, tokens: int) -> None:
    ids = np.random.default_rng(0).integers(5, 1000, (batch, tokens))
    mask = np.ones_like(ids)
    (found,) = session(exported).run([OUTPUT], {"input_ids": ids, "attention_mask": mask})
    assert found.shape == (batch, 48)
    assert np.isfinite(found).all()


def test_the_graph_gives_the_torch_encoders_vectors(
    checkpoint: Checkpoint, tiny_bundle: Path
) -> None:
    encoder = TorchEncoder(checkpoint)
    opened = session(tiny_bundle / "onnx" / "model.onnx")
    random = np.random.default_rng(0)
    for shape in [(1, 3), (4, 20), (2, 160)]:
        ids = random.integers(5, 1000, shape)
        mask = (np.arange(shape[1]) < random.integers(1, shape[1] + 1, (shape[0], 1))).astype(int)
        (found,) = opened.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})
        expected = encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_row_of_nothing_but_padding_is_finite_and_harms_nobody(exported: Path) -> None:
    opened = session(exported)
    ids = np.array([[2, 700, 3, 0], [0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    (both,) = opened.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})
    (alone,) = opened.run([OUTPUT], {"input_ids": ids[:1, :3], "attention_mask": mask[:1, :3]})
    assert np.isfinite(both).all()
    np.testing.assert_allclose(both[0], alone[0], atol=1e-5)


@pytest.mark.parametrize("opset", [17, 21, 23, 0])
def test_another_opset_is_refused(checkpoint: Checkpoint, tmp_path: Path, opset: int) -> None:
    with pytest.raises(InputError, match=f"opset is {opset}; allowed: 18 to 20"):
        export_graph(TorchEncoder(checkpoint), tmp_path / "model.onnx", opset)
    assert not any(tmp_path.iterdir())


# The newest is the one of all bundles here.
@pytest.mark.parametrize("opset", OPSETS[:-1])
def test_every_opset_that_is_allowed_works(
    checkpoint: Checkpoint, tmp_path: Path, opset: int
) -> None:
    one_layer = replace(checkpoint, config=replace(checkpoint.config, layers=1))
    encoder = TorchEncoder(one_layer)
    path = tmp_path / "model.onnx"
    export_graph(encoder, path, opset)
    assert onnx.load(path).opset_import[0].version == opset
    ids = np.array([[2, 700, 800, 3]])
    (found,) = session(path).run([OUTPUT], {"input_ids": ids, "attention_mask": ids * 0 + 1})
    expected = encoder(torch.from_numpy(ids), torch.from_numpy(ids * 0 + 1)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_an_operator_outside_the_standard_domain_is_refused(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_bundle / "onnx" / "model.onnx")
    model.graph.node[0].domain = "com.microsoft"
    with pytest.raises(InputError, match="outside the standard domain"):
        save_graph(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, altered: Path, rehash: Callable[..., None]) -> Path:
    """A bundle whose weights lie beside the graph: 100 kB count as too large here, as 2 GiB are."""
    monkeypatch.setattr(graph_module, "EXTERNAL_DATA_BYTES", 100_000)
    path = altered / "onnx" / "model.onnx"
    save_graph(onnx.load(path), path)
    rehash(altered)
    return altered


def test_weights_beyond_protobufs_limit_go_beside_the_graph(large: Path, tiny_bundle: Path) -> None:
    assert sorted(p.name for p in (large / "onnx").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (large / "onnx" / "model.onnx").stat().st_size < 100_000
    with Encoder(large) as encoder, Encoder(tiny_bundle) as expected:
        np.testing.assert_array_equal(encoder.encode("头痛"), expected.encode("头痛"))


def test_a_graph_that_needs_no_weights_beside_it_leaves_none(
    large: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large / "onnx" / "model.onnx"
    size = (large / "onnx" / "model.onnx.data").stat().st_size
    save_graph(onnx.load(path), path)
    assert (large / "onnx" / "model.onnx.data").stat().st_size == size  # not written behind them
    monkeypatch.setattr(graph_module, "EXTERNAL_DATA_BYTES", 2**31)
    save_graph(onnx.load(tiny_bundle / "onnx" / "model.onnx"), path)
    assert [p.name for p in (large / "onnx").iterdir()] == ["model.onnx"]


def test_other_weights_beside_the_same_graph_are_not_taken_from_the_cache(
    large: Path, rehash: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's own key is the graph's path and times, which reproducible images keep."""
    monkeypatch.setenv("COROM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        Encoder, "_prove", lambda *_: None
    )  # the golden vectors are of the old ones
    graph = large / "onnx" / "model.onnx"
    before = graph.stat()
    with Encoder(large, backend="openvino") as encoder:
        old = encoder.encode("头痛")
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("embeddings.words.weight"):
            values = onnx.numpy_helper.to_array(tensor)[:, ::-1].copy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    save_graph(model, graph)
    rehash(large)
    os.utime(graph, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert graph.stat().st_size == before.st_size
    with Encoder(large) as encoder:
        new = encoder.encode("头痛")
    assert np.abs(new - old).max() > 0.1
    with Encoder(large, backend="openvino") as encoder:
        np.testing.assert_allclose(encoder.encode("头痛"), new, atol=1e-4)


def test_weights_beside_the_graph_are_hashed_too(large: Path) -> None:
    data = large / "onnx" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[5000] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx\.data' was altered"):
        Encoder(large)
