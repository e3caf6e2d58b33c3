"""The contract of ``ResidualLayerNorm``."""

from plugins.contract import FLOATS, AttributeSpec, PluginContract, TensorSpec

__all__ = ["CONTRACT"]

CONTRACT = PluginContract(
    op_type="ResidualLayerNorm",
    summary="s = x + bias + residual;  y = (s - mean(s)) / sqrt(var(s) + epsilon) * gamma + beta, over the last axis",
    inputs=(
        TensorSpec("x", ("B", "S", "E"), FLOATS),
        TensorSpec("residual", ("B", "S", "E"), FLOATS),
        # Float32 at every precision: 3 E numbers that cost nothing, against a rounding of every output. The bias is
        # that of the matrix product before; zeros where there is none.
        TensorSpec("bias", ("E",), ("float32",)),
        TensorSpec("gamma", ("E",), ("float32",)),
        TensorSpec("beta", ("E",), ("float32",)),
    ),
    outputs=(
        TensorSpec("y", ("B", "S", "E"), FLOATS),
        # Pre-norm encoders carry the sum on; post-norm encoders do not need it.
        TensorSpec("s", ("B", "S", "E"), FLOATS, optional=True),
    ),
    attributes=(
        AttributeSpec("epsilon", "float", "added to the variance; 1e-12 in both families, which is zero in float16"),
    ),
    float32_tolerance=2e-5,
    tolerance_reason="mean and variance over E values accumulate about sqrt(E) roundings of 2^-24 of values up to 10",
)
