"""The compiler: all passes in run order, and the runner.

A model remembers which passes it went through (in its metadata), so order is checked even between separate calls.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import checker

from graph_passes import (
    cast_fp16,
    fuse_attention,
    fuse_bias_gelu,
    fuse_qkv_rotary,
    fuse_quantized_norm,
    fuse_residual_layer_norm,
    fuse_rotary,
    insert_qdq,
    lower_to_native,
    lower_to_onnxruntime,
    lower_to_plugin,
    prepare,
    quantize_dynamic,
)
from graph_passes.equivalence import difference_of_results
from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, PassReport
from graph_passes.graph_tools import copy_graph, forget_names, notes_of, skeleton, weight_bytes

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
# Of the largest result. Sums in another order, at 2^-24 each, grow to 1e-5 in twelve layers; a wrong rewrite is off by
# 1e-2 and more.
RESULTS_TOLERANCE = 1e-3
# A rounding may turn the other way in an activation of eight bits: 1/255 of the range, in every layer.
QUANTIZED_TOLERANCE = 0.05
WORTH_COLLECTING = 2**26  # bytes: looking for less takes longer (0.3 s beside torch) than it is worth

PIPELINE: tuple[GraphPass, ...] = (
    prepare.PASS,  # the matchers need shapes, and constants where a value is a constant
    fuse_rotary.PASS,  # before precision: each rewrite is verified in float32
    fuse_residual_layer_norm.PASS,  # as above; independent of the rotary
    fuse_attention.PASS,  # after the rotary, which its operands come from
    fuse_bias_gelu.PASS,  # independent of the others
    insert_qdq.PASS,  # on float32, of which the ranges are; the encoder's end is known by its last fused norm
    cast_fp16.PASS,  # after fusion: the fused ops keep their statistics in float32 by contract; around static int8
    quantize_dynamic.PASS,  # instead of fp16 and of static int8, for runtimes that find ranges as they run
    lower_to_onnxruntime.PASS,  # last: targets differ in nothing else
    lower_to_native.PASS,  # as above
    fuse_qkv_rotary.PASS,  # for plugins alone, other targets have better; its bias is float32 at every precision
    fuse_quantized_norm.PASS,  # for plugins alone, too; after quantisation has said what is int8
    lower_to_plugin.PASS,  # last, as the others
)
FUSIONS: tuple[GraphPass, ...] = PIPELINE[:5]
PRECISION_PASSES: dict[Precision, tuple[GraphPass, ...]] = {
    "fp32": (),
    "fp16": (cast_fp16.PASS,),
    "int8": (quantize_dynamic.PASS,),
}
LOWERINGS: dict[str, tuple[GraphPass, ...]] = {
    "portable": (),
    "onnxruntime": (lower_to_onnxruntime.PASS,),
    "native": (lower_to_native.PASS,),
    "plugin": (fuse_qkv_rotary.PASS, fuse_quantized_norm.PASS, lower_to_plugin.PASS),
}


def fuse(graph: gs.Graph, *, expected: Mapping[str, int] | None = None) -> tuple[gs.Graph, list[PassReport]]:
    """Prepares a plain graph and fuses what is found in it.

    Args:
        graph: float32, straight from an exporter. Left as it is.
        expected: How often each fusion pass must apply, by its name; ``None`` takes what comes.

    Returns:
        The fused portable graph and one report per pass.

    Raises:
        PassError: If an expected fusion did not happen; the message names the nearest misses. If the graph cannot be
            run, or the fused one does not compute the same.
    """
    fused, reports = run_passes(graph, FUSIONS)
    for report in reports:
        wanted = report.count if expected is None else expected.get(report.name, report.count)
        if report.count != wanted:
            misses = "; ".join(f"{miss.node}: {miss.reason}" for miss in report.near_misses[:5])
            raise PassError(
                f"{report.name} applied {report.count} times, expected {wanted}. "
                f"Nearest misses: {misses or 'none, nothing looked like it'}."
            )
    _check_results(graph, fused)
    return fused, reports


def change_precision(
    graph: gs.Graph, precision: Precision, *, ranges: Mapping[str, float] | None = None
) -> tuple[gs.Graph, list[PassReport]]:
    """Writes a precision into a fused float32 graph; ``"fp32"`` gives it back as it is.

    Args:
        graph: Left as it is.
        precision: ``"int8"`` finds the ranges of activations at run time, as ONNX Runtime's CPU takes it, unless it is
            given them.
        ranges: Of ``"int8"`` alone: the largest magnitude to represent, by tensor. The result is static int8 with
            everything else in half precision, as TensorRT takes it.

    Raises:
        PassError: If the graph is not fused, or not in float32 any more. If ranges are given for another precision, or
            lack a tensor.
    """
    if ranges is None:
        return run_passes(graph, PRECISION_PASSES[precision])
    if precision != "int8":
        raise PassError(f"Ranges are of int8 alone; got some for {precision}.")
    return run_passes(graph, (insert_qdq.insert_qdq(ranges), cast_fp16.PASS))


def lower(graph: gs.Graph, target: str) -> tuple[gs.Graph, list[PassReport]]:
    """Rewrites a fused graph at any precision into the ops that ``target`` runs best.

    Raises:
        PassError: If the target is unknown, or the lowered graph does not compute the same.
    """
    if target not in LOWERINGS:
        raise PassError(f"There is no lowering to {target!r}; expected one of {', '.join(LOWERINGS)}.")
    lowered, reports = run_passes(graph, LOWERINGS[target])
    if lowered is not graph:
        _check_results(graph, lowered)
    return lowered, reports


def run_passes(graph: gs.Graph, passes: Iterable[GraphPass]) -> tuple[gs.Graph, list[PassReport]]:
    """Runs passes in order on a copy. After each it is cleaned, sorted and checked, shapes and dtypes included.

    Raises:
        PassError: If a pass is out of order, fails, or leaves a graph that is not valid ONNX.
    """
    passes = tuple(passes)
    if not passes:
        return graph, []
    notes = notes_of(graph := copy_graph(graph))
    history = passes_run_on(notes)
    reports = []
    for step in passes:
        lacking = [name for name in step.requires if name not in history]
        excluded = [name for name in step.forbids if name in history]
        if lacking or excluded:
            raise PassError(
                f"{step.name} cannot run here: it needs {lacking or 'nothing more'} before it and must not come after "
                f"{excluded or 'anything else'}. Passes so far: {history or 'none'}."
            )
        forget_names(graph)
        with np.errstate(all="ignore"):  # observed numbers may be infinite or none: those agree with nothing
            result = step.run(graph)
        graph = result.graph.cleanup().toposort()
        try:
            checker.check_model(skeleton(graph), full_check=True)
        except (checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise PassError(f"{step.name} left an invalid graph (passes before it: {history}): {error}") from error
        history += [step.name] if step.name not in history else []  # fused twice is fused
        reports.append(PassReport(step.name, result.count, result.places, result.near_misses))
    entry = next((prop for prop in notes.metadata_props if prop.key == HISTORY), None)
    entry = entry if entry is not None else notes.metadata_props.add()
    entry.key, entry.value = HISTORY, json.dumps(history)
    graph.notes = notes
    if weight_bytes(graph) > WORTH_COLLECTING:
        gc.collect()  # nodes and tensors refer to each other, so weights would stay until the collector happens to run
    return graph, reports


def _check_results(before: gs.Graph, after: gs.Graph) -> None:
    """Makes sure that two graphs with one interface compute the same, half precision widened to float32.

    Each rewrite is proved where it is made; this finds what would be wrong with all of them together.

    Raises:
        PassError: If the results differ, or the first graph cannot be run.
    """
    is_quantized = any(node.op in ("DynamicQuantizeLinear", "QuantizeLinear") for node in before.nodes)
    tolerance = QUANTIZED_TOLERANCE if is_quantized else RESULTS_TOLERANCE
    difference = difference_of_results(before, lower_to_plugin.without_plugins(after))
    if not difference <= tolerance:
        raise PassError(
            f"The new graph does not compute what the old one computed: the results differ by {difference:.3g} of the "
            f"largest, more than {tolerance}. This is a mistake of Rotary Press: please report it with the graph."
        )


def passes_run_on(model: onnx.ModelProto) -> list[str]:
    """The passes that a model, or that of which a graph has the notes, went through, oldest first."""
    entry = next((prop for prop in model.metadata_props if prop.key == HISTORY), None)
    history = json.loads(entry.value) if entry is not None else []
    return [str(name) for name in history]
