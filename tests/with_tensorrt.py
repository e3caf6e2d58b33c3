"""Running a script with TensorRT's Python package, without TensorRT: its bindings over the library of TensorRT-RTX.

The bindings can be installed everywhere, the library that they are linked to cannot. TensorRT-RTX's has the same entry
points but one, so that enumerations, classes to derive from, the plugin registry and Python's side of plugins are real.
What goes through the library's own interfaces is not: networks and builders of the one are none of the other.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

__all__ = ["run_with_tensorrt"]

ROOT = Path(__file__).parents[1]


def run_with_tensorrt(folder: Path, *arguments: object) -> str:
    """What a Python process prints in which ``tensorrt`` can be imported, and kernels are compiled.

    Args:
        folder: Empty; the package is put together there.
        arguments: Of the interpreter.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("TensorRT's bindings and TensorRT-RTX are installed on Linux x86_64 only")
    assemble_tensorrt(folder)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    finished = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None, name
    assert spec.submodule_search_locations is not None, name
    return Path(next(iter(spec.submodule_search_locations)))


def assemble_tensorrt(folder: Path) -> None:
    """Writes packages ``tensorrt`` and ``tensorrt_bindings``, and the libraries that they load."""
    bindings, libraries = package("tensorrt_bindings"), package("tensorrt_rtx_libs")
    shutil.copytree(bindings, folder / "tensorrt_bindings")
    # The one function that TensorRT-RTX lacks. Nothing here calls it, so any other that it has will do.
    lacks, has = b"\0initLibNvInferPlugins\0", b"\0getInferLibVersion\0\0\0\0"
    code = (bindings / "tensorrt.so").read_bytes()
    assert lacks in code
    assert len(lacks) == len(has)
    (folder / "tensorrt_bindings" / "tensorrt.so").write_bytes(code.replace(lacks, has))
    stands_in = {"nvinfer": "tensorrt_rtx", "nvinfer_plugin": "tensorrt_rtx", "nvonnxparser": "tensorrt_onnxparser_rtx"}
    major = version("tensorrt-cu13-bindings").partition(".")[0]
    for name, other in stands_in.items():
        (folder / f"lib{name}.so.{major}").symlink_to(next(libraries.glob(f"lib{other}.so.*")))
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n", encoding="utf-8"
    )
    (folder / "tensorrt" / "plugin").symlink_to(bindings / "plugin")
