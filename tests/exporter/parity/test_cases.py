"""The inputs of parity: seeded, within the model's limits, and with the rows that break engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.parity import Case, make_cases
from exporter.parity.cases import BUDGET

NAMES = ("input_ids", "attention_mask", "token_type_ids")
MODEL: dict[str, Any] = {
    "input_names": NAMES,
    "vocab_size": 41,
    "type_vocab_size": 2,
    "pad_token_id": 1,
    "max_tokens": 128,
    "output_width": 41,
    "seed": 0,
}


def lengths(case: Case) -> list[int]:
    return case.inputs["attention_mask"].sum(axis=1).tolist()  # type: ignore[no-any-return]  # ints


def by_name(**values: Any) -> dict[str, Case]:
    cases = make_cases(**MODEL | values)
    assert len({case.name for case in cases}) == len(cases), "the reference is kept by name"
    return {case.name: case for case in cases}


def test_the_lengths_that_break_engines() -> None:
    assert {name: lengths(case) for name, case in by_name().items()} == {
        "one token": [1],
        "odd length": [17] * 3,
        "padding on the right": [33, 20, 7, 1],
        "padding on the left": [29, 12, 3, 1],
        "a row of padding alone": [12, 0, 5],
        "a large batch": [3] * 32,
        "the longest input": [128],
    }


def test_padding_is_on_the_side_that_the_name_says() -> None:
    cases = by_name()
    right = cases["padding on the right"].inputs["attention_mask"]
    left = cases["padding on the left"].inputs["attention_mask"]
    assert (np.diff(right, axis=1) <= 0).all()
    assert (np.diff(left, axis=1) >= 0).all()


def test_ids_and_types_take_every_value() -> None:
    cases = make_cases(**MODEL | {"vocab_size": 7, "type_vocab_size": 3})
    real = {
        name: np.unique(np.concatenate([case.inputs[name][case.inputs["attention_mask"] == 1] for case in cases]))
        for name in NAMES
    }
    assert real["input_ids"].tolist() == [0, 2, 3, 4, 5, 6]
    assert real["token_type_ids"].tolist() == [0, 1, 2]


def test_the_same_seed_gives_the_same_cases_and_another_one_others() -> None:
    first, again, other = (make_cases(**MODEL | {"seed": seed}) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        assert one.name == two.name
        for name in NAMES:
            np.testing.assert_array_equal(one.inputs[name], two.inputs[name])
    assert any(
        not np.array_equal(a.inputs["input_ids"], b.inputs["input_ids"]) for a, b in zip(first, other, strict=True)
    )


@pytest.mark.parametrize("names", [NAMES[:2], NAMES])
def test_only_the_inputs_of_the_model(names: tuple[str, ...]) -> None:
    cases = make_cases(**MODEL | {"input_names": names, "type_vocab_size": len(names) - 1})
    assert {tuple(case.inputs) for case in cases} == {names}


def test_a_wide_output_shortens_the_longest_input() -> None:
    wide = by_name(max_tokens=1536, output_width=BUDGET // 100)
    assert lengths(wide["the longest input"]) == [100]
    assert lengths(by_name(max_tokens=1536, output_width=3)["the longest input"]) == [1536]
    assert lengths(by_name(output_width=2 * BUDGET)["the longest input"]) == [1]


@given(
    vocab_size=st.integers(2, 60),
    pad=st.integers(0, 59),
    types=st.integers(1, 3),
    max_tokens=st.integers(1, 60),
    seed=st.integers(0, 2**63),
)
def test_every_model_can_take_its_cases(vocab_size: int, pad: int, types: int, max_tokens: int, seed: int) -> None:
    pad %= vocab_size
    cases = by_name(
        vocab_size=vocab_size, pad_token_id=pad, type_vocab_size=types, max_tokens=max_tokens, output_width=5, seed=seed
    )
    for case in cases.values():
        ids, mask, kinds = (case.inputs[name] for name in NAMES)
        assert ids.shape == mask.shape == kinds.shape
        assert {array.dtype for array in case.inputs.values()} == {np.dtype(np.int64)}
        assert 1 <= ids.shape[1] <= max_tokens
        assert set(np.unique(mask)) <= {0, 1}
        assert (ids[mask == 1] != pad).all()
        assert (ids[mask == 0] == pad).all()
        assert ids.min() >= 0
        assert ids.max() < vocab_size
        assert kinds.min() >= 0
        assert kinds.max() < types
        assert not kinds[mask == 0].any()
    assert 0 in lengths(cases["a row of padding alone"])
    assert max(max(lengths(case)) for case in cases.values()) == max_tokens
