"""What is expensive to make and used by many tests: made once per test run, by one of the processes that share it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

__all__ = ["made_once", "set_folder"]

_folder: Path | None = None


def set_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of this run, which all its processes see."""
    global _folder  # one per process
    base = factory.getbasetemp()
    _folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    _folder.mkdir(exist_ok=True)
    return _folder


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder of that name, which the first process that asks makes and the others wait for. Read it only.

    Args:
        name: Also of a lock and of what is being made, so it has no separators.
        make: Called with the path to write.
    """
    assert _folder is not None, "tests/conftest.py sets it"
    path = _folder / name
    with FileLock(_folder / f"{name}.lock"):
        if not path.exists():
            unfinished = _folder / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)  # of a test that failed
            make(unfinished)
            unfinished.rename(path)
    return path
