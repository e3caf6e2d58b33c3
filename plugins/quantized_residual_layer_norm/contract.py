"""The contract of ``QuantizedResidualLayerNorm``."""

from plugins.contract import FLOATS, PluginContract, TensorSpec
from plugins.residual_layer_norm.contract import CONTRACT as FLOAT

__all__ = ["CONTRACT"]

CONTRACT = PluginContract(
    op_type="QuantizedResidualLayerNorm",
    summary=f"{FLOAT.summary};  quantized = clip(round_half_even(y / scale), -128, 127)",
    inputs=(*FLOAT.inputs, TensorSpec("scale", (), ("float32",))),
    outputs=(
        TensorSpec("quantized", ("B", "S", "E"), ("int8",)),
        # What the next residual adds: the norm in post-norm encoders, the sum in pre-norm ones.
        TensorSpec("y", ("B", "S", "E"), FLOATS, optional=True),
        TensorSpec("s", ("B", "S", "E"), FLOATS, optional=True),
    ),
    attributes=FLOAT.attributes,
    float32_tolerance=FLOAT.float32_tolerance,
    tolerance_reason=f"{FLOAT.tolerance_reason}; where y / scale is that near to a half, the step may be the other one",
)
