"""The contract of ``InterleavedRotary``."""

from plugins.contract import FLOATS, PluginContract, TensorSpec

__all__ = ["CONTRACT"]

CONTRACT = PluginContract(
    op_type="InterleavedRotary",
    summary="y[2i] = x[2i] cos[i] - x[2i+1] sin[i];  y[2i+1] = x[2i+1] cos[i] + x[2i] sin[i]",
    inputs=(
        TensorSpec("x", ("B", "H", "S", "D"), FLOATS),
        # The angles stay in float32 at every precision: a half-precision position loses whole tokens past 2048.
        TensorSpec("cos", ("P", "S", "D/2"), ("float32",)),
        TensorSpec("sin", ("P", "S", "D/2"), ("float32",)),
    ),
    outputs=(TensorSpec("y", ("B", "H", "S", "D"), FLOATS),),
    attributes=(),
    float32_tolerance=2e-6,
    tolerance_reason="two products and one sum of values up to about 5: three roundings of 2^-24, doubled",
)
