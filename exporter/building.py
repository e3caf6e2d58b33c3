"""Building one engine from one graph: any ONNX file to an engine file. Needs the ``export`` extra and the target's."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import inliner
from pydantic import BaseModel, ValidationError

from exporter.engines import BuildOptions, Engine, Progress, devices, get_engine, silent
from exporter.engines.cuda import Gpu, find_gpu
from exporter.engines.tensorrt import TensorRT
from exporter.engines.tensorrt_base import TensorRTBase
from exporter.engines.tensorrt_rtx import TensorRTRTX
from exporter.errors import BundleError, CompileError, UnavailableError, UserError
from exporter.fastest import gpu_to_time_on, least_estimate, made_up_cases, quickest, told
from exporter.files import new_file
from exporter.fusing import bring_to
from exporter.onnx_files import MAX_TOKENS, load_onnx, save_onnx
from exporter.parity import Reference
from graph_passes import pipeline
from graph_passes.graph_tools import import_model, notes_of, with_weights_as_inputs

__all__ = ["BuildReport", "build", "make_options"]

BOUNDS = ("min", "opt", "max")
FASTEST = "fastest"
NARROW = {"int8": "int8", "float8_e4m3fn": "fp8", "float16": "fp16", "bfloat16": "bf16"}
OLDEST_SM = 75  # PTX for it runs on all later ones
AMPERE = 80  # the first SM of those that "ampere-plus" engines run on


class BuildReport(BaseModel):
    """What was built.

    Attributes:
        file: The engine.
        target: That it is for.
        precision: Of the graph.
        lowering: The form of the graph that it was built from.
        reason: Why that one.
        size_bytes: Of the engine file.
        kernels: How many each profile of the engine has; empty where the builder does not tell.
    """

    file: str
    target: str
    precision: str
    lowering: str
    reason: str
    size_bytes: int
    kernels: list[int]


def build(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    target: str,
    device: str | None = None,
    lowering: str | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Builds an engine from a graph at any stage: from any exporter, fused, or in half precision.

    Args:
        source: An ONNX file; its precision is that of the engine. One that is not fused yet is fused.
        out: The engine file to write; ``<out>.json`` tells how it was made.
        target: Of ``exporter.engines.ENGINES``.
        device: What the engine is for, of ``exporter.engines.devices.DEVICES``: what it cannot run is refused.
        lowering: Of ``graph_passes.pipeline.LOWERINGS``, or ``"fastest"`` of those that are possible: timed where there
            is a GPU like the one that the engine is for, else by estimates for the device, where the target tells its
            kernels. ``None`` for the usual one.
        options: What is asked of the builder.
        progress: Called at the start of each stage, see :class:`exporter.engines.Progress`; ``None`` is silent.

    Raises:
        UserError: If the file, the device, the lowering or an option is not usable.
        UnavailableError: If the target is not usable here.
        CompileError: If the target refuses the graph.
    """
    progress = progress or silent
    engine = get_engine(target)
    if reason := engine.is_available():
        raise UnavailableError(f"The target {target} is not usable here: {reason}.")
    if lowering not in (None, FASTEST, *pipeline.LOWERINGS):
        raise UserError(f"Unknown lowering {lowering!r}; expected {FASTEST}, {', '.join(pipeline.LOWERINGS)}.")
    path, destination, place = Path(source), Path(out), None if device is None else devices.find_device(device)
    progress("reading the graph")
    graph = load_onnx(path)
    precision = precision_of(graph)
    options = _with_max_tokens(options or BuildOptions(), graph)
    options, chosen = _chosen(engine, destination, place, precision, lowering, options)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.lowering == FASTEST:
            chosen = _fastest(engine, graph, path, destination, place, precision, options, Path(folder), progress)
        else:
            _build(engine, graph, path, chosen.lowering, destination, place, options, Path(folder), progress)
    kernels = []
    if isinstance(engine, TensorRTBase):
        record = engine.annotate(destination, lowering=chosen.lowering, reason=chosen.reason, device=device)
        kernels = [len(schedule.kernels) for schedule in record.schedules]
    return BuildReport(
        file=str(destination),
        target=target,
        precision=precision,
        lowering=chosen.lowering,
        reason=chosen.reason,
        size_bytes=destination.stat().st_size,
        kernels=kernels,
    )


def _chosen(
    engine: Engine,
    destination: Path,
    place: devices.Device | None,
    precision: str,
    lowering: str | None,
    options: BuildOptions,
) -> tuple[BuildOptions, devices.Choice]:
    """The form to build from, and the options with what the device says.

    Raises:
        UserError: If the target takes no such form, nothing for that device, or no file of that name.
    """
    chosen = devices.Choice(engine.lowering, f"the usual one of {engine.target}")
    if not isinstance(engine, TensorRTBase):
        if place is not None:
            raise UserError(f"{engine.target} runs on CPUs: leave --device out, or choose a --target of TensorRT.")
        if destination.suffix != engine.suffix:
            raise UserError(f"What {engine.target} runs is named *{engine.suffix}; got {destination}.")
    else:
        if lowering not in (None, FASTEST, *engine.lowerings()):
            raise UserError(
                f"{engine.target} {'.'.join(map(str, engine.version))} takes no graphs lowered to {lowering}; expected "
                f"{FASTEST}, {', '.join(engine.lowerings())}."
            )
        if place is not None:
            chosen = devices.choose_lowering(engine.target, engine.version, place, precision)
            if lowering not in (None, FASTEST):
                devices.check(place, engine.target, engine.version, precision, lowering)
            options = options.model_copy(update={"memory_bytes": int(place.memory_gb * 2**30)})
            if engine.target == TensorRTRTX.target and not options.sms:
                options = options.model_copy(update={"sms": (place.sm,)})
            if engine.target == TensorRT.target:
                _check_is_here(place, options)
    return options, chosen if lowering is None else devices.Choice(lowering, "asked for")


def _check_is_here(place: devices.Device, options: BuildOptions) -> None:
    """Makes sure that TensorRT runs on a GPU like the one that its engine is for.

    Raises:
        UserError: If it does not, and the engine would not run there.
    """
    gpu = find_gpu()
    may_differ = min(gpu.sm, place.sm) >= AMPERE
    if gpu.sm == place.sm or (may_differ and options.hardware_compatible == "ampere-plus"):
        return
    mend = ", or with --hardware-compatible ampere-plus, which costs speed" if may_differ else ""
    raise UserError(
        f"TensorRT builds for the GPU that it runs on, and that is {gpu.name} (SM {gpu.sm}), not {place.title} (SM "
        f"{place.sm}): build on such a device{mend}."
    )


def precision_of(graph: gs.Graph) -> str:
    """What the matrices of a graph are stored in: the narrowest of them, int8 where there is any."""
    constants = [tensor for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant)]
    names = {np.dtype(tensor.dtype).name for tensor in constants if len(tensor.shape) > 1}
    return next((short for name, short in NARROW.items() if name in names), "fp32")


def _build(
    engine: Engine,
    graph: gs.Graph,
    path: Path,
    lowering: str,
    destination: Path,
    place: devices.Device | None,
    options: BuildOptions,
    folder: Path,
    progress: Progress,
) -> None:
    """Builds from one form of the graph."""
    file = folder / f"{destination.stem}.onnx"
    lowered = bring_to(graph, lowering, path, progress)
    save_onnx(_inlined(lowered) if lowering == "portable" and isinstance(engine, TensorRTBase) else lowered, file)
    if lowering == "plugin":
        from plugins.compile import KernelError
        from plugins.tensorrt_plugins import register

        try:
            register(OLDEST_SM if place is None else place.sm)
        except KernelError as error:
            raise UnavailableError(str(error)) from error
    engine.build(file, destination, options, progress)


def _inlined(graph: gs.Graph) -> gs.Graph:
    """The graph with the bodies of our ops in their places: TensorRT takes no function with outputs left out."""
    model, weights = with_weights_as_inputs(graph)
    return import_model(inliner.inline_local_functions(model), weights)


def _fastest(
    engine: Engine,
    graph: gs.Graph,
    path: Path,
    destination: Path,
    place: devices.Device | None,
    precision: str,
    options: BuildOptions,
    folder: Path,
    progress: Progress,
) -> devices.Choice:
    """Builds every form that the target takes, and keeps the fastest. How to tell is settled before any is built.

    Raises:
        UserError: If nothing tells which one that is.
        CompileError: If no form makes a usable engine.
    """
    if not isinstance(engine, TensorRTBase):
        raise UserError(f"--lowering {FASTEST} is for TensorRT and TensorRT-RTX; {engine.target} has one form.")
    found = gpu_to_time_on(engine, place, precision, options)
    built: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    cases: Reference = []
    for lowering in engine.lowerings():
        candidate = folder / lowering / "built" / destination.name
        try:
            _build(engine, graph, path, lowering, candidate, place, options, folder / lowering, progress)
        except (BundleError, CompileError, UnavailableError) as error:
            left_out[lowering] = told(error, candidate.parent)
            continue
        built[lowering] = candidate
        if isinstance(found, Gpu) and not cases:  # with the first, so that others are not built in vain
            cases = made_up_cases(graph, path, candidate)
    if isinstance(found, Gpu):
        progress(f"timing on {found.name}")
        choice = quickest(engine, built, cases, found, precision, left_out)
    else:
        assert place is not None  # what is estimated is for a device
        choice = least_estimate(engine, built, place, found, left_out)
    for file in built[choice.lowering].parent.iterdir():
        with new_file(destination.parent / file.name) as temporary:
            shutil.copyfile(file, temporary)
    return choice


def make_options(*, profiles: Sequence[str] = (), profile_file: Path | None = None, **rest: Any) -> BuildOptions:
    """The options of a command line.

    Args:
        profiles: ``AXIS=MIN:OPT:MAX,…`` each.
        profile_file: JSON, axes to lists of three numbers, or a list of such, to which those are added.
        rest: The other fields of :class:`BuildOptions`.

    Raises:
        UserError: If one of them is not as it must be.
    """
    ranges: list[dict[str, Any]] = []
    if profile_file is not None:
        try:
            stored = json.loads(profile_file.read_bytes())
            for entry in stored if isinstance(stored, list) else [stored]:
                ranges.append({axis: dict(zip(BOUNDS, of, strict=True)) for axis, of in entry.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f'{profile_file} is no file of profiles: expected {{"sequence": [1, 128, 512]}}, or a list of such '
                f"({error})."
            ) from error
    ranges += [_range_of(text) for text in profiles]
    try:
        return BuildOptions.model_validate({"profiles": ranges, **rest})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{where or 'An option'}: {problem['msg']}; got {problem['input']!r}.") from error


def _range_of(text: str) -> dict[str, Any]:
    """One profile of the command line."""
    found = {}
    for entry in text.split(","):
        axis, _, bounds = entry.partition("=")
        numbers = bounds.split(":")
        if not axis.strip() or len(numbers) != len(BOUNDS) or not all(number.isdecimal() for number in numbers):
            raise UserError(
                f"{text!r} is no profile: expected AXIS=MIN:OPT:MAX, several with commas, such as "
                f"batch=1:1:8,sequence=1:128:512."
            )
        found[axis.strip()] = dict(zip(BOUNDS, map(int, numbers), strict=True))
    return found


def _with_max_tokens(options: BuildOptions, graph: gs.Graph) -> BuildOptions:
    """The options, with the number of positions that the graph was written with."""
    stored = next((entry.value for entry in notes_of(graph).metadata_props if entry.key == MAX_TOKENS), None)
    if stored is None or options.max_tokens is not None:
        return options
    return options.model_copy(update={"max_tokens": int(stored)})
