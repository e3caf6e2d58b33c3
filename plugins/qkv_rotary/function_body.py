"""``QKVRotary`` in standard ONNX ops, so that a graph that has it runs in any ONNX runtime."""

from __future__ import annotations

import onnx
from onnx import parser

__all__ = ["function_body"]

BODY = """
<domain: "rotary_press", opset_import: ["" : 20]>
QKVRotary <num_heads, scale, rotary_value> (qkv, bias, cos, sin) => (q, k, v) {
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    last = Constant <value_ints: ints = [-1]> ()
    end = Constant <value_ints: ints = [9223372036854775807]> ()
    thirds = Constant <value_ints: ints = [1, 1, 1]> ()
    c = Unsqueeze (cos, one)
    s = Unsqueeze (sin, one)

    wide = Cast <to: int = 1> (qkv)
    total = Add (wide, bias)
    heads_number = Constant <value_int: int = @num_heads> ()
    heads = Reshape (heads_number, one)
    lead = Constant <value_ints: ints = [0, 0, 3]> ()
    in_heads = Concat <axis: int = 0> (lead, heads, last)
    split_in_heads = Reshape (total, in_heads)
    heads_first = Transpose <perm: ints = [2, 0, 3, 1, 4]> (split_in_heads)
    q_alone, k_alone, v_alone = Split <axis: int = 0> (heads_first, thirds)
    plain_v = Squeeze (v_alone, zero)

    even = Slice (heads_first, zero, end, last, two)
    odd = Slice (heads_first, one, end, last, two)
    even_cos = Mul (even, c)
    odd_sin = Mul (odd, s)
    odd_cos = Mul (odd, c)
    even_sin = Mul (even, s)
    first = Sub (even_cos, odd_sin)
    second = Add (odd_cos, even_sin)
    first_of_pair = Unsqueeze (first, last)
    second_of_pair = Unsqueeze (second, last)
    pairs = Concat <axis: int = -1> (first_of_pair, second_of_pair)
    shape = Shape (heads_first)
    rotated = Reshape (pairs, shape)
    q_rotated, k_rotated, v_rotated = Split <axis: int = 0> (rotated, thirds)

    factor = Constant <value_float: float = @scale> ()
    scaled_q = Mul (q_rotated, factor)
    wide_q = Squeeze (scaled_q, zero)
    wide_k = Squeeze (k_rotated, zero)
    turned_v = Squeeze (v_rotated, zero)
    rotary_value_number = Constant <value_int: int = @rotary_value> ()
    is_rotated = Cast <to: int = 9> (rotary_value_number)
    wide_v = Where (is_rotated, turned_v, plain_v)
    q = CastLike (wide_q, qkv)
    k = CastLike (wide_k, qkv)
    v = CastLike (wide_v, qkv)
}
"""


def function_body() -> onnx.FunctionProto:
    """qkv: (B, S, 3HD); bias: (3HD,); cos, sin: (P, S, D/2) float32 -> q, k, v: (B, H, S, D); computed in float32."""
    return parser.parse_function(BODY)
