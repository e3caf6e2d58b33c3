"""What is installed here, and which targets can be used: the first thing that a bug report should hold."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from pydantic import BaseModel

from exporter.engines import ENGINES

__all__ = ["Diagnosis", "diagnose"]

# Per extra of the distribution: what it is for, and what it installs.
EXTRAS = {
    "base": (
        "run and validate an export",
        (
            "numpy",
            "onnxruntime",
            "pydantic",
            "rich",
            "rjieba",
            "safetensors",
            "tokenizers",
            "typer",
            "typing-extensions",
        ),
    ),
    "export": ("compile a checkpoint", ("torch", "onnx", "onnx-graphsurgeon", "onnxscript", "polygraphy")),
    "plugins": ("compile the plugins' kernels", ("triton",)),
    "rtx": ("TensorRT-RTX engines (none are built yet)", ("tensorrt-rtx",)),
    "tensorrt": ("TensorRT engines (none are built yet)", ("tensorrt",)),
}


class Extra(BaseModel):
    """One extra of the distribution: its packages with their versions, ``None`` where one is missing."""

    name: str
    purpose: str
    packages: dict[str, str | None]

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name, version in self.packages.items() if version is None]


class Diagnosis(BaseModel):
    """The machine, the extras and the targets; a target's value is ``None`` where it is usable, else the reason."""

    python: str
    system: str
    processor: str
    cpus: int
    rotary_press: str
    extras: list[Extra]
    targets: dict[str, str | None]


def diagnose() -> Diagnosis:
    """Looks, and changes nothing."""
    return Diagnosis(
        python=platform.python_version(),
        system=platform.platform(),
        processor=platform.machine(),
        cpus=os.cpu_count() or 1,
        rotary_press=_version("rotary-press") or "not installed",
        extras=[
            Extra(name=name, purpose=purpose, packages={package: _version(package) for package in packages})
            for name, (purpose, packages) in EXTRAS.items()
        ],
        targets={target: engine.is_available() for target, engine in ENGINES.items()},
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
