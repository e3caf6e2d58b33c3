"""RoBERTa's tokenizer against the one of transformers, and the files that it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import RobertaTokenizer as Oracle

from exporter.errors import TokenizerError
from exporter.tokenization import RobertaTokenizer, Tokenizer, load_tokenizer

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


@pytest.fixture(scope="module")
def old_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vocab.json`` and ``merges.txt`` of a small vocabulary that knows every byte."""
    folder = tmp_path_factory.mktemp("old")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.model.save(str(folder))
    return folder


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
    assert not batch.token_type_ids.any()
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


@pytest.mark.parametrize("limit", [4, 5, 8, 13, 40])
def test_truncation_matches_transformers(both: tuple[Tokenizer, Oracle], limit: int) -> None:
    ours, oracle = both
    expected = oracle(TEXTS, TEXTS[::-1], truncation=True, max_length=limit, padding=True)["input_ids"]
    assert ours(TEXTS, TEXTS[::-1], max_length=limit, truncate=True).input_ids.tolist() == expected


def test_vocab_json_and_merges_read_as_tokenizer_json_does(old_folder: Path) -> None:
    assert_same(load_tokenizer(old_folder, "roberta-prelayernorm"), make_oracle(old_folder), TEXTS, TEXTS[::-1])


def test_saved_folder_loads_here_and_in_transformers(old_folder: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(old_folder, "roberta-prelayernorm")
    ours.save(tmp_path)
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
