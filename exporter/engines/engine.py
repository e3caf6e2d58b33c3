"""The interface that every target implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["Arrays", "Engine", "Runner"]

Arrays = dict[str, NDArray[Any]]


class Runner(ABC):
    """A loaded engine."""

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Runs the engine once.

        Args:
            inputs: By name, shaped and typed as the manifest says. The caller has checked them.

        Returns:
            The outputs by name, float32, in the engine's order.

        Raises:
            BundleError: If the engine does not take these inputs: it is not the engine of this model.
        """


class Engine(ABC):
    """A target: how to build an engine file for it, and how to load one.

    Attributes:
        target: The name that the command line uses.
        lowering: The name of the lowering in ``graph_passes`` whose graphs ``build`` takes.
        suffix: Of engine files.
    """

    target: str
    lowering: str
    suffix: str

    @abstractmethod
    def is_available(self) -> str | None:
        """``None`` where engines can be built and run here, else the reason and what to install."""

    @abstractmethod
    def build(self, lowered: Path, destination: Path) -> None:
        """Builds an engine file from a lowered ONNX model.

        Args:
            lowered: Of the same stem as ``destination``, because a model finds its external data by name.
            destination: The file to write. What belongs to it begins with its name.

        Raises:
            UnavailableError: If the target is not usable here.
            CompileError: If the target refuses the model.
        """

    @abstractmethod
    def load(self, path: Path, *, threads: int | None = None) -> Runner:
        """Loads an engine file.

        Args:
            path: Made by ``build``.
            threads: How many CPU threads to use; ``None`` lets the runtime choose.

        Raises:
            UnavailableError: If the target is not usable here.
            BundleError: If the file is damaged.
        """
