"""ONNX files in and out: weights beside the model, damage, other opsets, and paths that lead elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter import onnx_files
from exporter.errors import BundleError, UserError
from exporter.onnx_files import load_onnx, read_onnx, save_onnx

FUNCTION = """
<ir_version: 10, opset_import: ["" : 20, "theirs" : 1]>
twice (float[batch, 4] x) => (float[batch, 4] y) { y = theirs.Double (x) }
<domain: "theirs", opset_import: ["" : 20]>
Double (x) => (y) { y = Add (x, x) }
"""


def product(opset: int, *, rows: int = 64) -> onnx.ModelProto:
    """x (batch, rows) times a weight; the mean of it, whose axes older opsets keep in an attribute."""
    weight = np.random.default_rng(0).standard_normal((rows, 32)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("ReduceMean", ["sum"], ["y"], axes=[-1], keepdims=0),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", rows))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch",))],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.ones(32, np.float32), "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    return np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["beside", "inside"])
def test_saving_a_model_does_not_change_it(
    tmp_path: Path, traced: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_ABOVE", limit)
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    path = tmp_path / "new" / "model.onnx"
    for _ in range(2):  # the second time over the first
        save_onnx(model, path)
        names = ["model.onnx", "model.onnx.data"] if limit == 0 else ["model.onnx"]
        assert sorted(file.name for file in path.parent.iterdir()) == names
        for loaded in (model, onnx.load(path), load_onnx(path)):
            for kept, found in zip(traced.graph.initializer, loaded.graph.initializer, strict=True):
                np.testing.assert_array_equal(numpy_helper.to_array(found), numpy_helper.to_array(kept))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(BundleError, match="Cannot write"):
        save_onnx(product(20), tmp_path / "taken" / "model.onnx")


def test_an_older_opset_is_brought_up_and_computes_the_same(tmp_path: Path) -> None:
    old = product(14)
    onnx.save(old, tmp_path / "old.onnx")
    loaded = load_onnx(tmp_path / "old.onnx")
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
    assert load_onnx(tmp_path / "model.onnx") == model


def test_functions_of_others_are_inlined(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(FUNCTION), tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    assert [node.op_type for node in loaded.graph.node] == ["Add"]
    assert not loaded.functions


def absent(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def words(path: Path) -> None:
    path.write_text("this is no model at all")


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
