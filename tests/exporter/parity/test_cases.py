"""The inputs of parity: seeded, within the model's limits, and with the rows that break engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.models import RobertaPreLayerNormConfig, RoFormerConfig
from exporter.parity import Case, make_cases
from exporter.parity.cases import BUDGET
from exporter.tasks import TASKS, TaskName, TensorSpec

NAMES = ("input_ids", "attention_mask", "token_type_ids")
SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
}
MODEL: dict[str, Any] = {"pad_token_id": 1, "max_tokens": 128, "output_width": 41, "seed": 0}
CROSS: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True}
GENERATION: TaskName = "text-generation"


def specs_of(task: TaskName = "fill-mask", *, position_ids: bool = False, **values: Any) -> tuple[TensorSpec, ...]:
    config = (RobertaPreLayerNormConfig if position_ids else RoFormerConfig)(**SIZES | values)
    return TASKS[task].input_specs(config, position_ids=position_ids)


ROWS, CHOICES = specs_of(), specs_of("multiple-choice")
DECODER = specs_of(GENERATION, is_decoder=True)
POSITIONS = specs_of(position_ids=True)


def lengths(case: Case) -> list[int]:
    return case.inputs["attention_mask"].sum(axis=-1).tolist()  # type: ignore[no-any-return]  # ints


def by_name(specs: tuple[TensorSpec, ...] = ROWS, **values: Any) -> dict[str, Case]:
    cases = make_cases(specs, **MODEL | values)
    assert len({case.name for case in cases}) == len(cases), "the reference is kept by name"
    assert not any("/" in case.name for case in cases), "which is a path there"
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


def test_ids_types_and_positions_take_every_value() -> None:
    cases = make_cases(
        specs_of(position_ids=True, vocab_size=7, type_vocab_size=3, max_position_embeddings=11), **MODEL
    )
    real = {
        name: np.unique(np.concatenate([case.inputs[name][case.inputs["attention_mask"] == 1] for case in cases]))
        for name in ("input_ids", "token_type_ids", "position_ids")
    }
    assert real["input_ids"].tolist() == [0, 2, 3, 4, 5, 6]
    assert real["token_type_ids"].tolist() == [0, 1, 2]
    assert real["position_ids"].tolist() == list(range(11)), "every row of the table"


@pytest.mark.parametrize("specs", [ROWS, POSITIONS, specs_of(GENERATION, **CROSS)])
def test_the_same_seed_gives_the_same_cases_and_another_one_others(specs: tuple[TensorSpec, ...]) -> None:
    first, again, other = (make_cases(specs, **MODEL | {"seed": seed}) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        assert (one.name, one.follows) == (two.name, two.follows)
        for name, array in one.inputs.items():
            np.testing.assert_array_equal(array, two.inputs[name])
    for spec in specs:
        is_mask, is_cache = spec.name.endswith("mask"), spec.name.startswith("past_key_values.")
        assert (is_mask or is_cache) == all(
            np.array_equal(a.inputs[spec.name], b.inputs[spec.name]) for a, b in zip(first, other, strict=True)
        ), spec.name


@pytest.mark.parametrize(
    "specs", [ROWS, specs_of(type_vocab_size=1), CHOICES, DECODER, POSITIONS, specs_of(GENERATION, **CROSS)]
)
def test_the_inputs_of_the_model_in_their_order(specs: tuple[TensorSpec, ...]) -> None:
    for case in make_cases(specs, **MODEL):
        assert list(case.inputs) == [spec.name for spec in specs]
        assert {name: str(array.dtype) for name, array in case.inputs.items()} == {s.name: s.dtype for s in specs}


def test_a_wide_output_shortens_the_longest_input() -> None:
    wide = by_name(max_tokens=1536, output_width=BUDGET // 100)
    assert lengths(wide["the longest input"]) == [100]
    assert lengths(by_name(max_tokens=1536, output_width=3)["the longest input"]) == [1536]
    assert lengths(by_name(output_width=2 * BUDGET)["the longest input"]) == [1]


def test_a_wide_output_shortens_the_longest_prompt() -> None:
    wide = by_name(DECODER, max_tokens=1536, output_width=BUDGET // 100)
    assert lengths(wide["the longest input"]) == [99]
    assert lengths(wide["a step after the longest input"]) == [100]


# choices


def test_choices_are_an_axis_after_the_batch() -> None:
    shapes = {name: case.inputs["input_ids"].shape for name, case in by_name(CHOICES).items()}
    assert shapes == {
        "one token": (1, 1, 1),
        "odd length": (1, 3, 17),
        "padding on the right": (2, 2, 33),
        "padding on the left": (2, 2, 29),
        "a row of padding alone": (1, 3, 12),
        "a large batch": (16, 2, 3),
        "the longest input": (1, 1, 128),
    }
    rows, choices = by_name(), by_name(CHOICES)
    for name, case in choices.items():
        assert lengths(case) == np.reshape(lengths(rows[name]), shapes[name][:2]).tolist()
        for array in case.inputs.values():
            assert array.shape == shapes[name]


# caches


def test_a_prompt_has_nothing_cached() -> None:
    for case in by_name(DECODER).values():
        if case.follows is None:
            rows = case.inputs["input_ids"].shape[0]
            caches = [array for name, array in case.inputs.items() if name.startswith("past_key_values.")]
            assert [array.shape for array in caches] == [(rows, 4, 0, 6)] * 4


def test_steps_follow_the_cases_before() -> None:
    follows = {name: case.follows for name, case in by_name(DECODER).items() if case.follows}
    assert follows == {
        f"{what} after {before}": before
        for before in (
            "one token",
            "odd length",
            "padding on the right",
            "padding on the left",
            "a row of padding alone",
            "the longest input",
        )
        for what in ("a step", "5 tokens")
        if (what, before) != ("5 tokens", "the longest input")  # which leaves one place
    }


@pytest.mark.parametrize("specs", [DECODER, specs_of(GENERATION, position_ids=True, **CROSS)])
def test_a_step_goes_on_with_new_tokens_and_the_masks_of_before(specs: tuple[TensorSpec, ...]) -> None:
    cases = by_name(specs)
    for name, case in cases.items():
        if case.follows is None:
            continue
        before = cases[case.follows].inputs
        length = 1 if name.startswith("a step") else 5
        rows, known = before["attention_mask"].shape
        mask = case.inputs["attention_mask"]
        assert mask.shape == (rows, known + length)
        np.testing.assert_array_equal(mask[:, :known], before["attention_mask"])
        assert mask[:, known:].all(), "padding does not come in the midst of a text"
        for tokens in ("input_ids", "token_type_ids", "position_ids"):
            if tokens in case.inputs:
                assert case.inputs[tokens].shape == (rows, length)
        assert (case.inputs["input_ids"] != 1).all()
        for kept in ("encoder_hidden_states", "encoder_attention_mask"):
            if kept in before:
                np.testing.assert_array_equal(case.inputs[kept], before[kept])


def test_a_decoder_with_one_position_takes_no_step() -> None:
    cases = by_name(DECODER, max_tokens=1)
    assert not any(case.follows for case in cases.values())
    assert {case.inputs["input_ids"].shape[1] for case in cases.values()} == {1}


def test_only_decoders_take_steps() -> None:
    assert not any(case.follows for specs in (ROWS, CHOICES, POSITIONS) for case in by_name(specs).values())


# encoders


def test_rows_see_all_some_and_nothing_of_the_encoder() -> None:
    for case in by_name(specs_of("feature-extraction", **CROSS)).values():
        states, mask = case.inputs["encoder_hidden_states"], case.inputs["encoder_attention_mask"]
        rows = case.inputs["input_ids"].shape[0]
        assert states.shape == (rows, mask.shape[1], 24)
        assert (np.diff(mask, axis=1) <= 0).all()
        seen = mask.sum(axis=1).tolist()
        assert seen == sorted(seen, reverse=True)
        assert seen[0] == mask.shape[1]
        if rows > 1:
            assert seen[-1] == 0
        if rows > 2:
            assert 0 < seen[1] < mask.shape[1]
        assert 0.5 < states.std() < 2.0, "as large as what a norm gives"


@given(
    task=st.sampled_from(sorted(TASKS)),
    vocab_size=st.integers(2, 60),
    pad=st.integers(0, 59),
    types=st.integers(1, 3),
    max_tokens=st.integers(1, 60),
    crosses=st.booleans(),
    positions=st.booleans(),
    seed=st.integers(0, 2**63),
)
def test_every_model_can_take_its_cases(
    task: TaskName,
    vocab_size: int,
    pad: int,
    types: int,
    max_tokens: int,
    crosses: bool,
    positions: bool,
    seed: int,
) -> None:
    pad %= vocab_size
    values: dict[str, Any] = {"is_decoder": True, "add_cross_attention": crosses, "type_vocab_size": types}
    values |= {"vocab_size": vocab_size, "pad_token_id": pad, "max_position_embeddings": max_tokens + pad + 1}
    specs = specs_of(task, position_ids=positions, **values)
    cases = by_name(specs, pad_token_id=pad, max_tokens=max_tokens, output_width=5, seed=seed)
    for case in cases.values():
        sizes: dict[str, int] = {}
        for spec in specs:
            array = case.inputs[spec.name]
            assert array.ndim == len(spec.axes)
            if case.follows is None or not spec.name.startswith("past_key_values."):  # else it is filled in later
                for axis, size in zip(spec.axes, array.shape, strict=True):
                    assert size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
            if spec.limit is not None:
                assert array.min() >= 0
                assert array.max() < spec.limit
        assert 1 <= sizes["sequence"] <= max_tokens
        mask = case.inputs["attention_mask"]
        assert mask.shape[-1] <= max_tokens
        new = mask[..., mask.shape[-1] - sizes["sequence"] :]
        ids = case.inputs["input_ids"]
        assert (ids[new == 1] != pad).all()
        assert (ids[new == 0] == pad).all()
        for name in ("token_type_ids", "position_ids"):
            assert not case.inputs.get(name, np.zeros_like(new))[new == 0].any()
    assert 0 in np.ravel(lengths(cases["a row of padding alone"]))
    assert max(np.max(lengths(case)) for case in cases.values()) == max_tokens
