"""Nested dicts to protobuf's text format, which Triton's config.pbtxt is written in. Pure."""

from collections.abc import Iterator, Mapping, Sequence


class Word(str):
    """A value written without quotes, as the names of an enum are."""

    __slots__ = ()


def text_proto(message: Mapping[str, object]) -> str:
    """Return a message as text, its fields in the order given.

    Values: str, Word, bool, int, a mapping (a message), a sequence (a repeated field).
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, object], indent: str) -> Iterator[str]:
    for name, value in message.items():
        repeated = isinstance(value, Sequence) and not isinstance(value, str)
        for one in value if repeated else [value]:  # type: ignore[attr-defined]
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | Word):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r} has no text format here")
    # Bytes in octal are read alike by every parser, whatever the text holds.
    return '"' + "".join(map(_escaped, value.encode())) + '"'


def _escaped(byte: int) -> str:
    plain = 0x20 <= byte < 0x7F and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03o}"
