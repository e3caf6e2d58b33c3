"""Which form of a graph makes the fastest engine: timed on the GPU that is here, or estimated for a device.

An engine that is fast and computes something else must not win: what is timed is judged first, as an export is, against
ONNX Runtime on the same made-up inputs. Needs the ``export`` extra.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from exporter.bench import interleaved_medians
from exporter.engines import BuildOptions, devices
from exporter.engines.cuda import Gpu, find_gpu
from exporter.engines.tensorrt_base import SUM, TensorRTBase, read_record
from exporter.engines.tensorrt_rtx import TensorRTRTX
from exporter.engines.tensorrt_runner import TensorRTRunner
from exporter.errors import CompileError, PassError, RotaryPressError, UserError
from exporter.parity import TOLERANCES, Case, Reference, compare
from graph_passes.observation import evaluator

__all__ = ["gpu_to_time_on", "least_estimate", "made_up_cases", "quickest", "told"]

ROUNDS = 30
WARM_UP = 10  # buffers grow, graphs are captured, and TensorRT-RTX compiles kernels


def gpu_to_time_on(
    engine: TensorRTBase, place: devices.Device | None, precision: str, options: BuildOptions
) -> Gpu | str:
    """The GPU that engines can be timed on; or why there is none, where their kernels can be estimated instead.

    Raises:
        UserError: If neither is possible.
    """
    found = _gpu_for(engine, place, precision, options)
    if isinstance(found, Gpu):
        return found
    forms = " or ".join(engine.lowerings())
    if not isinstance(engine, TensorRTRTX):
        raise UserError(
            f"--lowering fastest cannot time engines here: {found}. Nor can it compare estimates, since "
            f"{engine.target} does not tell its kernels. Choose one with --lowering {forms}."
        )
    if place is None:
        raise UserError(
            f"--lowering fastest cannot time engines here: {found}. It can compare estimates for a device: name it "
            f"with --device, or choose one with --lowering {forms}."
        )
    return found


def _gpu_for(engine: TensorRTBase, place: devices.Device | None, precision: str, options: BuildOptions) -> Gpu | str:
    if reason := engine.cannot_run():
        return reason
    if precision not in TOLERANCES:
        return (
            f"there is no tolerance for {precision}, by which to tell whether an engine is right as well as fast; "
            f"there are some for {', '.join(TOLERANCES)}"
        )
    gpu = find_gpu()
    here = f"the GPU here is {gpu.name}, SM {gpu.sm}"
    if place is not None and place.sm != gpu.sm:
        return f"they are for {place.title}, SM {place.sm}, and {here}"
    if options.sms and gpu.sm not in options.sms:
        return f"they are for SM {', '.join(map(str, options.sms))}, and {here}"
    return gpu


def made_up_cases(graph: gs.Graph, path: Path, engine: Path) -> Reference:
    """Inputs at the optimum of each profile of an engine, and what ONNX Runtime computes from them in float32.

    Args:
        graph: That the engine is built from, at any stage before its lowering.
        path: Where the graph is from, for messages.
        engine: With its record beside it.

    Raises:
        UserError: If the graph does not run at those sizes, or its results are not finite.
    """
    evaluate = evaluator(graph, graph.outputs)
    cases = []
    for profile in read_record(engine).profiles:
        sizes = {axis: int(bounds.split(":")[1]) for axis, bounds in profile.items() if SUM not in axis}
        at = ", ".join(f"{axis}={size}" for axis, size in sizes.items()) or "fixed shapes"
        mend = "Give a --profile whose optimum it takes, or choose a form with --lowering."
        try:
            values = evaluate(sizes, 0)
        except PassError as error:
            raise UserError(
                f"{path} cannot be run at {at}, so nothing can be timed: {str(error).strip()} {mend}"
            ) from error
        inputs, outputs = ({tensor.name: values[tensor.name] for tensor in of} for of in (graph.inputs, graph.outputs))
        if broken := [name for name, array in outputs.items() if not np.isfinite(array).all()]:
            raise UserError(
                f"{path} computes NaN or infinity at {at}, in {', '.join(broken)}, so no engine of it can be judged. "
                f"{mend}"
            )
        cases.append((Case(at, inputs), outputs))
    return cases


def quickest(
    engine: TensorRTBase,
    files: Mapping[str, Path],
    cases: Reference,
    gpu: Gpu,
    precision: str,
    left_out: Mapping[str, str],
) -> devices.Choice:
    """Runs engines in turns, and chooses the one with the least median; with several cases, the least sum of medians.

    Args:
        engine: That loads them.
        files: By the form that they were built from.
        cases: Of :func:`made_up_cases`.
        gpu: That they run on.
        precision: Which chooses the tolerance.
        left_out: The forms that could not be built, with the reason.

    Raises:
        CompileError: If none of them runs and computes the same as the graph.
    """
    left_out = dict(left_out)
    with ExitStack() as stack:
        runners: dict[str, TensorRTRunner] = {}
        for lowering, file in files.items():
            try:
                runners[lowering] = stack.enter_context(_judged(engine, file, cases, precision))
            except RotaryPressError as error:
                left_out[lowering] = told(error, file.parent)
        _check_any(runners, engine, left_out)
        seconds = dict.fromkeys(runners, 0.0)
        for case, _ in cases:
            timed = {lowering: partial(runner.run, case.inputs) for lowering, runner in runners.items()}
            for lowering, median in interleaved_medians(timed, rounds=ROUNDS, warm_up=WARM_UP, pause=0).items():
                seconds[lowering] += median
    shapes = " and ".join(case.name for case, _ in cases)
    how = f"{'medians' if len(cases) == 1 else 'sums of medians'} of {ROUNDS} runs in turns"
    return _least(seconds, f"the fastest on {gpu.name} at {shapes}, {how}", left_out)


def _judged(engine: TensorRTBase, file: Path, cases: Reference, precision: str) -> TensorRTRunner:
    """A loaded engine, warm and within tolerance. It is judged when warm, since a captured graph is what is timed.

    Raises:
        CompileError: If it is out of tolerance.
        RotaryPressError: If it cannot be loaded or run.
    """
    with ExitStack() as stack:
        runner = stack.enter_context(engine.load(file))
        for _ in range(WARM_UP):
            for case, _truth in cases:
                runner.run(case.inputs)
        results = compare(runner, cases, target=engine.target, precision=precision, score_outputs=())
        if failures := [f"{result.output}: {failure}" for result in results for failure in result.failures]:
            raise CompileError(f"it computes something else than the graph ({'; '.join(failures)})")
        stack.pop_all()
    return runner


def least_estimate(
    engine: TensorRTBase,
    files: Mapping[str, Path],
    place: devices.Device,
    not_timed: str,
    left_out: Mapping[str, str],
) -> devices.Choice:
    """Chooses the engine whose kernels should take the least time on a device.

    Args:
        engine: That built them.
        files: By the form that they were built from.
        place: The device.
        not_timed: Why they were not timed.
        left_out: The forms that could not be built, with the reason.

    Raises:
        CompileError: If there is none, or the kernels of one are not known.
    """
    _check_any(files, engine, left_out)
    seconds = {}
    for lowering, file in files.items():
        record = read_record(file)
        if not record.schedules:
            raise CompileError(
                f"{engine.target} {record.version} does not tell the kernels of the form {lowering} "
                f"({'; '.join(record.warnings) or 'it gives no reason'}), so nothing says which one is fastest: choose "
                f"one with --lowering {' or '.join(engine.lowerings())}."
            )
        seconds[lowering] = sum(devices.estimate_on(place, of).estimated_seconds for of in record.schedules)
    choice = _least(seconds, f"the least of the estimates for {place.title}", left_out)
    return devices.Choice(choice.lowering, f"{choice.reason}; not timed: {not_timed}")


def told(error: RotaryPressError, folder: Path) -> str:
    """What an error says, as a part of a sentence, without the temporary folder that it happened in."""
    return str(error).replace(f"{folder}{os.sep}", "").rstrip(".")


def _check_any(left: Mapping[str, object], engine: TensorRTBase, left_out: Mapping[str, str]) -> None:
    if not left:
        reasons = "; ".join(f"{lowering}: {reason}" for lowering, reason in left_out.items())
        raise CompileError(f"{engine.target} makes no usable engine of any form of the graph. {reasons}.")


def _least(seconds: Mapping[str, float], how: str, left_out: Mapping[str, str]) -> devices.Choice:
    compared = ", ".join(f"{lowering} {1e6 * time:.0f} us" for lowering, time in seconds.items())
    lost = "".join(f"; {lowering} left out: {reason}" for lowering, reason in left_out.items())
    return devices.Choice(min(seconds, key=lambda lowering: seconds[lowering]), f"{how}: {compared}{lost}")
