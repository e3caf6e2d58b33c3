"""Quantise the encoder's matrix products to int8, with activation ranges taken at run time.

    MatMul(x, W)  ->  DynamicQuantizeLinear(x) ─► MatMulInteger(·, W_int8) ─► Cast ─► Mul(scale of x * scale of W)

Weights: symmetric int8, one scale per output feature. Activations: uint8 with a zero point, one scale per tensor, found
on the fly, so no calibration is needed; products that read one tensor (q, k and v) share its quantisation.

Which products: those with a constant weight whose result reaches a ResidualLayerNorm, that is q, k, v, output, FC1 and
FC2. What comes after the last norm (pooler, classifier, vocabulary) and everything that is no product stays in float32.

All nodes are standard ONNX; ONNX Runtime's CPU runs the whole group as one kernel. On that runtime this is the int8
recipe that is faster than float32; static Q/DQ is slower (see benchmarks/).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.graph_pass import GraphPass, NearMiss, PassResult
from graph_passes.graph_tools import constant_value, is_fused, unique_name
from plugins.ops import RESIDUAL_LAYER_NORM

__all__ = ["PASS", "quantize_weight"]

SMALLEST_SIDE = 16  # a smaller product gains nothing and loses accuracy


def run(graph: gs.Graph) -> PassResult:
    """Replaces each such product; says of every other product with a constant weight why it was left alone."""
    quantized: dict[int, tuple[gs.Tensor, gs.Tensor, gs.Tensor]] = {}
    encoder = upstream_of_norms(graph)
    count, left_alone = 0, []
    for node in list(graph.nodes):
        weight = constant_value(node.inputs[1]) if node.op in ("MatMul", "Gemm") and not node.domain else None
        if weight is None:
            continue
        if reason := reason_to_leave(node, weight, encoder):
            left_alone.append(NearMiss(node.name, reason))
            continue
        quantize(graph, node, weight, quantized)
        count += 1
    return PassResult(graph, count, near_misses=tuple(left_alone))


def reason_to_leave(node: gs.Node, weight: NDArray[np.float32], encoder: set[int]) -> str | None:
    """Why a product stays in float32, or ``None`` where it is to be quantised."""
    if id(node) not in encoder:
        return "it lies after the last norm of the encoder, where precision is worth more than time"
    if node.op != "MatMul":
        return f"a {node.op} is no plain product"
    if weight.ndim != 2 or min(weight.shape) < SMALLEST_SIDE:
        return f"its weight of shape {weight.shape} is too small to gain from int8"
    return None


def quantize(
    graph: gs.Graph,
    node: gs.Node,
    weight: NDArray[np.float32],
    quantized: dict[int, tuple[gs.Tensor, gs.Tensor, gs.Tensor]],
) -> None:
    """Replaces one product; ``quantized`` remembers the tensors that are quantised already."""
    x, y = node.inputs[0], node.outputs[0]
    if id(x) not in quantized:
        stem = unique_name(graph, f"{x.name}_quantized")
        quantized[id(x)] = (
            gs.Variable(stem, np.uint8, x.shape),
            gs.Variable(f"{stem}_scale", np.float32, ()),
            gs.Variable(f"{stem}_zero_point", np.uint8, ()),
        )
        graph.nodes.append(gs.Node("DynamicQuantizeLinear", stem, {}, [x], list(quantized[id(x)])))
    x_int8, x_scale, x_zero_point = quantized[id(x)]
    w_int8, w_scale = quantize_weight(weight)
    stem = unique_name(graph, f"{y.name}_int8")
    product = gs.Variable(f"{stem}_product", np.int32, y.shape)
    widened = gs.Variable(f"{stem}_float", np.float32, y.shape)
    scale = gs.Variable(f"{stem}_scale", np.float32, w_scale.shape)
    weights = gs.Constant(f"{stem}_weight", w_int8)
    zero_point = gs.Constant(f"{stem}_weight_zero_point", np.zeros((), dtype=np.int8))
    graph.nodes += [
        gs.Node("MatMulInteger", f"{stem}_matmul", {}, [x_int8, weights, x_zero_point, zero_point], [product]),
        gs.Node("Cast", f"{stem}_cast", {"to": np.float32}, [product], [widened]),
        gs.Node("Mul", f"{stem}_scales", {}, [x_scale, gs.Constant(f"{stem}_weight_scale", w_scale)], [scale]),
        gs.Node("Mul", f"{stem}_rescale", {}, [widened, scale], [y]),
    ]
    node.outputs.clear()


def quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(K, N) float32 -> (K, N) int8 and (N,) float32 with weight ≈ int8 * scale; -128 is not used."""
    # Not below the smallest normal number: a scale of zero, or with few bits left, would not give the weights back.
    scale = np.maximum(np.abs(weight).max(axis=0) / 127.0, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


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


PASS = GraphPass(
    "quantize_dynamic",
    run,
    requires=("fuse_rotary", "fuse_residual_layer_norm", "fuse_attention", "fuse_bias_gelu"),
    forbids=("cast_fp16", "quantize_dynamic", "lower_to_onnxruntime", "lower_to_native", "lower_to_plugin"),
)
