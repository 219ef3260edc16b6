"""The tokenizer of a bundle gives the ids of transformers' tokenizer, built or taken over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from corom.export.bundle import export_bundle
from corom.export.config import EncoderConfig, encoder_config
from corom.export.errors import CheckpointError
from corom.export.sources import ResolvedSource
from corom.export.tokenizer import (
    file_token_ids,
    reference_token_ids,
    reference_tokenizer,
    tokenizer_json,
)
from corom.runtime.errors import ParityError

SETTINGS: dict[str, dict[str, Any]] = {
    "lower case": {},
    "cased": {"do_lower_case": False},
    "cased, accents stripped": {"do_lower_case": False, "strip_accents": True},
    "lower case, accents kept": {"strip_accents": False},
    "Chinese characters together": {"tokenize_chinese_chars": False},
}
MIXED = st.text(
    st.one_of(
        st.sampled_from(
            "高血压 患者CT检查5mg，。\u3000\u200b\u00e9e\u0301ÀÜß😀\U00020000[]#SEP\t\n\r\0"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


def config_of(folder: Path) -> EncoderConfig:
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    return encoder_config(raw, folder / "config.json")


def built(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_buffer(tokenizer_json(folder, config_of(folder)))


def ids(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


@pytest.fixture
def folder(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint with vocab.txt that a test may spoil."""
    return Path(shutil.copytree(make_checkpoint(), tmp_path / "checkpoint"))


@pytest.mark.parametrize("kind", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_gives_the_ids_of_transformers(
    make_checkpoint: Callable[..., Path],
    parity_texts: list[str],
    kind: str,
    options: dict[str, Any],
) -> None:
    folder = make_checkpoint(tokenizer=kind, tokenizer_settings=options)
    texts = [*parity_texts, "", " ", "CaFÉ Über 5MG[SEP]x [MASK][unused1]", "x" * 101, "##mg"]
    expected = transformers.AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert ids(built(folder), texts) == expected


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(MIXED, max_size=4))
def test_gives_the_ids_of_transformers_for_any_text(
    both: tuple[tokenizers.Tokenizer, Any], texts: list[str]
) -> None:
    ours, theirs = both
    assert ids(ours, texts) == [theirs(text)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Path) -> tuple[tokenizers.Tokenizer, Any]:
    """The tokenizer built for ModelScope's layout, and transformers' for the same folder."""
    return built(tiny_checkpoint), transformers.AutoTokenizer.from_pretrained(tiny_checkpoint)


def test_roberta_tokenizer_is_taken_over(
    make_checkpoint: Callable[..., Path], parity_texts: list[str]
) -> None:
    folder = make_checkpoint(model_type="roberta")
    expected = transformers.AutoTokenizer.from_pretrained(folder)(parity_texts)["input_ids"]
    assert ids(built(folder), parity_texts) == expected


def test_trained_vocabulary_as_vocab_txt_gives_the_same_ids(
    demo_source: ResolvedSource, tmp_path: Path, parity_texts: list[str]
) -> None:
    own = built(demo_source.folder)
    by_id = sorted(own.get_vocab(), key=own.get_vocab().__getitem__)
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(demo_source.folder / name, tmp_path / name)
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in by_id), "utf-8")
    expected = transformers.AutoTokenizer.from_pretrained(demo_source.folder)(parity_texts)
    assert ids(built(tmp_path), parity_texts) == expected["input_ids"]
    assert ids(own, parity_texts) == expected["input_ids"]


def test_truncation_and_padding_are_removed(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint(tokenizer="tokenizer.json")
    spoiled = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    spoiled.enable_truncation(4)
    spoiled.enable_padding(length=64)
    spoiled.save(str(folder / "tokenizer.json"))
    assert len(built(folder).encode("高血压患者头晕").ids) == 9


def test_tokenizer_config_goes_before_tokenizer_json(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint(tokenizer="tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    expected = transformers.AutoTokenizer.from_pretrained(folder)("CT 5MG")["input_ids"]
    assert built(folder).encode("CT 5MG").ids == expected
    assert expected != built(make_checkpoint()).encode("CT 5MG").ids


def test_a_file_that_transformers_makes_something_else_of_is_not_published(
    make_checkpoint: Callable[..., Path], tmp_path: Path, parity_file: Path
) -> None:
    """transformers' BertTokenizer takes the words of tokenizer.json, and cuts them its own way."""
    folder = make_checkpoint(tokenizer="tokenizer.json")
    spoiled = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    spoiled.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    spoiled.save(str(folder / "tokenizer.json"))
    with pytest.raises(ParityError, match=r"differs from its tokenizer\.json"):
        export_bundle(str(folder), tmp_path / "bundle", pooling="cls", parity_texts=parity_file)
    assert not (tmp_path / "bundle").exists()


def test_tokens_added_beside_the_file_are_no_difference(
    make_checkpoint: Callable[..., Path], vocabulary: list[str], parity_texts: list[str]
) -> None:
    folder = make_checkpoint(tokenizer="tokenizer.json", vocab_size=len(vocabulary) + 1)
    (folder / "added_tokens.json").write_text(json.dumps({"曲妥珠单抗": len(vocabulary)}))
    theirs = reference_tokenizer(folder)
    texts = [*parity_texts, "打曲妥珠单抗"]
    expected = reference_token_ids(theirs, texts, None)
    assert file_token_ids(theirs, folder, texts) == expected
    assert len(vocabulary) in expected[-1]
    assert file_token_ids(theirs, make_checkpoint(), texts) is None


def test_a_file_that_cuts_on_the_left_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint(tokenizer="tokenizer.json")
    spoiled = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    spoiled.enable_truncation(64, direction="left")
    spoiled.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="cuts long texts on the left"):
        built(folder)


def test_special_tokens_of_other_names(folder: Path) -> None:
    vocabulary = (folder / "vocab.txt").read_text("utf-8").replace("[CLS]", "<cls>")
    (folder / "vocab.txt").write_text(vocabulary, "utf-8")
    (folder / "special_tokens_map.json").write_text('{"cls_token": {"content": "<cls>"}}')
    assert built(folder).encode("头").tokens[0] == "<cls>"


def test_windows_line_ends_and_a_repeated_token(folder: Path, parity_texts: list[str]) -> None:
    content = (folder / "vocab.txt").read_text("utf-8")
    expected = ids(built(folder), parity_texts)
    (folder / "vocab.txt").write_bytes(content.replace("\n", "\r\n").encode())
    assert ids(built(folder), parity_texts) == expected


def shorten(folder: Path, words: int = 10) -> None:
    """Take the last words from vocab.txt; the table keeps their rows."""
    lines = (folder / "vocab.txt").read_text("utf-8").splitlines(keepends=True)
    (folder / "vocab.txt").write_text("".join(lines[:-words]), "utf-8")


BEHIND = ("added_tokens.json", "ids beyond vocab.txt")
ADDED: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"added_tokens.json": {"[药名]": 1990, "[病名]": 1991}},
    "ids beyond vocab.txt": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "1990": {"content": "[药名]", "special": True},
                "1991": {"content": "[病名]", "special": False, "lstrip": True},
            }
        }
    },
    "extra special tokens": {"tokenizer_config.json": {"extra_special_tokens": ["药", "CT"]}},
    "named special tokens": {"tokenizer_config.json": {"drug_token": "药", "bos_token": "CT"}},
    "additional special tokens": {
        "special_tokens_map.json": {"additional_special_tokens": ["药", "CT"]}
    },
}


@pytest.mark.parametrize(
    ("case", "kind"),
    [*((case, "vocab.txt") for case in ADDED)]
    + [(case, "tokenizer.json") for case in ADDED if case not in BEHIND],
)
def test_added_tokens_are_those_of_transformers(
    make_checkpoint: Callable[..., Path], case: str, kind: str
) -> None:
    folder = make_checkpoint(tokenizer=kind)
    if case in BEHIND:
        shorten(folder)
    for name, content in ADDED[case].items():
        path = folder / name
        old = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps(old | content), "utf-8")
    texts = ["吃[药名]治[病名]吗", "药房里 CT 检查", "[ 病名 ]", "drug_token"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs(texts)["input_ids"]
    assert ids(built(folder), texts) == expected
    plain = transformers.AutoTokenizer.from_pretrained(make_checkpoint())
    assert expected != plain(texts)["input_ids"]


def no_special_tokens(folder: Path) -> None:
    words = tokenizers.models.WordPiece({"[UNK]": 0, "1": 1}, unk_token="[UNK]")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def settle(**options: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokenizer_config.json").write_text(json.dumps(options))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "neither file": (
        lambda f: (f / "vocab.txt").unlink(),
        r"neither tokenizer\.json nor vocab\.txt.*save_pretrained",
    ),
    "vocabulary too large": (
        lambda f: (f / "vocab.txt").open("a", encoding="utf-8").write("新词\n"),
        r"ids up to 2000.*2000 rows",
    ),
    "vocabulary cut short": (
        lambda f: (f / "vocab.txt").write_text("[PAD]\n[UNK]\n", "utf-8"),
        r"lacks the tokens .*\[CLS\].*cut short",
    ),
    "not UTF-8": (lambda f: (f / "vocab.txt").write_bytes(b"\xff\xfe\n"), "not UTF-8"),
    "damaged tokenizer.json": (
        lambda f: (f / "tokenizer.json").write_text('{"version"'),
        r"tokenizer\.json' cannot be read",
    ),
    "damaged tokenizer_config.json": (
        lambda f: (f / "tokenizer_config.json").write_text("[1]"),
        r"tokenizer_config\.json' cannot be read",
    ),
    "no special tokens": (no_special_tokens, "does not put special tokens"),
    "a word without a row": (
        settle(additional_special_tokens=["[新]"]),
        r"lacks the tokens '?\[新\].*no file gives their ids",
    ),
    **{
        f"{key}: {value}": (settle(**{key: value}), "transformers cannot open the tokenizer")
        for key, value in (
            ("do_lower_case", None),
            ("added_tokens_decoder", [1]),
            ("additional_special_tokens", True),
        )
    },
    "another tokenizer": (settle(tokenizer_class="RobertaTokenizer"), "not BertTokenizer"),
    "no basic tokenizer": (settle(do_basic_tokenize=False), "do_basic_tokenize or never_split"),
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_refuses_a_tokenizer_that_cannot_be_right(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        built(folder)
    assert caught.value.exit_code == 2
