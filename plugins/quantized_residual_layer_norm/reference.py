"""``QuantizedResidualLayerNorm`` in NumPy, in float64 up to the rounding to int8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plugins.residual_layer_norm.reference import reference as residual_layer_norm

__all__ = ["reference"]


def reference(
    x: NDArray[np.generic],
    residual: NDArray[np.generic],
    bias: NDArray[np.generic],
    gamma: NDArray[np.generic],
    beta: NDArray[np.generic],
    scale: NDArray[np.generic],
    *,
    epsilon: float,
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.float64]]:
    """Adds, normalises, and quantises as ONNX's QuantizeLinear does with a zero point of zero.

    Args:
        x, residual: (B, S, E), any float dtype.
        bias, gamma, beta: (E,).
        scale: () above zero, what one step of the result stands for.
        epsilon: Added to the variance.

    Returns:
        quantized (B, S, E) int8; y and s, (B, S, E) float64 each.
    """
    y, s = residual_layer_norm(x, residual, bias, gamma, beta, epsilon=epsilon)
    steps = np.clip(np.rint(y / scale.astype(np.float64)), -128, 127)
    return steps.astype(np.int8), y, s
