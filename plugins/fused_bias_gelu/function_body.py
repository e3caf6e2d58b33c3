"""``FusedBiasGelu`` in standard ONNX ops, so that a fused graph runs in any ONNX runtime."""

from __future__ import annotations

import onnx
from onnx import parser

__all__ = ["function_body"]

BODY = """
<domain: "rotary_press", opset_import: ["" : 20]>
FusedBiasGelu <approximate> (x, bias) => (y) {
    wide_x = Cast <to: int = 1> (x)
    total = Add (wide_x, bias)
    wide_y = Gelu <approximate: string = @approximate> (total)
    y = CastLike (wide_y, x)
}
"""


def function_body() -> onnx.FunctionProto:
    """x: (B, S, E); bias: (E,) float32 -> y: (B, S, E) of x's dtype; computed in float32."""
    return parser.parse_function(BODY)
