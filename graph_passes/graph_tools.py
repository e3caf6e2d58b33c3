"""Small questions about an onnx-graphsurgeon graph, and the way in and out of it.

onnx-graphsurgeon is the editing layer because an edit is one assignment (``node.outputs = …``) and dangling nodes
vanish with ``cleanup()``. Weights leave the protobuf message once, on the way in: a message holds 2 GB at most when it
is written, and every tool that takes one copies it. Checkers, sessions and writers get a model without them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from google.protobuf.message import Message
from numpy.typing import NDArray

from graph_passes.errors import PassError
from plugins.contract import DOMAIN
from plugins.ops import OPS

__all__ = [
    "FLOATS",
    "LARGE",
    "MINIMUM_OPSET",
    "PLUGIN",
    "Weights",
    "constant_value",
    "copy_graph",
    "detach",
    "export_model",
    "forget_names",
    "import_model",
    "is_fused",
    "is_private",
    "is_read",
    "is_weight",
    "notes_of",
    "open_session",
    "producer",
    "replace",
    "skeleton",
    "split_bias",
    "tensor_shape",
    "unique_name",
    "weight_bytes",
    "with_weights_as_inputs",
    "without_weights",
]

MINIMUM_OPSET = 20  # the oldest with Gelu, which the function bodies of our ops use
FLOATS = (np.dtype(np.float32), np.dtype(np.float16))  # what the fused ops take; half precision is judged widened
PLUGIN = "plugin_namespace"  # the attribute by which TensorRT finds a plugin; a node that has it needs no body
LARGE = 1024  # elements; a larger constant is a weight, whose values no checker needs
Weights = dict[str, NDArray[Any]]
MessageT = TypeVar("MessageT", bound=Message)
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR
ort.set_default_logger_severity(3)  # folding runs small sessions, whose advice is not for the user


def without_weights(model: onnx.ModelProto, folder: str = "") -> tuple[onnx.ModelProto, Weights]:
    """A copy of a model with inputs in place of its weights, and the weights by name.

    Args:
        model: Left as it is. Let go of it, and the weights are held once.
        folder: Where the data lies that the model keeps in other files; it is read.

    Raises:
        OSError, ValueError, onnx.checker.ValidationError: If such data cannot be read.
    """
    bare = _copied(model, but=("graph",))
    bare.graph.MergeFrom(_copied(model.graph, but=("initializer",)))
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]  # old models declare weights as well
    weights: Weights = {}
    for tensor in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if _is_large(dtype, tensor.dims):
            weights[tensor.name] = onnx.numpy_helper.to_array(tensor, folder)
            inputs.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            bare.graph.initializer.append(tensor)
    del bare.graph.input[:]
    bare.graph.input.extend(inputs)
    onnx.load_external_data_for_model(bare, folder)
    return bare, weights


def import_model(model: onnx.ModelProto, weights: Weights | None = None) -> gs.Graph:
    """Opens a model for editing. The bodies of our own ops are put aside: :func:`export_model` writes them again.

    From here on the weights are arrays, which copies of the graph share and which no pass copies without need. What
    onnx-graphsurgeon would drop (metadata, and what documents a node or the model) is kept as ``notes``.

    Args:
        model: Left as it is.
        weights: Those that were taken out of it before, by :func:`without_weights`.

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
    if weights is None:
        model, weights = without_weights(model)
    graph = gs.import_onnx(model)
    graph.functions.clear()
    for tensor in graph.inputs:
        if tensor.name in weights:
            tensor.to_constant(weights[tensor.name])
    graph.inputs = [tensor for tensor in graph.inputs if isinstance(tensor, gs.Variable)]
    graph.notes = _copied(model, but=("graph", "functions", "ir_version", "opset_import"))
    graph.notes.graph.metadata_props.extend(model.graph.metadata_props)
    for node, stored in zip(_nodes(graph), _stored_nodes(model.graph), strict=True):
        node.notes = onnx.NodeProto(metadata_props=stored.metadata_props)
        if stored.doc_string:
            node.notes.doc_string = stored.doc_string
    return graph


def export_model(graph: gs.Graph) -> onnx.ModelProto:
    """Closes a graph into a model, weights included, with a function body for every custom op in use."""
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.MergeFrom(notes_of(graph))
    for node, stored in zip(_nodes(graph), _stored_nodes(model.graph), strict=True):
        stored.MergeFrom(vars(node).get("notes", onnx.NodeProto()))
    used = {node.op for node in graph.nodes if node.domain == DOMAIN and PLUGIN not in node.attrs}
    for name in (name for name in OPS if name in used):
        body = OPS[name].function_body()
        body.opset_import[0].version = graph.opset  # a model has one version of each set, its functions included
        model.functions.append(body)
    model.ir_version = 10
    return model


def copy_graph(graph: gs.Graph) -> gs.Graph:
    """A copy that can be edited on its own. Both share their weights."""
    copy = graph.copy()
    copy.import_domains = graph.import_domains and list(graph.import_domains)  # exporting adds to it
    copy.notes = _copied(notes_of(graph))
    for node, copied in zip(_nodes(graph), _nodes(copy), strict=True):
        copied.notes = vars(node).get("notes", onnx.NodeProto())
    return copy


def notes_of(graph: gs.Graph) -> onnx.ModelProto:
    """What the model says besides its graph: metadata, producer, documentation. May be changed."""
    notes: onnx.ModelProto = vars(graph).setdefault("notes", onnx.ModelProto())
    return notes


def with_weights_as_inputs(graph: gs.Graph, *, widen: bool = False) -> tuple[onnx.ModelProto, Weights]:
    """The model with every weight turned into an input, and the weights by name, in the memory in which they stand.

    Args:
        graph: Left as it is.
        widen: Whether half precision is read as float32, inputs and weights included. Rounding is no meaning: so graphs
            at both precisions are judged by the same numbers, to the same tolerances.
    """
    bare = copy_graph(graph)
    if widen:
        _widen(bare)
    weights = {tensor.name: tensor.values for node in bare.nodes for tensor in node.inputs if is_weight(tensor)}
    return _skeleton(bare), weights


def skeleton(graph: gs.Graph) -> onnx.ModelProto:
    """The model with inputs in place of its weights, which are not read: what a checker needs, at no cost in memory."""
    return _skeleton(copy_graph(graph))


def _skeleton(bare: gs.Graph) -> onnx.ModelProto:
    inputs: dict[str, gs.Variable] = {}
    for node in bare.nodes:
        for slot, tensor in enumerate(node.inputs):
            if is_weight(tensor):
                inputs.setdefault(tensor.name, gs.Variable(tensor.name, tensor.dtype, tensor.shape))
                node.inputs[slot] = inputs[tensor.name]
    bare.inputs = [*bare.inputs, *inputs.values()]
    return export_model(bare)


def _widen(graph: gs.Graph) -> None:
    for tensor in (*graph.inputs, *graph.tensors().values()):
        if isinstance(tensor, gs.Constant) and tensor.dtype == np.float16:
            tensor.to_constant(tensor.values.astype(np.float32))
        elif isinstance(tensor, gs.Variable) and tensor.dtype == np.float16:
            tensor.dtype = np.dtype(np.float32)
    for node in graph.nodes:
        for name, value in node.attrs.items():
            if name == "to" and value in (np.float16, onnx.TensorProto.FLOAT16):
                node.attrs[name] = np.float32
            elif isinstance(value, gs.Constant) and value.dtype == np.float16:  # of a Constant or a ConstantOfShape
                node.attrs[name] = gs.Constant(value.name, value.values.astype(np.float32))


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session on one thread of the CPU that runs every node as it is written, and is silent."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def is_weight(tensor: gs.Tensor) -> bool:
    """Whether it is a constant so large that checkers and sessions are given an input in its place."""
    return isinstance(tensor, gs.Constant) and _is_large(tensor.dtype, tensor.shape)


def weight_bytes(graph: gs.Graph) -> int:
    """What the weights of a graph occupy."""
    weights = (tensor for tensor in graph.tensors().values() if is_weight(tensor))
    return sum(np.dtype(weight.dtype).itemsize * math.prod(weight.shape) for weight in weights)


def _is_large(dtype: np.dtype[Any] | int, shape: Sequence[int]) -> bool:
    """Whether a constant is a weight. What numpy has no dtype of its own for (int4, bfloat16, text) is none."""
    return isinstance(dtype, np.dtype) and dtype.kind in "biufc" and math.prod(shape) > LARGE


def _copied(message: MessageT, *, but: Collection[str] = ()) -> MessageT:
    """A copy of a protobuf message less some of its fields."""
    kept: MessageT = type(message)(**{field.name: v for field, v in message.ListFields() if field.name not in but})
    return kept


def _nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Every node, those of inner graphs included."""
    for node in graph.nodes:
        yield node
        for inner in node.subgraphs():
            yield from _nodes(inner)


def _stored_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """As ``_nodes``, in the same order."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _stored_nodes(attribute.g)


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


def split_bias(tensor: gs.Tensor) -> tuple[gs.Tensor, NDArray[Any]] | None:
    """The terms of a tensor (…, E) that is the sum of one like it and a constant (E): a product and its bias, say."""
    shape, add = tensor_shape(tensor), producer(tensor, "Add")
    if add is None or not shape:
        return None
    for term, vector in (add.inputs, add.inputs[::-1]):
        bias = constant_value(vector)
        if bias is not None and bias.shape[-1:] == shape[-1:] == (bias.size,) and tensor_shape(term) == shape:
            return term, bias.reshape(-1)
    return None


def tensor_shape(tensor: gs.Tensor) -> tuple[int | str, ...] | None:
    """Numbers and symbols, one per axis, or ``None`` where the rank or an axis is unknown."""
    if tensor.shape is None or any(axis is None or axis == "" for axis in tensor.shape):
        return None
    return tuple(tensor.shape)


def is_fused(node: gs.Node, op_type: str) -> bool:
    """Whether the node is our custom op of that type."""
    return bool(node.domain == DOMAIN and node.op == op_type)


def is_read(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a node reads the tensor, or it is an output of the graph. One that is left out is not read."""
    return not tensor.is_empty() and (bool(tensor.outputs) or any(output is tensor for output in graph.outputs))


def is_private(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether one node reads the tensor, once, and nothing else does: with that node, it may be changed."""
    return len(tensor.outputs) == 1 and not any(output is tensor for output in graph.outputs)


def unique_name(graph: gs.Graph, stem: str) -> str:
    """A tensor or node name that the graph does not use yet, nor was given before: the stem and a number.

    The names in use are gathered once per pass. What a pass calls by other names must not end in a number.
    """
    if "names" not in vars(graph):
        graph.names = graph.tensors().keys() | {node.name for node in graph.nodes}
        graph.numbers = {}
    number = graph.numbers.get(stem, 0)
    while (name := f"{stem}_{number}") in graph.names:
        number += 1
    graph.numbers[stem] = number + 1
    return name


def forget_names(graph: gs.Graph) -> None:
    """Makes :func:`unique_name` gather the names anew, after edits that gave other ones."""
    vars(graph).pop("names", None)


def detach(nodes: Iterable[gs.Node]) -> None:
    """Takes nodes off their tensors, so that nothing in the graph reads or is made by them."""
    for node in nodes:
        node.inputs.clear()
        node.outputs.clear()


def replace(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Makes every consumer of ``old``, graph outputs included, read ``new``, which takes the name over.

    So outputs keep their public names, and what was observed of the one is known of the other.
    """
    for node in list(old.outputs):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    graph.outputs = [new if output is old else output for output in graph.outputs]
    new.name, old.name = old.name, new.name
