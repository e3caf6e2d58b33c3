"""RoBERTa's tokenizer against the one of transformers, and the files that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import RobertaTokenizer as Oracle

from exporter.errors import InputError, TokenizerError
from exporter.tokenization import RobertaTokenizer, Tokenizer, load_tokenizer
from tests.exporter.tokenization.comparison import MANY, WAYS, assert_all_same, assert_same, halves
from tests.exporter.tokenization.texts import make_texts

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

TEXTS = [
    "",
    "  \t\r\n ",
    "Hello world, hello  worlds!\n    def f(self): return self.x",
    "今天天气非常好。北京大学",
    "café cafe\u0301 naïve 😀😀 👩‍👩‍👧",
    "<s> a <mask> b<mask></s><unk><pad> <MASK>",
    "don't I'll we've 3.14 x+=1",
    "a" * 60 + "\x00\u00a0\u2028\ufffd",
]


def train(folder: Path, texts: list[str], size: int) -> Path:
    """Writes ``vocab.json`` and ``merges.txt`` of a vocabulary that knows every byte."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("old"), TEXTS * 3, 330)


def make_oracle(folder: Path, **options: object) -> Oracle:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    return Oracle(vocabulary, merges, mask_token=AddedToken("<mask>", lstrip=True, special=True), **options)


@pytest.fixture(scope="module", params=[{}, {"add_prefix_space": True}, {"trim_offsets": False}])
def both(
    request: pytest.FixtureRequest, old_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Oracle]:
    folder = tmp_path_factory.mktemp("new")
    oracle = make_oracle(old_folder, **request.param)
    oracle.save_pretrained(folder)
    return load_tokenizer(folder, "roberta-prelayernorm"), oracle


def test_texts_match_transformers(both: tuple[Tokenizer, Oracle]) -> None:
    assert_same(*both, TEXTS)


def test_pairs_match_transformers(both: tuple[Tokenizer, Oracle]) -> None:
    assert_same(*both, TEXTS, TEXTS[::-1])


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.text(st.sampled_from("hello wrd'\r\n\t😀今<mask>") | st.characters(codec="utf-8")))
def test_any_text_matches_transformers_and_decodes_to_itself(both: tuple[Tokenizer, Oracle], text: str) -> None:
    assert_same(*both, [text])
    if "<mask>" not in text:
        ours, oracle = both
        assert ours.decode(ours([text]).input_ids[0]).removeprefix(" " if oracle.add_prefix_space else "") in (
            text,
            text.removeprefix(" "),
        )


def test_the_template_of_pairs(both: tuple[Tokenizer, Oracle]) -> None:
    ours, _ = both
    tokens = ours.tokens(ours(["a"], ["b"]).input_ids[0])
    assert "".join(tokens).replace("Ġ", "") == "<s>a</s></s>b</s>"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    """``vocab.json`` and ``merges.txt`` of a vocabulary of 3,000."""
    return train(tmp_path_factory.mktemp("large"), make_texts(seed, 3000, SPECIAL), 3000)


def test_thousands_of_texts_match_transformers(large: Path, seed: int) -> None:
    ours = RobertaTokenizer(large / "vocab.json", large / "merges.txt")
    assert ours.vocab_size == 3000
    assert_all_same(ours, make_oracle(large), make_texts(seed + 1, MANY, SPECIAL))


@pytest.mark.parametrize("options", [{"add_prefix_space": True}, {"trim_offsets": False}])
def test_thousands_of_texts_match_transformers_with_every_option(
    large: Path, seed: int, options: dict[str, Any]
) -> None:
    ours = RobertaTokenizer(large / "vocab.json", large / "merges.txt", **options)
    assert_all_same(ours, make_oracle(large, **options), make_texts(seed + 2, 1000, SPECIAL))


@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_encode_pairs_matches_transformers(
    large: Path, seed: int, way: str, options: dict[str, Any]
) -> None:
    ours = RobertaTokenizer(large / "vocab.json", large / "merges.txt", **options)
    texts = make_texts(seed + 3, 300, SPECIAL)
    assert_same(ours, make_oracle(large, **options), *halves(texts, ours), **WAYS[way])


def test_windows_of_single_texts_match_transformers(large: Path, seed: int) -> None:
    ours = RobertaTokenizer(large / "vocab.json", large / "merges.txt")
    texts = make_texts(seed + 4, 300, SPECIAL)
    options: dict[str, Any] = {"truncation": True, "max_length": 11, "stride": 3, "return_overflowing_tokens": True}
    assert_same(ours, make_oracle(large), texts, **options)


def test_the_documented_methods_fit_what_a_call_gives(old_folder: Path) -> None:
    ours, oracle = load_tokenizer(old_folder, "roberta-prelayernorm"), make_oracle(old_folder)
    first, second = (ours.convert_tokens_to_ids(ours.tokenize(text)) for text in ("a<mask> b", "hello"))
    for pair in (None, second):
        batch = ours(["a<mask> b"], None if pair is None else ["hello"])
        built = ours.build_inputs_with_special_tokens(first, pair)
        assert built == batch.input_ids[0].tolist()
        assert ours.create_token_type_ids_from_sequences(first, pair) == [0] * len(built)
        assert ours.get_special_tokens_mask(first, pair) == batch.special_tokens_mask[0].tolist()
        assert ours.num_special_tokens_to_add(pair is not None) == len(built) - len(first) - len(pair or [])
        mask = ours.get_special_tokens_mask(built, already_has_special_tokens=True)
        assert mask == oracle.get_special_tokens_mask(built, already_has_special_tokens=True)


@pytest.mark.parametrize(
    ("errors", "text"),
    [("replace", "a\ufffd\ufffd\ufffdb"), ("ignore", "ab"), ("backslashreplace", "a\\xff\\xfe\\xe4\\xbbb")],
)
def test_bytes_that_are_no_utf_8(old_folder: Path, errors: str, text: str) -> None:
    ours = RobertaTokenizer(old_folder / "vocab.json", old_folder / "merges.txt", errors=errors)
    ids = ours.convert_tokens_to_ids(["a", "ÿ", "þ", "ä", "»", "b"])
    assert ours.decode(ids) == text
    if errors == "replace":
        assert make_oracle(old_folder).decode(ids) == text


def test_strict_errors_are_reported(old_folder: Path) -> None:
    ours = RobertaTokenizer(old_folder / "vocab.json", old_folder / "merges.txt", errors="strict")
    assert ours.decode(ours(["今天"]).input_ids[0]) == "今天"
    with pytest.raises(InputError, match=r"The ids spell no UTF-8 .*Use errors='replace'"):
        ours.decode(ours.convert_tokens_to_ids(["ä", "»"]))
    with pytest.raises(TokenizerError, match=r"errors must be a handler of bytes.decode.*got 'none such'"):
        RobertaTokenizer(old_folder / "vocab.json", old_folder / "merges.txt", errors="none such")


def test_save_vocabulary_writes_what_transformers_reads(large: Path, tmp_path: Path) -> None:
    ours = RobertaTokenizer(large / "vocab.json", large / "merges.txt")
    paths = ours.save_vocabulary(tmp_path)
    assert [path.name for path in paths] == ["vocab.json", "merges.txt"]
    oracle = make_oracle(large)
    assert Oracle.from_pretrained(tmp_path).get_vocab() == oracle.get_vocab()
    assert_same(load_tokenizer(tmp_path, "roberta-prelayernorm"), oracle, TEXTS)
    names = [path.name for path in ours.save_vocabulary(tmp_path / "named", "large")]
    assert names == ["large-vocab.json", "large-merges.txt"]


def test_a_mask_with_flags_keeps_them(old_folder: Path) -> None:
    mask = AddedToken("<mask>", lstrip=False, rstrip=True, special=True, normalized=False)
    ours = RobertaTokenizer(old_folder / "vocab.json", old_folder / "merges.txt", mask_token=mask)
    assert ours.tokenize("a <mask> a") == ["a", "Ġ", "<mask>", "a"]
    plain = RobertaTokenizer(old_folder / "vocab.json", old_folder / "merges.txt")
    assert plain.tokenize("a <mask> a") == ["a", "<mask>", "Ġ", "a"]


def test_vocab_json_and_merges_read_as_tokenizer_json_does(old_folder: Path) -> None:
    assert_same(load_tokenizer(old_folder, "roberta-prelayernorm"), make_oracle(old_folder), TEXTS, TEXTS[::-1])


def test_saved_folder_loads_here_and_in_transformers(old_folder: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(old_folder, "roberta-prelayernorm")
    ours.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert isinstance(load_tokenizer(tmp_path, "roberta-prelayernorm"), RobertaTokenizer)
    assert_same(load_tokenizer(tmp_path, "roberta-prelayernorm"), Oracle.from_pretrained(tmp_path), TEXTS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"merges.txt": None}, r"expected tokenizer.json, or vocab.json and merges.txt"),
        ({"vocab.json": "{"}, "vocab.json or .*merges.txt is malformed"),
        ({"vocab.json": '{"a": 0}'}, "malformed"),
        ({"merges.txt": "#version: 0.2\na b c d\n"}, "malformed"),
        ({"vocab.json": '{"<s>": 0, "</s>": 1}', "merges.txt": ""}, "has no '<unk>'"),
        ({"tokenizer_config.json": '{"trim_offsets": 3}'}, "trim_offsets"),
        ({"tokenizer_config.json": "[]"}, "must hold a JSON object; got a list"),
        ({"tokenizer.json": "{}"}, "tokenizer.json is malformed"),
        ({"tokenizer.json": '{"model": {"type": "WordPiece"}}'}, "tokenizer.json is malformed"),
    ],
)
def test_wrong_files(old_folder: Path, tmp_path: Path, files: dict[str, str | None], message: str) -> None:
    contents = {name: (old_folder / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt")}
    for name, content in (contents | files).items():
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path, "roberta-prelayernorm")
