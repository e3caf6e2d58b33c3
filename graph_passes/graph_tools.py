"""Small questions about an onnx-graphsurgeon graph, and the way in and out of it.

onnx-graphsurgeon is the editing layer because an edit is one assignment (``node.outputs = …``), dangling nodes vanish
with ``cleanup()``, and weights stay lazy: a pass that does not touch them never copies them.
"""

from __future__ import annotations

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
    "constant_value",
    "export_model",
    "import_model",
    "is_fused",
    "producer",
    "replace",
    "skeleton",
    "tensor_shape",
    "unique_name",
]

LARGE = 1024  # elements; a larger constant is a weight, whose values no checker needs
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR
ort.set_default_logger_severity(3)  # folding runs small sessions, whose advice is not for the user


def import_model(model: onnx.ModelProto) -> gs.Graph:
    """Opens a model for editing. The bodies of our own ops are put aside: :func:`export_model` writes them again.

    Raises:
        PassError: If the model carries local functions that are not ours.
    """
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
    model.functions.extend(op.function_body() for name, op in OPS.items() if name in used)
    model.ir_version = 10
    return model


def skeleton(graph: gs.Graph) -> onnx.ModelProto:
    """The model with every weight turned into an input: what a checker needs, at no cost in memory."""
    bare = graph.copy()
    weights: dict[str, gs.Variable] = {}
    for node in bare.nodes:
        for slot, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and int(np.prod(tensor.shape)) > LARGE:
                weights.setdefault(tensor.name, gs.Variable(tensor.name, tensor.dtype, tensor.shape))
                node.inputs[slot] = weights[tensor.name]
    bare.inputs = [*bare.inputs, *weights.values()]
    return export_model(bare)


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


def replace(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Makes every consumer of ``old``, graph outputs included, read ``new``. An output keeps its public name."""
    for node in list(old.outputs):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    for index, output in enumerate(graph.outputs):
        if output is old:
            new.name, old.name = old.name, f"{old.name}_replaced"
            graph.outputs[index] = new
