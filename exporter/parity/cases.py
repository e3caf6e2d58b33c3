"""The inputs that parity is judged on: seeded, and shaped to hurt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Case", "make_cases"]

BUDGET = 1 << 23  # elements of one output: keeps a 50,000-word vocabulary from making gigabytes of reference


@dataclass(frozen=True)
class Case:
    """One batch of inputs, (B, S) int64 each, and the name that reports call it by."""

    name: str
    inputs: dict[str, NDArray[np.int64]]


def make_cases(
    *,
    input_names: tuple[str, ...],
    vocab_size: int,
    type_vocab_size: int,
    pad_token_id: int,
    max_tokens: int,
    output_width: int,
    seed: int,
) -> list[Case]:
    """Random ids, never padding, in the shapes that break engines.

    Args:
        input_names: Which of input_ids, attention_mask and token_type_ids the model takes.
        vocab_size, type_vocab_size, pad_token_id, max_tokens: Of the model.
        output_width: Numbers per token of the widest output; bounds the longest case.
        seed: The same seed gives the same cases.
    """
    random = np.random.default_rng(seed)
    ordinary = np.setdiff1d(np.arange(vocab_size), [pad_token_id])
    longest = max(1, min(max_tokens, BUDGET // output_width))

    def batch(name: str, lengths: tuple[int, ...], *, left: bool = False) -> Case:
        lengths = tuple(min(length, longest) for length in lengths)
        shape = (len(lengths), max(1, *lengths))
        position = np.arange(shape[1])
        count = np.array(lengths)[:, None]
        mask = (position >= shape[1] - count) if left else (position < count)
        arrays = {
            "input_ids": np.where(mask, random.choice(ordinary, shape), pad_token_id).astype(np.int64),
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": random.integers(0, type_vocab_size, shape) * mask,
        }
        return Case(name, {name: arrays[name] for name in input_names})

    return [
        batch("one token", (1,)),
        batch("odd length", (17, 17, 17)),
        batch("padding on the right", (33, 20, 7, 1)),
        batch("padding on the left", (29, 12, 3, 1), left=True),
        batch("a row of padding alone", (12, 0, 5)),
        batch("a large batch", (3,) * 32),
        batch("the longest input", (longest,)),
    ]
