"""``ResidualLayerNorm`` in standard ONNX ops, so that a fused graph runs in any ONNX runtime."""

from __future__ import annotations

import onnx
from onnx import parser

__all__ = ["function_body"]

BODY = """
<domain: "rotary_press", opset_import: ["" : 20]>
ResidualLayerNorm <epsilon> (x, residual, bias, gamma, beta) => (y, s) {
    wide_x = Cast <to: int = 1> (x)
    wide_residual = Cast <to: int = 1> (residual)
    biased = Add (wide_x, bias)
    total = Add (biased, wide_residual)
    norm = LayerNormalization <axis: int = -1, epsilon: float = @epsilon, stash_type: int = 1> (total, gamma, beta)
    y = CastLike (norm, x)
    s = CastLike (total, x)
}
"""


def function_body() -> onnx.FunctionProto:
    """x, residual: (B, S, E); bias, gamma, beta: (E,) float32 -> y, s: (B, S, E) of x's dtype; computed in float32."""
    return parser.parse_function(BODY)
