"""The body of ``ScaledDotProductAttention`` in standard ops, in two runtimes, against the float64 truth."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.ops import SCALED_DOT_PRODUCT_ATTENTION

EvaluateBody = Callable[..., list[NDArray[Any]]]
Sizes = tuple[int, int, int, int, int]

TOLERANCE = SCALED_DOT_PRODUCT_ATTENTION.contract.float32_tolerance
LOWEST = float(np.finfo(np.float32).min)


def problem(sizes: Sizes, dtype: type = np.float32, mask: tuple[int, ...] = (1, 1, 1, 1)) -> list[NDArray[Any]]:
    """q, k, v and a mask, the latter in float32, as the contract says; the sizes are B, H, S, K and D."""
    random = np.random.default_rng(0)
    batch, heads, length, keys, size = sizes
    shapes = [(batch, heads, length, size), *[(batch, heads, keys, size)] * 2]
    operands: list[NDArray[Any]] = [random.standard_normal(shape).astype(dtype) for shape in shapes]
    return [*operands, random.standard_normal(mask).astype(np.float32)]


def rounded_between(q: Any, k: Any, v: Any, mask: Any, *, scale: float) -> NDArray[np.float64]:
    """The truth, with the roundings to half precision that the contract leaves: of products, and of weights."""
    product = ((q * q.dtype.type(scale)).astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)).astype(q.dtype)
    scores = product.astype(np.float64) + mask
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    result: NDArray[np.float64] = weights.astype(q.dtype).astype(np.float64) @ v.astype(np.float64)
    return result


@pytest.mark.parametrize("zero_masked_rows", [0, 1])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (3, 1, 1, 9, 64), (1, 2, 4, 1, 2), (1, 2, 3, 40, 1)]
)
def test_it_is_as_good_as_float32(evaluate_body: EvaluateBody, sizes: Sizes, zero_masked_rows: int) -> None:
    arrays = problem(sizes, mask=(sizes[0], sizes[1], sizes[2], sizes[3]))
    attributes = {"scale": sizes[-1] ** -0.5, "zero_masked_rows": zero_masked_rows}
    (found,) = evaluate_body(SCALED_DOT_PRODUCT_ATTENTION, arrays, **attributes)
    truth = SCALED_DOT_PRODUCT_ATTENTION.reference(*arrays, **attributes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (3, 1, 1, 9, 64), (1, 2, 4, 1, 2)])
def test_half_precision_is_rounded_no_more_than_it_must(evaluate_body: EvaluateBody, sizes: Sizes) -> None:
    """Twice the error of the same roundings of the truth, at the worst element: which way one falls is chance."""
    arrays = problem(sizes, np.float16, (sizes[0], 1, 1, sizes[3]))
    scale = sizes[-1] ** -0.5
    (found,) = evaluate_body(SCALED_DOT_PRODUCT_ATTENTION, arrays, scale=scale, zero_masked_rows=0)
    truth = SCALED_DOT_PRODUCT_ATTENTION.reference(*arrays, scale=scale, zero_masked_rows=0)
    same = rounded_between(*arrays, scale=scale).astype(np.float16)
    assert found.dtype == np.float16
    assert np.abs(found - truth).max() <= 2 * np.abs(same - truth).max() + TOLERANCE


@pytest.mark.parametrize("ones", list(itertools.product([False, True], repeat=4)))
def test_a_mask_may_have_one_of_anything(evaluate_body: EvaluateBody, ones: tuple[bool, ...]) -> None:
    shape = tuple(1 if one else size for one, size in zip(ones, (2, 3, 5, 7), strict=True))
    arrays = problem((2, 3, 5, 7, 4), mask=shape)
    (found,) = evaluate_body(SCALED_DOT_PRODUCT_ATTENTION, arrays, scale=0.5, zero_masked_rows=1)
    truth = SCALED_DOT_PRODUCT_ATTENTION.reference(*arrays, scale=0.5, zero_masked_rows=1)
    np.testing.assert_allclose(found, truth, rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # -inf less -inf
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("zero_masked_rows", [0, 1])
def test_a_row_that_attends_to_nothing(evaluate_body: EvaluateBody, zero_masked_rows: int, dtype: type) -> None:
    """At every precision: in half, the lowest of float32 must not become -inf, nor a row of it NaN."""
    arrays = problem((3, 2, 4, 5, 6), dtype, (3, 1, 4, 5))
    arrays[3][0, 0, 1], arrays[3][1, 0, 2] = -np.inf, LOWEST
    (found,) = evaluate_body(SCALED_DOT_PRODUCT_ATTENTION, arrays, scale=0.5, zero_masked_rows=zero_masked_rows)
    np.testing.assert_array_equal(found[0, :, 1], 0.0 if zero_masked_rows else np.nan)
    mean = arrays[2][1].astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(found[1, :, 2], mean, rtol=0, atol=2e-3 if dtype == np.float16 else TOLERANCE)
    assert np.isfinite(found[1:]).all()
    assert np.isfinite(found[0, :, [0, 2, 3]]).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("zero_masked_rows", [0, 1])
def test_what_is_not_finite_among_the_values_stays(evaluate_body: EvaluateBody, zero_masked_rows: int) -> None:
    """Zeros are for rows without a score; an overflow must not hide behind them."""
    q, k, v, mask = problem((1, 1, 2, 3, 4))
    v[0, 0, 1, 2] = np.nan
    attributes = {"scale": 0.5, "zero_masked_rows": zero_masked_rows}
    (found,) = evaluate_body(SCALED_DOT_PRODUCT_ATTENTION, (q, k, v, mask), **attributes)
    truth = SCALED_DOT_PRODUCT_ATTENTION.reference(q, k, v, mask, **attributes)
    np.testing.assert_array_equal(np.isnan(truth[0, 0]), [[False, False, True, False]] * 2)
    np.testing.assert_allclose(found, truth, rtol=0, atol=TOLERANCE)


def test_the_scale_is_of_the_scores_alone(evaluate_body: EvaluateBody) -> None:
    q, k, v, mask = problem((1, 1, 1, 2, 4), mask=(1, 1, 1, 2))
    (found,) = evaluate_body(SCALED_DOT_PRODUCT_ATTENTION, (q, k, v, mask), scale=0.0, zero_masked_rows=0)
    weights = np.exp(mask) / np.exp(mask).sum()
    np.testing.assert_allclose(found, weights @ v, rtol=0, atol=TOLERANCE)


def test_the_softmax_is_taken_in_float32(evaluate_body: EvaluateBody) -> None:
    """Scores that differ by 2^-6 at 40 are the same in half precision, where its neighbours are 2^-5 apart."""
    q = k = np.zeros((1, 1, 2, 1), dtype=np.float16)
    v = np.array([[[[-1000], [1000]]]], dtype=np.float16)
    mask = np.array([[[[40, 40 + 2.0**-6]]]], dtype=np.float32)
    (found,) = evaluate_body(SCALED_DOT_PRODUCT_ATTENTION, (q, k, v, mask), scale=1.0, zero_masked_rows=0)
    np.testing.assert_allclose(found, 1000 * np.tanh(2.0**-7), rtol=0.1)
