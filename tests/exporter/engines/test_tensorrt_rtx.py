"""TensorRT-RTX for real: every task is built, on a machine without a GPU."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from typer.testing import CliRunner

from exporter.cli import app
from exporter.engines import BuildOptions, Range, get_engine, tensorrt_base
from exporter.engines.tensorrt_base import BuildRecord, Phases, TensorRTBase, profiles_of, read_record
from exporter.engines.tensorrt_rtx import TensorRTRTX
from exporter.errors import BundleError, CompileError, UnavailableError, UserError
from exporter.files import sha256
from exporter.onnx_files import save_onnx
from graph_passes import pipeline
from graph_passes.graph_tools import import_model
from tests import on_models
from tests.traced_models import MODELS, fuse_model, trace_model

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="TensorRT-RTX is installed there alone"
)
OPTIONS = BuildOptions(sms=(89,), max_tokens=20)


@pytest.fixture(scope="module")
def fused() -> Callable[[str], Any]:
    """``fused(name)``: the fused graph of a model."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            made[name] = import_model(fuse_model(name)[0])
        return made[name]

    return make


def build(graph: Any, destination: Path, options: BuildOptions = OPTIONS) -> BuildRecord:
    lowered, _ = pipeline.lower(graph, "native")
    model = destination.with_suffix(".onnx")
    save_onnx(lowered, model)
    get_engine("tensorrt-rtx").build(model, destination, options)
    return read_record(destination)


@pytest.mark.parametrize("precision", pipeline.PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_task_is_built(
    fused: Callable[[str], Any], name: str, precision: pipeline.Precision, tmp_path: Path
) -> None:
    ranges = on_models.ranges_of(fuse_model(name)[0]) if precision == "int8" else None
    graph, _ = pipeline.change_precision(fused(name), precision, ranges=ranges)
    destination = tmp_path / "out.engine"
    record = build(graph, destination)
    assert record.size_bytes == destination.stat().st_size > 10_000
    assert record.sha256 == hashlib.sha256(destination.read_bytes()).hexdigest()
    axes = {axis for spec in trace_model(name).interface.inputs for axis in spec.axes if isinstance(axis, str)}
    assert all(set(ranges) == axes for ranges in record.profiles)
    assert len(record.profiles) == (2 if "past" in axes else 1)
    assert len(record.schedules) == len(record.profiles)
    assert all(len(schedule.kernels) > 5 for schedule in record.schedules)
    assert not any(schedule.waits for schedule in record.schedules)
    products = [{product.node for product in schedule.products} for schedule in record.schedules]
    assert all(of == products[0] for of in products), "each profile computes the whole model"
    names = [kernel.name for schedule in record.schedules for kernel in schedule.kernels]
    assert len(set(names)) == len(names), "with kernels of its own"
    unsized = [name for schedule in record.schedules for name in schedule.unsized]
    assert all("_myl" in name for name in unsized), "the model's own inputs and outputs are sized, caches too"
    get_engine("tensorrt-rtx").check(destination)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def engine_file(fused: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small engine. Read it only."""
    path = tmp_path_factory.mktemp("engine") / "out.engine"
    build(fused("roformer-text-classification"), path)
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plan: plan[: len(plan) // 2], "is not what was built"),
        (lambda plan: b"x" + plan[1:], "is not what was built"),
    ],
)
def test_what_was_altered_is_told(
    engine_file: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    altered = tmp_path / "out.engine"
    altered.write_bytes(damage(engine_file.read_bytes()))
    (tmp_path / "out.engine.json").write_bytes(engine_file.with_name("out.engine.json").read_bytes())
    with pytest.raises(BundleError, match=message):
        TensorRTRTX().check(altered)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"\x89PNG" * 100])
def test_what_is_no_engine_is_told_by_its_header(tmp_path: Path, content: bytes) -> None:
    """Nothing was written down of it, so the runtime is asked."""
    path = tmp_path / "foreign.engine"
    path.write_bytes(content)
    with pytest.raises(
        BundleError, match=r"foreign.engine is no engine for tensorrt-rtx .*it is damaged, or no engine"
    ):
        TensorRTRTX().check(path)


def test_an_engine_without_its_record_passes_by_its_header(engine_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.engine"
    path.write_bytes(engine_file.read_bytes())
    TensorRTRTX().check(path)


def test_an_engine_of_another_target_is_told(engine_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.engine"
    path.write_bytes(engine_file.read_bytes())
    record = read_record(engine_file).model_copy(update={"target": "tensorrt"})
    path.with_name("out.engine.json").write_text(record.model_dump_json(), encoding="utf-8")
    with pytest.raises(BundleError, match="was built for tensorrt, not for tensorrt-rtx"):
        TensorRTRTX().check(path)


def test_without_a_gpu_nothing_runs_and_the_reason_is_told(engine_file: Path) -> None:
    if TensorRTRTX().cannot_run() is None:
        pytest.skip("here is a GPU")
    with pytest.raises(UnavailableError, match=r"tensorrt-rtx cannot run here: "):
        TensorRTRTX().load(engine_file)


def model_of(node: onnx.NodeProto, *, domain: str = "") -> onnx.ModelProto:
    """One node on x, (batch, 4) float32."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=10)


def test_an_op_that_the_parser_does_not_know_is_named(tmp_path: Path) -> None:
    onnx.save(model_of(helper.make_node("Unheard", ["x"], ["y"], "odd", domain="of"), domain="of"), tmp_path / "m.onnx")
    message = r"cannot read m.onnx: odd \(Unheard\) of x \('batch', 4\): .*Another lowering may do"
    with pytest.raises(CompileError, match=message):
        TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


def test_a_dynamic_axis_without_a_name_is_told(tmp_path: Path) -> None:
    model = model_of(helper.make_node("Neg", ["x"], ["y"]))
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"Axis 0 of the input x is dynamic and has no name"):
        TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sms": (90,)}, r"builds nothing for SM 90; it knows 75, 80, 86, 89, 120, 121"),
        ({"timing_cache": "cache"}, "tensorrt-rtx has no option timing_cache: it measures no kernels"),
        ({"version_compatible": True}, "has no option version_compatible"),
        ({"hardware_compatible": "ampere-plus"}, "has no option hardware_compatible"),
    ],
)
def test_what_it_does_not_have_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    onnx.save(model_of(helper.make_node("Neg", ["x"], ["y"])), tmp_path / "m.onnx")
    with pytest.raises(UserError, match=message):
        TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine", BuildOptions.model_validate(options))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_weights_are_left_out_only_where_there_is_a_gpu(tmp_path: Path) -> None:
    """Seen with 1.7.1: without one, the builder fails on every graph that is to be refitted."""
    if TensorRTRTX().cannot_run() is None:
        pytest.skip("here is a GPU")
    onnx.save(model_of(helper.make_node("Neg", ["x"], ["y"])), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="leaves weights out only where it finds a GPU"):
        TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine", BuildOptions(strip_weights=True))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_graph_is_kept_beside_an_engine_without_weights(engine_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("out.onnx", "out.onnx.data"):
        (tmp_path / "in" / name).write_text(name, encoding="utf-8")
    plan = tmp_path / "out.engine"
    plan.write_bytes(engine_file.read_bytes())
    kept = tensorrt_base._keep(tmp_path / "in" / "out.onnx", plan)
    assert kept == tmp_path / "out.onnx"
    assert (tmp_path / "out.onnx.data").read_text(encoding="utf-8") == "out.onnx.data"
    record = read_record(engine_file).model_copy(update={"weights_sha256": sha256(kept)})
    plan.with_name("out.engine.json").write_text(record.model_dump_json(), encoding="utf-8")
    TensorRTRTX().check(plan)
    kept.write_text("another", encoding="utf-8")
    with pytest.raises(
        BundleError, match=r"was built without its weights, and out.onnx beside it is missing or another"
    ):
        TensorRTRTX().check(plan)


def test_ctrl_c_stops_the_build_and_leaves_nothing(
    fused: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "is_alive", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        build(fused("roformer-text-classification"), tmp_path / "out.engine")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_a_log_that_cannot_be_read_does_not_fail_the_build(
    fused: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_log: list[str], **_of: object) -> None:
        raise CompileError("the log has another form")

    monkeypatch.setattr("exporter.engines.tensorrt_rtx.read_schedule", refuse)
    record = build(fused("roformer-text-classification"), tmp_path / "out.engine")
    assert record.schedules == []
    assert record.warnings[-1] == "the log has another form"
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "out.engine")])
    assert result.exit_code == 0, result.output
    assert "its kernels are not known" in result.output


def test_progress_is_told(fused: Callable[[str], Any], tmp_path: Path) -> None:
    lowered, _ = pipeline.lower(fused("roformer-text-classification"), "native")
    save_onnx(lowered, tmp_path / "m.onnx")
    told: list[tuple[str, float | None]] = []
    TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine", OPTIONS, lambda *of: told.append(of))
    assert {stage for stage, _ in told} == {"building engine"}
    shares = [done for _, done in told if done is not None]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1], len(told)) == (0, 1, len(shares))
    assert len(set(shares)) > 20, "steps within steps count"


def test_progress_that_fails_stops_the_build_and_is_raised(fused: Callable[[str], Any], tmp_path: Path) -> None:
    """Raised into the builder, it would abort the process."""
    lowered, _ = pipeline.lower(fused("roformer-text-classification"), "native")
    save_onnx(lowered, tmp_path / "m.onnx")
    told: list[str] = []

    def fail(stage: str, _done: float | None = None) -> None:
        told.append(stage)
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError, match="nobody listens"):
        TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine", OPTIONS, fail)
    assert len(told) < 20, "the builder is told to stop"
    assert not list(tmp_path.glob("m.engine*"))


def test_a_phase_takes_half_of_what_is_left_of_a_step() -> None:
    phases = Phases()
    shares = []
    changes: tuple[Callable[[], None], ...] = (
        lambda: phases.start("whole", None, 2),
        lambda: phases.start("first", "whole", 4),
        lambda: phases.step("first", 0),
        lambda: phases.step("first", 3),
        lambda: phases.finish("first"),
        lambda: phases.start("second", "whole", 1),
        lambda: phases.start("deep", "second", 0),
        lambda: phases.finish("deep"),
        lambda: phases.step("whole", 0),
        lambda: phases.finish("second"),
        lambda: phases.finish("whole"),
        lambda: phases.start("next", None, 1),
    )
    for change in changes:
        change()
        shares.append(phases.done)
    assert shares == [0, 0, 0.0625, 0.25, 0.25, 0.25, 0.25, 0.3125, 0.5, 0.5, 1, 0]


names = st.sampled_from("abcd")
steps = st.integers(-1, 5)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), names, st.one_of(names, st.just("root")), steps),
        st.tuples(st.just("step"), st.one_of(names, st.just("root")), steps),
        st.tuples(st.just("finish"), names),
    )
)


@given(EVENTS)
def test_whatever_a_builder_says_the_share_goes_up_alone(events: list[tuple[Any, ...]]) -> None:
    phases = Phases()
    phases.start("root", None, 3)
    shares = [phases.done]
    for what, *of in events:
        getattr(phases, what)(*of)
        shares.append(phases.done)
    phases.finish("root")
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= phases.done == 1


# Runs the command line with `headroom` MiB of address space left for the build.
LIMITED = """
import resource, sys
from exporter import building
from exporter.cli import main
from exporter.engines.tensorrt_rtx import TensorRTRTX

headroom, *sys.argv[1:] = sys.argv[1:]
TensorRTRTX().trt
build = TensorRTRTX.build

def limited(*arguments):
    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (int(headroom) << 20),) * 2)
    build(*arguments)

TensorRTRTX.build = limited
main()
"""


def test_too_little_memory_for_the_build_is_one_message(tmp_path: Path) -> None:
    """Without the first look at what there is, TensorRT-RTX 1.7.1 ends the process at the lower limit."""
    onnx.save(model_of(helper.make_node("Neg", ["x"], ["y"])), tmp_path / "m.onnx")
    arguments = [
        "build",
        str(tmp_path / "m.onnx"),
        str(tmp_path / "m.engine"),
        "--target",
        "tensorrt-rtx",
        "--sm",
        "89",
    ]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "50", *arguments], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 2, done.stderr
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: tensorrt_rtx ")
    assert "ran out of memory while building" in last
    assert "Cannot allocate memory" in last
    assert not [line for line in before if "Traceback" in line or "error" in line.lower()]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


OUT_OF_MEMORY = "Error Code 2: OutOfMemory (Requested size was 496137727 bytes.)"  # by TensorRT-RTX 1.7.1


@pytest.mark.parametrize("is_raised", [True, False])
def test_a_builder_that_runs_out_of_memory_is_told_so(is_raised: bool) -> None:
    """Whether it raises, in a thread where nobody hears of it, or tells and gives nothing."""
    trt = TensorRTRTX().trt
    log = tensorrt_base._log(trt)

    def fail(*_arguments: object) -> None:
        if is_raised:
            raise MemoryError("std::bad_alloc")
        log.log(trt.ILogger.Severity.ERROR, OUT_OF_MEMORY)
        log.log(trt.ILogger.Severity.ERROR, "no engine")

    said = re.escape("MemoryError('std::bad_alloc')" if is_raised else OUT_OF_MEMORY.rstrip("."))
    with pytest.raises(UserError, match=rf"ran out of memory while building \({said}\): give axes smaller maxima"):
        tensorrt_base._built(
            trt, SimpleNamespace(build_serialized_network=fail), None, SimpleNamespace(), log, lambda *_of: None
        )


@pytest.mark.parametrize("profiles", [1, 2])
def test_what_is_held_against_the_memory_is_less_than_the_builder_takes(
    fused: Callable[[str], Any], profiles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one profile and of two: the builder tells what it takes for weights once, and for the rest by profile."""
    told: list[str] = []
    schedules = TensorRTRTX.schedules

    def listen(self: TensorRTRTX, log: list[str], profiles: Any, bound: Any) -> Any:
        told[:] = log
        return schedules(self, log, profiles, bound)

    monkeypatch.setattr(TensorRTRTX, "schedules", listen)
    batches = Range(min=1, opt=1, max=2048), Range(min=1, opt=1, max=16)
    wide = OPTIONS.model_copy(update={"profiles": tuple({"batch": of} for of in batches[:profiles])})
    graph = fused("roformer-text-classification")
    build(graph, tmp_path / "out.engine", wide)
    text = "\n".join(told)
    taken = [int(found) for found in re.findall(r"Total Activation Memory: (\d+) bytes", text)]
    weights = [int(found) for found in re.findall(r"Total Weights Memory: (\d+) bytes", text)]
    assert (len(taken), len(weights)) == (profiles, 1)
    whole = max(taken) + weights[0]
    build(graph, tmp_path / "out.engine", wide.model_copy(update={"memory_bytes": whole}))
    with pytest.raises(UserError, match="The engine needs at least"):
        build(graph, tmp_path / "less.engine", wide.model_copy(update={"memory_bytes": whole // 2}))
    assert not list(tmp_path.glob("less.engine*"))


def test_a_profile_that_is_too_large_for_the_device_is_refused(tmp_path: Path) -> None:
    """Memory is given to such tensors when the engine runs, so that the builder itself does not count them."""
    from exporter import build as build_engine

    source = Path(__file__).parents[2] / "golden" / "optimum-roformer-feature-extraction.onnx"
    ranges = {"batch_size": Range(min=1, opt=1, max=100_000), "sequence_length": Range(min=1, opt=128, max=512)}
    options = BuildOptions(profiles=(ranges,))
    with pytest.raises(
        UserError, match=r"at batch_size 100000, sequence_length 512: .* the device has 24\.0 GiB"
    ) as caught:
        build_engine(source, tmp_path / "m.engine", target="tensorrt-rtx", device="rtx-4090", options=options)
    assert 700 < float(str(caught.value).split()[5]) < 900, "one layer's scores and their softmax: 781 GiB"
    assert not list(tmp_path.iterdir())


def test_a_missing_module_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("exporter.engines.tensorrt_base.find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match=r"tensorrt_rtx is not installed: pip install 'rotary-press\[rtx\]'"):
        TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine")


def told(profiles: list[dict[str, Range]]) -> list[dict[str, str]]:
    return [{axis: str(of) for axis, of in ranges.items()} for ranges in profiles]


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(None, "1:128:512"), (2000, "1:128:2000"), (20, "1:20:20"), (1, "1:1:1")]
)
def test_usual_ranges_fit_the_models_positions(max_tokens: int | None, expected: str) -> None:
    found = profiles_of(("batch", "sequence"), BuildOptions(max_tokens=max_tokens))
    assert told(found) == [{"batch": "1:1:8", "sequence": expected}]


@pytest.mark.parametrize(
    ("max_tokens", "prompt", "step"),
    [(20, ("0:0:0", "1:20:20", "1:20:20"), ("1:19:19", "1:1:1", "2:20:20")), (1, ("0:0:0", "1:1:1", "1:1:1"), None)],
)
def test_a_cache_has_a_profile_for_the_prompt_and_one_for_each_step(
    max_tokens: int, prompt: tuple[str, ...], step: tuple[str, ...] | None
) -> None:
    """Sums are sums at every bound: the builder checks that."""
    axes = ("past", "sequence", "past + sequence")
    found = told(profiles_of(axes, BuildOptions(max_tokens=max_tokens)))
    assert found == [dict(zip(axes, ranges, strict=True)) for ranges in (prompt, step) if ranges]


def test_profiles_that_are_asked_for() -> None:
    wide, narrow = {"sequence": Range(min=1, opt=8, max=16)}, {"sequence": Range(min=1, opt=1, max=1)}
    options = BuildOptions(profiles=(wide, narrow), max_tokens=16)
    found = told(profiles_of(("batch", "sequence"), options))
    assert [ranges["sequence"] for ranges in found] == ["1:8:16", "1:1:1"]
    with pytest.raises(UserError, match=r"allows 16 tokens, past ones included, but the model has 15 positions"):
        profiles_of(("batch", "sequence"), options.model_copy(update={"max_tokens": 15}))
    longest = {"past": Range(min=0, opt=0, max=2**30), "sequence": Range(min=1, opt=1, max=2**30)}
    with pytest.raises(UserError, match=r"allows 2147483648 for the axis past \+ sequence, .* 2147483647 at most: ask"):
        profiles_of(("past + sequence",), BuildOptions(profiles=(longest,)))
    with pytest.raises(UserError, match=r"how large the axis pixels may be: give it as --profile pixels=MIN:OPT:MAX"):
        profiles_of(("pixels",), BuildOptions())
    with pytest.raises(UserError, match=r"The graph has no axis sequence; it has batch"):
        profiles_of(("batch",), options)


def test_both_products_share_one_builder() -> None:
    assert issubclass(TensorRTRTX, TensorRTBase)
    assert isinstance(get_engine("tensorrt"), TensorRTBase)
