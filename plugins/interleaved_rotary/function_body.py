"""``InterleavedRotary`` in standard ONNX ops, so that a fused graph runs in any ONNX runtime."""

from __future__ import annotations

import onnx
from onnx import parser

__all__ = ["ROTATION", "function_body"]

# From cos, sin (P, S, D/2) and a tensor (…, S, D), all float32, to ``rotated`` of its shape; QKVRotary does the same.
ROTATION = """
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    last = Constant <value_ints: ints = [-1]> ()
    end = Constant <value_ints: ints = [9223372036854775807]> ()
    c = Unsqueeze (cos, one)
    s = Unsqueeze (sin, one)
    even = Slice ({x}, zero, end, last, two)
    odd = Slice ({x}, one, end, last, two)
    even_cos = Mul (even, c)
    odd_sin = Mul (odd, s)
    odd_cos = Mul (odd, c)
    even_sin = Mul (even, s)
    first = Sub (even_cos, odd_sin)
    second = Add (odd_cos, even_sin)
    first_of_pair = Unsqueeze (first, last)
    second_of_pair = Unsqueeze (second, last)
    pairs = Concat <axis: int = -1> (first_of_pair, second_of_pair)
    shape = Shape ({x})
    rotated = Reshape (pairs, shape)
"""
BODY = f"""
<domain: "rotary_press", opset_import: ["" : 20]>
InterleavedRotary (x, cos, sin) => (y) {{
    wide = Cast <to: int = 1> (x)
    {ROTATION.format(x="wide")}
    y = CastLike (rotated, x)
}}
"""


def function_body() -> onnx.FunctionProto:
    """x: (B, H, S, D); cos, sin: (P, S, D/2) float32 -> y: (B, H, S, D) of x's dtype; computed in float32."""
    return parser.parse_function(BODY)
