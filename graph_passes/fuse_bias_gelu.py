"""Fuse a bias with the GELU that follows it, however that is spelled, into ``FusedBiasGelu``.

    t = x + bias ──► any nodes ──► y        ->      y = FusedBiasGelu(x, bias)

A candidate is a tensor y that is made, with a sigmoidal function in between, from the sum of a tensor (B, S, E) and a
constant (E) alone. It is a GELU if, in every observed run, y holds the numbers of one; whether of the normal
distribution or of its approximation by tanh is decided by random x, where the two differ in the fourth digit. What
gives the numbers of a look-alike (the sigmoid of 1.702 t, say) is reported as that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.equivalence import is_near, largest_difference, tolerance_of
from graph_passes.graph_pass import GraphPass, Mismatch, PassResult, Place, name_of
from graph_passes.graph_tools import FLOATS, detach, producer, replace, split_bias, tensor_shape, unique_name
from graph_passes.observation import Observation, observe
from graph_passes.region import boundary, check_told, outermost, region_between, sources_of
from plugins.ops import FUSED_BIAS_GELU

__all__ = ["PASS"]

CONTRACT = FUSED_BIAS_GELU.contract
SIGMOIDAL = frozenset({"Erf", "Gelu", "Sigmoid", "Tanh"})
# Wide enough for both forms of GELU (they differ by 5e-4 at most); the probes decide between them.
NEAR = 1e-3

Values = NDArray[Any]
Formula = Callable[[Values], Values]


def tanh_form(t: Values) -> Values:
    """GELU, or what is within 5e-4 of it."""
    wide: Values = t / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (t + 0.044715 * t**3)))
    return wide


def sigmoid(t: Values) -> Values:
    """1 / (1 + exp(-t)), without overflow."""
    return 0.5 + 0.5 * np.tanh(t / 2)


# The op, and what it is taken for. A look-alike's name is the reason why it was left alone.
FORMULAS: dict[str, Formula] = {
    "": tanh_form,
    "it is the quick GELU, t sigmoid(1.702 t)": lambda t: t * sigmoid(1.702 * t),
    "it is SiLU, t sigmoid(t)": lambda t: t * sigmoid(t),
}


def run(graph: gs.Graph) -> PassResult:
    """Replaces every bias and GELU by one node, each verified on probes first."""
    observation = observe(graph)
    places: list[Place] = []
    fused: set[int] = set()
    missed: list[tuple[Mismatch, list[gs.Node]]] = []
    for anchor in [node for node in graph.nodes if node.op in SIGMOIDAL and not node.domain]:
        name = name_of(anchor)  # as it was: what replaces a result takes its name over
        for t, y, nodes in candidates(anchor):
            kind = next((kind for kind, formula in FORMULAS.items() if agrees(t, y, formula, observation)), None)
            if kind is None:
                continue
            try:
                if kind:
                    raise Mismatch(anchor, kind)
                difference = fuse(graph, anchor, t, y, nodes, observation, seed=len(places))
                places.append(Place(name, difference))
                fused |= {id(node) for node in nodes}
            except Mismatch as mismatch:
                missed.append((mismatch, nodes))
            break
    return PassResult(graph, len(places), tuple(places), outermost(missed, fused))


def candidates(anchor: gs.Node) -> Iterator[tuple[gs.Tensor, gs.Tensor, list[gs.Node]]]:
    """Tensors t and y with the anchor in between and nothing else flowing in, and the nodes from t to y."""
    shape = tensor_shape(anchor.outputs[0])
    before = [anchor.inputs[0], *sources_of(anchor.inputs[0])]
    for y in made_from(anchor.outputs[0]):
        for t in before:
            if tensor_shape(t) == shape == tensor_shape(y) and t.dtype == y.dtype and t.dtype in FLOATS:
                nodes = region_between(t, y)
                if any(node is anchor for node in nodes) and boundary(nodes) == [t]:
                    yield t, y, nodes


def made_from(tensor: gs.Tensor) -> list[gs.Tensor]:
    """The tensor and what is made from it by a few simple nodes, nearest first."""
    found, level = [tensor], [tensor]
    for _ in range(4):  # + 1, × t, / 2, and a Cast
        level = [
            output
            for made in level
            for node in made.outputs
            if node.op in ("Add", "Cast", "Div", "Mul", "Identity")
            for output in node.outputs
        ]
        found += level
    return found


def agrees(t: gs.Tensor, y: gs.Tensor, formula: Formula, observation: Observation) -> bool:
    """Whether y holds, in every observed run, what the formula makes of t."""
    for run_ in observation.runs:
        if t.name not in run_.values or y.name not in run_.values:
            return False
        expected = formula(run_.values[t.name].astype(np.float64))
        if not is_near(expected, run_.values[y.name], NEAR):
            return False
    return True


def fuse(
    graph: gs.Graph,
    anchor: gs.Node,
    t: gs.Tensor,
    y: gs.Tensor,
    nodes: list[gs.Node],
    observation: Observation,
    *,
    seed: int,
) -> float:
    """Puts the op in place of the sum and the nodes, if it agrees with them on probes; the largest difference.

    Raises:
        Mismatch: If there is no such sum, or they do not agree. The graph is as it was then.
    """
    shape = tensor_shape(t) or ()
    add = producer(t, "Add")
    if add is None:
        source = producer(t)
        raise Mismatch(anchor, f"its input is no sum: it comes from {source.op if source else 'outside of the graph'}")
    terms = split_bias(t)
    if terms is None:
        raise Mismatch(anchor, "the terms of its input must be a tensor and a constant with one number per feature")
    x, bias = terms
    if len(shape) != 3:
        raise Mismatch(anchor, f"its input must have three axes, (B, S, E); got {shape}")
    inside = {id(node) for node in nodes}
    if any(output is t for output in graph.outputs) or any(id(reader) not in inside for reader in t.outputs):
        raise Mismatch(anchor, f"the sum, {t.name}, is read elsewhere")
    check_told(anchor, nodes, also=lambda node: node.op in SIGMOIDAL)
    stem = unique_name(graph, f"{y.name}_activated")
    vector = gs.Constant(unique_name(graph, f"{stem}_bias"), bias.astype(np.float32))
    found: list[tuple[float, gs.Node]] = []
    for approximate in ("none", "tanh"):
        new = gs.Variable(stem, y.dtype, y.shape)
        op = gs.Node(CONTRACT.op_type, stem, {"approximate": approximate}, [x, vector], [new], domain=CONTRACT.domain)
        difference = largest_difference(
            [add, *nodes],
            [op],
            [(y, new)],
            probes=[x],
            observation=observation,
            opset=graph.opset,
            seed=seed,
        )
        found.append((difference, op))
    found.sort(key=lambda pair: pair[0])
    (difference, op), (_, other) = found
    detach([other])
    if not difference <= tolerance_of(CONTRACT, [add, *nodes]):
        detach([op])
        raise Mismatch(anchor, f"looks like {CONTRACT.op_type} but differs by {difference:.3g} on probe inputs")
    graph.nodes.append(op)
    replace(graph, y, op.outputs[0])
    return difference


PASS = GraphPass("fuse_bias_gelu", run, requires=("prepare",), forbids=("cast_fp16", "insert_qdq", "quantize_dynamic"))
