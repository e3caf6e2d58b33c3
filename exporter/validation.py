"""Judging an exported folder against the reference that travels with it. Needs neither torch nor onnx."""

from __future__ import annotations

import os
from pathlib import Path

from exporter import parity
from exporter.engines import Progress, get_engine
from exporter.files import inside
from exporter.manifest import installed_versions, load_manifest
from exporter.parity import ParityReport
from exporter.processor import find_processor

__all__ = ["REFERENCE", "validate"]

REFERENCE = "model/reference.safetensors"


def validate(
    folder: str | os.PathLike[str],
    *,
    report_dir: str | os.PathLike[str] | None = None,
    polygraphy_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Runs every engine of an export on the reference's inputs, here and now, and writes the report.

    Run it on the device that will serve the model: what float32 PyTorch computes was recorded at export, so PyTorch is
    not needed, while the engine's kernels are those of the device. What cannot run here is told, not judged.

    Args:
        folder: Written by ``rotary-press export``. Every file's hash is checked first.
        report_dir: Where ``parity.json`` and ``parity.md`` go; ``None`` means ``folder/report``.
        polygraphy_dir: Where inputs and reference go as polygraphy reads them; ``None`` writes none. See
            :func:`exporter.parity.save_for_polygraphy`.
        progress: Called at the start of each engine, see :class:`exporter.engines.Progress`; ``None`` is silent.

    Raises:
        BundleError: If the folder is no export, is incomplete or altered, or the report cannot be written.
        UnavailableError: If a target, or polygraphy where it is asked for, is not usable here.
    """
    path = Path(folder)
    manifest = load_manifest(path, check_files=True)
    reference = parity.load_reference(inside(path, REFERENCE))
    if polygraphy_dir is not None:
        parity.save_for_polygraphy(reference, Path(polygraphy_dir))
    results, not_run = [], {}
    for entry in manifest.engines:
        if progress is not None:
            progress(f"checking {entry.target} {entry.precision}")
        engine = get_engine(entry.target)
        if reason := engine.cannot_run():
            not_run[f"{entry.target} {entry.precision}"] = reason
            continue
        runner = engine.load(inside(path, entry.file))
        results += parity.compare(
            runner,
            reference,
            target=entry.target,
            precision=entry.precision,
            score_outputs=manifest.score_outputs,
        )
    report = ParityReport(
        model=manifest.name,
        task=manifest.task,
        seed=manifest.seed,
        cases=[case.name for case, _ in reference],
        versions=installed_versions(),
        processor=find_processor(),
        results=results,
        not_run=not_run,
    )
    parity.write_report(report, path / "report" if report_dir is None else Path(report_dir))
    return report
