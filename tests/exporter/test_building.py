"""``rotary-press build`` and ``inspect`` of what it built: from any graph to an engine, and to its kernels."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from exporter.building import build, make_options, precision_of
from exporter.cli import app
from exporter.engines import devices, tensorrt_base
from exporter.engines.tensorrt_base import read_record
from exporter.errors import UnavailableError, UserError
from exporter.onnx_files import load_onnx

GRAPH = Path(__file__).parents[1] / "golden" / "optimum-roformer-fill-mask-slim.onnx"
on_linux = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="TensorRT-RTX is installed there alone"
)


def press(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def engines(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines of an export's graphs. Read them only."""
    folder = tmp_path_factory.mktemp("engines")
    made = {}
    for precision in ("fp32", "fp16"):
        made[precision] = folder / f"{precision}.engine"
        found = press(
            "build", exported / "model" / f"{precision}.onnx", made[precision], "--target", "tensorrt-rtx", "--sm", 89
        )
        assert found.exit_code == 0, found.output
    return made


@on_linux
def test_an_engine_is_built_and_told(engines: dict[str, Path]) -> None:
    record = read_record(engines["fp16"])
    assert (record.target, record.lowering, record.options.sms) == ("tensorrt-rtx", "native", (89,))
    assert record.options.max_tokens == 20, "read from the graph, which the export wrote"
    assert record.profiles == [{"batch": "1:1:8", "sequence": "1:20:20"}]


@on_linux
def test_inspect_shows_the_kernels_and_sets_two_engines_side_by_side(engines: dict[str, Path]) -> None:
    found = press("inspect", engines["fp16"], "--device", "rtx-4090")
    assert found.exit_code == 0, found.output
    assert "layer 0 attention" in found.output
    assert "estimated for GeForce RTX 4090 from its datasheet, not measured" in found.output
    found = press("inspect", engines["fp32"], "--compare", engines["fp16"], "--json")
    document = json.loads(found.output)
    [comparison] = document["comparisons"]
    total = comparison["rows"][-1]
    assert total["part"] == "total"
    assert total["kernels"][0] >= total["kernels"][1] > 0
    assert total["bytes"][0] > total["bytes"][1] > 0
    assert document["estimated_seconds"] == [], "for no device"


@on_linux
def test_a_foreign_graph_is_fused_first(tmp_path: Path) -> None:
    report = build(GRAPH, tmp_path / "out.engine", target="tensorrt-rtx", device="rtx-4090")
    assert (report.precision, report.lowering) == ("fp32", "native")
    assert "has no plugins" in report.reason
    record = read_record(tmp_path / "out.engine")
    assert record.device == "rtx-4090"
    assert record.options.sms == (89,)
    assert report.kernels == [len(schedule.kernels) for schedule in record.schedules]
    assert len(report.kernels) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.engine", "out.engine.json"]


@on_linux
def test_without_a_gpu_the_fastest_form_is_the_one_with_the_least_estimate(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_base, "why_no_cuda", lambda: "there is no GPU")
    source, out = exported / "model" / "fp16.onnx", tmp_path / "out.engine"
    report = build(source, out, target="tensorrt-rtx", device="rtx-4090", lowering="fastest")
    place, estimates = devices.find_device("rtx-4090"), {}
    for lowering in ("native", "portable"):
        build(source, tmp_path / lowering, target="tensorrt-rtx", device="rtx-4090", lowering=lowering)
        [schedule] = read_record(tmp_path / lowering).schedules
        estimates[lowering] = devices.estimate_on(place, schedule).estimated_seconds
    assert report.lowering == min(estimates, key=lambda name: estimates[name])
    told = ", ".join(f"{name} {1e6 * seconds:.0f} us" for name, seconds in estimates.items())
    assert report.reason == f"the least of the estimates for GeForce RTX 4090: {told}; not timed: there is no GPU"
    assert read_record(out).reason == report.reason
    assert read_record(out).lowering == read_record(tmp_path / report.lowering).lowering == report.lowering


def test_the_onnxruntime_target_is_built_too(exported: Path, tmp_path: Path) -> None:
    report = build(exported / "model" / "fp32.onnx", tmp_path / "out.onnx", target="onnxruntime")
    assert (report.lowering, report.kernels) == ("onnxruntime", [])
    options = make_options(sms=(89,))
    with pytest.raises(UserError, match="onnxruntime has no options to build with; got sms"):
        build(exported / "model" / "fp32.onnx", tmp_path / "b.onnx", target="onnxruntime", options=options)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_precision_is_that_of_the_weights(exported: Path, precision: str) -> None:
    assert precision_of(load_onnx(exported / "model" / f"{precision}.onnx")) == precision
    assert precision_of(load_onnx(exported / "model" / "int8.onnx")) == "int8"


@on_linux
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h200"}, "TensorRT-RTX builds no engines for NVIDIA H200 SXM.*Use --target tensorrt"),
        ({"device": "rtx4090"}, "Unknown device 'rtx4090'. Did you mean rtx-4090"),
        ({"lowering": "best"}, "Unknown lowering 'best'; expected fastest, portable"),
        ({"lowering": "fastest"}, "cannot time engines here: .* estimates for a device: name it with --device"),
        ({"lowering": "fastest", "target": "onnxruntime", "out": "x.onnx"}, "fastest is for TensorRT .* has one form"),
        ({"lowering": "plugin"}, r"tensorrt-rtx 1[.\d]+ takes no graphs lowered to plugin; expected fastest, native"),
        ({"device": "rtx-4090", "target": "onnxruntime"}, "onnxruntime runs on CPUs: leave --device out"),
        ({"target": "onnxruntime"}, r"What onnxruntime runs is named \*.onnx; got .*out.engine"),
        ({"target": "tpu"}, "Unknown target 'tpu'"),
        ({"source": "missing.onnx"}, "neither a folder nor a file at missing.onnx"),
    ],
)
def test_what_cannot_be_built_is_told_and_nothing_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build(**{"source": GRAPH, "out": tmp_path / "out.engine", "target": "tensorrt-rtx"} | options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@on_linux
def test_dynamic_int8_is_told_what_to_do(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"is in dynamic int8, which TensorRT does not take: export with .*--calibration"
    ):
        build(exported / "model" / "int8.onnx", tmp_path / "out.engine", target="tensorrt-rtx")


def test_without_tensorrt_the_way_to_install_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"tensorrt is not installed: pip install 'rotary-press\[tensorrt\]'"):
        build(GRAPH, tmp_path / "out.engine", target="tensorrt")


def test_profiles_of_the_command_line_and_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "profiles.json"
    file.write_text('[{"sequence": [1, 2, 3]}]', encoding="utf-8")
    options = make_options(profiles=["batch=1:2:4, sequence=1:8:16", "sequence=1:1:1"], profile_file=file)
    told = [{axis: str(of) for axis, of in profile.items()} for profile in options.profiles]
    assert told == [{"sequence": "1:2:3"}, {"batch": "1:2:4", "sequence": "1:8:16"}, {"sequence": "1:1:1"}]
    file.write_text('{"sequence": [1, 2, 3]}', encoding="utf-8")
    assert len(make_options(profile_file=file).profiles) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profiles": ["sequence=1:2"]}, r"'sequence=1:2' is no profile: expected AXIS=MIN:OPT:MAX"),
        ({"profiles": ["sequence"]}, "is no profile"),
        ({"profiles": ["sequence=a:b:c"]}, "is no profile"),
        ({"profiles": ["sequence=3:2:1"]}, "expected min <= opt <= max; got 3:2:1"),
        ({"optimization_level": 9}, "optimization_level: .*less than or equal to 5; got 9"),
        ({"workspace_mb": 0}, "workspace_mb: .*greater than 0"),
        ({"hardware_compatible": "turing"}, "hardware_compatible: .*'ampere-plus'"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_options(**options)


@pytest.mark.parametrize("content", ["", "[1]", '{"sequence": 4}', '{"sequence": [1, 2]}', "\0"])
def test_a_file_that_holds_no_profiles(content: str, tmp_path: Path) -> None:
    (tmp_path / "profiles.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"profiles.json is no file of profiles: expected \{\"sequence\": \[1, 128, 512\]\}"
    ):
        make_options(profile_file=tmp_path / "profiles.json")


def test_engines_alone_are_compared(exported: Path) -> None:
    found = press("inspect", exported, "--device", "rtx-4090")
    assert found.exit_code == 2
    assert "--compare and --device are for engines" in found.output
