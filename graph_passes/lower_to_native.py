"""Write a fused graph in standard ops alone, in the form that TensorRT's compiler schedules best.

    q, k, v, three products of one x    ->  one product, whose result is split, transposed and rotated at once
    InterleavedRotary                   ->  in float32; of such q and k: by halves, with the weights' columns reordered
    ScaledDotProductAttention           ->  MatMul, Softmax, MatMul, with mask and softmax in float32
    ResidualLayerNorm, FusedBiasGelu    ->  a bias in the dtype of x; LayerNormalization and Gelu in float32
    a product of static int8, at fp16   ->  one scale in the product, and a Mul by what is left of each column's

The form was found by reading the kernel schedules of TensorRT-RTX 1.7 (12 x 768, float16, SM 89, dynamic shapes): eight
kernels per layer for either family, one of them the whole attention, where three products make ten and the standard's
``Attention`` op nine. What was learnt there:

- q and k may be rotated by halves if the columns of their weights are reordered likewise, for the product q kᵀ does not
  depend on the order in which it sums. The compiler then moves whole vectors.
- The attention stays one kernel with scores cast up before the mask is added, but not if anything reads its weights.
- A sum that is carried on must be rounded to half precision before the norm reads it, or the compiler stores it in
  float32. So must one that reads such a sum, or whose norm is a result. Any other is free in float32.
- A bias that is added in half precision becomes part of the product before it, which sums in float32 anyway. Added in
  float32 it is read twice as wide, and in the first layer the sum is stored so.
- The norm of a result is two kernels, with the sum in float32 between them, unless its rows have an axis more than
  those of the product before it; and if a pooler's token is taken from it. That token is normalised apart.
- In float32, q and k must come out of something that is no mere movement, a rotation or a Concat, or the compiler moves
  k a second time to transpose it.
- Static int8 takes ten kernels per layer: its products have no epilogue in any form, so scales, bias and GELU are one
  more kernel, together with what quantises their result; and one moves the heads of the attention's int8 result. Where
  that is quantised, and in which dtype bias and GELU are, changes nothing. Norms quantise their result themselves.
- Of a product with a scale per column, the engine stores the bare sum of int8 products in half precision, which holds
  65504 at most, and one vector of both scales, the smallest of which half precision does not hold either. One scale for
  all columns goes into the product instead, in float32. So that is the power of two above the largest; what is left for
  a column is exact in half precision.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.graph_pass import GraphPass, Mismatch, PassResult
from graph_passes.graph_tools import constant_value, is_fused, is_private, is_read, producer, unique_name
from graph_passes.projections import one_product, projections_of_one_tensor
from graph_passes.standard_ops import FLOAT32, Shared, Writer, angles_of_heads, custom_ops, is_zero, write_out
from plugins.ops import FUSED_BIAS_GELU, RESIDUAL_LAYER_NORM, SCALED_DOT_PRODUCT_ATTENTION

__all__ = ["PASS"]


def run(graph: gs.Graph) -> PassResult:
    """Replaces every custom op; counts them."""
    custom = custom_ops(graph)
    shared: Shared = {}
    for node in custom:
        if is_fused(node, SCALED_DOT_PRODUCT_ATTENTION.contract.op_type):
            pack(graph, node, shared)
    carried = {id(sum_) for node in custom for sum_ in results(node)[1:] if is_norm(node)}
    for node in custom:
        if not any(is_read(graph, tensor) for tensor in node.outputs):
            continue  # a rotation that packing has replaced
        if is_norm(node):
            write_norm(graph, node, shared, carried)
        elif is_fused(node, FUSED_BIAS_GELU.contract.op_type):
            write_bias_gelu(graph, node, shared)
        else:
            write_out(graph, node, shared)
    for node in list(graph.nodes):
        scale_after(graph, node)
    return PassResult(graph, len(custom))


def is_norm(node: gs.Node) -> bool:
    """Whether it is a ResidualLayerNorm."""
    return is_fused(node, RESIDUAL_LAYER_NORM.contract.op_type)


def results(node: gs.Node) -> list[gs.Tensor]:
    """The outputs that are not left out."""
    return [tensor for tensor in node.outputs if not tensor.is_empty()]


def pack(graph: gs.Graph, node: gs.Node, shared: Shared) -> None:
    """Makes q, k and v of an attention by one product, if they are three plain products of one tensor."""
    try:
        q, k, v = projections_of_one_tensor(graph, node, node.inputs[:3])
    except Mismatch:
        return
    biases = [part.bias for part in (q, k, v) if part.bias is not None]
    is_own = all(is_private(graph, tensor) for tensor in node.inputs[:3])
    if len(biases) < 3 or v.angles is not None or not is_own:
        return
    heads, size = q.heads, q.size
    write = Writer(graph, node, shared)
    order = by_halves(heads, size) if q.angles is not None else np.arange(heads * size)
    q_of_halves, k_of_halves = (part._replace(weight=part.weight.columns(order)) for part in (q, k))
    bias = np.concatenate((biases[1][order], biases[0][order], biases[2]))
    packed = one_product(write, (k_of_halves, q_of_halves, v))
    packed = write.add("Add", packed, write.constant(bias, bias.dtype))
    packed = write.add("Reshape", packed, write.constant([0, 0, 3 * heads, size]))
    packed = write.add("Transpose", packed, perm=[0, 2, 1, 3])
    if q.angles is None:
        key, query, value = write.split(packed, [heads] * 3, axis=1)
        moved = write.add("Concat", query, key, axis=1)
        qkv = [*write.split(moved, [heads] * 2, axis=1), value]
    else:
        to_rotate, value = write.split(packed, [2 * heads, heads], axis=1)
        key, query = write.split(rotate_halves(write, to_rotate, *q.angles), [heads] * 2, axis=1)
        qkv = [query, key, value]
    for tensor, like in zip(qkv, node.inputs, strict=False):
        tensor.shape = like.shape
    node.inputs = [*qkv, node.inputs[3]]


def by_halves(heads: int, size: int) -> NDArray[np.int64]:
    """The order of columns in which each head has the first elements of its pairs, then the second."""
    columns = np.arange(heads * size).reshape(heads, size // 2, 2)
    return columns.swapaxes(1, 2).reshape(-1)


def rotate_halves(write: Writer, x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor) -> gs.Tensor:
    """Turns each (x[i], x[i + D/2]) of (B, H, S, D) by its angle, in float32."""
    size = int(cos.shape[-1])
    c, s = angles_of_heads(write, cos), angles_of_heads(write, sin)
    first, second = write.split(write.cast(x, FLOAT32), [size, size], axis=3)
    turned = (
        write.add("Sub", write.add("Mul", first, c), write.add("Mul", second, s)),
        write.add("Add", write.add("Mul", second, c), write.add("Mul", first, s)),
    )
    return write.cast(write.add("Concat", *turned, axis=3), x.dtype)


def write_norm(graph: gs.Graph, node: gs.Node, shared: Shared, carried: Collection[int]) -> None:
    """ResidualLayerNorm, its statistics in float32; ``carried`` are the ids of sums that are read again."""
    write = Writer(graph, node, shared)
    (x, residual, bias, gamma, beta), (y, *sums), attrs = list(node.inputs), results(node), dict(node.attrs)
    node.inputs.clear()
    node.outputs.clear()
    is_rounded = bool(sums) or id(residual) in carried or is_result(graph, y)
    dtype = x.dtype if is_rounded else FLOAT32
    total = write.add("Add", *(write.cast(term, dtype) for term in (with_bias(write, x, bias), residual)))
    if sums:
        total = write.end(total, sums[0])

    def norm(total: gs.Tensor) -> gs.Tensor:
        return write.add("LayerNormalization", write.cast(total, FLOAT32), gamma, beta, axis=-1, **attrs)

    for reader in [reader for reader in y.outputs if is_row(reader)]:
        [row] = reader.outputs
        index = reader.inputs[1]
        reader.inputs.clear()
        reader.outputs.clear()
        write.end(norm(write.add("Gather", total, index, axis=1)), row)
    if is_result(graph, y):
        axes = write.constant([1])
        write.end(write.add("Squeeze", norm(write.add("Unsqueeze", total, axes)), axes), y)
    elif y.outputs:
        write.end(norm(total), y)


def write_bias_gelu(graph: gs.Graph, node: gs.Node, shared: Shared) -> None:
    """FusedBiasGelu, the GELU in float32."""
    write = Writer(graph, node, shared)
    (x, bias), [y], attrs = list(node.inputs), list(node.outputs), dict(node.attrs)
    node.inputs.clear()
    node.outputs.clear()
    write.end(write.add("Gelu", write.cast(with_bias(write, x, bias), FLOAT32), **attrs), y)


def with_bias(write: Writer, x: gs.Tensor, bias: gs.Tensor) -> gs.Tensor:
    """The sum of x and a bias, in the dtype of x if that holds the bias."""
    if is_zero(bias):
        return x
    values = constant_value(bias)
    if values is None or np.abs(values).max() > np.finfo(x.dtype).max:
        return write.add("Add", write.cast(x, FLOAT32), bias)
    return write.add("Add", x, write.constant(values, x.dtype))


def is_row(node: gs.Node) -> bool:
    """Whether it takes one token, always the same, of each sequence."""
    return node.op == "Gather" and node.attrs.get("axis") == 1 and constant_value(node.inputs[1]) is not None


def is_result(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether the graph gives it, in whatever dtype."""
    casts = [reader.outputs[0] for reader in tensor.outputs if reader.op == "Cast"]
    return any(made is output for made in (tensor, *casts) for output in graph.outputs)


def scale_after(graph: gs.Graph, node: gs.Node) -> None:
    """Takes the scales (N,) float16 of an int8 weight out of a product, but for one power of two."""
    dequantize = producer(node.inputs[1], "DequantizeLinear") if node.op == "MatMul" and not node.domain else None
    scale = constant_value(dequantize.inputs[1]) if dequantize is not None else None
    if dequantize is None or scale is None or scale.dtype != np.float16 or scale.ndim != 1:
        return
    write = Writer(graph, node, {})
    common = np.exp2(np.ceil(np.log2(scale.max().astype(np.float64))))
    weight, y = dequantize.inputs[0], node.outputs[0]
    product = gs.Variable(unique_name(graph, f"{y.name}_unscaled"), y.dtype, y.shape)
    node.inputs[1] = write.add("DequantizeLinear", weight, write.constant(common, scale.dtype), dtype=scale.dtype)
    node.outputs = [product]
    write.add("Mul", product, write.constant(scale / common, scale.dtype), output=y)


PASS = GraphPass("lower_to_native", run, requires=("prepare",), forbids=("quantize_dynamic",))
