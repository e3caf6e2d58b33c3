"""The float64 truth of ``ResidualLayerNorm``, against that of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from plugins.residual_layer_norm.reference import reference


def problem(batch: int, length: int, width: int, seed: int = 0) -> list[NDArray[np.float64]]:
    """x, residual, bias, gamma and beta."""
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) for shape in [(batch, length, width)] * 2 + [(width,)] * 3]


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1])
@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 5, 7), (3, 1, 48), (1, 9, 33)])
def test_it_equals_that_of_pytorch(sizes: tuple[int, int, int], epsilon: float) -> None:
    arrays = problem(*sizes)
    x, residual, bias, gamma, beta = map(torch.from_numpy, arrays)
    y, s = reference(*arrays, epsilon=epsilon)
    expected = torch.nn.functional.layer_norm(x + bias + residual, sizes[-1:], gamma, beta, epsilon)
    np.testing.assert_array_equal(s, (x + bias + residual).numpy())
    np.testing.assert_allclose(y, expected.numpy(), rtol=0, atol=1e-12)


def test_it_computes_in_float64_whatever_comes_in() -> None:
    arrays = [array.astype(np.float16) for array in problem(2, 3, 5)]
    y, s = reference(*arrays, epsilon=1e-5)
    wide_y, wide_s = reference(*(array.astype(np.float64) for array in arrays), epsilon=1e-5)
    assert y.dtype == s.dtype == np.float64
    np.testing.assert_array_equal(y, wide_y)
    np.testing.assert_array_equal(s, wide_s)


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-100, 100), scale=st.floats(0.1, 10))
def test_neither_a_shift_nor_a_scale_of_the_sum_changes_the_result(seed: int, shift: float, scale: float) -> None:
    x, residual, bias, gamma, beta = problem(2, 3, 6, seed)
    y, _ = reference(x, residual, bias, gamma, beta, epsilon=0.0)
    changed, _ = reference(scale * x + shift, scale * residual, scale * bias, gamma, beta, epsilon=0.0)
    np.testing.assert_allclose(changed, y, rtol=0, atol=1e-8)


def test_a_row_without_variance_becomes_beta() -> None:
    x, _, bias, gamma, beta = problem(1, 2, 4)
    y, _ = reference(x, 3.0 - x - bias, bias, gamma, beta, epsilon=1e-12)
    np.testing.assert_allclose(y, np.broadcast_to(beta, y.shape), atol=1e-8)


def test_a_bias_is_as_good_as_a_term_that_holds_it() -> None:
    x, residual, bias, gamma, beta = problem(2, 3, 6)
    found = reference(x, residual, bias, gamma, beta, epsilon=1e-5)
    expected = reference(x + bias, residual, np.zeros(6), gamma, beta, epsilon=1e-5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
