"""How far an engine may be from float32 PyTorch. The only place where these numbers stand, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.parity.metrics import Metrics

__all__ = ["TOLERANCES", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """The bounds for one precision. See :class:`exporter.parity.metrics.Metrics` for the measures.

    Attributes:
        clear_margin: In standard deviations of the reference: closer scores than this are a tie at this precision,
            and which of them wins is no error.
    """

    scaled_max_abs: float
    sqnr_db: float
    cosine: float
    top1_agreement: float
    clear_margin: float
    reason: str

    def failures(self, metrics: Metrics) -> list[str]:
        """What is out of bounds, in words; empty where nothing is."""
        if not metrics.finite:
            return ["NaN or infinity"]
        found = []
        if not metrics.scaled_max_abs <= self.scaled_max_abs:
            found.append(f"scaled max abs {metrics.scaled_max_abs:.3g} > {self.scaled_max_abs:g}")
        if metrics.sqnr_db is not None and not metrics.sqnr_db >= self.sqnr_db:
            found.append(f"SQNR {metrics.sqnr_db:.1f} dB < {self.sqnr_db:g} dB")
        if not metrics.cosine >= self.cosine:
            found.append(f"cosine {metrics.cosine:.6f} < {self.cosine:g}")
        if metrics.top1_agreement is not None and not metrics.top1_agreement >= self.top1_agreement:
            found.append(f"top-1 agreement {metrics.top1_agreement:.4f} < {self.top1_agreement:g}")
        return found


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(
        scaled_max_abs=1e-5,
        sqnr_db=100.0,
        cosine=0.999999,
        top1_agreement=1.0,
        clear_margin=1e-4,
        reason=(
            "Only the order of sums differs. Twelve layers of 768 features were measured at 1.3e-6 and 120 dB; one "
            "wrong epsilon or activation variant costs 1e-4."
        ),
    ),
    "fp16": Tolerance(
        scaled_max_abs=1e-2,
        sqnr_db=45.0,
        cosine=0.9999,
        top1_agreement=1.0,
        clear_margin=0.1,
        reason=(
            "One rounding to 11 bits is 2^-12 of the value, -72 dB; a hundred of them in a row add up to -52 dB, and "
            "sharp attention amplifies them. 57 to 75 dB were measured on 1 to 12 layers; half-precision norms, "
            "angles or scores before the mask cost more than the 12 dB between."
        ),
    ),
    "int8": Tolerance(
        scaled_max_abs=0.3,
        sqnr_db=15.0,
        cosine=0.98,
        top1_agreement=0.98,
        clear_margin=1.0,
        reason=(
            "One int8 rounding of a Gaussian activation is about -40 dB, of one with outliers -25 dB; a dozen layers "
            "of six products each add up to -15 to -30 dB. 31 to 46 dB were measured on models without strong "
            "outliers; at 15 dB a sixth of the amplitude is noise. What counts in the end is the accuracy on the task."
        ),
    ),
}
