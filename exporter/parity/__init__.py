"""Does an engine still compute what float32 PyTorch computes?"""

from exporter.parity.cases import Case, make_cases
from exporter.parity.compare import OutputResult, ParityReport, compare
from exporter.parity.metrics import Metrics, measure
from exporter.parity.polygraphy import save_for_polygraphy
from exporter.parity.reference import Reference, compute_reference, load_reference, save_reference
from exporter.parity.report import to_markdown, write_report
from exporter.parity.tolerances import TOLERANCES, Tolerance

__all__ = [
    "TOLERANCES",
    "Case",
    "Metrics",
    "OutputResult",
    "ParityReport",
    "Reference",
    "Tolerance",
    "compare",
    "compute_reference",
    "load_reference",
    "make_cases",
    "measure",
    "save_for_polygraphy",
    "save_reference",
    "to_markdown",
    "write_report",
]
