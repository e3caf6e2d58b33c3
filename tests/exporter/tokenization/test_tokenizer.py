"""What both tokenizers share: the family, limits, wrong input, and that the base install suffices."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import ConfigError, InputError, TokenizerError
from exporter.tokenization import RobertaTokenizer, RoFormerTokenizer, RoFormerTokenizerFast, Tokenizer, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "roformer"}', encoding="utf-8")
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def test_config_json_names_the_family(folder: Path) -> None:
    assert isinstance(load_tokenizer(str(folder)), RoFormerTokenizerFast)
    assert isinstance(load_tokenizer(folder, use_fast=False), RoFormerTokenizer)
    (folder / "vocab.json").write_text(
        json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "roberta-prelayernorm"}', encoding="utf-8")
    loaded = load_tokenizer(folder)
    assert isinstance(loaded, RobertaTokenizer)
    assert (loaded.family, loaded.pad_token_id, loaded.mask_token_id, loaded.vocab_size) == (
        "roberta-prelayernorm",
        1,
        4,
        5,
    )


def test_rows_are_padded_on_the_right(tokenizer: Tokenizer) -> None:
    batch = tokenizer(["a b", "", "b"], ["a", "", "a a"])
    assert batch.input_ids.tolist() == [[2, 5, 6, 3, 5, 3], [2, 3, 3, 0, 0, 0], [2, 6, 3, 5, 5, 3]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert batch.special_tokens_mask.tolist() == [[1, 0, 0, 1, 0, 1], [1] * 6, [1, 0, 1, 0, 0, 1]]
    assert batch.offsets[1] == [(0, 0)] * 6


def test_too_long_a_text_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="Text 1 has 6 tokens, special ones included; the limit is 5"):
        tokenizer(["a a a", "a a b b", "a a a a a a"], max_length=5)
    assert tokenizer(["a a b b"], max_length=5, truncation=True).input_ids.tolist() == [[2, 5, 5, 6, 3]]
    assert tokenizer(["a a b b"]).input_ids.shape == (1, 6)  # truncation ended with its call


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "at least one text"),
        (("a b",), {}, "one str"),
        ((["a", None],), {}, r"texts\[1\] must be a str; got NoneType"),
        ((["a"], [b"a"]), {}, r"pairs\[0\] must be a str; got bytes"),
        ((["a"], []), {}, "got 0 for 1 texts"),
        ((["a"],), {"max_length": 1}, "room for 2 special tokens; got 1"),
        ((["a"], ["b"]), {"max_length": 2, "truncation": True}, "room for 3 special tokens; got 2"),
        ((["a"],), {"truncation": True}, "truncation needs the max_length"),
        ((["a"],), {"padding": "max_length"}, "padding needs the max_length"),
        ((5,), {}, "texts must be a list of texts; got one int"),
        ((["a"],), {"max_length": 2.5}, "max_length must be a whole number of at least 1; got 2.5"),
        ((["a"],), {"max_length": True}, "max_length must be a whole number"),
        ((["a"],), {"max_length": 0}, "max_length must be a whole number of at least 1; got 0"),
        ((["a"],), {"pad_to_multiple_of": 0}, "pad_to_multiple_of must be a whole number of at least 1; got 0"),
        ((["a"],), {"stride": -1}, "stride must be a whole number of at least 0; got -1"),
        ((["a"],), {"stride": None}, "stride must be a whole number of at least 0; got None"),
        ((["a"],), {"padding": "most"}, "padding must be one of 'longest', 'max_length', .*; got 'most'"),
        ((["a"],), {"padding": 1}, "padding must be one of"),
        ((["a"],), {"padding": None}, "padding must be one of"),
        ((["a"],), {"padding_side": "top"}, "padding_side must be one of 'right', 'left'; got 'top'"),
        ((["a"],), {"truncation_side": "top"}, "truncation_side must be one of 'right', 'left'; got 'top'"),
        ((["a"],), {"truncation": "first"}, "truncation must be one of 'longest_first', .*; got 'first'"),
        ((["a"],), {"truncation": []}, r"truncation must be one of .*; got \[\]"),
        ((["a"],), {"add_special_tokens": 1}, "add_special_tokens must be True or False; got 1"),
        ((["a"],), {"return_overflowing_tokens": "yes"}, "return_overflowing_tokens must be True or False"),
        ((["a"],), {"return_overflowing_tokens": True}, "return_overflowing_tokens needs truncation"),
        ((["a"],), {"stride": 2}, "stride needs return_overflowing_tokens=True"),
        ((["a"],), {"truncation": "only_second", "max_length": 9}, "'only_second' needs pairs"),
        ((["a", "a a"],), {"padding": False}, "all rows must have as many tokens; got from 3 to 4"),
        (
            (["a a a a"], ["b b"]),
            {"truncation": "only_second", "max_length": 7},
            "Text 0 has 9 tokens, special ones included; truncation='only_second' cannot take 2 from that text, which",
        ),
        (
            (["a a a a"], ["b b"]),
            {"truncation": "only_first", "max_length": 5},
            "truncation='only_first' cannot take 4 from that text, which has 4",
        ),
        (
            (["a a a a"],),
            {"truncation": True, "max_length": 4, "stride": 2, "return_overflowing_tokens": True},
            r"A window must have more tokens of texts\[0\] than the stride of 2; there is room for 2",
        ),
        (
            (["a a"], ["b b"]),
            {"truncation": True, "max_length": 4, "return_overflowing_tokens": True},
            r"A window must have more tokens of texts\[0\] than the stride of 0; there is room for 0",
        ),
    ],
)
def test_wrong_input(tokenizer: Tokenizer, arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer(*arguments, **options)


def test_half_a_surrogate_pair_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"texts\[0\] is not valid Unicode"):
        tokenizer(["a\ud83d"])


def test_wrong_settings_of_a_folder_are_reported(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"padding_side": "middle"}', encoding="utf-8")
    with pytest.raises(InputError, match="padding_side must be one of 'right', 'left'; got 'middle'"):
        load_tokenizer(folder)(["a"])


def test_the_folder_says_where_to_pad_and_to_cut(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        '{"padding_side": "left", "truncation_side": "left"}', encoding="utf-8"
    )
    batch = load_tokenizer(folder)(["a a b", "b"], max_length=4, truncation=True)
    assert batch.input_ids.tolist() == [[2, 5, 6, 3], [0, 2, 6, 3]]
    load_tokenizer(folder).save_pretrained(folder / "again")
    again = load_tokenizer(folder / "again", "roformer")
    assert again(["a", "a b"]).input_ids.tolist() == [[0, 2, 5, 3], [2, 5, 6, 3]]
    assert again(["a", "a b"], padding_side="right").input_ids.tolist() == [[2, 5, 3, 0], [2, 5, 6, 3]]


def test_windows_say_which_text_they_are_from(tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"truncation": True, "max_length": 5, "stride": 1, "return_overflowing_tokens": True}
    batch = tokenizer(["a a b b b", "b"], **options)
    assert batch.input_ids.tolist() == [[2, 5, 5, 6, 3], [2, 6, 6, 6, 3], [2, 6, 3, 0, 0]]
    assert batch.text_index.tolist() == [0, 0, 1]
    assert batch.sequence_ids.tolist() == [[-1, 0, 0, 0, -1], [-1, 0, 0, 0, -1], [-1, 0, -1, -1, -1]]
    assert batch.offsets[1] == [(0, 0), (4, 5), (6, 7), (8, 9), (0, 0)]


def test_rows_of_one_length_need_no_padding(tokenizer: Tokenizer) -> None:
    assert tokenizer(["a b", "b b"], padding=False).input_ids.shape == (2, 4)
    assert tokenizer(["", ""], add_special_tokens=False).input_ids.shape == (2, 0)
    assert tokenizer(["a"], padding=False, pad_to_multiple_of=8).input_ids.shape == (1, 3)


def test_tokens_and_their_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokenize("a [MASK]b c") == ["a", "[MASK]", "b", "[UNK]"]
    assert tokenizer.convert_tokens_to_ids(["a", "[MASK]", "none"]) == [5, 4, 1]
    with pytest.raises(InputError, match=r"tokens\[1\] must be a str; got int"):
        tokenizer.convert_tokens_to_ids(["a", 5])  # type: ignore[list-item]
    with pytest.raises(InputError, match="one row holds both texts"):
        tokenizer.get_special_tokens_mask([2, 3], [3], already_has_special_tokens=True)


def test_a_complete_row_marks_every_special_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_special_tokens_mask([2, 5, 1, 4, 3, 0], already_has_special_tokens=True) == [1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is made from vocab_file, or from tokenizer_file; got none"),
        ({"vocab_file": "a", "tokenizer_file": "b"}, "got tokenizer_file and vocab_file"),
        ({"vocab_file": "absent.txt"}, "No file at absent.txt"),
        ({"vocab_file": "/"}, "No file at /"),
        ({"vocab_file": "", "additional_special_tokens": "[A]"}, r"must be a list of tokens; got '\[A\]'"),
        ({"added_tokens": {7: "[A]"}}, "added_tokens must give an AddedToken for each id"),
    ],
)
def test_wrong_files_for_a_constructor(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        RoFormerTokenizerFast(**options)


def test_paths_of_another_machine_in_the_config_do_not_matter(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_file": "/gone/tokenizer.json", "vocab_file": "/gone"}', encoding="utf-8"
    )
    assert load_tokenizer(folder).tokenize("a") == ["a"]


@pytest.mark.parametrize("value", ['"[A]"', "5", "[5]", '[{"a": 1}]'])
def test_wrong_additional_special_tokens(folder: Path, value: str) -> None:
    (folder / "tokenizer_config.json").write_text(f'{{"additional_special_tokens": {value}}}', encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json (must hold a list|names a special token)"):
        load_tokenizer(folder)


def test_additional_special_tokens_are_found_and_skipped(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"additional_special_tokens": ["b"]}', encoding="utf-8")
    loaded = load_tokenizer(folder)
    assert loaded.tokenize("aba") == ["a", "b", "a"]
    assert loaded.decode([5, 6, 5]) == "a a"
    (folder / "added_tokens.json").write_text('{"<x>": 7, "<y>": 8}', encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"extra_special_tokens": ["<x>"]}', encoding="utf-8")
    loaded = load_tokenizer(folder)
    assert loaded.decode(loaded(["a<x><y>"]).input_ids[0]) == "a <y>"


@pytest.mark.parametrize("index", [-1, 7])
def test_ids_outside_the_vocabulary(tokenizer: Tokenizer, index: int) -> None:
    with pytest.raises(InputError, match=f"The id {index} is not in the vocabulary of 7 tokens"):
        tokenizer.decode(np.array([5, index]))
    with pytest.raises(InputError):
        tokenizer.tokens([index])


@pytest.mark.parametrize("ids", [["5"], [5.0], 5, None, [[5]], "5"])
def test_what_is_no_row_of_ids(tokenizer: Tokenizer, ids: Any) -> None:
    with pytest.raises(InputError, match="ids must be one row of whole numbers; got"):
        tokenizer.decode(ids)
    with pytest.raises(InputError, match="ids must be one row of whole numbers; got"):
        tokenizer.tokens(ids)


def test_threads_that_truncate_do_not_disturb_others(tokenizer: Tokenizer) -> None:
    def size(index: int) -> int:
        limits: dict[str, Any] = {"max_length": 3 + index % 5, "truncation": True} if index % 2 else {}
        return len(tokenizer(["a b a b a b a b"], **limits).input_ids[0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(size, range(60))) == [3 + index % 5 if index % 2 else 10 for index in range(60)]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (None, TokenizerError, "has no config.json to read the family from"),
        ("{", TokenizerError, "config.json is malformed"),
        ('{"model_type": "bert"}', ConfigError, "model_type is 'bert'"),
    ],
)
def test_folders_without_a_family(folder: Path, config: str | None, error: type[Exception], message: str) -> None:
    (folder / "config.json").unlink() if config is None else (folder / "config.json").write_text(
        config, encoding="utf-8"
    )
    with pytest.raises(error, match=message):
        load_tokenizer(folder)


def test_wrong_folder_or_family(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="No folder at"):
        load_tokenizer(folder / "absent")
    with pytest.raises(TokenizerError, match="no tokenizer for the family 'bert'"):
        load_tokenizer(folder, "bert")
    with pytest.raises(
        TokenizerError, match=r"has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"
    ):
        load_tokenizer(folder, "roberta-prelayernorm")


def test_tokenizer_json_of_another_kind(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save_pretrained(folder)
    with pytest.raises(TokenizerError, match="holds a WordPiece vocabulary; a roberta-prelayernorm tokenizer is a BPE"):
        load_tokenizer(folder, "roberta-prelayernorm")


def test_the_base_install_suffices() -> None:
    code = "import sys, exporter.tokenization as t; print({'torch', 'onnx', 'transformers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"set()"
