"""The bounds: one row per precision, each with a reason, and each measure able to fail alone."""

from __future__ import annotations

import math
from typing import Any

import pytest

from exporter.parity import TOLERANCES, Metrics
from graph_passes.pipeline import PRECISIONS

MEASURES = {
    "scaled_max_abs": ("scaled max abs", +1),
    "sqnr_db": ("SQNR", -1),
    "cosine": ("cosine", -1),
    "top1_agreement": ("top-1 agreement", -1),
}
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
every_measure = pytest.mark.parametrize("measure", MEASURES)


def at_the_bound(precision: str, **values: Any) -> Metrics:
    return Metrics(**{measure: getattr(TOLERANCES[precision], measure) for measure in MEASURES} | values)


def test_every_precision_has_a_row() -> None:
    assert tuple(TOLERANCES) == PRECISIONS


@every_precision
def test_every_row_has_a_reason(precision: str) -> None:
    reason = TOLERANCES[precision].reason
    assert len(reason.split()) > 10
    assert any(character.isdigit() for character in reason), "a reason names what was measured or computed"


@pytest.mark.parametrize(("finer", "coarser"), [("fp32", "fp16"), ("fp16", "int8")])
def test_a_finer_precision_allows_less(finer: str, coarser: str) -> None:
    fine, coarse = TOLERANCES[finer], TOLERANCES[coarser]
    assert fine.scaled_max_abs < coarse.scaled_max_abs
    assert fine.clear_margin < coarse.clear_margin
    assert fine.sqnr_db > coarse.sqnr_db
    assert fine.cosine > coarse.cosine
    assert fine.top1_agreement >= coarse.top1_agreement


@every_precision
def test_the_bound_itself_passes(precision: str) -> None:
    assert TOLERANCES[precision].failures(at_the_bound(precision)) == []


@every_precision
@every_measure
def test_each_measure_can_fail_alone(precision: str, measure: str) -> None:
    words, direction = MEASURES[measure]
    beyond = math.nextafter(getattr(TOLERANCES[precision], measure), direction * math.inf)
    [failure] = TOLERANCES[precision].failures(at_the_bound(precision, **{measure: beyond}))
    assert failure.startswith(words)


@every_precision
@every_measure
def test_nan_is_out_of_every_bound(precision: str, measure: str) -> None:
    [failure] = TOLERANCES[precision].failures(at_the_bound(precision, **{measure: math.nan}))
    assert failure.startswith(MEASURES[measure][0])


@every_precision
@pytest.mark.parametrize("measure", ["sqnr_db", "top1_agreement"])
def test_what_was_not_measured_does_not_fail(precision: str, measure: str) -> None:
    assert TOLERANCES[precision].failures(at_the_bound(precision, **{measure: None})) == []


@every_precision
def test_what_is_not_finite_fails_whatever_the_numbers(precision: str) -> None:
    assert TOLERANCES[precision].failures(at_the_bound(precision, finite=False)) == ["NaN or infinity"]


def test_several_failures_are_all_named() -> None:
    worst = Metrics(scaled_max_abs=9.0, sqnr_db=0.0, cosine=0.5, top1_agreement=0.25)
    assert TOLERANCES["fp32"].failures(worst) == [
        "scaled max abs 9 > 1e-05",
        "SQNR 0.0 dB < 100 dB",
        "cosine 0.500000 < 0.999999",
        "top-1 agreement 0.2500 < 1",
    ]
