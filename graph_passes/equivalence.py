"""Decides by evaluation whether a fused node computes what the nodes it replaces computed.

Structure finds the candidates; this settles them. The matched nodes become a little model of their own, the fused node
another, both get the same random inputs at several sizes and scales, and the results must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from graph_passes.graph_tools import constant_value, export_model, tensor_shape
from plugins.contract import PluginContract

__all__ = ["largest_difference"]

# Sizes for the first, second, … symbolic axis. Distinct primes, so that two axes can never be mistaken for each other;
# the second set has a length of one, where broadcasting mistakes show.
SIZES = ((2, 5, 7, 11), (3, 1, 2, 13))
# Besides unit variance: a scale at which a forgotten epsilon or a forgotten normalisation shows.
SCALES = (1.0, 0.01)
# What the runtime raises on a model that it cannot load or run; its types share no base of their own.
CANNOT_RUN = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def largest_difference(
    nodes: Sequence[gs.Node],
    inputs: Sequence[gs.Tensor],
    outputs: Sequence[gs.Tensor],
    *,
    contract: PluginContract,
    attributes: Mapping[str, float],
    seed: int,
) -> float:
    """Runs ``nodes`` and the op of ``contract`` on the same probes.

    Args:
        nodes: The nodes that are to be replaced, in any order.
        inputs: The tensors that become the fused node's inputs, in the contract's order. Their shapes are known.
        outputs: The tensors that the fused node makes, in the contract's order.
        attributes: Of the fused node.
        seed: Of the probes.

    Returns:
        The largest absolute difference over all outputs, sizes and scales; infinity where a shape differs, a result is
        not finite, or the nodes or the op cannot be evaluated on such inputs.
    """
    worst = 0.0
    random = np.random.default_rng(seed)
    for sizes in SIZES:
        symbols = _bind(inputs, sizes)
        before = _model_of(nodes, inputs, outputs, symbols)
        after = _model_of_fused(inputs, outputs, contract, attributes)
        if before is None:
            return float("inf")
        for scale in SCALES:
            feeds = {
                f"input_{index}": scale * random.standard_normal(_concrete(tensor, symbols)).astype(tensor.dtype)
                for index, tensor in enumerate(inputs)
            }
            try:
                results = list(zip(_run(before, feeds), _run(after, feeds), strict=True))
            except CANNOT_RUN:
                return float("inf")
            for expected, actual in results:
                if expected.shape != actual.shape or not np.isfinite(expected).all() or not np.isfinite(actual).all():
                    return float("inf")
                worst = max(worst, float(np.abs(expected.astype(np.float64) - actual).max(initial=0.0)))
    return worst


def _bind(tensors: Iterable[gs.Tensor], sizes: Sequence[int]) -> dict[str, int]:
    """Gives each symbolic axis a size, in the order of first appearance."""
    symbols: dict[str, int] = {}
    for tensor in tensors:
        for axis in tensor_shape(tensor) or ():
            if isinstance(axis, str) and axis not in symbols:
                symbols[axis] = sizes[len(symbols) % len(sizes)]
    return symbols


def _concrete(tensor: gs.Tensor, symbols: Mapping[str, int]) -> tuple[int, ...]:
    shape = tensor_shape(tensor) or ()
    return tuple(symbols[axis] if isinstance(axis, str) else axis for axis in shape)


def _model_of(
    nodes: Sequence[gs.Node], inputs: Sequence[gs.Tensor], outputs: Sequence[gs.Tensor], symbols: Mapping[str, int]
) -> onnx.ModelProto | None:
    """The matched nodes as a model, or ``None`` where they need something that is neither input nor constant.

    The target shape of a Reshape may be computed outside of the match (from the shape of the model's inputs, say): it
    is then fixed to the shape that inference gave the result.
    """
    probes = _probes(inputs)
    renamed: dict[int, gs.Tensor] = dict(probes)
    made = {id(output) for node in nodes for output in node.outputs}
    copies = []
    for node in nodes:
        copied_inputs = []
        for slot, tensor in enumerate(node.inputs):
            if id(tensor) not in renamed:
                value = constant_value(tensor)
                if value is None and id(tensor) not in made:
                    if node.op != "Reshape" or slot != 1:
                        return None
                    shape = tensor_shape(node.outputs[0])
                    if shape is None or any(isinstance(axis, str) and axis not in symbols for axis in shape):
                        return None
                    value = np.array(_concrete(node.outputs[0], symbols), dtype=np.int64)
                renamed[id(tensor)] = gs.Variable(tensor.name) if value is None else gs.Constant(tensor.name, value)
            copied_inputs.append(renamed[id(tensor)])
        for tensor in node.outputs:
            renamed.setdefault(id(tensor), gs.Variable(tensor.name))
        copies.append(gs.Node(node.op, node.name, node.attrs, copied_inputs, [renamed[id(t)] for t in node.outputs]))
    graph = gs.Graph(
        copies,
        list(probes.values()),
        [_typed(renamed[id(tensor)], tensor.dtype) for tensor in outputs],
        opset=20,
    )
    return export_model(graph.cleanup(remove_unused_graph_inputs=False).toposort())


def _model_of_fused(
    inputs: Sequence[gs.Tensor],
    outputs: Sequence[gs.Tensor],
    contract: PluginContract,
    attributes: Mapping[str, float],
) -> onnx.ModelProto:
    probes = _probes(inputs)
    variables = [probes[id(tensor)] for tensor in inputs]
    results = [gs.Variable(f"output_{index}", tensor.dtype) for index, tensor in enumerate(outputs)]
    left_out = [gs.Variable.empty() for _ in contract.outputs[len(results) :]]
    node = gs.Node(contract.op_type, "fused", dict(attributes), variables, results + left_out, domain=contract.domain)
    return export_model(gs.Graph([node], list(probes.values()), results, opset=20))


def _probes(inputs: Sequence[gs.Tensor]) -> dict[int, gs.Variable]:
    """The inputs of a little model, by the tensor that each stands for; a tensor that is read twice is one input."""
    probes: dict[int, gs.Variable] = {}
    for index, tensor in enumerate(inputs):
        probes.setdefault(id(tensor), gs.Variable(f"input_{index}", tensor.dtype, tensor.shape))
    return probes


def _typed(tensor: gs.Tensor, dtype: Any) -> gs.Tensor:
    tensor.dtype = dtype
    return tensor


def _run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # judge the graph as written
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {tensor.name for tensor in session.get_inputs()}
    results: list[NDArray[Any]] = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
    return results
