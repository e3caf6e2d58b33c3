"""The compiler: all passes in run order, and the runner.

A model remembers which passes it went through (in its metadata), so order is checked even between separate calls.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import onnx
from onnx import checker

from graph_passes import (
    cast_fp16,
    fuse_residual_layer_norm,
    fuse_rotary,
    lower_to_onnxruntime,
    prepare,
    quantize_dynamic,
)
from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, PassReport
from graph_passes.graph_tools import export_model, import_model, skeleton

__all__ = [
    "FUSIONS",
    "LOWERINGS",
    "PIPELINE",
    "PRECISIONS",
    "Precision",
    "change_precision",
    "fuse",
    "lower",
    "passes_run_on",
    "run_passes",
]

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
HISTORY = "rotary_press.passes"

PIPELINE: tuple[GraphPass, ...] = (
    prepare.PASS,  # the matchers need shapes, and constants where a value is a constant
    fuse_rotary.PASS,  # before precision: each rewrite is verified in float32
    fuse_residual_layer_norm.PASS,  # as above; independent of the rotary
    cast_fp16.PASS,  # after fusion: the fused ops keep their statistics in float32 by contract
    quantize_dynamic.PASS,  # instead of fp16; the encoder's end is known by its last fused norm
    lower_to_onnxruntime.PASS,  # last: targets differ in nothing else
)
FUSIONS: tuple[GraphPass, ...] = PIPELINE[:3]
PRECISION_PASSES: dict[Precision, tuple[GraphPass, ...]] = {
    "fp32": (),
    "fp16": (cast_fp16.PASS,),
    "int8": (quantize_dynamic.PASS,),
}
LOWERINGS: dict[str, tuple[GraphPass, ...]] = {"portable": (), "onnxruntime": (lower_to_onnxruntime.PASS,)}


def fuse(
    model: onnx.ModelProto, *, expected: Mapping[str, int] | None = None
) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Prepares a plain graph and fuses what is found in it.

    Args:
        model: float32, straight from an exporter.
        expected: How often each fusion pass must apply, by its name; ``None`` takes what comes.

    Returns:
        The fused portable model and one report per pass.

    Raises:
        PassError: If an expected fusion did not happen; the message names the nearest misses.
    """
    fused, reports = run_passes(model, FUSIONS)
    for report in reports:
        wanted = report.count if expected is None else expected.get(report.name, report.count)
        if report.count != wanted:
            misses = "; ".join(f"{miss.node}: {miss.reason}" for miss in report.near_misses[:5])
            raise PassError(
                f"{report.name} applied {report.count} times, expected {wanted}. "
                f"Nearest misses: {misses or 'none, nothing looked like it'}."
            )
    return fused, reports


def change_precision(model: onnx.ModelProto, precision: Precision) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Writes a precision into a fused float32 model; ``"fp32"`` gives it back as it is.

    Raises:
        PassError: If the model is not fused, or not in float32 any more.
    """
    return run_passes(model, PRECISION_PASSES[precision])


def lower(model: onnx.ModelProto, target: str) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Rewrites a fused model at any precision into the ops that ``target`` runs best.

    Raises:
        PassError: If the target is unknown.
    """
    if target not in LOWERINGS:
        raise PassError(f"There is no lowering to {target!r}; expected one of {', '.join(LOWERINGS)}.")
    return run_passes(model, LOWERINGS[target])


def run_passes(model: onnx.ModelProto, passes: Iterable[GraphPass]) -> tuple[onnx.ModelProto, list[PassReport]]:
    """Runs passes in order. After each the graph is cleaned, sorted and checked, shapes and dtypes included.

    Raises:
        PassError: If a pass is out of order, fails, or leaves a graph that is not valid ONNX.
    """
    passes = tuple(passes)
    if not passes:
        return model, []
    history = passes_run_on(model)
    graph = import_model(model)
    reports = []
    for step in passes:
        lacking = [name for name in step.requires if name not in history]
        excluded = [name for name in step.forbids if name in history]
        if lacking or excluded:
            raise PassError(
                f"{step.name} cannot run here: it needs {lacking or 'nothing more'} before it and must not come after "
                f"{excluded or 'anything else'}. Passes so far: {history or 'none'}."
            )
        result = step.run(graph)
        graph = result.graph.cleanup().toposort()
        try:
            checker.check_model(skeleton(graph), full_check=True)
        except (checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise PassError(f"{step.name} left an invalid graph (passes before it: {history}): {error}") from error
        history.append(step.name)
        reports.append(PassReport(step.name, result.count, result.near_misses, result.max_abs_difference))
    finished = export_model(graph)
    del graph, result
    gc.collect()  # nodes and tensors refer to each other, so weights would stay until the collector happens to run
    entry = next((prop for prop in finished.metadata_props if prop.key == HISTORY), None)
    entry = entry if entry is not None else finished.metadata_props.add()
    entry.key, entry.value = HISTORY, json.dumps(history)
    return finished, reports


def passes_run_on(model: onnx.ModelProto) -> list[str]:
    """The passes that a model went through, oldest first."""
    entry = next((prop for prop in model.metadata_props if prop.key == HISTORY), None)
    history = json.loads(entry.value) if entry is not None else []
    return [str(name) for name in history]
