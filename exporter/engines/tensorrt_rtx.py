"""TensorRT-RTX: engines for RTX GPUs, built on any machine, without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from exporter.engines.engine import BuildOptions, Range
from exporter.engines.schedule import Schedule, read_schedule
from exporter.engines.tensorrt_base import TensorRTBase
from exporter.errors import BundleError, UserError

__all__ = ["TensorRTRTX"]


class TensorRTRTX(TensorRTBase):
    """Engine files hold kernels in part; what is left is compiled on the device when one is loaded first."""

    target = "tensorrt-rtx"
    module_name = "tensorrt_rtx"
    extra = "rtx"
    oldest = (1, 2)
    refused: Mapping[str, str] = {
        "timing_cache": "it measures no kernels while it builds",
        "version_compatible": "its engines run on the release that built them",
        "hardware_compatible": "its engines run on all architectures that --sm names",
    }

    def network_flags(self, trt: Any) -> int:
        """Strongly typed."""
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def configure(self, trt: Any, config: Any, options: BuildOptions) -> None:
        """The architectures, and one stream: to wait for another costs more than it gains in a chain of kernels."""
        config.max_aux_streams = 0
        if options.strip_weights and (reason := self.cannot_run()):
            raise UserError(
                f"{self.target} {trt.__version__} leaves weights out only where it finds a GPU, and here {reason}. "
                f"Build on the device, or with the weights."
            )
        known = {int(name[2:]): of for name, of in trt.ComputeCapability.__members__.items() if name[:2] == "SM"}
        if unknown := [sm for sm in options.sms if sm not in known]:
            raise UserError(
                f"{self.target} {trt.__version__} builds nothing for SM {', '.join(map(str, unknown))}; it knows "
                f"{', '.join(map(str, sorted(known)))}. Others are TensorRT's: --target tensorrt."
            )
        if options.sms:
            config.num_compute_capabilities = len(options.sms)
            for index, sm in enumerate(options.sms):
                config.set_compute_capability(known[sm], index)

    def schedules(
        self, log: list[str], profiles: Sequence[Mapping[str, Range]], bound: Literal["opt", "max"]
    ) -> list[Schedule]:
        """The builder lists its kernels in its log."""
        return [
            read_schedule(
                log,
                sizes={axis: getattr(of, bound) for axis, of in ranges.items()},
                profile=number,
                bound=bound,
                fixed=[axis for axis, of in ranges.items() if of.min == of.max],
            )
            for number, ranges in enumerate(profiles)
        ]

    def check_header(self, path: Path, plan: bytes) -> None:
        """The runtime judges the first bytes; without a GPU it says no more than whether they are damaged."""
        trt = self.trt
        runtime = trt.Runtime(trt.Logger(trt.Logger.Severity.INTERNAL_ERROR))
        header = plan[: runtime.engine_header_size]
        _, reasons = runtime.get_engine_validity(header)
        named = {of for of in trt.EngineInvalidityDiagnostics.__members__.values() if int(reasons) & int(of)}
        fatal = {
            trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE: "it is damaged, or no engine at all",
            trt.EngineInvalidityDiagnostics.VERSION_MISMATCH: "another release built it",
        }
        for diagnostic, meaning in fatal.items():
            if diagnostic in named:
                raise BundleError(
                    f"{path} is no engine for {self.target} {trt.__version__}: {meaning}. Build it again."
                )
