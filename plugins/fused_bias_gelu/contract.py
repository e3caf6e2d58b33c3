"""The contract of ``FusedBiasGelu``."""

from plugins.contract import FLOATS, AttributeSpec, PluginContract, TensorSpec

__all__ = ["CONTRACT"]

CONTRACT = PluginContract(
    op_type="FusedBiasGelu",
    summary='y = t Φ(t) with t = x + bias; "tanh": y = t / 2 (1 + tanh(sqrt(2 / π) (t + 0.044715 t³)))',
    inputs=(
        TensorSpec("x", ("B", "S", "E"), FLOATS),
        TensorSpec("bias", ("E",), ("float32",)),  # as gamma and beta of the norm: E numbers cost nothing
    ),
    outputs=(TensorSpec("y", ("B", "S", "E"), FLOATS),),
    attributes=(AttributeSpec("approximate", "string", "none or tanh, as of ONNX's own Gelu"),),
    float32_tolerance=4e-6,
    tolerance_reason="runtimes' erf and tanh are good to 4 units of 2^-24, of values up to 5, and two roundings",
)
