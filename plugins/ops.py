"""The table of custom ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from plugins.contract import PluginContract
from plugins.interleaved_rotary import contract as interleaved_rotary_contract
from plugins.interleaved_rotary import function_body as interleaved_rotary_body
from plugins.interleaved_rotary import reference as interleaved_rotary_reference
from plugins.residual_layer_norm import contract as residual_layer_norm_contract
from plugins.residual_layer_norm import function_body as residual_layer_norm_body
from plugins.residual_layer_norm import reference as residual_layer_norm_reference

__all__ = ["INTERLEAVED_ROTARY", "OPS", "RESIDUAL_LAYER_NORM", "Op"]


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
OPS: dict[str, Op] = {op.contract.op_type: op for op in (INTERLEAVED_ROTARY, RESIDUAL_LAYER_NORM)}
