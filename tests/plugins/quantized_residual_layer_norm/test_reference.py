"""The truth of ``QuantizedResidualLayerNorm``, against that of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from plugins.quantized_residual_layer_norm.reference import reference


def problem(batch: int, length: int, width: int) -> list[NDArray[np.float64]]:
    """x, residual, bias, gamma and beta."""
    random = np.random.default_rng(0)
    return [random.standard_normal(shape) for shape in [(batch, length, width)] * 2 + [(width,)] * 3]


@pytest.mark.parametrize("scale", [0.004, 0.03, 0.5])
@pytest.mark.parametrize("epsilon", [1e-12, 0.1])
@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 5, 7), (3, 1, 48), (1, 9, 33)])
def test_it_equals_that_of_pytorch(sizes: tuple[int, int, int], epsilon: float, scale: float) -> None:
    """The smallest scale leaves values outside of int8."""
    arrays: list[Any] = [*problem(*sizes), np.array(scale)]
    x, residual, bias, gamma, beta, _ = map(torch.from_numpy, arrays)
    quantized, y, s = reference(*arrays, epsilon=epsilon)
    norm = torch.nn.functional.layer_norm(x + bias + residual, sizes[-1:], gamma, beta, epsilon)
    expected = torch.fake_quantize_per_tensor_affine(norm, scale, 0, -128, 127) / scale  # the step times the scale
    assert quantized.dtype == np.int8
    np.testing.assert_allclose(quantized, expected.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(y, norm.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(s, (x + bias + residual).numpy())


def test_halves_go_to_the_even_step_and_what_is_too_large_to_the_last() -> None:
    x, residual, bias, _, _ = problem(1, 1, 8)
    beta = np.array([-1000, -128.5, -1.5, -0.5, 0.5, 1.5, 127.5, 1000]) * 0.25
    quantized, _, _ = reference(x, residual, bias, np.zeros(8), beta, np.array(0.25), epsilon=1e-5)
    assert quantized.ravel().tolist() == [-128, -128, -2, 0, 0, 2, 127, 127]


def test_it_computes_in_float64_whatever_comes_in() -> None:
    arrays: list[Any] = [array.astype(np.float16) for array in problem(2, 3, 5)]
    arrays.append(np.array(0.03, dtype=np.float32))
    found = reference(*arrays, epsilon=1e-5)
    wide = reference(*(array.astype(np.float64) for array in arrays), epsilon=1e-5)
    assert [array.dtype for array in found] == [np.int8, np.float64, np.float64]
    for one, other in zip(found, wide, strict=True):
        np.testing.assert_array_equal(one, other)
