"""How far arrays are apart, in the measures that people of the field read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

__all__ = ["Metrics", "measure"]


class Metrics(BaseModel):
    """The distance of a candidate from a reference.

    Attributes:
        max_abs: Largest absolute difference.
        scaled_max_abs: The same, divided by the reference's largest magnitude where that is above one.
        mean_abs: Mean absolute difference.
        cosine: Of the two as flat vectors; 1 where both are zero.
        sqnr_db: Signal to noise: 10 log10(sum reference² / sum difference²); ``None`` where there is no difference.
        top1_agreement: Of the positions whose reference has a clear best entry, the share where the candidate has the
            same; ``None`` for outputs that are no scores, or where no position is clear.
        top1_agreement_all: The same over all positions, clear or not.
        finite: Whether both hold neither NaN nor infinity. Where not, the other numbers are meaningless and zero.
    """

    max_abs: float = 0.0
    scaled_max_abs: float = 0.0
    mean_abs: float = 0.0
    cosine: float = 0.0
    sqnr_db: float | None = None
    top1_agreement: float | None = None
    top1_agreement_all: float | None = None
    finite: bool = True


def measure(
    pairs: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
    *,
    is_scores: bool,
    clear_margin: float,
) -> Metrics:
    """Compares arrays with their reference, all pairs together.

    Args:
        pairs: The truth and what is judged, of one shape; shapes may differ from pair to pair.
        is_scores: Whether the last axis is one of scores, whose largest is the prediction.
        clear_margin: How far ahead, in standard deviations of the reference, its best entry must be to count as clear.

    Raises:
        ValueError: If the shapes of a pair differ, or there is nothing to compare.
    """
    for truth, found in pairs:
        if truth.shape != found.shape:
            raise ValueError(f"cannot compare shapes {truth.shape} and {found.shape}")
    if not sum(truth.size for truth, _ in pairs):
        raise ValueError("there is nothing to compare")
    reference = np.concatenate([truth.ravel() for truth, _ in pairs])
    candidate = np.concatenate([found.ravel() for _, found in pairs])
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return Metrics(finite=False)
    difference = np.abs(reference - candidate)
    signal, noise, power = (_dot(array, array) for array in (reference, difference, candidate))
    lengths = math.sqrt(signal) * math.sqrt(power)
    metrics = Metrics(
        max_abs=float(difference.max()),
        scaled_max_abs=float(difference.max()) / max(1.0, float(np.abs(reference).max())),
        mean_abs=float(difference.mean(dtype=np.float64)),
        cosine=_dot(reference, candidate) / lengths if lengths else float(signal == power),
        sqnr_db=10.0 * math.log10(signal / noise) if noise and signal else (-300.0 if noise else None),
    )
    if is_scores:
        margin = clear_margin * float(reference.std(dtype=np.float64))
        same, clear = (np.concatenate(flags) for flags in zip(*(_top1(*pair, margin) for pair in pairs), strict=True))
        metrics.top1_agreement_all = float(same.mean()) if same.size else None
        metrics.top1_agreement = float(same[clear].mean()) if clear.any() else None
    return metrics


def _top1(
    truth: NDArray[np.floating], found: NDArray[np.floating], margin: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each row of scores, whether the best entries agree, and whether the reference's is clear."""
    if truth.shape[-1] < 2:  # one score is no choice
        return np.zeros(0, np.bool_), np.zeros(0, np.bool_)
    same = truth.argmax(axis=-1) == found.argmax(axis=-1)
    best_two = np.partition(truth, -2, axis=-1)[..., -2:]
    return same.ravel(), (best_two[..., 1] - best_two[..., 0] > margin).ravel()


def _dot(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The inner product, summed in float64 without float64 copies: a vocabulary's logits are large."""
    return float(np.einsum("i,i->", first, second, dtype=np.float64))
