"""The processor, and the instructions that ONNX Runtime multiplies int8 with on it: speed depends on them.

Results do not: weights are stored so that all of these give the same sums (graph_passes/quantization.py).
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel

__all__ = ["Processor", "find_processor", "int8_instructions"]

CPUINFO = Path("/proc/cpuinfo")
UNKNOWN = "unknown instructions"  # Linux alone tells, of the architectures below
AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
# In the order in which ONNX Runtime prefers them (onnxruntime/core/mlas/lib/platform.cpp), by the kernel's flags.
INT8_INSTRUCTIONS: tuple[tuple[str, frozenset[str]], ...] = (
    ("AMX", AVX2 | {"amx_tile", "amx_int8"}),
    ("AVX-512 VNNI", AVX512 | {"avx512_vnni"}),
    ("AVX-512 without VNNI", AVX512),
    ("AVX-VNNI", AVX2 | {"avx_vnni"}),
    ("AVX2", AVX2),
    ("SSE2", frozenset({"sse2"})),
    ("Arm I8MM", frozenset({"i8mm"})),
    ("Arm dot products", frozenset({"asimddp"})),
    ("Arm NEON", frozenset({"asimd"})),
)


class Processor(BaseModel):
    """The processor here.

    Attributes:
        name: As the maker calls it.
        int8: The instructions that int8 products run on, such as ``"AVX2"`` or ``"AVX-512 VNNI"``.
    """

    name: str
    int8: str


@functools.cache
def find_processor() -> Processor:
    """Reads ``/proc/cpuinfo``; where there is none, the instructions are unknown."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Processor(name=platform.processor() or platform.machine(), int8=UNKNOWN)
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Processor(name=fields.get("model name") or platform.machine(), int8=int8_instructions(flags))


def int8_instructions(flags: Collection[str]) -> str:
    """The first of the sets of instructions that the flags of a processor hold."""
    return next((name for name, needed in INT8_INSTRUCTIONS if needed.issubset(flags)), UNKNOWN)
