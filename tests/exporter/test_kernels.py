"""``rotary-press plugins``: from an export, or any graph, to PTX and what is needed to launch it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

import exporter.kernels
from exporter import fuse, write_kernels
from exporter.errors import UnavailableError, UserError
from exporter.kernels import FILE_NAME, KernelReport
from plugins.compile import kernels

GRAPH = Path(__file__).parents[1] / "golden" / "optimum-roformer-fill-mask-slim.onnx"
Press = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def press() -> Press:
    """The command in a process of its own, where kernels are compiled: in this one they are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "exporter", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1800)

    return run


@pytest.fixture(scope="module")
def written(exported: Path, press: Press, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its kernels for two architectures."""
    folder = tmp_path_factory.mktemp("kernels") / "out"
    shutil.copytree(exported, folder)
    finished = press("plugins", folder, "--sm", 75, "--sm", 120)
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"QKVRotary +│ +float16 │ H=4 D=4 +│ +2 +│ 75 ", finished.stdout)
    assert "is in dynamic int8, which TensorRT does not take" in finished.stdout
    assert f"kernels to {folder / 'plugins'}" in finished.stdout
    return folder


@pytest.fixture(scope="module")
def report(written: Path) -> KernelReport:
    return KernelReport.model_validate_json((written / "plugins" / FILE_NAME).read_bytes())


def test_every_plugin_of_every_graph_has_its_kernels(report: KernelReport) -> None:
    found = {(entry.plugin, entry.dtype, entry.sm, entry.tactic) for entry in report.kernels}
    assert found == {
        (plugin, dtype, sm, tactic)
        for plugin, op in (("QKVRotary", "QKVRotary"), ("ResidualLayerNorm_y", "ResidualLayerNorm"))
        for dtype in ("float32", "float16")
        for sm in (75, 120)
        for tactic in range(len(kernels()[op].tactics))
    }
    for entry in report.kernels:
        graph = {"float32": "model/fp32.onnx", "float16": "model/fp16.onnx"}[entry.dtype]
        assert entry.nodes == {graph: 2 if entry.plugin == "QKVRotary" else 5}


def test_the_folder_holds_what_the_document_says_and_nothing_else(written: Path, report: KernelReport) -> None:
    folder = written / "plugins"
    assert {path.name for path in folder.iterdir()} == {FILE_NAME, *(entry.file for entry in report.kernels)}
    assert len({entry.file for entry in report.kernels}) == len(report.kernels)
    for entry in report.kernels:
        ptx = (folder / entry.file).read_bytes()
        assert hashlib.sha256(ptx).hexdigest() == entry.sha256
        assert f".visible .entry {entry.entry}(".encode() in ptx
        assert f".target sm_{entry.sm}\n.address_size 64\n".encode() in ptx
        assert f".version {entry.ptx_version}\n".encode() in ptx
        assert f".reqntid {entry.block[0]}".encode() in ptx


def test_the_formulas_give_a_launch(report: KernelReport) -> None:
    """What whoever launches the kernel without us does with them."""
    for entry in report.kernels:
        letters = {"B": 3, "S": 7, "P": 1}
        grid = [eval(formula, {}, dict(letters)) for formula in entry.grid]
        arguments = {name: eval(formula, {}, dict(letters)) for name, formula in entry.arguments.items()}
        assert all(isinstance(extent, int) and extent >= 1 for extent in grid)
        assert arguments["rows"] == 21
        assert list(arguments) == [parameter.name for parameter in entry.parameters if parameter.type == "u32"]
        if entry.plugin == "QKVRotary":
            assert (arguments["length"], arguments["angle_stride"]) == (7, 0)
            assert eval(entry.arguments["angle_stride"], {}, letters | {"P": 3}) == 7


def test_the_export_is_still_whole(written: Path, press: Press) -> None:
    finished = press("inspect", written)
    assert finished.returncode == 0, finished.stderr


def test_kernels_are_replaced_by_those_of_another_run(written: Path, press: Press, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    for sm in (86, 89):
        finished = press("plugins", written, "--output", folder, "--sm", sm, "--json")
        assert finished.returncode == 0, finished.stderr
        document = KernelReport.model_validate(json.loads(finished.stdout))
        assert {entry.sm for entry in document.kernels} == {sm}
        assert document == KernelReport.model_validate_json((folder / FILE_NAME).read_bytes())
        assert len(list(folder.iterdir())) == len(document.kernels) + 1


def test_a_graph_of_another_exporter_and_the_same_lowered_need_the_same(press: Press, tmp_path: Path) -> None:
    fuse(GRAPH, tmp_path / "lowered.onnx", lowering="plugin")
    documents = []
    for graph in (GRAPH, tmp_path / "lowered.onnx"):
        finished = press(
            "plugins", graph, "--output", tmp_path / "kernels", "--sm", 89, "--ptx-version", "7.8", "--json"
        )
        assert finished.returncode == 0, finished.stderr
        documents.append(KernelReport.model_validate(json.loads(finished.stdout)))
    first, second = ([entry.model_dump(exclude={"nodes"}) for entry in document.kernels] for document in documents)
    assert first == second
    assert {entry["plugin"] for entry in first} == {"QKVRotary", "ResidualLayerNorm_y"}
    assert {entry["ptx_version"] for entry in first} == {"7.8"}


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if kernels could be compiled here: what is wrong with a request is told before any is."""
    monkeypatch.setattr(exporter.kernels, "why_not", lambda: None)


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sms": [89, 70]}, r"No kernel can be compiled for SM 70; expected one of 75 \(Turing"),
        ({"sms": [120], "ptx_version": "8.0"}, r"PTX for sm_120 cannot be of version 8.0; expected one of 8.7"),
        ({"ptx_version": "eight"}, "'eight' is no PTX version; expected one such as 8.5"),
        ({"ptx_version": "8.10"}, "'8.10' is no PTX version"),
        ({"out": None}, "Say where the kernels of a graph go: --output FOLDER"),
        ({"source": "missing.onnx"}, "neither a folder nor a file at missing.onnx"),
        ({"source": "."}, "has no manifest.json"),
    ],
)
def test_wrong_options_are_told_and_nothing_is_written(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        write_kernels(**{"source": GRAPH, "out": tmp_path / "out"} | options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiling")
def test_a_graph_without_plugins_is_told(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negated", [value], [y])
    path = tmp_path / "negated.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(UserError, match=r"Nothing in .* is a plugin.*none of our ops that have kernels is in it"):
        write_kernels(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("compiling")
def test_a_size_that_the_graph_leaves_open_is_told(tmp_path: Path) -> None:
    shapes: dict[str, list[int | str | None]] = {
        "x": ["b", "h", "s", 4],
        "cos": [1, "s", 2],
        "sin": [1, "s", 2],
        "y": ["b", "h", "s", 4],
    }
    values = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()
    }
    node = helper.make_node("InterleavedRotary", ["x", "cos", "sin"], ["y"], "turn", domain="rotary_press")
    for key, value in {"plugin_namespace": "rotary_press", "plugin_version": "1", "aot": 1}.items():
        node.attribute.append(helper.make_attribute(key, value))
    graph = helper.make_graph([node], "open", [values[name] for name in ("x", "cos", "sin")], [values["y"]])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("rotary_press", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.metadata_props.add(key="rotary_press.passes", value=json.dumps(["prepare", "lower_to_plugin"]))
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(UserError, match=r"open.onnx: a kernel for turn must be compiled for its sizes \['H'\]"):
        write_kernels(tmp_path / "open.onnx", tmp_path / "out")


def test_without_a_compiler_nothing_is_read(tmp_path: Path) -> None:
    """The interpreter is on in this process."""
    with pytest.raises(UnavailableError, match="TRITON_INTERPRET is set"):
        write_kernels("missing.onnx", tmp_path / "out")


def test_the_command_tells_a_mistake_in_one_message(press: Press, tmp_path: Path) -> None:
    finished = press("plugins", GRAPH, "--sm", 89)
    assert (finished.returncode, finished.stderr) == (
        2,
        "error: Say where the kernels of a graph go: --output FOLDER.\n",
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    finished = press("plugins", GRAPH, "--sm", 89, "--output", tmp_path / "mine", "--json")
    assert finished.returncode == 2
    assert "has no kernels.json" in json.loads(finished.stdout)["error"]["message"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
