"""The kernel of ``InterleavedRotary`` in Triton's interpreter, against the float64 truth."""

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
from plugins.ops import INTERLEAVED_ROTARY
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

TOLERANCE = INTERLEAVED_ROTARY.contract.float32_tolerance  # for inputs of unit variance

SIZES = [
    (1, 1, 1, 2),
    (1, 3, 7, 6),
    (4, 1, 1, 10),
    (2, 5, 13, 2),
    (3, 12, 5, 6),
    (2, 3, 13, 48),
    (1, 12, 2, 64),
    (2, 5, 1, 80),
    (1, 1, 130, 10),
    (2, 1, 43, 64),
    (5, 1, 67, 2),
]


def problem(
    sizes: tuple[int, int, int, int], dtype: type, *, tables: int = 1, seed: int = 0, scale: float = 1.0
) -> list[NDArray[Any]]:
    """x, cos and sin, the latter two in float32, as the contract says; the sizes are B, H, S and D."""
    random = np.random.default_rng(seed)
    x: NDArray[Any] = (scale * random.standard_normal(sizes)).astype(dtype)
    angle = random.uniform(-7, 7, (tables, sizes[2], sizes[3] // 2))
    return [x, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)]


@each_tactic(INTERLEAVED_ROTARY)
@each_dtype
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_as_good_as_its_dtype(
    assert_rounds_once: Callable[..., None],
    sizes: tuple[int, int, int, int],
    dtype: type,
    tactic: int,
) -> None:
    for seed, tables in enumerate((1, sizes[0])):
        arrays = problem(sizes, dtype, tables=tables, seed=seed)
        (found,) = run_kernel(INTERLEAVED_ROTARY, arrays, tactic=tactic)
        assert found.dtype == dtype
        assert_rounds_once(found, INTERLEAVED_ROTARY.reference(*arrays), TOLERANCE)


@settings(max_examples=25)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), tactic=st.integers(0, 1), seed=st.integers(0, 2**32 - 1))
def test_it_is_as_good_as_its_dtype_at_any_size(
    assert_rounds_once: Callable[..., None], data: st.DataObject, dtype: type, tactic: int, seed: int
) -> None:
    batch, heads, length, pairs = (data.draw(st.integers(1, most)) for most in (4, 9, 40, 40))
    tables = data.draw(st.sampled_from([1, batch]))
    arrays = problem((batch, heads, length, 2 * pairs), dtype, tables=tables, seed=seed)
    (found,) = run_kernel(INTERLEAVED_ROTARY, arrays, tactic=tactic)
    assert_rounds_once(found, INTERLEAVED_ROTARY.reference(*arrays), TOLERANCE)


@each_dtype
def test_a_quarter_turn_counts_from_the_first_element_to_the_second(dtype: type) -> None:
    x: NDArray[Any] = np.array([[[[1, 0, 0, 2]]]], dtype=dtype)
    cos, sin = np.zeros((1, 1, 2), np.float32), np.ones((1, 1, 2), np.float32)
    (found,) = run_kernel(INTERLEAVED_ROTARY, (x, cos, sin))
    assert found.ravel().tolist() == [0, 1, -2, 0]


def test_half_precision_is_rounded_at_the_end_alone() -> None:
    """Two products that cancel but for 2^-13: rounded to half precision on the way, nothing would be left."""
    x = np.array([[[[1.0, 1.0]]]], dtype=np.float16)
    cos, sin = (np.array([[[value]]], dtype=np.float32) for value in (0.5 + 2.0**-13, 0.5))
    (found,) = run_kernel(INTERLEAVED_ROTARY, (x, cos, sin))
    assert found[0, 0, 0, 0] == 2.0**-13


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_large_numbers_in_half_precision() -> None:
    """What is out of the dtype's reach becomes infinite, nothing else does."""
    arrays = problem((2, 3, 7, 10), np.float16)
    arrays[0] = np.sign(arrays[0]) * np.float16(60000)
    (found,) = run_kernel(INTERLEAVED_ROTARY, arrays)
    truth = INTERLEAVED_ROTARY.reference(*arrays)
    assert 0 < np.isinf(found).mean() < 0.5
    # To float32 first: neither may fall to another side of a half, of which there are few.
    np.testing.assert_allclose(found, truth.astype(np.float32).astype(np.float16), rtol=2.0**-10)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # infinity less infinity
@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_tactic(INTERLEAVED_ROTARY)
@each_dtype
def test_what_is_not_finite_stays_in_its_pair(dtype: type, tactic: int, value: float) -> None:
    arrays = problem((2, 3, 5, 6), dtype)
    (expected,) = run_kernel(INTERLEAVED_ROTARY, arrays, tactic=tactic)
    arrays[0][1, 2, 3, 2] = value
    (found,) = run_kernel(INTERLEAVED_ROTARY, arrays, tactic=tactic)
    assert not np.isfinite(found[1, 2, 3, 2:4]).any()
    found[1, 2, 3, 2:4] = expected[1, 2, 3, 2:4]
    np.testing.assert_array_equal(found, expected)


# In the second case the angles, too, have more than 2^31 elements.
@pytest.mark.parametrize(("heads", "size", "tables"), [(5, 64, "one"), (1, 8, "batch")])
def test_elements_past_2_to_the_31st(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: int, size: int, tables: str
) -> None:
    """The last two of many sequences, all others of which are zeros that nobody reads."""
    length, last = 7, 2
    smallest = size // 2 if tables == "batch" else heads * size
    batch = 2**31 // (length * smallest) + 1 + last
    arrays = problem((last, heads, length, size), np.float16, tables=last if tables == "batch" else 1)
    x = far_tensor(tmp_path, (batch, heads, length, size), torch.float16)
    y = far_tensor(tmp_path, (batch, heads, length, size), torch.float16)
    x[-last:] = as_tensor(arrays[0])
    angles = [as_tensor(array) for array in arrays[1:]]
    if tables == "batch":
        for index, table in enumerate(angles):
            angles[index] = far_tensor(tmp_path, (batch, length, size // 2), torch.float32)
            angles[index][-last:] = table
    call = KernelCall("InterleavedRotary", (x, *angles), {})
    run_last_programs(monkeypatch, call, [y], 2)
    monkeypatch.undo()
    (expected,) = run_kernel(INTERLEAVED_ROTARY, arrays)
    np.testing.assert_array_equal(as_array(y[-last:]), expected)
