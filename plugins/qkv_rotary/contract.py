"""The contract of ``QKVRotary``."""

from plugins.contract import FLOATS, AttributeSpec, PluginContract, TensorSpec

__all__ = ["CONTRACT"]

CONTRACT = PluginContract(
    op_type="QKVRotary",
    summary="q, k, v = split(qkv + bias) into heads;  q = scale rotate(q), k = rotate(k), v = v or rotate(v)",
    inputs=(
        # One matrix product of the three weights side by side, without its bias: q's features, then k's, then v's.
        TensorSpec("qkv", ("B", "S", "3HD"), FLOATS),
        TensorSpec("bias", ("3HD",), ("float32",)),  # float32 as in ResidualLayerNorm; zeros where there is none
        TensorSpec("cos", ("P", "S", "D/2"), ("float32",)),  # float32 as in InterleavedRotary
        TensorSpec("sin", ("P", "S", "D/2"), ("float32",)),
    ),
    outputs=(
        TensorSpec("q", ("B", "H", "S", "D"), FLOATS),
        TensorSpec("k", ("B", "H", "S", "D"), FLOATS),
        TensorSpec("v", ("B", "H", "S", "D"), FLOATS),
    ),
    attributes=(
        AttributeSpec("num_heads", "int", "of each of q, k and v", size="H"),
        AttributeSpec("scale", "float", "multiplies q, so that the attention after it need not scale its scores"),
        AttributeSpec("rotary_value", "int", "1: v is rotated as well; 0: it is not"),
    ),
    float32_tolerance=4e-6,
    tolerance_reason="as InterleavedRotary, with the sum before and the product after it",
)
