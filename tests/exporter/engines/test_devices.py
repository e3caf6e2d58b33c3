"""The tables of devices and of what TensorRT can do: rows that hold together, choices, and refusals that help."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.engines.devices import (
    CAPABILITIES,
    DEVICES,
    Device,
    Feature,
    Product,
    Version,
    Versions,
    capabilities,
    check,
    check_memory,
    choose_lowering,
    find_device,
)
from exporter.engines.schedule import Kernel, KernelTensor, Schedule
from exporter.errors import UserError
from graph_passes.pipeline import LOWERINGS, PRECISIONS
from plugins.compile import TARGETS

NEWEST: dict[Product, Version] = {"tensorrt": (11, 4, 1), "tensorrt-rtx": (1, 7, 1, 116)}
GEFORCE = ["rtx-3090", "rtx-4060", "rtx-4090", "rtx-5090"]
every_device = pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
products = st.sampled_from(get_args(Product))
versions = st.lists(st.integers(0, 20), min_size=1, max_size=4).map(tuple)


def pairs() -> list[tuple[Device, Product, Version]]:
    """Each device with the oldest release of each product that it takes, and with the newest."""
    return [
        (device, product, version)
        for device in DEVICES.values()
        for product, offered in device.engines.items()
        for version in (offered[0].since, NEWEST[product])
        if any(version in of for of in offered)
    ]


@every_device
def test_a_row_is_complete_and_says_where_it_is_from(device: Device) -> None:
    assert device.source.startswith(("https://", "NVIDIA "))
    assert device.name == device.name.lower()
    assert device.sm in TARGETS
    assert "tensorrt" in device.engines
    assert {"fp32", "fp16", "int8"} <= set(device.precisions)


@every_device
def test_figures_hold_together(device: Device) -> None:
    assert 4 <= device.memory_gb <= 200
    assert 200 <= device.bandwidth_gb_s <= 10_000
    assert device.fp16_tflops >= 1.9 * device.fp32_tflops
    # Sums in float32 cost GeForce cards half of their tensor cores' speed; integers have no such limit.
    ratio = 4 if device.name in GEFORCE else 2
    if device.int8_tops is not None:
        assert device.int8_tops / device.fp16_tflops == pytest.approx(ratio, rel=0.02)
    # Where a product of matrices stops to wait for memory: no device is off by an order of magnitude.
    assert 50 <= device.fp16_tflops * 1e3 / device.bandwidth_gb_s <= 1000


def test_devices_of_one_chip_differ_in_nothing_but_what_their_names_say() -> None:
    old, new = DEVICES["jetson-orin-jetpack6"], DEVICES["jetson-orin-jetpack7"]
    assert replace(old, name=new.name, title=new.title, engines=new.engines) == new
    h100, h200 = DEVICES["h100"], DEVICES["h200"]
    assert (h100.fp16_tflops, h100.fp32_tflops, h100.int8_tops) == (h200.fp16_tflops, h200.fp32_tflops, h200.int8_tops)
    assert h100.bandwidth_gb_s < h200.bandwidth_gb_s
    assert h100.memory_gb < h200.memory_gb


@every_device
def test_precisions_follow_from_the_architecture(device: Device) -> None:
    assert ("bf16" in device.precisions) == (device.sm >= 80)
    assert ("fp8" in device.precisions) == (device.sm >= 89)


@every_device
def test_rtx_engines_are_for_rtx_architectures(device: Device) -> None:
    assert ("tensorrt-rtx" in device.engines) == (device.sm in (75, 80, 86, 89, 120, 121))


def test_rtx_architectures_are_those_of_the_installed_module() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    known = {int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert {device.sm for device in DEVICES.values() if "tensorrt-rtx" in device.engines} <= known
    assert not known & {device.sm for device in DEVICES.values() if "tensorrt-rtx" not in device.engines}


def test_a_capability_has_one_row_per_product_and_a_source() -> None:
    assert len({(row.product, row.feature) for row in CAPABILITIES}) == len(CAPABILITIES)
    assert {row.feature for row in CAPABILITIES} == set(get_args(Feature))
    assert all(len(row.source) > 10 for row in CAPABILITIES)


@given(product=products, one=versions, other=versions)
def test_a_later_release_can_do_no_less(product: Product, one: Version, other: Version) -> None:
    older, newer = sorted((one, other))
    assert capabilities(product, older).features <= capabilities(product, newer).features


@pytest.mark.parametrize(
    ("feature", "version"),
    [
        ("gelu", (10, 0)),
        ("aot_plugins", (10, 9)),
        ("same_compute_capability", (10, 9)),
        ("attention", (10, 14)),
        ("rotary_embedding", (10, 15)),
    ],
)
def test_tensorrt_can_since(feature: Feature, version: tuple[int, int]) -> None:
    major, minor = version
    before = (major, minor - 1, 9) if minor else (major - 1, 9)
    assert feature in capabilities("tensorrt", version)
    assert feature in capabilities("tensorrt", (*version, 0, 30))
    assert feature not in capabilities("tensorrt", before)


@pytest.mark.parametrize("feature", ["aot_plugins", "timing_cache", "version_compatible", "ampere_plus"])
def test_tensorrt_rtx_never_can(feature: Feature) -> None:
    assert feature not in capabilities("tensorrt-rtx", (99,))


@given(since=versions, before=versions, version=versions, zeros=st.integers(0, 2))
def test_zeros_at_the_end_of_a_version_say_nothing(
    since: Version, before: Version, version: Version, zeros: int
) -> None:
    longer = (*version, *(0,) * zeros)
    for of in (Versions(since), Versions(since, before)):
        assert (version in of) == (longer in of)


@pytest.mark.parametrize(("device", "product", "version"), pairs())
def test_what_is_offered_builds_from_standard_ops(device: Device, product: Product, version: Version) -> None:
    choice = choose_lowering(product, version, device, "fp16")
    assert choice.lowering == "native"
    assert choice.lowering in LOWERINGS
    check(device, product, version, "fp16", choice.lowering)
    check(device, product, version, "fp16", "portable")


@pytest.mark.parametrize("precision", PRECISIONS)
@every_device
def test_tensorrt_builds_every_precision_of_ours(device: Device, precision: str) -> None:
    check(device, "tensorrt", device.engines["tensorrt"][-1].since, precision, "native")


@pytest.mark.parametrize(
    ("product", "version", "name", "reason"),
    [
        ("tensorrt-rtx", (1, 7, 1), "rtx-4090", "TensorRT-RTX 1.7.1 has no plugins"),
        ("tensorrt", (10, 3), "jetson-orin-jetpack6", "takes compiled plugins from 10.9 on alone"),
        ("tensorrt", (10, 9), "h200", "not measured: --lowering fastest does that on the device"),
    ],
)
def test_the_choice_is_explained(product: Product, version: Version, name: str, reason: str) -> None:
    assert reason in choose_lowering(product, version, DEVICES[name], "fp16").reason


@pytest.mark.parametrize(
    ("name", "product", "version", "precision", "lowering", "because", "instead"),
    [
        ("a10", "tensorrt", (11, 0), "fp8", "native", "NVIDIA A10, which is SM 86, has no fp8", "--precision int8."),
        ("t4", "tensorrt", (10, 9), "bf16", "native", "SM 75, has no bf16", "--precision fp16."),
        ("t4", "tensorrt", (10, 9), "fp8", "native", "SM 75, has no fp8", "--precision int8."),
        (
            *("t4", "tensorrt-rtx", (1, 7), "int8", "native"),
            *("TensorRT-RTX 1.7 computes no int8 on SM 75", "--precision fp16, or --target tensorrt."),
        ),
        (
            *("t4", "tensorrt-rtx", (1, 7), "fp32", "native"),
            *("computes no fp32 on SM 75", "--precision fp16, or --target tensorrt."),
        ),
        (
            "l4",
            "tensorrt",
            (11, 0),
            "fp4",
            "native",
            "has no fp4; expected one of fp32, fp16, int8, bf16, fp8",
            "--prec",
        ),
        (
            *("jetson-orin-jetpack7", "tensorrt-rtx", (1, 7), "fp16", "native"),
            *("builds no engines for Jetson AGX Orin, JetPack 7, which is SM 87", "--target tensorrt."),
        ),
        ("jetson-thor", "tensorrt-rtx", (1, 7), "fp16", "native", "which is SM 110", "--target tensorrt."),
        (
            *("h100", "tensorrt-rtx", (1, 7), "fp16", "native"),
            *("which is SM 90; expected one of SM 75, 80, 86, 89, 120", "--target tensorrt."),
        ),
        ("b200", "tensorrt-rtx", (1, 7), "fp16", "native", "which is SM 100", "--target tensorrt."),
        (
            *("b200", "tensorrt", (10, 7), "fp16", "native"),
            *("NVIDIA B200 has no TensorRT 10.7; expected 10.8 or later", "Build with such a release."),
        ),
        (
            *("jetson-orin-jetpack6", "tensorrt", (11, 4, 1), "fp16", "native"),
            *("no TensorRT 11.4.1; expected 10.3 or later, before 10.8", "or for --device jetson-orin-jetpack7."),
        ),
        (
            *("jetson-orin-jetpack7", "tensorrt", (11, 4), "fp16", "native"),
            *("expected 10.16 or later, before 11.0; or 11.4.1 or later", "Build with such a release."),
        ),
        (
            *("jetson-orin-jetpack6", "tensorrt", (10, 3), "fp16", "plugin"),
            *("TensorRT 10.3 for Jetson AGX Orin, JetPack 6 takes no compiled plugins; expected 10.9 or", "native."),
        ),
        (
            *("rtx-4090", "tensorrt-rtx", (1, 7, 1), "fp16", "plugin"),
            *("TensorRT-RTX 1.7.1 for GeForce RTX 4090 has no plugins", "--lowering native."),
        ),
        (
            *("l4", "tensorrt", (11, 0), "fp16", "onnxruntime"),
            *("The lowering 'onnxruntime' is none for TensorRT", "expected one of plugin, native, portable."),
        ),
    ],
)
def test_what_is_impossible_is_refused_with_what_works(
    name: str, product: Product, version: Version, precision: str, lowering: str, because: str, instead: str
) -> None:
    with pytest.raises(UserError) as caught:
        check(DEVICES[name], product, version, precision, lowering)
    message = str(caught.value)
    assert because in message
    assert instead in message
    assert message.endswith(".")


@pytest.mark.parametrize("lowering", ["native", "portable"])
def test_a_parser_without_our_ops_is_refused(lowering: str) -> None:
    device = replace(DEVICES["t4"], engines={"tensorrt": (Versions((8, 0)),)})
    with pytest.raises(UserError, match=rf"form {lowering}: it lacks typed, layer_normalization, gelu\. Use a later"):
        check(device, "tensorrt", (8, 5), "fp16", lowering)
    with pytest.raises(UserError, match="it lacks gelu"):
        choose_lowering("tensorrt", (9, 3), device, "fp16")


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_found_by_its_name(name: str) -> None:
    assert find_device(name) is DEVICES[name]


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("RTX 4090", "rtx-4090"),
        ("rtx_5090", "rtx-5090"),
        ("rtx4060", "rtx-4060"),
        ("jetson-orin", "jetson-orin-jetpack"),
        ("thor", "jetson-thor"),
        ("H100", "h100"),
    ],
)
def test_an_unknown_device_is_guessed(name: str, guess: str) -> None:
    with pytest.raises(
        UserError, match=rf"Unknown device {name!r}. Did you mean .*{guess}.*\? Expected one of t4, a100"
    ):
        find_device(name)


@pytest.mark.parametrize("name", ["", "tpu-v5-lite", "mi300x"])
def test_an_unknown_device_that_is_like_none(name: str) -> None:
    with pytest.raises(UserError, match=f"^Unknown device {name!r}. Expected one of {', '.join(DEVICES)}.$"):
        find_device(name)


def kernel(name: str, inputs: list[int], outputs: list[int], constants: dict[str, list[int]]) -> Kernel:
    """One kernel of a float16 engine: bytes of what it reads and writes, shapes of its weights, of which it moves 2."""

    def tensor(name: str, moved: int, shape: list[int] | None = None) -> KernelTensor:
        return KernelTensor(name=name, dtype="float16", format="", shape=shape, bytes=moved)

    return Kernel(
        name=name,
        type="kgen",
        part="",
        nodes=[],
        inputs=[tensor("in", moved) for moved in inputs],
        constants=[tensor(name, 2, shape) for name, shape in constants.items()],
        outputs=[tensor("out", moved) for moved in outputs],
        products=[],
        stream=0,
    )


# 128 bytes of weights, "table" among them but once, and 100 bytes for the second kernel.
KERNELS = Schedule(
    kernels=[
        kernel("a", [10], [20], {"table": [10, 4]}),
        kernel("b", [60], [30, 10], {"table": [10, 4], "weight": [6, 4]}),
    ],
    steps=[],
    unsized=[],
    uncounted=[],
)


def test_an_engine_needs_its_weights_and_its_largest_kernel() -> None:
    check_memory(128 + 100, KERNELS, {})
    with pytest.raises(UserError, match="The engine needs at least"):
        check_memory(128 + 99, KERNELS, {})


def test_too_little_memory_is_told_with_what_there_is() -> None:
    large = KERNELS.model_copy(update={"kernels": [kernel("a", [3 * 2**30], [2**29], {"table": [2**18, 2]})]})
    with pytest.raises(UserError) as caught:
        check_memory(3 * 2**29, large, {"batch": 8, "sequence": 512})
    assert str(caught.value) == (
        "The engine needs at least 3.5 GiB of memory at batch 8, sequence 512: 1.0 MiB for its weights and 3.5 GiB for "
        "its largest kernel; the device has 1.5 GiB. Give axes smaller maxima with --profile, or name a --device with "
        "more memory."
    )
