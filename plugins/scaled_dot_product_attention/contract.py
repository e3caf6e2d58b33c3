"""The contract of ``ScaledDotProductAttention``."""

from plugins.contract import FLOATS, AttributeSpec, PluginContract, TensorSpec

__all__ = ["CONTRACT"]

CONTRACT = PluginContract(
    op_type="ScaledDotProductAttention",
    summary="y = softmax(scale q kᵀ + mask) v, over the last axis",
    inputs=(
        TensorSpec("q", ("B", "H", "S", "D"), FLOATS),
        TensorSpec("k", ("B", "H", "K", "D"), FLOATS),
        TensorSpec("v", ("B", "H", "K", "D"), FLOATS),
        # Added to the scores, in float32 at every precision: half precision turns -3.4e38 into -inf, and a row that is
        # all padding into NaN. It also holds relative positions. A zero of shape (1, 1, 1, 1) is no mask.
        TensorSpec("mask", ("B|1", "H|1", "S|1", "K|1"), ("float32",)),
    ),
    outputs=(TensorSpec("y", ("B", "H", "S", "D"), FLOATS),),
    attributes=(
        AttributeSpec("scale", "float", "of the scores; 1 / sqrt(D) in both families"),
        AttributeSpec(
            "zero_masked_rows",
            "int",
            "1: a row of which every score is -inf gives zeros, as torch's attention does with a boolean mask; "
            "0: it gives NaN, as softmax does",
        ),
    ),
    float32_tolerance=2e-5,
    tolerance_reason="scores sum D products of values up to 5: sqrt(D) roundings of 2^-24, which softmax doubles",
)
