"""Fusing a graph from anywhere: an ONNX file to a fused ONNX file, and what was found. Needs the ``export`` extra."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_graphsurgeon as gs
from pydantic import BaseModel

from exporter.engines import Progress, silent
from exporter.errors import PassError, UserError
from exporter.onnx_files import load_onnx, save_onnx
from graph_passes import pipeline
from graph_passes.graph_pass import PassReport
from graph_passes.graph_tools import notes_of

__all__ = ["FusionReport", "PassEntry", "bring_to", "find_fusions", "fuse"]


class MissEntry(BaseModel):
    """A place that nearly was the op, and why it was left alone."""

    node: str
    reason: str


class PlaceEntry(BaseModel):
    """A place that was fused: the node whose result the op makes now, and the largest difference on probe inputs."""

    node: str
    difference: float


class PassEntry(BaseModel):
    """What one fusion found: how often, where, and the largest difference that was measured while it was proved."""

    name: str
    count: int
    max_abs_difference: float | None
    places: list[PlaceEntry]
    near_misses: list[MissEntry]


class FusionReport(BaseModel):
    """What fused in one graph, and what nearly did."""

    passes: list[PassEntry]

    @property
    def count(self) -> int:
        """How many places were fused."""
        return sum(entry.count for entry in self.passes)


def find_fusions(source: str | os.PathLike[str]) -> FusionReport:
    """What :func:`fuse` would fuse in a graph, each place proved, and what it would not; writes nothing.

    Raises:
        UserError: If the file is not usable, or the runtime cannot run the graph.
    """
    return _fused(Path(source))[1]


def fuse(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    lowering: str = "portable",
    require_fused: bool = False,
    progress: Progress | None = None,
) -> FusionReport:
    """Fuses what a graph of any exporter holds, in float32 or half precision, and writes the result.

    Args:
        source: An ONNX file. Its dynamic axes must have names.
        out: The ONNX file to write, with ``.data`` beside it where it is large.
        lowering: ``"portable"`` keeps the custom ops with their function bodies; otherwise the target whose ops are
            written.
        require_fused: Whether a graph in which nothing fuses is an error, and nothing is written.
        progress: Called at the start of each stage, see :class:`exporter.engines.Progress`; ``None`` is silent.

    Raises:
        UserError: If the file or the lowering is not usable, or the runtime cannot run the graph.
        PassError: If nothing fused although it was required; the message names the nearest misses.
    """
    progress = progress or silent
    if lowering not in pipeline.LOWERINGS:
        raise UserError(f"Unknown lowering {lowering!r}; expected one of {', '.join(pipeline.LOWERINGS)}.")
    path = Path(source)
    progress("reading and fusing the graph")
    fused, report = _fused(path)
    if require_fused and not report.count:
        misses = "; ".join(f"{miss.node}: {miss.reason}" for entry in report.passes for miss in entry.near_misses[:5])
        raise PassError(f"Nothing in {path} fused. Nearest misses: {misses or 'none, nothing looked like it'}.")
    progress(f"lowering to {lowering}")
    lowered, _ = pipeline.lower(fused, lowering)
    save_onnx(lowered, Path(out))
    return report


def bring_to(graph: gs.Graph, lowering: str, path: Path, progress: Progress = silent) -> gs.Graph:
    """A graph at any stage, plain, fused, at any precision or lowered already, in the form of a lowering.

    Args:
        graph: Left as it is.
        lowering: Of ``graph_passes.pipeline.LOWERINGS``.
        path: Where the graph is from, for messages.
        progress: Called at the start of each stage.

    Raises:
        UserError: If it is in dynamic int8 and the lowering takes none, went through another lowering, or cannot be
            fused or lowered.
    """
    history = pipeline.passes_run_on(notes_of(graph))
    if "quantize_dynamic" in history and lowering in ("native", "plugin"):
        raise UserError(
            f"{path} is in dynamic int8, which TensorRT does not take: export with --target tensorrt-rtx "
            f"--calibration FILE, which gives static int8."
        )
    done = [name for name in history if name.startswith("lower_to_")]
    if done and done != [f"lower_to_{lowering}"]:
        raise UserError(f"{path} went through {done[0]} already: give the graph before that, or use it as it is.")
    if done:
        return graph
    try:
        if "fuse_bias_gelu" not in history:
            progress("fusing the graph")
            graph, _ = pipeline.fuse(graph)
        progress(f"lowering to {lowering}")
        return pipeline.lower(graph, lowering)[0]
    except PassError as error:
        raise UserError(f"{path} cannot be brought into the form {lowering}: {error}") from error


def _fused(path: Path) -> tuple[gs.Graph, FusionReport]:
    try:
        fused, reports = pipeline.fuse(load_onnx(path))
    except PassError as error:
        raise UserError(f"{path} cannot be fused: {error}") from error
    return fused, FusionReport(passes=[_entry(report) for report in reports if report.name != "prepare"])


def _entry(report: PassReport) -> PassEntry:
    return PassEntry(
        name=report.name,
        count=report.count,
        max_abs_difference=report.max_abs_difference,
        places=[PlaceEntry(node=place.node, difference=place.difference) for place in report.places],
        near_misses=[MissEntry(node=miss.node, reason=miss.reason) for miss in report.near_misses],
    )
