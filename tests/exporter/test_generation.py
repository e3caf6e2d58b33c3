"""The loop that generates, and the draw, against transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from exporter.engines import Arrays
from exporter.errors import InputError, UserError
from exporter.generation import Sampling, generate, probabilities

WORDS = 6


def uniform(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """An engine that finds every word as good as any other."""
    return {"logits": np.zeros((*inputs["input_ids"].shape, WORDS), np.float32)}


def draw(sampling: Sampling, rows: int = 1, **more: Any) -> list[list[int]]:
    inputs = {"input_ids": np.zeros((rows, 2), np.int64), "attention_mask": np.ones((rows, 2), np.int64)}
    options: dict[str, Any] = {"eos_token_ids": (), "pad_token_id": 0, "max_tokens": 1000} | more
    return [row.ids for row in generate(uniform, inputs, sampling=sampling, **options)]


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
)
def test_probabilities_are_those_of_transformers(
    transformers: Any, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = 3 * np.random.default_rng(seed).standard_normal(11).astype(np.float32)
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    ids = torch.zeros((1, 1), dtype=torch.int64)
    scores = transformers.TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = transformers.TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = transformers.TopPLogitsWarper(top_p)(ids, scores)
    found = probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    np.testing.assert_allclose(found, scores.softmax(-1)[0].numpy(), rtol=0, atol=1e-12)  # both in float64


def test_draws_follow_the_probabilities() -> None:
    [ids] = draw(Sampling(max_new_tokens=900, temperature=1.0))
    counts = np.bincount(ids, minlength=WORDS)
    # 150 expected of each; the standard deviation is 11, so that 5 of them are less than one false alarm in a million
    assert (np.abs(counts - 150) < 55).all()


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    first, again, other = (draw(Sampling(max_new_tokens=20, temperature=1.0, seed=seed), rows=2) for seed in (7, 7, 8))
    assert first == again != other
    assert first[0] != first[1]


def test_rows_end_alone_and_the_rest_goes_on() -> None:
    asked: list[NDArray[Any]] = []

    def countdown(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        asked.append(inputs["input_ids"])
        ids = inputs["input_ids"]
        return {"logits": -np.abs(np.arange(WORDS) - ids[..., None] + 1).astype(np.float32)}

    inputs = {"input_ids": np.array([[5], [3]]), "attention_mask": np.ones((2, 1), np.int64)}
    first, second = generate(countdown, inputs, sampling=Sampling(), eos_token_ids=[1], pad_token_id=4, max_tokens=99)
    assert (first.ids, first.finish_reason) == ([4, 3, 2, 1], "eos")
    assert (second.ids, second.finish_reason) == ([2, 1], "eos")
    assert [row.tolist() for row in asked] == [[[5], [3]], [[4], [2]], [[3], [1]], [[2], [4]]], "padding after the end"


def test_positions_are_counted_anew_for_every_step() -> None:
    asked: list[set[str]] = []

    def answer(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        asked.append(set(inputs))
        return uniform(inputs)

    inputs = {name: np.ones((1, 2), np.int64) for name in ("input_ids", "attention_mask", "position_ids")}
    generate(answer, inputs, sampling=Sampling(max_new_tokens=2), eos_token_ids=(), pad_token_id=0, max_tokens=9)
    assert asked == [{"input_ids", "attention_mask", "position_ids"}, {"input_ids", "attention_mask"}]


def test_padding_on_the_right_is_refused() -> None:
    inputs = {"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    with pytest.raises(InputError, match="Prompts must be padded on the left"):
        generate(uniform, inputs, sampling=Sampling(), eos_token_ids=(), pad_token_id=0, max_tokens=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more, and finite; got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"temperature": float("inf")}, "temperature must be 0 or more, and finite"),
        ({"temperature": 1.0, "top_k": -1}, "top_k must be 0 or more; got -1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be above 0 and at most 1; got 0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"top_k": 5}, "temperature 0 draws nothing: give a temperature"),
        ({"top_p": 0.5}, "temperature 0 draws nothing: give a temperature"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)
