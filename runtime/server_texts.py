"""Texts as requests name them, and what was asked of them. Pure; knows no HTTP and no encoder."""

from typing import Annotated, Any, Literal

import msgspec

from .options import TextOptions
from .server_errors import Refusal

TokenId = Annotated[int, msgspec.Meta(ge=0)]
Texts = str | list[str] | list[list[int]]
"""One text, several, or several given as token ids."""

AsGiven = str | list[str | TokenId | list[TokenId]]
"""Texts as JSON's types can say them; ``texts_of`` and ``texts_schema`` are exact."""
NAMES: dict[type, str] = {str: "a string", int: "a token id", list: "a list of token ids"}
Direction = Literal["Left", "Right", "left", "right"]


def texts_of(given: str | list[Any], field: str, max_texts: int) -> tuple[Texts, bool]:
    """Return the texts, and whether only one was given.

    Raises ``Refusal`` for none, for too many, and for texts and token ids side by side.
    """
    if isinstance(given, str):
        return given, True
    if not given:
        raise Refusal(400, "Empty", f"{field} is an empty list.", param=field, code="empty")
    refuse_mixed(given, field)
    kind = type(given[0])
    if kind is int:
        return [given], True
    if kind is list and not all(given):
        row = given.index([])
        raise Refusal(400, "Empty", f"{field}[{row}] is an empty list.", param=field, code="empty")
    if len(given) > max_texts:
        raise Refusal(
            413,
            "Validation",
            f"{field} has {len(given)} texts; one request may have {max_texts} "
            "(--max-client-batch-size). Send several requests.",
            param=field,
            code="too_many_texts",
        )
    return given, False


def refuse_mixed(given: list[Any], field: str) -> None:
    """Raise ``Refusal`` unless all items are of one kind."""
    kind = type(given[0]) if given else list
    for row, item in enumerate(given):
        if type(item) is not kind:
            raise Refusal(
                422,
                "Validation",
                f"{field} mixes kinds: item 0 is {NAMES[kind]}, item {row} is "
                f"{NAMES[type(item)]}. Send items of one kind.",
                param=field,
                code="invalid_value",
            )


def texts_schema(vocabulary_size: int) -> dict[str, Any]:
    """Return the JSON schema of what ``texts_of`` takes, for token ids of this vocabulary."""
    number = {"type": "integer", "minimum": 0, "maximum": vocabulary_size - 1}
    ids = {"type": "array", "minItems": 1, "items": number}
    strings = {"type": "array", "minItems": 1, "items": {"type": "string"}}
    several = {"type": "array", "minItems": 1, "items": ids}
    return {"anyOf": [{"type": "string"}, strings, ids, several]}


def options_of(
    *,
    truncate: bool,
    direction: str = "right",
    normalize: bool | None = None,
    dimensions: int | None = None,
    most_dimensions: int,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> TextOptions:
    """Return the options of ``Encoder.encode`` that a request stands for.

    ``prompt``: put before each text, unless the request names one. Raises ``Refusal`` for more
    dimensions than the model has.
    """
    if dimensions is not None and dimensions > most_dimensions:
        why = f"dimensions is {dimensions}; this model has {most_dimensions}."
        raise Refusal(422, "Validation", why, param="dimensions", code="invalid_value")
    options = TextOptions()
    if not truncate:
        options["truncate"] = "error"
    elif direction.lower() == "left":
        options["truncate"] = "left"
    if normalize is not None:
        options["normalize_embeddings"] = normalize
    if dimensions is not None:
        options["truncate_dim"] = dimensions
    if prompt_name is not None:
        options["prompt_name"] = prompt_name
    elif prompt is not None:
        options["prompt"] = prompt
    return options
