"""``InterleavedRotary`` in float64 NumPy: slow, obvious, and what every other implementation is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["reference"]


def reference(x: NDArray[np.generic], cos: NDArray[np.generic], sin: NDArray[np.generic]) -> NDArray[np.float64]:
    """Multiplies each pair (x[2i], x[2i+1]), read as a complex number, by cos[i] + j sin[i].

    Args:
        x: (B, H, S, D), any float dtype.
        cos, sin: (P, S, D/2) with P one or B.

    Returns:
        (B, H, S, D) float64.
    """
    wide = np.ascontiguousarray(x, dtype=np.float64)
    rotation = cos.astype(np.float64) + 1j * sin.astype(np.float64)
    return (wide.view(np.complex128) * rotation[:, None]).view(np.float64)
