"""The targets that engines can be built for."""

from exporter.engines.engine import Arrays, BuildOptions, Engine, Progress, Range, Runner, silent
from exporter.engines.onnxruntime import OnnxRuntime
from exporter.engines.tensorrt import TensorRT
from exporter.engines.tensorrt_rtx import TensorRTRTX
from exporter.errors import UserError

__all__ = ["ENGINES", "Arrays", "BuildOptions", "Engine", "Progress", "Range", "Runner", "get_engine", "silent"]

ENGINES: dict[str, Engine] = {engine.target: engine for engine in (OnnxRuntime(), TensorRTRTX(), TensorRT())}


def get_engine(target: str) -> Engine:
    """The engine of a target.

    Raises:
        UserError: If there is none of that name.
    """
    if target not in ENGINES:
        raise UserError(f"Unknown target {target!r}; expected one of {', '.join(ENGINES)}.")
    return ENGINES[target]
