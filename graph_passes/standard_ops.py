"""The custom ops written in standard ones, each as short as its node allows: what the lowerings share.

A function body must serve every node; here what a node does not need (a bias of zeros, a mask that is none, a cast to
the dtype that is there already) is left out. Arithmetic is in float32 where the contracts say so, at every precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graph_passes.graph_tools import constant_value, unique_name
from plugins.contract import DOMAIN
from plugins.ops import (
    FUSED_BIAS_GELU,
    INTERLEAVED_ROTARY,
    QKV_ROTARY,
    QUANTIZED_RESIDUAL_LAYER_NORM,
    RESIDUAL_LAYER_NORM,
    SCALED_DOT_PRODUCT_ATTENTION,
)

__all__ = ["FLOAT32", "Shared", "Writer", "angles_of_heads", "custom_ops", "is_zero", "write_out"]

Shared = dict[tuple[str, int], gs.Tensor]
FLOAT32 = np.dtype(np.float32)


class Writer:
    """Appends nodes to a graph; what they make is named after one node.

    Args:
        graph: To write to.
        node: The one that is written out.
        shared: What the nodes of one graph share: tensors that are made once.
    """

    def __init__(self, graph: gs.Graph, node: gs.Node, shared: Shared) -> None:
        self.graph = graph
        self.stem = node.name
        self.shared = shared

    def add(
        self,
        op: str,
        *inputs: gs.Tensor,
        dtype: Any = None,
        output: gs.Tensor | None = None,
        **attrs: Any,
    ) -> gs.Tensor:
        """The result of a new node: ``output`` if it is given, else a new tensor, of ``dtype`` or the first input's."""
        made = output if output is not None else gs.Variable(self._name(op), dtype or inputs[0].dtype)
        self.graph.nodes.append(gs.Node(op, self._name(f"{op}_node"), attrs, list(inputs), [made]))
        return made

    def constant(self, value: Any, dtype: Any = np.int64) -> gs.Constant:
        """A new constant."""
        return gs.Constant(self._name("constant"), np.asarray(value, dtype=dtype))

    def once(self, what: str, tensor: gs.Tensor, make: Callable[[], gs.Tensor]) -> gs.Tensor:
        """What ``make`` makes of a tensor, made by the first node that asks."""
        key = what, id(tensor)
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def cast(self, tensor: gs.Tensor, dtype: Any) -> gs.Tensor:
        """The tensor in that dtype."""
        return tensor if tensor.dtype == dtype else self.add("Cast", tensor, dtype=dtype, to=np.dtype(dtype).type)

    def end(self, tensor: gs.Tensor, output: gs.Tensor) -> gs.Tensor:
        """Makes a new tensor, which nothing reads yet, the ``output``; what to read on is returned.

        That is the output itself, or, where its dtype is another and it becomes a cast of the tensor, the tensor.
        """
        if tensor.dtype != output.dtype:
            self.add("Cast", tensor, output=output, to=np.dtype(output.dtype).type)
            return tensor
        [node] = tensor.inputs
        node.outputs = [output if made is tensor else made for made in node.outputs]
        return output

    def split(self, tensor: gs.Tensor, sizes: list[int], *, axis: int) -> list[gs.Tensor]:
        """The parts of a tensor along an axis."""
        first = self.add("Split", tensor, self.constant(sizes), axis=axis)
        [node] = first.inputs
        node.outputs = [first, *(gs.Variable(self._name("split"), tensor.dtype) for _ in sizes[1:])]
        return list(node.outputs)

    def _name(self, what: str) -> str:
        return unique_name(self.graph, f"{self.stem}_{what.lower()}")


def custom_ops(graph: gs.Graph) -> list[gs.Node]:
    """The nodes of ours in a graph."""
    return [node for node in graph.nodes if node.domain == DOMAIN]


def write_out(graph: gs.Graph, node: gs.Node, shared: Shared) -> None:
    """Replaces one custom op by standard ops. ``shared`` is one empty dict for all nodes of a graph."""
    writer = Writer(graph, node, shared)
    inputs, outputs, attrs = list(node.inputs), list(node.outputs), dict(node.attrs)
    node.inputs.clear()
    node.outputs.clear()
    WRITERS[node.op](writer, inputs, outputs, **attrs)


def write_rotary(write: Writer, inputs: list[gs.Tensor], outputs: list[gs.Tensor]) -> None:
    """InterleavedRotary, in float32."""
    x, cos, sin = inputs
    [y] = outputs
    write.end(rotate(write, write.cast(x, FLOAT32), cos, sin), y)


def rotate(write: Writer, x: gs.Tensor, cos: gs.Tensor, sin: gs.Tensor) -> gs.Tensor:
    """Turns each pair (x[2i], x[2i + 1]) of (B, H, S, D) by its angle."""
    last = write.constant([-1])
    cos, sin = angles_of_heads(write, cos), angles_of_heads(write, sin)
    bounds = [write.constant([value]) for value in (0, 1, np.iinfo(np.int64).max, -1, 2)]
    zero, one, end, axis, step = bounds
    even, odd = write.add("Slice", x, zero, end, axis, step), write.add("Slice", x, one, end, axis, step)
    first = write.add("Sub", write.add("Mul", even, cos), write.add("Mul", odd, sin))
    second = write.add("Add", write.add("Mul", odd, cos), write.add("Mul", even, sin))
    pair = write.add("Concat", write.add("Unsqueeze", first, last), write.add("Unsqueeze", second, last), axis=-1)
    return write.add("Reshape", pair, write.add("Shape", x, dtype=np.int64))


def angles_of_heads(write: Writer, angles: gs.Tensor) -> gs.Tensor:
    """(P, S, D/2) as (P, 1, S, D/2), made once."""
    return write.once("of_heads", angles, lambda: write.add("Unsqueeze", angles, write.constant([1])))


def write_qkv_rotary(
    write: Writer,
    inputs: list[gs.Tensor],
    outputs: list[gs.Tensor],
    *,
    num_heads: int,
    scale: float,
    rotary_value: int,
) -> None:
    """QKVRotary, in float32: what is rotated is rotated at once."""
    qkv, bias, cos, sin = inputs
    total = write.cast(qkv, FLOAT32)
    if not is_zero(bias):
        total = write.add("Add", total, bias)
    total = write.add("Reshape", total, write.constant([0, 0, 3 * num_heads, -1]))
    total = write.add("Transpose", total, perm=[0, 2, 1, 3])
    plain = []
    if not rotary_value:
        total, *plain = write.split(total, [2 * num_heads, num_heads], axis=1)
    rotated = rotate(write, total, cos, sin)
    q, *rest = write.split(rotated, [num_heads] * (3 - len(plain)), axis=1)
    if scale != 1.0:
        q = write.add("Mul", q, write.constant(scale, FLOAT32))
    for tensor, output in zip([q, *rest, *plain], outputs, strict=True):
        write.end(tensor, output)


def write_residual_layer_norm(
    write: Writer, inputs: list[gs.Tensor], outputs: list[gs.Tensor], *, epsilon: float
) -> None:
    """ResidualLayerNorm: the sum and the norm in float32."""
    y, *carried = [tensor for tensor in outputs if not tensor.is_empty()]
    write.end(residual_layer_norm(write, inputs, carried, epsilon), y)


def write_quantized_residual_layer_norm(
    write: Writer, inputs: list[gs.Tensor], outputs: list[gs.Tensor], *, epsilon: float
) -> None:
    """QuantizedResidualLayerNorm: the sum and the norm in float32, which is what is quantised."""
    *terms, scale = inputs
    quantized, y, s = outputs
    norm = residual_layer_norm(write, terms, [] if s.is_empty() else [s], epsilon)
    if not y.is_empty():
        norm = write.end(norm, y)
    write.add("QuantizeLinear", norm, scale, write.constant(0, np.int8), output=quantized)


def residual_layer_norm(write: Writer, inputs: list[gs.Tensor], carried: list[gs.Tensor], epsilon: float) -> gs.Tensor:
    """The norm of a sum, in float32; the sum becomes the tensor that is ``carried``, if there is one."""
    x, residual, bias, gamma, beta = inputs
    total = write.cast(x, FLOAT32)
    if not is_zero(bias):
        total = write.add("Add", total, bias)
    total = write.add("Add", total, write.cast(residual, FLOAT32))
    if carried:
        total = write.end(total, carried[0])
    return write.add("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)


def write_attention(
    write: Writer, inputs: list[gs.Tensor], outputs: list[gs.Tensor], *, scale: float, zero_masked_rows: int
) -> None:
    """ScaledDotProductAttention: two products in the dtype of q, the softmax between them in float32."""
    q, k, v, mask = inputs
    [y] = outputs
    if scale != 1.0:
        q = write.add("Mul", q, write.constant(scale, q.dtype))
    scores = write.cast(write.add("MatMul", q, write.add("Transpose", k, perm=[0, 1, 3, 2])), FLOAT32)
    if not is_zero(mask):
        scores = write.add("Add", scores, mask)
    weights = write.add("Softmax", scores, axis=-1)
    context = write.add("MatMul", write.cast(weights, v.dtype), v)
    if zero_masked_rows and not is_zero(mask):
        masked = write.once("is_masked", mask, lambda: is_masked(write, mask))
        context = write.add("Where", masked, write.constant(0, v.dtype), context, dtype=v.dtype)
    write.end(context, y)


def is_masked(write: Writer, mask: gs.Tensor) -> gs.Tensor:
    """Which rows of scores are -inf throughout, whatever was added: those of the mask, (B|1, H|1, S|1, 1).

    Told by the mask, not by NaN among the weights: to read those would keep compilers from fusing the attention.
    """
    largest = write.add("ReduceMax", mask, write.constant([-1]), keepdims=1)
    return write.add("Equal", largest, write.constant(-np.inf, np.float32), dtype=np.bool_)


def write_bias_gelu(write: Writer, inputs: list[gs.Tensor], outputs: list[gs.Tensor], *, approximate: str) -> None:
    """FusedBiasGelu, in float32."""
    x, bias = inputs
    [y] = outputs
    total = write.add("Add", write.cast(x, FLOAT32), bias)
    write.end(write.add("Gelu", total, approximate=approximate), y)


def is_zero(tensor: gs.Tensor) -> bool:
    """Whether it is a constant that adds nothing."""
    value = constant_value(tensor)
    return value is not None and not np.any(value)


WRITERS: dict[str, Callable[..., None]] = {
    INTERLEAVED_ROTARY.contract.op_type: write_rotary,
    QKV_ROTARY.contract.op_type: write_qkv_rotary,
    RESIDUAL_LAYER_NORM.contract.op_type: write_residual_layer_norm,
    QUANTIZED_RESIDUAL_LAYER_NORM.contract.op_type: write_quantized_residual_layer_norm,
    SCALED_DOT_PRODUCT_ATTENTION.contract.op_type: write_attention,
    FUSED_BIAS_GELU.contract.op_type: write_bias_gelu,
}
