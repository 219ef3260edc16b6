"""Recipes: TOML files that say what to export and how. The defaults of `corom export` are here."""

from importlib import resources
from pathlib import Path

import msgspec

from corom.runtime.errors import InputError
from corom.runtime.manifest import Pooling, Precision, Similarity, Tolerance

from .profiles import EngineOptions

DEFAULT_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(cosine_min=0.99999, max_abs_error=1e-4, batch_invariance=1e-4),
    "bf16": Tolerance(cosine_min=0.9995, batch_invariance=0.05),
    # Un-normalized values of trained encoders reach about 10, and fp16 has 11 bits: 5e-3 for one.
    "fp16": Tolerance(cosine_min=0.9995, batch_invariance=1e-2),
    "int8-per-token": Tolerance(cosine_min=0.998, batch_invariance=0.2),
    "int8": Tolerance(cosine_min=0.995, batch_invariance=0.2),
}


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to export and how; None means: read it from the checkpoint.

    ``source`` is what `corom export` takes as SOURCE, except a recipe name. ``checked`` says in
    words what this recipe was checked against.
    """

    source: str
    name: str | None = None
    description: str = ""
    license: str | None = None
    checked: str = ""
    revision: str | None = None
    subfolder: str | None = None
    weights_sha256: str | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    similarity: Similarity | None = None
    max_length: int | None = None
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    opset: int = 20
    tolerance: dict[Precision, Tolerance] = {}
    engine: EngineOptions = EngineOptions()

    def tolerance_for(self, precision: Precision) -> Tolerance:
        """Return the bounds that a variant of this precision must meet.

        A recipe that names some changes those alone.
        """
        usual = DEFAULT_TOLERANCES[precision]
        own = self.tolerance.get(precision)
        if own is None:
            return usual
        given = {
            name: value for name, value in msgspec.structs.asdict(own).items() if value is not None
        }
        return msgspec.structs.replace(usual, **given)


def recipe_names() -> list[str]:
    """Return the names of the recipes that corom ships, sorted."""
    files = resources.files("corom.models").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """Return the recipe of this name, or the one in this ``.toml`` file.

    Raises ``InputError`` if there is none or it has an unknown or malformed field.
    """
    try:
        if name.endswith(".toml"):
            content = Path(name).read_bytes()
        elif name in recipe_names():
            content = resources.files("corom.models").joinpath(f"{name}.toml").read_bytes()
        else:
            raise FileNotFoundError(name)
    except (OSError, ValueError):  # ValueError: no file can have this name
        raise InputError(
            f"there is no recipe '{name}'. Recipes: {', '.join(recipe_names())}."
        ) from None
    try:
        return msgspec.toml.decode(content, type=Recipe)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe '{name}' cannot be used: {error}.") from None
