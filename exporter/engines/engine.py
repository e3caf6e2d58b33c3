"""The interface that every target implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

__all__ = ["Arrays", "BuildOptions", "Engine", "Progress", "Range", "Runner", "silent"]

Arrays = dict[str, NDArray[Any]]


class Progress(Protocol):
    """Is told how far something is."""

    def __call__(self, stage: str, done: float | None = None, /) -> None:
        """Called at the start of each stage, and as often as more is known of it.

        Args:
            stage: One line.
            done: The share of the stage that is done, from 0 to 1, and never less than before; ``None`` where it is
                not known.
        """


def silent(_stage: str, _done: float | None = None) -> None:
    """The progress that shows nothing."""


class Range(BaseModel):
    """How large an axis of the inputs may be: an engine is tuned for the optimum and takes all between the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: NonNegativeInt
    opt: NonNegativeInt
    max: NonNegativeInt

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"expected min <= opt <= max; got {self.min}:{self.opt}:{self.max}")
        return self

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class BuildOptions(BaseModel):
    """What a builder can be asked for. A target refuses what it does not have.

    Attributes:
        profiles: Each a range for some axes by their names in the graph; axes that are not in it have a usual range. An
            engine takes what fits one of them. Empty for what is usual.
        max_tokens: How many tokens the model's positions hold, past ones included; ``None`` where it is not known.
        memory_bytes: What the device has; an engine that needs more is refused. ``None`` where it is not known.
        sms: Architectures to build for; empty for the target's own choice.
        optimization_level: 0 (quick to build) to 5 (quick to run); ``None`` for the builder's default.
        workspace_mb: The most scratch memory that a kernel may take, in MiB; ``None`` for all there is.
        strip_weights: Leave the weights out; they are put back when the engine is loaded.
        version_compatible: Also run on later releases of the same major version.
        hardware_compatible: Also run on other architectures than the builder's.
        timing_cache: A file of measured kernels, read and written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profiles: tuple[dict[str, Range], ...] = ()
    max_tokens: PositiveInt | None = None
    memory_bytes: PositiveInt | None = None
    sms: tuple[int, ...] = ()
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    workspace_mb: PositiveInt | None = None
    strip_weights: bool = False
    version_compatible: bool = False
    hardware_compatible: Literal["ampere-plus", "same-compute-capability"] | None = None
    timing_cache: Path | None = None

    def asked(self) -> list[str]:
        """The names of the options that are not as by default; what the model and the device have is no wish."""
        usual = BuildOptions()
        names = set(type(self).model_fields) - {"max_tokens", "memory_bytes"}
        return sorted(name for name in names if getattr(self, name) != getattr(usual, name))


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
        quantization: What int8 means to it: ranges found in each run, or known beforehand.
    """

    target: str
    lowering: str
    suffix: str
    quantization: Literal["dynamic", "static"] = "dynamic"

    @abstractmethod
    def is_available(self) -> str | None:
        """``None`` where engines can be built here, else the reason and what to install."""

    def cannot_run(self) -> str | None:
        """``None`` where engines can be run here, else the reason. Some targets build on machines that cannot run."""
        return self.is_available()

    @abstractmethod
    def build(
        self,
        lowered: Path,
        destination: Path,
        options: BuildOptions | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Builds an engine file from a lowered ONNX model.

        Args:
            lowered: Of the same stem as ``destination``, because a model finds its external data by name.
            destination: The file to write. What belongs to it begins with its name.
            options: What is asked of the builder; ``None`` for nothing.
            progress: See :class:`Progress`; ``None`` is silent.

        Raises:
            UnavailableError: If the target is not usable here.
            UserError: If it has no such option, or an option does not fit the model.
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
