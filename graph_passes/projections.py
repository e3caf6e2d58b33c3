"""The q, k and v of an attention as products of one tensor, which lowerings make by one product.

Weights may be constants, or int8 constants with a scale per column (insert_qdq.py): those are packed in int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.graph_pass import Mismatch
from graph_passes.graph_tools import constant_value, is_fused, is_private, producer, split_bias, tensor_shape
from graph_passes.standard_ops import Writer
from plugins.ops import INTERLEAVED_ROTARY

__all__ = ["Angles", "Projection", "Weight", "one_product", "projections_of_one_tensor", "same_angles"]

Angles = tuple[gs.Tensor, gs.Tensor]


class Weight(NamedTuple):
    """The constant (E, HD) of a product; where there is a ``scale`` (HD,), in int8 steps of it."""

    values: NDArray[np.generic]
    scale: NDArray[np.generic] | None = None

    def columns(self, order: NDArray[np.int64]) -> Weight:
        """The same columns in another order."""
        return Weight(self.values[:, order], None if self.scale is None else self.scale[order])


class Projection(NamedTuple):
    """A q, k or v: x (B, S, E) times weight plus bias, as heads (B, H, S, D), rotated if there are ``angles``."""

    x: gs.Tensor
    weight: Weight
    bias: NDArray[np.generic] | None
    heads: int
    size: int
    angles: Angles | None


def projections_of_one_tensor(
    graph: gs.Graph, attention: gs.Node, qkv: Sequence[gs.Tensor]
) -> tuple[Projection, Projection, Projection]:
    """How q, k and v come from one tensor, as heads of one number and size, q and k rotated alike.

    Args:
        graph: That they are of.
        attention: What they are for; it is named where they are none.
        qkv: The three tensors of heads. They themselves may be read elsewhere, what is before them may not.

    Raises:
        Mismatch: If they do not.
    """
    q, k, v = (projection(graph, attention, tensor) for tensor in qkv)
    if not (q.x is k.x is v.x):
        raise Mismatch(attention, f"its q, k and v are made of {q.x.name}, {k.x.name} and {v.x.name}")
    layouts = [(part.heads, part.size) for part in (q, k, v)]
    if len(set(layouts)) > 1:
        raise Mismatch(attention, f"its q, k and v must have heads of one number and size; got {layouts}")
    if not same_angles(q.angles, k.angles):
        raise Mismatch(attention, "its q and k are not rotated by the same angles")
    if len({part.weight.scale is None or part.weight.scale.dtype for part in (q, k, v)}) > 1:
        raise Mismatch(attention, "its q, k and v have weights of several precisions")
    return q, k, v


def projection(graph: gs.Graph, attention: gs.Node, tensor: gs.Tensor) -> Projection:
    """How heads come from one product with a constant.

    Raises:
        Mismatch: If they do not, or something else reads what is in between.
    """
    name = tensor.name

    def made(tensor: gs.Tensor, op: str) -> gs.Node:
        node = producer(tensor, op)
        if node is None:
            source = producer(tensor)
            raise Mismatch(
                attention, f"{name} must come from a {op}; got {source.op if source else 'no node'} ({tensor.name})"
            )
        return node

    def private(tensor: gs.Tensor) -> gs.Tensor:
        if not is_private(graph, tensor):
            raise Mismatch(attention, f"{tensor.name}, of which {name} is made, is read elsewhere")
        return tensor

    angles = None
    if tensor.inputs and is_fused(tensor.inputs[0], INTERLEAVED_ROTARY.contract.op_type):
        tensor, *rest = tensor.inputs[0].inputs
        private(tensor)
        angles = (rest[0], rest[1])
    transpose = made(tensor, "Transpose")
    in_heads = private(transpose.inputs[0])
    reshape = made(in_heads, "Reshape")
    flat = private(reshape.inputs[0])
    before, after = tensor_shape(flat), tensor_shape(in_heads)
    if (
        transpose.attrs.get("perm") != [0, 2, 1, 3]
        or before is None
        or after is None
        or len(before) != 3
        or len(after) != 4
        or after[:2] != before[:2]
    ):
        raise Mismatch(attention, f"{name} must be (B, S, HD) as (B, H, S, D); got {before} as {after}, transposed")
    product, bias = split_bias(flat) or (flat, None)
    matmul = made(private(product), "MatMul")
    weight = constant_weight(matmul.inputs[1])
    heads, size = after[2:]
    if weight is None or not isinstance(heads, int) or not isinstance(size, int):
        raise Mismatch(attention, f"{name} must be a product with a constant weight, of which the heads are known")
    return Projection(matmul.inputs[0], weight, bias, heads, size, angles)


def same_angles(first: Angles | None, second: Angles | None) -> bool:
    """Whether two are rotated by the same tensors, or neither is."""
    if first is None or second is None:
        return first is second
    return first[0] is second[0] and first[1] is second[1]


def constant_weight(tensor: gs.Tensor) -> Weight | None:
    """The weight (E, HD) that a product reads, or ``None`` where it is no constant, or int8 of another kind."""
    values = constant_value(tensor)
    if values is not None:
        return Weight(values) if values.ndim == 2 else None
    node = producer(tensor, "DequantizeLinear")
    if node is None or node.attrs.get("axis", 1) not in (1, -1) or node.attrs.get("block_size", 0):
        return None
    values, scale, *zero_points = (constant_value(each) for each in node.inputs)
    if values is None or values.dtype != np.int8 or values.ndim != 2 or scale is None:
        return None
    if scale.shape != values.shape[1:] or any(zero is None or zero.any() for zero in zero_points):
        return None
    return Weight(values, scale)


def one_product(write: Writer, parts: Sequence[Projection]) -> gs.Tensor:
    """The product of their tensor with their weights side by side."""
    values = np.concatenate([part.weight.values for part in parts], axis=1)
    weight: gs.Tensor = write.constant(values, values.dtype)
    scales = [part.weight.scale for part in parts if part.weight.scale is not None]
    if scales:
        scale = np.concatenate(scales)
        weight = write.add("DequantizeLinear", weight, write.constant(scale, scale.dtype), dtype=scale.dtype, axis=1)
        weight.shape = values.shape
    packed = write.add("MatMul", parts[0].x, weight)
    shape = tensor_shape(parts[0].x)
    packed.shape = shape and (*shape[:-1], values.shape[1])
    return packed
