"""``ScaledDotProductAttention`` in float64 NumPy: slow, obvious, and what every implementation is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["reference"]


def reference(
    q: NDArray[np.generic],
    k: NDArray[np.generic],
    v: NDArray[np.generic],
    mask: NDArray[np.generic],
    *,
    scale: float,
    zero_masked_rows: int,
) -> NDArray[np.float64]:
    """Weighs the values by the softmax of the scores (Vaswani et al., arXiv 1706.03762, section 3.2.1).

    Args:
        q: (B, H, S, D), any float dtype.
        k, v: (B, H, K, D).
        mask: Added to the scores: (B, H, S, K), any axis of it one.
        scale: Of the scores, before the mask is added.
        zero_masked_rows: Whether a row whose scores are all -inf gives zeros; otherwise it gives NaN.

    Returns:
        (B, H, S, D) float64.
    """
    wide_q, wide_k, wide_v = (array.astype(np.float64) for array in (q, k, v))
    scores = scale * (wide_q @ wide_k.swapaxes(-1, -2)) + mask.astype(np.float64)
    largest = scores.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # -inf less -inf
        exponentials = np.exp(scores - largest)
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True) @ wide_v
    return np.where(zero_masked_rows and np.isneginf(largest), 0.0, result)
