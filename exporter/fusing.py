"""Fusing a graph from anywhere: an ONNX file to a fused ONNX file, and what was found. Needs the ``export`` extra."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from exporter.errors import PassError, UserError
from exporter.onnx_files import load_onnx, save_onnx
from graph_passes import pipeline
from graph_passes.graph_pass import PassReport

__all__ = ["FusionReport", "PassEntry", "fuse"]


class MissEntry(BaseModel):
    """A place that nearly was the op, and why it was left alone."""

    node: str
    reason: str


class PassEntry(BaseModel):
    """What one fusion found: how often, and the largest difference that was measured while it was proved."""

    name: str
    count: int
    max_abs_difference: float | None
    near_misses: list[MissEntry]


class FusionReport(BaseModel):
    """What fused in one graph, and what nearly did."""

    lowering: str
    passes: list[PassEntry]

    @property
    def count(self) -> int:
        """How many places were fused."""
        return sum(entry.count for entry in self.passes)


def fuse(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    lowering: str = "portable",
    require_fused: bool = False,
    progress: Callable[[str], None] | None = None,
) -> FusionReport:
    """Fuses what a float32 graph of any exporter holds, and writes the result.

    Args:
        source: An ONNX file. Its dynamic axes must have names.
        out: The ONNX file to write, with ``.data`` beside it where it is large.
        lowering: ``"portable"`` keeps the custom ops with their function bodies; otherwise the target whose ops are
            written.
        require_fused: Whether a graph in which nothing fuses is an error, and nothing is written.
        progress: Called with a line at the start of each stage; ``None`` is silent.

    Raises:
        UserError: If the file or the lowering is not usable, or the runtime cannot run the graph.
        PassError: If nothing fused although it was required; the message names the nearest misses.
    """
    progress = progress or (lambda _stage: None)
    if lowering not in pipeline.LOWERINGS:
        raise UserError(f"Unknown lowering {lowering!r}; expected one of {', '.join(pipeline.LOWERINGS)}.")
    progress("reading the graph")
    path = Path(source)
    model = load_onnx(path)
    progress("fusing")
    try:
        fused, reports = pipeline.fuse(model)
    except PassError as error:
        raise UserError(f"{path} cannot be fused: {error}") from error
    report = FusionReport(lowering=lowering, passes=[_entry(found) for found in reports if found.name != "prepare"])
    if require_fused and not report.count:
        misses = "; ".join(f"{miss.node}: {miss.reason}" for entry in report.passes for miss in entry.near_misses[:5])
        raise PassError(f"Nothing in {path} fused. Nearest misses: {misses or 'none, nothing looked like it'}.")
    progress(f"lowering to {lowering}")
    lowered, _ = pipeline.lower(fused, lowering)
    save_onnx(lowered, Path(out))
    return report


def _entry(report: PassReport) -> PassEntry:
    return PassEntry(
        name=report.name,
        count=report.count,
        max_abs_difference=report.max_abs_difference if report.count else None,
        near_misses=[MissEntry(node=miss.node, reason=miss.reason) for miss in report.near_misses],
    )
