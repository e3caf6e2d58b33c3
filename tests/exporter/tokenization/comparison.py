"""One comparison of a tokenizer with the one of transformers, for all kinds of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exporter.tokenization import Tokenizer

__all__ = ["MANY", "WAYS", "assert_all_same", "assert_same", "halves"]

MANY = 5200
# Ways to encode pairs of a long and a short text.
WAYS: dict[str, dict[str, Any]] = {
    "longest": {},
    "no special tokens": {"add_special_tokens": False},
    "left": {"padding_side": "left", "pad_to_multiple_of": 16},
    "max_length": {"padding": "max_length", "max_length": 64, "truncation": True},
    "max_length, multiple, left": {
        "padding": "max_length",
        "max_length": 40,
        "truncation": "longest_first",
        "pad_to_multiple_of": 20,
        "padding_side": "left",
    },
    "odd": {"truncation": True, "max_length": 17},
    "even, no special tokens": {"truncation": True, "max_length": 10, "add_special_tokens": False},
    "little room": {"truncation": True, "max_length": 8},
    "only_first": {"truncation": "only_first", "max_length": 60},
    "only_first, left": {"truncation": "only_first", "max_length": 60, "truncation_side": "left"},
    "longest_first, left": {"truncation": True, "max_length": 13, "truncation_side": "left"},
    "windows": {"truncation": "only_first", "max_length": 60, "stride": 4, "return_overflowing_tokens": True},
    "windows, left": {
        "truncation": "only_first",
        "max_length": 60,
        "truncation_side": "left",
        "padding_side": "left",
        "return_overflowing_tokens": True,
    },
    "windows over both": {"truncation": True, "max_length": 24, "stride": 2, "return_overflowing_tokens": True},
}


def halves(texts: list[str], tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """150 pairs for ``WAYS``, of 300 texts: the first ones are long, the second ones shorter than 40 tokens."""
    sizes = tokenizer(texts, add_special_tokens=False).attention_mask.sum(1)
    short = [text for text, size in zip(texts, sizes, strict=True) if size < 40]
    return [" ".join(texts[index : index + 8]) for index in range(150)], short[:150]


def assert_all_same(ours: Tokenizer, oracle: Any, texts: Sequence[str]) -> None:
    """``assert_same`` for very many texts: those of like lengths together, for padding takes time."""
    texts = sorted(texts, key=len)
    for start in range(0, len(texts), 200):
        assert_same(ours, oracle, texts[start : start + 200])


def assert_same(
    ours: Tokenizer, oracle: Any, texts: Sequence[str], pairs: Sequence[str] | None = None, **options: Any
) -> None:
    """Arrays, offsets, the texts that rows are from, tokens and decoded texts are equal."""
    batch = ours(texts, pairs, **options)
    side, oracle.truncation_side = oracle.truncation_side, options.pop("truncation_side", "right")
    expected = oracle(
        list(texts),
        None if pairs is None else list(pairs),
        **{"padding": True, **options},
        return_tensors="np",
        return_token_type_ids=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    oracle.truncation_side = side
    for name in ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"):
        assert getattr(batch, name).dtype == "int64"
        assert getattr(batch, name).tolist() == expected[name].tolist(), name
    assert [[list(span) for span in row] for row in batch.offsets] == expected["offset_mapping"].tolist()
    rows = range(len(batch.input_ids))
    sequences = [[-1 if index is None else index for index in expected.sequence_ids(row)] for row in rows]
    assert batch.sequence_ids.tolist() == sequences
    sources = expected.get("overflow_to_sample_mapping")
    assert batch.text_index.tolist() == (list(range(len(texts))) if sources is None else sources.tolist())
    for row in batch.input_ids:
        assert ours.decode(row, skip_special_tokens=False) == oracle.decode(row)
        assert ours.decode(row) == oracle.decode(row, skip_special_tokens=True)
        assert ours.decode(row, clean_up_tokenization_spaces=True) == oracle.decode(
            row, skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        assert ours.tokens(row) == oracle.convert_ids_to_tokens(row.tolist())
