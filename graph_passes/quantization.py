"""What both int8 passes share: which products they quantise, and how a weight is kept.

Weights are kept so that no x86 processor saturates, whatever the activations are. Without VNNI instructions, ONNX
Runtime multiplies unsigned 8-bit activations with signed 8-bit weights by VPMADDUBSW, which adds the products of two
neighbouring rows, (0, 1), (2, 3), …, in 16 bits with saturation. So a column's scale is the larger of two:

    the largest |weight| / 127          the largest sum of two such neighbours of one sign / 128

since 255 * 128 fits into 16 bits. Neighbours of opposite signs cannot pass 255 * 127. Columns whose neighbours are
small keep the first scale. Others lose one bit at most, usually half of one, which the results do not show
(benchmarks/int8_weights.py compares with seven bits and with the runtime's own remedy).

Source: ONNX Runtime's onnxruntime/core/mlas/lib. amd64/QgemmU8X8KernelAvx2.asm and amd64/QgemmU8X8KernelAvx512Core.asm
(products by VPMADDUBSW; with VNNI by VPDPBUSDS, in 32 bits), amd64/QgemvU8S8KernelAvx2.asm (the same for one row),
qgemm_kernel_type.h (rows are packed by four, and blocks of them are multiples of four, so pairs begin at even rows),
qgemm_kernel_sse.cpp (older processors multiply in 16 bits, which is exact), platform.cpp (which is chosen).
Dynamic products (MatMulInteger, DynamicQuantizeMatMul) and static ones (QLinearMatMul, QGemm) share these kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.errors import PassError
from graph_passes.graph_pass import NearMiss
from graph_passes.graph_tools import constant_value, is_fused
from plugins.ops import RESIDUAL_LAYER_NORM

__all__ = [
    "Product",
    "products_to_quantize",
    "quantize_weight",
    "round_up",
    "round_weight",
    "smallest_scale",
    "tensors_to_quantize",
]

SMALLEST_SIDE = 16  # a smaller product gains nothing and loses accuracy
LARGEST = 127  # -128 has no opposite
LARGEST_ACTIVATION = 255
LARGEST_PAIR = 128  # 255 * 128 is the last multiple of 255 that 16 bits with a sign hold
# A sum begins with minus the zero point times the column, and each of both is at most 255 * 127 for a row.
MOST_ROWS = (2**31 - 1) // (2 * LARGEST_ACTIVATION * LARGEST)
PRODUCTS = ("MatMul", "Gemm")


class Product(NamedTuple):
    """A MatMul of a tensor (…, K) and a constant ``weight`` (K, N) float32."""

    node: gs.Node
    weight: NDArray[np.float32]


def products_to_quantize(graph: gs.Graph) -> tuple[list[Product], list[NearMiss]]:
    """The products with a constant weight whose result reaches a ResidualLayerNorm, in the order of the graph.

    Those are q, k, v, output, FC1 and FC2 of every layer, and what projects embeddings.

    Returns:
        The products, and of every other one with a constant weight why it is left alone.
    """
    encoder = upstream_of_norms(graph)
    chosen: list[Product] = []
    left_alone: list[NearMiss] = []
    for node in graph.nodes:
        weight = constant_value(node.inputs[1]) if node.op in PRODUCTS and not node.domain else None
        if weight is None:
            continue
        if reason := reason_to_leave(node, weight, encoder):
            left_alone.append(NearMiss(node.name, reason))
        else:
            chosen.append(Product(node, weight))
    return chosen, left_alone


def tensors_to_quantize(graph: gs.Graph) -> list[gs.Tensor]:
    """What those products read, each tensor once: the tensors of which a static quantisation must know the range."""
    products, _ = products_to_quantize(graph)
    return list({id(node.inputs[0]): node.inputs[0] for node, _ in products}.values())


def reason_to_leave(node: gs.Node, weight: NDArray[Any], encoder: set[int]) -> str | None:
    """Why a product stays in float32, or ``None`` where it is to be quantised."""
    if id(node) not in encoder:
        return "it lies after the last norm of the encoder, where precision is worth more than time"
    if node.op != "MatMul":
        return f"a {node.op} is no plain product"
    if weight.ndim != 2 or min(weight.shape) < SMALLEST_SIDE:
        return f"its weight of shape {weight.shape} is too small to gain from int8"
    if len(weight) > MOST_ROWS:
        return f"its weight of shape {weight.shape} has more than {MOST_ROWS} rows: 32 bits may not hold their sum"
    return None


def upstream_of_norms(graph: gs.Graph) -> set[int]:
    """The ids of all nodes from which a ResidualLayerNorm can be reached."""
    pending = [node for node in graph.nodes if is_fused(node, RESIDUAL_LAYER_NORM.contract.op_type)]
    seen: set[int] = set()
    while pending:
        for tensor in pending.pop().inputs:
            for node in tensor.inputs:
                if id(node) not in seen:
                    seen.add(id(node))
                    pending.append(node)
    return seen


def quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(K, N) float32 -> (K, N) int8 and (N,) float32 with weight ≈ int8 * scale, safe on every processor."""
    # Not below the smallest normal number: a scale of zero, or with few bits left, would not give the weights back.
    scale = round_up(np.maximum(smallest_scale(weight), np.finfo(np.float32).tiny), np.float32)
    return round_weight(weight, scale), scale


def smallest_scale(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """The smallest safe scales (N,) of a weight (K, N); zero for a column of zeros."""
    exact = weight.astype(np.float64)
    scale: NDArray[np.float64] = np.maximum(np.abs(exact).max(axis=0) / LARGEST, pair_sums(exact) / LARGEST_PAIR)
    return scale


def round_weight(weight: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """(K, N) float32 in steps of (N,) scales, none of which is below the smallest safe one.

    Raises:
        PassError: If the result could saturate: computed in integers, over all activations.
    """
    # In float64, and ties to even: the halves of a pair that fills its 128 steps are not both rounded up.
    steps: NDArray[np.int8] = np.clip(np.rint(weight.astype(np.float64) / scale), -LARGEST, LARGEST).astype(np.int8)
    if (worst := int(pair_sums(steps.astype(np.int32)).max())) > LARGEST_PAIR:
        raise PassError(
            f"Two neighbouring int8 weights of {steps.shape} add up to {worst}, expected at most {LARGEST_PAIR}: their "
            f"products could saturate. This is a mistake of Rotary Press: please report it with the graph."
        )
    return steps


def pair_sums(values: NDArray[Any]) -> NDArray[Any]:
    """The largest magnitude (N,) that rows (0, 1), (2, 3), … of ``values`` (K, N) reach together, signs apart.

    Times 255, for int8 weights, this is the worst case over all unsigned activations: those that are 255 where the
    weight has one sign, and 0 where it has the other.
    """
    first_rows = np.arange(0, values.shape[0], 2)
    positive, negative = (np.add.reduceat(np.maximum(sign * values, 0), first_rows, axis=0) for sign in (1, -1))
    return np.asarray(np.maximum(positive, negative).max(axis=0))


def round_up(values: NDArray[np.float64], dtype: type[np.floating]) -> NDArray[Any]:
    """The smallest numbers of ``dtype`` that are not below ``values``, of the same shape."""
    with np.errstate(over="ignore"):  # beyond the largest is infinite
        nearest = values.astype(dtype)
        return np.where(nearest < values, np.nextafter(nearest, dtype(np.inf)), nearest)
