"""Fuse attention, however it is spelled and masked, into ``ScaledDotProductAttention``.

    q ─► any scaling ─┐
    k ─► any scaling ─► MatMul ─► mask ─► Softmax ─► MatMul ─► y      ->      y = ScaledDotProductAttention(q, k, v, m)
    v ──────────────────────────────────────────────►

The search starts at a softmax over the last of four axes: its readers lead to the product with v, its sources to a
product of which the operands are multiples of a q (B, H, S, D) and of a k (B, H, K, D), in whatever layout.

The mask m is what the scores are without the product: the nodes between product and softmax, with zero in its place.
So it does not matter whether a mask is added or chosen by a Where, is causal, carries relative positions, or is none.
Scores that are scale q kᵀ + m in every observed run make a candidate. It is fused if nodes and op agree on random q, k
and v, and once more with masks at both ends of their values, so that rows which may attend to nothing keep their
result, be it uniform weights, zeros or NaN. It is left alone if anything else reads an intermediate result.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.equivalence import is_near, largest_difference, observe_more, tolerance_of
from graph_passes.graph_pass import GraphPass, Mismatch, PassResult, Place, name_of
from graph_passes.graph_tools import FLOATS, constant_value, detach, producer, replace, tensor_shape, unique_name
from graph_passes.observation import Observation, observe
from graph_passes.region import BARRIERS, boundary, check_told, region_between, sources_of
from plugins.ops import SCALED_DOT_PRODUCT_ATTENTION

__all__ = ["PASS"]

CONTRACT = SCALED_DOT_PRODUCT_ATTENTION.contract
# Observed numbers carry the rounding of the graph's own spelling; this only narrows, the probes decide.
NEAR = 1e-4
HIDDEN = -1e4  # a score below it is masked: what was added to it has no digits left to compare
# A scale that is this close to 1 / sqrt(D), or to one, is meant to be that: it was measured in float32.
ROUNDING = 1e-6
# What makes (B, H, S, D) of an operand: nothing, or a transposition of (B, S, H, D) or (B, H, D, S).
LAYOUTS = (None, (0, 2, 1, 3), (0, 1, 3, 2))
LINEAR = {"Cast", "CastLike", "Div", "Dropout", "Identity", "Mul"}  # nothing stays nothing


class Operand(NamedTuple):
    """A q, k or v: ``tensor`` is it after a transposition by ``perm`` (``None``: as it is)."""

    tensor: gs.Tensor
    perm: tuple[int, ...] | None
    nodes: list[gs.Node]

    def read(self, value: NDArray[Any]) -> NDArray[Any]:
        """(B, H, S, D) of a value of the tensor."""
        return value if self.perm is None else value.transpose(self.perm)


class Site(NamedTuple):
    """An attention: its operands, all its nodes, and those between the product and the softmax, in order."""

    q: Operand
    k: Operand
    v: Operand
    product: gs.Tensor
    scores: gs.Tensor
    y: gs.Tensor
    nodes: list[gs.Node]
    masking: list[gs.Node]


class Extra:
    """Nodes that sites need beside the op: made once, however many sites ask for the same."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[Any, ...], gs.Tensor] = {}
        self.nodes: list[gs.Node] = []

    def add(self, op: str, inputs: list[gs.Tensor], attrs: dict[str, Any], dtype: Any) -> gs.Tensor:
        """The one output of such a node."""
        key = (op, *(_identity(tensor) for tensor in inputs), *sorted((name, str(attrs[name])) for name in attrs))
        if key not in self.made:
            self.made[key] = gs.Variable(unique_name(self.graph, f"attention_{op.lower()}"), dtype)
            self.nodes.append(gs.Node(op, self.made[key].name, attrs, inputs, [self.made[key]]))
        return self.made[key]

    def constant(self, name: str, value: NDArray[Any]) -> gs.Tensor:
        """A constant of that value."""
        key = ("Constant", value.dtype.str, value.shape, value.tobytes())
        if key not in self.made:
            self.made[key] = gs.Constant(unique_name(self.graph, f"attention_{name}"), value)
        return self.made[key]

    def behind(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Those of the nodes that ``tensor`` is made by, in order."""
        wanted = {id(tensor)}
        for node in reversed(self.nodes):
            if any(id(output) in wanted for output in node.outputs):
                wanted |= {id(source) for source in node.inputs}
        return [node for node in self.nodes if id(node.outputs[0]) in wanted]

    def keep(self, used: list[gs.Tensor]) -> None:
        """Puts what these tensors are made by into the graph, and takes the rest off it."""
        kept = {id(node): node for tensor in used for node in self.behind(tensor)}
        self.graph.nodes.extend(node for node in self.nodes if id(node) in kept)
        detach(node for node in self.nodes if id(node) not in kept)


def _identity(tensor: gs.Tensor) -> Any:
    value = constant_value(tensor)
    if value is None or value.size > 16:
        return id(tensor)
    return value.dtype.str, value.shape, value.tobytes()


def run(graph: gs.Graph) -> PassResult:
    """Replaces every attention by one node, each verified on probes first."""
    observation = observe(graph)
    extra = Extra(graph)
    masks: list[gs.Tensor] = []
    places: list[Place] = []
    missed = []
    for softmax in [node for node in graph.nodes if may_weigh(node)]:
        try:
            site = match(graph, softmax, observation)
            difference, mask = fuse(graph, softmax, site, extra, observation, seed=len(masks))
        except Mismatch as mismatch:
            missed.append(mismatch.near_miss)
            continue
        places.append(Place(name_of(softmax), difference))
        masks.append(mask)
    extra.keep(masks)
    return PassResult(graph, len(places), tuple(places), tuple(missed))


def may_weigh(node: gs.Node) -> bool:
    """Whether it is a softmax over the last of four axes, in a dtype of the op."""
    return bool(
        node.op == "Softmax"
        and not node.domain
        and len(tensor_shape(node.inputs[0]) or ()) == 4
        and node.inputs[0].dtype in FLOATS
        and node.attrs.get("axis", -1) in (-1, 3)
    )


def match(graph: gs.Graph, softmax: gs.Node, observation: Observation) -> Site:
    """The attention around a softmax, as far as structure and the observed numbers tell.

    Raises:
        Mismatch: If they tell that it is none.
    """
    scores, weights = softmax.inputs[0], softmax.outputs[0]
    context = product_with(weights, softmax)
    v = operand(graph, context.inputs[1], observation, scaled=False)
    weighing = region_between(scores, context.inputs[0], barriers=BARRIERS - {"Softmax"})
    for product in [scores, *sources_of(scores)]:
        matmul = producer(product, "MatMul")
        if matmul is None or tensor_shape(product) != tensor_shape(scores):
            continue
        q = operand(graph, matmul.inputs[0], observation)
        k = operand(graph, matmul.inputs[1], observation, transposed=True)
        if q is None or k is None or v is None:
            continue
        masking = [] if product is scores else in_order(graph, region_between(product, scores))
        nodes = [*q.nodes, *k.nodes, *v.nodes, matmul, *masking, *weighing, context]
        return Site(q, k, v, product, scores, context.outputs[0], nodes, masking)
    raise Mismatch(softmax, "its scores come from no product of queries (B, H, S, D) and keys (B, H, K, D)")


def product_with(weights: gs.Tensor, softmax: gs.Node) -> gs.Node:
    """The one product in which the weights weigh something.

    Raises:
        Mismatch: If there is none, or more than one.
    """
    found: dict[int, gs.Node] = {}
    pending, seen = [weights], {id(weights)}
    while pending:
        tensor = pending.pop()
        for node in tensor.outputs:
            if node.op == "MatMul":
                found[id(node)] = node
                continue
            for output in node.outputs:
                if id(output) not in seen and tensor_shape(output) == tensor_shape(weights):
                    seen.add(id(output))
                    pending.append(output)
    if len(found) != 1 or id(next(iter(found.values())).inputs[0]) not in seen:
        raise Mismatch(softmax, f"its weights must be the first factor of one product; there are {len(found)}")
    return next(iter(found.values()))


def operand(
    graph: gs.Graph, factor: gs.Tensor, observation: Observation, *, transposed: bool = False, scaled: bool = True
) -> Operand | None:
    """The farthest source of which a factor of a product is a multiple; one of the op's layout if there is one.

    Args:
        graph: It lies in.
        factor: (B, H, S, D), or (B, H, D, K) where it is ``transposed``.
        observation: Of the graph.
        transposed: Whether the last two axes of the factor are the other way about.
        scaled: Whether any multiple will do; otherwise the factor must be the source itself.
    """
    best: Operand | None = None
    is_shared = len(factor.outputs) > 1 or any(output is factor for output in graph.outputs)
    for source in (factor, *(() if is_shared else sources_of(factor))):
        nodes = region_between(source, factor) if source is not factor else []
        if source.dtype != factor.dtype or is_read_outside(graph, nodes, but=factor):
            continue
        for perm in LAYOUTS:
            candidate = Operand(source, perm, nodes)
            ratio = ratio_of(candidate, factor, observation, transposed=transposed)
            if ratio is not None and (scaled or abs(ratio - 1) < ROUNDING):
                best = candidate if best is None or perm is None or best.perm is not None else best
                break
    return best


def is_read_outside(graph: gs.Graph, nodes: list[gs.Node], *, but: gs.Tensor) -> bool:
    """Whether anything but the nodes themselves reads what they make, less one tensor."""
    inside, results = {id(node) for node in nodes}, {id(output) for output in graph.outputs}
    made = [output for node in nodes for output in node.outputs if output is not but]
    return any(id(tensor) in results or any(id(node) not in inside for node in tensor.outputs) for tensor in made)


def ratio_of(operand: Operand, factor: gs.Tensor, observation: Observation, *, transposed: bool) -> float | None:
    """The number that gives the factor when it multiplies the operand, if it is the same in every observed run."""
    first: float | None = None
    for run_ in observation.runs:
        whole, part = run_.values.get(factor.name), run_.values.get(operand.tensor.name)
        if whole is None or part is None or whole.ndim != 4 or part.ndim != 4:
            return None  # a constant, say
        whole, part = whole.swapaxes(-1, -2) if transposed else whole, operand.read(part)
        if whole.shape != part.shape:
            return None
        first = least_squares(part, whole) if first is None else first
        if not (first and is_near(first * part, whole, NEAR)):
            return None
    return first


def least_squares(part: NDArray[Any], whole: NDArray[Any]) -> float:
    """The number that ``part`` is best multiplied by to give ``whole``; zero where nothing is."""
    part = part.astype(np.float64)
    square = float(np.sum(part * part))
    return float(np.sum(part * whole)) / square if square else 0.0


def in_order(graph: gs.Graph, nodes: list[gs.Node]) -> list[gs.Node]:
    """The nodes in an order in which each comes after what it reads."""
    inside = {id(node) for node in nodes}
    return [node for node in graph.nodes if id(node) in inside]


def mask_of(site: Site, extra: Extra) -> gs.Tensor:
    """What the scores are without the product, (B|1, H|1, S|1, K|1) float32: the masking nodes of nothing."""
    nothing: dict[int, gs.Tensor] = {}

    def no_mask(dtype: Any) -> gs.Tensor:
        zero = extra.constant("no_mask", np.zeros((1, 1, 1, 1), dtype))
        return nothing.setdefault(id(zero), zero)

    now: dict[int, gs.Tensor] = {id(site.product): no_mask(site.product.dtype)}
    for node in site.masking:
        inputs = [now.get(id(tensor), tensor) for tensor in node.inputs]
        beside = [tensor for tensor in inputs if id(tensor) not in nothing]
        output = node.outputs[0]
        if node.op == "Add" and len(beside) == 1 and len(tensor_shape(beside[0]) or ()) == 4:
            now[id(output)] = beside[0]
        elif node.op in LINEAR and any(id(tensor) in nothing for tensor in inputs[: 2 if node.op == "Mul" else 1]):
            now[id(output)] = no_mask(output.dtype)
        else:
            now[id(output)] = extra.add(node.op, inputs, dict(node.attrs), output.dtype)
    mask = now[id(site.scores)]
    if id(mask) in nothing:
        return no_mask(np.float32)
    return mask if mask.dtype == np.float32 else extra.add("Cast", [mask], {"to": np.float32}, np.dtype(np.float32))


def scale_of(site: Site, mask: gs.Tensor, observation: Observation) -> float | None:
    """The number with which q kᵀ times it plus the mask gives the scores, in every observed run."""
    scale: float | None = None
    for run_ in observation.runs:
        q, k = (part.read(run_.values[part.tensor.name]).astype(np.float64) for part in (site.q, site.k))
        scores = run_.values[site.scores.name].astype(np.float64)
        added = np.broadcast_to(mask.values if isinstance(mask, gs.Constant) else run_.values[mask.name], scores.shape)
        seen = (added > HIDDEN) & np.isfinite(added)
        product, rest = (q @ k.swapaxes(-1, -2))[seen], scores[seen] - added[seen]
        scale = least_squares(product, rest) if scale is None else scale
        if not (np.isfinite(rest).all() and is_near(scale * product, rest, NEAR)):
            return None
    meant = (1 / math.sqrt(q.shape[-1]), 1.0)
    return next((exact for exact in meant if scale is not None and abs(scale / exact - 1) < ROUNDING), scale)


def check_operands(softmax: gs.Node, site: Site, observation: Observation) -> None:
    """Makes sure that no operand is broadcast: q (B, H, S, D), k and v (B, H, K, D).

    Raises:
        Mismatch: If one is.
    """
    for run_ in observation.runs:
        q, k, v = (part.read(run_.values[part.tensor.name]).shape for part in (site.q, site.k, site.v))
        if k != v or (*q[:2], q[3]) != (*k[:2], k[3]):
            raise Mismatch(softmax, f"q must be (B, H, S, D), k and v (B, H, K, D); got {q}, {k} and {v}")


def check_what_is_between(graph: gs.Graph, softmax: gs.Node, site: Site) -> None:
    """Makes sure that probes can tell all about the nodes, and that nothing is computed twice afterwards.

    Raises:
        Mismatch: If one may do something else beyond what probes try, or what it makes is read elsewhere.
    """
    inside = {id(output) for node in site.nodes for output in node.outputs}
    check_told(softmax, site.nodes, also=lambda node: is_masking(node, inside))
    if is_read_outside(graph, site.nodes, but=site.y):
        raise Mismatch(softmax, "an intermediate result of it, scores or weights, is read elsewhere")
    known = {id(tensor) for tensor in (site.q.tensor, site.k.tensor, site.v.tensor, *boundary(site.masking))}
    for tensor in boundary(site.nodes):
        if id(tensor) not in known and np.issubdtype(tensor.dtype, np.floating):
            raise Mismatch(softmax, f"{tensor.name} flows in as well, which is none of q, k, v and mask")


def is_masking(node: gs.Node, inside: set[int]) -> bool:
    """Whether an op that is judged by what it chooses chooses by a mask, or by whether a whole row is masked."""
    if node.op == "Where":
        condition = node.inputs[0]
        return id(condition) not in inside or condition.inputs[0].op in ("IsNaN", "Equal")
    if node.op == "Equal":
        values = [constant_value(tensor) for tensor in node.inputs]
        return any(value is not None and bool(np.all(value == -np.inf)) for value in values)
    return node.op in ("MatMul", "Softmax", "IsNaN", "CastLike", "ReduceMax")


def fuse(
    graph: gs.Graph, softmax: gs.Node, site: Site, extra: Extra, observation: Observation, *, seed: int
) -> tuple[float, gs.Tensor]:
    """Puts the op in place of the nodes, if it agrees with them on probes; the largest difference, and the mask.

    Raises:
        Mismatch: If it does not. The graph is as it was then.
    """
    check_operands(softmax, site, observation)
    check_what_is_between(graph, softmax, site)
    mask = mask_of(site, extra)
    before = extra.behind(mask)
    observation = observe_more(observation, before, [mask], opset=graph.opset)
    if isinstance(mask, gs.Variable) and mask.shape is None:
        mask.shape = observation.shape(mask.name)
    if len(tensor_shape(mask) or ()) != 4:
        raise Mismatch(softmax, f"its mask must have four axes; got {tensor_shape(mask)}")
    scale = scale_of(site, mask, observation)
    if scale is None:
        raise Mismatch(softmax, "its scores are not the product of its operands, scaled by one number, and a mask")
    stem = unique_name(graph, f"{site.y.name}_attended")
    y = gs.Variable(stem, site.y.dtype, site.y.shape)
    moves: list[gs.Node] = []
    inputs = [
        in_layout(part, unique_name(graph, f"{stem}_{name}"), moves) for name, part in zip("qkv", site[:3], strict=True)
    ]
    differences = []
    for zero_masked_rows in (0, 1):
        attrs = {"scale": scale, "zero_masked_rows": zero_masked_rows}
        op = gs.Node(CONTRACT.op_type, stem, attrs, [*inputs, mask], [y], domain=CONTRACT.domain)
        differences.append(
            largest_difference(
                site.nodes,
                [*before, *moves, op],
                [(site.y, y)],
                probes=[site.q.tensor, site.k.tensor, site.v.tensor],
                extremes=boundary(site.masking),
                observation=observation,
                opset=graph.opset,
                seed=seed,
            )
        )
        if differences[-1] <= tolerance_of(CONTRACT, site.nodes):
            graph.nodes += [*moves, op]
            replace(graph, site.y, y)
            return differences[-1], mask
        detach([op])
    detach(moves)
    raise Mismatch(softmax, f"looks like {CONTRACT.op_type} but differs by {min(differences):.3g} on probe inputs")


def in_layout(part: Operand, name: str, moves: list[gs.Node]) -> gs.Tensor:
    """The operand as (B, H, S, D); what transposes it is added to ``moves``."""
    if part.perm is None:
        return part.tensor
    shape = tensor_shape(part.tensor)
    moved = gs.Variable(name, part.tensor.dtype, None if shape is None else [shape[axis] for axis in part.perm])
    moves.append(gs.Node("Transpose", name, {"perm": list(part.perm)}, [part.tensor], [moved]))
    return moved


PASS = GraphPass("fuse_attention", run, requires=("prepare",), forbids=("cast_fp16", "insert_qdq", "quantize_dynamic"))
