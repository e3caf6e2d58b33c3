"""A parity report as JSON and as Markdown."""

from __future__ import annotations

import html
from pathlib import Path

from exporter.files import new_file
from exporter.parity.compare import ParityReport
from exporter.parity.tolerances import TOLERANCES

__all__ = ["to_markdown", "write_report"]


def write_report(report: ParityReport, folder: Path) -> None:
    """Writes ``parity.json`` and ``parity.md``.

    Raises:
        BundleError: If the folder cannot be written.
    """
    with new_file(folder / "parity.json") as temporary:
        temporary.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    with new_file(folder / "parity.md") as temporary:
        temporary.write_text(to_markdown(report), encoding="utf-8")


def to_markdown(report: ParityReport) -> str:
    """The report as a page: verdict, table, what failed, the tolerances and their reasons."""
    lines = [
        f"# Parity of {_escape(report.model)} ({_escape(report.task)}): {'PASS' if report.passed else 'FAIL'}",
        "",
        (
            f"Truth: float32 PyTorch, on {len(report.cases)} batches of inputs (seed {report.seed}): "
            f"{_escape(', '.join(report.cases))}."
        ),
        "",
        "| engine | output | max abs | mean abs | cosine | SQNR (dB) | top-1 | worst case | verdict |",
        "|---|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for result in report.results:
        metrics = result.metrics
        top1 = "" if metrics.top1_agreement is None else f"{metrics.top1_agreement:.2%}"
        sqnr = "exact" if metrics.sqnr_db is None and metrics.finite else f"{metrics.sqnr_db or 0:.1f}"
        lines.append(
            f"| {_escape(result.target)} {_escape(result.precision)} | {_escape(result.output)} "
            f"| {metrics.max_abs:.3g} | {metrics.mean_abs:.3g} | {metrics.cosine:.6f} | {sqnr} | {top1} "
            f"| {_escape(result.worst_case)} | {'PASS' if result.passed else 'FAIL'} |"
        )
    failed = [result for result in report.results if not result.passed]
    if failed:
        lines += ["", "## Failures", ""]
        lines += [
            f"- {_escape(result.target)} {_escape(result.precision)}, {_escape(result.output)}: "
            f"{_escape('; '.join(result.failures))}"
            for result in failed
        ]
    if report.not_run:
        lines += ["", "## Not run here", ""]
        lines += [f"- {_escape(engine)}: {_escape(reason)}" for engine, reason in report.not_run.items()]
    lines += ["", "## Tolerances", ""]
    for precision in dict.fromkeys(result.precision for result in report.results):
        tolerance = TOLERANCES[precision]
        lines.append(
            f"- {precision}: scaled max abs at most {tolerance.scaled_max_abs:g}, SQNR at least {tolerance.sqnr_db:g} "
            f"dB, cosine at least {tolerance.cosine:g}, top-1 agreement at least {tolerance.top1_agreement:.0%} where "
            f"the best score leads by {tolerance.clear_margin:g} standard deviations. {tolerance.reason}"
        )
    versions = ", ".join(f"{_escape(name)} {_escape(version)}" for name, version in report.versions.items())
    machine = f"Judged on {_escape(report.processor.name)}; ONNX Runtime multiplied int8 with "
    machine += f"{_escape(report.processor.int8)}."
    return "\n".join([*lines, "", machine, "", f"Versions: {versions}.", ""])


def _escape(text: str) -> str:
    """Names come from checkpoints: they must not become markup, nor end a table's cell."""
    escaped = html.escape(text, quote=False)
    for character in "\\`*_[]|#":
        escaped = escaped.replace(character, f"\\{character}")
    return " ".join(escaped.split())
