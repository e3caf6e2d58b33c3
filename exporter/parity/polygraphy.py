"""The reference in the files that polygraphy reads, to look for the layer where an engine goes wrong with its tools."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import UnavailableError
from exporter.files import new_file
from exporter.parity.reference import Reference

__all__ = ["save_for_polygraphy"]

RUNNER = "float32 PyTorch"  # what polygraphy calls the reference in what it prints


def save_for_polygraphy(reference: Reference, folder: Path) -> None:
    """Writes ``inputs.json``, for ``--load-inputs``, and ``reference.json``, for ``--load-outputs``.

    Cases are polygraphy's iterations. Outputs have the engines' names: where a name is missing, polygraphy compares an
    output of a similar name or place, or none, and does not fail; ``rotary-press validate`` does.

    Raises:
        UnavailableError: If polygraphy is not installed.
        BundleError: If the folder cannot be written.
    """
    try:
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"Writing files for polygraphy needs {error.name}, which is not installed: pip install "
            f"'rotary-press[export]'."
        ) from error
    results = RunResults()
    results.add([outputs for _, outputs in reference], runner_name=RUNNER)
    for name, content in (("inputs", [case.inputs for case, _ in reference]), ("reference", results)):
        with new_file(folder / f"{name}.json") as temporary:
            save_json(content, str(temporary))
