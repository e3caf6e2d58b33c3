"""``QKVRotary`` in standard ONNX ops, so that a graph that has it runs in any ONNX runtime."""

from __future__ import annotations

import onnx
from onnx import parser

from plugins.interleaved_rotary.function_body import ROTATION

__all__ = ["function_body"]

BODY = f"""
<domain: "rotary_press", opset_import: ["" : 20]>
QKVRotary <num_heads, scale, rotary_value> (qkv, bias, cos, sin) => (q, k, v) {{
    wide = Cast <to: int = 1> (qkv)
    total = Add (wide, bias)
    heads = Constant <value_int: int = @num_heads> ()
    vector = Constant <value_ints: ints = [1]> ()
    number_of_heads = Reshape (heads, vector)
    lead = Constant <value_ints: ints = [0, 0, 3]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    in_heads = Concat <axis: int = 0> (lead, number_of_heads, rest)
    split_in_heads = Reshape (total, in_heads)
    heads_first = Transpose <perm: ints = [2, 0, 3, 1, 4]> (split_in_heads)
    {ROTATION.format(x="heads_first")}
    thirds = Constant <value_ints: ints = [1, 1, 1]> ()
    q_alone, k_alone, v_alone = Split <axis: int = 0> (heads_first, thirds)
    q_rotated, k_rotated, v_rotated = Split <axis: int = 0> (rotated, thirds)
    factor = Constant <value_float: float = @scale> ()
    scaled_q = Mul (q_rotated, factor)
    rotary_value_number = Constant <value_int: int = @rotary_value> ()
    is_rotated = Cast <to: int = 9> (rotary_value_number)
    chosen_v = Where (is_rotated, v_rotated, v_alone)
    wide_q = Squeeze (scaled_q, zero)
    wide_k = Squeeze (k_rotated, zero)
    wide_v = Squeeze (chosen_v, zero)
    q = CastLike (wide_q, qkv)
    k = CastLike (wide_k, qkv)
    v = CastLike (wide_v, qkv)
}}
"""


def function_body() -> onnx.FunctionProto:
    """qkv: (B, S, 3HD); bias: (3HD,); cos, sin: (P, S, D/2) float32 -> q, k, v: (B, H, S, D); computed in float32."""
    return parser.parse_function(BODY)
