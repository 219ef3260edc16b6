"""Checkpoints are read strictly: every layout, every prefix, and an error for everything else."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from corom.export.checkpoint import Checkpoint, load_checkpoint
from corom.export.errors import CheckpointError
from corom.export.recipe import Recipe
from corom.export.sources import ResolvedSource
from corom.export.tokenizer import reference_token_ids, reference_tokenizer
from corom.runtime.tokens import Tokenizer

MakeCheckpoint = Callable[..., Path]
State = dict[str, torch.Tensor]

CLS = Recipe(source="", pooling="cls")
FIRST_QUERY = "encoder.layer.0.attention.self.query.weight"


def load(folder: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(ResolvedSource(folder, "folder:x"), Recipe(source="", **options))


def change_json(path: Path, **changes: object) -> None:
    """Set fields of a JSON file; a field set to ... is removed."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content = {k: v for k, v in (content | changes).items() if v is not ...}
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


@pytest.fixture
def copy(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Callable[..., Path]:
    """Return the function that makes a checkpoint of a layout which a test may spoil."""

    def copy(layout: str = "huggingface", **options: Any) -> Path:
        folder = make_checkpoint(layout=layout, **options)
        return Path(shutil.copytree(folder, tmp_path / layout))

    return copy


# Layouts


def test_modelscope_layout(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(layout="modelscope", prefix="bert.")
    checkpoint = load(folder)
    assert (checkpoint.pooling, checkpoint.normalize, checkpoint.similarity) == (
        "cls",
        False,
        "dot",
    )
    assert checkpoint.max_length == 128
    assert checkpoint.prompts == {}
    assert checkpoint.ignored_weights == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
    content = (folder / "pytorch_model.bin").read_bytes()
    assert checkpoint.weights_sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("model", "preprocessor", "expected"),
    [
        ({"emb_pooler_type": "avg", "normalize": True}, {}, ("mean", True, "dot", 128)),
        ({}, {"max_length": 64}, ("cls", False, "dot", 64)),
        ({}, {"train": {"max_length": 32}, "val": {"max_length": 64}}, ("cls", False, "dot", 64)),
        # ModelScope's pipeline always passes its own sequence_length over this one.
        ({}, {"sequence_length": 64}, ("cls", False, "dot", 128)),
    ],
)
def test_modelscope_settings(
    copy: Callable[..., Path],
    model: dict[str, object],
    preprocessor: dict[str, object],
    expected: tuple[str, bool, str, int],
) -> None:
    folder = copy("modelscope")
    change_json(
        folder / "configuration.json", model={"type": "bert"} | model, preprocessor=preprocessor
    )
    found = load(folder)
    assert (found.pooling, found.normalize, found.similarity, found.max_length) == expected


def test_modelscope_type_stands_in_for_model_type(copy: Callable[..., Path]) -> None:
    folder = copy("modelscope")
    change_json(folder / "config.json", model_type=...)
    checkpoint = load(folder)
    assert checkpoint.config.architecture == "bert"
    # transformers opens the tokenizer to compare with, though no file names it.
    theirs = reference_tokenizer(folder, checkpoint.config.architecture)
    ids = reference_token_ids(theirs, ["头痛"], 128)
    assert ids == Tokenizer(checkpoint.tokenizer_json, 128, 160)(["头痛"]).ids


def test_a_tokenizer_that_transformers_cannot_open_is_named(copy: Callable[..., Path]) -> None:
    folder = copy()
    change_json(
        folder / "tokenizer_config.json", tokenizer_class=None, auto_map={"AutoTokenizer": 3}
    )
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="transformers cannot open the tokenizer in"):
        reference_tokenizer(folder)


def test_sentence_transformers_layout(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load(make_checkpoint(layout="sentence-transformers"))
    assert (checkpoint.pooling, checkpoint.normalize, checkpoint.similarity) == (
        "mean",
        True,
        "cosine",
    )
    assert checkpoint.max_length == 96
    assert checkpoint.prompts == {"query": "查询：", "document": ""}
    assert checkpoint.default_prompt_name is None


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"embedding_dimension": 48, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 48, "pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
    ],
)
def test_both_pooling_schemas(
    copy: Callable[..., Path], schema: dict[str, object], expected: str
) -> None:
    folder = copy("sentence-transformers")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(schema))
    assert load(folder).pooling == expected


def test_sentence_transformers_settings_without_effect_are_passed_over(
    copy: Callable[..., Path],
) -> None:
    folder = copy("sentence-transformers")
    change_json(
        folder / "sentence_bert_config.json",
        transformer_task="feature-extraction",
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
        unpad_inputs=False,
        processing_kwargs={},
        query_length=None,
        model_args={"torch_dtype": "float16"},
        tokenizer_args={},
    )
    assert load(folder).max_length == 96


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (None, {"query": "", "document": ""}),
        ({"query": "查询："}, {"query": "查询：", "document": ""}),
        ({"s2s": "句："}, {"query": "", "document": "", "s2s": "句："}),
        ({"passage": "段落："}, {"query": "", "passage": "段落："}),
    ],
)
def test_queries_and_documents_have_a_prompt_so_the_default_is_not_theirs(
    copy: Callable[..., Path], saved: dict[str, str] | None, expected: dict[str, str]
) -> None:
    folder = copy("sentence-transformers")
    change_json(folder / "config_sentence_transformers.json", prompts=saved)
    assert load(folder).prompts == expected
    change_json(folder / "config_sentence_transformers.json", prompts=None)
    assert load(folder, prompts=saved or {}).prompts == expected
    assert load(copy(), pooling="cls", prompts=saved or {}).prompts == (saved or {})


def test_sentence_transformers_with_its_newer_names(copy: Callable[..., Path]) -> None:
    folder = copy("sentence-transformers")
    kinds = {
        "": "sentence_transformers.base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    }
    modules = [{"path": path, "type": kind} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    change_json(folder / "sentence_bert_config.json", max_seq_length=...)
    change_json(folder / "tokenizer_config.json", model_max_length=80)
    change_json(folder / "config_sentence_transformers.json", similarity_fn_name="dot")
    checkpoint = load(folder)
    assert (checkpoint.normalize, checkpoint.similarity) == (False, "dot")
    assert checkpoint.max_length == 80


def test_transformer_in_a_folder_of_its_own(copy: Callable[..., Path]) -> None:
    folder = copy("sentence-transformers")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in folder.glob("*.*"):
        if path.name not in {"modules.json", "config_sentence_transformers.json"}:
            path.rename(inner / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert load(folder).max_length == 96


def test_plain_folder_needs_to_be_told_the_pooling(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    with pytest.raises(CheckpointError, match="--pooling cls or --pooling mean"):
        load(folder)
    checkpoint = load(folder, pooling="mean")
    assert (checkpoint.normalize, checkpoint.similarity) == (False, "cosine")
    assert checkpoint.max_length == 160


@pytest.mark.parametrize(("limit", "expected"), [(100, 100), (10**30, 160), (512, 160), (0, 160)])
def test_tokenizer_limit_counts_where_nothing_else_is_said(
    copy: Callable[..., Path], limit: int, expected: int
) -> None:
    folder = copy()
    change_json(folder / "tokenizer_config.json", model_max_length=limit)
    assert load(folder, pooling="cls").max_length == expected


def test_recipe_goes_before_the_folder(make_checkpoint: MakeCheckpoint) -> None:
    options: dict[str, Any] = {
        "pooling": "cls",
        "normalize": False,
        "similarity": "dot",
        "max_length": 32,
        "prompts": {"query": "q: "},
        "default_prompt_name": "query",
        "license": "MIT",
    }
    checkpoint = load(make_checkpoint(layout="sentence-transformers"), **options)
    options["prompts"] |= {"document": ""}  # which so never gets the default prompt
    assert {name: getattr(checkpoint, name) for name in options} == options


def test_sources_recipe_is_used(make_checkpoint: MakeCheckpoint) -> None:
    source = ResolvedSource(make_checkpoint(), "hf:a/b", "0f" * 20, CLS)
    checkpoint = load_checkpoint(source)
    assert (checkpoint.pooling, checkpoint.uri, checkpoint.revision) == (
        "cls",
        "hf:a/b",
        "0f" * 20,
    )


def test_roberta_counts_positions_from_behind_the_padding(make_checkpoint: MakeCheckpoint) -> None:
    config = load(make_checkpoint(model_type="roberta"), pooling="cls").config
    assert (config.max_positions, config.position_offset, config.pad_token_id) == (160, 2, 1)


# Weights


@pytest.mark.parametrize(
    "prefix", ["", "bert.", "encoder.", "encoder.bert.", "module.", "module.bert.", "model."]
)
def test_prefixes_are_recognised(make_checkpoint: MakeCheckpoint, prefix: str) -> None:
    plain = load(make_checkpoint(), pooling="cls")
    found = load(make_checkpoint(prefix=prefix), pooling="cls")
    assert list(found.state) == list(plain.state)
    for name, weight in plain.state.items():
        torch.testing.assert_close(found.state[name], weight, atol=0, rtol=0)


def heads(state: State) -> None:
    """Add what masked-language models, classifiers and old transformers leave in the file."""
    prefix = "bert." if "bert.embeddings.LayerNorm.weight" in state else ""
    state[f"{prefix}embeddings.position_ids"] = torch.arange(160)[None]
    state["cls.predictions.bias"] = torch.zeros(2000)
    state["cls.predictions.transform.LayerNorm.gamma"] = torch.ones(48)
    state["classifier.weight"] = torch.zeros(2, 48)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_heads_are_ignored_by_name(make_checkpoint: MakeCheckpoint, prefix: str) -> None:
    checkpoint = load(make_checkpoint(prefix=prefix, edit=heads), pooling="cls")
    assert checkpoint.ignored_weights == tuple(
        sorted(
            [
                f"{prefix}embeddings.position_ids",
                f"{prefix}pooler.dense.bias",
                f"{prefix}pooler.dense.weight",
                "classifier.weight",
                "cls.predictions.bias",
                "cls.predictions.transform.LayerNorm.gamma",
            ]
        )
    )


def test_old_layer_norm_names(make_checkpoint: MakeCheckpoint) -> None:
    def rename(state: State) -> None:
        for name in list(state):
            old = name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
            state[old] = state.pop(name)

    found = load(make_checkpoint(edit=rename), pooling="cls").state
    expected = load(make_checkpoint(), pooling="cls").state
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(
    make_checkpoint: MakeCheckpoint, dtype: torch.dtype
) -> None:
    def cast(state: State) -> None:
        state.update({name: weight.to(dtype) for name, weight in state.items()})

    state = load(make_checkpoint(edit=cast), pooling="cls").state
    expected = load(make_checkpoint(), pooling="cls").state
    assert {weight.dtype for weight in state.values()} == {torch.float32}
    torch.testing.assert_close(state[FIRST_QUERY], expected[FIRST_QUERY], atol=0.01, rtol=0)


def test_safetensors_goes_before_a_pickle(copy: Callable[..., Path]) -> None:
    folder = copy()
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert load(folder, pooling="cls").state


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_parts(copy: Callable[..., Path], name: str) -> None:
    folder = copy(pickled=name.endswith("bin"))
    expected = load(folder, pooling="cls")
    path = folder / name
    state: State = load_file(path) if name.startswith("model") else torch.load(path)
    path.unlink()
    write = save_file if name.startswith("model") else torch.save
    parts = [f"part-{k}{path.suffix}" for k in (1, 2)]
    weight_map = {key: parts[row % 2] for row, key in enumerate(state)}
    for part in parts:
        write({key: state[key] for key in state if weight_map[key] == part}, folder / part)
    change_json(folder / f"{name}.index.json", weight_map=weight_map)
    found = load(folder, pooling="cls")
    assert all(torch.equal(found.state[key], weight) for key, weight in expected.state.items())
    both = b"".join((folder / part).read_bytes() for part in parts)
    assert found.weights_sha256 == hashlib.sha256(both).hexdigest()
    (folder / parts[1]).unlink()
    with pytest.raises(CheckpointError, match=f"not in the folder: {parts[1]}"):
        load(folder, pooling="cls")


def test_weights_sha256_of_the_recipe(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    right = load(folder, pooling="cls").weights_sha256
    assert load(folder, pooling="cls", weights_sha256=right).weights_sha256 == right
    with pytest.raises(CheckpointError, match=f"sha256 {right}, but the recipe expects {'0' * 64}"):
        load(folder, pooling="cls", weights_sha256="0" * 64)


def drop(*names: str) -> Callable[[State], object]:
    return lambda state: [state.pop(name) for name in names]


def put(name: str, weight: torch.Tensor) -> Callable[[State], object]:
    return lambda state: state.update({name: weight})


def poison(state: State) -> None:
    state[FIRST_QUERY][3, 4] = float("nan")
    state["embeddings.LayerNorm.bias"][0] = float("inf")


def double(state: State) -> None:
    state.update({f"query.{name}": weight.clone() for name, weight in list(state.items())})


def odd_prefix(state: State) -> None:
    for name in list(state):
        state[f"tower.{name}"] = state.pop(name)


WRONG_WEIGHTS: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (
        drop(FIRST_QUERY, "encoder.layer.2.output.dense.bias"),
        f"2 are missing: {FIRST_QUERY}, encoder.layer.2.output.dense.bias",
    ),
    "misshapen": (
        put(FIRST_QUERY, torch.zeros(48, 24)),
        rf"1 have another shape.*{FIRST_QUERY} \(48, 24\) instead of \(48, 48\)",
    ),
    "unknown": (put("dense.weight", torch.zeros(4)), "1 belong to nothing.*: dense.weight"),
    "a layer too many": (
        put("encoder.layer.3.output.dense.bias", torch.zeros(48)),
        "1 belong to nothing.*encoder.layer.3.output.dense.bias",
    ),
    "not a number": (poison, f"2 hold NaN or infinite values: .*LayerNorm.bias.*{FIRST_QUERY}"),
    "whole numbers": (
        put(FIRST_QUERY, torch.zeros(48, 48, dtype=torch.int8)),
        f"1 are not floating point: {FIRST_QUERY}",
    ),
    "two encoders": (double, "2 times .*exactly one encoder"),
    "no encoder": (lambda state: [state.pop(k) for k in list(state)[1:]], "not at all"),
    "another prefix": (odd_prefix, r"prefix 'tower\.', which corom does not know"),
}


@pytest.mark.parametrize(("edit", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_wrong_weights_are_named(
    make_checkpoint: MakeCheckpoint, edit: Callable[[State], object], message: str
) -> None:
    if "not at all" in message:
        edit = drop("embeddings.word_embeddings.weight")
    with pytest.raises(CheckpointError, match=message) as caught:
        load(make_checkpoint(edit=edit), pooling="cls")
    assert caught.value.exit_code == 2


class Evil:
    """What a pickled file may hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch corom-was-here",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED: dict[str, tuple[bool, Callable[[Path], object], str]] = {
    "safetensors cut short": (False, cut, "cut short, damaged"),
    "safetensors empty": (False, lambda path: path.write_bytes(b""), "cut short, damaged"),
    "pickle cut short": (True, cut, "cut short, damaged"),
    "pickle empty": (True, lambda path: path.write_bytes(b""), "cut short, damaged"),
    "not a pickle": (True, lambda path: path.write_bytes(b"<html>404</html>"), "cut short"),
    "code": (True, lambda path: torch.save(Evil(), path), "holds more than tensors"),
    "whole training state": (
        True,
        lambda path: torch.save({"state_dict": {}, "epoch": 3}, path),
        r"holds more than named tensors.*state_dict\(\)",
    ),
    "gone": (True, Path.unlink, r"holds no weights.*model\.safetensors, pytorch_model\.bin"),
}


@pytest.mark.parametrize(("pickled", "damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_weight_files(
    copy: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    pickled: bool,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    folder = copy(pickled=pickled)
    monkeypatch.chdir(folder)
    damage(folder / ("pytorch_model.bin" if pickled else "model.safetensors"))
    with pytest.raises(CheckpointError, match=message):
        load(folder, pooling="cls")
    assert not (folder / "corom-was-here").exists()


# config.json and the files beside it

WRONG_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "architecture": ({"model_type": "electra"}, "model_type 'electra'.*bert, roberta, xlm-roberta"),
    "no architecture": ({"model_type": ...}, "model_type None"),
    "activation": ({"hidden_act": "swish"}, "hidden_act 'swish'.*gelu, gelu_new, gelu_pytorch"),
    "positions": (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type 'relative_key'.*Supported: absolute",
    ),
    "decoder": ({"is_decoder": True}, "is_decoder: corom exports encoders only"),
    "no layers": ({"num_hidden_layers": ...}, "num_hidden_layers None.*whole number"),
    "text for a number": ({"hidden_size": "48"}, "hidden_size '48'"),
    "heads": ({"num_attention_heads": 5}, "hidden_size 48, which 5 attention heads do not divide"),
    "epsilon": ({"layer_norm_eps": "1e-12"}, "layer_norm_eps '1e-12'"),
    "padding": ({"pad_token_id": 9999}, "pad_token_id 9999"),
    "other shape": ({"intermediate_size": 64}, r"intermediate.dense.bias \(96,\) instead of \(64,"),
    "more layers": ({"num_hidden_layers": 4}, "16 are missing.*and 4 more"),
    "vocabulary": ({"vocab_size": 1999}, r"\(2000, 48\) instead of \(1999, 48\)"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_wrong_config(copy: Callable[..., Path], changes: dict[str, object], message: str) -> None:
    folder = copy()
    change_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder, pooling="cls")


def modules(*kinds: str, path: str = "") -> str:
    return json.dumps([{"path": path, "type": f"st.models.{kind}"} for kind in kinds])


WRONG_FILES: dict[str, tuple[str, str, str, str]] = {
    "no config": ("huggingface", "config.json", "", "has no config.json"),
    "damaged config": ("huggingface", "config.json", "{", r"config\.json' cannot be read"),
    "Dense": (
        "sentence-transformers",
        "modules.json",
        modules("Transformer", "Pooling", "Dense", "Normalize"),
        "lists the modules Transformer, Pooling, Dense, Normalize; corom exports",
    ),
    "no Pooling": (
        "sentence-transformers",
        "modules.json",
        modules("Transformer", "Normalize"),
        "lists the modules",
    ),
    "modules no list": ("sentence-transformers", "modules.json", "{}", "cannot be read"),
    "module outside": (
        "sentence-transformers",
        "modules.json",
        modules("Transformer", "Pooling", path="../.."),
        "outside the checkpoint",
    ),
    "module path with NUL": (
        "sentence-transformers",
        "modules.json",
        modules("Transformer", "Pooling", path="a\0b"),
        "outside the checkpoint",
    ),
    **{
        f"Transformer with {key}": (
            "sentence-transformers",
            "sentence_bert_config.json",
            json.dumps({"max_seq_length": 96, key: value}),
            f"has {key} .*which corom does not reproduce",
        )
        for key, value in (
            ("tokenizer_args", {"do_lower_case": False}),
            ("processor_kwargs", {"padding_side": "left"}),
            ("config_args", {"num_hidden_layers": 1}),
            ("model_args", {"adapter": "x"}),
            ("processing_kwargs", {"text": {"max_length": 8}}),
            ("query_length", 32),
            ("transformer_task", "fill-mask"),
            ("module_output_name", "sentence_embedding"),
            ("modality_config", {"text": {"method": "get_text_features"}}),
            ("tokenizer_name_or_path", "elsewhere"),
            ("unheard_of", 1),
        )
    },
    "Normalize of another vector": (
        "sentence-transformers",
        "2_Normalize/config.json",
        '{"module_input_name": "token_embeddings"}',
        "module_input_name 'token_embeddings'",
    ),
    "pooler no name": (
        "modelscope",
        "configuration.json",
        '{"task": "sentence-embedding", "model": {"emb_pooler_type": []}}',
        r"emb_pooler_type \[\]",
    ),
    "pooling unknown": (
        "sentence-transformers",
        "1_Pooling/config.json",
        '{"pooling_mode": "lasttoken"}',
        "the pooling lasttoken.*Supported: cls, mean",
    ),
    "poolings joined": (
        "sentence-transformers",
        "1_Pooling/config.json",
        '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}',
        r"cls \+ mean",
    ),
    "pooling of old schema unknown": (
        "sentence-transformers",
        "1_Pooling/config.json",
        '{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": false}',
        "the pooling max_tokens",
    ),
    "no pooling mode": ("sentence-transformers", "1_Pooling/config.json", "{}", "pooling none"),
    "pooling config gone": ("sentence-transformers", "1_Pooling/config.json", "", "is missing"),
    "prompt not pooled": (
        "sentence-transformers",
        "1_Pooling/config.json",
        '{"pooling_mode": "mean", "include_prompt": false}',
        "include_prompt: false",
    ),
    "similarity": (
        "sentence-transformers",
        "config_sentence_transformers.json",
        '{"similarity_fn_name": "euclidean"}',
        "similarity_fn_name 'euclidean'; supported: dot, cosine",
    ),
    "prompt no text": (
        "sentence-transformers",
        "config_sentence_transformers.json",
        '{"prompts": {"query": 3}}',
        "prompts that are not text",
    ),
    "default prompt": (
        "sentence-transformers",
        "config_sentence_transformers.json",
        '{"default_prompt_name": "s2s"}',
        "default prompt is 's2s', but the prompts are: query, document",
    ),
    "too long": (
        "sentence-transformers",
        "sentence_bert_config.json",
        '{"max_seq_length": 512}',
        "max_length is 512; it must be 1 to 160",
    ),
    "length no number": (
        "sentence-transformers",
        "sentence_bert_config.json",
        '{"max_seq_length": "long"}',
        "maximum length of 'long'",
    ),
    "pooler type": (
        "modelscope",
        "configuration.json",
        '{"task": "sentence-embedding", "model": {"emb_pooler_type": "avg_top2"}}',
        "emb_pooler_type 'avg_top2'.*Supported: cls, avg",
    ),
    "text around sentences": (
        "modelscope",
        "configuration.json",
        '{"task": "sentence-embedding", "preprocessor": {"boq": "query: "}}',
        r"around each sentence \(boq\)",
    ),
    "another task": (
        "modelscope",
        "configuration.json",
        '{"task": "fill-mask", "model": {"type": "bert"}}',
        "--pooling cls or --pooling mean",
    ),
}


@pytest.mark.parametrize(
    ("layout", "name", "content", "message"), WRONG_FILES.values(), ids=WRONG_FILES
)
def test_wrong_files(
    copy: Callable[..., Path], layout: str, name: str, content: str, message: str
) -> None:
    folder = copy(layout)
    (folder / name).parent.mkdir(exist_ok=True)
    if content:
        (folder / name).write_text(content, "utf-8")
    else:
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("length", [0, -1, 161])
def test_max_length_of_the_recipe(make_checkpoint: MakeCheckpoint, length: int) -> None:
    with pytest.raises(CheckpointError, match=f"max_length is {length}; it must be 1 to 160"):
        load(make_checkpoint(), pooling="cls", max_length=length)


def test_lower_casing_outside_the_tokenizer(copy: Callable[..., Path]) -> None:
    folder = copy("sentence-transformers")
    change_json(folder / "sentence_bert_config.json", do_lower_case=True)
    assert load(folder)
    change_json(folder / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(CheckpointError, match="do_lower_case"):
        load(folder)


def test_a_checkpoint_cannot_be_changed(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load(make_checkpoint(), pooling="cls")
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.pooling = "mean"  # type: ignore[misc]


def test_lower_casing_outside_is_seen_where_the_vocabulary_has_no_latin_words(
    copy: Callable[..., Path],
) -> None:
    folder = copy("sentence-transformers")
    words = (folder / "vocab.txt").read_text("utf-8").splitlines()
    chinese = [f"字{n}" if re.search("[a-z]", word) else word for n, word in enumerate(words)]
    (folder / "vocab.txt").write_text("\n".join(chinese) + "\n", "utf-8")
    change_json(folder / "sentence_bert_config.json", do_lower_case=True)
    change_json(folder / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(CheckpointError, match="do_lower_case"):
        load(folder)


def test_cutting_on_the_left_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy("sentence-transformers")
    change_json(folder / "tokenizer_config.json", truncation_side="left")
    with pytest.raises(CheckpointError, match=r"truncation_side.*truncate='left'"):
        load(folder)
