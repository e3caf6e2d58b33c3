"""ONNX files in and out: weights beside the model, damage, other opsets, and paths that lead elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter import onnx_files
from exporter.errors import BundleError, UserError
from exporter.onnx_files import _header, load_onnx, read_onnx, save_onnx
from graph_passes import graph_tools
from graph_passes.graph_tools import export_model, import_model

FUNCTION = """
<ir_version: 10, opset_import: ["" : 20, "theirs" : 1]>
twice (float[batch, 4] x) => (float[batch, 4] y) { y = theirs.Double (x) }
<domain: "theirs", opset_import: ["" : 20]>
Double (x) => (y) { y = Add (x, x) }
"""


def product(opset: int, *, rows: int = 64) -> onnx.ModelProto:
    """x (batch, rows) times a weight; the mean of it, whose axes older opsets keep in an attribute."""
    weight = np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)
    mean = helper.make_node("ReduceMean", ["sum"], ["y"], keepdims=0)
    axes = [numpy_helper.from_array(np.array([-1]), "axes")] if opset >= 18 else []
    if axes:
        mean.input.append("axes")
    else:
        mean.attribute.append(helper.make_attribute("axes", [-1]))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            mean,
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", rows))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch",))],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.ones(32, np.float32), "bias"), *axes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto) -> NDArray[Any]:
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    return np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["beside", "inside"])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_ABOVE", limit)
    graph = import_model(product(20))
    graph.tensors()["weight"].values = np.asfortranarray(graph.tensors()["weight"].values)
    model = export_model(graph)
    path = tmp_path / "new" / "model.onnx"
    for _ in range(2):  # the second time over the first
        save_onnx(graph, path)
        names = ["model.onnx", "model.onnx.data"] if limit == 0 else ["model.onnx"]
        assert sorted(file.name for file in path.parent.iterdir()) == names
        onnx.checker.check_model(path, full_check=True)
        assert export_model(graph) == export_model(load_onnx(path)) == model, "saving changes nothing"
        loaded = onnx.load(path)
        assert loaded.graph.node == model.graph.node
        assert list(loaded.graph.input) == list(model.graph.input)
        for found in (weights_of(loaded), weights_of(export_model(load_onnx(path)))):
            assert found.keys() == {"weight", "bias", "axes"}
            for name, weight in weights_of(model).items():
                np.testing.assert_array_equal(found[name], weight)
        x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
        np.testing.assert_array_equal(ort.InferenceSession(path).run(None, {"x": x})[0], run(model))


def test_a_model_within_the_limit_is_one_message(tmp_path: Path, traced: onnx.ModelProto) -> None:
    """The same bytes as protobuf's, but for the order of fields."""
    graph = import_model(traced)
    for large in (1024, 10):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph_tools, "LARGE", large)
            save_onnx(graph, tmp_path / f"{large}.onnx")
        loaded, model = onnx.load(tmp_path / f"{large}.onnx"), export_model(graph)
        assert loaded.ByteSize() == model.ByteSize() == (tmp_path / f"{large}.onnx").stat().st_size
        for stored in (loaded, model):
            stored.graph.initializer.sort(key=lambda tensor: tensor.name)
        assert loaded == model


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 1 << 21])
def test_headers_are_those_of_protobuf(size: int) -> None:
    assert _header(9, size) + bytes(size) == TensorProto(raw_data=bytes(size)).SerializeToString()


def test_weights_beside_begin_at_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_ABOVE", 0)
    monkeypatch.setattr(graph_tools, "LARGE", 8)
    save_onnx(import_model(product(20, rows=60)), tmp_path / "model.onnx")
    stored = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in stored]
    assert entries == [
        {},  # the axes
        {"location": "model.onnx.data", "offset": "0", "length": str(60 * 32 * 4)},
        {"location": "model.onnx.data", "offset": "8192", "length": str(32 * 4)},
    ]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(BundleError, match="Cannot write"):
        save_onnx(import_model(product(20)), tmp_path / "taken" / "model.onnx")


def test_an_older_opset_is_brought_up_and_computes_the_same(tmp_path: Path) -> None:
    old = product(14)
    onnx.save(old, tmp_path / "old.onnx")
    loaded = export_model(load_onnx(tmp_path / "old.onnx"))
    assert [(entry.domain, entry.version) for entry in loaded.opset_import] == [("", 20)]
    assert [value.name for value in loaded.graph.input] == ["x"]
    assert {tensor.name for tensor in loaded.graph.initializer} >= {"weight", "bias"}
    np.testing.assert_array_equal(run(loaded), run(old))


@pytest.mark.parametrize("opset", [20, 23])
def test_a_newer_opset_stays_as_it_is(tmp_path: Path, opset: int) -> None:
    model = product(17)
    model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["sum"], ["y"]))
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "model.onnx")
    loaded = export_model(load_onnx(tmp_path / "model.onnx"))
    assert (loaded.graph, loaded.opset_import) == (model.graph, model.opset_import)


def test_functions_of_others_are_inlined(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(FUNCTION), tmp_path / "model.onnx")
    loaded = export_model(load_onnx(tmp_path / "model.onnx"))
    assert [node.op_type for node in loaded.graph.node] == ["Add"]
    assert not loaded.functions


def absent(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def words(path: Path) -> None:
    path.write_text("this is no model at all", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (absent, "There is neither a folder nor a file at .*: expected an ONNX model"),
        (truncated, "is not an ONNX model: it cannot be decoded"),
        (empty, "is not an ONNX model: it names no opset"),
        (words, "is not an ONNX model"),
    ],
)
def test_a_file_that_is_no_model(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(product(20), path)
    harm(path)
    for read in (read_onnx, load_onnx):
        with pytest.raises(UserError, match=message):
            read(path)


def beside(folder: Path, location: str) -> Path:
    """A model whose weight lies in another file, which it calls ``location``."""
    model = product(20)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    stored = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in stored.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(stored, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "inner/../../weights"])
def test_data_outside_of_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "model").mkdir()
    path = beside(tmp_path / "model", location)
    (tmp_path / "weights").write_bytes((tmp_path / "model" / "weights").read_bytes())
    with pytest.raises(BundleError, match="leads out of"):
        load_onnx(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = beside(tmp_path / "model", "link")
    (tmp_path / "weights").write_bytes((tmp_path / "model" / "weights").read_bytes())
    (tmp_path / "model" / "link").symlink_to(tmp_path / "weights")
    with pytest.raises(BundleError, match="leads out of"):
        load_onnx(path)


@pytest.mark.parametrize("harm", [absent, truncated])
def test_data_that_is_missing_or_cut_off(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = beside(tmp_path, "weights")
    harm(tmp_path / "weights")
    with pytest.raises(UserError, match="the data beside it cannot be read"):
        load_onnx(path)


def test_a_model_that_the_converter_refuses(tmp_path: Path) -> None:
    model = product(14)
    model.graph.node[0].op_type = "NoSuchOp"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"cannot be brought to opset 20: .* Export it again at that"):
        load_onnx(tmp_path / "model.onnx")
