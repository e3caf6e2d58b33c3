"""The body of ``ResidualLayerNorm`` in standard ops, in two runtimes, against the float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.ops import RESIDUAL_LAYER_NORM

EvaluateBody = Callable[..., list[NDArray[Any]]]


def problem(batch: int, length: int, width: int, dtype: type, scale: float = 1.0) -> list[NDArray[Any]]:
    """x, residual, bias, gamma and beta; the latter three in float32, as the contract says."""
    random = np.random.default_rng(0)
    sums: list[NDArray[Any]] = [
        (scale * random.standard_normal((batch, length, width))).astype(dtype) for _ in range(2)
    ]
    bias = (scale * random.standard_normal(width)).astype(np.float32)
    return [*sums, bias, *(random.standard_normal(width).astype(np.float32) for _ in range(2))]


@pytest.mark.parametrize("keep", [1, 2], ids=["y alone", "y and s"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 2), (1, 7, 6), (3, 1, 33), (2, 5, 7), (2, 13, 48)])
def test_it_is_as_good_as_its_dtype(
    evaluate_body: EvaluateBody,
    assert_rounds_once: Callable[..., None],
    sizes: tuple[int, int, int],
    dtype: type,
    keep: int,
) -> None:
    arrays = problem(*sizes, dtype)
    found = evaluate_body(RESIDUAL_LAYER_NORM, arrays, keep=keep, epsilon=1e-12)
    truth = RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-12)
    assert [array.dtype for array in found] == [dtype] * keep
    for array, expected in zip(found, truth[:keep], strict=True):
        assert_rounds_once(array, expected, RESIDUAL_LAYER_NORM.contract.float32_tolerance)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1])
def test_it_honours_its_epsilon(evaluate_body: EvaluateBody, epsilon: float) -> None:
    """On rows whose variance is about 0.02, of which 0.1 is a lot and 1e-12 nothing."""
    arrays = problem(2, 3, 8, np.float32, scale=0.1)
    y, _ = evaluate_body(RESIDUAL_LAYER_NORM, arrays, epsilon=epsilon)
    truths = {other: RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=other)[0] for other in (1e-12, 1e-5, 0.1)}
    distances = {other: float(np.abs(y - truth).max()) for other, truth in truths.items()}
    assert distances.pop(epsilon) < 2e-5
    assert min(distances.values()) > 1e-4


def test_an_epsilon_that_is_zero_in_half_precision_still_counts(evaluate_body: EvaluateBody) -> None:
    """Without it, the rows of one value would be 0 / 0."""
    x, residual, bias, gamma, beta = problem(2, 3, 8, np.float16)
    x[:], residual[:], bias[:] = 1.5, 0.25, 0.125
    y, _ = evaluate_body(RESIDUAL_LAYER_NORM, (x, residual, bias, gamma, beta), epsilon=1e-12)
    np.testing.assert_array_equal(y, np.broadcast_to(beta.astype(np.float16), y.shape))


def test_the_sum_is_normalised_before_it_is_rounded(evaluate_body: EvaluateBody) -> None:
    """In half precision, 4096 + 1 is 4096 and 4096 + 62 is 4096 + 64: the norm would be off by 1.6%.

    The spread is wide because some runtimes take the variance as a difference of two large numbers.
    """
    x = np.full((1, 1, 4), 4096, dtype=np.float16)
    residual = np.array([[[0, 1, 62, 63]]], dtype=np.float16)
    bias, gamma, beta = (np.full(4, value, dtype=np.float32) for value in (0, 1, 0))
    y, s = evaluate_body(RESIDUAL_LAYER_NORM, (x, residual, bias, gamma, beta), epsilon=1e-12)
    np.testing.assert_allclose(y[0, 0], np.array([-63, -61, 61, 63]) / np.sqrt(3845), rtol=5e-3)
    assert s.ravel().tolist() == [4096, 4096, 4160, 4160]


def test_the_bias_is_added_before_anything_is_rounded(evaluate_body: EvaluateBody) -> None:
    """In half precision, 4096 + 1 is 4096, and so is 4097 + 1; together they make 4098, which is nearer to 4100."""
    x, residual = np.full((1, 1, 4), 4096, dtype=np.float16), np.ones((1, 1, 4), dtype=np.float16)
    bias, gamma, beta = np.array([1, 2, 62, 63], dtype=np.float32), np.ones(4, np.float32), np.zeros(4, np.float32)
    y, s = evaluate_body(RESIDUAL_LAYER_NORM, (x, residual, bias, gamma, beta), epsilon=1e-12)
    assert s.ravel().tolist() == (4097 + bias).astype(np.float16).tolist() == [4096, 4100, 4160, 4160]
    truth, _ = RESIDUAL_LAYER_NORM.reference(x, residual, bias, gamma, beta, epsilon=1e-12)
    np.testing.assert_allclose(y, truth, rtol=5e-3)
