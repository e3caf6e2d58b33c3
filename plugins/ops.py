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
from plugins.qkv_rotary import contract as qkv_rotary_contract
from plugins.qkv_rotary import function_body as qkv_rotary_body
from plugins.qkv_rotary import reference as qkv_rotary_reference
from plugins.quantized_residual_layer_norm import contract as quantized_norm_contract
from plugins.quantized_residual_layer_norm import function_body as quantized_norm_body
from plugins.quantized_residual_layer_norm import reference as quantized_norm_reference
from plugins.residual_layer_norm import contract as residual_layer_norm_contract
from plugins.residual_layer_norm import function_body as residual_layer_norm_body
from plugins.residual_layer_norm import reference as residual_layer_norm_reference
from plugins.scaled_dot_product_attention import contract as attention_contract
from plugins.scaled_dot_product_attention import function_body as attention_body
from plugins.scaled_dot_product_attention import reference as attention_reference

__all__ = [
    "FUSED_BIAS_GELU",
    "INTERLEAVED_ROTARY",
    "OPS",
    "QKV_ROTARY",
    "QUANTIZED_RESIDUAL_LAYER_NORM",
    "RESIDUAL_LAYER_NORM",
    "SCALED_DOT_PRODUCT_ATTENTION",
    "Op",
]


@dataclass(frozen=True)
class Op:
    """One custom op and its implementations."""

    contract: PluginContract
    reference: Callable[..., Any]  # NumPy float64; arguments are the contract's inputs, attributes by keyword
    function_body: Callable[[], onnx.FunctionProto]
    # Whether TensorRT is to run a kernel of ours, plugins.OP.kernel. Otherwise each lowering writes the op in standard
    # ones: compilers have better kernels for it, and a plugin would stand in their way.
    has_kernel: bool


INTERLEAVED_ROTARY = Op(
    interleaved_rotary_contract.CONTRACT,
    interleaved_rotary_reference.reference,
    interleaved_rotary_body.function_body,
    has_kernel=True,
)
QKV_ROTARY = Op(
    qkv_rotary_contract.CONTRACT,
    qkv_rotary_reference.reference,
    qkv_rotary_body.function_body,
    has_kernel=True,
)
RESIDUAL_LAYER_NORM = Op(
    residual_layer_norm_contract.CONTRACT,
    residual_layer_norm_reference.reference,
    residual_layer_norm_body.function_body,
    has_kernel=True,
)
QUANTIZED_RESIDUAL_LAYER_NORM = Op(
    quantized_norm_contract.CONTRACT,
    quantized_norm_reference.reference,
    quantized_norm_body.function_body,
    has_kernel=True,
)
SCALED_DOT_PRODUCT_ATTENTION = Op(
    attention_contract.CONTRACT,
    attention_reference.reference,
    attention_body.function_body,
    has_kernel=False,
)
FUSED_BIAS_GELU = Op(
    fused_bias_gelu_contract.CONTRACT,
    fused_bias_gelu_reference.reference,
    fused_bias_gelu_body.function_body,
    has_kernel=False,
)
OPS: dict[str, Op] = {
    op.contract.op_type: op
    for op in (
        INTERLEAVED_ROTARY,
        QKV_ROTARY,
        RESIDUAL_LAYER_NORM,
        QUANTIZED_RESIDUAL_LAYER_NORM,
        SCALED_DOT_PRODUCT_ATTENTION,
        FUSED_BIAS_GELU,
    )
}
