"""``QKVRotary`` in float64 NumPy: slow, obvious, and what every other implementation is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plugins.interleaved_rotary.reference import reference as rotate

__all__ = ["reference"]


def reference(
    qkv: NDArray[np.generic],
    bias: NDArray[np.generic],
    cos: NDArray[np.generic],
    sin: NDArray[np.generic],
    *,
    num_heads: int,
    scale: float,
    rotary_value: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Adds the bias, splits into heads and rotates, as RoFormer's self-attention does (Su et al., arXiv 2104.09864).

    Args:
        qkv: (B, S, 3HD), any float dtype.
        bias: (3HD,).
        cos, sin: (P, S, D/2) with P one or B.
        num_heads: H.
        scale: Multiplies q.
        rotary_value: Whether v is rotated as well.

    Returns:
        q, k and v, (B, H, S, D) float64 each.
    """
    total = qkv.astype(np.float64) + bias.astype(np.float64)
    batch, length, _ = total.shape
    q, k, v = total.reshape(batch, length, 3, num_heads, -1).transpose(2, 0, 3, 1, 4)
    return rotate(q, cos, sin) * scale, rotate(k, cos, sin), rotate(v, cos, sin) if rotary_value else v
