"""The float64 truth of ``ScaledDotProductAttention``, against that of PyTorch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from plugins.scaled_dot_product_attention.reference import reference

Sizes = tuple[int, int, int, int, int]
LOWEST = float(np.finfo(np.float32).min)


def problem(sizes: Sizes, mask: tuple[int, ...] | None = None, seed: int = 0) -> list[NDArray[np.float64]]:
    """q, k, v and a mask; the sizes are B, H, S, K and D."""
    random = np.random.default_rng(seed)
    batch, heads, length, keys, size = sizes
    shapes = [(batch, heads, length, size), *[(batch, heads, keys, size)] * 2, mask or (batch, heads, length, keys)]
    return [random.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("scale", [1.0, 0.25, -0.3])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (3, 1, 1, 9, 6), (1, 2, 4, 1, 2)])
def test_it_equals_that_of_pytorch(sizes: Sizes, scale: float) -> None:
    arrays = problem(sizes)
    q, k, v, mask = map(torch.from_numpy, arrays)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    for zero_masked_rows in (0, 1):
        found = reference(*arrays, scale=scale, zero_masked_rows=zero_masked_rows)
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("ones", list(itertools.product([False, True], repeat=4)))
def test_a_mask_may_have_one_of_anything(ones: tuple[bool, ...]) -> None:
    shape = tuple(1 if one else size for one, size in zip(ones, (2, 3, 5, 7), strict=True))
    q, k, v, mask = problem((2, 3, 5, 7, 4), shape)
    found = reference(q, k, v, mask, scale=0.5, zero_masked_rows=0)
    whole = np.broadcast_to(mask, (2, 3, 5, 7)).copy()
    np.testing.assert_array_equal(found, reference(q, k, v, whole, scale=0.5, zero_masked_rows=0))


@pytest.mark.parametrize("zero_masked_rows", [0, 1])
def test_a_row_that_attends_to_nothing(zero_masked_rows: int) -> None:
    """Zeros or NaN where every score is -inf, the mean of the values where all are as low; nothing else changes."""
    q, k, v, mask = problem((3, 2, 4, 5, 6), (3, 1, 4, 5))
    other = reference(q, k, v, mask, scale=0.5, zero_masked_rows=zero_masked_rows)
    mask[0, 0, 1], mask[1, 0, 2] = -np.inf, LOWEST
    found = reference(q, k, v, mask, scale=0.0, zero_masked_rows=zero_masked_rows)
    np.testing.assert_array_equal(found[0, :, 1], 0.0 if zero_masked_rows else np.nan)
    np.testing.assert_allclose(found[1, :, 2], v[1].mean(axis=1), rtol=0, atol=1e-12)
    found = reference(q, k, v, mask, scale=0.5, zero_masked_rows=zero_masked_rows)
    rest = np.ones((3, 4), dtype=bool)
    rest[0, 1] = rest[1, 2] = False
    np.testing.assert_array_equal(found.swapaxes(1, 2)[rest], other.swapaxes(1, 2)[rest])


def test_zeros_are_those_of_pytorch_with_a_boolean_mask() -> None:
    *arrays, numbers = problem((2, 3, 4, 5, 6))
    seen = numbers > 0
    seen[:, :, 1] = False
    mask = np.where(seen, 0, -np.inf)
    q, k, v, torch_mask = map(torch.from_numpy, (*arrays, seen))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, torch_mask)
    found = reference(arrays[0], arrays[1], arrays[2], mask, scale=6**-0.5, zero_masked_rows=1)
    assert not found[:, :, 1].any()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-13)


def test_what_is_masked_does_not_matter() -> None:
    q, k, v, mask = problem((2, 3, 4, 5, 6), (2, 1, 1, 5))
    mask[..., 3:] = -np.inf
    found = reference(q, k, v, mask, scale=0.5, zero_masked_rows=0)
    np.testing.assert_allclose(
        found, reference(q, k[:, :, :3], v[:, :, :3], mask[..., :3], scale=0.5, zero_masked_rows=0), rtol=0, atol=1e-13
    )


def test_one_key_gives_its_value() -> None:
    q, k, v, mask = problem((2, 3, 4, 1, 6))
    found = reference(q, k, v, mask, scale=0.5, zero_masked_rows=0)
    np.testing.assert_array_equal(found, np.broadcast_to(v, q.shape))


def test_it_computes_in_float64_whatever_comes_in() -> None:
    arrays = [array.astype(np.float16) for array in problem((2, 3, 4, 5, 6))]
    found = reference(*arrays, scale=0.5, zero_masked_rows=0)
    wide = reference(*(array.astype(np.float64) for array in arrays), scale=0.5, zero_masked_rows=0)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, wide)


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-1000, 1000))
def test_a_shift_of_a_row_of_scores_changes_nothing(seed: int, shift: float) -> None:
    q, k, v, mask = problem((2, 2, 3, 4, 5), seed=seed)
    found = reference(q, k, v, mask, scale=0.5, zero_masked_rows=0)
    shifted = reference(q, k, v, mask + shift, scale=0.5, zero_masked_rows=0)
    np.testing.assert_allclose(shifted, found, rtol=0, atol=1e-10)
