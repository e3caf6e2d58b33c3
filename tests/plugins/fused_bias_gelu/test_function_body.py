"""The body of ``FusedBiasGelu`` in standard ops, in two runtimes, against the float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.ops import FUSED_BIAS_GELU

EvaluateBody = Callable[..., list[NDArray[Any]]]

TOLERANCE = FUSED_BIAS_GELU.contract.float32_tolerance
each_form = pytest.mark.parametrize("approximate", ["none", "tanh"])


def problem(batch: int, length: int, width: int, dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
    """x and the bias, the latter in float32, as the contract says."""
    random = np.random.default_rng(0)
    return random.standard_normal((batch, length, width)).astype(dtype), random.standard_normal(width).astype(
        np.float32
    )


@each_form
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 7, 6), (3, 1, 33), (2, 5, 7), (2, 13, 48)])
def test_it_is_as_good_as_its_dtype(
    evaluate_body: EvaluateBody,
    assert_rounds_once: Callable[..., None],
    sizes: tuple[int, int, int],
    dtype: type,
    approximate: str,
) -> None:
    arrays = problem(*sizes, dtype)
    (found,) = evaluate_body(FUSED_BIAS_GELU, arrays, approximate=approximate)
    assert found.dtype == dtype
    assert_rounds_once(found, FUSED_BIAS_GELU.reference(*arrays, approximate=approximate), TOLERANCE)


@each_form
def test_it_honours_its_form(evaluate_body: EvaluateBody, approximate: str) -> None:
    arrays = problem(2, 9, 33, np.float32)
    (found,) = evaluate_body(FUSED_BIAS_GELU, arrays, approximate=approximate)
    other = FUSED_BIAS_GELU.reference(*arrays, approximate={"none": "tanh", "tanh": "none"}[approximate])
    assert np.abs(found - other).max() > 20 * TOLERANCE


@each_form
def test_the_sum_is_not_rounded_to_half_precision(evaluate_body: EvaluateBody, approximate: str) -> None:
    """2048 + 1 is 2048 there, and 2048 - 2047.5 is 0.5 only if the bias keeps its digits."""
    x = np.array([[[2048, 2048]]], dtype=np.float16)
    bias = np.array([1.25, -2047.5], dtype=np.float32)
    (found,) = evaluate_body(FUSED_BIAS_GELU, (x, bias), approximate=approximate)
    truth = FUSED_BIAS_GELU.reference(x, bias, approximate=approximate)
    np.testing.assert_array_equal(found, truth.astype(np.float16))
    assert 0.3 < found[0, 0, 1] < 0.4


@each_form
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_cube_of_a_large_number_does_no_harm(evaluate_body: EvaluateBody, dtype: type, approximate: str) -> None:
    x: NDArray[Any] = np.array([[[-60000, -60, 60, 60000]]], dtype=dtype)
    (found,) = evaluate_body(FUSED_BIAS_GELU, (x, np.zeros(4, np.float32)), approximate=approximate)
    np.testing.assert_array_equal(found, np.array([[[0, 0, 60, 60000]]], dtype=dtype))
