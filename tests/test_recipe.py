"""Recipes: the shipped ones are sound, and a wrong one is refused with its field named."""

import re
from pathlib import Path

import pytest

from corom.export.recipe import DEFAULT_TOLERANCES, load_recipe, recipe_names
from corom.runtime.errors import InputError

SIZES_AND_DOMAINS = [(s, d) for s in ("tiny", "base") for d in ("", "-medical", "-ecom")]


def test_names() -> None:
    corom = [f"corom-{size}{domain}" for size, domain in SIZES_AND_DOMAINS]
    assert recipe_names() == sorted([*corom, "bge-small-zh-v1.5", "demo", "gte-small-zh"])


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_complete(name: str) -> None:
    recipe = load_recipe(name)
    assert re.match(r"(modelscope|hf):[^/]+/[^/]+$|pypi:[^=]+==[^=]+$", recipe.source)
    assert recipe.name == ("m3e-small" if name == "demo" else name)
    assert recipe.description
    assert recipe.license
    assert re.search(r"\b(Not run|Run): ", recipe.checked)
    assert "  " not in recipe.checked
    assert recipe.pooling
    assert recipe.max_length is None or 0 < recipe.max_length <= 512
    assert recipe.default_prompt_name is None or recipe.default_prompt_name in recipe.prompts


@pytest.mark.parametrize(("size", "domain"), SIZES_AND_DOMAINS)
def test_corom_recipes_keep_modelscopes_contract(size: str, domain: str) -> None:
    recipe = load_recipe(f"corom-{size}{domain}")
    source = f"modelscope:iic/nlp_corom_sentence-embedding_chinese-{size}{domain}"
    assert recipe.source == source
    assert (recipe.pooling, recipe.normalize, recipe.similarity) == ("cls", False, "dot")
    assert recipe.max_length == 128


def test_demo_pins_its_weights() -> None:
    recipe = load_recipe("demo")
    assert recipe.weights_sha256 is not None
    assert len(recipe.weights_sha256) == 64
    assert recipe.license == "research use only"


def test_tolerance_of_the_recipe_goes_before_the_default(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('source = "x"\n[tolerance.fp16]\ncosine_min = 0.9')
    recipe = load_recipe(str(path))
    assert recipe.tolerance_for("fp16").cosine_min == 0.9
    assert recipe.tolerance_for("fp16").max_abs_error is None
    assert recipe.tolerance_for("fp32") == DEFAULT_TOLERANCES["fp32"]


@pytest.mark.parametrize("name", ["corom-tinny", "", "missing.toml", "../models/demo", "a\0b"])
def test_unknown_recipe_lists_the_known(name: str) -> None:
    with pytest.raises(InputError, match="there is no recipe .*demo"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "source"),
        ("source = ", "cannot be used"),
        ('source = "x"\npoling = "cls"', "poling"),
        ('source = "x"\npooling = "max"', "pooling"),
        ('source = "x"\nmax_length = "long"', "max_length"),
        ('source = "x"\n[tolerance.fp8]\ncosine_min = 1.0', "fp8"),
    ],
)
def test_wrong_recipe_names_the_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_recipe(str(path))


def test_recipe_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be used"):
        load_recipe(str(tmp_path / "my.toml"))


def test_a_tolerance_that_names_one_bound_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('source = "x"\n[tolerance.fp32]\ncosine_min = 0.999999')
    usual, own = DEFAULT_TOLERANCES["fp32"], load_recipe(str(path)).tolerance_for("fp32")
    assert own.cosine_min == 0.999999
    assert own.max_abs_error == usual.max_abs_error == 1e-4
    assert own.batch_invariance == usual.batch_invariance
