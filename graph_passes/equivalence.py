"""Decides by evaluation whether nodes compute what the nodes they replace computed.

Observation finds the candidates; this settles them. Both groups of nodes become little models of their own, get the
same inputs, and must give the same results: on random probes at several sizes and scales where the data flows in, on
the observed values everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
from numpy.typing import NDArray

from graph_passes.graph_tools import open_session, with_weights_as_inputs
from graph_passes.observation import CANNOT_RUN, Arrays, Observation
from graph_passes.region import boundary

__all__ = ["largest_difference"]

# Besides unit variance: a scale at which a forgotten epsilon or a forgotten normalisation shows.
SCALES = (1.0, 0.01)


def largest_difference(
    nodes: Sequence[gs.Node],
    replacement: Sequence[gs.Node],
    outputs: Sequence[tuple[gs.Tensor, gs.Tensor]],
    *,
    probes: Sequence[gs.Tensor],
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
        for scale in SCALES:
            drawn = {
                tensor.name: (scale * random.standard_normal(run.values[tensor.name].shape)).astype(tensor.dtype)
                for tensor in probes
            }
            values = {**run.values, **drawn}
            try:
                results = list(zip(_run(before, values), _run(after, values), strict=True))
            except CANNOT_RUN:
                return float("inf")
            for expected, found in results:
                if expected.shape != found.shape or expected.dtype != found.dtype:
                    return float("inf")
                if not (np.isfinite(expected).all() and np.isfinite(found).all()):
                    return float("inf")
                largest = max(1.0, float(np.abs(expected).max(initial=0.0)))
                difference = np.abs(expected.astype(np.float64) - found).max(initial=0.0)
                worst = max(worst, float(difference) / largest)
    return worst


def _session(nodes: Sequence[gs.Node], outputs: Sequence[gs.Tensor], opset: int) -> tuple[ort.InferenceSession, Arrays]:
    """The nodes as a model of their own, and its weights."""
    alone = gs.Graph(list(nodes), boundary(nodes), list(outputs), opset=opset).copy().toposort()
    model, weights = with_weights_as_inputs(alone)
    return open_session(model), weights


def _run(session: tuple[ort.InferenceSession, Arrays], values: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    runner, weights = session
    known = {**values, **weights}
    results: list[NDArray[Any]] = runner.run(None, {tensor.name: known[tensor.name] for tensor in runner.get_inputs()})
    return results
