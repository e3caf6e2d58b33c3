"""Quantise the encoder's matrix products to int8 by ranges that are known beforehand, as TensorRT takes it.

    MatMul(x, W)  ->  MatMul(DequantizeLinear(QuantizeLinear(x, s)), DequantizeLinear(W_int8, scales of W))

Both are symmetric: TensorRT takes no zero point but 0. Weights are int8 constants with one scale per output feature;
ONNX Runtime runs such a graph in int8 too, so the scales are those on which no processor saturates (quantization.py).
An activation has one scale per tensor, its range / 127, and products that read one tensor (q, k and v) share its
quantisation. The products stay where they were and in floating point as it is written: whoever runs the graph may
multiply the int8 numbers instead, which is the same.

Which products: see quantization.py. Norms, softmax, GELU, embeddings, pooler and heads stay as they are.

A range is the largest magnitude that int8 is to represent, by the tensor's name; what is larger saturates. Ranges come
from running the fused float32 graph on real data (exporter/calibration.py).

Every scale is rounded up to a number that half precision holds, and weights are rounded in those steps: half precision
around int8 (cast_fp16.py, afterwards) then changes none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import unique_name
from graph_passes.quantization import LARGEST, products_to_quantize, round_up, round_weight, smallest_scale

__all__ = ["PASS", "insert_qdq"]

HALF = np.finfo(np.float16)


def insert_qdq(ranges: Mapping[str, float]) -> GraphPass:
    """The pass for these ranges; models remember it by its name alone.

    Args:
        ranges: The largest magnitude to represent, by the name of each tensor that a quantised product reads. Those of
            other tensors are not used.
    """
    return GraphPass(
        "insert_qdq",
        partial(run, ranges=dict(ranges)),
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


def run(graph: gs.Graph, ranges: Mapping[str, float]) -> PassResult:
    """Quantises each such product; says of every other product with a constant weight why it was left alone.

    Raises:
        PassError: If a tensor has no range, or one that is not above zero and finite. The message names it.
    """
    products, left_alone = products_to_quantize(graph)
    steps = {node.inputs[0].name: step_of(node.inputs[0].name, ranges) for node, _ in products}
    activations: dict[int, gs.Tensor] = {}
    weights: dict[int, gs.Tensor] = {}
    for node, weight in products:
        x, w = node.inputs
        if id(x) not in activations:
            activations[id(x)] = quantized(graph, x, steps[x.name])
        if id(w) not in weights:
            weights[id(w)] = stored_in_int8(graph, w, weight)
        node.inputs = [activations[id(x)], weights[id(w)]]
    return PassResult(graph, len(products), near_misses=tuple(left_alone))


def step_of(name: str, ranges: Mapping[str, float]) -> NDArray[np.float32]:
    """What one step of a tensor stands for, () float32.

    Raises:
        PassError: If there is no range, or it cannot be divided into steps.
    """
    if name not in ranges:
        known = f"those given are of {len(ranges)} other tensors" if ranges else "none were given"
        raise PassError(
            f"There is no range of the tensor {name!r}; {known}. Static int8 needs calibration data: calibrate the "
            f"fused float32 graph of this very model."
        )
    largest = ranges[name]
    if not 0 < largest < np.inf:
        raise PassError(
            f"The range of the tensor {name!r} must be above zero and finite; got {largest}. Calibrate again, on data "
            f"that reaches it."
        )
    return held_by_half(np.asarray(largest / LARGEST))


def quantized(graph: gs.Graph, x: gs.Tensor, step: NDArray[np.float32]) -> gs.Tensor:
    """``x`` (…) float32, rounded to int8 and back."""
    stem = unique_name(graph, f"{x.name}_quantized")
    scale = gs.Constant(f"{stem}_scale", step)
    zero_point = gs.Constant(f"{stem}_zero_point", np.zeros((), np.int8))
    in_steps = gs.Variable(stem, np.int8, x.shape)
    back = gs.Variable(f"{stem}_float", np.float32, x.shape)
    graph.nodes += [
        gs.Node("QuantizeLinear", stem, {}, [x, scale, zero_point], [in_steps]),
        gs.Node("DequantizeLinear", f"{stem}_back", {}, [in_steps, scale, zero_point], [back]),
    ]
    return back


def stored_in_int8(graph: gs.Graph, w: gs.Tensor, weight: NDArray[np.float32]) -> gs.Tensor:
    """A weight (K, N) float32, made of an int8 constant and (N,) scales."""
    stem = unique_name(graph, f"{w.name}_int8")
    smallest = smallest_scale(weight)
    scale = held_by_half(np.where(smallest > 0, smallest, smallest.max() or 1.0))  # zeros have any scale
    constant = gs.Constant(stem, round_weight(weight, scale))
    made = gs.Variable(f"{stem}_float", np.float32, weight.shape)
    inputs = [constant, gs.Constant(f"{stem}_scale", scale)]
    graph.nodes.append(gs.Node("DequantizeLinear", f"{stem}_back", {"axis": 1}, inputs, [made]))
    return made


def held_by_half(scale: NDArray[np.floating]) -> NDArray[np.float32]:
    """The next larger numbers that half precision holds, as float32; those beyond its largest are of float32."""
    exact = np.maximum(scale, float(HALF.smallest_subnormal)).astype(np.float64)
    narrow = round_up(exact, np.float16).astype(np.float32)
    return np.where(np.isfinite(narrow), narrow, round_up(exact, np.float32))


PASS = insert_qdq({})  # its place in the order; a model has no ranges of its own
