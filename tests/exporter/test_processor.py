"""The instructions that int8 runs on: those of real processors, and whether the runtime multiplies as they do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import parser

from exporter import processor
from exporter.processor import UNKNOWN, Processor, find_processor, int8_instructions

V3 = "sse2 avx fma avx2 bmi2"
V4 = f"{V3} avx512f avx512dq avx512bw avx512vl"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in the place of /proc/cpuinfo."""
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    find_processor.cache_clear()
    yield tmp_path / "cpuinfo"
    find_processor.cache_clear()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (f"{V4} avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8", "AMX"),  # Sapphire Rapids
        (f"{V4} avx512_vnni", "AVX-512 VNNI"),  # Cascade Lake, Zen 4
        (V4, "AVX-512 without VNNI"),  # Skylake-X
        (f"{V3} avx512f avx512cd", "AVX2"),  # Knights Landing has no 512-bit operations on bytes
        (f"{V3} avx_vnni", "AVX-VNNI"),  # Alder Lake
        (V3, "AVX2"),  # Haswell, Zen
        ("sse2 avx", "SSE2"),  # Sandy Bridge
        ("fp asimd asimddp i8mm", "Arm I8MM"),  # Graviton 3
        ("fp asimd asimddp", "Arm dot products"),  # Orin
        ("fp asimd", "Arm NEON"),  # Cortex-A72
        ("rv64imafdc", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_the_instructions_of_a_processor(flags: str, expected: str) -> None:
    assert int8_instructions(flags.split()) == expected


def test_x86_is_read(cpuinfo: Path) -> None:
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Some: CPU @ 2 GHz\nflags\t\t: fpu sse2 fma avx2\n\nprocessor\t: 1\n",
        encoding="utf-8",
    )
    assert find_processor() == Processor(name="Some: CPU @ 2 GHz", int8="AVX2")


def test_arm_is_read(cpuinfo: Path) -> None:
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd42\n", encoding="utf-8")
    found = find_processor()
    assert found.int8 == "Arm dot products"
    assert found.name


def test_elsewhere_it_is_unknown(cpuinfo: Path) -> None:
    found = find_processor()
    assert found.int8 == UNKNOWN
    assert found.name


def test_the_runtime_multiplies_here_as_the_instructions_do(request: pytest.FixtureRequest) -> None:
    """Only those that add two products in 16 bits saturate at 32767: 255 * 127 twice is 64770."""
    if request.config.getoption("--exact-int8"):
        pytest.skip("other kernels than the processor's own were asked for")
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        product (uint8[1, 4] a, int8[4, 1] w) => (int32[1, 1] y) { y = MatMulInteger (a, w) }"""
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    a, w = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    [found] = session.run(None, {"a": a, "w": w})
    saturates = find_processor().int8 in ("AVX2", "AVX-512 without VNNI")
    assert found.item() == (2 * 32767 if saturates else 4 * 255 * 127)
