"""Fuse a residual sum with the norm that follows it, however that is spelled, into ``ResidualLayerNorm``.

    s = x + bias + residual ──► any nodes ──► y        ->      y, s = ResidualLayerNorm(x, residual, bias, gamma, beta)

x, residual: (B, S, E), equal shapes: a sum that broadcasts is left alone. bias: (E), that of the matrix product before;
zeros where there is none. s is an output of the fused node only where something else reads it: pre-norm encoders carry
the sum on, post-norm encoders drop it. The sum of embeddings is such a sum too; the norm inside the first block of
RoBERTa-PreLayerNorm has no sum before it and stays as it is.

A candidate is a tensor y whose nodes take a mean, and that depends on s and constants alone. It is a norm if, in every
observed run, y holds the numbers of the norm of s, for some of these constants as gamma, beta and epsilon. It is fused
if the nodes and the op agree on random x and residual, at scales at which another epsilon would show. So the op
``LayerNormalization`` and its spelling in nine simpler ones are the same to this pass. What gives the numbers of a
look-alike (RMSNorm, say) is reported as that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.equivalence import is_near, largest_difference, tolerance_of
from graph_passes.graph_pass import GraphPass, Mismatch, PassResult, Place, name_of
from graph_passes.graph_tools import (
    FLOATS,
    constant_value,
    detach,
    producer,
    replace,
    split_bias,
    tensor_shape,
    unique_name,
)
from graph_passes.observation import Observation, observe
from graph_passes.region import boundary, check_told, outermost, region_between, sources_of
from plugins.ops import RESIDUAL_LAYER_NORM

__all__ = ["PASS"]

CONTRACT = RESIDUAL_LAYER_NORM.contract
MEANS = frozenset({"LayerNormalization", "ReduceMean", "ReduceSum"})
# Observed numbers carry the rounding of the graph's own spelling; this only narrows, the probes decide.
NEAR = 1e-4
LARGEST_EPSILON = 0.1


Values = NDArray[Any]
Formula = Callable[[Values, float], Values]


def centred(x: Values, axis: int = -1) -> Values:
    """Less the mean."""
    rest: Values = x - x.mean(axis=axis, keepdims=True)
    return rest


# The norm before gamma and beta, and what it is taken for. A look-alike's name is the reason why it was left alone.
FORMULAS: dict[str, Formula] = {
    "": lambda x, epsilon: centred(x) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon),
    "it does not subtract the mean (RMSNorm)": lambda x, epsilon: (
        x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)
    ),
    "its variance is divided by one less than the number of features": lambda x, epsilon: (
        centred(x) / np.sqrt(x.var(axis=-1, keepdims=True) * x.shape[-1] / (x.shape[-1] - 1) + epsilon)
    ),
    "it normalises over axis 1, not over the features": lambda x, epsilon: (
        centred(x, 1) / np.sqrt(x.var(axis=1, keepdims=True) + epsilon)
    ),
}


class Norm(NamedTuple):
    """A norm of ``total``: the nodes between it and y, and what they normalise with."""

    total: gs.Tensor
    nodes: list[gs.Node]
    gamma: Values
    beta: Values
    epsilon: float


def run(graph: gs.Graph) -> PassResult:
    """Replaces every sum and norm by one node, each verified on probes first."""
    observation = observe(graph)
    places: list[Place] = []
    missed: list[tuple[Mismatch, list[gs.Node]]] = []
    inside: set[int] = set()
    fused: set[int] = set()
    for node in reversed(list(graph.nodes)):
        name = name_of(node)  # as it was: what replaces a result takes its name over
        for y in list(node.outputs):
            if id(y) in inside:
                continue
            norms = list(match(y, observation)) if may_be_normalised(y) else []
            if not norms:
                missed += look_alikes(node, y, observation)
                continue
            try:
                difference = fuse(graph, node, y, norms, observation, seed=len(places))
            except Mismatch as mismatch:
                missed.append((mismatch, norms[0].nodes))
                continue
            places.append(Place(name, difference))
            fused |= {id(between) for between in norms[0].nodes}
            inside |= {id(output) for norm in norms for between in norm.nodes for output in between.outputs}
    return PassResult(graph, len(places), tuple(places[::-1]), outermost(missed, fused))


def may_be_normalised(tensor: gs.Tensor) -> bool:
    """Whether its shape is (B, S, E) with E of at least two features, and its dtype one of the op's."""
    shape = tensor_shape(tensor)
    if tensor.dtype not in FLOATS or shape is None or len(shape) != 3:
        return False
    return isinstance(shape[-1], int) and shape[-1] > 1


def match(y: gs.Tensor, observation: Observation) -> Iterator[Norm]:
    """Every reading of ``y`` as a norm that the observed numbers allow, with the nearest source first.

    There may be several: a norm does not change when its input is shifted, and a small epsilon does not show.
    """
    size = int(y.shape[-1])
    for source, nodes in candidates(y, observation):
        if flowing_into(nodes) == [source]:
            vectors, epsilons = constants_in(nodes, size)
            for gamma, beta, epsilon in readings(source, y, vectors, epsilons, FORMULAS[""], observation):
                yield Norm(source, nodes, gamma, beta, epsilon)


def look_alikes(node: gs.Node, y: gs.Tensor, observation: Observation) -> Iterator[tuple[Mismatch, list[gs.Node]]]:
    """Why ``y``, which is no norm that can be fused, looks like one, if it does, and the nodes that do."""
    size = int(y.shape[-1]) if may_be_normalised(y) else 0
    for source, nodes in candidates(y, observation) if size else ():
        vectors, epsilons = constants_in(nodes, size)
        beside = [tensor for tensor in flowing_into(nodes) if tensor is not source]
        if not all(may_be_gamma(tensor, y) for tensor in beside):
            continue
        for reason, formula in FORMULAS.items():
            if any(readings(source, y, [*vectors, *beside], epsilons, formula, observation)):
                computed = " and ".join(tensor.name for tensor in beside)
                yield Mismatch(node, reason or f"gamma and beta must be constants; {computed} is computed"), nodes
                return
    if node.op == "LayerNormalization" and y is node.outputs[0]:
        got = f"axis {node.attrs.get('axis', -1)} of {tensor_shape(y)} in {y.dtype}"
        yield (
            Mismatch(
                node, f"it must be a norm over the last of three axes, known and in float32 or float16; got {got}"
            ),
            [node],
        )


def candidates(y: gs.Tensor, observation: Observation) -> Iterator[tuple[gs.Tensor, list[gs.Node]]]:
    """Tensors that ``y`` may be the norm of, nearest first, and the nodes between."""
    for source in sources_of(y):
        if tensor_shape(source) == tensor_shape(y) and source.dtype == y.dtype and is_observed(source, observation):
            nodes = region_between(source, y)
            if any(between.op in MEANS for between in nodes):
                yield source, nodes


def flowing_into(nodes: list[gs.Node]) -> list[gs.Tensor]:
    """What the nodes read, less whole numbers: shapes."""
    return [tensor for tensor in boundary(nodes) if np.issubdtype(tensor.dtype, np.floating)]


def is_observed(tensor: gs.Tensor, observation: Observation) -> bool:
    """Whether it was in the graph when that was observed: what this pass itself put aside was not."""
    return tensor.name in observation.runs[0].values


def may_be_gamma(tensor: gs.Tensor, y: gs.Tensor) -> bool:
    """Whether it holds one number per feature, perhaps of each row or position, but is not one of the data."""
    shape, whole = tensor_shape(tensor), tensor_shape(y) or ()
    if shape is None or shape == whole or len(shape) not in (1, 3) or tensor.dtype != y.dtype:
        return False
    return shape[-1] == whole[-1] and all(axis in (1, full) for axis, full in zip(shape[:-1], whole, strict=False))


def constants_in(nodes: list[gs.Node], size: int) -> tuple[list[Values], list[float]]:
    """What may be gamma or beta, ones and zeros included, and what may be epsilon."""
    vectors: list[Values] = []
    epsilons = [0.0]
    for node in nodes:
        if node.op == "LayerNormalization":
            epsilons.append(float(node.attrs.get("epsilon", 1e-5)))
        for tensor in node.inputs:
            value = None if tensor.is_empty() else constant_value(tensor)
            if value is None or value.dtype not in FLOATS:
                continue
            if value.size == size:
                vectors.append(value.reshape(size).astype(np.float32))
            elif value.size == 1 and 0.0 < float(value.item()) <= LARGEST_EPSILON:
                epsilons.append(float(value.item()))
    return [*vectors, np.ones(size, np.float32), np.zeros(size, np.float32)], epsilons[::-1]


def readings(
    source: gs.Tensor,
    y: gs.Tensor,
    vectors: Iterable[Values | gs.Tensor],
    epsilons: Iterable[float],
    formula: Formula,
    observation: Observation,
) -> Iterator[tuple[Any, Any, float]]:
    """The gammas, betas and epsilons with which the formula makes ``y`` of ``source`` in every observed run."""
    runs = [run_.values for run_ in observation.runs]
    vectors = list(vectors)
    for epsilon in epsilons:
        normal = [formula(values[source.name].astype(np.float64), epsilon) for values in runs]
        for gamma, beta in itertools.permutations(vectors, 2):
            if all(
                is_near(
                    alone * (values[gamma.name] if isinstance(gamma, gs.Tensor) else gamma)
                    + (values[beta.name] if isinstance(beta, gs.Tensor) else beta),
                    values[y.name],
                    NEAR,
                )
                for alone, values in zip(normal, runs, strict=True)
            ):
                yield gamma, beta, epsilon


def fuse(
    graph: gs.Graph, node: gs.Node, y: gs.Tensor, norms: list[Norm], observation: Observation, *, seed: int
) -> float:
    """Puts the op in place of the sum and the norm, if it agrees with them on probes; the largest difference.

    Raises:
        Mismatch: If no reading has a sum, or none agrees. The graph is as it was then.
    """
    sums = [(norm, add) for norm in norms if (add := producer(norm.total, "Add")) is not None]
    if not sums:
        source = producer(norms[-1].total)
        raise Mismatch(node, f"its input is no sum: it comes from {source.op if source else 'outside of the graph'}")
    reasons: list[Mismatch] = []
    for norm, add in sums:
        try:
            return try_norm(graph, node, y, norm, add, observation, seed=seed)
        except Mismatch as mismatch:
            reasons.append(mismatch)
    raise reasons[0]


def try_norm(
    graph: gs.Graph, node: gs.Node, y: gs.Tensor, norm: Norm, add: gs.Node, observation: Observation, *, seed: int
) -> float:
    """Replaces one reading if it agrees with the nodes on probes; the largest difference.

    Raises:
        Mismatch: If it does not. The graph is as it was then.
    """
    shapes = [tensor_shape(tensor) for tensor in add.inputs]
    if any(constant_value(tensor) is not None for tensor in add.inputs):
        raise Mismatch(node, "a constant is no residual")
    if shapes[0] != shapes[1]:
        raise Mismatch(node, f"both terms of the sum must have one shape; got {shapes[0]} and {shapes[1]}")
    check_told(node, norm.nodes)
    total, between = norm.total, {id(inner) for inner in norm.nodes}
    x, residual, bias, biased = with_bias(graph, add)
    carries_sum = any(id(reader) not in between for reader in total.outputs) or any(
        output is total for output in graph.outputs
    )
    old = (y, total) if carries_sum else (y,)
    stem = unique_name(graph, f"{y.name}_normalised")
    new = [gs.Variable(unique_name(graph, stem), tensor.dtype, tensor.shape) for tensor in old]
    # An output that is left out is named "": ONNX Runtime refuses a node with fewer outputs than its body.
    left_out = [] if carries_sum else [gs.Variable.empty()]
    vectors = {"bias": bias, "gamma": norm.gamma, "beta": norm.beta}
    inputs = [
        x,
        residual,
        *(gs.Constant(unique_name(graph, f"{stem}_{name}"), value) for name, value in vectors.items()),
    ]
    op = gs.Node(CONTRACT.op_type, stem, {"epsilon": norm.epsilon}, inputs, [*new, *left_out], domain=CONTRACT.domain)
    difference = largest_difference(
        [*biased, add, *norm.nodes],
        [op],
        list(zip(old, new, strict=True)),
        probes=list({id(tensor): tensor for tensor in (x, residual)}.values()),
        observation=observation,
        opset=graph.opset,
        seed=seed,
    )
    if not difference <= tolerance_of(CONTRACT, [*biased, add, *norm.nodes]):
        detach([op])
        raise Mismatch(node, f"looks like {CONTRACT.op_type} but differs by {difference:.3g} on probe inputs")
    graph.nodes.append(op)
    for before, after in zip(old, new, strict=True):
        if before is total:
            for reader in [reader for reader in total.outputs if id(reader) not in between]:
                reader.inputs = [after if tensor is before else tensor for tensor in reader.inputs]
            if not any(output is total for output in graph.outputs):
                before.name, after.name = after.name, before.name  # as ``replace`` does
                continue
        replace(graph, before, after)
    return difference


def with_bias(graph: gs.Graph, add: gs.Node) -> tuple[gs.Tensor, gs.Tensor, Values, list[gs.Node]]:
    """x, residual and bias of a sum, and the node that adds the bias; zeros and no node where there is none.

    It is that of one term which nothing but the sum reads: otherwise it would be added twice.
    """
    for x, residual in (add.inputs, add.inputs[::-1]):
        terms = split_bias(x)
        is_shared = len(x.outputs) != 1 or x is residual or any(output is x for output in graph.outputs)
        if terms is not None and not is_shared:
            return terms[0], residual, terms[1].astype(np.float32), list(x.inputs)
    return add.inputs[0], add.inputs[1], np.zeros(int(add.outputs[0].shape[-1]), np.float32), []


PASS = GraphPass(
    "fuse_residual_layer_norm", run, requires=("prepare",), forbids=("cast_fp16", "insert_qdq", "quantize_dynamic")
)
