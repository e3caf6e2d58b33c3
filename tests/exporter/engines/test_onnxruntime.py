"""The embedded default: building copies and checks, loading refuses what is damaged, running is exact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.engines.onnxruntime import OnnxRuntime
from exporter.errors import BundleError, CompileError, UnavailableError

ROOT = Path(__file__).parents[3]
ENGINE = OnnxRuntime()
TABLE = np.arange(500, dtype=np.float32).reshape(100, 5)


def lookup(*, op: str = "Gather") -> onnx.ModelProto:
    """``twice`` (B, S, 5) and ``rows`` (B, S, 5): rows of a table by id, doubled and as they are."""
    nodes = [
        helper.make_node(op, ["table", "input_ids"], ["rows"]),
        helper.make_node("Add", ["rows", "rows"], ["twice"]),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ("batch", "sequence"))]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", "sequence", 5)) for name in ("twice", "rows")
    ]
    graph = helper.make_graph(nodes, "lookup", inputs, outputs, [numpy_helper.from_array(TABLE, "table")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def lowered(tmp_path: Path) -> Path:
    folder = tmp_path / "lowered"
    folder.mkdir()
    onnx.save(lookup(), folder / "tiny.onnx")
    return folder / "tiny.onnx"


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    (tmp_path / "engines").mkdir()
    return tmp_path / "engines" / "tiny.onnx"


def test_it_is_part_of_the_base_install() -> None:
    assert ENGINE.is_available() is None


def test_without_the_package_it_says_what_to_install(lowered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in str(ENGINE.is_available())
    with pytest.raises(UnavailableError, match=r"target onnxruntime is not usable here.*pip install onnxruntime"):
        ENGINE.load(lowered)


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_outputs_by_name_in_the_order_of_the_engine(lowered: Path, destination: Path, threads: int | None) -> None:
    ENGINE.build(lowered, destination)
    ids = np.array([[7, 0, 99], [3, 3, 1]])
    found = ENGINE.load(destination, threads=threads).run({"input_ids": ids})
    assert list(found) == ["twice", "rows"]
    np.testing.assert_array_equal(found["rows"], TABLE[ids])
    np.testing.assert_array_equal(found["twice"], 2 * TABLE[ids])
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_build_copies_the_external_data_and_nothing_else(lowered: Path, destination: Path) -> None:
    data = f"{lowered.name}.data"
    onnx.save(lookup(), lowered, save_as_external_data=True, location=data, size_threshold=0)
    (lowered.parent / "other.onnx").touch()
    ENGINE.build(lowered, destination)
    assert sorted(path.name for path in destination.parent.iterdir()) == [destination.name, data]
    assert (destination.parent / data).stat().st_size >= TABLE.nbytes
    shutil.rmtree(lowered.parent)
    found = ENGINE.load(destination).run({"input_ids": np.array([[99]])})
    np.testing.assert_array_equal(found["rows"], TABLE[[[99]]])


def test_build_refuses_external_data_that_did_not_come_along(lowered: Path, destination: Path) -> None:
    onnx.save(lookup(), lowered, save_as_external_data=True, location="other.data", size_threshold=0)
    with pytest.raises(CompileError, match="ONNX Runtime refuses"):
        ENGINE.build(lowered, destination)


def test_build_refuses_what_cannot_run(lowered: Path, destination: Path) -> None:
    onnx.save(lookup(op="NoSuchOp"), lowered)
    with pytest.raises(CompileError, match=r"ONNX Runtime refuses tiny\.onnx: .*NoSuchOp"):
        ENGINE.build(lowered, destination)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_damaged_file(lowered: Path, keep: int, capfd: pytest.CaptureFixture[str]) -> None:
    content = lowered.read_bytes()
    lowered.write_bytes(content[:keep] if keep else b"\xffnothing of the kind")
    with pytest.raises(BundleError, match=r"tiny\.onnx cannot be loaded by ONNX Runtime \d"):
        ENGINE.load(lowered)
    assert capfd.readouterr() == ("", "")  # the runtime's own log would say it twice


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.onnx cannot be loaded"):
        ENGINE.load(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"ids": np.zeros((1, 1), np.int64)},
        {"input_ids": np.zeros((1, 1), np.int64), "more": np.zeros((1, 1), np.int64)},
        {"input_ids": np.zeros((1, 1), np.float32)},
        {"input_ids": np.zeros(1, np.int64)},
        {"input_ids": np.full((1, 1), 100)},
    ],
    ids=["nothing", "another name", "one more", "another dtype", "another rank", "an id too large"],
)
def test_inputs_that_the_engine_does_not_take(
    lowered: Path, inputs: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    runner = ENGINE.load(lowered)
    with pytest.raises(BundleError, match=r"tiny\.onnx cannot run on "):
        runner.run(inputs)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("module", ["exporter", "graph_passes.graph_tools"])
def test_the_runtime_reports_to_nobody(module: str, lowered: Path, tmp_path: Path) -> None:
    """What it would send is about the user's models; it also leaves an identifier at home."""
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "ORT_", "XDG_"))}
    code = f"import {module}, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"
    finished = subprocess.run(
        [sys.executable, "-c", code, lowered],
        cwd=ROOT,
        env=kept | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stderr == ""
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.parametrize(("threads", "asked"), [(None, 0), (1, 1), (3, 3)])
def test_the_runtime_gets_the_number_of_threads(
    lowered: Path, threads: int | None, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[int, dict[str, Any]]] = []
    session = onnxruntime.InferenceSession

    def spy(path: str, options: Any, **settings: Any) -> Any:
        opened.append((options.intra_op_num_threads, settings))
        return session(path, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    ENGINE.load(lowered, threads=threads)
    [(threads_given, settings)] = opened
    assert threads_given == asked
    assert settings == {"providers": ["CPUExecutionProvider"], "disabled_optimizers": ["SkipLayerNormFusion"]}
