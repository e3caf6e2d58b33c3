"""``--lowering fastest`` on a GPU: engines of known times on a fake one, where loading and running are real."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from exporter import bench, fastest
from exporter.building import build, make_options
from exporter.engines import BuildOptions, cuda, devices, get_engine, tensorrt_base
from exporter.engines.cuda import Gpu
from exporter.engines.tensorrt_base import BuildRecord, TensorRTBase, profiles_of, read_record
from exporter.errors import CompileError, UserError
from exporter.fastest import gpu_to_time_on, made_up_cases
from exporter.files import sha256
from exporter.fusing import fuse
from exporter.onnx_files import load_onnx
from graph_passes import pipeline
from plugins import tensorrt_plugins
from plugins.compile import KernelError
from tests.exporter.engines.fake_cuda import FakeGpu, FakeModel, FakeRuntime, FakeTrt

FORMS = ("native", "portable", "plugin")
# What FakeModel computes.
GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
model (int64[batch, sequence] ids, float[batch, past, 2] past, int64[batch, sequence] mask)
    => (float[batch, sequence] logits, float[batch, total, 2] present) {
    product = Mul(ids, mask)
    numbers = Cast<to=1>(product)
    inner = Constant<value_ints=[1, 2]>()
    sum = ReduceSum<keepdims=0>(past, inner)
    second = Constant<value_ints=[1]>()
    column = Unsqueeze(sum, second)
    logits = Add(numbers, column)
    last = Constant<value_ints=[-1]>()
    left = Unsqueeze(ids, last)
    right = Unsqueeze(mask, last)
    pairs = Concat<axis=-1>(left, right)
    new = Cast<to=1>(pairs)
    present = Concat<axis=1>(past, new)
}
"""
PROMPT_AND_STEP = FakeModel(least=(1, 1, 0), most=(8, 512, 0), more=(((1, 1, 1), (8, 1, 511)),))
AT = "batch=1, sequence=128, past=0 and batch=1, sequence=1, past=128"


@dataclass
class Machine:
    """A GPU and TensorRT. ``engines`` run as their models say; ``refusals`` are raised instead of building a form."""

    gpu: FakeGpu
    trt: FakeTrt
    engines: dict[bytes, FakeModel]
    refusals: dict[str, Exception] = field(default_factory=dict)
    built: list[str] = field(default_factory=list)

    def takes(self, **microseconds: float) -> None:
        """Twice each, at both profiles."""
        for form, time in microseconds.items():
            self.engines[form.encode()] = replace(PROMPT_AND_STEP, seconds=time / 2e6)

    def build(
        self, engine: TensorRTBase, lowered: Path, destination: Path, options: BuildOptions, _progress: object
    ) -> None:
        """In place of a builder: the engine is the name of its form."""
        model = onnx.load(lowered)
        history = pipeline.passes_run_on(model)
        form = next((form for form in ("native", "plugin") if f"lower_to_{form}" in history), "portable")
        self.built.append(form)
        if form in self.refusals:
            raise self.refusals[form]
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(form.encode())
        if options.strip_weights:
            destination.with_suffix(".onnx").write_bytes(lowered.read_bytes())
        axes = [axis.dim_param for tensor in model.graph.input for axis in tensor.type.tensor_type.shape.dim]
        profiles = profiles_of(dict.fromkeys(filter(None, axes)), options)
        record = BuildRecord(
            target=engine.target,
            version="11.4.0",
            sha256=sha256(destination),
            weights_sha256=sha256(lowered) if options.strip_weights else None,
            size_bytes=destination.stat().st_size,
            options=options,
            profiles=[{axis: str(of) for axis, of in ranges.items()} for ranges in profiles],
            seconds=1.0,
            warnings=[],
        )
        destination.with_name(f"{destination.name}.json").write_text(record.model_dump_json(), encoding="utf-8")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """All forms take 1000 us."""
    engines: dict[bytes, FakeModel] = {}
    gpu = FakeGpu()
    made = Machine(gpu, FakeTrt(gpu, engines), engines)
    made.takes(native=1000, portable=1000, plugin=1000)

    def cuda_alone(name: str) -> ModuleType:
        if name != "cuda.bindings.runtime":
            raise ModuleNotFoundError(name)
        return FakeRuntime(gpu)

    monkeypatch.setattr(cuda, "import_module", cuda_alone)
    monkeypatch.setattr(tensorrt_base, "find_spec", lambda _name: object())
    monkeypatch.setattr(tensorrt_base, "import_module", lambda _name: made.trt)
    monkeypatch.setattr(TensorRTBase, "build", lambda engine, *arguments: made.build(engine, *arguments))
    monkeypatch.setattr(tensorrt_plugins, "register", lambda _sm: ())
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: gpu.clock, sleep=lambda _seconds: None))
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph, which went through fusion. Read it only."""
    file = tmp_path_factory.mktemp("graph") / "graph.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), file)
    fuse(file, file)
    return file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where engines are to be written."""
    return tmp_path / "out.engine"


def press(source: Path, out: Path, **more: Any) -> tuple[str, str]:
    """The form that is kept, and why; what is written must agree with both."""
    report = build(source, out, **{"target": "tensorrt", "lowering": "fastest"} | more)
    assert out.read_text(encoding="utf-8") == report.lowering
    assert (read_record(out).lowering, read_record(out).reason) == (report.lowering, report.reason)
    assert {path.name for path in out.parent.iterdir()} - {"out.onnx"} == {out.name, f"{out.name}.json"}
    return report.lowering, report.reason


@pytest.mark.parametrize("best", FORMS)
def test_the_engine_that_takes_the_least_time_is_kept(best: str, machine: Machine, source: Path, out: Path) -> None:
    times = dict.fromkeys(FORMS, 812.0) | {best: 790.0}
    machine.takes(**times)
    told = ", ".join(f"{form} {times[form]:.0f} us" for form in FORMS)
    reason = f"the fastest on NVIDIA L4 at {AT}, sums of medians of 30 runs in turns: {told}"
    assert press(source, out) == (best, reason)
    assert machine.built == list(FORMS)
    assert machine.gpu.is_clean, "the losers are closed, and so is the winner"


def test_profiles_of_the_users_own_are_timed(machine: Machine, source: Path, out: Path) -> None:
    machine.engines.update(dict.fromkeys(machine.engines, FakeModel(most=(8, 64, 64), seconds=5e-4)))
    options = make_options(profiles=["batch=1:4:8,sequence=1:32:64,past=0:16:64"])
    _, reason = press(source, out, options=options, device="rtx-4090")
    assert "on NVIDIA L4 at batch=4, sequence=32, past=16, medians of 30 runs in turns: native 500 us, por" in reason


def test_engines_run_in_turns(machine: Machine, source: Path, out: Path) -> None:
    ran: list[bytes] = []

    class Noted(FakeModel):
        name: bytes

        def compute(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
            ran.append(self.name)
            return super().compute(*inputs)

    for name, model in machine.engines.items():
        machine.engines[name] = Noted(model.kind, model.least, model.most, model.more)
        machine.engines[name].name = name  # type: ignore[attr-defined]
    press(source, out)
    timed = ran[-3 * 2 * (fastest.WARM_UP + fastest.ROUNDS) :]
    rounds = {tuple(timed[index : index + 3]) for index in range(0, len(timed), 3)}
    assert all(sorted(turn) == sorted(machine.engines) for turn in rounds)
    assert len(rounds) == 6, "in every order"


def wrong(change: Callable[[NDArray[np.float32], int], NDArray[np.float32]], **facts: Any) -> FakeModel:
    """A quick engine whose logits are changed; the second argument counts its runs."""

    class Wrong(FakeModel):
        runs = 0

        def compute(self, *inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
            self.runs += 1
            found = super().compute(*inputs)
            return found | {"logits": change(found["logits"], self.runs)}

    return Wrong(**vars(PROMPT_AND_STEP) | {"seconds": 1e-6} | facts)


UNLOADABLE = "out.engine cannot be loaded by tensorrt 11.4.0: magicTag is wrong. Build it"
LEFT_OUT: dict[str, tuple[Any, str]] = {
    "NaN": (wrong(lambda logits, _run: logits * np.nan), r"it computes something else .*\(logits: NaN or infinity\)"),
    "other numbers": (wrong(lambda logits, _run: logits * 1.01), r"\(logits: scaled max abs .* > 1e-05; logits: SQNR"),
    "other numbers once it is a graph": (wrong(lambda logits, run: logits + (run > 6)), r"\(logits: scaled max abs"),
    "out of memory": (replace(PROMPT_AND_STEP, scratch=2 << 30), "The GPU has too little memory: 2048.0 MiB"),
    "no engine": (None, UNLOADABLE),
    "other shapes": (FakeModel(), r"ids must have a shape from .*, for which out.engine was built"),
    "not built": (CompileError("tensorrt 11.4.0 cannot build it: no kernels."), "tensorrt 11.4.0 cannot build it: no "),
}


@pytest.mark.parametrize(
    ("form", "fault", "reason"),
    [(FORMS[index % 3], *row) for index, row in enumerate(LEFT_OUT.values())],
    ids=LEFT_OUT,
)
def test_what_is_no_good_is_left_out_with_the_reason(
    form: str, fault: Any, reason: str, machine: Machine, source: Path, out: Path
) -> None:
    others = [other for other in FORMS if other != form]
    machine.takes(**{others[0]: 900})
    if isinstance(fault, FakeModel):
        machine.engines[form.encode()] = fault
    elif fault is None:
        del machine.engines[form.encode()]
    else:
        machine.refusals[form] = fault
    kept, told = press(source, out)
    assert kept == others[0]
    assert f"in turns: {others[0]} 900 us, {others[1]} 1000 us; {form} left out: " in told
    said = told.partition(" left out: ")[2]
    assert re.search(reason, said), said
    assert "/" not in said, "no temporary folder is written down"
    assert not said.endswith(".")
    assert machine.gpu.is_clean


def test_plugins_that_cannot_be_registered_are_left_out(
    machine: Machine, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_sm: int) -> None:
        raise KernelError("Triton is not installed.")

    monkeypatch.setattr(tensorrt_plugins, "register", refuses)
    assert press(source, out)[1].endswith("portable 1000 us; plugin left out: Triton is not installed")


def test_where_none_is_left_all_reasons_are_told(machine: Machine, source: Path, out: Path) -> None:
    machine.refusals["native"] = CompileError("too large.")
    machine.engines[b"portable"] = LEFT_OUT["NaN"][0]
    del machine.engines[b"plugin"]
    with pytest.raises(
        CompileError,
        match=r"^tensorrt makes no usable engine of any form of the graph\. native: too large; portable: it computes .*"
        r"NaN or infinity\); plugin: out\.engine cannot be loaded",
    ):
        press(source, out)
    assert not list(out.parent.iterdir())
    assert machine.gpu.is_clean


def test_what_the_user_must_mend_leaves_nothing_out(machine: Machine, source: Path, out: Path) -> None:
    """A form that is refused for a mistake in the options is no worse than the others."""
    machine.refusals["portable"] = UserError("The graph has no axis chairs.")
    with pytest.raises(UserError, match="has no axis chairs"):
        press(source, out)


def test_weights_that_are_left_out_come_along(
    machine: Machine, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorRTBase, "lowerings", lambda _engine: ("native",))
    press(source, out, options=BuildOptions(strip_weights=True))
    machine.trt.contexts.clear()
    engine_of("tensorrt").load(out).close()
    assert machine.trt.refitted[1:] == [str(out.with_suffix(".onnx"))]


@pytest.mark.parametrize("lowering", [None, "native", "fastest"])
def test_tensorrt_builds_for_no_other_gpu(lowering: str | None, machine: Machine, source: Path, out: Path) -> None:
    with pytest.raises(
        UserError, match=r"and that is NVIDIA L4 \(SM 89\), not NVIDIA H200 SXM \(SM 90\): build on such a device, or w"
    ):
        press(source, out, device="h200", lowering=lowering)
    with pytest.raises(UserError, match=r"not NVIDIA T4 \(SM 75\): build on such a device\.$"):
        press(source, out, device="t4", lowering=lowering, options=BuildOptions(hardware_compatible="ampere-plus"))
    assert not machine.built


def test_what_runs_on_all_later_ones_may_be_for_another(machine: Machine, source: Path, out: Path) -> None:
    options = BuildOptions(hardware_compatible="ampere-plus")
    assert press(source, out, device="h200", lowering="native", options=options) == ("native", "asked for")
    with pytest.raises(
        UserError,
        match=r"cannot time engines here: they are for NVIDIA H200 SXM, SM 90, and the GPU here is NVIDIA L4, SM 89\. "
        r"Nor .* since tensorrt does not tell its kernels\. Choose one with --lowering native or portable or plugin",
    ):
        press(source, out, device="h200", options=options)
    assert machine.built == ["native"]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("device", [None, "l4", "rtx-4090"])
def test_it_is_timed_where_the_gpu_is_what_the_engine_is_for(target: str, device: str | None) -> None:
    place = None if device is None else devices.find_device(device)
    for options in (BuildOptions(), BuildOptions(sms=(86, 89))):
        assert gpu_to_time_on(engine_of(target), place, "fp16", options) == Gpu("NVIDIA L4", 89)


RTX_4090, RTX_3090 = devices.find_device("rtx-4090"), devices.find_device("rtx-3090")
ELSEWHERE: dict[str, tuple[Any, str, BuildOptions, str]] = {
    "another device": (RTX_3090, "fp16", BuildOptions(), "for GeForce RTX 3090, SM 86, and the GPU here is NVIDIA L4"),
    "another SM": (RTX_4090, "fp16", BuildOptions(sms=(86, 120)), "they are for SM 86, 120, and the GPU here is NVID"),
    "no tolerance": (RTX_4090, "bf16", BuildOptions(), "no tolerance for bf16, .*are some for fp32, fp16, int8"),
}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("place", "precision", "options", "reason"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_elsewhere_kernels_are_estimated_or_it_is_refused(
    place: devices.Device, precision: str, options: BuildOptions, reason: str
) -> None:
    found = gpu_to_time_on(engine_of("tensorrt-rtx"), place, precision, options)
    assert isinstance(found, str)
    with pytest.raises(UserError, match=rf"cannot time engines here: .*{reason}.* does not tell its kernels\. Choose"):
        gpu_to_time_on(engine_of("tensorrt"), place, precision, options)
    if place is RTX_4090:
        with pytest.raises(UserError, match=rf"{reason}.*: name it with --device, or choose one with --lowering nat"):
            gpu_to_time_on(engine_of("tensorrt-rtx"), None, precision, options)


def test_of_what_is_estimated_some_may_be_left_out_too(machine: Machine, source: Path, out: Path) -> None:
    machine.refusals["native"] = CompileError("too large.")
    with pytest.raises(CompileError, match=r"^tensorrt-rtx 11\.4\.0 does not tell the kernels of the form portable \("):
        press(source, out, target="tensorrt-rtx", device="rtx-3090")
    machine.refusals["portable"] = CompileError("too slow.")
    with pytest.raises(
        CompileError, match=r"^tensorrt-rtx makes no usable .* native: too large; portable: too slow\.$"
    ):
        press(source, out, target="tensorrt-rtx", device="rtx-3090")
    assert not list(out.parent.iterdir())


def engine_of(target: str) -> TensorRTBase:
    found = get_engine(target)
    assert isinstance(found, TensorRTBase)
    return found


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c = Constant<value_floats=[1.0, 2.0, 3.0]>() y = Add(x, c)", r"x.onnx cannot be run at batch=8, .*Give"),
        ("a = Abs(x) b = Neg(a) y = Log(b)", r"x.onnx computes NaN or infinity at batch=8, in y, so no"),
    ],
)
def test_a_graph_that_nothing_can_be_compared_with(body: str, message: str, machine: Machine, out: Path) -> None:
    source = out.with_name("x.onnx")
    text = f'<ir_version: 10, opset_import: ["": 20]> model (float[batch] x) => (float[n] y) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), source)
    machine.build(engine_of("tensorrt"), source, out, make_options(profiles=["batch=1:8:8"]), None)
    with pytest.raises(UserError, match=message):
        made_up_cases(load_onnx(source), source, out)
