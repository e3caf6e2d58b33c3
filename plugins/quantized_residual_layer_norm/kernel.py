"""``QuantizedResidualLayerNorm``: ``ResidualLayerNorm``'s kernel with one more output. Importing this needs Triton."""

from __future__ import annotations

from plugins.kernel import Kernel
from plugins.quantized_residual_layer_norm.contract import CONTRACT
from plugins.residual_layer_norm.kernel import TACTICS, launch_of, residual_layer_norm

__all__ = ["KERNEL"]

KERNEL = Kernel(CONTRACT, residual_layer_norm, ("rows",), launch_of(("y", "s")), fixed=("E",), tactics=TACTICS)
