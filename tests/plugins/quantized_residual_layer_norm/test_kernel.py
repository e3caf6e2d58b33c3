"""The kernel of ``QuantizedResidualLayerNorm`` in Triton's interpreter, against the truth, in float64 up to int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.launchers import KernelCall
from plugins.ops import QUANTIZED_RESIDUAL_LAYER_NORM
from tests.plugins.on_kernels import (
    DTYPES,
    as_array,
    as_tensor,
    each_dtype,
    each_tactic,
    far_tensor,
    run_kernel,
    run_last_programs,
)

TOLERANCE = QUANTIZED_RESIDUAL_LAYER_NORM.contract.float32_tolerance  # for inputs of unit variance
VARIANTS = list(QUANTIZED_RESIDUAL_LAYER_NORM.contract.variants)

SIZES = [
    (1, 1, 1),
    (1, 1, 7),
    (3, 5, 7),
    (1, 270, 13),
    (4, 9, 48),
    (1, 45, 100),
    (1, 5, 768),
    (1, 3, 1000),
    (1, 2, 4097),
]


def problem(
    batch: int, length: int, width: int, dtype: type, *, scale: float = 0.03, seed: int = 0
) -> list[NDArray[Any]]:
    """x, residual, bias, gamma, beta and the scale; the latter four in float32, as the contract says."""
    random = np.random.default_rng(seed)
    sums: list[NDArray[Any]] = [random.standard_normal((batch, length, width)).astype(dtype) for _ in range(2)]
    vectors = [random.standard_normal(width).astype(np.float32) for _ in range(3)]
    return [*sums, *vectors, np.array(scale, dtype=np.float32)]


def of_beta(beta: NDArray[Any], scale: float, dtype: type = np.float32) -> list[NDArray[Any]]:
    """Inputs whose norm is beta exactly."""
    x, residual, bias, gamma, _, _ = problem(2, 3, len(beta), dtype)
    return [x, residual, bias, np.zeros_like(gamma), beta.astype(np.float32), np.array(scale, dtype=np.float32)]


# Each tactic and each variant, but not each with each: neither knows of the other.
@pytest.mark.parametrize(
    ("tactic", "outputs"),
    [(0, VARIANTS[0]), (1, VARIANTS[1]), (2, VARIANTS[2]), (0, VARIANTS[3])],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
@each_dtype
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_as_good_as_its_dtype(
    assert_rounds_once: Callable[..., None],
    assert_quantises: Callable[..., None],
    sizes: tuple[int, int, int],
    dtype: type,
    tactic: int,
    outputs: tuple[str, ...],
) -> None:
    arrays = problem(*sizes, dtype, seed=VARIANTS.index(outputs))
    values = run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, outputs=outputs, tactic=tactic, epsilon=1e-12)
    found = dict(zip(outputs, values, strict=True))
    _, *truth = QUANTIZED_RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-12)
    assert_quantises(found.pop("quantized"), truth[0], float(arrays[-1]), TOLERANCE)
    for name, expected in zip(("y", "s"), truth, strict=True):
        if name in found:
            assert found[name].dtype == dtype
            assert_rounds_once(found.pop(name), expected, TOLERANCE)
    assert not found


@settings(max_examples=25)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    tactic=st.integers(0, 2),
    outputs=st.sampled_from(VARIANTS),
    scale=st.floats(0.01, 0.1),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_quantises_at_any_size(
    assert_quantises: Callable[..., None],
    data: st.DataObject,
    dtype: type,
    tactic: int,
    outputs: tuple[str, ...],
    scale: float,
    seed: int,
) -> None:
    batch, length, width = (data.draw(st.integers(least, most)) for least, most in ((1, 4), (1, 9), (20, 300)))
    arrays = problem(batch, length, width, dtype, scale=scale, seed=seed)
    found = run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, outputs=outputs, tactic=tactic, epsilon=1e-5)
    _, truth, _ = QUANTIZED_RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-5)
    assert_quantises(found[0], truth, float(arrays[-1]), TOLERANCE)


@each_tactic(QUANTIZED_RESIDUAL_LAYER_NORM)
@each_dtype
@pytest.mark.parametrize("scale", [2.0**-7, 1.0, 64.0])
def test_halves_go_to_the_even_step_and_what_is_too_large_to_the_last(scale: float, dtype: type, tactic: int) -> None:
    """All halves from -300.5 to 300.5, exact in float32."""
    steps = np.arange(-300, 301) + 0.5
    quantized, *_ = run_kernel(
        QUANTIZED_RESIDUAL_LAYER_NORM, of_beta(steps * scale, scale, dtype), tactic=tactic, epsilon=1e-5
    )
    expected = [max(-128, min(127, round(step))) for step in steps.tolist()]  # Python's own round: halves to even
    assert (min(expected), max(expected)) == (-128, 127)
    np.testing.assert_array_equal(quantized, np.broadcast_to(expected, quantized.shape))


@each_dtype
def test_each_step_has_its_number(dtype: type) -> None:
    """From its lower half to its upper half, just inside; with a scale that has no exact inverse."""
    steps = np.arange(-128, 128)
    for offset in (-0.4999, 0.0, 0.4999):
        arrays = of_beta(((steps + offset) * float(np.float32(0.1))).astype(np.float32), 0.1, dtype)
        quantized, *_ = run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, epsilon=1e-5)
        np.testing.assert_array_equal(quantized, np.broadcast_to(steps, quantized.shape))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of the quotient, which is then clipped
@pytest.mark.parametrize("scale", [1e-38, 1e-6, 1e30])
def test_a_scale_that_is_tiny_or_large(scale: float) -> None:
    arrays = problem(2, 3, 7, np.float32, scale=scale)
    quantized, y, _ = run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, epsilon=1e-5)
    assert np.abs(y).min() > 1e-3
    expected = np.zeros_like(y) if scale > 1 else np.where(y > 0, 127, -128)
    np.testing.assert_array_equal(quantized, expected)


def test_what_is_quantised_is_not_rounded_to_half_precision_before() -> None:
    """1 + 2^-12 is 1 there, so the step would be the even one below."""
    beta = np.array([1 + 2.0**-12, 1 - 2.0**-12, 3 + 2.0**-12, 3 - 2.0**-12])
    quantized, *_ = run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, of_beta(beta, 2.0, np.float16), epsilon=1e-5)
    np.testing.assert_array_equal(quantized, np.broadcast_to([1, 0, 2, 1], quantized.shape))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NaN, int8 has none
@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_tactic(QUANTIZED_RESIDUAL_LAYER_NORM)
def test_what_is_not_finite_stays_in_its_row(tactic: int, value: float) -> None:
    arrays = problem(2, 3, 48, np.float16)
    expected = run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, tactic=tactic, epsilon=1e-12)
    arrays[0][1, 1, 3] = value
    found = run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, tactic=tactic, epsilon=1e-12)
    assert not np.isfinite(found[1][1, 1, 3])
    rest = np.ones((2, 3), dtype=bool)
    rest[1, 1] = False
    for array, clean in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array[rest], clean[rest])


def test_elements_past_2_to_the_31st(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rows of many, all others of which are zeros that nobody reads."""
    width, last = 1000, 4
    shape = (1, 2**31 // width + 1 + last, width)
    arrays = problem(1, last, width, np.float16)
    sums = [far_tensor(tmp_path, shape, torch.float16) for _ in range(2)]
    for tensor, array in zip(sums, arrays[:2], strict=True):
        tensor[:, -last:] = as_tensor(array)
    outputs = [far_tensor(tmp_path, shape, dtype) for dtype in (torch.int8, torch.float16, torch.float16)]
    others = [as_tensor(array) for array in arrays[2:]]
    run_last_programs(
        monkeypatch, KernelCall("QuantizedResidualLayerNorm", (*sums, *others), {"epsilon": 1e-12}), outputs, 2
    )
    monkeypatch.undo()
    for far, expected in zip(outputs, run_kernel(QUANTIZED_RESIDUAL_LAYER_NORM, arrays, epsilon=1e-12), strict=True):
        np.testing.assert_array_equal(as_array(far[:, -last:]), expected)
