"""ONNX Runtime on the CPU: the embedded default, in the base install."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from exporter.engines.engine import Arrays, BuildOptions, Engine, Progress, Runner
from exporter.errors import BundleError, CompileError, UnavailableError, UserError

__all__ = ["OnnxRuntime"]

# Slower than the sum and the norm that it replaces (benchmarks/onnxruntime_ops.py).
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]


class OnnxRuntime(Engine):
    """Engine files are ONNX models in standard ops; the runtime optimises them for the CPU at hand when it loads."""

    target = "onnxruntime"
    lowering = "onnxruntime"
    suffix = ".onnx"

    def is_available(self) -> str | None:
        """``None``: it is part of the base install. Else, the import error."""
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return f"onnxruntime cannot be imported ({error}): pip install onnxruntime"
        return None

    def build(
        self,
        lowered: Path,
        destination: Path,
        options: BuildOptions | None = None,
        progress: Progress | None = None,  # noqa: ARG002  # there is one stage
    ) -> None:
        """Copies the model, external data included, and loads it once, so that a file that cannot run is never kept."""
        if asked := (options or BuildOptions()).asked():
            raise UserError(f"onnxruntime has no options to build with; got {', '.join(asked)}.")
        for source in lowered.parent.glob(f"{lowered.name}*"):  # the model, and its external data beside it
            shutil.copyfile(source, destination.parent / source.name)
        try:
            self.load(destination)
        except BundleError as error:
            raise CompileError(f"ONNX Runtime refuses {lowered.name}: {error}") from error

    def load(self, path: Path, *, threads: int | None = None) -> Runner:
        """Opens an inference session on the CPU."""
        if reason := self.is_available():
            raise UnavailableError(f"The target onnxruntime is not usable here: {reason}")
        return _OnnxRuntimeRunner(path, threads)


class _OnnxRuntimeRunner(Runner):
    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        options.intra_op_num_threads = threads or 0
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
            )
        except Exception as error:  # the runtime raises many types of its own
            raise BundleError(f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {error}") from error
        self._path = path
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        try:
            found = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # as above
            raise BundleError(f"{self._path} cannot run on {', '.join(inputs)}: {error}") from error
        return dict(zip(self._outputs, found, strict=True))
