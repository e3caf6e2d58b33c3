"""Reading and writing ONNX files. Needs the ``export`` extra."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner, version_converter

from exporter.errors import UserError
from exporter.files import inside, new_file
from graph_passes.graph_tools import LARGE
from plugins.contract import DOMAIN

__all__ = ["load_onnx", "read_onnx", "save_onnx"]

OPSET = 20  # what older models are brought to: what the function bodies of our ops are written in
EXTERNAL_DATA_ABOVE = 1 << 30  # bytes; a protobuf file ends at 2 GiB


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in a file, without the data that it keeps in other files.

    Raises:
        UserError: If there is no such file, or it is no ONNX model.
    """
    if not path.is_file():
        raise UserError(f"There is neither a folder nor a file at {path}: expected an ONNX model.")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)  # whatever the file is called
    except DecodeError as error:
        raise UserError(f"{path} is not an ONNX model: it cannot be decoded ({error}).") from error
    if not model.opset_import:
        raise UserError(f"{path} is not an ONNX model: it names no opset.")
    return model


def load_onnx(path: Path) -> onnx.ModelProto:
    """The whole model in a file, in a form that the passes take: at least opset 20, no functions but ours.

    Raises:
        BundleError: If it names data outside of its folder.
        UserError: If the file is missing or damaged, or it is no valid model.
    """
    model = read_onnx(path)
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                inside(path.parent, entry.value)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise UserError(f"{path}: the data beside it cannot be read ({error}): copy both files again.") from error
    foreign = [(function.domain, function.name) for function in model.functions if function.domain != DOMAIN]
    try:
        if foreign:
            model = inliner.inline_selected_functions(model, foreign)
        return _upgraded(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path} cannot be brought to opset {OPSET}: {problem}. Export it again at that.") from error


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model; the weights of a large one go to ``<name>.data`` beside it.

    Raises:
        BundleError: If the folder cannot be written.
    """
    if model.ByteSize() <= EXTERNAL_DATA_ABOVE:
        with new_file(path) as temporary:
            onnx.save(model, temporary, format="protobuf")
        return
    data = path.with_name(f"{path.name}.data")
    with new_file(data) as temporary_data, new_file(path) as temporary:
        temporary_data.unlink()  # the writer appends
        onnx.save(model, temporary, format="protobuf", save_as_external_data=True, location=temporary_data.name)
        onnx.load_external_data_for_model(model, str(path.parent))  # saving took the weights out of the model
        _rename_data(temporary, data.name)


def _rename_data(path: Path, name: str) -> None:
    """Makes a model whose weights lie beside it look for them under another name."""
    stored = onnx.load(path, format="protobuf", load_external_data=False)
    for tensor in _tensors(stored.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save(stored, path, format="protobuf")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is stored in a graph, those of its nodes' attributes and inner graphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 20, where it is older. The converter sees inputs in place of the weights, for it copies."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] >= OPSET:
        return model
    declared = {value.name for value in model.graph.input}
    stored = list(model.graph.initializer)
    weights = [tensor for tensor in stored if math.prod(tensor.dims) > LARGE]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for tensor in stored if math.prod(tensor.dims) <= LARGE)
    stand_ins = [tensor for tensor in weights if tensor.name not in declared]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in stand_ins
    )
    converted: onnx.ModelProto = version_converter.convert_version(model, OPSET)
    added = {tensor.name for tensor in stand_ins}
    inputs = [value for value in converted.graph.input if value.name not in added]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    converted.graph.initializer.extend(weights)
    return converted
