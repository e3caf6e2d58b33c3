"""Our engines on a GPU: do they run, are they right, and how fast are they next to torch and ONNX Runtime.

    python -m benchmarks.engines_on_gpu
    python -m benchmarks.engines_on_gpu --target tensorrt --families roformer --seconds 540

1. Whether an engine of the target runs on this GPU: a tiny one is built for it, loaded, run and judged; if not, at
   which step it failed, and with what message.
2. Parity and latency of every head of both families at base size (12 x 768, random weights, biases and norms
   included), at fp32, fp16 and static int8 with ranges of random ids. Parity is judged as an export's is, against
   float32 PyTorch on the CPU, up to 256 tokens. Latency is of 1 x 128 and 8 x 128 tokens (of several choices: 1 x 1 and
   2 x 4 of 128; of decoders: a prompt of 128, and one token after 127), all sides in turns, medians, as ratios to eager
   fp16 PyTorch in the same process.
3. Where the target is TensorRT: fp16 with our plugins, as one more engine beside the one without.

Two latencies, both by the host's clock until the GPU is done:

``with_copies``: arrays of NumPy in, float32 arrays of NumPy out, as ``Session`` has it. Inputs are copied to pinned
    memory and from there to the GPU, outputs to pinned memory and from there to new arrays, by our engines and by torch
    alike. ONNX Runtime makes its own copies, of memory that is not pinned.
``on_device``: inputs are on the GPU before, outputs stay there. torch is given caches in the precision that it computes
    in, and leaves outputs in it; an engine reads and writes float32, and casts. Engines run as CUDA graphs, eager torch
    does not. Not of ONNX Runtime.

TF32 is off everywhere. ONNX Runtime has the plain graph: at fp16 by its own converter where it has CUDA, else at fp32
on the CPU, which its row says. torch.compile is of fp16, for each shape.

What may crash natively runs in processes of their own: a way that dies is told, and the rest goes on without it.
Whatever was not measured stands under ``not_run``, with the reason. A few heads at a time are compiled side by side;
while one is measured, nothing else runs. Results are written after each head. Where ten minutes are too few for all,
one family at a time has a file of its own.

``--cpu`` runs all of this without a GPU, to try it: ONNX Runtime's engines, and torch on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:  # what is imported below waits until it is known to be installed
    import torch

    from exporter.engines import Arrays, Engine, Range, Runner
    from exporter.engines.tensorrt_runner import TensorRTRunner
    from exporter.parity import Reference
    from exporter.tasks import TaskName, TensorSpec
    from exporter.trace import Interface

ROUNDS, WARM_UP = 30, 10
CPU_ROUNDS = 3  # of ONNX Runtime where it has no GPU: it is slow there, and takes no turns with the others
TOKENS, BATCHES = 128, (1, 8)
LONGEST = 256  # tokens of the longest parity case, and of the cache: together they fit every model's positions
LAYERS, HIDDEN = 12, 768
SEED = 0
SPREAD = 0.1  # of what is added to biases and norms
TARGETS = ("tensorrt-rtx", "tensorrt")
SECONDS = 540  # a little less than ten minutes
STEP_SECONDS = 180  # the most that one process may take: one that hangs must not cost all the others
# By what is imported: what pip calls it. Nothing runs without the first, and not everything without the others.
NEEDED = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnx_graphsurgeon": "onnx-graphsurgeon",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "torch": "torch",
}
HELPFUL = {
    "tensorrt_rtx": "tensorrt-rtx (engines)",
    "tensorrt": "tensorrt (engines)",
    "rjieba": "rjieba (int8: calibration imports the tokenizers)",
    "tokenizers": "tokenizers (as rjieba)",
    "triton": "triton (torch.compile, plugins)",
    "cuda": "cuda-bindings (else engines go through torch's CUDA)",
}
VERSIONS = ("tensorrt-rtx", "tensorrt", "triton", "cuda-bindings", "onnxruntime-gpu")

EAGER32, EAGER16, COMPILED, ORT = "torch eager fp32", "torch eager fp16", "torch.compile fp16", "ONNX Runtime"
ENGINE, PLUGIN = "engine ", " plugin"  # around a precision
WITH_COPIES, ON_DEVICE = "with_copies", "on_device"
PLAIN, REFERENCE, LOWERED = "plain.onnx", "reference.safetensors", "lowered"  # files and a folder of a head
BACKEND = "inductor"  # of torch.compile
ON_CPU = "on the CPU"
TIME_IS_UP = "the time was up"
CHILD = (sys.executable, "-m", "benchmarks.engines_on_gpu", "--child")

Row = dict[str, Any]
Times = dict[str, Callable[[], object]]  # WITH_COPIES and, where it can be, ON_DEVICE


@dataclass(frozen=True)
class Job:
    """What one process of its own does.

    Args:
        what: ``prepare`` writes graphs and the reference, ``build`` one engine, ``warm`` torch.compile's cache, and
            ``measure`` judges and times.
        vocabulary: ``None`` for the family's.
        target: Of the engines.
        sm: Of the GPU; ``None`` where there is none.
        folder: Holds all files of one head.
        ways: What to prepare, build or measure.
        is_timed: Or only judged.
        threads: Of the CPU.
    """

    what: Literal["prepare", "build", "warm", "measure"]
    family: str
    task: TaskName
    layers: int
    hidden: int
    vocabulary: int | None
    target: str
    sm: int | None
    folder: str
    ways: list[str]
    is_timed: bool = True
    threads: int = 1

    @property
    def engines(self) -> list[str]:
        """The ways that are engines of ours."""
        return [way for way in self.ways if way.startswith(ENGINE)]

    def file(self, *parts: str) -> Path:
        """Inside of the folder."""
        return Path(self.folder, *(part.replace(" ", "-") for part in parts))

    @property
    def device(self) -> str:
        """Of torch."""
        return "cpu" if self.sm is None else "cuda"


class Told(NamedTuple):
    """What a process told while it lived.

    Attributes:
        rows: Measurements.
        failed: Why a way is missing, by way.
        step: What it did last: the way, or nothing, and what was done.
        died: How it ended, where it did not end well.
    """

    rows: list[Row]
    failed: dict[str, str]
    step: tuple[str, str]
    died: str | None

    @property
    def end(self) -> str:
        """At what it died, and how."""
        return ": ".join(filter(None, (self.step[1], self.died)))


# In a process of its own


class Teller:
    """Writes down what happens as it happens, so that it is known after a crash too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._doing = ""
        path.write_text("", encoding="utf-8")

    def step(self, way: str, doing: str) -> None:
        """What is begun, and for which way, if for one."""
        self._doing = doing
        self._write(step=[way, doing])

    def row(self, **row: Any) -> None:
        """A measurement."""
        self._write(row=row)

    @contextmanager
    def attempt(self, way: str, doing: str) -> Iterator[None]:
        """A step of a way. What it raises is told, with the last step in it, and goes no further."""
        self.step(way, doing)
        try:
            yield
        except Exception as error:  # noqa: BLE001  # of any library; to be told is all that can be done
            self._write(failed=[way, f"{self._doing}: {type(error).__name__}: {str(error).strip()[:600]}"])

    def _write(self, **event: Any) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event) + "\n")


def do(job: Job, events: Path) -> None:
    """Does a job here."""
    import torch

    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    work: dict[str, Callable[[Job, Teller], None]]
    work = {"prepare": prepare, "build": build, "warm": warm, "measure": measure}
    work[job.what](job, Teller(events))


def make_interface(job: Job) -> Interface:
    """The model with random weights: the same for the same job, in whatever process. On the CPU, float32."""
    import torch

    from exporter import models
    from exporter.tasks import FAMILY_PREFIX, TASKS
    from exporter.trace import Interface

    task = TASKS[job.task]
    fields: dict[str, Any] = {
        "num_hidden_layers": job.layers,
        "hidden_size": job.hidden,
        "intermediate_size": 4 * job.hidden,
        "num_attention_heads": heads(job.hidden),
        "is_decoder": task.has_cache,
    }
    if job.vocabulary is not None:
        fields["vocab_size"] = job.vocabulary
    config: models.ModelConfig
    if job.family == "roformer":
        config = models.RoFormerConfig(**fields)
    else:
        config = models.RobertaPreLayerNormConfig(**fields, max_position_embeddings=514)
    torch.manual_seed(SEED)
    model = getattr(models, FAMILY_PREFIX[job.family] + task.suffix)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # else zeros and ones, which hide what is left out
                parameter.add_(SPREAD * torch.randn_like(parameter))
    return Interface(model, task)


def heads(hidden: int) -> int:
    """Of 64, as those of the base size; two where the model is small."""
    return max(2, hidden // 64)


class Described(NamedTuple):
    """What completes inputs; see exporter/inputs.py."""

    inputs: Sequence[TensorSpec]
    max_tokens: int
    pad_token_id: int


def make_inputs(interface: Interface, shape: tuple[int, ...], past: int = 0) -> Arrays:
    """Ids of a shape at random, without padding, all else as usual; after ``past`` tokens, whose cache is random."""
    import numpy as np

    from exporter.inputs import complete_inputs

    config: Any = interface.model.config
    random = np.random.default_rng(SEED)
    pad = config.pad_token_id or 0
    given: Arrays = {"input_ids": random.integers(pad + 1, config.vocab_size, shape)}
    for spec in interface.inputs:
        if past and spec.name.startswith("past_key_values."):
            cache = (shape[0], config.num_attention_heads, past, config.head_size)
            given[spec.name] = random.standard_normal(cache, np.float32)
    return complete_inputs(Described(interface.inputs, config.max_tokens, pad), given)


def cases_to_time(task: TaskName) -> dict[str, tuple[tuple[int, ...], int]]:
    """By name: the shape of the ids, and how many tokens are cached."""
    from exporter.tasks import TASKS

    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for rows in BATCHES:
        name = f"{rows} x {TOKENS}"
        if TASKS[task].has_cache:
            found[f"{name}, prompt"] = (rows, TOKENS), 0
            found[f"{rows} x 1 after {TOKENS - 1}"] = (rows, 1), TOKENS - 1
        elif "choices" in TASKS[task].token_axes:
            choices = min(rows, 4)
            found[name] = (rows // choices, choices, TOKENS), 0
        else:
            found[name] = (rows, TOKENS), 0
    return found


def profiles(task: TaskName) -> tuple[dict[str, Range], ...]:
    """One for a single row and one for more; twice for decoders, for the prompt and for the steps."""
    from exporter.engines import Range
    from exporter.tasks import TASKS

    tokens = Range(min=1, opt=TOKENS, max=LONGEST)
    one = Range(min=1, opt=1, max=1)
    single, several = {"batch": one}, {"batch": Range(min=1, opt=BATCHES[-1], max=32)}
    if "choices" in TASKS[task].token_axes:
        single["choices"] = one
        several = {"batch": Range(min=1, opt=2, max=16), "choices": Range(min=1, opt=4, max=4)}
    if not TASKS[task].has_cache:
        return tuple(rows | {"sequence": tokens} for rows in (single, several))
    prompt = {"sequence": tokens, "past": Range(min=0, opt=0, max=0)}
    step = {"sequence": Range(min=1, opt=1, max=5), "past": Range(min=1, opt=TOKENS - 1, max=LONGEST)}
    return tuple(rows | use for rows in (single, several) for use in (prompt, step))


def prepare(job: Job, teller: Teller) -> None:
    """Writes the plain graph, the reference, and the lowered graph of each engine."""
    teller.step("", "import")
    from exporter import parity
    from exporter.engines import get_engine
    from exporter.onnx_files import save_onnx
    from exporter.tasks import TASKS, expected_fusions
    from exporter.trace import trace
    from graph_passes import pipeline
    from graph_passes.graph_tools import import_model

    teller.step("", "trace")
    interface = make_interface(job)
    config: Any = interface.model.config
    plain = import_model(trace(interface))
    save_onnx(plain, job.file(PLAIN))
    teller.step("", "compute the reference")
    cases = parity.make_cases(
        interface.inputs,
        pad_token_id=config.pad_token_id or 0,
        max_tokens=min(config.max_tokens, LONGEST),
        output_width=max((axis for spec in interface.outputs if isinstance(axis := spec.axes[-1], int)), default=1),
        seed=SEED,
    )
    parity.save_reference(parity.compute_reference(interface, cases), job.file(REFERENCE))
    teller.step("", "fuse")
    fused, _ = pipeline.fuse(plain, expected=expected_fusions(config, TASKS[job.task]))
    engine = get_engine(job.target)
    for way in job.engines:
        precision = next(precision for precision in pipeline.PRECISIONS if precision in way)
        with teller.attempt(way, "write the graph"):
            ranges = None
            if precision == "int8" and engine.quantization == "static":
                from exporter.calibration import calibrate

                shape = (2, 2, 64) if "choices" in TASKS[job.task].token_axes else (4, 64)
                ranges = calibrate(fused, [make_inputs(interface, shape)]).of(fused)
            changed, _ = pipeline.change_precision(fused, precision, ranges=ranges)
            lowered, _ = pipeline.lower(changed, "plugin" if way.endswith(PLUGIN) else engine.lowering)
            save_onnx(lowered, job.file(LOWERED, f"{way}.onnx"))


def builder_for(target: str, sm: int | None) -> tuple[Engine, tuple[int, ...], str]:
    """What builds for the GPU here, the architectures to ask it for, and that in words."""
    from exporter.engines import BuildOptions, get_engine
    from exporter.engines.tensorrt_rtx import TensorRTRTX

    class OnThisGpu(TensorRTRTX):
        def configure(self, trt: Any, config: Any, options: BuildOptions) -> None:
            super().configure(trt, config, options)
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)

    engine = get_engine(target)
    if not isinstance(engine, TensorRTRTX):
        return engine, (), "this machine"
    named = engine.trt.ComputeCapability.__members__
    if f"SM{sm}" in named and sm is not None:
        return engine, (sm,), f"ComputeCapability.SM{sm}"
    if "CURRENT" in named:
        return OnThisGpu(), (), "ComputeCapability.CURRENT"
    return engine, (), "the builder's default"


def register_plugins(job: Job, way: str) -> None:
    """Where an engine has plugins of ours, they must be known when it is built and when it is loaded.

    Raises:
        RuntimeError: If the target takes none.
    """
    if not way.endswith(PLUGIN):
        return
    from exporter.engines import get_engine
    from exporter.engines.tensorrt_base import TensorRTBase
    from plugins.compile import TARGETS as ARCHITECTURES
    from plugins.tensorrt_plugins import register

    engine = get_engine(job.target)
    if not isinstance(engine, TensorRTBase) or "plugin" not in engine.lowerings():
        raise RuntimeError(f"{job.target} takes no plugins that are compiled beforehand")
    register(max(of for of in ARCHITECTURES if job.sm is not None and of <= job.sm))


def build(job: Job, teller: Teller) -> None:
    """Builds the engines."""
    from exporter.engines import BuildOptions
    from exporter.engines.tensorrt_base import TensorRTBase

    for way in job.engines:
        with teller.attempt(way, "build"):
            register_plugins(job, way)
            engine, sms, built_for = builder_for(job.target, job.sm)
            teller.step(way, f"build for {built_for}")
            options = BuildOptions(sms=sms, profiles=profiles(job.task)) if isinstance(engine, TensorRTBase) else None
            destination = job.file(f"{way}{engine.suffix}")
            started = time.perf_counter()
            engine.build(job.file(LOWERED, f"{way}.onnx"), destination, options)
            teller.row(
                part="build",
                way=way,
                built_for=built_for,
                seconds=round(time.perf_counter() - started, 2),
                bytes=destination.stat().st_size,
            )


def warm(job: Job, teller: Teller) -> None:
    """Compiles with torch once: its cache on disk spares the process that measures the most of it."""
    with teller.attempt(COMPILED, "compile"):
        interface = make_interface(job)
        make_times = torch_maker(job, interface, COMPILED)
        for case in cases_to_time(job.task).values():
            make_times(make_inputs(interface, *case))[ON_DEVICE]()


def measure(job: Job, teller: Teller) -> None:
    """Judges every engine, and times every way."""
    teller.step("", "import")
    from exporter.bench import PAUSE_SECONDS, interleaved_medians
    from exporter.parity import load_reference

    interface = make_interface(job)
    cases = cases_to_time(job.task) if job.is_timed else {}
    batches = {name: make_inputs(interface, *case) for name, case in cases.items()}
    reference = load_reference(job.file(REFERENCE))
    makers: dict[str, Callable[[Arrays], Times]] = {}
    notes: dict[str, str] = {}
    for way in job.ways:
        with teller.attempt(way, "load"):
            if way.startswith(ENGINE):
                runner = load_engine(job, way)
                teller.step(way, "run")
                judge(job, way, runner, reference, interface.outputs, teller)
                for inputs in batches.values():  # memory grows to what it will be
                    runner.run(inputs)
                makers[way] = partial(engine_times, runner)
            elif way == ORT:
                makers[way], notes[way] = onnxruntime_maker(job)
            else:
                makers[way] = torch_maker(job, interface, way)
    for name, inputs in batches.items():
        ready: dict[str, Times] = {}
        for way, make_times in makers.items():
            with teller.attempt(way, f"run {name}"):
                times = make_times(inputs)
                for run in times.values():
                    run()
                ready[way] = times
        teller.step("", f"time {name}")
        turns = {(way, mode): run for way, times in ready.items() for mode, run in times.items()}
        apart = {key: run for key, run in turns.items() if key[0] == ORT and ON_CPU in notes[ORT]}
        taken = interleaved_medians(
            {" / ".join(key): run for key, run in turns.items() if key not in apart},
            rounds=ROUNDS,
            warm_up=WARM_UP,
            pause=PAUSE_SECONDS if job.sm is None else 0,
        )
        taken |= interleaved_medians({" / ".join(key): run for key, run in apart.items()}, rounds=CPU_ROUNDS, warm_up=1)
        for way, times in ready.items():
            row: Row = {"part": "latency", "case": name, "way": way}
            for mode in times:
                seconds, base = taken[f"{way} / {mode}"], taken.get(f"{EAGER16} / {mode}")
                row[mode] = {
                    "milliseconds": round(1000 * seconds, 4),
                    "ratio_to_eager_fp16": None if base is None else round(seconds / base, 4),
                }
            teller.row(**row, **({"note": notes[way]} if way in notes else {}))


def load_engine(job: Job, way: str) -> Runner:
    """An engine, ready to run."""
    from exporter.engines import get_engine

    register_plugins(job, way)
    engine = get_engine(job.target)
    return engine.load(job.file(f"{way}{engine.suffix}"), threads=job.threads)


def judge(
    job: Job, way: str, runner: Runner, reference: Reference, outputs: Sequence[TensorSpec], teller: Teller
) -> None:
    """Tells whether an engine is within the tolerances of its precision."""
    from exporter.parity import TOLERANCES, compare

    results = compare(
        runner,
        reference,
        target=job.target,
        precision=next(precision for precision in TOLERANCES if precision in way),
        score_outputs=[spec.name for spec in outputs if spec.is_scores],
    )
    told = [result.model_dump(include={"output", "metrics", "worst_case", "failures"}) for result in results]
    teller.row(part="parity", way=way, passed=all(result.passed for result in results), outputs=told)


def engine_times(runner: Runner, inputs: Arrays) -> Times:
    """What to time of an engine."""
    from exporter.engines.tensorrt_runner import TensorRTRunner

    times: Times = {WITH_COPIES: partial(runner.run, inputs)}
    return times | ({ON_DEVICE: alone(runner, inputs)} if isinstance(runner, TensorRTRunner) else {})


def alone(runner: TensorRTRunner, inputs: Arrays) -> Callable[[], None]:
    """Runs an engine without any copy, on inputs that are on the GPU, until it is done.

    No engine has to do this, so it reaches into the runner. It must not be given larger inputs afterwards, for then its
    memory moves.
    """
    arrays, profile = runner._accepted(inputs)
    shapes = tuple(array.shape for array in arrays)
    cuda = runner._cuda
    with cuda.current():
        context = runner._new_context(profile)
        outputs = runner._prepare(context, shapes)
        runner._write(arrays)
        runner._put_onto_stream(context, shapes, outputs)
        cuda.synchronize()

        def execute() -> None:
            if not context.execute_async_v3(cuda.stream):
                raise RuntimeError("the engine failed on the GPU")

        launch = execute if runner._makes_graphs_itself else partial(cuda.launch, cuda.capture(execute))

    def run() -> None:
        with cuda.current():
            launch()
            cuda.synchronize()

    return run


def torch_maker(job: Job, interface: Interface, way: str) -> Callable[[Arrays], Times]:
    """What to time of torch."""
    import torch

    dtype = torch.float32 if way == EAGER32 else torch.float16
    model: Callable[..., Any] = copy.deepcopy(interface).to(job.device, dtype)
    if way == COMPILED:
        model = torch.compile(model, dynamic=False, backend=BACKEND)
    is_on_gpu = job.device == "cuda"

    def wait() -> None:
        if is_on_gpu:
            torch.cuda.synchronize()

    def call(tensors: Sequence[torch.Tensor]) -> Any:
        with torch.inference_mode():
            return model(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors))

    def make_times(inputs: Arrays) -> Times:
        arrays = [torch.from_numpy(inputs[spec.name]) for spec in interface.inputs]
        given = [torch.empty_like(array, pin_memory=is_on_gpu) for array in arrays]
        resident = [array.to(job.device, dtype if array.is_floating_point() else None) for array in arrays]
        results = [torch.empty(output.shape, dtype=torch.float32, pin_memory=is_on_gpu) for output in call(resident)]

        def with_copies() -> object:
            for pinned, array in zip(given, arrays, strict=True):
                pinned.copy_(array)
            outputs = call([pinned.to(job.device, non_blocking=True) for pinned in given])
            for pinned, output in zip(results, outputs, strict=True):
                pinned.copy_(output.float(), non_blocking=True)
            wait()
            return [pinned.numpy().copy() for pinned in results]

        def on_device() -> None:
            call(resident)
            wait()

        return {WITH_COPIES: with_copies, ON_DEVICE: on_device}

    return make_times


def onnxruntime_maker(job: Job) -> tuple[Callable[[Arrays], Times], str]:
    """What to time of ONNX Runtime, and what it runs on: the graph as it was traced."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    path, provider, note = job.file(PLAIN), "CUDAExecutionProvider", "on CUDA, fp16 by its own converter"
    if job.device == "cuda" and provider in ort.get_available_providers():
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        halved = job.file(f"fp16-{PLAIN}")
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), halved)
        session = ort.InferenceSession(str(halved), options, providers=[provider])
    if job.device == "cpu" or provider not in ort.get_available_providers() or session.get_providers()[0] != provider:
        note = f"{ON_CPU}, fp32"  # also where the libraries that it needs for CUDA cannot be loaded
        options.intra_op_num_threads = job.threads
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: {WITH_COPIES: partial(session.run, None, inputs)}, note


# In the process that is started


class Clock:
    """How much time is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; none or fewer where the time is up."""
        return self._end - time.monotonic()


def run_apart(job: Job, clock: Clock) -> Told:
    """Does a job in a process of its own, and survives whatever becomes of it."""
    if clock.left() < 1:
        return Told([], {}, ("", ""), TIME_IS_UP)
    name = f"{job.what}-{job.ways[0]}" if job.what in ("build", "warm") else job.what
    request, events, log = (job.file(f"{name}.{suffix}") for suffix in ("json", "events", "log"))
    request.write_text(json.dumps(asdict(job)), encoding="utf-8")
    seconds = min(clock.left(), STEP_SECONDS)
    died = run_process([*CHILD, str(request), str(events)], log, seconds)
    if died is not None and log.is_file():
        died = ": ".join([died, *log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]])[:600]
    return read_events(events, died)


def run_process(command: Sequence[str], log: Path, seconds: float) -> str | None:
    """Runs a command, with what it prints in a file. Returns how it ended, where not well."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdout=output,
            stderr=output,
            start_new_session=True,  # torch.compile starts others, which must end with it
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"not done in {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else None


def read_events(events: Path, died: str | None) -> Told:
    """What was told until the end."""
    told = Told([], {}, ("", "start"), died)
    for line in events.read_text(encoding="utf-8").splitlines() if events.is_file() else ():
        try:
            event = json.loads(line)
        except ValueError:  # cut off in the middle
            break
        if "row" in event:
            told.rows.append(event["row"])
        elif "failed" in event:
            way, why = event["failed"]
            told.failed[way] = why
        else:
            told = told._replace(step=tuple(event["step"]))
    return told


class Results:
    """Rows as they come, and why others do not."""

    def __init__(self, *, by_cpu: bool) -> None:
        self.runs: list[Row] = []
        self._rows: dict[tuple[str, ...], Row] = {}
        self._why: dict[tuple[str, ...], str] = {}
        self._expected: list[Row] = []
        self._by_cpu = by_cpu

    def expect(self, job: Job) -> None:
        """The rows of a head: those that do not come are told as not run."""
        head = {"family": job.family, "task": job.task}
        for way in job.engines:
            self._expected.append({"part": "parity", **head, "way": way})
        for case in cases_to_time(job.task):
            self._expected += [{"part": "latency", **head, "case": case, "way": way} for way in job.ways]

    def add(self, job: Job, told: Told) -> None:
        """What a process told; of the same row twice, the later counts."""
        for row in told.rows:
            whole = {"part": row["part"], "family": job.family, "task": job.task, **row, **self.mark()}
            self._rows[self._key(whole)] = whole
        for way, why in told.failed.items():
            self.give_up(job, way, why)

    def give_up(self, job: Job, way: str, why: str) -> None:
        """Tells why there will be no more of a way, or without one, of a head."""
        self._why.setdefault((job.family, job.task, way), why)
        print(f"not run: {job.family} {job.task} {way or 'all that is left'}: {why}", flush=True)

    def mark(self) -> Row:
        """What goes into each row that says nothing about a GPU."""
        return {"made_by": "--cpu"} if self._by_cpu else {}

    @property
    def rows(self) -> list[Row]:
        """In the order that they came in first."""
        return list(self._rows.values())

    @property
    def not_run(self) -> list[Row]:
        """What was expected and did not come, each with the reason."""
        return [
            row | {"why": self._why.get((*head, row["way"])) or self._why.get((*head, "")) or TIME_IS_UP}
            for row in self._expected
            if self._key(row) not in self._rows
            for head in [(row["family"], row["task"])]
        ]

    @staticmethod
    def _key(row: Row) -> tuple[str, ...]:
        return tuple(str(row.get(name, "")) for name in ("part", "family", "task", "case", "way"))


def find_out(job: Job, clock: Clock, results: Results) -> bool:
    """Whether a tiny engine of the target runs here; what it did, or where it failed, becomes a row."""
    (way,) = job.ways
    row: Row = {"target": job.target, "sm": job.sm, "runs": False, **results.mark()}
    for what in ("prepare", "build", "measure"):
        told = run_apart(replace(job, what=what), clock)
        for found in told.rows:
            row[found.pop("part")] = found
        if told.died is not None:
            row["failed"] = told.end
        elif told.failed:
            row["failed"] = told.failed[way]
        if "failed" in row:
            break
    row["runs"] = "failed" not in row
    results.runs.append(row)
    print(f"{job.target} runs here: {'yes' if row['runs'] else 'no: ' + row['failed']}", flush=True)
    return bool(row["runs"])


def compile_heads(jobs: Sequence[Job], clock: Clock, results: Results, workers: int) -> list[Job]:
    """Graphs and engines of some heads, side by side. Returns what is left to measure."""
    with ThreadPoolExecutor(workers) as pool:
        told = list(pool.map(lambda job: run_apart(replace(job, what="prepare"), clock), jobs))
    jobs = [settle(job, of, results) for job, of in zip(jobs, told, strict=True)]
    tries = [replace(job, what="build", ways=[way]) for job in jobs for way in job.engines]
    tries += [replace(job, what="warm", ways=[COMPILED]) for job in jobs if COMPILED in job.ways]
    with ThreadPoolExecutor(1 if jobs[0].target == "tensorrt" else workers) as pool:  # it times kernels on the GPU
        told = list(pool.map(lambda job: run_apart(job, clock), tries))
    dropped = [
        (job.folder, job.ways[0]) for job, of in zip(tries, told, strict=True) if not settle(job, of, results).ways
    ]
    return [replace(job, ways=[way for way in job.ways if (job.folder, way) not in dropped]) for job in jobs]


def settle(job: Job, told: Told, results: Results) -> Job:
    """Keeps what was told, and takes out of a job the ways that failed: all of them, if it died by none of them."""
    results.add(job, told)
    lost = set(told.failed)
    if told.died is not None:
        guilty = told.step[0] or (job.ways[0] if len(job.ways) == 1 else "")
        results.give_up(job, guilty, told.end)
        lost |= {guilty} if guilty else set(job.ways)
    return replace(job, ways=[way for way in job.ways if way not in lost])


def measure_head(job: Job, clock: Clock, results: Results) -> None:
    """Measures all ways of a head in one process; again, without the one at fault, if that dies."""
    while job.ways:
        told = run_apart(replace(job, what="measure"), clock)
        job = settle(job, told, results)
        if told.died is None or clock.left() < 1:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """Finds out, measures and records. Returns 0, or 2 where nothing can be measured here."""
    if missing := [pip for module, pip in NEEDED.items() if find_spec(module) is None]:
        print(f"Missing, and needed: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    args = parse(arguments)
    import torch

    if not args.cpu and not torch.cuda.is_available():
        print("There is no GPU that torch can use: --cpu runs all of this without one.", file=sys.stderr)
        return 2
    if absent := [what for module, what in HELPFUL.items() if find_spec(module) is None]:
        print(f"Not installed: {', '.join(absent)}", flush=True)
    clock, results = Clock(args.seconds), Results(by_cpu=args.cpu)
    sm = None if args.cpu else int("".join(map(str, torch.cuda.get_device_capability())))
    facts = describe(args, sm)
    measuring_threads = 1 if args.cpu else os.cpu_count() or 1  # small models wait for one another's threads
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(scratch, "inductor")))
        jobs = plan(args, sm, Path(scratch), results, clock)
        for start in range(0, len(jobs), args.workers):
            for job in compile_heads(jobs[start : start + args.workers], clock, results, args.workers):
                measure_head(replace(job, threads=measuring_threads), clock, results)
                shutil.rmtree(job.folder)
                save(args, facts, results)
    save(args, facts, results)
    show(results)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    from exporter.tasks import FAMILY_PREFIX, TASKS

    cpus = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, help="default: the first of them whose engines run here")
    parser.add_argument("--families", nargs="+", choices=FAMILY_PREFIX, default=list(FAMILY_PREFIX))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--vocabulary", type=int, help="default: the family's")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all together (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=max(1, cpus // 4), help="heads that are compiled side by side")
    parser.add_argument("--cpu", action="store_true", help="run all of this without a GPU; says nothing about one")
    parser.add_argument(
        "--out", type=Path, help="a .json file for the results; without it, those of base-size models on a GPU are kept"
    )
    args = parser.parse_args(arguments)
    if args.cpu and args.target:
        parser.error("--cpu has ONNX Runtime's engines, no --target")
    if min(args.layers, args.hidden, args.workers) < 1 or args.hidden % (2 * heads(args.hidden)):
        parser.error(f"--layers, --hidden and --workers must be positive, --hidden for {heads(args.hidden)} even heads")
    if args.out is not None and (args.out.suffix != ".json" or not args.out.absolute().parent.is_dir()):
        parser.error(f"--out must name a .json file in a folder that is there; got {args.out}")
    return args


def plan(args: argparse.Namespace, sm: int | None, scratch: Path, results: Results, clock: Clock) -> list[Job]:
    """What is to be measured, if an engine runs here at all."""
    first = Job(
        what="prepare",
        family="roformer",
        task="feature-extraction",
        layers=1,
        hidden=64,
        vocabulary=100,
        target="",
        sm=sm,
        folder="",
        ways=[f"{ENGINE}fp16"],  # which every architecture takes
        is_timed=False,
        threads=max(1, (os.cpu_count() or 1) // args.workers),
    )
    usable = ""
    targets = ["onnxruntime"] if args.cpu else [args.target] if args.target else TARGETS
    for target in targets:
        folder = Path(scratch, f"first-{target}")
        folder.mkdir()
        if find_out(replace(first, target=target, folder=str(folder)), clock, results):
            usable = target
            break
    ways = [f"{ENGINE}{precision}" for precision in ("fp16", "fp32", "int8")]
    ways += [f"{ENGINE}fp16{PLUGIN}"] if usable == "tensorrt" else []
    ways += [EAGER16, EAGER32, COMPILED, ORT]
    jobs = []
    for task in args.tasks:
        for family in args.families:
            folder = Path(scratch, f"{family}-{task}")
            folder.mkdir()
            jobs.append(
                replace(
                    first,
                    family=family,
                    task=task,
                    layers=args.layers,
                    hidden=args.hidden,
                    vocabulary=args.vocabulary,
                    target=usable,
                    folder=str(folder),
                    ways=list(ways),
                    is_timed=True,
                )
            )
            results.expect(jobs[-1])
    if not usable:
        for job in jobs:
            results.give_up(job, "", f"no engine runs here: {results.runs[-1]['failed']}")
        return []
    if args.cpu:
        for job in jobs:
            results.give_up(job, COMPILED, "left out with --cpu: it takes long, and a compiler")
            job.ways.remove(COMPILED)
    return jobs


def describe(args: argparse.Namespace, sm: int | None) -> Row:
    """The device, the versions, and what is asked for."""
    import torch

    from exporter.manifest import installed_versions

    versions = installed_versions()
    for name in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    driver = None
    if program := shutil.which("nvidia-smi"):
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "what": f"{args.layers} x {args.hidden}, medians of {ROUNDS}, ratios to eager fp16 PyTorch of the same process",
        "device": "none, made by --cpu" if sm is None else torch.cuda.get_device_name(),
        "sm": sm,
        "driver": driver,
        "cuda_of_torch": torch.version.cuda,
        "versions": versions,
    }


def save(args: argparse.Namespace, facts: Row, results: Results) -> None:
    """Writes what there is to the file that was asked for; else, of base-size models on a GPU, to the results."""
    from benchmarks.results import record

    is_base = (args.layers, args.hidden, args.vocabulary) == (LAYERS, HIDDEN, None)
    content = {**facts, "runs": results.runs, "rows": results.rows, "not_run": results.not_run}
    if args.out is not None:
        record(str(args.out.absolute().with_suffix("")), content)  # an absolute path leads out of the results' folder
    elif is_base and not args.cpu:
        record("_".join(["engines_on_gpu", *(args.families if len(args.families) == 1 else ())]), content)


def show(results: Results) -> None:
    """Prints the rows."""
    for row in results.rows:
        head = f"{row['family']:<21}{row['task']:<22}{row.get('case', ''):<18}{row['way']:<20}"
        if row["part"] == "parity":
            print(f"{head} parity {'PASS' if row['passed'] else 'FAIL'}")
        elif row["part"] == "latency":
            modes = {mode: row[mode] for mode in (WITH_COPIES, ON_DEVICE) if mode in row}
            told = (f"{mode} {of['milliseconds']:.3f} ms ({of['ratio_to_eager_fp16']})" for mode, of in modes.items())
            print(head, "  ".join(told))
    print(f"{len(results.rows)} rows, {len(results.not_run)} not run")


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD[-1]]:
        do(Job(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))), Path(sys.argv[3]))
    else:
        sys.exit(main())
