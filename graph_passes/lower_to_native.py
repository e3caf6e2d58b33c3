"""Write a fused graph in standard ops alone, in the form that TensorRT's compiler schedules best.

    q, k, v, three products of one x    ->  one product, whose result is split, transposed and rotated at once
    InterleavedRotary                   ->  in float32; of such q and k: by halves, with the weights' columns reordered
    ScaledDotProductAttention           ->  MatMul, Softmax, MatMul, with mask and softmax in float32
    ResidualLayerNorm, FusedBiasGelu    ->  sums, LayerNormalization and Gelu, in float32

The form was found by reading the kernel schedules of TensorRT-RTX 1.7 (12 x 768, float16, SM 89, dynamic shapes): eight
kernels per layer for either family, one of them the whole attention, where three products make ten and the standard's
``Attention`` op nine. What was learnt there:

- q and k may be rotated by halves if the columns of their weights are reordered likewise, for the product q kᵀ does not
  depend on the order in which it sums. The compiler then moves whole vectors.
- The attention stays one kernel with scores cast up before the mask is added, but not if anything reads its weights.
- A sum that is carried on must be rounded to half precision before the norm reads it, or the compiler stores it in
  float32. A sum that is not carried on is free in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import constant_value, is_fused, producer, split_bias, tensor_shape, unique_name
from graph_passes.standard_ops import FLOAT32, Shared, Writer, angles_of_heads, custom_ops, is_zero, write_out
from plugins.ops import INTERLEAVED_ROTARY, RESIDUAL_LAYER_NORM, SCALED_DOT_PRODUCT_ATTENTION

__all__ = ["PASS"]


class Projection(NamedTuple):
    """A q, k or v: x (B, S, E) times weight plus bias, as heads (B, H, S, D), rotated if there are ``angles``."""

    x: gs.Tensor
    weight: NDArray[np.generic]
    bias: NDArray[np.generic]
    angles: tuple[gs.Tensor, gs.Tensor] | None


def run(graph: gs.Graph) -> PassResult:
    """Replaces every custom op; counts them."""
    custom = custom_ops(graph)
    shared: Shared = {}
    for node in custom:
        if is_fused(node, SCALED_DOT_PRODUCT_ATTENTION.contract.op_type):
            pack(graph, node, shared)
    for node in custom:
        if not is_read(graph, node):
            continue  # a rotation that packing has replaced
        if is_fused(node, RESIDUAL_LAYER_NORM.contract.op_type) and len(results(node)) == 2:
            write_carried_norm(graph, node, shared)
        else:
            write_out(graph, node, shared)
    return PassResult(graph, len(custom))


def is_read(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether anything reads what a node makes."""
    results = {id(output) for output in graph.outputs}
    return any(tensor.outputs or id(tensor) in results for tensor in node.outputs)


def results(node: gs.Node) -> list[gs.Tensor]:
    """The outputs that are not left out."""
    return [tensor for tensor in node.outputs if not tensor.is_empty()]


def pack(graph: gs.Graph, node: gs.Node, shared: Shared) -> None:
    """Makes q, k and v of an attention by one product, if they are three plain products of one tensor."""
    q, k, v = (projection(graph, tensor) for tensor in node.inputs[:3])
    if q is None or k is None or v is None or not (q.x is k.x is v.x):
        return
    shape = tensor_shape(node.inputs[0])
    if v.angles is not None or not same_angles(q.angles, k.angles) or shape is None:
        return
    heads, size = int(shape[1]), int(shape[3])
    write = Writer(graph, node, shared)
    order = by_halves(heads, size) if q.angles is not None else np.arange(heads * size)
    weight = np.concatenate((q.weight[:, order], k.weight[:, order], v.weight), axis=1)
    bias = np.concatenate((q.bias[order], k.bias[order], v.bias))
    packed = write.add("MatMul", q.x, write.constant(weight, weight.dtype))
    packed = write.add("Add", packed, write.constant(bias, bias.dtype))
    packed = write.add("Reshape", packed, write.constant([0, 0, 3 * heads, size]))
    packed = write.add("Transpose", packed, perm=[0, 2, 1, 3])
    if q.angles is None:
        parts = split(write, packed, [heads] * 3, axis=1)
    else:
        to_rotate, value = split(write, packed, [2 * heads, heads], axis=1)
        rotated = rotate_halves(write, to_rotate, *q.angles)
        parts = [*split(write, rotated, [heads] * 2, axis=1), value]
    for part, like in zip(parts, node.inputs, strict=False):
        part.shape = like.shape
    node.inputs = [*parts, node.inputs[3]]


def projection(graph: gs.Graph, tensor: gs.Tensor) -> Projection | None:
    """How heads come from one product with a constant, if they do and nothing else reads what is in between."""
    outputs = {id(output) for output in graph.outputs}

    def before(tensor: gs.Tensor, *ops: str) -> gs.Node | None:
        return producer(tensor, *ops) if len(tensor.outputs) == 1 and id(tensor) not in outputs else None

    angles = None
    if tensor.inputs and is_fused(tensor.inputs[0], INTERLEAVED_ROTARY.contract.op_type):
        if before(tensor) is None:
            return None
        tensor, *rest = tensor.inputs[0].inputs
        angles = (rest[0], rest[1])
    transpose = before(tensor, "Transpose")
    reshape = before(transpose.inputs[0], "Reshape") if transpose and transpose.attrs["perm"] == [0, 2, 1, 3] else None
    terms = split_bias(reshape.inputs[0]) if reshape and before(reshape.inputs[0]) else None
    if reshape is None or terms is None:
        return None
    flat, in_heads = tensor_shape(reshape.inputs[0]), tensor_shape(reshape.outputs[0])
    if flat is None or in_heads is None or len(flat) != 3 or in_heads[:2] != flat[:2]:
        return None
    product, bias = terms
    matmul = before(product, "MatMul")
    weight = constant_value(matmul.inputs[1]) if matmul else None
    if matmul is None or weight is None or weight.ndim != 2:
        return None
    return Projection(matmul.inputs[0], weight, bias, angles)


def same_angles(first: tuple[gs.Tensor, gs.Tensor] | None, second: tuple[gs.Tensor, gs.Tensor] | None) -> bool:
    """Whether q and k are rotated by the same tensors, or neither is."""
    if first is None or second is None:
        return first is second
    return first[0] is second[0] and first[1] is second[1]


def by_halves(heads: int, size: int) -> NDArray[np.int64]:
    """The order of columns in which each head has the first elements of its pairs, then the second."""
    columns = np.arange(heads * size).reshape(heads, size // 2, 2)
    return columns.swapaxes(1, 2).reshape(-1)


def rotate_halves(write: Writer, x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor) -> gs.Tensor:
    """Turns each (x[i], x[i + D/2]) of (B, H, S, D) by its angle, in float32."""
    size = int(cos.shape[-1])
    c, s = angles_of_heads(write, cos), angles_of_heads(write, sin)
    first, second = split(write, write.cast(x, FLOAT32), [size, size], axis=3)
    turned = (
        write.add("Sub", write.add("Mul", first, c), write.add("Mul", second, s)),
        write.add("Add", write.add("Mul", second, c), write.add("Mul", first, s)),
    )
    return write.cast(write.add("Concat", *turned, axis=3), x.dtype)


def split(write: Writer, tensor: gs.Tensor, sizes: list[int], *, axis: int) -> list[gs.Tensor]:
    """The parts of a tensor along an axis."""
    first = write.add("Split", tensor, write.constant(sizes), axis=axis)
    [node] = first.inputs
    rest = [gs.Variable(unique_name(write.graph, first.name), tensor.dtype) for _ in sizes[1:]]
    node.outputs = [first, *rest]
    return [first, *rest]


def write_carried_norm(graph: gs.Graph, node: gs.Node, shared: Shared) -> None:
    """ResidualLayerNorm with both outputs: each term is rounded before the norm reads the sum."""
    write = Writer(graph, node, shared)
    (x, residual, bias, gamma, beta), (y, s), attrs = list(node.inputs), list(node.outputs), dict(node.attrs)
    node.inputs.clear()
    node.outputs.clear()
    if not is_zero(bias):
        x = write.cast(write.add("Add", write.cast(x, FLOAT32), bias), x.dtype)
    total = write.end(write.add("Add", x, residual), s)
    norm = write.add("LayerNormalization", write.cast(total, FLOAT32), gamma, beta, axis=-1, **attrs)
    write.end(norm, y)


PASS = GraphPass("lower_to_native", run, requires=("prepare",), forbids=("quantize_dynamic",))
