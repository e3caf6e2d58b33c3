"""What only TensorRT has, against its own enumerations; what it shares is tested where TensorRT-RTX builds for real."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.engines import BuildOptions, get_engine
from exporter.engines.tensorrt import TensorRT
from exporter.engines.tensorrt_base import parse
from exporter.errors import UnavailableError, UserError
from tests.with_tensorrt import run_with_tensorrt

INSIDE = """
import json, sys
import tensorrt as trt
from exporter.engines.tensorrt import TensorRT
from exporter.engines.tensorrt_base import _log, _monitor

told = []
log, monitor = _log(trt), _monitor(trt, lambda *of: told.append(of))
log.log(trt.ILogger.Severity.WARNING, "careful")
log.log(trt.ILogger.Severity.INTERNAL_ERROR, "broken")
monitor.phase_start("Building", None, 2)
monitor.phase_start("Thinking", "Building", 1)
going_on = monitor.step_complete("Thinking", 0)
monitor.phase_finish("Thinking")
monitor.step_complete("Building", 0)
monitor.is_cancelled = True
names = {
    "IBuilderConfig": dir(trt.IBuilderConfig),
    "IOptimizationProfile": dir(trt.IOptimizationProfile),
    "INetworkDefinition": dir(trt.INetworkDefinition),
    "ITensor": dir(trt.ITensor),
    "OnnxParser": dir(trt.OnnxParser),
    "ParserError": dir(trt.ParserError),
    "ITimingCache": dir(trt.ITimingCache),
    "IExecutionContext": dir(trt.IExecutionContext),
    "ICudaEngine": dir(trt.ICudaEngine),
    "Runtime": dir(trt.Runtime),
    "Refitter": dir(trt.Refitter),
    "OnnxParserRefitter": dir(trt.OnnxParserRefitter),
    "Builder": dir(trt.Builder),
    "BuilderFlag": list(trt.BuilderFlag.__members__),
    "MemoryPoolType": list(trt.MemoryPoolType.__members__),
    "ProfilingVerbosity": list(trt.ProfilingVerbosity.__members__),
    "HardwareCompatibilityLevel": list(trt.HardwareCompatibilityLevel.__members__),
    "Severity": list(trt.ILogger.Severity.__members__),
}
engine = TensorRT()
json.dump({
    "names": names, "version": engine.version, "available": engine.is_available(), "told": told,
    "flags": engine.network_flags(trt), "going_on": [going_on, monitor.step_complete("Thinking", 1)],
    "warnings": log.at(trt.ILogger.Severity.WARNING), "errors": log.at(trt.ILogger.Severity.ERROR),
    "lowerings": engine.lowerings(),
}, open(sys.argv[1], "w"))
"""
USED = {
    "IBuilderConfig": [
        *("add_optimization_profile", "builder_optimization_level", "clear_flag", "create_timing_cache"),
        *("get_timing_cache", "hardware_compatibility_level", "profiling_verbosity", "progress_monitor", "set_flag"),
        *("set_memory_pool_limit", "set_timing_cache"),
    ],
    "IOptimizationProfile": ["set_shape"],
    "INetworkDefinition": ["get_input", "num_inputs"],
    "ITensor": ["get_dimension_name", "name", "shape"],
    "OnnxParser": ["get_error", "num_errors", "parse_from_file"],
    "ParserError": ["desc", "node_name", "node_operator"],
    "ITimingCache": ["serialize"],
    "IExecutionContext": [
        *("execute_async_v3", "infer_shapes", "set_device_memory", "set_input_shape", "set_tensor_address"),
        "set_optimization_profile_async",
    ],
    "ICudaEngine": ["device_memory_size_v2", "get_tensor_profile_shape", "num_optimization_profiles"],
    "Refitter": ["refit_cuda_engine"],
    "OnnxParserRefitter": ["refit_from_file"],
    "Runtime": ["deserialize_cuda_engine", "engine_host_code_allowed"],
    "Builder": ["build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile"],
    "BuilderFlag": ["REFIT_IDENTICAL", "STRIP_PLAN", "TF32", "VERSION_COMPATIBLE"],
    "MemoryPoolType": ["WORKSPACE"],
    "ProfilingVerbosity": ["DETAILED"],
    "HardwareCompatibilityLevel": ["AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"],
    "Severity": ["ERROR", "INTERNAL_ERROR", "VERBOSE", "WARNING"],
}


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tensorrt")
    (folder / "inside.py").write_text(INSIDE, encoding="utf-8")
    run_with_tensorrt(folder, folder / "inside.py", folder / "found.json")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("of", USED)
def test_tensorrt_has_every_name_that_is_used(inside: dict[str, Any], of: str) -> None:
    assert set(USED[of]) <= set(inside["names"][of])


def test_its_release_is_read_and_takes_plugins(inside: dict[str, Any]) -> None:
    assert inside["version"][0] == 11
    assert inside["lowerings"] == ["native", "portable", "plugin"]
    assert isinstance(inside["flags"], int)


def test_without_a_gpu_it_is_not_usable_and_says_so(inside: dict[str, Any]) -> None:
    if get_engine("tensorrt-rtx").cannot_run() is None:
        pytest.skip("here is a GPU")
    assert "driver" in inside["available"] or "GPU" in inside["available"]


def test_its_logger_and_its_progress_monitor_are_derived_from(inside: dict[str, Any]) -> None:
    assert (inside["warnings"], inside["errors"]) == (["careful"], ["broken"])
    assert {stage for stage, _ in inside["told"]} == {"building"}
    assert [done for _, done in inside["told"]] == [0, 0, 0.25, 0.25, 0.5, 0.5]
    assert inside["going_on"] == [True, False]


# In place of the module: as many enumerations as `configure` reads, by the names that the real one has.
TRT = SimpleNamespace(
    __version__="11.4.0",
    BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="version compatible"),
    HardwareCompatibilityLevel=SimpleNamespace(
        __members__={"AMPERE_PLUS": "ampere plus", "SAME_COMPUTE_CAPABILITY": "same compute capability"}
    ),
)


class Config:
    """Remembers what is set."""

    def __init__(self, *, takes_cache: bool = True) -> None:
        self.flags: list[str] = []
        self.hardware_compatibility_level = ""
        self.takes_cache = takes_cache
        self.stored: bytes | None = None

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def create_timing_cache(self, stored: bytes) -> bytes | None:
        return stored if self.takes_cache else None

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.stored = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"measured")


def test_compatibility_is_asked_for() -> None:
    config = Config()
    TensorRT().configure(TRT, config, BuildOptions(version_compatible=True, hardware_compatible="ampere-plus"))
    assert (config.flags, config.hardware_compatibility_level) == (["version compatible"], "ampere plus")
    TensorRT().configure(TRT, config := Config(), BuildOptions())
    assert (config.flags, config.hardware_compatibility_level, config.stored) == ([], "", None)


def test_a_timing_cache_is_read_and_written(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    options = BuildOptions(timing_cache=file)
    TensorRT().configure(TRT, config := Config(), options)
    assert config.stored == b""
    TensorRT().after(config, options)
    TensorRT().configure(TRT, config := Config(), options)
    assert config.stored == file.read_bytes() == b"measured"
    with pytest.raises(UserError, match=r"is no timing cache of TensorRT 11.4.0: delete it"):
        TensorRT().configure(TRT, Config(takes_cache=False), options)


def test_what_it_cannot_is_refused() -> None:
    with pytest.raises(UserError, match="tensorrt builds for the GPU that it runs on: leave --sm out"):
        TensorRT().configure(TRT, Config(), BuildOptions(sms=(89,)))
    old = SimpleNamespace(__version__="10.3.0", HardwareCompatibilityLevel=SimpleNamespace(__members__={}))
    with pytest.raises(UserError, match=r"TensorRT 10.3.0 has no hardware compatibility same-compute-capability"):
        TensorRT().configure(old, Config(), BuildOptions(hardware_compatible="same-compute-capability"))


def test_a_release_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = SimpleNamespace(__version__="8.6.1")
    monkeypatch.setattr("exporter.engines.tensorrt_base.find_spec", lambda _name: object())
    monkeypatch.setattr("exporter.engines.tensorrt_base.import_module", lambda _name: module)
    with pytest.raises(UnavailableError, match=r"tensorrt 8.6.1 is too old: 10.3 is the first that will do"):
        TensorRT().build(tmp_path / "m.onnx", tmp_path / "m.engine")


@pytest.mark.parametrize(
    "said", ["std::bad_alloc", "Error Code 1: Cuda Runtime (out of memory)", "OutOfMemory (5 bytes)"]
)
def test_a_parser_that_runs_out_of_memory_is_told_so(said: str, tmp_path: Path) -> None:
    """Seen with TensorRT-RTX: it names no node, and the graph is not to be read once more."""
    error = SimpleNamespace(node_name=str, node_operator=str, desc=lambda: said)
    parser = SimpleNamespace(parse_from_file=lambda _path: False, num_errors=1, get_error=lambda _index: error)
    module = SimpleNamespace(__name__="tensorrt", __version__="11.4.0", OnnxParser=lambda _network, _log: parser)
    with pytest.raises(UserError, match=r"^tensorrt 11.4.0 ran out of memory while reading m.onnx \(.*--workspace-mb"):
        parse(module, None, tmp_path / "m.onnx", None)
