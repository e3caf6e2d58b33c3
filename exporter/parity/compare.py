"""Runs engines on the reference's cases and judges every output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from exporter.engines import Runner
from exporter.parity.metrics import Metrics, measure
from exporter.parity.reference import Reference
from exporter.parity.tolerances import TOLERANCES
from exporter.processor import Processor

__all__ = ["OutputResult", "ParityReport", "compare"]


class OutputResult(BaseModel):
    """The verdict on one output of one engine, over all cases together.

    Attributes:
        worst_case: The case with the largest difference.
        failures: What is out of tolerance, in words; empty means passed.
    """

    target: str
    precision: str
    output: str
    metrics: Metrics
    worst_case: str
    compared: int
    failures: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing is out of tolerance."""
        return not self.failures


class ParityReport(BaseModel):
    """The verdicts on every output of every engine of one export.

    Attributes:
        processor: Where it was judged, and what int8 products ran on.
        not_run: Engines that this machine cannot run, with the reason: nothing is known of them yet.
    """

    model: str
    task: str
    seed: int
    cases: list[str]
    versions: dict[str, str]
    processor: Processor
    results: list[OutputResult]
    not_run: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        """Whether there are results and all of them passed: nothing compared is a failure."""
        return bool(self.results) and all(result.passed for result in self.results)


def compare(
    runner: Runner, reference: Reference, *, target: str, precision: str, score_outputs: Sequence[str]
) -> list[OutputResult]:
    """Judges one engine.

    Args:
        runner: The loaded engine.
        reference: Cases and what float32 PyTorch computes for them.
        target, precision: Of the engine; the precision chooses the tolerance.
        score_outputs: Outputs whose largest entry is the prediction.

    Returns:
        One result per output of the reference; those of a cache (``present.0.key``, …) are judged together. An output
        that the engine lacks, or gives in another shape, has failed.
    """
    tolerance = TOLERANCES[precision]
    found = [(case.name, truth, runner.run(case.inputs)) for case, truth in reference]
    groups: dict[str, list[str]] = {}
    for name in reference[0][1]:
        groups.setdefault(name.partition(".")[0], []).append(name)
    results = []
    for group, names in groups.items():
        failures = [
            f"{case}: expected {name} {truth[name].shape}, "
            f"got {outputs[name].shape if name in outputs else 'no such output'}"
            for case, truth, outputs in found
            for name in names
            if name not in outputs or outputs[name].shape != truth[name].shape
        ]
        metrics, worst_case, compared = Metrics(finite=False), "", 0
        if not failures:
            pairs = [(case, truth[name], outputs[name]) for case, truth, outputs in found for name in names]
            worst_case = max(pairs, key=lambda pair: _apart(pair[1], pair[2]))[0]
            metrics = measure(
                [(truth, array) for _, truth, array in pairs],
                is_scores=group in score_outputs,
                clear_margin=tolerance.clear_margin,
            )
            compared = sum(truth.size for _, truth, _ in pairs)
            failures = tolerance.failures(metrics)
        results.append(
            OutputResult(
                target=target,
                precision=precision,
                output=group,
                metrics=metrics,
                worst_case=worst_case,
                compared=compared,
                failures=failures,
            )
        )
    return results


def _apart(truth: NDArray[Any], found: NDArray[Any]) -> float:
    return float(np.nan_to_num(np.abs(truth - found), nan=np.inf).max(initial=0.0))
