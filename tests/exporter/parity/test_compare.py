"""Judging an engine: every way to be wrong is a failure, and so is having compared nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.engines import Arrays, Runner
from exporter.parity import TOLERANCES, Case, OutputResult, ParityReport, Reference, compare

RANDOM = np.random.default_rng(0)
SHAPES = {"first": (1, 4), "second": (3, 2), "third": (2, 5)}


def made_up() -> Reference:
    """Three cases; ``hidden`` (B, S, 6) and ``logits`` (B, 3), whose first entry always leads clearly."""
    reference: Reference = []
    for name, shape in SHAPES.items():
        logits = RANDOM.uniform(-1.0, 1.0, (shape[0], 3)).astype(np.float32)
        logits[:, 0] += 4.0
        hidden = RANDOM.standard_normal((*shape, 6)).astype(np.float32)
        case = Case(name, {"input_ids": RANDOM.integers(0, 9, shape)})
        reference.append((case, {"hidden": hidden, "logits": logits}))
    return reference


REFERENCE = made_up()


class Answers(Runner):
    """Gives what the reference holds for a case, after ``change(case's name, outputs)``."""

    def __init__(self, change: Callable[[str, Arrays], Any] = lambda _name, _outputs: None) -> None:
        self.change = change
        self.asked: list[str] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        [(name, truth)] = [(case.name, truth) for case, truth in REFERENCE if case.inputs is inputs]
        self.asked.append(name)
        outputs = {output: array.copy() for output, array in truth.items()}
        self.change(name, outputs)
        return outputs


def judged(runner: Runner, precision: str = "fp32") -> dict[str, OutputResult]:
    results = compare(runner, REFERENCE, target="fake", precision=precision, score_outputs=["logits"])
    assert {(result.target, result.precision) for result in results} == {("fake", precision)}
    return {result.output: result for result in results}


def test_the_truth_itself_passes() -> None:
    runner = Answers()
    results = judged(runner)
    assert runner.asked == list(SHAPES)
    assert list(results) == ["hidden", "logits"]
    for result in results.values():
        assert result.passed
        assert (result.metrics.max_abs, result.metrics.sqnr_db) == (0.0, None)
    assert results["hidden"].compared == 6 * (4 + 6 + 10)
    assert results["logits"].compared == 3 * (1 + 3 + 2)
    assert results["logits"].metrics.top1_agreement == 1.0
    assert results["hidden"].metrics.top1_agreement is None


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("output", ["hidden", "logits"])
def test_a_missing_output(case: str, output: str) -> None:
    results = judged(Answers(lambda name, outputs: outputs.pop(output) if name == case else None))
    assert not results[output].passed
    [failure] = results[output].failures
    assert failure.startswith(f"{case}: expected ")
    assert failure.endswith("got no output")
    assert results[output].compared == 0
    assert all(result.passed for name, result in results.items() if name != output)


@pytest.mark.parametrize(
    "reshape",
    [lambda array: array.T, lambda array: array[..., :-1], lambda array: array[None], np.ravel, lambda _: np.array(0)],
)
def test_a_wrong_shape(reshape: Callable[[Any], Any]) -> None:
    results = judged(Answers(lambda name, outputs: outputs.update(hidden=reshape(outputs["hidden"]))))
    assert not results["hidden"].passed
    assert [failure.partition(":")[0] for failure in results["hidden"].failures] == list(SHAPES)
    assert results["logits"].passed


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite(precision: str, bad: float) -> None:
    def change(name: str, outputs: Arrays) -> None:
        if name == "second":
            outputs["hidden"][1, 1, 3] = bad

    results = judged(Answers(change), precision)
    assert results["hidden"].failures == ["NaN or infinity"]
    assert results["hidden"].worst_case == "second"
    assert results["logits"].passed


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("case", SHAPES)
def test_one_wrong_row_of_scores(precision: str, case: str) -> None:
    def change(name: str, outputs: Arrays) -> None:
        if name == case:
            outputs["logits"][0, :2] = outputs["logits"][0, 1::-1]

    result = judged(Answers(change), precision)["logits"]
    assert result.worst_case == case
    assert any(failure.startswith("top-1 agreement 0.8333") for failure in result.failures)


def test_one_number_beyond_the_bound() -> None:
    bound = TOLERANCES["fp32"].scaled_max_abs

    def change(name: str, outputs: Arrays) -> None:
        if name == "third":
            outputs["logits"][1, 2] += 2 * bound * np.abs(outputs["logits"]).max()

    results = judged(Answers(change))
    assert [failure[:14] for failure in results["logits"].failures] == ["scaled max abs"]
    assert judged(Answers(change), "fp16")["logits"].passed, "the precision chooses the bound"


def test_scores_in_name_only_are_not_judged_by_their_largest() -> None:
    results = compare(Answers(), REFERENCE, target="fake", precision="fp32", score_outputs=[])
    assert {result.metrics.top1_agreement for result in results} == {None}


def test_outputs_that_nobody_asked_for_do_not_count() -> None:
    extra = np.full((1, 1), np.nan, np.float32)
    assert all(result.passed for result in judged(Answers(lambda _name, outputs: outputs.update(more=extra))).values())


def report_on(*results: OutputResult) -> ParityReport:
    return ParityReport(model="tiny", task="any", seed=0, cases=list(SHAPES), versions={}, results=list(results))


def test_a_report_passes_where_every_result_does() -> None:
    good = judged(Answers())["logits"]
    bad = good.model_copy(update={"failures": ["cosine"]})
    assert report_on(good).passed
    assert report_on(good, good).passed
    assert not report_on(good, bad).passed
    assert not report_on(bad, good).passed


def test_a_report_on_nothing_has_failed() -> None:
    assert not report_on().passed
    without_outputs: Reference = [(case, {}) for case, _ in REFERENCE]
    results = compare(Answers(), without_outputs, target="fake", precision="fp32", score_outputs=[])
    assert not report_on(*results).passed
