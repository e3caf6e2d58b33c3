"""TensorRT: engines for the GPU that builds them, Jetson's included."""

from __future__ import annotations

from typing import Any

from exporter.engines.cuda import why_no_cuda
from exporter.engines.engine import BuildOptions
from exporter.engines.tensorrt_base import TensorRTBase
from exporter.errors import UserError

__all__ = ["TensorRT"]


class TensorRT(TensorRTBase):
    """Building and running need the GPU: kernels are timed on it."""

    target = "tensorrt"
    module_name = "tensorrt"
    extra = "tensorrt"
    oldest = (10, 3)  # JetPack 6

    def is_available(self) -> str | None:
        """``None`` where there is the module and a GPU: kernels are timed while an engine is built."""
        return super().is_available() or why_no_cuda()

    def network_flags(self, trt: Any) -> int:
        """Strongly typed, which 11 always is."""
        flags = trt.NetworkDefinitionCreationFlag.__members__
        return 1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0

    def configure(self, trt: Any, config: Any, options: BuildOptions) -> None:
        """What TensorRT-RTX does not have: compatibility beyond release and architecture, and a timing cache."""
        if options.sms:
            raise UserError(
                "tensorrt builds for the GPU that it runs on: leave --sm out and build on such a device, or ask for "
                "hardware compatibility."
            )
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            name = options.hardware_compatible.upper().replace("-", "_")
            levels = trt.HardwareCompatibilityLevel.__members__
            if name not in levels:
                raise UserError(
                    f"TensorRT {trt.__version__} has no hardware compatibility {options.hardware_compatible}."
                )
            config.hardware_compatibility_level = levels[name]
        if options.timing_cache is not None:
            file = options.timing_cache
            stored = file.read_bytes() if file.is_file() else b""
            cache = config.create_timing_cache(stored)
            if cache is None or not config.set_timing_cache(cache, False):
                raise UserError(f"{file} is no timing cache of TensorRT {trt.__version__}: delete it, or name another.")

    def after(self, config: Any, options: BuildOptions) -> None:
        """Writes the timing cache."""
        if options.timing_cache is not None:
            from exporter.files import new_file

            with new_file(options.timing_cache) as temporary:
                temporary.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
