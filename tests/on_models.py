"""The compiler on models: each call opens one, runs passes and closes the result, for tests that look at nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_graphsurgeon as gs
from onnx import ModelProto

from graph_passes import pipeline
from graph_passes.graph_pass import GraphPass, PassReport
from graph_passes.graph_tools import export_model, import_model

__all__ = ["change_precision", "fuse", "lower", "run_passes"]

Result = tuple[ModelProto, list[PassReport]]


def fuse(model: ModelProto, *, expected: Mapping[str, int] | None = None) -> Result:
    return _closed(pipeline.fuse(import_model(model), expected=expected))


def change_precision(model: ModelProto, precision: pipeline.Precision) -> Result:
    return _closed(pipeline.change_precision(import_model(model), precision))


def lower(model: ModelProto, target: str) -> Result:
    return _closed(pipeline.lower(import_model(model), target))


def run_passes(model: ModelProto, passes: Iterable[GraphPass]) -> Result:
    return _closed(pipeline.run_passes(import_model(model), passes))


def _closed(result: tuple[gs.Graph, list[PassReport]]) -> Result:
    graph, reports = result
    return export_model(graph), reports
