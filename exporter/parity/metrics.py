"""How far two arrays are apart, in the measures that people of the field read."""

from __future__ import annotations

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
    reference: NDArray[np.floating],
    candidate: NDArray[np.floating],
    *,
    is_scores: bool,
    clear_margin: float,
) -> Metrics:
    """Compares two arrays of one shape.

    Args:
        reference: The truth.
        candidate: What is judged.
        is_scores: Whether the last axis is one of scores, whose largest is the prediction.
        clear_margin: How far ahead, in standard deviations of the reference, its best entry must be to count as clear.

    Raises:
        ValueError: If the shapes differ, or there is nothing to compare.
    """
    if reference.shape != candidate.shape or not reference.size:
        raise ValueError(f"cannot compare shapes {reference.shape} and {candidate.shape}")
    truth, found = reference.astype(np.float64), candidate.astype(np.float64)
    if not (np.isfinite(truth).all() and np.isfinite(found).all()):
        return Metrics(finite=False)
    difference = np.abs(truth - found)
    signal, noise = float(np.square(truth).sum()), float(np.square(difference).sum())
    lengths = float(np.linalg.norm(truth) * np.linalg.norm(found))
    metrics = Metrics(
        max_abs=float(difference.max()),
        scaled_max_abs=float(difference.max() / max(1.0, np.abs(truth).max())),
        mean_abs=float(difference.mean()),
        cosine=float((truth * found).sum() / lengths) if lengths else float(signal == 0.0 and noise == 0.0),
        sqnr_db=10.0 * float(np.log10(signal / noise)) if noise and signal else (-300.0 if noise else None),
    )
    if is_scores and truth.shape[-1] > 1:
        same = truth.argmax(axis=-1) == found.argmax(axis=-1)
        best_two = np.partition(truth, -2, axis=-1)[..., -2:]
        clear = best_two[..., 1] - best_two[..., 0] > clear_margin * truth.std()
        metrics.top1_agreement_all = float(same.mean())
        metrics.top1_agreement = float(same[clear].mean()) if clear.any() else None
    return metrics
