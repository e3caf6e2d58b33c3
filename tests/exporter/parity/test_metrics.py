"""The measures, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from exporter.parity import Metrics, measure

Floats = NDArray[np.float64]


def compared(reference: Any, candidate: Any, *, is_scores: bool = False, clear_margin: float = 0.0) -> Metrics:
    return measure(
        [(np.asarray(reference, np.float32), np.asarray(candidate, np.float32))],
        is_scores=is_scores,
        clear_margin=clear_margin,
    )


def test_by_hand() -> None:
    metrics = compared([[3, 4], [0, 0]], [[3, 3], [0, 0]])
    assert metrics.max_abs == 1.0
    assert metrics.scaled_max_abs == 0.25
    assert metrics.mean_abs == 0.25
    assert metrics.cosine == pytest.approx(21 / (5 * 18**0.5))
    assert metrics.sqnr_db == pytest.approx(13.9794, abs=1e-4)  # 10 log10(25 / 1)
    assert (metrics.top1_agreement, metrics.top1_agreement_all, metrics.finite) == (None, None, True)


def test_small_references_are_not_scaled_up() -> None:
    metrics = compared([0.5, 0.25], [0.5, 0.0])
    assert metrics.scaled_max_abs == metrics.max_abs == 0.25


def test_the_scale_is_a_magnitude() -> None:
    assert compared([-10.0, 1.0], [-9.0, 1.0]).scaled_max_abs == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("reference", "candidate", "cosine", "sqnr_db"),
    [
        ([0, 0], [0, 0], 1.0, None),  # equal, so perfect
        ([0, 0], [0, 1], 0.0, -300.0),  # noise without a signal
        ([0, 1], [0, 0], 0.0, 0.0),  # the signal is gone: as much noise as signal
        ([1, 2], [1, 2], 1.0, None),
        ([1, 2], [-1, -2], -1.0, pytest.approx(-6.0206, abs=1e-4)),
        ([1, 0], [0, 1], 0.0, pytest.approx(-3.0103, abs=1e-4)),
    ],
)
def test_edges(reference: list[int], candidate: list[int], cosine: float, sqnr_db: Any) -> None:
    metrics = compared(reference, candidate)
    assert metrics.cosine == pytest.approx(cosine)
    assert metrics.sqnr_db == sqnr_db


@pytest.mark.parametrize("decibels", [10, 40, 60])
def test_noise_of_a_known_size(decibels: int) -> None:
    random = np.random.default_rng(0)
    signal = random.standard_normal((50, 8))
    noise = random.standard_normal(signal.shape)
    noise *= np.linalg.norm(signal) / np.linalg.norm(noise) * 10 ** (-decibels / 20)
    metrics = measure([(signal, signal + noise)], is_scores=False, clear_margin=0.0)
    assert metrics.sqnr_db == pytest.approx(decibels, abs=1e-6)


def test_sums_are_taken_in_float64() -> None:
    """In float16 the squares would overflow, in float32 the small difference would drown."""
    reference = np.full(5000, 1000.0, np.float16)
    candidate = reference.copy()
    candidate[0] = 1001.0
    metrics = measure([(reference, candidate)], is_scores=False, clear_margin=0.0)
    assert metrics.sqnr_db == pytest.approx(10 * np.log10(5000 * 1e6))
    assert metrics.mean_abs == pytest.approx(1 / 5000)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("in_reference", [True, False])
def test_what_is_not_finite_is_never_measured(bad: float, in_reference: bool) -> None:
    sides = [[1.0, 2.0], [1.0, bad]]
    assert compared(*(reversed(sides) if in_reference else sides), is_scores=True) == Metrics(finite=False)


@pytest.mark.parametrize(
    ("reference", "candidate"), [((2, 3), (3, 2)), ((2, 3), (2, 3, 1)), ((6,), (2, 3)), ((1, 3), (2, 3))]
)
def test_shapes_that_cannot_be_compared(reference: tuple[int, ...], candidate: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot compare shapes"):
        compared(np.ones(reference), np.ones(candidate))


@pytest.mark.parametrize("shapes", [[], [(0,)], [(0, 3), (2, 0)]])
@pytest.mark.parametrize("is_scores", [True, False])
def test_nothing_to_compare(shapes: list[tuple[int, ...]], is_scores: bool) -> None:
    empty = [(np.zeros(shape), np.zeros(shape)) for shape in shapes]
    with pytest.raises(ValueError, match="there is nothing to compare"):
        measure(empty, is_scores=is_scores, clear_margin=0.0)


# several pairs


def test_pairs_are_measured_together() -> None:
    one, other = ([[3, 4], [0, 0]], [[3, 3], [0, 0]]), ([10.0, -2.0, 1.0], [10.0, 2.0, 1.0])
    together = measure(
        [(np.array(truth, float), np.array(found, float)) for truth, found in (one, other)],
        is_scores=False,
        clear_margin=0.0,
    )
    flat = compared([3, 4, 0, 0, 10, -2, 1], [3, 3, 0, 0, 10, 2, 1])
    assert together == flat
    assert (flat.max_abs, flat.scaled_max_abs) == (4.0, 0.4)
    assert flat.mean_abs == pytest.approx(5 / 7)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_number_in_any_pair(bad: float, where: int) -> None:
    arrays_of = [np.ones((2, 2)), np.ones(3)]
    found = [array.copy() for array in arrays_of]
    found[where].flat[1] = bad
    metrics = measure(list(zip(arrays_of, found, strict=True)), is_scores=True, clear_margin=0.0)
    assert metrics == Metrics(finite=False)


def test_any_pair_of_other_shapes_is_refused() -> None:
    fine = (np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"cannot compare shapes \(2, 3\) and \(3, 2\)"):
        measure([fine, (np.ones((2, 3)), np.ones((3, 2)))], is_scores=False, clear_margin=0.0)


def test_top1_over_rows_of_different_widths() -> None:
    """Three rows, of two, four and four scores; a pair of one score each is no choice, and does not count."""
    truth = [np.array([[0.0, 5.0]]), np.array([[5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]]), np.array([[7.0]])]
    found = [array.copy() for array in truth]
    found[1][1] = [0.0, 5.0, 0.0, 0.0]
    metrics = measure(list(zip(truth, found, strict=True)), is_scores=True, clear_margin=0.0)
    assert metrics.top1_agreement == metrics.top1_agreement_all == pytest.approx(2 / 3)
    alone = measure([(truth[2], found[2])], is_scores=True, clear_margin=0.0)
    assert (alone.top1_agreement, alone.top1_agreement_all) == (None, None)


def test_the_margin_is_of_all_pairs_together() -> None:
    """A lead of 1 is clear among scores as small as itself, and a tie beside scores of hundreds."""
    close = (np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    loud = (np.array([[-300.0, 300.0]]), np.array([[-300.0, 300.0]]))
    assert measure([close], is_scores=True, clear_margin=1.0).top1_agreement == 0.0
    together = measure([close, loud], is_scores=True, clear_margin=1.0)
    assert (together.top1_agreement, together.top1_agreement_all) == (1.0, 0.5)


# top-1: the standard deviation of these scores is close to 1, so the margins read as differences

SCORES = [[2.0, 0.0, -1.0], [0.0, 0.1, -1.5], [-0.5, -1.0, 1.0], [0.0, 1.5, -0.6]]


def swapped(*rows: int) -> Any:
    """The scores, another entry best in these rows."""
    scores = np.array(SCORES)
    scores[list(rows)] *= -1
    assert (scores.argmax(axis=1) != np.argmax(SCORES, axis=1)).nonzero()[0].tolist() == list(rows)
    return scores


@pytest.mark.parametrize(
    ("candidate", "clear_margin", "agreement", "agreement_all"),
    [
        (SCORES, 0.0, 1.0, 1.0),
        (swapped(0), 0.0, 0.75, 0.75),
        (swapped(1), 0.0, 0.75, 0.75),
        (swapped(1), 0.5, 1.0, 0.75),  # the second row is a tie at this margin
        (swapped(0, 1), 0.5, 2 / 3, 0.5),
        (swapped(3), 1.6, 1.0, 0.75),  # only the first row is clear
        (swapped(0), 1.6, 0.0, 0.75),
        (swapped(0), 5.0, None, 0.75),  # no row is
    ],
)
def test_top1_counts_where_the_best_is_clear(
    candidate: Any, clear_margin: float, agreement: float | None, agreement_all: float
) -> None:
    assert np.std(SCORES) == pytest.approx(1.0, abs=0.1)
    metrics = compared(SCORES, candidate, is_scores=True, clear_margin=clear_margin)
    assert metrics.top1_agreement == (None if agreement is None else pytest.approx(agreement))
    assert metrics.top1_agreement_all == agreement_all
    loud = compared(64 * np.array(SCORES), 64 * np.array(candidate), is_scores=True, clear_margin=clear_margin)
    assert loud.top1_agreement == metrics.top1_agreement, "the margin is in standard deviations"


@pytest.mark.parametrize("scores", [[[1.0], [2.0]], [[3.0, 3.0], [3.0, 3.0]]], ids=["one label", "all alike"])
def test_no_position_is_clear(scores: Any) -> None:
    assert compared(scores, scores, is_scores=True).top1_agreement is None


def test_other_outputs_have_no_top1() -> None:
    assert compared(SCORES, swapped(0)).top1_agreement_all is None


# what holds for all arrays

values = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda value: value if abs(value) > 1e-3 else 0.0)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Floats, Floats]:
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=5))
    return draw(arrays(np.float64, shape, elements=values)), draw(arrays(np.float64, shape, elements=values))


@given(pairs())
def test_distances_are_symmetric(pair: tuple[Floats, Floats]) -> None:
    one, other = compared(*pair), compared(*reversed(pair))
    assert (one.max_abs, one.mean_abs) == (other.max_abs, other.mean_abs)
    assert one.cosine == pytest.approx(other.cosine, abs=1e-12)


@given(pairs())
def test_measures_stay_in_their_range(pair: tuple[Floats, Floats]) -> None:
    metrics = compared(*pair, is_scores=True)
    assert 0 <= metrics.mean_abs <= metrics.max_abs + 1e-9
    assert 0 <= metrics.scaled_max_abs <= metrics.max_abs
    assert abs(metrics.cosine) <= 1 + 1e-9
    assert (metrics.sqnr_db is None) == (metrics.max_abs == 0)
    for share in (metrics.top1_agreement, metrics.top1_agreement_all):
        assert share is None or 0 <= share <= 1


@given(pairs())
def test_nothing_is_nearer_than_the_same(pair: tuple[Floats, Floats]) -> None:
    metrics = compared(pair[0], pair[0], is_scores=True)
    assert (metrics.max_abs, metrics.scaled_max_abs, metrics.mean_abs, metrics.sqnr_db) == (0, 0, 0, None)
    assert metrics.cosine == pytest.approx(1.0)
    assert metrics.top1_agreement in (None, 1.0)


@given(pairs(), st.sampled_from([-8.0, 0.25, 4.0]))
def test_the_unit_does_not_matter(pair: tuple[Floats, Floats], factor: float) -> None:
    one, other = compared(*pair), compared(factor * pair[0], factor * pair[1])
    assert other.max_abs == pytest.approx(abs(factor) * one.max_abs)
    assert other.cosine == pytest.approx(one.cosine, abs=1e-9)
    assert other.sqnr_db == (None if one.sqnr_db is None else pytest.approx(one.sqnr_db, abs=1e-6))


@given(pairs())
def test_the_order_of_positions_does_not_matter(pair: tuple[Floats, Floats]) -> None:
    one, other = compared(*pair, is_scores=True), compared(pair[0][::-1], pair[1][::-1], is_scores=True)
    if pair[0].ndim > 1:  # with one axis, the order is the one of scores
        assert one.top1_agreement == pytest.approx(other.top1_agreement) if one.top1_agreement is not None else True
    assert one.max_abs == other.max_abs
    assert one.mean_abs == pytest.approx(other.mean_abs)
