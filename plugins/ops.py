"""The table of custom ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from plugins.contract import PluginContract
from plugins.fused_bias_gelu import contract as fused_bias_gelu_contract
from plugins.fused_bias_gelu import function_body as fused_bias_gelu_body
from plugins.fused_bias_gelu import reference as fused_bias_gelu_reference
from plugins.interleaved_rotary import contract as interleaved_rotary_contract
from plugins.interleaved_rotary import function_body as interleaved_rotary_body
from plugins.interleaved_rotary import reference as interleaved_rotary_reference
from plugins.residual_layer_norm import contract as residual_layer_norm_contract
from plugins.residual_layer_norm import function_body as residual_layer_norm_body
from plugins.residual_layer_norm import reference as residual_layer_norm_reference
from plugins.scaled_dot_product_attention import contract as attention_contract
from plugins.scaled_dot_product_attention import function_body as attention_body
from plugins.scaled_dot_product_attention import reference as attention_reference

__all__ = ["FUSED_BIAS_GELU", "INTERLEAVED_ROTARY", "OPS", "RESIDUAL_LAYER_NORM", "SCALED_DOT_PRODUCT_ATTENTION", "Op"]


@dataclass(frozen=True)
class Op:
    """One custom op and its implementations."""

    contract: PluginContract
    reference: Callable[..., Any]  # NumPy float64; arguments are the contract's inputs, attributes by keyword
    function_body: Callable[[], onnx.FunctionProto]


INTERLEAVED_ROTARY = Op(
    interleaved_rotary_contract.CONTRACT,
    interleaved_rotary_reference.reference,
    interleaved_rotary_body.function_body,
)
RESIDUAL_LAYER_NORM = Op(
    residual_layer_norm_contract.CONTRACT,
    residual_layer_norm_reference.reference,
    residual_layer_norm_body.function_body,
)
SCALED_DOT_PRODUCT_ATTENTION = Op(
    attention_contract.CONTRACT,
    attention_reference.reference,
    attention_body.function_body,
)
FUSED_BIAS_GELU = Op(
    fused_bias_gelu_contract.CONTRACT,
    fused_bias_gelu_reference.reference,
    fused_bias_gelu_body.function_body,
)
OPS: dict[str, Op] = {
    op.contract.op_type: op
    for op in (INTERLEAVED_ROTARY, RESIDUAL_LAYER_NORM, SCALED_DOT_PRODUCT_ATTENTION, FUSED_BIAS_GELU)
}
