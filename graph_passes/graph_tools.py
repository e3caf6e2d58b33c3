"""Small questions about an onnx-graphsurgeon graph, and the way in and out of it.

onnx-graphsurgeon is the editing layer because an edit is one assignment (``node.outputs = …``), dangling nodes vanish
with ``cleanup()``, and weights stay lazy: a pass that does not touch them never copies them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from numpy.typing import NDArray

from graph_passes.errors import PassError
from plugins.contract import DOMAIN
from plugins.ops import OPS

__all__ = [
    "LARGE",
    "MINIMUM_OPSET",
    "constant_value",
    "detach",
    "export_model",
    "import_model",
    "is_fused",
    "open_session",
    "producer",
    "replace",
    "skeleton",
    "tensor_shape",
    "unique_name",
    "with_weights_as_inputs",
]

MINIMUM_OPSET = 17  # the oldest with LayerNormalization, which the function bodies of our ops use
LARGE = 1024  # elements; a larger constant is a weight, whose values no checker needs
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR
ort.set_default_logger_severity(3)  # folding runs small sessions, whose advice is not for the user


def import_model(model: onnx.ModelProto) -> gs.Graph:
    """Opens a model for editing. The bodies of our own ops are put aside: :func:`export_model` writes them again.

    Raises:
        PassError: If the model carries local functions that are not ours, or is too old for the bodies of ours.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), MINIMUM_OPSET)
    if opset < MINIMUM_OPSET:
        raise PassError(
            f"The model is of opset {opset}: bring it to {MINIMUM_OPSET} or later (onnx.version_converter)."
        )
    foreign = [f"{function.domain}::{function.name}" for function in model.functions if function.domain != DOMAIN]
    if foreign:
        raise PassError(f"The model has local functions {foreign}: inline them first (onnx.inliner).")
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.functions[:]
    return gs.import_onnx(bare)


def export_model(graph: gs.Graph) -> onnx.ModelProto:
    """Closes a graph into a model, with a function body for every custom op in use."""
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    used = {node.op for node in graph.nodes if node.domain == DOMAIN}
    for name in OPS.keys() & used:
        body = OPS[name].function_body()
        body.opset_import[0].version = graph.opset  # a model has one version of each set, its functions included
        model.functions.append(body)
    model.ir_version = 10
    return model


def with_weights_as_inputs(graph: gs.Graph) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """The model with every weight turned into an input, and the weights by name, in the memory in which they stand.

    What is still in its file's form is read once, and kept in the graph for the next time.
    """
    weights = {tensor.name: tensor.values for node in graph.nodes for tensor in node.inputs if _is_weight(tensor)}
    return skeleton(graph), weights


def skeleton(graph: gs.Graph) -> onnx.ModelProto:
    """The model with inputs in place of its weights, which are not read: what a checker needs, at no cost in memory."""
    bare = graph.copy()
    inputs: dict[str, gs.Variable] = {}
    for node in bare.nodes:
        for slot, tensor in enumerate(node.inputs):
            if _is_weight(tensor):
                inputs.setdefault(tensor.name, gs.Variable(tensor.name, tensor.dtype, tensor.shape))
                node.inputs[slot] = inputs[tensor.name]
    bare.inputs = [*bare.inputs, *inputs.values()]
    return export_model(bare)


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session on one thread of the CPU that runs every node as it is written, and is silent."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _is_weight(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and int(np.prod(tensor.shape)) > LARGE


def producer(tensor: gs.Tensor, *ops: str) -> gs.Node | None:
    """The node that makes ``tensor``, if it is one of ``ops`` (any op where none is named)."""
    if not tensor.inputs:
        return None
    node = tensor.inputs[0]
    return node if not ops or (node.op in ops and not node.domain) else None


def constant_value(tensor: gs.Tensor) -> NDArray[Any] | None:
    """The value of a constant, or ``None`` where the tensor is computed."""
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values)
    node = producer(tensor, "Constant")
    return np.asarray(node.attrs["value"].values) if node is not None and "value" in node.attrs else None


def tensor_shape(tensor: gs.Tensor) -> tuple[int | str, ...] | None:
    """Numbers and symbols, one per axis, or ``None`` where the rank or an axis is unknown."""
    if tensor.shape is None or any(axis is None or axis == "" for axis in tensor.shape):
        return None
    return tuple(tensor.shape)


def is_fused(node: gs.Node, op_type: str) -> bool:
    """Whether the node is our custom op of that type."""
    return bool(node.domain == DOMAIN and node.op == op_type)


def unique_name(graph: gs.Graph, stem: str) -> str:
    """A tensor or node name that the graph does not use yet."""
    taken = graph.tensors().keys() | {node.name for node in graph.nodes}
    number = 0
    while (name := f"{stem}_{number}") in taken:
        number += 1
    return name


def detach(nodes: Iterable[gs.Node]) -> None:
    """Takes nodes off their tensors, so that nothing in the graph reads or is made by them."""
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()


def replace(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Makes every consumer of ``old``, graph outputs included, read ``new``. An output keeps its public name."""
    for node in list(old.outputs):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    for index, output in enumerate(graph.outputs):
        if output is old:
            new.name, old.name = old.name, f"{old.name}_replaced"
            graph.outputs[index] = new
