"""The body of ``QKVRotary`` in standard ops, in two runtimes, against the float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.ops import QKV_ROTARY

EvaluateBody = Callable[..., list[NDArray[Any]]]


@pytest.mark.parametrize("rotary_value", [0, 1])
@pytest.mark.parametrize("tables", ["one", "batch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (1, 3, 7, 6), (2, 3, 1, 10), (3, 2, 5, 2), (2, 5, 13, 24)])
def test_it_is_as_good_as_its_dtype(
    evaluate_body: EvaluateBody,
    assert_rounds_once: Callable[..., None],
    sizes: tuple[int, int, int, int],
    dtype: type,
    tables: str,
    rotary_value: int,
) -> None:
    batch, heads, length, size = sizes
    random = np.random.default_rng(0)
    qkv: NDArray[Any] = random.standard_normal((batch, length, 3 * heads * size)).astype(dtype)
    bias = random.standard_normal(3 * heads * size).astype(np.float32)
    angle = random.uniform(-7, 7, (1 if tables == "one" else batch, length, size // 2))
    arrays = [qkv, bias, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)]
    attributes = {"num_heads": heads, "scale": 0.3, "rotary_value": rotary_value}
    found = evaluate_body(QKV_ROTARY, arrays, **attributes)
    assert [array.dtype for array in found] == [dtype] * 3
    for array, truth in zip(found, QKV_ROTARY.reference(*arrays, **attributes), strict=True):
        assert_rounds_once(array, truth, QKV_ROTARY.contract.float32_tolerance)


def test_the_bias_and_the_scale_come_before_the_rounding(evaluate_body: EvaluateBody) -> None:
    """In half precision, 2048 + 1 is 2048 and 2048 + 3 is 2052: q would be 1536 and 1539."""
    qkv = np.full((1, 1, 6), 2048, dtype=np.float16)
    bias = np.array([1, 3, 1, 3, -2047.5, 0.5], dtype=np.float32)
    cos, sin = np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    q, k, v = evaluate_body(QKV_ROTARY, (qkv, bias, cos, sin), num_heads=1, scale=0.75, rotary_value=1)
    assert q.ravel().tolist() == [1537, 1538]
    assert k.ravel().tolist() == [2048, 2052]
    assert v.ravel().tolist() == [0.5, 2048]
