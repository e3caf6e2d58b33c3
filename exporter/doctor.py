"""What is installed here, and which targets can be used: the first thing that a bug report should hold."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata

from pydantic import BaseModel

from exporter.engines import ENGINES
from exporter.processor import Processor, find_processor

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
    "rtx": ("build TensorRT-RTX engines", ("tensorrt-rtx",)),
    "tensorrt": ("build TensorRT engines", ("tensorrt",)),
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
    """The machine, the extras and the targets.

    Attributes:
        gpus: What NVIDIA's driver lists: name, memory, compute capability and the driver's version.
        targets: ``None`` where engines can be built here, else the reason and what to install.
        runs: ``None`` where engines can be run here, else the reason.
    """

    python: str
    system: str
    processor: Processor
    cpus: int
    rotary_press: str
    gpus: list[str]
    extras: list[Extra]
    targets: dict[str, str | None]
    runs: dict[str, str | None]


def diagnose() -> Diagnosis:
    """Looks, and changes nothing."""
    return Diagnosis(
        python=platform.python_version(),
        system=platform.platform(),
        processor=find_processor(),
        cpus=os.cpu_count() or 1,
        rotary_press=_version("rotary-press") or "not installed",
        extras=[
            Extra(name=name, purpose=purpose, packages={package: _version(package) for package in packages})
            for name, (purpose, packages) in EXTRAS.items()
        ],
        gpus=_gpus(),
        targets={target: engine.is_available() for target, engine in ENGINES.items()},
        runs={target: engine.cannot_run() for target, engine in ENGINES.items()},
    )


def _gpus() -> list[str]:
    """A line for each GPU, as nvidia-smi tells it; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    try:
        told = subprocess.run(  # noqa: S603  # NVIDIA's, with fixed arguments
            [program, query, "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if told.returncode:
        return []
    lines = [[field.strip() for field in line.split(",")] for line in told.stdout.splitlines()]
    return [f"{n}, {memory}, SM {sm.replace('.', '')}, driver {driver}" for n, memory, sm, driver in lines]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
