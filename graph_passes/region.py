"""Regions of a graph, found by their boundaries: what flows in, what flows out, whatever lies between."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graph_passes.graph_pass import Mismatch, NearMiss
from graph_passes.graph_tools import constant_value, tensor_shape

__all__ = ["boundary", "check_told", "first_untold", "outermost", "region_between", "sources_of"]

# Where a walk upwards ends: these mix places or features, and no fused op reaches across one of them.
BARRIERS = frozenset({"MatMul", "Gemm", "Softmax", "MatMulInteger", "Attention", "Conv"})
OF_SHAPES = {"Shape", "Size"}  # what they read does not flow on: a table cut to the length of x is not made from x
DEPTH = 24  # nodes; the longest spelling of a norm that we know has 12, of a rotation 10
# What random numbers at a few sizes tell all about. Other ops may do something else beyond a bound that no probe
# reaches (Clip, Where, If).
ARITHMETIC = {
    "Add",
    "Div",
    "Einsum",
    "Mul",
    "Neg",
    "Pow",
    "Reciprocal",
    "ReduceMean",
    "ReduceSum",
    "Sqrt",
    "Sub",
    "Sum",
}
TAKING = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Slice", "Split"}
SHAPING = {"Concat", "Expand", "Flatten", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
TOLD = ARITHMETIC | TAKING | SHAPING | {"Cast", "Constant", "Dropout", "Identity", "LayerNormalization"}
ON_SHAPES = {"And", "ConstantOfShape", "Equal", "Mod", "Not", "Range", "ReduceProd", "Where"}  # told of whole numbers
TO_THE_END = 2**31 - 1


def sources_of(sink: gs.Tensor, *, barriers: Collection[str] = BARRIERS) -> Iterator[gs.Tensor]:
    """The computed tensors that ``sink`` is made from, nearest first, up to the next barrier."""
    seen = {id(sink)}
    level = [sink]
    for _ in range(DEPTH):
        above: list[gs.Tensor] = []
        for tensor in level:
            for node in tensor.inputs:
                if node.op in barriers or node.op in OF_SHAPES:
                    continue
                for source in node.inputs:
                    if id(source) not in seen and not source.is_empty() and constant_value(source) is None:
                        seen.add(id(source))
                        above.append(source)
        yield from above
        level = above


def region_between(source: gs.Tensor, sink: gs.Tensor, *, barriers: Collection[str] = BARRIERS) -> list[gs.Node]:
    """Every node on a way from ``source`` to ``sink``, in no order. Empty where there is no way, or a barrier on it."""
    above = {id(tensor) for tensor in sources_of(sink, barriers=barriers)} | {id(sink)}
    nodes: dict[int, gs.Node] = {}
    pending = [source]
    while pending:
        for node in pending.pop().outputs:
            if id(node) in nodes or node.op in OF_SHAPES or not any(id(output) in above for output in node.outputs):
                continue
            if node.op in barriers:
                return []
            nodes[id(node)] = node
            pending += [output for output in node.outputs if id(output) in above]
    return list(nodes.values())


def boundary(nodes: Sequence[gs.Node]) -> list[gs.Tensor]:
    """The tensors that flow into a region, constants left out, each once, in the order of the nodes."""
    made = {id(output) for node in nodes for output in node.outputs}
    flowing: dict[int, gs.Tensor] = {}
    for node in nodes:
        for tensor in node.inputs:
            if id(tensor) not in made and not tensor.is_empty() and constant_value(tensor) is None:
                flowing.setdefault(id(tensor), tensor)
    return list(flowing.values())


def outermost(missed: Iterable[tuple[Mismatch, Sequence[gs.Node]]], fused: Collection[int]) -> tuple[NearMiss, ...]:
    """One near miss per node, the first; none that holds a fused node (by id), or holds or lies in an earlier one.

    The product of a rotation and a scale is no near miss, and a part of one is the same one.
    """
    found: dict[str, tuple[NearMiss, set[int]]] = {}
    for mismatch, nodes in missed:
        miss, between = mismatch.near_miss, {id(node) for node in nodes}
        if between.isdisjoint(fused) and not any(between < other or between > other for _, other in found.values()):
            found.setdefault(miss.node, (miss, between))
    return tuple(miss for miss, _ in found.values())


def check_told(
    anchor: gs.Node, nodes: Sequence[gs.Node], *, also: Callable[[gs.Node], bool] = lambda _node: False
) -> None:
    """Makes sure that random numbers at a few sizes tell all about the nodes.

    Raises:
        Mismatch: At the anchor, if one may do something else beyond what probes try (:func:`first_untold`).
    """
    if untold := first_untold(nodes, also=also):
        reason = f"the {untold.op} in between may do something else for numbers or sizes that no probe tries"
        raise Mismatch(anchor, reason)


def first_untold(nodes: Sequence[gs.Node], *, also: Callable[[gs.Node], bool] = lambda _node: False) -> gs.Node | None:
    """The first node that may do something else for numbers or sizes that no probe tries, if there is one.

    Args:
        nodes: In any order.
        also: Which other nodes of the standard are told of all the same, where they stand.
    """
    return next((node for node in nodes if not (_is_told(node) or (_is_standard(node) and also(node)))), None)


def _is_standard(node: gs.Node) -> bool:
    return node.domain in (None, "", "ai.onnx")


def _is_told(node: gs.Node) -> bool:
    if not _is_standard(node):
        return False
    if node.op in ON_SHAPES:
        return all(tensor.dtype is not None and not np.issubdtype(tensor.dtype, np.floating) for tensor in node.outputs)
    return node.op in TOLD and (node.op != "Slice" or _cuts_known_axes(node))


def _cuts_known_axes(node: gs.Node) -> bool:
    """Whether a slice leaves every axis whole that may be longer than any that was observed."""
    shape = tensor_shape(node.inputs[0])
    bounds = [None if tensor.is_empty() else constant_value(tensor) for tensor in node.inputs[1:4]]
    if shape is None or any(bound is None for bound in bounds):
        return False
    starts, ends, *rest = [bound.reshape(-1).tolist() for bound in bounds if bound is not None]
    axes = rest[0] if rest else range(len(starts))
    return all(
        isinstance(shape[axis], int) or (start == 0 and end >= TO_THE_END)
        for start, end, axis in zip(starts, ends, axes, strict=True)
    )
