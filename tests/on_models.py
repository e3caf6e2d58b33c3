"""The compiler on models: each call opens one, runs passes and closes the result, for tests that look at nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from graph_passes import pipeline
from graph_passes.graph_pass import GraphPass, PassReport
from graph_passes.graph_tools import export_model, import_model
from graph_passes.observation import observe
from graph_passes.quantization import tensors_to_quantize

__all__ = ["change_precision", "fuse", "lower", "ranges_of", "run_passes"]

Result = tuple[ModelProto, list[PassReport]]


def fuse(model: ModelProto, *, expected: Mapping[str, int] | None = None) -> Result:
    return _closed(pipeline.fuse(import_model(model), expected=expected))


def change_precision(
    model: ModelProto, precision: pipeline.Precision, *, ranges: Mapping[str, float] | None = None
) -> Result:
    return _closed(pipeline.change_precision(import_model(model), precision, ranges=ranges))


def ranges_of(model: ModelProto) -> dict[str, float]:
    """What made-up inputs reach, and a half more, of each tensor that static int8 quantises."""
    graph = import_model(model)
    tensors = tensors_to_quantize(graph)
    runs = observe(graph, tensors=tensors).runs if tensors else ()
    return {tensor.name: 1.5 * max(float(np.abs(run.values[tensor.name]).max()) for run in runs) for tensor in tensors}


def lower(model: ModelProto, target: str) -> Result:
    return _closed(pipeline.lower(import_model(model), target))


def run_passes(model: ModelProto, passes: Iterable[GraphPass]) -> Result:
    return _closed(pipeline.run_passes(import_model(model), passes))


def _closed(result: tuple[gs.Graph, list[PassReport]]) -> Result:
    graph, reports = result
    return export_model(graph), reports
