"""The kernel of ``ResidualLayerNorm`` in Triton's interpreter, against the float64 truth."""

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
from plugins.ops import RESIDUAL_LAYER_NORM
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

TOLERANCE = RESIDUAL_LAYER_NORM.contract.float32_tolerance  # for inputs of unit variance

SIZES = [
    (1, 1, 1),
    (2, 3, 1),
    (1, 1, 7),
    (3, 5, 7),
    (1, 270, 13),
    (4, 9, 48),
    (1, 45, 100),
    (2, 1, 768),
    (1, 5, 768),
    (1, 3, 1000),
    (1, 2, 1024),
    (1, 2, 4097),
]


def problem(batch: int, length: int, width: int, dtype: type, *, seed: int = 0) -> list[NDArray[Any]]:
    """x, residual, bias, gamma and beta; the latter three in float32, as the contract says."""
    random = np.random.default_rng(seed)
    sums: list[NDArray[Any]] = [random.standard_normal((batch, length, width)).astype(dtype) for _ in range(2)]
    return [*sums, *(random.standard_normal(width).astype(np.float32) for _ in range(3))]


@each_tactic(RESIDUAL_LAYER_NORM)
@each_dtype
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_as_good_as_its_dtype(
    assert_rounds_once: Callable[..., None],
    sizes: tuple[int, int, int],
    dtype: type,
    tactic: int,
) -> None:
    for seed, outputs in enumerate(RESIDUAL_LAYER_NORM.contract.variants):
        arrays = problem(*sizes, dtype, seed=seed)
        found = run_kernel(RESIDUAL_LAYER_NORM, arrays, outputs=outputs, tactic=tactic, epsilon=1e-12)
        truth = RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-12)
        assert [array.dtype for array in found] == [dtype] * len(outputs)
        for array, expected in zip(found, truth[: len(outputs)], strict=True):
            assert_rounds_once(array, expected, TOLERANCE)


@settings(max_examples=25)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), tactic=st.integers(0, 2), seed=st.integers(0, 2**32 - 1))
def test_it_is_as_good_as_its_dtype_at_any_size(
    assert_rounds_once: Callable[..., None], data: st.DataObject, dtype: type, tactic: int, seed: int
) -> None:
    batch, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    # Two numbers may be as near to each other as they like, and their norm is then the sign of a rounding.
    width = data.draw(st.sampled_from([1, 3, *range(5, 300)]))
    arrays = problem(batch, length, max(width, 5), dtype, seed=seed)
    found = run_kernel(RESIDUAL_LAYER_NORM, arrays, tactic=tactic, epsilon=1e-5)
    truth = RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-5)
    for array, expected in zip(found, truth, strict=True):
        assert_rounds_once(array, expected, TOLERANCE)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1])
def test_it_honours_its_epsilon(epsilon: float) -> None:
    """On rows whose variance is about 0.03, of which 0.1 is a lot and 1e-12 nothing."""
    arrays = problem(2, 3, 8, np.float32)
    arrays[:3] = [0.1 * array for array in arrays[:3]]
    y, _ = run_kernel(RESIDUAL_LAYER_NORM, arrays, epsilon=epsilon)
    truths = {other: RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=other)[0] for other in (1e-12, 1e-5, 0.1)}
    distances = {other: float(np.abs(y - truth).max()) for other, truth in truths.items()}
    assert distances.pop(epsilon) < TOLERANCE
    assert min(distances.values()) > 1e-4


@each_tactic(RESIDUAL_LAYER_NORM)
@each_dtype
@pytest.mark.parametrize("width", [7, 48, 100, 768])
def test_a_large_mean_hides_no_small_variance(
    assert_rounds_once: Callable[..., None], width: int, dtype: type, tactic: int
) -> None:
    """A variance that is the difference of two large numbers would be off by a percent.

    The sums are exact in float32, so what is left is the mean's own rounding, counted in standard deviations: the
    tolerance, which is for values up to 10 of them, times 512 / 10.
    """
    _, _, _, gamma, beta = problem(1, 1, width, np.float32)
    random = np.random.default_rng(0)
    x: NDArray[Any] = np.full((2, 3, width), 256, dtype=dtype)
    residual: NDArray[Any] = (np.rint(64 * random.standard_normal(x.shape)) / 64).astype(dtype)
    residual = np.clip(residual.astype(np.float32), -4, 4).astype(dtype)
    arrays = [x, residual, np.full(width, 256, np.float32), gamma, beta]
    y, _ = run_kernel(RESIDUAL_LAYER_NORM, arrays, tactic=tactic, epsilon=1e-12)
    truth, _ = RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-12)
    assert_rounds_once(y, truth, 512 / 10 * TOLERANCE)


@each_tactic(RESIDUAL_LAYER_NORM)
@each_dtype
@pytest.mark.parametrize("width", [1, 7, 48, 100])
def test_a_row_of_one_value_becomes_beta(width: int, dtype: type, tactic: int) -> None:
    """An epsilon that is zero in half precision still counts: without it, these rows would be 0 / 0."""
    x, residual, bias, gamma, beta = problem(2, 3, width, dtype)
    x[:], residual[:], bias[:] = 1.5, 0.25, 0.125  # of which any sum is exact
    y, s = run_kernel(RESIDUAL_LAYER_NORM, (x, residual, bias, gamma, beta), tactic=tactic, epsilon=1e-12)
    np.testing.assert_array_equal(y, np.broadcast_to(beta.astype(dtype), y.shape))
    assert np.unique(s).tolist() == [1.875]


@pytest.mark.parametrize("width", [7, 100, 768])
def test_a_row_of_one_value_that_is_not_exact_gives_beta(width: int) -> None:
    """The mean of equal numbers is rounded, and an epsilon of 1e-12 would make much of what is left."""
    x, residual, bias, gamma, beta = problem(1, 5, width, np.float32)
    x[:], residual[:], bias[:] = np.linspace(0.1, 9.7, 5)[None, :, None], 0.3, 0.7
    y, _ = run_kernel(RESIDUAL_LAYER_NORM, (x, residual, bias, gamma, beta), epsilon=1e-12)
    assert np.all(np.abs(y - beta) <= TOLERANCE)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@each_tactic(RESIDUAL_LAYER_NORM)
def test_large_numbers_in_half_precision(assert_rounds_once: Callable[..., None], tactic: int) -> None:
    """Their squares and sums are out of the dtype's reach, and so is some of s; y is not."""
    arrays = problem(2, 3, 48, np.float16)
    arrays[:2] = [np.clip(20000 * array.astype(np.float32), -6e4, 6e4).astype(np.float16) for array in arrays[:2]]
    y, s = run_kernel(RESIDUAL_LAYER_NORM, arrays, tactic=tactic, epsilon=1e-12)
    expected, total = RESIDUAL_LAYER_NORM.reference(*arrays, epsilon=1e-12)
    assert_rounds_once(y, expected, TOLERANCE)
    np.testing.assert_array_equal(s, total.astype(np.float32).astype(np.float16))
    assert 0 < np.isinf(s).mean() < 0.2


def test_the_sum_is_normalised_before_it_is_rounded() -> None:
    """In half precision, 4096 + 1 is 4096 and 4096 + 62 is 4096 + 64: the norm would be off by 1.6%."""
    x = np.full((1, 1, 4), 4096, dtype=np.float16)
    residual = np.array([[[0, 1, 62, 63]]], dtype=np.float16)
    bias, gamma, beta = (np.full(4, value, dtype=np.float32) for value in (0, 1, 0))
    y, s = run_kernel(RESIDUAL_LAYER_NORM, (x, residual, bias, gamma, beta), epsilon=1e-12)
    np.testing.assert_allclose(y[0, 0], np.array([-63, -61, 61, 63]) / np.sqrt(3845), rtol=2.0**-10)
    assert s.ravel().tolist() == [4096, 4096, 4160, 4160]


def test_the_bias_is_added_before_anything_is_rounded() -> None:
    """In half precision, 4096 + 1 is 4096, and so is 4097 + 1; together they make 4098, which is nearer to 4100."""
    x, residual = np.full((1, 1, 4), 4096, dtype=np.float16), np.ones((1, 1, 4), dtype=np.float16)
    bias, gamma, beta = np.array([1, 2, 62, 63], dtype=np.float32), np.ones(4, np.float32), np.zeros(4, np.float32)
    _, s = run_kernel(RESIDUAL_LAYER_NORM, (x, residual, bias, gamma, beta), epsilon=1e-12)
    assert s.ravel().tolist() == (4097 + bias).astype(np.float16).tolist() == [4096, 4100, 4160, 4160]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # infinity less infinity
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("width", [7, 768])
@each_tactic(RESIDUAL_LAYER_NORM)
@each_dtype
def test_what_is_not_finite_stays_in_its_row(dtype: type, tactic: int, width: int, value: float) -> None:
    arrays = problem(2, 3, width, dtype)
    expected = run_kernel(RESIDUAL_LAYER_NORM, arrays, tactic=tactic, epsilon=1e-12)
    arrays[0][1, 1, 3] = value
    y, s = run_kernel(RESIDUAL_LAYER_NORM, arrays, tactic=tactic, epsilon=1e-12)
    assert not np.isfinite(y[1, 1, 3])
    assert not np.isfinite(s[1, 1, 3])
    y[1, 1], s[1, 1, 3] = expected[0][1, 1], expected[1][1, 1, 3]
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(s, expected[1])


def test_elements_past_2_to_the_31st(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rows of many, all others of which are zeros that nobody reads."""
    width, last = 1000, 4
    shape = (1, 2**31 // width + 1 + last, width)
    arrays = problem(1, last, width, np.float16)
    tensors = [far_tensor(tmp_path, shape, torch.float16) for _ in range(4)]
    for tensor, array in zip(tensors, arrays[:2], strict=False):
        tensor[:, -last:] = as_tensor(array)
    vectors = [as_tensor(array) for array in arrays[2:]]
    call = KernelCall("ResidualLayerNorm", (*tensors[:2], *vectors), {"epsilon": 1e-12})
    run_last_programs(monkeypatch, call, tensors[2:], 2)
    monkeypatch.undo()
    for far, expected in zip(tensors[2:], run_kernel(RESIDUAL_LAYER_NORM, arrays, epsilon=1e-12), strict=True):
        np.testing.assert_array_equal(as_array(far[:, -last:]), expected)
