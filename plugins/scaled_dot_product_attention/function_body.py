"""``ScaledDotProductAttention`` in standard ONNX ops, so that a fused graph runs in any ONNX runtime."""

from __future__ import annotations

import onnx
from onnx import parser

__all__ = ["function_body"]

BODY = """
<domain: "rotary_press", opset_import: ["" : 20]>
ScaledDotProductAttention <scale, zero_masked_rows> (q, k, v, mask) => (y) {
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    last = Constant <value_ints: ints = [-1]> ()
    factor = Constant <value_float: float = @scale> ()
    narrow_factor = CastLike (factor, q)
    scaled = Mul (q, narrow_factor)
    columns = Transpose <perm: ints = [0, 1, 3, 2]> (k)
    product = MatMul (scaled, columns)
    wide_product = Cast <to: int = 1> (product)
    scores = Add (wide_product, mask)
    weights = Softmax <axis: int = -1> (scores)
    narrow_weights = CastLike (weights, q)
    sum = MatMul (narrow_weights, v)
    first_weight = Slice (weights, zero, one, last)
    is_masked = IsNaN (first_weight)
    choice = Constant <value_int: int = @zero_masked_rows> ()
    is_chosen = Cast <to: int = 9> (choice)
    becomes_zero = And (is_masked, is_chosen)
    nothing = Constant <value_float: float = 0.0> ()
    narrow_nothing = CastLike (nothing, q)
    y = Where (becomes_zero, narrow_nothing, sum)
}
"""


def function_body() -> onnx.FunctionProto:
    """q: (B, H, S, D); k, v: (B, H, K, D); mask: float32 -> y: (B, H, S, D) of q's dtype; softmax in float32.

    A row of weights is NaN as a whole or not at all, so its first weight tells.
    """
    return parser.parse_function(BODY)
