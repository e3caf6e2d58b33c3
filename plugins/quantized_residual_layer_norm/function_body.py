"""``QuantizedResidualLayerNorm`` in standard ONNX ops, so that a graph that has it runs in any ONNX runtime."""

from __future__ import annotations

import onnx
from onnx import parser

__all__ = ["function_body"]

BODY = """
<domain: "rotary_press", opset_import: ["" : 20]>
QuantizedResidualLayerNorm <epsilon> (x, residual, bias, gamma, beta, scale) => (quantized, y, s) {
    wide_x = Cast <to: int = 1> (x)
    wide_residual = Cast <to: int = 1> (residual)
    biased = Add (wide_x, bias)
    total = Add (biased, wide_residual)
    norm = LayerNormalization <axis: int = -1, epsilon: float = @epsilon, stash_type: int = 1> (total, gamma, beta)
    zero = Constant <value: tensor = int8 {0}> ()
    quantized = QuantizeLinear (norm, scale, zero)
    y = CastLike (norm, x)
    s = CastLike (total, x)
}
"""


def function_body() -> onnx.FunctionProto:
    """As ``ResidualLayerNorm``, and scale: () float32 -> quantized: (B, S, E) int8; y, s: (B, S, E) of x's dtype."""
    return parser.parse_function(BODY)
