"""``FusedBiasGelu`` in float64 NumPy: slow, obvious, and what every other implementation is measured against."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["reference"]

erf = np.vectorize(math.erf, otypes=[np.float64])


def reference(x: NDArray[np.generic], bias: NDArray[np.generic], *, approximate: str) -> NDArray[np.float64]:
    """The Gaussian error linear unit of a sum (Hendrycks and Gimpel, arXiv 1606.08415).

    Args:
        x: (B, S, E), any float dtype.
        bias: (E,).
        approximate: ``"none"`` for the normal distribution, ``"tanh"`` for its approximation.

    Returns:
        (B, S, E) float64.

    Raises:
        ValueError: If ``approximate`` is neither.
    """
    total = x.astype(np.float64) + bias.astype(np.float64)
    if approximate == "none":
        probability = erf(total / math.sqrt(2.0)) / 2 + 0.5
    elif approximate == "tanh":
        probability = np.tanh(math.sqrt(2.0 / math.pi) * (total + 0.044715 * total**3)) / 2 + 0.5
    else:
        raise ValueError(f'approximate must be "none" or "tanh"; got {approximate!r}.')
    result: NDArray[np.float64] = total * probability
    return result
