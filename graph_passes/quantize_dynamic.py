"""Quantise the encoder's matrix products to int8, with activation ranges taken at run time.

    MatMul(x, W)  ->  DynamicQuantizeLinear(x) ─► MatMulInteger(·, W_int8) ─► Cast ─► Mul(scale of x * scale of W)

Weights: symmetric int8, one scale per output feature. Activations: uint8 with a zero point, one scale per tensor, found
on the fly, so no calibration is needed; products that read one tensor (q, k and v) share its quantisation.

Which products: those with a constant weight whose result reaches a ResidualLayerNorm, that is q, k, v, output, FC1 and
FC2. What comes after the last norm (pooler, classifier, vocabulary) and everything that is no product stays in float32.

All nodes are standard ONNX; ONNX Runtime's CPU runs the whole group as one kernel. On that runtime this is the int8
recipe that is faster than float32; static Q/DQ (insert_qdq.py) is slower (see benchmarks/).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import unique_name
from graph_passes.quantization import products_to_quantize, quantize_weight

__all__ = ["PASS"]


def run(graph: gs.Graph) -> PassResult:
    """Replaces each such product; says of every other product with a constant weight why it was left alone."""
    quantized: dict[int, tuple[gs.Tensor, gs.Tensor, gs.Tensor]] = {}
    products, left_alone = products_to_quantize(graph)
    for node, weight in products:
        quantize(graph, node, weight, quantized)
    return PassResult(graph, len(products), near_misses=tuple(left_alone))


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


PASS = GraphPass(
    "quantize_dynamic",
    run,
    requires=("fuse_rotary", "fuse_residual_layer_norm", "fuse_attention", "fuse_bias_gelu"),
    forbids=(
        "cast_fp16",
        "insert_qdq",
        "quantize_dynamic",
        "lower_to_onnxruntime",
        "lower_to_native",
        "lower_to_plugin",
    ),
)
