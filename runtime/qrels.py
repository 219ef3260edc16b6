"""Which passages answer which query: files of judgements, TREC's and Multi-CPR's format."""

from collections.abc import Iterable
from pathlib import Path

from .errors import InputError

BEIR_HEADER = ["query-id", "corpus-id", "score"]
Qrels = dict[str, list[str]]
"""Query id → ids of relevant passages, in the order of the file."""


def read_qrels(path: Path) -> Qrels:
    """Read lines of ``query 0 passage relevance``, or ``query passage [relevance]``.

    Fields are separated by tabs where a line has any, else by white space; BEIR's header is left
    out. Passages of relevance 0 are no answers and left out; a
    query that has only such is there with none. Raises ``InputError`` naming the line that is of
    another form.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"'{path}' cannot be read: {reason}.") from None
    qrels: Qrels = {}
    for number, line in enumerate(lines, 1):
        fields = line.strip().split("\t") if "\t" in line.strip() else line.split()
        if not fields or (number == 1 and fields == BEIR_HEADER):
            continue
        query, passage, relevance = _judgement(fields, path, number)
        relevant = qrels.setdefault(query, [])
        if relevance > 0 and passage not in relevant:
            relevant.append(passage)
    if not qrels:
        raise InputError(f"'{path}' has no judgement.")
    return qrels


def refuse_unknown(named: Iterable[str], known: Iterable[str], what: str, where: str) -> None:
    """Raise ``InputError`` if ids that judgements name are not there."""
    absent = sorted(set(named) - set(known))
    if absent:
        raise InputError(
            f"the judgements name {len(absent):,} {what} that are not in {where}, such as "
            f"'{absent[0]}'. Give the files that belong together."
        )


def _judgement(fields: list[str], path: Path, number: int) -> tuple[str, str, int]:
    places = {2: (0, 1, None), 3: (0, 1, 2), 4: (0, 2, 3)}.get(len(fields))
    if places is not None:
        query, passage, relevance = places
        try:
            return (
                fields[query],
                fields[passage],
                1 if relevance is None else int(fields[relevance]),
            )
        except ValueError:
            pass
    raise InputError(
        f"line {number} of '{path}' is no judgement; expected 'query 0 passage relevance' or "
        "'query passage relevance'."
    )
