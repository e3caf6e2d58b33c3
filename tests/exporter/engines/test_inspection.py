"""Layers as polygraphy lists them, in a process of its own that leaves nothing behind."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import polygraphy.config
import pytest
from onnx import numpy_helper

from exporter.engines import get_engine, inspection
from exporter.engines.inspection import list_layers
from exporter.engines.tensorrt_base import read_record
from exporter.errors import BundleError, RotaryPressError, UnavailableError, UserError

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="TensorRT-RTX is installed there alone"
)
RTX = "tensorrt-rtx"
GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
plain (float[batch, 4] x) => (float[batch, 4] y)
<float[4] scale = {1.0, 2.0, 3.0, 4.0}>
{ [norm] y = LayerNormalization (x, scale) }
"""

# An engine that the inspector of TensorRT-RTX might tell of, in place of one that only a GPU opens.
WITH_AN_ENGINE = """
import json
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
import tensorrt_rtx as trt
from exporter.engines import TensorRTRTX, inspection

def tensor(name):
    return {"Name": name, "Dimensions": [1, 4], "Format/Datatype": "Row major linear FP16 format"}

LAYERS = [
    {"Name": f"fused {index}", "LayerType": "kgen", "Origin": "MYELIN", "TacticName": "__myl_MulAdd",
     "Inputs": [tensor("x")], "Outputs": [tensor("y")]}
    for index in range(2)
]
SHAPES = [(1, 4), (2, 4), (8, 4)]
engine = SimpleNamespace(
    name="opened", refittable=False, num_io_tensors=2, num_optimization_profiles=1, num_layers=2,
    device_memory_size_v2=512, profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
    get_tensor_name="xy".__getitem__, get_tensor_shape=lambda name: (-1, 4),
    get_tensor_mode=lambda name: trt.TensorIOMode.INPUT if name == "x" else trt.TensorIOMode.OUTPUT,
    get_tensor_format=lambda name, profile: trt.TensorFormat.LINEAR,
    get_tensor_dtype=lambda name: trt.float16, get_tensor_profile_shape=lambda name, profile: SHAPES,
    create_engine_inspector=lambda: SimpleNamespace(
        get_layer_information=lambda index, form: json.dumps(LAYERS[index] if form == trt.LayerInformationFormat.JSON
                                                             else None)),
)
class Runner(nullcontext):
    @contextmanager
    def opened(self):
        yield engine, SimpleNamespace(active_optimization_profile=0)

inspection.TensorRTRunner = Runner
TensorRTRTX.load = lambda self, path: Runner()
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "plain.onnx")
    return tmp_path / "plain.onnx"


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it only."""
    folder = tmp_path_factory.mktemp("engine")
    onnx.save(onnx.parser.parse_model(GRAPH), folder / "out.onnx")
    get_engine(RTX).build(folder / "out.onnx", folder / "out.engine")
    return folder / "out.engine"


@pytest.fixture
def copied(engine_file: Path, tmp_path: Path) -> Path:
    """The engine with its record, to change."""
    for name in ("out.engine", "out.engine.json"):
        (tmp_path / name).write_bytes(engine_file.with_name(name).read_bytes())
    return tmp_path / "out.engine"


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``child(code)``: what the other process runs instead."""
    return lambda code: monkeypatch.setattr(inspection, "CHILD", code)


def test_the_network_of_a_graph_and_nothing_is_left_behind(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that lie in the current folder are not taken for those of the process."""
    (graph.parent / "here").mkdir()
    for name in ("json", "polygraphy", "tensorrt", "tensorrt_rtx"):
        (graph.parent / "here" / f"{name}.py").write_text("raise SystemExit('not I')", encoding="utf-8")
    monkeypatch.chdir(graph.parent / "here")
    before = dict(os.environ), polygraphy.config.USE_TENSORRT_RTX, "tensorrt" in sys.modules, list(sys.path)
    lines = list_layers(graph, RTX).splitlines()
    assert lines[0].endswith("Strongly Typed Network")
    assert "{x [dtype=float32, shape=(-1, 4)]}" in lines
    assert "{y [dtype=float32, shape=(-1, 4)]}" in lines
    [norm] = [line for line in lines if "norm [Op: LayerType.NORMALIZATION]" in line]
    assert any(line.strip().startswith("norm.epsilon = ") for line in lines[lines.index(norm) :])
    after = dict(os.environ), polygraphy.config.USE_TENSORRT_RTX, "tensorrt" in sys.modules, list(sys.path)
    assert after == before
    assert sorted(path.name for path in graph.parent.iterdir()) == ["here", "plain.onnx"]


def test_what_the_parser_refuses_is_told(graph: Path) -> None:
    text = GRAPH.replace("LayerNormalization", "theirs.Unknown").replace('"" : 20', '"" : 20, "theirs" : 1')
    onnx.save(onnx.parser.parse_model(text), graph)
    with pytest.raises(UserError, match=r"cannot read plain.onnx: norm \(Unknown\) of .*rotary-press fuse writes"):
        list_layers(graph, RTX)


def test_a_graph_may_not_name_files_elsewhere(graph: Path) -> None:
    model = onnx.load(graph)
    [scale] = model.graph.initializer
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale), scale.name))  # as bytes
    onnx.external_data_helper.set_external_data(scale, "../secret", 0, 16)
    scale.ClearField("raw_data")
    graph.write_bytes(model.SerializeToString())
    (graph.parents[1] / "secret").write_bytes(bytes(16))
    with pytest.raises(BundleError, match="leads out of"):
        list_layers(graph, RTX)


def test_the_layers_of_an_engine(copied: Path, child: Callable[[str], None]) -> None:
    child(inspection.CHILD.replace("from exporter", f"exec({WITH_AN_ENGINE!r}); from exporter", 1))
    lines = [line.strip() for line in list_layers(copied).splitlines()]
    assert lines[0] == "Name: opened | Explicit Batch Engine"
    assert "Tensor: x          (Input), Index: 0 | Shapes: min=(1, 4), opt=(2, 4), max=(8, 4)" in lines
    assert [line for line in lines if line.startswith("Layer")] == [
        f"Layer {index}    | fused {index} [Op: kgen]" for index in range(2)
    ]
    assert lines.count("Tactic = __myl_MulAdd") == 2
    assert lines[-1] == "The engine counts 2 layers, those of all profiles together"


def test_an_inspector_that_tells_something_else_is_one_error(copied: Path, child: Callable[[str], None]) -> None:
    script = WITH_AN_ENGINE + "engine.num_layers = 3\n"
    child(inspection.CHILD.replace("from exporter", f"exec({script!r}); from exporter", 1))
    with pytest.raises(RotaryPressError, match=r"polygraphy cannot list the layers of .*out.engine: .*index out of"):
        list_layers(copied)


def test_an_engine_is_checked_before_it_is_opened(copied: Path) -> None:
    copied.write_bytes(copied.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"out.engine is not what was built"):
        list_layers(copied)


def test_without_a_gpu_the_reason_is_told(engine_file: Path) -> None:
    if get_engine(RTX).cannot_run() is None:
        pytest.skip("here is a GPU")
    with pytest.raises(UnavailableError, match="The target tensorrt-rtx cannot run here: "):
        list_layers(engine_file)


def test_each_target_has_its_mode_whatever_was_chosen(
    graph: Path, child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    child("import json, os; print(json.dumps({'layers': os.environ['POLYGRAPHY_USE_TENSORRT_RTX']}))")
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    assert list_layers(graph, "tensorrt") == "0"
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    assert list_layers(graph, RTX) == "1"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('lost'); raise ValueError('a layer too many')", "ValueError: a layer too many"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_a_process_that_fails_is_one_error(graph: Path, child: Callable[[str], None], code: str, message: str) -> None:
    child(code)
    with pytest.raises(RotaryPressError, match=rf"while it listed the layers of .*plain.onnx: {message}"):
        list_layers(graph, RTX)


def test_ctrl_c_ends_the_process(graph: Path) -> None:
    """Sent to this one alone: a terminal would send it to both."""
    file = graph.with_name("pid")
    sleeps = (
        "import os, signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"open({str(file)!r} + '.new', 'w').write(str(os.getpid())); os.rename({str(file)!r} + '.new', {str(file)!r}); "
        "time.sleep(100)"
    )
    script = (
        "import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from exporter.engines import inspection; inspection.CHILD = {sleeps!r}; "
        f"inspection.list_layers(pathlib.Path(sys.argv[1]), {RTX!r})"
    )
    asked = subprocess.Popen([sys.executable, "-c", script, graph], cwd=Path(__file__).parents[3], stderr=-1)
    try:
        while not file.exists():
            assert asked.poll() is None
            time.sleep(0.02)
        asked.send_signal(signal.SIGINT)
        _, said = asked.communicate(timeout=1800)
        assert b"KeyboardInterrupt" in said
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text(encoding="utf-8")), signal.SIGKILL)
    finally:
        asked.kill()
        asked.wait()


def test_mistakes(graph: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is a folder: --layers lists one engine or graph, such as"):
        list_layers(graph.parent)
    for target in (None, "onnxruntime", "tpu"):
        message = rf"Expected --target tensorrt-rtx or tensorrt; got {target or 'none'}\. An engine is known by plain"
        with pytest.raises(UserError, match=message):
            list_layers(graph, target)
    with pytest.raises(UserError, match="was built for tensorrt-rtx, not for tensorrt: leave --target out"):
        list_layers(copied, "tensorrt")
    copied.with_name("out.engine.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match=r"out.engine.json is missing or damaged"):
        list_layers(copied)
    monkeypatch.setattr(inspection, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"needs polygraphy, .*pip install 'rotary-press\[export\]'"):
        list_layers(graph, RTX)


def test_an_engine_of_a_target_that_is_not_here(copied: Path) -> None:
    record = read_record(copied).model_copy(update={"target": "tensorrt"})
    copied.with_name("out.engine.json").write_text(record.model_dump_json(), encoding="utf-8")
    with pytest.raises(UnavailableError, match="The target tensorrt is not usable here: "):
        list_layers(copied)
