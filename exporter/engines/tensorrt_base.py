"""What TensorRT and TensorRT-RTX share: from a lowered ONNX file to an engine file, with the module that is given.

Networks are strongly typed: the precision is in the graph, and no flag changes it. TF32 is off: it is no float32.
Nothing of the module is imported before it is used.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import shutil
import threading
import time
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from exporter.engines import devices
from exporter.engines.cuda import find_cuda, why_no_cuda
from exporter.engines.devices import Product
from exporter.engines.engine import BuildOptions, Engine, Progress, Range, silent
from exporter.engines.schedule import Schedule
from exporter.engines.tensorrt_runner import TensorRTRunner
from exporter.errors import BundleError, CompileError, UnavailableError, UserError
from exporter.files import new_file, sha256

__all__ = ["BuildRecord", "TensorRTBase", "axes_of", "profiles_of", "read_record"]

# Where nothing is said: one request or a few at a time, of a usual length; by our names and those of other exporters.
BATCH, CHOICES, TOKENS = Range(min=1, opt=1, max=8), Range(min=1, opt=4, max=8), Range(min=1, opt=128, max=512)
USUAL = {
    "batch": BATCH,
    "choices": CHOICES,
    "sequence": TOKENS,
    "encoder_sequence": TOKENS,
    "batch_size": BATCH,
    "num_choices": CHOICES,
    "sequence_length": TOKENS,
    "encoder_sequence_length": TOKENS,
}
SUM = " + "  # an axis that is the sum of two others
PATIENCE = 0.1  # seconds between looks at the keyboard
# Bytes of address space that a model's first build takes, and more. With less, TensorRT-RTX 1.7.1 was seen to
# crash, to end the process and to hang.
LEAST_MEMORY = 384 << 20
LONGEST = 2**31 - 1  # axis: both products refuse a longer one, and say that it is inconsistent
# As both products, their allocators and the C++ library word it.
NO_MEMORY = re.compile(r"bad_alloc|out ?of ?memory|could not be allocated|cannot allocate|alloc failed", re.IGNORECASE)


class BuildRecord(BaseModel):
    """How an engine file was made; written beside it as ``<engine>.json``.

    Attributes:
        target, version: What built it.
        sha256: Of the engine file.
        weights_sha256: Of the graph beside it, from which weights that were left out are put back.
        profiles: The ranges of every axis.
        seconds: That the build took.
        warnings: What the builder warned of, and why its kernels are not known, where they are not.
        schedules: Its kernels in order, at the optimum of each profile; none where the builder does not tell them.
        lowering, reason: The form of the graph that it was built from, and why that one.
        device: What it is for.
    """

    model_config = ConfigDict(extra="forbid")

    target: str
    version: str
    sha256: str
    weights_sha256: str | None = None
    size_bytes: int
    options: BuildOptions
    profiles: list[dict[str, str]]
    seconds: float
    warnings: list[str]
    schedules: list[Schedule] = []
    lowering: str | None = None
    reason: str | None = None
    device: str | None = None


class TensorRTBase(Engine):
    """A target whose engines a module like ``tensorrt`` builds.

    Attributes:
        target: As in the table of capabilities.
        module_name: Of the Python module.
        extra: Of this distribution, that installs it.
        oldest: The oldest release that is supported.
        refused: The options that it does not have, with the reason.
    """

    suffix = ".engine"
    lowering = "native"
    quantization = "static"
    target: Product
    module_name: str
    extra: str
    oldest: tuple[int, int]
    refused: Mapping[str, str] = {}

    def is_available(self) -> str | None:
        """``None`` where engines can be built; building needs no GPU everywhere, running does."""
        if find_spec(self.module_name) is None:
            return f"{self.module_name} is not installed: pip install 'rotary-press[{self.extra}]'"
        try:
            trt = import_module(self.module_name)
        except (ImportError, OSError) as error:
            return f"{self.module_name} cannot be imported ({error}): pip install 'rotary-press[{self.extra}]'"
        if self.version < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            return f"{self.module_name} {trt.__version__} is too old: {oldest} is the first that will do"
        return None

    def cannot_run(self) -> str | None:
        """``None`` where there is a GPU."""
        return self.is_available() or why_no_cuda()

    @property
    def trt(self) -> Any:
        """The module.

        Raises:
            UnavailableError: If it cannot be used.
        """
        if reason := self.is_available():
            raise UnavailableError(f"The target {self.target} is not usable here: {reason}.")
        return import_module(self.module_name)

    def lowerings(self) -> tuple[str, ...]:
        """The forms of a graph that it takes."""
        possible = devices.capabilities(self.target, self.version)
        return ("native", "portable", *(("plugin",) if "aot_plugins" in possible else ()))

    @property
    def version(self) -> tuple[int, ...]:
        """Of the module."""
        return tuple(int(part) for part in import_module(self.module_name).__version__.split(".") if part.isdecimal())

    def build(
        self,
        lowered: Path,
        destination: Path,
        options: BuildOptions | None = None,
        progress: Progress | None = None,
    ) -> None:
        """See :class:`Engine`. ``<destination>.json`` tells how it was made. Ctrl-C stops the build."""
        options, progress = options or BuildOptions(), progress or silent
        for name in options.asked():
            if name in self.refused:
                raise UserError(f"{self.target} has no option {name}: {self.refused[name]}.")
        trt = self.trt
        log = _log(trt)
        builder = trt.Builder(log)
        network = builder.create_network(self.network_flags(trt))
        parse(trt, network, lowered, log)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # costs nothing, and tells what will run
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
        if options.strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        profiles = profiles_of(axes_of(network), options)
        for ranges in profiles:
            config.add_optimization_profile(_profile(builder, network, ranges))
        self.configure(trt, config, options)
        started = time.perf_counter()
        plan = _built(trt, builder, network, config, log, progress)
        seconds = time.perf_counter() - started
        warnings, schedules = log.at(trt.ILogger.Severity.WARNING), []
        lines = [line for _, line in log.lines]
        try:
            schedules = self.schedules(lines, profiles, "opt")
            self._check_memory(lines, profiles, options)
        except CompileError as error:  # the engine is built: that another release words its log anew is no harm to it
            warnings.append(str(error))
        with new_file(destination) as temporary:
            temporary.write_bytes(plan)
        self.after(config, options)
        weights = _keep(lowered, destination) if options.strip_weights else None
        record = BuildRecord(
            target=self.target,
            version=trt.__version__,
            sha256=hashlib.sha256(plan).hexdigest(),
            weights_sha256=weights and sha256(weights),
            size_bytes=len(plan),
            options=options,
            profiles=[{axis: str(of) for axis, of in ranges.items()} for ranges in profiles],
            seconds=seconds,
            warnings=warnings,
            schedules=schedules,
        )
        _write(record, destination)

    def annotate(self, path: Path, **facts: str | None) -> BuildRecord:
        """Adds to what is written down of an engine file."""
        record = read_record(path).model_copy(update=facts)
        _write(record, path)
        return record

    @abstractmethod
    def network_flags(self, trt: Any) -> int:
        """What ``create_network`` is to be given for a strongly typed network."""

    @abstractmethod
    def configure(self, trt: Any, config: Any, options: BuildOptions) -> None:
        """Sets what only this target has."""

    def after(self, config: Any, options: BuildOptions) -> None:
        """Keeps what a build leaves behind."""

    def schedules(
        self,
        log: list[str],  # noqa: ARG002
        profiles: Sequence[Mapping[str, Range]],  # noqa: ARG002
        bound: Literal["opt", "max"],  # noqa: ARG002
    ) -> list[Schedule]:
        """The kernels of the engine that was built, by profile; nothing where its builder does not tell them."""
        return []

    def _check_memory(self, log: list[str], profiles: Sequence[Mapping[str, Range]], options: BuildOptions) -> None:
        """Refuses an engine that takes more memory than the device has, where its builder tells its kernels."""
        if options.memory_bytes is None:
            return
        for schedule, ranges in zip(self.schedules(log, profiles, "max"), profiles, strict=False):
            maxima = {axis: of.max for axis, of in ranges.items() if SUM not in axis}
            devices.check_memory(options.memory_bytes, schedule, maxima)

    def load(self, path: Path, *, threads: int | None = None) -> TensorRTRunner:  # noqa: ARG002
        """Opens an engine on the GPU. ``threads`` means nothing there."""
        trt = self.trt
        self.check(path)
        if reason := self.cannot_run():
            raise UnavailableError(f"The target {self.target} cannot run here: {reason}.")
        record = read_record(path) if _record_file(path).is_file() else None
        return TensorRTRunner(
            trt,
            find_cuda(),
            path.read_bytes(),
            path,
            host_code=record is not None and record.options.version_compatible,
            weights=path.with_suffix(".onnx") if record is not None and record.options.strip_weights else None,
        )

    def check(self, path: Path) -> None:
        """Makes sure that a file is an engine that this module may read: by its header, and by what was written down.

        Raises:
            BundleError: If it is not.
        """
        if not path.is_file():
            raise BundleError(f"There is no engine at {path}.")
        plan = path.read_bytes()
        if _record_file(path).is_file():
            record = read_record(path)
            if record.target != self.target:
                raise BundleError(f"{path} was built for {record.target}, not for {self.target}.")
            if record.sha256 != hashlib.sha256(plan).hexdigest():
                raise BundleError(f"{path} is not what was built (its SHA-256 differs): build it again.")
            weights = path.with_suffix(".onnx")
            if record.weights_sha256 is not None and not (
                weights.is_file() and sha256(weights) == record.weights_sha256
            ):
                raise BundleError(
                    f"{path} was built without its weights, and {weights.name} beside it is missing or another: copy "
                    f"the one that was written with it."
                )
        self.check_header(path, plan)

    def check_header(self, path: Path, plan: bytes) -> None:
        """Makes sure that the bytes begin as an engine does.

        Raises:
            BundleError: If they do not.
        """


def read_record(path: Path) -> BuildRecord:
    """How an engine file was made.

    Raises:
        BundleError: If that was not written down, or is damaged.
    """
    file = _record_file(path)
    try:
        return BuildRecord.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"{file} is missing or damaged: build the engine again.") from error


def _keep(lowered: Path, destination: Path) -> Path:
    """Copies the graph, external data included, beside an engine that lacks its weights."""
    for source in lowered.parent.glob(f"{lowered.name}*"):
        with new_file(destination.parent / source.name) as temporary:
            shutil.copyfile(source, temporary)
    return destination.parent / lowered.name


def _record_file(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


def _write(record: BuildRecord, engine: Path) -> None:
    with new_file(_record_file(engine)) as temporary:
        temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def parse(trt: Any, network: Any, model: Path, log: Any) -> None:
    """Reads an ONNX file into a network.

    Raises:
        UserError: If there is too little memory.
        CompileError: If the parser refuses it; the message names the node, its op, and what was said of it.
    """
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(model)):
        return
    told = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        if NO_MEMORY.search(error.desc()):
            raise _too_little_memory(trt, f"reading {model.name}", error.desc())
        node = f"{error.node_name() or 'a node'} ({error.node_operator() or 'no op'})"
        told.append(f"{node}{_inputs_of(model, error.node_name())}: {error.desc()}")
    raise CompileError(
        f"{trt.__name__} {trt.__version__} cannot read {model.name}: {'; '.join(told) or 'it gives no reason'}. "
        f"Another lowering may do: --lowering native uses standard ops alone, --lowering portable no custom ops."
    )


def _inputs_of(model: Path, node_name: str) -> str:
    """What a node reads and of which shapes, where onnx is there to tell."""
    try:
        import onnx
    except ModuleNotFoundError:
        return ""
    graph = onnx.shape_inference.infer_shapes(onnx.load(model, load_external_data=False)).graph
    node = next((node for node in graph.node if node.name == node_name), None)
    if node is None:
        return ""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info):
        axes = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(axis.dim_param or axis.dim_value for axis in axes)
    return " of " + ", ".join(f"{name} {shapes.get(name, 'of unknown shape')}" for name in node.input if name)


def axes_of(network: Any) -> dict[str, list[tuple[str, int]]]:
    """The dynamic axes of the inputs: name -> (input, axis).

    Raises:
        UserError: If one has no name.
    """
    axes: dict[str, list[tuple[str, int]]] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        for axis, size in enumerate(tensor.shape):
            if size >= 0:
                continue
            name = tensor.get_dimension_name(axis)
            if not name:
                raise UserError(
                    f"Axis {axis} of the input {tensor.name} is dynamic and has no name, so no range can be given for "
                    f"it: name it where the graph is exported (dynamic_axes or dynamic_shapes)."
                )
            axes.setdefault(name, []).append((tensor.name, axis))
    return axes


def profiles_of(axes: Collection[str], options: BuildOptions) -> list[dict[str, Range]]:
    """The ranges of all axes, once for each profile.

    A decoder with a cache has two by default, since its two uses have little in common: a prompt without a past, and
    one token after it.

    Raises:
        UserError: If nothing says how large an axis may be, there is none of a name, it is longer than any can be, or
            the model has fewer positions.
    """
    wanted: Sequence[Mapping[str, Range]] = options.profiles or ({},)
    if not options.profiles and "past" in {part for axis in axes for part in axis.split(SUM)}:
        most = options.max_tokens or USUAL["sequence"].max
        nothing, one = Range(min=0, opt=0, max=0), Range(min=1, opt=1, max=1)
        wanted = [{"past": nothing}]
        if most > 1:
            past = Range(min=1, opt=min(USUAL["sequence"].opt, most - 1), max=most - 1)
            wanted.append({"past": past, "sequence": one})
    simple = {part for axis in axes for part in axis.split(SUM)}
    found = []
    for asked in wanted:
        if unknown := [axis for axis in asked if axis not in simple]:
            raise UserError(f"The graph has no axis {', '.join(unknown)}; it has {', '.join(sorted(simple))}.")
        ranges = {axis: asked.get(axis) or _usual(axis, options.max_tokens) for axis in sorted(simple)}
        for axis in axes:
            parts = [ranges[part] for part in axis.split(SUM)]
            bounds = {bound: sum(getattr(part, bound) for part in parts) for bound in ("min", "opt", "max")}
            ranges[axis] = Range(**bounds)
            if ranges[axis].max > LONGEST:
                raise UserError(
                    f"A profile allows {ranges[axis].max} for the axis {axis}, and engines take {LONGEST} at most: ask "
                    f"for less in --profile {axis.split(SUM)[0]}=MIN:OPT:MAX."
                )
        tokens = sum(ranges[axis].max for axis in ("sequence", "past") if axis in ranges)
        if options.max_tokens is not None and tokens > options.max_tokens:
            raise UserError(
                f"A profile allows {tokens} tokens, past ones included, but the model has {options.max_tokens} "
                f"positions: ask for no more in --profile sequence=MIN:OPT:MAX."
            )
        found.append({axis: ranges[axis] for axis in axes})
    return found


def _usual(axis: str, max_tokens: int | None) -> Range:
    if axis not in USUAL:
        raise UserError(
            f"Nothing says how large the axis {axis} may be: give it as --profile {axis}=MIN:OPT:MAX. There are usual "
            f"ranges for {', '.join(USUAL)}."
        )
    usual = USUAL[axis]
    if axis != "sequence" or max_tokens is None:
        return usual
    return Range(min=usual.min, opt=min(usual.opt, max_tokens), max=max_tokens)


def _profile(builder: Any, network: Any, ranges: Mapping[str, Range]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        shapes = [
            tuple(
                getattr(ranges[name], bound) if size < 0 else size
                for name, size in zip(names, tensor.shape, strict=True)
            )
            for bound in ("min", "opt", "max")
        ]
        if any(size < 0 for size in tensor.shape):
            profile.set_shape(tensor.name, *shapes)
    return profile


def _built(trt: Any, builder: Any, network: Any, config: Any, log: Any, progress: Progress) -> bytes:
    """The engine. Runs in a thread, so that Ctrl-C is heard while the builder is at work.

    Raises:
        UserError: If there is too little memory.
        CompileError: If there is no engine; with what the builder said.
        KeyboardInterrupt: After the builder has stopped.
    """
    try:
        mmap.mmap(-1, LEAST_MEMORY).close()
    except OSError as error:
        raise _too_little_memory(trt, "building", str(error)) from error
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    plans: list[bytes] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            plan = builder.build_serialized_network(network, config)
            if plan is not None:
                plans.append(bytes(memoryview(plan)))
        except Exception as error:  # noqa: BLE001  # nobody would hear of it in this thread
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(PATIENCE)
    except KeyboardInterrupt:
        monitor.is_cancelled = True
        worker.join()
        raise
    if monitor.failure is not None:
        raise monitor.failure
    if plans:
        return plans[0]
    said = [*log.at(trt.ILogger.Severity.ERROR), *(repr(error) for error in failures)]
    if lacking := [line for line in said if NO_MEMORY.search(line) or "MemoryError" in line]:
        raise _too_little_memory(trt, "building", lacking[0])
    raise CompileError(
        f"{trt.__name__} {trt.__version__} cannot build it: {'; '.join(said[-3:]) or 'it gives no reason'}. "
        f"Another --lowering may be taken."
    )


def _too_little_memory(trt: Any, doing: str, said: str) -> UserError:
    return UserError(
        f"{trt.__name__} {trt.__version__} ran out of memory while {doing} ({said.strip().rstrip('.')}): give axes "
        f"smaller maxima with --profile, limit scratch memory with --workspace-mb, or build where more memory is free."
    )


def _log(trt: Any) -> Any:
    """A logger of the module that keeps everything."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, line: str) -> None:
            self.lines.append((int(severity), line))

        def at(self, severity: Any) -> list[str]:
            """What was said at a severity, and of errors at a worse one."""
            worst = severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
            return [line for of, line in self.lines if of == int(severity) or (worst and of < int(severity))]

    return Log()


@dataclass
class _Phase:
    """One that is open; where it starts, ends and is, as shares of the outermost one."""

    parent: str | None
    steps: int
    start: float
    end: float
    at: float
    done: int = 0


class Phases:
    """How far the builder is in the outermost of its phases, which nest: from 0 to 1, and never backwards.

    A phase takes half of what is left of its parent's step, since nobody says how many will follow in that step.

    Attributes:
        whole: The outermost phase.
        done: The share of it.
    """

    def __init__(self) -> None:
        self.whole = ""
        self.done = 0.0
        self._open: dict[str, _Phase] = {}

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins; one without a parent is the outermost from now on."""
        if parent is None:
            self.whole, self.done = name, 0.0
            self._open = {name: _Phase(None, steps, 0.0, 1.0, 0.0)}
        elif (above := self._open.get(parent)) is not None:
            step_end = above.start + (above.end - above.start) * min(1.0, (above.done + 1) / max(above.steps, 1))
            self._open[name] = _Phase(parent, steps, above.at, max(above.at, (above.at + step_end) / 2), above.at)

    def step(self, name: str, step: int) -> None:
        """A step is done; they count from 0."""
        if (phase := self._open.get(name)) is not None:
            phase.done = max(phase.done, step + 1)
            share = min(1.0, phase.done / max(phase.steps, 1))
            self._reach(phase, phase.start + (phase.end - phase.start) * share)

    def finish(self, name: str) -> None:
        """A phase ends."""
        if (phase := self._open.pop(name, None)) is not None:
            self._reach(phase, phase.end)
            if phase.parent in self._open:
                self._reach(self._open[phase.parent], phase.end)

    def _reach(self, phase: _Phase, at: float) -> None:
        phase.at = max(phase.at, at)
        self.done = max(self.done, phase.at)


def _monitor(trt: Any, progress: Progress) -> Any:
    """Tells how far the builder is, and tells it to stop. Nothing is raised into the builder, which would abort."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.is_cancelled = False
            self.failure: Exception | None = None
            self.phases = Phases()
            self.lock = threading.Lock()  # builders may call from several threads

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self.lock:
                self.phases.start(phase, parent, steps)
                self.tell()

        def step_complete(self, phase: str, step: int) -> bool:
            with self.lock:
                self.phases.step(phase, step)
                self.tell()
            return not self.is_cancelled and self.failure is None

        def phase_finish(self, phase: str) -> None:
            with self.lock:
                self.phases.finish(phase)
                self.tell()

        def tell(self) -> None:
            try:
                progress(self.phases.whole.lower(), self.phases.done)
            except Exception as error:  # noqa: BLE001  # raised again when the builder has stopped
                self.failure = error

    return Monitor()
