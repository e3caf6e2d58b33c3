"""Reading and writing ONNX files. Needs the ``export`` extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import inliner, version_converter

from exporter.errors import UserError
from exporter.files import inside, new_file
from graph_passes.graph_tools import Weights, import_model, with_weights_as_inputs, without_weights
from plugins.contract import DOMAIN

__all__ = ["MAX_TOKENS", "check_data", "load_onnx", "read_onnx", "save_onnx"]

MAX_TOKENS = "rotary_press.max_tokens"  # in a graph's metadata: how many tokens the model's positions hold
OPSET = 20  # what older models are brought to: what the function bodies of our ops are written in
EXTERNAL_DATA_ABOVE = 1 << 30  # bytes; a protobuf file ends at 2 GiB
PAGE = 4096  # bytes; where a weight begins at one, a runtime can map it


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


def check_data(model: onnx.ModelProto, path: Path) -> None:
    """Makes sure that the data which the model of a file keeps in others lies in the file's folder.

    Raises:
        BundleError: If it does not.
    """
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                inside(path.parent, entry.value)


def load_onnx(path: Path) -> gs.Graph:
    """The whole model in a file, in a form that the passes take: at least opset 20, no functions but ours.

    Raises:
        BundleError: If it names data outside of its folder.
        UserError: If the file is missing or damaged, or it is no valid model.
    """
    bare, weights = _read_whole(path)
    foreign = [(function.domain, function.name) for function in bare.functions if function.domain != DOMAIN]
    try:
        if foreign:
            bare = inliner.inline_selected_functions(bare, foreign)
        return import_model(_upgraded(bare), weights)
    except (RuntimeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{path} cannot be brought to opset {OPSET}: {problem}. Export it again at that.") from error


def _read_whole(path: Path) -> tuple[onnx.ModelProto, Weights]:
    """The model in a file without its weights, and those, from wherever they lie."""
    model = read_onnx(path)
    check_data(model, path)
    try:
        return without_weights(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise UserError(f"{path}: the data beside it cannot be read ({error}): copy both files again.") from error


def save_onnx(graph: gs.Graph, path: Path) -> None:
    """Writes a model, one weight at a time; those of a large one go to ``<name>.data`` beside it.

    Raises:
        BundleError: If the folder cannot be written.
    """
    model, weights = with_weights_as_inputs(graph)
    del model.graph.input[len(graph.inputs) :]
    if model.ByteSize() + sum(weight.nbytes for weight in weights.values()) <= EXTERNAL_DATA_ABOVE:
        with new_file(path) as temporary, temporary.open("wb") as stream:
            _write_with_weights(model, weights, stream)
        return
    data = path.with_name(f"{path.name}.data")
    with new_file(data) as temporary_data, new_file(path) as temporary:
        with temporary_data.open("wb") as stream:
            for name, weight in weights.items():
                stream.seek(-(-stream.tell() // PAGE) * PAGE)
                stored = _described(name, weight)
                stored.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", data.name), ("offset", stream.tell()), ("length", weight.nbytes)):
                    stored.external_data.add(key=key, value=str(value))
                model.graph.initializer.append(stored)
                stream.write(_raw(weight))
        temporary.write_bytes(model.SerializeToString())


def _write_with_weights(model: onnx.ModelProto, weights: Weights, stream: BinaryIO) -> None:
    """Writes the bytes of a model with its weights inside.

    Protobuf would first put them together in memory, twice. In its format a message inside a message is a header (the
    number of the field, and how many bytes follow) and the bytes of its fields, in any order.
    """
    graph = model.graph.SerializeToString()
    heads = {}
    for name, weight in weights.items():
        head = _described(name, weight).SerializeToString() + _header(
            onnx.TensorProto.RAW_DATA_FIELD_NUMBER, weight.nbytes
        )
        heads[name] = _header(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(head) + weight.nbytes) + head
    size = len(graph) + sum(len(heads[name]) + weight.nbytes for name, weight in weights.items())
    model.ClearField("graph")
    stream.write(model.SerializeToString())
    stream.write(_header(onnx.ModelProto.GRAPH_FIELD_NUMBER, size))
    stream.write(graph)
    for name, weight in weights.items():
        stream.write(heads[name])
        stream.write(_raw(weight))


def _header(field: int, size: int) -> bytes:
    """What comes before a field of protobuf that is bytes or a message: two numbers, seven bits to a byte."""
    header = bytearray()
    for number in (field << 3 | 2, size):
        while number > 0x7F:
            header.append(number & 0x7F | 0x80)
            number >>= 7
        header.append(number)
    return bytes(header)


def _described(name: str, weight: NDArray[Any]) -> onnx.TensorProto:
    """A tensor less its numbers."""
    data_type = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    return onnx.TensorProto(name=name, data_type=data_type, dims=weight.shape)


def _raw(weight: NDArray[Any]) -> memoryview:
    """The numbers as ONNX stores them: row by row, the lowest byte first. Copied only where they are not so already."""
    return np.ascontiguousarray(weight, weight.dtype.newbyteorder("<")).data


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is stored in a graph, those of its nodes' attributes and inner graphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 20, where it is older."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] >= OPSET:
        return model
    converted: onnx.ModelProto = version_converter.convert_version(model, OPSET)
    return converted
