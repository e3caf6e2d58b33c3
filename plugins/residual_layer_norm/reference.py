"""``ResidualLayerNorm`` in float64 NumPy: slow, obvious, and what every other implementation is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["reference"]


def reference(
    x: NDArray[np.generic],
    residual: NDArray[np.generic],
    bias: NDArray[np.generic],
    gamma: NDArray[np.generic],
    beta: NDArray[np.generic],
    *,
    epsilon: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Adds, then normalises over the last axis with the biased variance (Ba et al., arXiv 1607.06450).

    Args:
        x, residual: (B, S, E), any float dtype.
        bias, gamma, beta: (E,).
        epsilon: Added to the variance.

    Returns:
        y and s, (B, S, E) float64 each.
    """
    total = x.astype(np.float64) + bias.astype(np.float64) + residual.astype(np.float64)
    centred = total - total.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    normalized = centred / np.sqrt(variance + epsilon)
    return normalized * gamma.astype(np.float64) + beta.astype(np.float64), total
