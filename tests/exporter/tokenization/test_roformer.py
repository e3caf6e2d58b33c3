"""RoFormer's tokenizer against the one of transformers, and the files that it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import RoFormerTokenizer as Oracle

from exporter.errors import TokenizerError
from exporter.tokenization import RoFormerTokenizerFast, Tokenizer, load_tokenizer
from tests.exporter.tokenization.comparison import MANY, WAYS, assert_all_same, assert_same, halves
from tests.exporter.tokenization.texts import SPECIAL, chinese_vocabulary, make_texts

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


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Oracle]:
    """A larger vocabulary, and the files of ``transformers``."""
    folder = tmp_path_factory.mktemp("large")
    oracle = Oracle(vocab={token: index for index, token in enumerate(chinese_vocabulary())})
    oracle.save_pretrained(folder)
    return load_tokenizer(folder, "roformer"), oracle


def test_thousands_of_texts_match_transformers(large: tuple[Tokenizer, Oracle], seed: int) -> None:
    assert_all_same(*large, make_texts(seed, MANY, SPECIAL))


def test_thousands_of_texts_match_transformers_with_every_option(both: tuple[Tokenizer, Oracle], seed: int) -> None:
    assert_all_same(*both, make_texts(seed + 1, 1000, SPECIAL))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_encode_pairs_matches_transformers(large: tuple[Tokenizer, Oracle], seed: int, way: str) -> None:
    ours, oracle = large
    assert_same(ours, oracle, *halves(make_texts(seed + 2, 300, SPECIAL), ours), **WAYS[way])


def test_windows_of_single_texts_match_transformers(large: tuple[Tokenizer, Oracle], seed: int) -> None:
    texts = make_texts(seed + 3, 300, SPECIAL)
    assert_same(*large, texts, truncation=True, max_length=11, stride=3, return_overflowing_tokens=True)


def test_the_documented_methods_match_transformers(large: tuple[Tokenizer, Oracle]) -> None:
    ours, oracle = large
    first, second = (ours.convert_tokens_to_ids(ours.tokenize(text)) for text in ("今天 [MASK]天气", "hello"))
    for pair in (None, second):
        built = ours.build_inputs_with_special_tokens(first, pair)
        assert built == oracle.build_inputs_with_special_tokens(first, pair)
        types = ours.create_token_type_ids_from_sequences(first, pair)
        assert types == oracle.create_token_type_ids_from_sequences(first, pair)
        assert ours.num_special_tokens_to_add(pair is not None) == oracle.num_special_tokens_to_add(pair is not None)
        mask = ours.get_special_tokens_mask(built, already_has_special_tokens=True)
        assert mask == oracle.get_special_tokens_mask(built, already_has_special_tokens=True)
        assert sum(mask) == 1 + sum(ours.get_special_tokens_mask(first, pair))  # the mask in the text


def test_the_constructor_reads_vocab_txt(tmp_path: Path) -> None:
    folder = write_old_folder(tmp_path, list(VOCABULARY))
    ours = RoFormerTokenizerFast(folder / "vocab.txt", do_lower_case=False, strip_accents=True)
    assert_same(ours, Oracle(vocab=VOCABULARY, do_lower_case=False, strip_accents=True), TEXTS)


def test_tokens_that_are_added_by_transformers_stay(tmp_path: Path) -> None:
    oracle = Oracle(vocab=VOCABULARY, extra_special_tokens=["<extra>"])
    oracle.add_tokens(["<Plain>", AddedToken("今非", normalized=False)])
    oracle.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path, "roformer")
    assert ours.vocab_size == len(oracle)
    assert_same(ours, oracle, [f"{text}<extra> <plain>今非<Plain>" for text in TEXTS])


def test_save_vocabulary_writes_what_transformers_writes(both: tuple[Tokenizer, Oracle], tmp_path: Path) -> None:
    ours, oracle = both
    (path,) = ours.save_vocabulary(tmp_path / "ours", "small")
    (tmp_path / "oracle").mkdir()
    with pytest.warns(DeprecationWarning, match="renamed `prefix`"):
        (other,) = oracle.save_vocabulary(str(tmp_path / "oracle"), "small")
    assert path.name == Path(other).name == "small-vocab.txt"
    assert path.read_bytes() == Path(other).read_bytes()


def test_a_vocabulary_with_gaps_is_not_written_as_vocab_txt(tmp_path: Path) -> None:
    Oracle(vocab=VOCABULARY | {"far": 999}).save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path, "roformer")
    assert ours.vocab_size == 1000
    with pytest.raises(TokenizerError, match=r"does not fit into vocab.txt: its ids have gaps"):
        ours.save_vocabulary(tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    (folder / "added_tokens.json").write_text(json.dumps({"<one>": 6, "<two>": 7}), encoding="utf-8")
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
    ours.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert isinstance(load_tokenizer(tmp_path, "roformer"), RoFormerTokenizerFast)
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
