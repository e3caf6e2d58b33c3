"""Fuse RoFormer's rotation of adjacent pairs, however it is spelled, into ``InterleavedRotary``.

    x (B, H, S, D) ──► any nodes ──► y        ->      y = InterleavedRotary(x, cos, sin)
    angles         ──►

A candidate is a pair of tensors of one shape with at least two products between them. It is a rotation if, in every
observed run, y holds the numbers that the op gives for x and two of the tensors that flow in beside it, or from which
those are made: D/2 columns of angles, sines and cosines side by side, or D columns in which each angle is said twice.
It is fused if the nodes between agree with the op on random x and random angles. Angles that are said twice cannot be
random: they must be so at every position that the graph can run.

Only the numbers decide: slices or splits, a stack or a concatenation, Neg or Sub, one table or two make no difference.
What gives the numbers of a look-alike (the half-split convention of GPT-NeoX and Llama, say) is reported as that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.equivalence import is_near, largest_difference, tolerance_of
from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, Mismatch, PassResult, Place, name_of
from graph_passes.graph_tools import FLOATS, constant_value, detach, producer, replace, tensor_shape, unique_name
from graph_passes.observation import Observation, evaluator, observe
from graph_passes.region import boundary, check_told, outermost, region_between, sources_of
from plugins.ops import INTERLEAVED_ROTARY

__all__ = ["PASS"]

CONTRACT = INTERLEAVED_ROTARY.contract
# Observed numbers carry the rounding of the graph's own spelling; this only narrows, the probes decide.
NEAR = 1e-4
TAKES_APART = frozenset({"Slice", "Split", "Gather", "GatherElements", "Reshape"})
FAR_POSITION = 512  # where angles are computed and no table bounds the positions


Formula = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]


def interleaved(x: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any]) -> NDArray[Any]:
    """The op: x (B, H, S, D), angles (…, S, D/2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    pair: NDArray[Any] = np.stack((even * cos - odd * sin, odd * cos + even * sin), axis=-1)
    return pair.reshape(x.shape) if pair.size == x.size else pair


def half_split(x: NDArray[Any], cos: NDArray[Any], sin: NDArray[Any]) -> NDArray[Any]:
    """The other convention: the pairs are (x[i], x[i + D/2])."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def swapped(x: NDArray[Any]) -> NDArray[Any]:
    """The two elements of each pair in the other order."""
    return x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)


# The op, and what it is taken for. A look-alike's name is the reason why it was left alone.
FORMULAS: dict[str, Formula] = {
    "": interleaved,
    "it rotates halves (the convention of GPT-NeoX and Llama), not adjacent pairs": half_split,
    "it turns the other way: by the negative angle": lambda x, cos, sin: interleaved(x, cos, -sin),
    "it leaves the two elements of each pair in the other order": lambda x, cos, sin: swapped(interleaved(x, cos, sin)),
    "it takes the two elements of each pair in the other order": lambda x, cos, sin: interleaved(swapped(x), cos, sin),
}


class Angles(NamedTuple):
    """Where the op's cos or sin, (P, S, D/2), stands: D/2 columns from ``start`` on, each ``step`` apart."""

    tensor: gs.Tensor
    start: int
    step: int

    def read(self, value: NDArray[Any], half: int) -> NDArray[Any]:
        """(…, S, D/2) of a value of the tensor."""
        return value[..., self.start :: self.step][..., :half]


class Site(NamedTuple):
    """A rotation: the nodes between source and y, and its angles. The source is x, or what was transposed to x."""

    x: gs.Tensor
    source: gs.Tensor
    y: gs.Tensor
    nodes: list[gs.Node]
    cos: Angles
    sin: Angles


class Tables:
    """The angles in the op's shape, made once for all layers."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[int, int, int], tuple[gs.Tensor, list[gs.Node]]] = {}

    def get(self, angles: Angles, half: int) -> tuple[gs.Tensor, list[gs.Node]]:
        """The tensor, (P, S, D/2), and the nodes that make it from the graph's."""
        key = id(angles.tensor), angles.start, angles.step
        if key not in self.made:
            self.made[key] = self._make(angles, half)
        return self.made[key]

    def drop_unused(self) -> None:
        """Takes tables off the graph that no op came to read."""
        known = {id(node) for node in self.graph.nodes}
        for _, nodes in self.made.values():
            detach(node for node in nodes if id(node) not in known)

    def _make(self, angles: Angles, half: int) -> tuple[gs.Tensor, list[gs.Node]]:
        tensor, nodes = angles.tensor, []
        stem = unique_name(self.graph, f"{tensor.name}_angles{angles.start}")
        rank, shape = len(tensor.shape), list(tensor.shape)
        if tensor.dtype != np.float32:
            tensor, before = gs.Variable(unique_name(self.graph, f"{stem}_wide"), np.float32, shape), tensor
            nodes.append(gs.Node("Cast", tensor.name, {"to": np.float32}, [before], [tensor]))
        if rank != 3:  # (P, 1, S, ·) or (S, ·)
            op, axis = ("Squeeze", 1) if rank == 4 else ("Unsqueeze", 0)
            shape = [shape[0], *shape[2:]] if rank == 4 else [1, *shape]
            axes = gs.Constant(unique_name(self.graph, f"{stem}_axes"), np.array([axis]))
            tensor, before = gs.Variable(unique_name(self.graph, f"{stem}_rows"), tensor.dtype, shape), tensor
            nodes.append(gs.Node(op, tensor.name, {}, [before, axes], [tensor]))
        if shape[-1] != half:
            bounds = [
                gs.Constant(unique_name(self.graph, f"{stem}_{name}"), np.array([value]))
                for name, value in (
                    ("start", angles.start),
                    ("end", angles.start + half * angles.step),
                    ("axis", -1),
                    ("step", angles.step),
                )
            ]
            tensor, before = gs.Variable(stem, tensor.dtype, [*shape[:-1], half]), tensor
            nodes.append(gs.Node("Slice", stem, {}, [before, *bounds], [tensor]))
        return tensor, nodes


def run(graph: gs.Graph) -> PassResult:
    """Replaces every rotation by one node, each verified on probes first."""
    observation = observe(graph)
    tables = Tables(graph)
    places: list[Place] = []
    fused: set[int] = set()
    missed: list[tuple[Mismatch, list[gs.Node]]] = []
    for node in reversed(list(graph.nodes)):
        name = name_of(node)  # as it was: what replaces a result takes its name over
        for y in list(node.outputs):
            if id(node) in fused or not may_be_rotated(y):
                continue
            for x, source, nodes in candidates(y):
                try:
                    site = match(node, x, source, y, nodes, observation)
                    difference = fuse(graph, node, site, tables, observation, seed=len(places))
                except Mismatch as mismatch:
                    missed.append((mismatch, nodes))
                    continue
                places.append(Place(name, difference))
                fused |= {id(between) for between in site.nodes}
                break
    tables.drop_unused()
    missed.sort(key=lambda miss: miss[0].near_miss.reason not in FORMULAS)  # a name says more
    return PassResult(graph, len(places), tuple(places[::-1]), outermost(missed, fused))


def may_be_rotated(tensor: gs.Tensor) -> bool:
    """Whether its shape is (B, H, S, D) with an even D, and its dtype one of the op's."""
    shape = tensor_shape(tensor)
    if tensor.dtype not in FLOATS or shape is None or len(shape) != 4:
        return False
    return isinstance(shape[-1], int) and shape[-1] % 2 == 0


def candidates(y: gs.Tensor) -> Iterator[tuple[gs.Tensor, gs.Tensor, list[gs.Node]]]:
    """Tensors that ``y`` may be a rotation of, nearest first; where they come from, and the nodes from there.

    They come from themselves, or from what they are the transposition of: optimizers move a Transpose behind one of
    the products, so that x is only in the other one.
    """
    for x in sources_of(y):
        if tensor_shape(x) != tensor_shape(y) or x.dtype != y.dtype:
            continue
        transpose = producer(x, "Transpose")
        for source in (x, *(transpose.inputs if transpose is not None else ())):
            nodes = region_between(source, y)
            if sum(node.op == "Mul" for node in nodes) >= 2 and any(node.op in TAKES_APART for node in nodes):
                yield x, source, nodes
                break


def match(
    node: gs.Node, x: gs.Tensor, source: gs.Tensor, y: gs.Tensor, nodes: list[gs.Node], observation: Observation
) -> Site:
    """The rotation of ``x`` into ``y``, with the nodes from ``source`` on, if the observed numbers say so.

    Raises:
        Mismatch: If they do not. The reason names the look-alike that they fit, if there is one.
    """
    half = int(y.shape[-1]) // 2
    beside = [tensor for tensor in boundary(nodes) if tensor is not source]
    sources = {id(tensor): tensor for side in beside for tensor in (side, *sources_of(side))}
    # First what is in the op's shape already, last what is said twice.
    angles = sorted(
        (found for tensor in sources.values() for found in angles_in(tensor, x, half)),
        key=lambda found: (found.step, found.tensor.shape[-1] != half, len(found.tensor.shape) != 3),
    )
    if len(angles) < 2:
        raise Mismatch(node, "nothing that flows in beside its input has the shape of angles, (1 or B, S, D/2)")
    for name, formula in FORMULAS.items():
        for cos, sin in itertools.permutations(angles, 2):
            if agrees(x, y, cos, sin, formula, observation):
                if name:
                    raise Mismatch(node, name)
                between = {id(found): found for found in nodes}
                for tensor, side in itertools.product((cos.tensor, sin.tensor), beside):
                    between |= {id(found): found for found in region_between(tensor, side)}
                made = [output for found in between.values() for output in found.outputs]
                if not any(output is tensor for tensor in (cos.tensor, sin.tensor) for output in made):
                    return Site(x, source, y, list(between.values()), cos, sin)
    raise Mismatch(node, "its numbers are not those of a rotation by any of the angles that flow in beside its input")


def angles_in(tensor: gs.Tensor, x: gs.Tensor, half: int) -> Iterator[Angles]:
    """The ways in which a tensor may hold cosines or sines for the positions of ``x``."""
    shape = tensor_shape(tensor)
    if tensor.dtype not in FLOATS or shape is None or not 2 <= len(shape) <= 4:
        return
    x_shape = tensor_shape(x) or ()
    *rows, length, columns = shape
    if (rows or [1])[0] not in (1, x_shape[0]) or rows[1:] not in ([], [1]) or length != x_shape[2]:
        return
    if columns == half:
        yield Angles(tensor, 0, 1)
    elif columns == 2 * half:
        yield from (Angles(tensor, 0, 1), Angles(tensor, half, 1), Angles(tensor, 0, 2))


def agrees(x: gs.Tensor, y: gs.Tensor, cos: Angles, sin: Angles, formula: Formula, observation: Observation) -> bool:
    """Whether y holds, in every observed run, what the formula makes of x and these angles."""
    half = int(y.shape[-1]) // 2
    for run_ in observation.runs:
        c, s = (angles.read(run_.values[angles.tensor.name], half) for angles in (cos, sin))
        heads = [np.expand_dims(angle, -3) if angle.ndim == 3 else angle for angle in (c, s)]
        expected = formula(run_.values[x.name], *heads)
        found = run_.values[y.name]
        if expected.shape != found.shape:
            return False
        if not is_near(expected, found, NEAR):
            return False
    return True


def check_what_is_between(node: gs.Node, site: Site) -> None:
    """Makes sure that probes can tell all about the nodes.

    Raises:
        Mismatch: If one may do something else beyond what probes try, or reads numbers that are none of the op's.
    """
    check_told(node, site.nodes)
    known = (site.source, site.cos.tensor, site.sin.tensor)
    rows = [angles.tensor.shape[0] if len(angles.tensor.shape) > 2 else 1 for angles in (site.cos, site.sin)]
    if rows[0] != rows[1]:
        raise Mismatch(node, f"cos and sin must both be shared by the batch or both be one per row; got {rows}")
    for tensor in boundary(site.nodes):
        if np.issubdtype(tensor.dtype, np.floating) and not any(tensor is one for one in known):
            raise Mismatch(node, f"{tensor.name} flows in as well, which is neither its input nor an angle")


def check_every_position(graph: gs.Graph, node: gs.Node, angles: Angles, observation: Observation) -> None:
    """Makes sure that each angle is said twice at all positions, not only at the few that were observed.

    Raises:
        Mismatch: If it is not, or if that cannot be told.
    """
    length = angles.tensor.shape[-2]
    sizes = dict(observation.runs[0].sizes)
    if length not in sizes:
        raise Mismatch(node, f"its angles have {length} rows, which no input decides: only some could be checked")
    evaluate = evaluator(graph, [angles.tensor])
    for rows in longest_runs(angles.tensor):
        try:
            value = evaluate(sizes | {length: rows}, 0)[angles.tensor.name]
        except PassError:
            continue  # shorter, then
        if not np.array_equal(value[..., 0::2], value[..., 1::2]):
            raise Mismatch(node, "the two elements of a pair must turn by the same angle, at every position")
        return
    raise Mismatch(node, "its angles cannot be computed for more positions than a few")


def longest_runs(tensor: gs.Tensor) -> list[int]:
    """How many positions to try, the most first: as many as a table has rows from which the angles may be read."""
    rows, seen, pending = {FAR_POSITION}, set(), [tensor]
    while pending:
        for node in pending.pop().inputs:
            if id(node) in seen:
                continue
            seen.add(id(node))
            for source in node.inputs:
                value = constant_value(source)
                if value is None:
                    pending.append(source)
                elif value.ndim >= 2 and node.op in ("Gather", "Slice", "GatherElements", "GatherND"):
                    rows |= set(value.shape[:-1])
    return sorted(rows, reverse=True)


def fuse(graph: gs.Graph, node: gs.Node, site: Site, tables: Tables, observation: Observation, *, seed: int) -> float:
    """Puts the op in place of the nodes, if it agrees with them on probes; the largest difference.

    Raises:
        Mismatch: If it does not. The graph is as it was then.
    """
    half = int(site.y.shape[-1]) // 2
    check_what_is_between(node, site)
    cos, cos_nodes = tables.get(site.cos, half)
    sin, sin_nodes = tables.get(site.sin, half)
    y = gs.Variable(unique_name(graph, f"{site.y.name}_rotated"), site.y.dtype, site.y.shape)
    op = gs.Node(CONTRACT.op_type, y.name, {}, [site.x, cos, sin], [y], domain=CONTRACT.domain)
    probes = [site.source]
    before = list(site.x.inputs) if site.source is not site.x else []  # both keep the transposition
    for angles in (site.cos, site.sin):
        if angles.step == 2:
            check_every_position(graph, node, angles, observation)
        elif angles.tensor not in probes:
            probes.append(angles.tensor)
    difference = largest_difference(
        site.nodes,
        [*before, *cos_nodes, *sin_nodes, op],
        [(site.y, y)],
        probes=probes,
        observation=observation,
        opset=graph.opset,
        seed=seed,
    )
    if not difference <= tolerance_of(CONTRACT, site.nodes):
        detach([op])
        raise Mismatch(node, f"looks like {CONTRACT.op_type} but differs by {difference:.3g} on probe inputs")
    known = {id(existing) for existing in graph.nodes}
    graph.nodes.extend(new for new in (*cos_nodes, *sin_nodes, op) if id(new) not in known)
    replace(graph, site.y, y)
    return difference


PASS = GraphPass("fuse_rotary", run, requires=("prepare",), forbids=("cast_fp16", "insert_qdq", "quantize_dynamic"))
