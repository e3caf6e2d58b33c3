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
    from exporter.trace import Interface

__all__ = ["Reference", "compute_reference", "load_reference", "save_reference"]

Reference = list[tuple[Case, Arrays]]


def compute_reference(interface: Interface, cases: Sequence[Case]) -> Reference:
    """Runs the PyTorch model, float32 and in evaluation mode, on every case.

    A case that follows another one gets the cache that the model returned there, so that caches are real ones.
    """
    import torch

    reference: Reference = []
    found: dict[str, Arrays] = {}
    with torch.no_grad():
        for case in cases:
            if case.follows is not None:
                cache = {
                    name.replace("present.", "past_key_values."): array
                    for name, array in found[case.follows].items()
                    if name.startswith("present.")
                }
                case = Case(case.name, case.inputs | cache)
            tensors = interface(*(torch.from_numpy(case.inputs[spec.name]) for spec in interface.inputs))
            outputs = {spec.name: tensor.numpy() for spec, tensor in zip(interface.outputs, tensors, strict=True)}
            found[case.name] = outputs
            reference.append((case, outputs))
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
