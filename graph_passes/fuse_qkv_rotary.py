"""Make q, k and v by one product, and what follows it up to the attention, or up to the cache, by ``QKVRotary``.

    q, k = rotated heads of x Wq + bq, x Wk + bk;  v = heads of x Wv + bv, rotated or not;  attention with a scale
        ->  q, k, v = QKVRotary(x [Wq Wk Wv], [bq bk bv], cos, sin);  the same attention with a scale of 1

One kernel then reads the product once, where three would add biases, move heads and rotate. The bias is added, and q is
scaled, in float32 at every precision. In decoders with a cache, k and v are the heads that are put after the past.

For TensorRT with our plugins alone: other targets split and rotate packed heads without one (lower_to_native.py). An
attention whose q is not rotated is none of this pass's.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graph_passes.graph_pass import GraphPass, Mismatch, NearMiss, PassResult
from graph_passes.graph_tools import detach, is_fused, is_private, producer, unique_name
from graph_passes.projections import one_product, projections_of_one_tensor, same_angles
from graph_passes.standard_ops import FLOAT32, Shared, Writer, custom_ops
from plugins.ops import INTERLEAVED_ROTARY, QKV_ROTARY, SCALED_DOT_PRODUCT_ATTENTION

__all__ = ["PASS"]

CONTRACT = QKV_ROTARY.contract
SEQUENCE = (2, -2)  # the axis of (B, H, S, D), as a Concat may call it


def run(graph: gs.Graph) -> PassResult:
    """Packs the q, k and v of every attention that rotates; says why where it cannot."""
    count = 0
    near_misses: list[NearMiss] = []
    shared: Shared = {}
    for node in custom_ops(graph):
        if is_fused(node, SCALED_DOT_PRODUCT_ATTENTION.contract.op_type) and is_rotated(node.inputs[0]):
            try:
                fuse(graph, node, shared)
                count += 1
            except Mismatch as mismatch:
                near_misses.append(mismatch.near_miss)
    return PassResult(graph, count, near_misses=tuple(near_misses))


def is_rotated(tensor: gs.Tensor) -> bool:
    """Whether a rotation makes the tensor."""
    return any(is_fused(node, INTERLEAVED_ROTARY.contract.op_type) for node in tensor.inputs)


def of_this_step(tensor: gs.Tensor) -> gs.Tensor:
    """Of heads that are put after those of a past, the former, as they are before any Cast; otherwise the tensor."""
    while (node := producer(tensor, "Cast", "Concat")) and node.attrs.get("axis", SEQUENCE[0]) in SEQUENCE:
        tensor = node.inputs[-1]  # at half precision, a cache is float32 still: graph inputs are
    return tensor


def fuse(graph: gs.Graph, attention: gs.Node, shared: Shared) -> None:
    """Puts one product and one node in place of what makes the q, k and v of an attention.

    Raises:
        Mismatch: If they are not three plain products of one tensor. The graph is as it was then.
    """
    heads = [attention.inputs[0], *map(of_this_step, attention.inputs[1:3])]
    q, k, v = projections_of_one_tensor(graph, attention, heads)
    if q.angles is None or not (v.angles is None or same_angles(q.angles, v.angles)):
        raise Mismatch(attention, "its v is rotated by other angles than its q")
    if not is_private(graph, heads[0]):  # it will be scaled
        raise Mismatch(attention, f"its q, {heads[0].name}, is read elsewhere")
    if heads[1] is heads[2]:
        raise Mismatch(attention, f"its k and v are one tensor, {heads[1].name}")
    product = one_product(Writer(graph, attention, shared), (q, k, v))
    bias = [np.zeros(part.heads * part.size) if part.bias is None else part.bias for part in (q, k, v)]
    name = unique_name(graph, f"{heads[0].name}_packed")
    vector = gs.Constant(unique_name(graph, f"{name}_bias"), np.concatenate(bias).astype(FLOAT32))
    attributes = {
        "num_heads": q.heads,
        "scale": attention.attrs["scale"],
        "rotary_value": int(v.angles is not None),
    }
    detach([node for tensor in heads for node in tensor.inputs])
    op = gs.Node(CONTRACT.op_type, name, attributes, [product, vector, *q.angles], heads, domain=CONTRACT.domain)
    graph.nodes.append(op)
    attention.attrs["scale"] = 1.0


PASS = GraphPass(
    "fuse_qkv_rotary",
    run,
    requires=("fuse_rotary", "fuse_attention"),
    forbids=("lower_to_onnxruntime", "lower_to_native", "lower_to_plugin"),
)
