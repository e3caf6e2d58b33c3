"""The body of ``QuantizedResidualLayerNorm`` in standard ops, in two runtimes, against the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.ops import QUANTIZED_RESIDUAL_LAYER_NORM

EvaluateBody = Callable[..., list[NDArray[Any]]]

TOLERANCE = QUANTIZED_RESIDUAL_LAYER_NORM.contract.float32_tolerance


def problem(batch: int, length: int, width: int, dtype: type, scale: float = 0.03) -> list[NDArray[Any]]:
    """x, residual, bias, gamma, beta and the scale; the latter four in float32, as the contract says."""
    random = np.random.default_rng(0)
    sums: list[NDArray[Any]] = [random.standard_normal((batch, length, width)).astype(dtype) for _ in range(2)]
    vectors = [random.standard_normal(width).astype(np.float32) for _ in range(3)]
    return [*sums, *vectors, np.array(scale, dtype=np.float32)]


@pytest.mark.parametrize("outputs", list(QUANTIZED_RESIDUAL_LAYER_NORM.contract.variants), ids=" ".join)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 2), (1, 7, 6), (3, 1, 33), (2, 13, 48)])
def test_it_is_as_good_as_its_dtype(
    evaluate_body: EvaluateBody,
    assert_rounds_once: Callable[..., None],
    assert_quantises: Callable[..., None],
    sizes: tuple[int, int, int],
    dtype: type,
    outputs: tuple[str, ...],
) -> None:
    arrays = problem(*sizes, dtype)
    values = evaluate_body(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, keep=outputs, epsilon=1e-12)
    found = dict(zip(outputs, values, strict=True))
    _, *truth = QUANTIZED_RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-12)
    assert_quantises(found.pop("quantized"), truth[0], float(arrays[-1]), TOLERANCE)
    for name, expected in zip(("y", "s"), truth, strict=True):
        if name in found:
            assert found[name].dtype == dtype
            assert_rounds_once(found.pop(name), expected, TOLERANCE)
    assert not found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_halves_go_to_the_even_step_and_what_is_too_large_to_the_last(evaluate_body: EvaluateBody, dtype: type) -> None:
    steps = np.arange(-300, 301) + 0.5
    arrays = problem(1, 2, len(steps), dtype, scale=2.0**-7)
    arrays[3:5] = [np.zeros(len(steps), np.float32), (steps * 2.0**-7).astype(np.float32)]
    quantized, _, _ = evaluate_body(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, epsilon=1e-5)
    expected = [max(-128, min(127, round(step))) for step in steps.tolist()]
    np.testing.assert_array_equal(quantized, np.broadcast_to(expected, quantized.shape))


def test_what_is_quantised_is_not_rounded_to_half_precision_before(evaluate_body: EvaluateBody) -> None:
    """1 + 2^-12 is 1 there, so the step would be the even one below."""
    arrays = problem(1, 2, 4, np.float16, scale=2.0)
    beta = np.array([1 + 2.0**-12, 1 - 2.0**-12, 3 + 2.0**-12, 3 - 2.0**-12], dtype=np.float32)
    arrays[3:5] = [np.zeros(4, np.float32), beta]
    quantized, _, _ = evaluate_body(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, epsilon=1e-5)
    np.testing.assert_array_equal(quantized, np.broadcast_to([1, 0, 2, 1], quantized.shape))
