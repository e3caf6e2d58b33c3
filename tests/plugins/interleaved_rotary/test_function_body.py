"""The body of ``InterleavedRotary`` in standard ops, in two runtimes, against the float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.ops import INTERLEAVED_ROTARY

EvaluateBody = Callable[..., list[NDArray[Any]]]


@pytest.mark.parametrize("rows", ["one", "batch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (1, 3, 7, 6), (2, 3, 1, 10), (3, 2, 5, 2), (2, 5, 13, 24)])
def test_it_is_as_good_as_its_dtype(
    evaluate_body: EvaluateBody,
    assert_rounds_once: Callable[..., None],
    sizes: tuple[int, int, int, int],
    dtype: type,
    rows: str,
) -> None:
    batch, _, length, size = sizes
    random = np.random.default_rng(0)
    x: NDArray[Any] = random.standard_normal(sizes).astype(dtype)
    angle = random.uniform(-7, 7, (1 if rows == "one" else batch, length, size // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    (found,) = evaluate_body(INTERLEAVED_ROTARY, (x, cos, sin))
    assert found.dtype == dtype
    truth = INTERLEAVED_ROTARY.reference(x, cos, sin)
    assert_rounds_once(found, truth, INTERLEAVED_ROTARY.contract.float32_tolerance)


def test_half_precision_is_rounded_at_the_end_alone(evaluate_body: EvaluateBody) -> None:
    """Two products that cancel but for 2^-13: rounded to half precision on the way, nothing would be left."""
    x = np.array([[[[1.0, 1.0]]]], dtype=np.float16)
    cos, sin = (np.array([[[value]]], dtype=np.float32) for value in (0.5 + 2.0**-13, 0.5))
    (found,) = evaluate_body(INTERLEAVED_ROTARY, (x, cos, sin))
    assert found[0, 0, 0, 0] == 2.0**-13
