"""Decides by evaluation whether nodes compute what the nodes they replace computed.

Observation finds the candidates; this settles them. Both groups of nodes become little models of their own, get the
same inputs, and must give the same results: on random probes at several sizes and scales where the data flows in, on
the observed values everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
from numpy.typing import NDArray

from graph_passes.graph_tools import constant_value, open_session, with_weights_as_inputs
from graph_passes.observation import CANNOT_RUN, Arrays, Observation, Run, observe
from graph_passes.region import boundary
from plugins.contract import PluginContract

__all__ = ["difference_of_results", "is_near", "largest_difference", "observe_more", "tolerance_of"]

# Besides unit variance: a scale at which a forgotten epsilon or a forgotten normalisation shows.
SCALES = (1.0, 0.01)
# With masks at the ends of their values: some scores beyond 32, which are not lost when they are added to -1e9.
WITH_EXTREMES = 5.0
# Half the distance of neighbours in half precision, relative to a number: by so much its constants may be off.
HALF_ROUNDING = 2.0**-11


def largest_difference(
    nodes: Sequence[gs.Node],
    replacement: Sequence[gs.Node],
    outputs: Sequence[tuple[gs.Tensor, gs.Tensor]],
    *,
    probes: Sequence[gs.Tensor],
    extremes: Sequence[gs.Tensor] = (),
    observation: Observation,
    opset: int,
    seed: int,
) -> float:
    """Runs both groups of nodes on the same inputs.

    Args:
        nodes: What is to be replaced.
        replacement: What it is replaced by; its inputs are tensors of the graph.
        outputs: Pairs of what the one and the other group make.
        probes: The inputs that get random numbers. Every other input gets what was observed of it.
        extremes: The inputs, masks, that in three more rounds get the least and the greatest of what was observed of
            them (False and True) and -inf, throughout. There, and only there, both may give the same infinity or NaN at
            a place.
        observation: Of the graph.
        opset: Of the graph.
        seed: Of the probes.

    Returns:
        The largest absolute difference, divided by the largest magnitude where that is above one; infinity where a
        shape or a dtype differs, a result is not finite, or one of the groups cannot be evaluated: it does not run, or
        needs a tensor that was not observed.
    """
    needed = [*probes, *boundary(nodes), *boundary(replacement)]
    if not all(tensor.name in run.values for run in observation.runs for tensor in needed):
        return float("inf")
    random = np.random.default_rng(seed)
    worst = 0.0
    try:
        before = _session(nodes, [old for old, _ in outputs], opset)
        after = _session(replacement, [new for _, new in outputs], opset)
    except CANNOT_RUN:
        return float("inf")
    for run in observation.runs:
        ends = [
            {tensor.name: end(run.values[tensor.name]) for tensor in extremes} for end in (_least, _greatest, _lost)
        ]
        rounds = [(scale, Arrays()) for scale in SCALES] + [(WITH_EXTREMES, end) for end in ends if end]
        for scale, fixed in rounds:
            drawn = {
                tensor.name: (scale * random.standard_normal(run.values[tensor.name].shape)).astype(
                    run.values[tensor.name].dtype
                )
                for tensor in probes
            }
            values = {**run.values, **fixed, **drawn}
            try:
                results = list(zip(_run(before, values), _run(after, values), strict=True))
            except CANNOT_RUN:
                return float("inf")
            worst = max(worst, *(_difference(*pair, may_be_infinite=bool(fixed)) for pair in results))
    return worst


def difference_of_results(before: gs.Graph, after: gs.Graph) -> float:
    """The largest difference of the outputs of two graphs with the same interface, run on the same made-up inputs.

    As :func:`largest_difference`; both may give the same infinity or NaN at a place.

    Raises:
        PassError: If the first cannot be run.
    """
    observation = observe(before, tensors=before.outputs)
    model, weights = with_weights_as_inputs(after, widen=True)
    names = [tensor.name for tensor in before.outputs]
    worst = 0.0
    try:
        session = open_session(model)
        for run in observation.runs:
            feeds = {tensor.name: run.values[tensor.name] for tensor in after.inputs}
            results = session.run(names, feeds | weights)
            expected = [run.values[name] for name in names]
            worst = max(
                worst, *(_difference(*pair, may_be_infinite=True) for pair in zip(expected, results, strict=True))
            )
    except CANNOT_RUN:
        return float("inf")
    return worst


def tolerance_of(contract: PluginContract, nodes: Iterable[gs.Node]) -> float:
    """The largest difference from nodes at which the op still is what they mean.

    That of the contract; if a constant of the nodes is stored in half precision, what its rounding explains.
    """
    constants = (constant_value(tensor) for node in nodes for tensor in node.inputs if not tensor.is_empty())
    is_rounded = any(value is not None and value.dtype == np.float16 for value in constants)
    return max(contract.float32_tolerance, HALF_ROUNDING if is_rounded else 0.0)


def is_near(expected: NDArray[Any], found: NDArray[Any], tolerance: float) -> bool:
    """Whether two arrays of one shape differ by no more than a part of the largest number, or of one."""
    difference = np.abs(expected - found).max(initial=0.0)
    return bool(difference <= tolerance * max(1.0, float(np.abs(expected).max(initial=0.0))))


def observe_more(
    observation: Observation, nodes: Sequence[gs.Node], tensors: Sequence[gs.Tensor], *, opset: int
) -> Observation:
    """The observation with tensors that nodes, which are not in the graph yet, make of what was observed.

    Without those that cannot be made: where the nodes do not run, or need a tensor that was not observed.
    """
    if not nodes or not all(tensor.name in run.values for run in observation.runs for tensor in boundary(nodes)):
        return observation
    try:
        session = _session(nodes, tensors, opset)
        results = [_run(session, run.values) for run in observation.runs]
    except CANNOT_RUN:
        return observation
    names = [tensor.name for tensor in tensors]
    return Observation(
        tuple(
            Run(run.sizes, {**run.values, **dict(zip(names, made, strict=True))})
            for run, made in zip(observation.runs, results, strict=True)
        )
    )


def _difference(expected: NDArray[Any], found: NDArray[Any], *, may_be_infinite: bool) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if expected.dtype.kind not in "biuf":  # texts
        return 0.0 if np.array_equal(expected, found) else float("inf")
    if may_be_infinite:
        hidden = ~np.isfinite(expected)
        if not np.array_equal(expected[hidden], found[hidden], equal_nan=True):
            return float("inf")
        expected, found = expected[~hidden], found[~hidden]
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    largest = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return float(np.abs(expected.astype(np.float64) - found).max(initial=0.0)) / largest


def _least(value: NDArray[Any]) -> NDArray[Any]:
    return np.full_like(value, value.min() if value.size and value.dtype != np.bool_ else 0)


def _greatest(value: NDArray[Any]) -> NDArray[Any]:
    return np.full_like(value, value.max() if value.size and value.dtype != np.bool_ else 1)


def _lost(value: NDArray[Any]) -> NDArray[Any]:
    return np.full_like(value, -np.inf) if np.issubdtype(value.dtype, np.floating) else _least(value)


def _session(nodes: Sequence[gs.Node], outputs: Sequence[gs.Tensor], opset: int) -> tuple[ort.InferenceSession, Arrays]:
    """The nodes as a model of their own, and its weights."""
    alone = gs.Graph(list(nodes), boundary(nodes), list(outputs), opset=opset).copy().toposort()
    model, weights = with_weights_as_inputs(alone, widen=True)
    return open_session(model), weights


def _run(session: tuple[ort.InferenceSession, Arrays], values: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    runner, weights = session
    known = {**values, **weights}
    results: list[NDArray[Any]] = runner.run(None, {tensor.name: known[tensor.name] for tensor in runner.get_inputs()})
    return results
