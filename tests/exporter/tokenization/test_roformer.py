"""RoFormer's tokenizer against the one of transformers, and the files that it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RoFormerTokenizer as Oracle

from exporter.errors import TokenizerError
from exporter.tokenization import RoFormerTokenizer, Tokenizer, load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["今", "天", "气", "天气", "今天", "非常", "好", "北京", "大学", "北京大学", "𠀀", "。", ",", "！"]
PIECES = [
    "hello",
    "wor",
    "##ld",
    "##s",
    "é",
    "e",
    "cafe",
    "café",
    "CaPs",
    "caps",
    "##1",
    "1",
    "😀",
    "'",
    "[",
    "]",
    "##é",
]
TOKENS = dict.fromkeys(SPECIAL + WORDS + PIECES + list("abc0123#.-+\u2028"))
VOCABULARY = {token: index for index, token in enumerate(TOKENS)}
TEXTS = [
    "",
    " \t\r\n\u3000",
    "今天天气非常好。",
    "北京大学今天",
    "Hello WORLDs, café cafe\u0301 CaPs caps",
    "你好hello世界 𠀀𠀀a",
    "😀😀 a😀b 👩‍👩‍👧",
    "[CLS] 今[MASK]天 [SEP][UNK] [mask]",
    "a b\u2028c\u00a0a\x00\ufffdb\u200d1.2+3-0 hello's",
    "x" * 150 + "今天",
]


@pytest.fixture(
    scope="module", params=[{}, {"do_lower_case": False}, {"strip_accents": True}, {"strip_accents": False}]
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Oracle]:
    folder = tmp_path_factory.mktemp("roformer")
    oracle = Oracle(vocab=VOCABULARY, **request.param)
    oracle.save_pretrained(folder)
    return load_tokenizer(folder, "roformer"), oracle


def assert_same(ours: Tokenizer, oracle: Oracle, texts: list[str], pairs: list[str] | None = None) -> None:
    batch = ours(texts, pairs)
    expected = oracle(
        texts,
        pairs,
        padding=True,
        return_tensors="np",
        return_token_type_ids=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    for name in ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"):
        assert getattr(batch, name).tolist() == expected[name].tolist(), name
        assert getattr(batch, name).dtype == "int64"
    assert [[list(span) for span in row] for row in batch.offsets] == expected["offset_mapping"].tolist()
    for row in batch.input_ids:
        assert ours.decode(row, skip_special_tokens=False) == oracle.decode(row)
        assert ours.decode(row) == oracle.decode(row, skip_special_tokens=True)
        assert ours.tokens(row) == oracle.convert_ids_to_tokens(row.tolist())


def test_texts_match_transformers(both: tuple[Tokenizer, Oracle]) -> None:
    assert_same(*both, TEXTS)


def test_pairs_match_transformers(both: tuple[Tokenizer, Oracle]) -> None:
    assert_same(*both, TEXTS, TEXTS[::-1])


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(
    st.text(
        st.sampled_from("今天气非常好北京大学𠀀 aAéÉ\u0301，,'#1\u3000\r\n\x1c\u2028😀[]")
        | st.characters(codec="utf-8")
    )
)
def test_any_text_matches_transformers(both: tuple[Tokenizer, Oracle], text: str) -> None:
    assert_same(*both, [text])


@pytest.mark.parametrize("limit", [2, 3, 8, 9, 20])
def test_truncation_matches_transformers(both: tuple[Tokenizer, Oracle], limit: int) -> None:
    ours, oracle = both
    expected = oracle(TEXTS, truncation=True, max_length=limit)["input_ids"]
    batch = ours(TEXTS, max_length=limit, truncate=True)
    assert [
        row[: sum(mask)] for row, mask in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True)
    ] == expected


def test_words_of_the_vocabulary_stay_whole_and_others_fall_apart(both: tuple[Tokenizer, Oracle]) -> None:
    ours, _ = both
    ids = ours(["今天天气非常好。"]).input_ids[0]  # jieba knows 今天天气 as one word, this vocabulary does not
    assert ours.tokens(ids) == ["[CLS]", "今", "天", "天", "气", "非常", "好", "。", "[SEP]"]


def test_offsets_count_characters(both: tuple[Tokenizer, Oracle]) -> None:
    text = "😀𠀀 北京大学"
    (offsets,) = both[0]([text]).offsets
    assert [text[start:end] for start, end in offsets] == ["", "😀", "𠀀", "北京大学", ""]


def write_old_folder(folder: Path, tokens: list[str], **settings: object) -> Path:
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_vocab_txt_reads_as_tokenizer_json_does(tmp_path: Path) -> None:
    # transformers 5 forgets the words when it reads vocab.txt, so its tokenizer is made from the dictionary.
    ours = load_tokenizer(write_old_folder(tmp_path, list(VOCABULARY), do_lower_case=False), "roformer")
    assert_same(ours, Oracle(vocab=VOCABULARY, do_lower_case=False), TEXTS)


def test_vocab_txt_with_other_special_names_and_added_tokens(tmp_path: Path) -> None:
    folder = write_old_folder(tmp_path, ["<p>", "<u>", "<c>", "<s>", "<m>", "今"])
    names = {"pad_token": "<p>", "unk_token": "<u>", "cls_token": "<c>", "sep_token": {"content": "<s>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "mask_token": "<m>"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<one>": 6, "<two>": 7}))
    ours = load_tokenizer(folder, "roformer")
    assert ours(["今<two><m>x"]).input_ids.tolist() == [[2, 5, 7, 4, 1, 3]]
    assert (ours.pad_token_id, ours.mask_token_id, ours.vocab_size) == (0, 4, 8)


def test_added_tokens_of_the_config_keep_their_ids(tmp_path: Path) -> None:
    flags = {"content": "<one>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    added = {"30": {**flags, "special": True}}
    with pytest.raises(TokenizerError, match="must have the id 30"):
        load_tokenizer(write_old_folder(tmp_path, SPECIAL, added_tokens_decoder=added), "roformer")
    ours = load_tokenizer(write_old_folder(tmp_path, SPECIAL, added_tokens_decoder={"5": added["30"]}), "roformer")
    assert ours(["x <one>"]).input_ids.tolist() == [[2, 1, 5, 3]]


def test_saved_folder_loads_here_and_in_transformers(both: tuple[Tokenizer, Oracle], tmp_path: Path) -> None:
    ours, _ = both
    ours.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert isinstance(load_tokenizer(tmp_path, "roformer"), RoFormerTokenizer)
    assert_same(load_tokenizer(tmp_path, "roformer"), Oracle.from_pretrained(tmp_path), TEXTS, TEXTS[::-1])
    assert_same(ours, Oracle.from_pretrained(tmp_path), TEXTS)  # saving changes nothing


@pytest.mark.parametrize(
    ("tokens", "config", "message"),
    [
        (SPECIAL[:4], {}, r"has no '\[MASK\]'"),
        (SPECIAL, {"do_lower_case": "yes"}, "do_lower_case"),
        (SPECIAL, {"strip_accents": 1}, "strip_accents"),
        (SPECIAL, {"pad_token": 0}, "special token 0"),
        (SPECIAL, {"added_tokens_decoder": {"x": {}}}, "malformed"),
    ],
)
def test_wrong_vocabulary_or_config(tmp_path: Path, tokens: list[str], config: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(write_old_folder(tmp_path, tokens, **config), "roformer")
