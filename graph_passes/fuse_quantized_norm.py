"""Fuse a residual norm with the quantisation of its result to int8 into ``QuantizedResidualLayerNorm``.

    y, s = ResidualLayerNorm(…);  q = QuantizeLinear(y, scale)  ->  q, y, s = QuantizedResidualLayerNorm(…, scale)

For TensorRT with our plugins alone: it has no kernel that quantises what a plugin makes, so y would be written, read
and written again. A ``QuantizeLinear`` fits with one constant scale and int8 without a zero point, which is what
TensorRT takes; all that quantise y by that scale share the result. What else reads y, as the next residual of
post-norm encoders does, has it as an output still; and so it is with s.

At half precision, y was rounded before it was quantised. The new op quantises what it has in float32: this is nearer to
the exact norm, and may be one step off what it was where y is near to a half of one.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graph_passes.graph_pass import GraphPass, Mismatch, NearMiss, PassResult
from graph_passes.graph_tools import constant_value, detach, is_fused, is_read, unique_name
from graph_passes.standard_ops import FLOAT32, custom_ops
from plugins.ops import QUANTIZED_RESIDUAL_LAYER_NORM, RESIDUAL_LAYER_NORM

__all__ = ["PASS"]

CONTRACT = QUANTIZED_RESIDUAL_LAYER_NORM.contract


def run(graph: gs.Graph) -> PassResult:
    """Fuses every such norm; says why where one is quantised in another way."""
    count = 0
    near_misses: list[NearMiss] = []
    outer = {id(node) for node in graph.nodes}
    for node in custom_ops(graph):
        if not is_fused(node, RESIDUAL_LAYER_NORM.contract.op_type):
            continue
        fitting: list[tuple[gs.Node, float]] = []
        for reader in quantizers(graph, node.outputs[0], outer):
            try:
                scale = scale_of(reader)
                if fitting and scale != fitting[0][1]:
                    raise Mismatch(reader, f"its scale is {scale:.6g}, but the norm quantises by {fitting[0][1]:.6g}")
                fitting.append((reader, scale))
            except Mismatch as mismatch:
                near_misses.append(mismatch.near_miss)
        if fitting:
            fuse(graph, node, [reader for reader, _ in fitting], fitting[0][1])
            count += 1
    return PassResult(graph, count, near_misses=tuple(near_misses))


def quantizers(graph: gs.Graph, y: gs.Tensor, outer: Collection[int]) -> list[gs.Node]:
    """The nodes that quantise y, of those with an id in ``outer``; what inner graphs do is theirs.

    Of several whose results are outputs of the graph, the first: each output has a tensor of its own.
    """
    found = [node for node in y.outputs if id(node) in outer and node.op == "QuantizeLinear" and not node.domain]
    results = {id(output) for output in graph.outputs}
    shown = [node for node in found if id(node.outputs[0]) in results]
    return [*shown[:1], *(node for node in found if id(node.outputs[0]) not in results)]


def scale_of(node: gs.Node) -> float:
    """What one step of a quantisation to int8 stands for, where that is the same for all of the tensor.

    Raises:
        Mismatch: If it is not, or the quantisation is of another kind.
    """
    scale = constant_value(node.inputs[1])
    if scale is None or scale.size != 1 or node.attrs.get("block_size", 0):
        raise Mismatch(node, f"its scale must be one constant; got {'a tensor' if scale is None else scale.shape}")
    step = float(scale.item())
    if not 0 < step < np.inf:
        raise Mismatch(node, f"its scale must be above zero; got {step}")
    zero_point = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if zero_point is None:
        dtype = node.attrs.get("output_dtype") or onnx.TensorProto.UINT8  # what the standard says where it says nothing
        if dtype != onnx.TensorProto.INT8:
            raise Mismatch(node, f"it must quantise to int8; got {onnx.TensorProto.DataType.Name(dtype).lower()}")
        return step
    value = constant_value(zero_point)
    if value is None or value.dtype != np.int8 or value.any():
        kind = "one that is computed" if value is None else f"{value.dtype} {value.reshape(-1)[:4].tolist()}"
        raise Mismatch(node, f"its zero point must be an int8 0; got {kind}")
    return step


def fuse(graph: gs.Graph, norm: gs.Node, readers: list[gs.Node], scale: float) -> None:
    """Puts one op in place of a norm and the nodes that quantise its result, all of them by one scale."""
    inputs, attributes, floats = list(norm.inputs), dict(norm.attrs), list(norm.outputs)
    quantized, *others = (reader.outputs[0] for reader in readers)
    name = unique_name(graph, f"{quantized.name}_of_norm")
    step = gs.Constant(unique_name(graph, f"{name}_scale"), np.array(scale, FLOAT32))
    detach([norm, *readers])
    for other in others:
        for node in list(other.outputs):
            node.inputs = [quantized if tensor is other else tensor for tensor in node.inputs]
    outputs = [quantized, *(tensor if is_read(graph, tensor) else gs.Variable.empty() for tensor in floats)]
    op = gs.Node(CONTRACT.op_type, name, attributes, [*inputs, step], outputs, domain=CONTRACT.domain)
    graph.nodes.append(op)


PASS = GraphPass(
    "fuse_quantized_norm",
    run,
    requires=("fuse_residual_layer_norm",),
    forbids=("lower_to_onnxruntime", "lower_to_native", "lower_to_plugin"),
)
