"""tokenizer.json for the runtime: the tokenizer that transformers opens, written down.

transformers reads half a dozen files and settings, which differ by version and by class; whoever
reads them a second time gets some checkpoint wrong. So it reads them, and what it made is kept.
"""

from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import normalizers

from .config import Architecture, EncoderConfig, read_json
from .errors import CheckpointError, listed


def tokenizer_json(folder: Path, config: EncoderConfig) -> bytes:
    """Return a tokenizer.json without truncation and padding for the checkpoint in ``folder``.

    Raises ``CheckpointError`` if there is neither tokenizer.json nor vocab.txt, if transformers
    cannot open the tokenizer or puts a word where no file does, if the vocabulary is larger than
    the embedding table, or if texts get no special tokens at both ends.
    """
    _refuse_settings(folder, config)
    theirs = reference_tokenizer(folder, config.architecture)
    if not theirs.is_fast:
        raise CheckpointError(
            f"the tokenizer in '{folder}' is {type(theirs).__name__}, which has no tokenizer.json "
            "(it runs in Python only). corom exports those that have one."
        )
    if theirs.truncation_side != "right":
        raise CheckpointError(
            f"the tokenizer in '{folder}' cuts long texts on the left (truncation_side), which a "
            "bundle does not. Change it, and ask for that when you encode: truncate='left'."
        )
    if theirs.split_special_tokens:
        raise CheckpointError(
            f"the tokenizer in '{folder}' splits special tokens (split_special_tokens), which a "
            "bundle does not."
        )
    tokenizer: tokenizers.Tokenizer = theirs.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _refuse_guessed_ids(folder, tokenizer)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in '{folder}' has ids up to {largest}, but the embedding table has "
            f"{config.vocab_size} rows only. They are not of the same checkpoint."
        )
    special = tokenizer.encode("1").special_tokens_mask
    if len(special) < 3 or not (special[0] and special[-1]):
        raise CheckpointError(
            f"the tokenizer in '{folder}' does not put special tokens such as [CLS] and [SEP] "
            "around a text. Save it again with transformers."
        )
    return tokenizer.to_str().encode()


def reference_tokenizer(folder: Path, architecture: Architecture = "bert") -> Any:  # noqa: ANN401
    """Return transformers' own tokenizer for ``folder``.

    ``architecture``: which one it is where no file says so. Raises ``CheckpointError`` if
    transformers cannot open it.
    """
    config = transformers.AutoConfig.for_model(architecture)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a setting of the wrong kind leads to
        raise CheckpointError(
            f"transformers cannot open the tokenizer in '{folder}': {type(error).__name__}: {error}"
        ) from None


def reference_token_ids(
    theirs: Any,  # noqa: ANN401
    texts: list[str],
    max_length: int | None,
) -> list[list[int]]:
    """Return the ids that a tokenizer of transformers gives the texts; None cuts none of them."""
    cut = max_length is not None
    encoded = theirs(texts, truncation=cut, max_length=max_length, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def file_token_ids(theirs: Any, folder: Path, texts: list[str]) -> list[list[int]] | None:  # noqa: ANN401
    """Return the ids that tokenizer.json gives the texts, uncut; None if there is none.

    transformers makes some tokenizers anew out of parts of that file. What it takes from elsewhere
    by design is taken from ``theirs``, an opened one: added tokens, and BertTokenizer's case.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    if isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        tokenizer.normalizer = theirs.backend_tokenizer.normalizer
    added = theirs.backend_tokenizer.get_added_tokens_decoder().values()
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def _refuse_settings(folder: Path, config: EncoderConfig) -> None:
    """Refuse files that transformers reads otherwise than whoever wrote them meant."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) or {}
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"'{folder / 'tokenizer.json'}' cannot be read: {error}. Download it again."
            ) from None
        return
    if not (folder / "vocab.txt").is_file():
        raise CheckpointError(
            f"'{folder}' has neither tokenizer.json nor vocab.txt. Save the tokenizer with "
            "transformers: AutoTokenizer.from_pretrained(…).save_pretrained(folder)."
        )
    kind = settings.get("tokenizer_class") or config.architecture
    if not str(kind).lower().startswith("bert"):
        raise CheckpointError(
            f"'{folder}' has vocab.txt and no tokenizer.json, but its tokenizer is not "
            "BertTokenizer. Save a tokenizer.json with transformers."
        )
    if settings.get("do_basic_tokenize") is False or settings.get("never_split"):
        raise CheckpointError(
            f"'{path}' sets do_basic_tokenize or never_split, which only the slow BertTokenizer of "
            "old transformers knows."
        )
    try:
        (folder / "vocab.txt").read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{folder / 'vocab.txt'}' is not UTF-8: {error}.") from None


def _refuse_guessed_ids(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Refuse words that transformers put behind the vocabulary where no file gives that id.

    A vocab.txt that is cut short has no [CLS]: it would get the row of another word.
    """
    words = tokenizer.get_vocab(with_added_tokens=False)
    given = _given_ids(folder)
    guessed = [
        token.content
        for row, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token.content not in words and given.get(token.content) != row
    ]
    if guessed:
        raise CheckpointError(
            f"the vocabulary in '{folder}' lacks the tokens {listed(guessed)}, and no file gives "
            "their ids. It is cut short or of another checkpoint."
        )


def _given_ids(folder: Path) -> dict[str, int]:
    """Return the ids of added tokens, in whichever of three files they are given."""
    of_library = (read_json(folder / "tokenizer.json") or {}).get("added_tokens") or ()
    of_settings = (read_json(folder / "tokenizer_config.json") or {}).get("added_tokens_decoder")
    given: dict[str, int] = dict(read_json(folder / "added_tokens.json") or {})
    given |= {token["content"]: int(row) for row, token in (of_settings or {}).items()}
    return given | {token["content"]: token["id"] for token in of_library}
