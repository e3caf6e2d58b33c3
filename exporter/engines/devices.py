"""Devices by name, what each release of TensorRT can do, and from both: which lowering, and what is impossible.

Peaks are dense, without sparsity, and those of half precision are with sums in float32: on GeForce cards that is half
of what sums in half precision reach. They are for estimates, and no more than that.

What the form ``native`` needs of a parser is LayerNormalization (TensorRT 8.6) and Gelu (10.0); the rest is older. The
function bodies of the form ``portable`` are made of the same ops, so it builds nowhere that ``native`` does not: it is
there to be asked for, and is never chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from exporter.engines.schedule import BYTES, Estimate, Schedule, estimate
from exporter.errors import UserError

__all__ = [
    "CAPABILITIES",
    "DEVICES",
    "Capabilities",
    "Capability",
    "Choice",
    "Device",
    "Feature",
    "Lowering",
    "Product",
    "Version",
    "Versions",
    "capabilities",
    "check",
    "check_memory",
    "choose_lowering",
    "estimate_on",
    "find_device",
]

Product = Literal["tensorrt", "tensorrt-rtx"]
Lowering = Literal["plugin", "native", "portable"]
Version = tuple[int, ...]
Feature = Literal[
    "typed",
    "layer_normalization",
    "gelu",
    "attention",
    "rotary_embedding",
    "local_functions",
    "aot_plugins",
    "int8",
    "bf16",
    "fp8",
    "timing_cache",
    "version_compatible",
    "ampere_plus",
    "same_compute_capability",
    "strip_weights",
    "progress_monitor",
]

TITLES: dict[Product, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
LOWERINGS: tuple[Lowering, ...] = ("plugin", "native", "portable")
NATIVE_OPS: tuple[Feature, ...] = ("typed", "layer_normalization", "gelu")


@dataclass(frozen=True)
class Versions:
    """A range of releases.

    Args:
        since: The first.
        before: The first that is not in it any more; ``None`` for no end.
    """

    since: Version
    before: Version | None = None

    def __contains__(self, version: Version) -> bool:
        padded = _padded(version)
        return _padded(self.since) <= padded and (self.before is None or padded < _padded(self.before))

    def __str__(self) -> str:
        since = _dotted(self.since)
        return f"{since} or later" if self.before is None else f"{since} or later, before {_dotted(self.before)}"


@dataclass(frozen=True)
class Device:
    """One row of the table.

    Args:
        name: What the command line takes.
        title: As its maker calls it.
        sm: Its architecture.
        memory_gb: What building and running may take, in GiB; a Jetson shares it with the CPU.
        bandwidth_gb_s: Of the memory.
        fp16_tflops: Peak of the tensor cores, dense, with sums in float32.
        fp32_tflops: Peak without tensor cores.
        int8_tops: Peak of the tensor cores, dense; ``None`` where no figure was found.
        precisions: What the hardware computes.
        engines: The releases of each product that its software takes.
        source: Where the figures are from.
    """

    name: str
    title: str
    sm: int
    memory_gb: float
    bandwidth_gb_s: float
    fp16_tflops: float
    fp32_tflops: float
    int8_tops: float | None
    precisions: tuple[str, ...]
    engines: Mapping[Product, tuple[Versions, ...]] = field(hash=False)
    source: str


# What starting a kernel costs after the one before it: an assumption, not a measurement. Without it, schedules that
# move the same bytes in more kernels would look the same.
LAUNCH_SECONDS = 1e-6

# "Hardware and Precision" of https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-1010/support-matrix/ and
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html
TURING = ("fp32", "fp16", "int8")
AMPERE = (*TURING, "bf16")
ADA = (*AMPERE, "fp8")

ALL = (Versions((10, 0)),)
# https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/release-notes-10/10.8.0.html
SINCE_BLACKWELL = (Versions((10, 8)),)
# 1.2 is the oldest that is taken here. It knows SM 75, 86, 89 and 120 (its support matrix), 1.7 also 80 and 121
# (`ComputeCapability`), and none knows others: neither Hopper nor B200 nor any Jetson.
RTX = (Versions((1, 2)),)
# 10.3 comes with it (https://docs.pytorch.org/TensorRT/getting_started/jetpack.html); 10.7 is the last build for it
# (https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix-10/10.14.1.html).
JETPACK_6: dict[Product, tuple[Versions, ...]] = {"tensorrt": (Versions((10, 3), (10, 8)),)}
# 10.16 is the first for Orin
# (https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/getting-started/release-notes-10/10.16.1.html) and is there for
# Thor (https://github.com/pytorch/tensorrt/releases/tag/v2.12.1). Of 11, 11.4.1 is the first, with JetPack 7.2.2
# (https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html).
JETPACK_7: dict[Product, tuple[Versions, ...]] = {"tensorrt": (Versions((10, 16), (11, 0)), Versions((11, 4, 1)))}
BOTH: dict[Product, tuple[Versions, ...]] = {"tensorrt": ALL, "tensorrt-rtx": RTX}
BOTH_SINCE_SM80: dict[Product, tuple[Versions, ...]] = {"tensorrt": ALL, "tensorrt-rtx": (Versions((1, 7)),)}
BOTH_SINCE_BLACKWELL: dict[Product, tuple[Versions, ...]] = {"tensorrt": SINCE_BLACKWELL, "tensorrt-rtx": RTX}
SERVERS: dict[Product, tuple[Versions, ...]] = {"tensorrt": ALL}
SERVERS_SINCE_BLACKWELL: dict[Product, tuple[Versions, ...]] = {"tensorrt": SINCE_BLACKWELL}

NVIDIA = "https://www.nvidia.com/en-us/data-center"
SPARSE = "with sparsity there, half of it here"
A100 = "NVIDIA A100 Tensor Core GPU Architecture whitepaper"
GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper v2, appendix A"
AD102 = "NVIDIA Ada GPU Architecture whitepaper v2"
AD107 = "https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-vs-nvidia-geforce-rtx-4060"
GB202 = "NVIDIA RTX Blackwell GPU Architecture whitepaper"
GB202_PRO = "https://hmc-tech.com/gpu/nvidia-rtx-pro-6000-blackwell-vs-amd-radeon-pro-duo-polaris"
GB100 = "NVIDIA Blackwell Architecture Technical Brief, as in https://glennklockwood.com/garden/processors/B200"
ORIN = "NVIDIA Jetson AGX Orin Series Technical Brief, 64 GB: of the GPU 170 sparse int8 TOPS, a quarter of it in fp16"
THOR = "NVIDIA Jetson Thor datasheet: 2070 sparse FP4 TFLOPS, an eighth of it in fp16; 2560 cores at 1.57 GHz"

# name, title, SM, GB, GB/s, TFLOPS in fp16, TFLOPS in fp32, TOPS in int8, precisions, engines, source
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("t4", "NVIDIA T4", 75, 16, 320, 65, 8.1, 130, TURING, BOTH, f"{NVIDIA}/tesla-t4/"),
        Device("a100", "NVIDIA A100 40 GB", 80, 40, 1555, 312, 19.5, 624, AMPERE, BOTH_SINCE_SM80, A100),
        Device("a10", "NVIDIA A10", 86, 24, 600, 125, 31.2, 250, AMPERE, BOTH, f"{NVIDIA}/products/a10-gpu/"),
        Device("rtx-3090", "GeForce RTX 3090", 86, 24, 936, 71, 35.6, 284, AMPERE, BOTH, GA102),
        Device(
            "jetson-orin-jetpack6", "Jetson AGX Orin, JetPack 6", 87, 64, 204.8, 42.5, 5.3, 85, AMPERE, JETPACK_6, ORIN
        ),
        Device(
            "jetson-orin-jetpack7", "Jetson AGX Orin, JetPack 7", 87, 64, 204.8, 42.5, 5.3, 85, AMPERE, JETPACK_7, ORIN
        ),
        Device("rtx-4060", "GeForce RTX 4060", 89, 8, 272, 30.2, 15.1, 121, ADA, BOTH, AD107),
        Device("rtx-4090", "GeForce RTX 4090", 89, 24, 1008, 165.2, 82.6, 660.6, ADA, BOTH, AD102),
        Device("l4", "NVIDIA L4", 89, 24, 300, 121, 30.3, 242.5, ADA, BOTH, f"{NVIDIA}/l4/ ({SPARSE})"),
        Device("l40s", "NVIDIA L40S", 89, 48, 864, 362, 91.6, 733, ADA, BOTH, f"{NVIDIA}/l40s/"),
        Device("h100", "NVIDIA H100 SXM", 90, 80, 3350, 989.5, 67, 1979, ADA, SERVERS, f"{NVIDIA}/h100/ ({SPARSE})"),
        Device("h200", "NVIDIA H200 SXM", 90, 141, 4800, 989.5, 67, 1979, ADA, SERVERS, f"{NVIDIA}/h200/ ({SPARSE})"),
        Device("b200", "NVIDIA B200", 100, 180, 8000, 2250, 80, 4500, ADA, SERVERS_SINCE_BLACKWELL, GB100),
        Device("jetson-thor", "Jetson AGX Thor, JetPack 7", 110, 128, 273, 258.5, 8, None, ADA, JETPACK_7, THOR),
        Device("rtx-5090", "GeForce RTX 5090", 120, 32, 1792, 209.5, 104.8, 838, ADA, BOTH_SINCE_BLACKWELL, GB202),
        Device("rtx-pro-6000", "RTX PRO 6000", 120, 96, 1792, 503.8, 126, 1007.6, ADA, BOTH_SINCE_BLACKWELL, GB202_PRO),
    )
}

# What TensorRT-RTX computes products in, where that is less than the hardware: tried with 1.7.1, which refuses the
# others ("check_turing_op_compatibility"). Norms, softmax and GELU in float32 between products in fp16 are taken.
RTX_PRECISIONS: dict[int, tuple[str, ...]] = {75: ("fp16",)}
# What stands in for a precision that is not there, best first.
NEAREST: dict[str, tuple[str, ...]] = {
    "fp8": ("int8", "fp16"),
    "int8": ("fp16",),
    "bf16": ("fp16",),
    "fp32": ("fp16",),
}


@dataclass(frozen=True)
class Capability:
    """What a product can do since a release, and who says so."""

    feature: Feature
    product: Product
    versions: Versions
    source: str


def _since(product: Product, version: Version, feature: Feature, source: str) -> Capability:
    return Capability(feature, product, Versions(version), source)


NOTES = "https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/release-notes-10"
PARSER = "onnx-tensorrt docs/Changelog.md"
OPERATORS = "onnx-tensorrt docs/operators.md lists Gelu at 10.6, not at 9.2; those between were not seen"
ADDED_IN_10 = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-8x-to-10x-c-api-reference.html"
)
# Since 1.2, the oldest that is taken here.
BUILT = "built with TensorRT-RTX 1.7.1; older releases were not tried"
OFFERED = "the Python API of TensorRT-RTX 1.7.1; older releases were not looked at"
RTX_MATRIX = "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.0.html"

CAPABILITIES: tuple[Capability, ...] = (
    _since("tensorrt", (8, 0), "int8", "https://github.com/NVIDIA/TensorRT/releases/tag/8.0.1 (explicit Q/DQ)"),
    _since("tensorrt", (8, 0), "timing_cache", "TensorRT 8.0.1 release notes: a serialised timing cache"),
    _since("tensorrt", (8, 6), "layer_normalization", f"{PARSER}, 8.6 EA; the op is of opset 17"),
    _since("tensorrt", (8, 6), "version_compatible", "NvInfer.h, kVERSION_COMPATIBLE; TensorRT 8.6 release notes"),
    _since("tensorrt", (8, 6), "ampere_plus", "NvInfer.h, HardwareCompatibilityLevel; TensorRT 8.6 release notes"),
    _since("tensorrt", (9, 0), "local_functions", f"{PARSER}, 9.0 EA"),
    _since("tensorrt", (9, 0), "bf16", f"{PARSER}, 9.0 GA"),
    _since("tensorrt", (9, 0), "fp8", f"{PARSER}, 9.0 GA"),
    _since("tensorrt", (9, 2), "typed", "https://github.com/NVIDIA/TensorRT/releases/tag/v9.2.0"),
    _since("tensorrt", (10, 0), "progress_monitor", "the API reference of 10.0.1, IProgressMonitor"),
    _since("tensorrt", (10, 0), "strip_weights", f"{ADDED_IN_10}: kSTRIP_PLAN, kREFIT_IDENTICAL"),
    _since("tensorrt", (10, 0), "gelu", f"{ADDED_IN_10}: kGELU_ERF, kGELU_TANH; {OPERATORS}"),
    _since("tensorrt", (10, 9), "aot_plugins", f"{NOTES}/10.9.0.html"),
    _since("tensorrt", (10, 9), "same_compute_capability", f"{NOTES}/10.9.0.html"),
    _since("tensorrt", (10, 14), "attention", "https://github.com/onnx/onnx-tensorrt, notes of release 10.14-GA"),
    _since("tensorrt", (10, 15), "rotary_embedding", f"{NOTES}/10.15.1.html"),
    _since("tensorrt-rtx", (1, 0), "bf16", RTX_MATRIX),
    _since("tensorrt-rtx", (1, 0), "fp8", RTX_MATRIX),
    _since("tensorrt-rtx", (1, 2), "typed", OFFERED),
    _since("tensorrt-rtx", (1, 2), "layer_normalization", BUILT),
    _since("tensorrt-rtx", (1, 2), "gelu", BUILT),
    _since("tensorrt-rtx", (1, 2), "local_functions", BUILT),
    _since("tensorrt-rtx", (1, 2), "int8", f"{BUILT}; the support matrix promises int8 for weights alone"),
    _since("tensorrt-rtx", (1, 2), "attention", f"{BUILT}; not in float32"),
    _since("tensorrt-rtx", (1, 2), "rotary_embedding", BUILT),
    _since("tensorrt-rtx", (1, 2), "strip_weights", OFFERED),
    _since("tensorrt-rtx", (1, 2), "progress_monitor", OFFERED),
    # No plugins (https://github.com/NVIDIA/TensorRT-RTX/issues/4), and no timing cache: its calls do nothing since 1.2
    # (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/_static/cpp-api/deprecated.html).
)


@dataclass(frozen=True)
class Capabilities:
    """What one release of a product can do."""

    product: Product
    version: Version
    features: frozenset[Feature]

    def __contains__(self, feature: Feature) -> bool:
        return feature in self.features


@dataclass(frozen=True)
class Choice:
    """A lowering, and why."""

    lowering: str
    reason: str


def capabilities(product: Product, version: Version) -> Capabilities:
    """What the table says of a release."""
    rows = (row for row in CAPABILITIES if row.product == product and version in row.versions)
    return Capabilities(product, version, frozenset(row.feature for row in rows))


def find_device(name: str) -> Device:
    """The row of that name.

    Raises:
        UserError: If there is none; the message names those that are spelt alike.
    """
    if name in DEVICES:
        return DEVICES[name]
    alike = get_close_matches(name.strip().lower().replace("_", "-").replace(" ", "-"), DEVICES, cutoff=0.5)
    guess = f" Did you mean {' or '.join(alike)}?" if alike else ""
    raise UserError(f"Unknown device {name!r}.{guess} Expected one of {', '.join(DEVICES)}.")


def choose_lowering(product: Product, version: Version, device: Device, precision: str) -> Choice:
    """The lowering that a build takes if none is asked for.

    Args:
        product: What builds the engine.
        version: Its release.
        device: What the engine is for.
        precision: Of the model.

    Raises:
        UserError: If nothing can be built, see :func:`check`.
    """
    check(device, product, version, precision, "native")
    release = f"{TITLES[product]} {_dotted(version)}"
    if product == "tensorrt-rtx":
        return Choice("native", f"{release} has no plugins")
    if "aot_plugins" not in capabilities(product, version):
        return Choice("native", f"{release} reads its standard ops, and takes compiled plugins from 10.9 on alone")
    return Choice(
        "native",
        f"{release} fuses standard ops across layers and stops at plugins; plugins are possible, but whether they are "
        f"faster was not measured: --lowering fastest does that on the device",
    )


def check(device: Device, product: Product, version: Version, precision: str, lowering: str) -> None:
    """Refuses what cannot be built or cannot run.

    Raises:
        UserError: With the reason, and the nearest that works.
    """
    _check_release(device, product, version)
    _check_precision(device, product, version, precision)
    _check_lowering(device, product, version, lowering)


def _check_release(device: Device, product: Product, version: Version) -> None:
    if product not in device.engines:
        targets = ", ".join(f"--target {other}" for other in device.engines)
        raise UserError(
            f"{TITLES[product]} builds no engines for {device.title}, which is SM {device.sm}; expected one of SM "
            f"{', '.join(map(str, _architectures(product)))}. Use {targets}."
        )
    offered = device.engines[product]
    if not any(version in versions for versions in offered):
        others = [
            other.name
            for other in DEVICES.values()
            if other.sm == device.sm and any(version in versions for versions in other.engines.get(product, ()))
        ]
        raise UserError(
            f"{device.title} has no {TITLES[product]} {_dotted(version)}; expected {'; or '.join(map(str, offered))}. "
            f"Build with such a release{''.join(f', or for --device {other}' for other in others[:1])}."
        )


def _check_precision(device: Device, product: Product, version: Version, precision: str) -> None:
    able = _precisions(device, product, version)
    if precision in able:
        return
    if precision in device.precisions:
        lacking = f"{TITLES[product]} {_dotted(version)} computes no {precision} on SM {device.sm} ({device.title})"
    else:
        lacking = f"{device.title}, which is SM {device.sm}, has no {precision}"
    nearest = next((other for other in NEAREST.get(precision, ()) if other in able), able[0])
    mend = f"use --precision {nearest}"
    if others := [
        other
        for other, offered in device.engines.items()
        if other != product and precision in _precisions(device, other, offered[-1].since)
    ]:
        mend += f", or --target {others[0]}"
    raise UserError(f"{lacking}; expected one of {', '.join(able)}: {mend}.")


def _check_lowering(device: Device, product: Product, version: Version, lowering: str) -> None:
    if lowering not in LOWERINGS:
        raise UserError(
            f"The lowering {lowering!r} is none for {TITLES[product]}; expected one of {', '.join(LOWERINGS)}."
        )
    able = capabilities(product, version)
    release = f"{TITLES[product]} {_dotted(version)}"
    if lowering == "plugin" and "aot_plugins" not in able:
        first = next(
            (row.versions for row in CAPABILITIES if row.product == product and row.feature == "aot_plugins"), None
        )
        reason = "has no plugins" if first is None else f"takes no compiled plugins; expected {first}"
        raise UserError(f"{release} for {device.title} {reason}: use --lowering native.")
    if lowering != "plugin" and (missing := [op for op in NATIVE_OPS if op not in able]):
        raise UserError(
            f"{release} for {device.title} cannot read the form {lowering}: it lacks {', '.join(missing)}. "
            f"Use a later release."
        )


def _precisions(device: Device, product: Product, version: Version) -> tuple[str, ...]:
    """Of the hardware, what a release computes."""
    able = capabilities(product, version)
    known = {"fp32", "fp16", *(name for name in ("int8", "bf16", "fp8") if name in able.features)}
    limits = RTX_PRECISIONS.get(device.sm, device.precisions) if product == "tensorrt-rtx" else device.precisions
    return tuple(name for name in device.precisions if name in known and name in limits)


def _architectures(product: Product) -> list[int]:
    return sorted({device.sm for device in DEVICES.values() if product in device.engines})


def _padded(version: Version) -> Version:
    """Of four parts, so that 10.9 is 10.9.0."""
    return (*version, *(0,) * (4 - len(version)))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version)) if len(version) > 1 else f"{version[0]}.0"


def estimate_on(device: Device, schedule: Schedule) -> Estimate:
    """The least time of a schedule on a device, by the device's datasheet: an estimate."""
    return estimate(
        schedule,
        bandwidth=device.bandwidth_gb_s * 1e9,
        fp16_peak=device.fp16_tflops * 1e12,
        fp32_peak=device.fp32_tflops * 1e12,
        int8_peak=(device.int8_tops or device.fp16_tflops) * 1e12,
        launch_seconds=LAUNCH_SECONDS,
    )


def check_memory(memory_bytes: int, schedule: Schedule, maxima: Mapping[str, int]) -> None:
    """Refuses an engine that takes more memory than there is: its weights, and what its largest kernel works on.

    That is a lower bound: other tensors are held meanwhile, and CUDA takes some hundred MiB for itself.

    Args:
        memory_bytes: What there is.
        schedule: Of a profile, at its maximum.
        maxima: Of the axes that vary.

    Raises:
        UserError: With what is needed, and what to ask for instead.
    """
    constants = {tensor.name: tensor for kernel in schedule.kernels for tensor in kernel.constants}
    weights = sum(
        math.prod(tensor.shape) * BYTES.get(tensor.dtype, 0)
        for tensor in constants.values()
        if tensor.shape is not None
    )
    sets = (sum(tensor.bytes for tensor in (*kernel.inputs, *kernel.outputs)) for kernel in schedule.kernels)
    largest = max(sets, default=0)
    if weights + largest > memory_bytes:
        told = ", ".join(f"{axis} {size}" for axis, size in maxima.items())
        raise UserError(
            f"The engine needs at least {_told(weights + largest)} of memory{' at ' if told else ''}{told}: "
            f"{_told(weights)} for its weights and {_told(largest)} for its largest kernel; the device has "
            f"{_told(memory_bytes)}. Give axes smaller maxima with --profile, or name a --device with more memory."
        )


def _told(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
