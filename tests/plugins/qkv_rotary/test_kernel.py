"""The kernel of ``QKVRotary`` in Triton's interpreter, against the float64 truth."""

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
from plugins.ops import QKV_ROTARY
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

TOLERANCE = QKV_ROTARY.contract.float32_tolerance  # for inputs of unit variance

SIZES = [
    (1, 1, 1, 2),
    (1, 3, 7, 6),
    (4, 1, 1, 10),
    (2, 5, 13, 2),
    (3, 12, 5, 6),
    (2, 3, 9, 48),
    (1, 12, 2, 64),
    (2, 5, 1, 80),
    (1, 1, 130, 10),
    (5, 1, 37, 2),
]


def problem(sizes: tuple[int, int, int, int], dtype: type, *, tables: int = 1, seed: int = 0) -> list[NDArray[Any]]:
    """qkv, its bias, cos and sin, the latter three in float32, as the contract says; the sizes are B, H, S and D."""
    random = np.random.default_rng(seed)
    batch, heads, length, size = sizes
    qkv: NDArray[Any] = random.standard_normal((batch, length, 3 * heads * size)).astype(dtype)
    bias = random.standard_normal(3 * heads * size).astype(np.float32)
    angle = random.uniform(-7, 7, (tables, length, size // 2))
    return [qkv, bias, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)]


@each_tactic(QKV_ROTARY)
@each_dtype
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_as_good_as_its_dtype(
    assert_rounds_once: Callable[..., None],
    sizes: tuple[int, int, int, int],
    dtype: type,
    tactic: int,
) -> None:
    for seed, tables in enumerate((1, sizes[0])):
        attributes: dict[str, Any] = {"num_heads": sizes[1], "scale": sizes[3] ** -0.5, "rotary_value": seed}
        arrays = problem(sizes, dtype, tables=tables, seed=seed)
        found = run_kernel(QKV_ROTARY, arrays, tactic=tactic, **attributes)
        assert [array.dtype for array in found] == [dtype] * 3
        for array, truth in zip(found, QKV_ROTARY.reference(*arrays, **attributes), strict=True):
            assert_rounds_once(array, truth, TOLERANCE)


@settings(max_examples=25)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), tactic=st.integers(0, 1), seed=st.integers(0, 2**32 - 1))
def test_it_is_as_good_as_its_dtype_at_any_size(
    assert_rounds_once: Callable[..., None], data: st.DataObject, dtype: type, tactic: int, seed: int
) -> None:
    batch, heads, length, pairs = (data.draw(st.integers(1, most)) for most in (4, 9, 20, 40))
    tables = data.draw(st.sampled_from([1, batch]))
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "scale": data.draw(st.sampled_from([1.0, 0.125, -0.3, 0.0])),
        "rotary_value": data.draw(st.integers(0, 1)),
    }
    arrays = problem((batch, heads, length, 2 * pairs), dtype, tables=tables, seed=seed)
    found = run_kernel(QKV_ROTARY, arrays, tactic=tactic, **attributes)
    for array, truth in zip(found, QKV_ROTARY.reference(*arrays, **attributes), strict=True):
        assert_rounds_once(array, truth, TOLERANCE)


def test_the_bias_and_the_scale_come_before_the_rounding() -> None:
    """In half precision, 2048 + 1 is 2048 and 2048 + 3 is 2052: q would be 1536 and 1539."""
    qkv = np.full((1, 1, 6), 2048, dtype=np.float16)
    bias = np.array([1, 3, 1, 3, -2047.5, 0.5], dtype=np.float32)
    cos, sin = np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    q, k, v = run_kernel(QKV_ROTARY, (qkv, bias, cos, sin), num_heads=1, scale=0.75, rotary_value=1)
    assert q.ravel().tolist() == [1537, 1538]
    assert k.ravel().tolist() == [2048, 2052]
    assert v.ravel().tolist() == [0.5, 2048]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_large_numbers_in_half_precision() -> None:
    """A sum that is out of the dtype's reach comes back into it; what ends outside becomes infinite."""
    qkv = np.full((1, 2, 12), 60000, dtype=np.float16)
    bias = np.array([60000, -60000] * 6, dtype=np.float32)
    cos, sin = np.full((1, 2, 1), 0.5, np.float32), np.zeros((1, 2, 1), np.float32)
    q, k, v = run_kernel(QKV_ROTARY, (qkv, bias, cos, sin), num_heads=2, scale=0.5, rotary_value=0)
    assert np.unique(q).tolist() == [0, 30000]
    assert np.unique(k).tolist() == [0, 60000]
    assert np.unique(v).tolist() == [0, np.inf]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # infinity less infinity
@pytest.mark.parametrize("value", [np.nan, np.inf])
@each_tactic(QKV_ROTARY)
@each_dtype
def test_what_is_not_finite_stays_in_its_pair(dtype: type, tactic: int, value: float) -> None:
    attributes: dict[str, Any] = {"num_heads": 3, "scale": 0.5, "rotary_value": 0}
    arrays = problem((2, 3, 5, 6), dtype)
    expected = run_kernel(QKV_ROTARY, arrays, tactic=tactic, **attributes)
    arrays[0][1, 3, 3 * 6 + 2 * 6 + 4] = value  # of k, the last head's last pair
    found = run_kernel(QKV_ROTARY, arrays, tactic=tactic, **attributes)
    assert not np.isfinite(found[1][1, 2, 3, 4:]).any()
    found[1][1, 2, 3, 4:] = expected[1][1, 2, 3, 4:]
    for array, clean in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, clean)


# In the second case the angles, too, have more than 2^31 elements.
@pytest.mark.parametrize(("heads", "size", "tables"), [(5, 64, "one"), (1, 8, "batch")])
def test_elements_past_2_to_the_31st(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: int, size: int, tables: str
) -> None:
    """The last two of many sequences, all others of which are zeros that nobody reads."""
    length, last = 7, 2
    smallest = size // 2 if tables == "batch" else heads * size
    batch = 2**31 // (length * smallest) + 1 + last
    attributes: dict[str, Any] = {"num_heads": heads, "scale": 0.5, "rotary_value": 1}
    arrays = problem((last, heads, length, size), np.float16, tables=last if tables == "batch" else 1)
    qkv = far_tensor(tmp_path, (batch, length, 3 * heads * size), torch.float16)
    qkv[-last:] = as_tensor(arrays[0])
    outputs = [far_tensor(tmp_path, (batch, heads, length, size), torch.float16) for _ in range(3)]
    angles = [as_tensor(array) for array in arrays[2:]]
    if tables == "batch":
        for index, table in enumerate(angles):
            angles[index] = far_tensor(tmp_path, (batch, length, size // 2), torch.float32)
            angles[index][-last:] = table
    call = KernelCall("QKVRotary", (qkv, as_tensor(arrays[1]), *angles), attributes)
    run_last_programs(monkeypatch, call, outputs, 3)
    monkeypatch.undo()
    for far, expected in zip(outputs, run_kernel(QKV_ROTARY, arrays, **attributes), strict=True):
        np.testing.assert_array_equal(as_array(far[-last:]), expected)
