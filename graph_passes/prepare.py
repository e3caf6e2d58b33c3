"""Bring a traced graph into one form: constants folded, every tensor with a dtype and a shape.

Attention                                 ->      its definition in the standard
Shape -> Gather -> Concat -> Reshape      ->      Reshape with what can be known now known
tensors without value_info                ->      tensors with symbolic shapes
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import inliner

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import (
    constant_value,
    copy_graph,
    import_model,
    is_weight,
    open_session,
    producer,
    skeleton,
    with_weights_as_inputs,
)
from graph_passes.observation import CANNOT_RUN, observe

__all__ = ["PASS"]

DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(string)": "object"}
PICKS = {"Gather", "Slice"}
KEPT = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}  # folding would undo what somebody chose


def run(graph: gs.Graph) -> PassResult:
    """Folds constants and observes shapes; the count is the number of nodes that folding removed.

    Raises:
        PassError: If the graph cannot be run: every later pass depends on what is observed.
    """
    graph = spell_out(graph)
    before = len(graph.nodes)
    fold_constants(graph)
    observation, dtypes = observe(graph), infer_dtypes(graph)
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name in observation.runs[0].values:  # no optional output that is left out, and a tensor
                tensor.dtype = dtypes[tensor.name]
                tensor.shape = observation.shape(tensor.name)
    return PassResult(graph, before - len(graph.nodes))


def spell_out(graph: gs.Graph) -> gs.Graph:
    """The graph with every ``Attention`` of the standard as its definition there, which is one more spelling of it."""
    if not any(node.op == "Attention" and not node.domain for node in graph.nodes):
        return graph
    model, weights = with_weights_as_inputs(graph)
    spelled = inliner.inline_selected_functions(model, [("", "Attention")], inline_schema_functions=True)
    return import_model(spelled, weights)


def infer_dtypes(graph: gs.Graph) -> dict[str, np.dtype[Any]]:
    """The dtype of every tensor, as the runtime infers it."""
    every = copy_graph(graph)
    every.outputs = [tensor for node in every.nodes for tensor in node.outputs if not tensor.is_empty()]
    outputs = open_session(skeleton(every)).get_outputs()
    return {
        output.name: np.dtype(DTYPES.get(output.type, output.type[len("tensor(") : -1]))
        for output in outputs
        if output.type.startswith("tensor(")
    }


def fold_constants(graph: gs.Graph) -> None:
    """Computes what depends on constants alone, until nothing is left to compute.

    onnx-graphsurgeon's own folding would write the weights into a model to run: it sees variables in their place. Of
    shapes it overlooks ``start`` and ``end``, so they are folded here.
    """
    left = -1
    while left != len(graph.nodes):
        left = len(graph.nodes)
        weights = {tensor.name: tensor.values for tensor in graph.tensors().values() if is_weight(tensor)}
        tensors = graph.toposort().tensors()
        for name, values in weights.items():
            tensors[name].to_variable(values.dtype, values.shape)
        fold_shapes(graph)
        graph.fold_constants(fold_shapes=False)
        for name, values in weights.items():
            tensors[name].to_constant(values)
        for node in graph.nodes:
            if any(is_weight(tensor) for tensor in node.inputs):
                fold_node(node, graph.opset)
        graph.cleanup()


def fold_shapes(graph: gs.Graph) -> None:
    """Turns what is read of a shape into a constant, where that part of the shape is known."""
    for node in graph.nodes:
        source = node if node.op == "Shape" else producer(node.inputs[0], "Shape") if node.op in PICKS else None
        if source is None or node.domain or source.inputs[0].shape is None:
            continue
        axes = np.array(list(source.inputs[0].shape)[source.attrs.get("start", 0) : source.attrs.get("end")], object)
        constants = [constant_value(tensor) for tensor in node.inputs[1:]] if node is not source else []
        picks = [value for value in constants if value is not None]
        if len(picks) != len(constants):
            continue
        if node.op == "Gather":
            if not np.isin(picks[0], np.arange(-len(axes), len(axes))).all():
                continue  # what the graph says of its shapes need not be right
            axes = axes[picks[0]]
        elif node.op == "Slice":
            starts, ends, *others = (int(pick.item()) for pick in picks)
            if others not in ([], [0], [0, 1]):
                continue
            axes = axes[starts:ends]
        if all(isinstance(axis, int) and axis >= 0 for axis in np.ravel(axes)):
            node.outputs[0].to_constant(np.array(axes, np.int64))
            node.outputs[0].inputs.clear()


def fold_node(node: gs.Node, opset: int) -> None:
    """Turns the results of a node into constants, if its inputs are and it can be run: a weight transposed, say."""
    if node.op in KEPT or not all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in node.inputs):
        return
    results = [tensor for tensor in node.outputs if not tensor.is_empty()]
    model, weights = with_weights_as_inputs(gs.Graph([node], [], results, opset=opset))
    try:
        values = open_session(model).run(None, weights)
    except CANNOT_RUN:
        return
    if not all(isinstance(value, np.ndarray) for value in values):  # a sequence of them
        return
    for tensor, value in zip(results, values, strict=True):
        tensor.to_constant(value)
        tensor.inputs.clear()


PASS = GraphPass("prepare", run)
