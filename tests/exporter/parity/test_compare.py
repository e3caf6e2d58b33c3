"""Judging an engine: every way to be wrong is a failure, and so is having compared nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.engines import Arrays, Runner
from exporter.parity import TOLERANCES, Case, OutputResult, ParityReport, Reference, compare
from exporter.processor import Processor

RANDOM = np.random.default_rng(0)
SHAPES = {"first": (1, 4), "second": (3, 2), "third": (2, 5)}
OUTPUTS = ["hidden", "logits", "start_logits", "present"]
CACHE = [f"present.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]


def made_up() -> Reference:
    """Three cases; ``hidden`` (B, S, 6), ``logits`` (B, 3), whose first entry always leads clearly, ``start_logits``

    (B, S), whose last one does, and the cache of two layers, (B, 2, S, 3) each.
    """
    reference: Reference = []
    for name, shape in SHAPES.items():
        logits = RANDOM.uniform(-1.0, 1.0, (shape[0], 3)).astype(np.float32)
        logits[:, 0] += 4.0
        hidden = RANDOM.standard_normal((*shape, 6)).astype(np.float32)
        start = RANDOM.uniform(-1.0, 1.0, shape).astype(np.float32)
        start[:, -1] += 4.0
        cache = {key: RANDOM.standard_normal((shape[0], 2, shape[1], 3)).astype(np.float32) for key in CACHE}
        case = Case(name, {"input_ids": RANDOM.integers(0, 9, shape)})
        reference.append((case, {"hidden": hidden, "logits": logits, "start_logits": start} | cache))
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
    results = compare(runner, REFERENCE, target="fake", precision=precision, score_outputs=["logits", "start_logits"])
    assert {(result.target, result.precision) for result in results} == {("fake", precision)}
    return {result.output: result for result in results}


def test_the_truth_itself_passes() -> None:
    runner = Answers()
    results = judged(runner)
    assert runner.asked == list(SHAPES)
    assert list(results) == OUTPUTS
    for result in results.values():
        assert result.passed
        assert (result.metrics.max_abs, result.metrics.sqnr_db) == (0.0, None)
    assert results["hidden"].compared == 6 * (4 + 6 + 10)
    assert results["logits"].compared == 3 * (1 + 3 + 2)
    assert results["start_logits"].compared == 4 + 6 + 10
    assert results["present"].compared == 4 * 6 * (4 + 6 + 10)
    assert {name: result.metrics.top1_agreement for name, result in results.items()} == {
        "hidden": None,
        "logits": 1.0,
        "start_logits": 1.0,
        "present": None,
    }


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("output", ["hidden", "logits", "start_logits", "present.0.key", "present.1.value"])
def test_a_missing_output(case: str, output: str) -> None:
    results = judged(Answers(lambda name, outputs: outputs.pop(output) if name == case else None))
    group = output.partition(".")[0]
    assert not results[group].passed
    [failure] = results[group].failures
    assert failure.startswith(f"{case}: expected {output} (")
    assert failure.endswith("got no such output")
    assert results[group].compared == 0
    assert all(result.passed for name, result in results.items() if name != group)


def test_a_cache_of_another_length() -> None:
    """What an engine without a past would give: the new tokens alone."""
    results = judged(
        Answers(lambda _name, outputs: outputs.update({"present.1.key": outputs["present.1.key"][:, :, 1:]}))
    )
    assert results["present"].failures == [
        f"{name}: expected present.1.key {(rows, 2, length, 3)}, got {(rows, 2, length - 1, 3)}"
        for name, (rows, length) in SHAPES.items()
    ]


@pytest.mark.parametrize("output", CACHE)
def test_one_wrong_tensor_of_the_cache(output: str) -> None:
    def change(name: str, outputs: Arrays) -> None:
        if name == "third":
            outputs[output][1, 0, 4] += 0.01

    results = judged(Answers(change))
    assert not results["present"].passed
    assert results["present"].worst_case == "third"
    assert results["present"].metrics.max_abs == pytest.approx(0.01, rel=1e-3)
    assert all(result.passed for name, result in results.items() if name != "present")


def test_layers_in_another_order_fail() -> None:
    def change(_name: str, outputs: Arrays) -> None:
        outputs["present.0.key"], outputs["present.1.key"] = outputs["present.1.key"], outputs["present.0.key"]

    assert not judged(Answers(change))["present"].passed


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("case", SHAPES)
def test_one_wrong_row_among_rows_of_other_widths(precision: str, case: str) -> None:
    """Its scores are over the tokens, so every case has a width of its own."""

    def change(name: str, outputs: Arrays) -> None:
        if name == case:
            outputs["start_logits"][0] = outputs["start_logits"][0, ::-1]

    result = judged(Answers(change), precision)["start_logits"]
    assert result.worst_case == case
    assert result.metrics.top1_agreement == pytest.approx(5 / 6)
    assert any(failure.startswith("top-1 agreement 0.8333") for failure in result.failures)


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
@pytest.mark.parametrize("output", ["hidden", "start_logits", "present.1.key"])
def test_one_number_that_is_not_finite(output: str, precision: str, bad: float) -> None:
    def change(name: str, outputs: Arrays) -> None:
        if name == "second":
            outputs[output][(1, 0) if output == "start_logits" else (1, 1, 1)] = bad

    results = judged(Answers(change), precision)
    group = output.partition(".")[0]
    assert results[group].failures == ["NaN or infinity"]
    assert results[group].worst_case == "second"
    assert all(result.passed for name, result in results.items() if name != group)


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
    return ParityReport(
        model="tiny",
        task="any",
        seed=0,
        cases=list(SHAPES),
        versions={},
        processor=Processor(name="a CPU", int8="AVX2"),
        results=list(results),
    )


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
