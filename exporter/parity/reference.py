"""The truth: what float32 PyTorch computes for every case, kept with the export so that it travels to the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from exporter.engines import Arrays
from exporter.errors import BundleError
from exporter.parity.cases import Case

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Reference", "compute_reference", "load_reference", "save_reference"]

Reference = list[tuple[Case, Arrays]]


def compute_reference(model: nn.Module, cases: Sequence[Case], outputs: Sequence[str]) -> Reference:
    """Runs the PyTorch model, float32 and in evaluation mode, on every case."""
    import torch

    reference: Reference = []
    with torch.no_grad():
        for case in cases:
            computed = model(**{name: torch.from_numpy(ids) for name, ids in case.inputs.items()})
            reference.append((case, {name: getattr(computed, name).numpy() for name in outputs}))
    return reference


def save_reference(reference: Reference, path: Path) -> None:
    """Writes cases and outputs as one safetensors file; a tensor's name is ``case/kind/name``."""
    tensors = {
        f"{case.name}/{kind}/{name}": np.ascontiguousarray(array)
        for case, outputs in reference
        for kind, arrays in (("inputs", case.inputs), ("outputs", outputs))
        for name, array in arrays.items()
    }
    save_file(tensors, path)


def load_reference(path: Path) -> Reference:
    """Reads what :func:`save_reference` wrote.

    Raises:
        BundleError: If the file is missing, damaged or empty.
    """
    if not path.is_file():
        raise BundleError(f"{path} is missing: without the reference there is nothing to compare. Export again.")
    try:
        tensors = load_file(path)
        cases: dict[str, dict[str, Arrays]] = {}
        for key, array in tensors.items():
            case, kind, name = key.split("/")
            cases.setdefault(case, {"inputs": {}, "outputs": {}})[kind][name] = array
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{path} is damaged ({error}): export again.") from error
    if not cases:
        raise BundleError(f"{path} holds no case: export again.")
    return [(Case(name, parts["inputs"]), parts["outputs"]) for name, parts in cases.items()]
