"""RoFormer's original tokenizer against what the one of transformers 4 recorded, and the files that it writes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import TokenizerError
from exporter.tokenization import RoFormerTokenizer, RoFormerTokenizerFast, load_tokenizer
from tests.exporter.tokenization.texts import SPECIAL, chinese_vocabulary, make_texts
from tests.golden.roformer_slow_tokenizer import CASES, CUTS, GOLDEN, digest

VOCABULARY = [*chinese_vocabulary(), "<Tag>"]


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(vocab_file: Path) -> RoFormerTokenizer:
    return RoFormerTokenizer(vocab_file)


def rows_of(tokenizer: RoFormerTokenizer, texts: list[str]) -> list[list[int]]:
    batch = tokenizer(texts)
    sizes = batch.attention_mask.sum(1)
    return [row[:size] for row, size in zip(batch.input_ids.tolist(), sizes, strict=True)]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_ids_and_decoded_texts_match_transformers(golden: Any, vocab_file: Path, number: int) -> None:
    seed, count, options = CASES[number]
    case = golden["cases"][number]
    assert case["options"] == options, "record the golden data anew"
    texts = make_texts(seed, count, [*SPECIAL, *options.get("additional_special_tokens", [])])
    assert digest(texts) == case["texts"], "the generator changed: record the golden data anew"
    tokenizer = RoFormerTokenizer(vocab_file, **options)
    rows = rows_of(tokenizer, texts)
    wrong = [text for text, found, expected in zip(texts, rows, case["ids"], strict=True) if found != expected]
    assert not wrong
    for row, decoded in zip(case["ids"][::4], case["decoded"], strict=True):
        assert [
            tokenizer.decode(row, skip_special_tokens=False),
            tokenizer.decode(row),
            tokenizer.decode(row, clean_up_tokenization_spaces=True),
        ] == decoded


def test_the_golden_data_say_something(golden: Any) -> None:
    assert len(golden["cases"][0]["ids"]) >= 5000
    for case in golden["cases"]:
        unknown = VOCABULARY.index(case["options"].get("unk_token", "[UNK]"))
        ids = [index for row in case["ids"] for index in row]
        assert ids.count(unknown) < 0.3 * len(ids)


@pytest.mark.parametrize("number", range(len(CUTS)))
def test_pairs_match_transformers(golden: Any, tokenizer: RoFormerTokenizer, number: int) -> None:
    case = golden["pairs"][number]
    assert case["arguments"] == CUTS[number], "record the golden data anew"
    texts = make_texts(case["seed"], case["count"], SPECIAL)
    batch = tokenizer(texts[::2], texts[1::2], **CUTS[number])
    for name in ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"):
        assert getattr(batch, name).tolist() == case[name], name


@pytest.mark.parametrize("sizes", [(0, 9), (9, 0), (4, 4), (5, 5), (3, 9), (9, 3), (5, 6), (6, 5), (1, 1)])
def test_longest_first_takes_one_token_after_the_other(tokenizer: RoFormerTokenizer, sizes: tuple[int, int]) -> None:
    for room in range(sum(sizes)):
        first, second = sizes
        while first + second > room:
            first, second = (first - 1, second) if first > second else (first, second - 1)
        batch = tokenizer(["a " * sizes[0]], ["b " * sizes[1]], max_length=room + 3, truncation=True)
        assert [(batch.sequence_ids == text).sum() for text in (0, 1)] == [first, second]


def test_the_folder_of_transformers_loads(golden: Any, tmp_path: Path) -> None:
    assert sorted(golden["files"]) == ["special_tokens_map.json", "tokenizer_config.json", "vocab.txt"]
    for name, content in golden["files"].items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    loaded = load_tokenizer(tmp_path, "roformer", use_fast=False)
    assert isinstance(loaded, RoFormerTokenizer)
    seed, count, _ = CASES[0]
    assert rows_of(loaded, make_texts(seed, count, SPECIAL)[:200]) == golden["cases"][0]["ids"][:200]


def test_save_vocabulary_writes_what_transformers_writes(
    golden: Any, tokenizer: RoFormerTokenizer, tmp_path: Path
) -> None:
    (path,) = tokenizer.save_vocabulary(tmp_path, "some")
    assert {path.name: digest(path.read_text(encoding="utf-8").split("\n"))} == golden["vocabulary"]


def test_saved_folder_loads_again(vocab_file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "do_lower_case": False,
        "never_split": ["c#"],
        "tokenize_chinese_chars": False,
        "strip_accents": True,
        "mask_token": "☃",
        "additional_special_tokens": ["<Tag>"],
    }
    ours = RoFormerTokenizer(vocab_file, **options)
    ours.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer_config.json", "vocab.txt"]
    again = load_tokenizer(tmp_path, "roformer", use_fast=False)
    assert isinstance(again, RoFormerTokenizer)
    texts = make_texts(40, 300, [*SPECIAL, "<Tag>"])
    assert rows_of(again, texts) == rows_of(ours, texts) != rows_of(RoFormerTokenizer(vocab_file), texts)
    assert again.all_special_ids == ours.all_special_ids
    assert isinstance(load_tokenizer(tmp_path, "roformer"), RoFormerTokenizerFast)


def test_it_is_made_from_a_tokenizer_json_as_well(vocab_file: Path, tmp_path: Path) -> None:
    RoFormerTokenizerFast(vocab_file, do_lower_case=False).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, "roformer", use_fast=False)
    assert isinstance(loaded, RoFormerTokenizer)
    texts = make_texts(41, 300, SPECIAL)
    assert rows_of(loaded, texts) == rows_of(RoFormerTokenizer(vocab_file, do_lower_case=False), texts)


def test_offsets_count_characters_of_the_text(tokenizer: RoFormerTokenizer) -> None:
    text = "😀É[MASK] \x00A\u030a 今天北x unaffable😀!"
    batch = tokenizer([text])
    spans = [text[start:end] for start, end in batch.offsets[0]]
    assert spans == ["", "😀", "É", "[MASK]", "A", "今天", "北", "x", "unaffable", "😀", "!", ""]
    assert "".join(tokenizer.tokens(batch.input_ids[0])) == "[CLS]😀é[MASK]a今天北xunaffable😀![SEP]"
    (offsets,) = tokenizer(["transformings"]).offsets
    assert [stop for _, stop in offsets[:-1]] == [start for start, _ in offsets[1:-1]] + [13]


def test_both_tokenizers_differ_where_they_should(vocab_file: Path) -> None:
    slow, fast = RoFormerTokenizer(vocab_file), RoFormerTokenizerFast(vocab_file)
    assert (slow.tokenize("É"), fast.tokenize("É")) == (["é"], ["e"])
    ids = slow(["hello, world"]).input_ids[0]
    assert (slow.decode(ids), fast.decode(ids)) == ("hello , world", "hello, world")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_basic_tokenize": 1}, "do_basic_tokenize must be true or false"),
        ({"do_lower_case": None}, "do_lower_case must be true or false"),
        ({"tokenize_chinese_chars": "no"}, "tokenize_chinese_chars must be true or false"),
        ({"strip_accents": 0}, "strip_accents must be true, false or null"),
        ({"never_split": "ab"}, "never_split must be a list of words, or null; got 'ab'"),
        ({"never_split": [1]}, "never_split must be a list of words"),
        ({"never_split": 5}, "never_split must be a list of words"),
        ({"bos_token": "[CLS]"}, "A RoFormerTokenizer has no option 'bos_token'"),
        ({"mask_token": "[NONE]"}, r"has no '\[NONE\]', which is the mask_token"),
        ({"mask_token": 4}, "mask_token must be a string or an AddedToken; got 4"),
        ({"additional_special_tokens": ["[NONE]"]}, r"has no '\[NONE\]', which is the additional_special_tokens"),
    ],
)
def test_wrong_options(vocab_file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        RoFormerTokenizer(vocab_file, **options)
