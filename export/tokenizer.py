"""tokenizer.json for the runtime: the checkpoint's own, or WordPiece built from its vocab.txt.

Built or read, it gives the ids that transformers' tokenizer for the same folder gives.
"""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from .config import EncoderConfig, read_json
from .errors import CheckpointError, listed

_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def tokenizer_json(folder: Path, config: EncoderConfig) -> bytes:
    """Return a tokenizer.json without truncation and padding for the checkpoint in ``folder``.

    Raises ``CheckpointError`` if there is neither tokenizer.json nor vocab.txt, if the vocabulary
    is larger than the embedding table, or if texts get no special tokens at both ends.
    """
    settings = read_json(folder / "tokenizer_config.json") or {}
    if settings.get("truncation_side", "right") != "right":
        raise CheckpointError(
            f"'{folder / 'tokenizer_config.json'}' cuts long texts on the left (truncation_side), "
            "which a bundle does not. Remove the line, and ask for it: truncate='left'."
        )
    if (folder / "tokenizer.json").is_file():
        tokenizer = _own(folder / "tokenizer.json", settings, config)
    elif (folder / "vocab.txt").is_file():
        tokenizer = _word_piece(folder, settings, config)
    else:
        raise CheckpointError(
            f"'{folder}' has neither tokenizer.json nor vocab.txt. Save the tokenizer with "
            "transformers: AutoTokenizer.from_pretrained(…).save_pretrained(folder)."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
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


def _own(path: Path, settings: dict[str, Any], config: EncoderConfig) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"'{path}' cannot be read: {error}. Download it again.") from None
    # transformers' BertTokenizer takes these from tokenizer_config.json, or else its own defaults,
    # whatever tokenizer.json says: the vectors that users know were made that way.
    if _is_bert(settings, config) and isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        tokenizer.normalizer = _bert_normalizer(settings)
    return tokenizer


def _word_piece(
    folder: Path, settings: dict[str, Any], config: EncoderConfig
) -> tokenizers.Tokenizer:
    """Build the tokenizer that transformers' BertTokenizer is for a folder with vocab.txt."""
    if not _is_bert(settings, config):
        raise CheckpointError(
            f"'{folder}' has vocab.txt and no tokenizer.json, but its tokenizer is not "
            "BertTokenizer. Save a tokenizer.json with transformers."
        )
    if settings.get("do_basic_tokenize") is False or settings.get("never_split"):
        raise CheckpointError(
            f"'{folder / 'tokenizer_config.json'}' sets do_basic_tokenize or never_split, which "
            "only the slow BertTokenizer of old transformers knows."
        )
    special = _special_tokens(folder, settings)
    # Text mode, as transformers reads it: lines end with \n or \r\n and nothing else is stripped.
    with (folder / "vocab.txt").open(encoding="utf-8") as file:
        try:
            vocabulary = {line.rstrip("\n"): row for row, line in enumerate(file)}
        except UnicodeDecodeError as error:
            raise CheckpointError(f"'{folder / 'vocab.txt'}' is not UTF-8: {error}.") from None
    added = _added_tokens(folder, settings) | {str(token): token for token in special.values()}
    missing = [token for token in added if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"'{folder / 'vocab.txt'}' lacks the special tokens {listed(missing)}. It is cut short "
            "or of another checkpoint."
        )
    cls, sep = special["cls_token"].content, special["sep_token"].content
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=special["unk_token"].content)
    )
    tokenizer.normalizer = _bert_normalizer(settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    tokenizer.add_special_tokens([token for token in added.values() if token.special])
    tokenizer.add_tokens([token for token in added.values() if not token.special])
    return tokenizer


def _is_bert(settings: dict[str, Any], config: EncoderConfig) -> bool:
    kind = settings.get("tokenizer_class") or config.architecture
    return str(kind).lower().startswith("bert")


def _bert_normalizer(settings: dict[str, Any]) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )


def _special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, tokenizers.AddedToken]:
    """Return the five special tokens; special_tokens_map.json goes before tokenizer_config.json."""
    mapped = read_json(folder / "special_tokens_map.json") or {}
    return {
        role: _token(mapped.get(role) or settings.get(role) or default)
        for role, default in _SPECIAL_TOKENS.items()
    }


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, tokenizers.AddedToken]:
    mapped = read_json(folder / "special_tokens_map.json") or {}
    more = mapped.get("additional_special_tokens") or settings.get("additional_special_tokens")
    tokens = [_token(value) for value in more or ()]
    tokens += [_token(value) for value in (settings.get("added_tokens_decoder") or {}).values()]
    return {token.content: token for token in tokens}


def _token(value: Any) -> tokenizers.AddedToken:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, str):
        return tokenizers.AddedToken(value, normalized=False, special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f"{value!r} is no special token: it must be text, or have content.")
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return tokenizers.AddedToken(
        value["content"],
        special=value.get("special", True),
        **{flag: bool(value.get(flag, False)) for flag in flags},
    )
