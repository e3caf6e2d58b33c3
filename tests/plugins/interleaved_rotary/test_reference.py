"""The float64 truth of ``InterleavedRotary``, against another way to write it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from plugins.interleaved_rotary.reference import reference

seeds = st.integers(0, 2**32 - 1)


def problem(
    batch: int, heads: int, length: int, size: int, *, rows: int, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and the angles."""
    random = np.random.default_rng(seed)
    return random.standard_normal((batch, heads, length, size)), random.uniform(-7, 7, (rows, length, size // 2))


def in_polar_coordinates(x: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every pair keeps its radius, and ``angle`` is added to its own."""
    radius, start = np.hypot(x[..., 0::2], x[..., 1::2]), np.arctan2(x[..., 1::2], x[..., 0::2])
    turned = start + angle[:, None]
    return np.stack([radius * np.cos(turned), radius * np.sin(turned)], axis=-1).reshape(x.shape)


@pytest.mark.parametrize("rows", ["one", "batch"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (2, 3, 5, 6), (3, 1, 1, 10), (1, 2, 9, 14)])
def test_it_turns_every_pair(sizes: tuple[int, int, int, int], rows: str) -> None:
    x, angle = problem(*sizes, rows=1 if rows == "one" else sizes[0])
    found = reference(x, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(found, in_polar_coordinates(x, angle), rtol=0, atol=1e-13)


def test_it_reads_its_inputs_in_any_dtype_and_layout() -> None:
    x, angle = problem(2, 3, 5, 6, rows=1)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    narrow = x.astype(np.float16)
    expected = reference(narrow.astype(np.float64), cos.astype(np.float64), sin.astype(np.float64))
    found = reference(narrow.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3), cos, sin)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


def test_a_quarter_turn_counts_from_the_first_element_to_the_second() -> None:
    x: NDArray[Any] = np.array([[[[1.0, 0.0, 0.0, 2.0]]]])
    zero, one = np.zeros((1, 1, 2)), np.ones((1, 1, 2))
    assert reference(x, zero, one).ravel().tolist() == [0, 1, -2, 0]


@given(seed=seeds, length=st.integers(1, 5), pairs=st.integers(1, 5))
def test_it_keeps_the_length_of_every_pair(seed: int, length: int, pairs: int) -> None:
    x, angle = problem(2, 3, length, 2 * pairs, rows=2, seed=seed)
    found = reference(x, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(
        np.hypot(found[..., 0::2], found[..., 1::2]), np.hypot(x[..., 0::2], x[..., 1::2]), rtol=1e-12
    )


@given(seed=seeds)
def test_turning_back_gives_what_was_there(seed: int) -> None:
    x, angle = problem(2, 2, 3, 6, rows=1, seed=seed)
    there = reference(x, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(reference(there, np.cos(-angle), np.sin(-angle)), x, rtol=0, atol=1e-12)
