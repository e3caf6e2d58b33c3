"""Runs engines on the reference's cases and judges every output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from exporter.engines import Runner
from exporter.parity.metrics import Metrics, measure
from exporter.parity.reference import Reference
from exporter.parity.tolerances import TOLERANCES

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
    """The verdicts on every output of every engine of one export."""

    model: str
    task: str
    seed: int
    cases: list[str]
    versions: dict[str, str]
    results: list[OutputResult]

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
        One result per output of the reference. An output that the engine lacks, or gives in another shape, has failed.
    """
    tolerance = TOLERANCES[precision]
    found = [(case.name, truth, runner.run(case.inputs)) for case, truth in reference]
    results = []
    for name in reference[0][1]:
        failures = [
            f"{case}: expected {truth[name].shape}, got {outputs[name].shape if name in outputs else 'no output'}"
            for case, truth, outputs in found
            if name not in outputs or outputs[name].shape != truth[name].shape
        ]
        metrics, worst_case, compared = Metrics(finite=False), "", 0
        if not failures:
            apart = {
                case: float(np.nan_to_num(np.abs(truth[name] - outputs[name]), nan=np.inf).max())
                for case, truth, outputs in found
            }
            worst_case = max(apart, key=lambda case: apart[case])
            width = reference[0][1][name].shape[-1]
            flat_truth = np.concatenate([truth[name].reshape(-1, width) for _, truth, _ in found])
            flat_found = np.concatenate([outputs[name].reshape(-1, width) for _, _, outputs in found])
            compared = flat_truth.size
            metrics = measure(
                flat_truth, flat_found, is_scores=name in score_outputs, clear_margin=tolerance.clear_margin
            )
            failures = tolerance.failures(metrics)
        results.append(
            OutputResult(
                target=target,
                precision=precision,
                output=name,
                metrics=metrics,
                worst_case=worst_case,
                compared=compared,
                failures=failures,
            )
        )
    return results
