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
from exporter.tokenization import RobertaTokenizer, RoFormerTokenizer, Tokenizer, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    (tmp_path / "config.json").write_text('{"model_type": "roformer"}')
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def test_config_json_names_the_family(folder: Path) -> None:
    assert isinstance(load_tokenizer(str(folder)), RoFormerTokenizer)
    (folder / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "config.json").write_text('{"model_type": "roberta-prelayernorm"}')
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
    assert tokenizer(["a a b b"], max_length=5, truncate=True).input_ids.tolist() == [[2, 5, 5, 6, 3]]
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
        ((["a"], ["b"]), {"max_length": 2, "truncate": True}, "room for 3 special tokens; got 2"),
        ((["a"],), {"truncate": True}, "needs the max_length"),
    ],
)
def test_wrong_input(tokenizer: Tokenizer, arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer(*arguments, **options)


def test_half_a_surrogate_pair_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"texts\[0\] is not valid Unicode"):
        tokenizer(["a\ud83d"])


@pytest.mark.parametrize("index", [-1, 7])
def test_ids_outside_the_vocabulary(tokenizer: Tokenizer, index: int) -> None:
    with pytest.raises(InputError, match=f"The id {index} is not in the vocabulary of 7 tokens"):
        tokenizer.decode(np.array([5, index]))
    with pytest.raises(InputError):
        tokenizer.tokens([index])


def test_threads_that_truncate_do_not_disturb_others(tokenizer: Tokenizer) -> None:
    def size(index: int) -> int:
        limits: dict[str, Any] = {"max_length": 3 + index % 5, "truncate": True} if index % 2 else {}
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
    (folder / "config.json").unlink() if config is None else (folder / "config.json").write_text(config)
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
    tokenizer.save(folder)
    with pytest.raises(TokenizerError, match="holds a WordPiece vocabulary; a roberta-prelayernorm tokenizer is a BPE"):
        load_tokenizer(folder, "roberta-prelayernorm")


def test_the_base_install_suffices() -> None:
    code = "import sys, exporter.tokenization as t; print({'torch', 'onnx', 'transformers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"set()"
