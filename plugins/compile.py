"""Triton kernels compiled to PTX, without a GPU, in the form that TensorRT stores in an engine and launches.

Triton's own launcher knows things that nothing else does; what it adds is taken away again and checked:

- two parameters that it appends to every kernel (scratch memory, which ours do not use): a launcher that passes the
  contract's parameters would pass too few;
- the suffix of ``sm_90a`` and later: such code runs on that one architecture, without it on all later ones as well;
- a PTX version as new as the compiler: a driver refuses PTX that is newer than itself, whatever is in it;
- paths of the machine that compiled it.

What is left must pass ``ptxas``, which also tells the registers.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from plugins.contract import FLOATS
from plugins.kernel import Formula, Kernel, Launch, Request, Tactic
from plugins.ops import OPS

__all__ = ["TARGETS", "CompiledKernel", "KernelError", "Target", "compile_kernel", "kernels", "version_for", "why_not"]

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8"}
# TensorRT's tensors start at multiples of this many bytes, or at an offset of whole rows: what Triton may rely on when
# it makes loads of 16 bytes of rows whose size is a multiple of 16.
ALIGNMENT = 16


class KernelError(Exception):
    """A kernel cannot be compiled, or what came out is not what TensorRT would launch."""


@dataclass(frozen=True)
class Target:
    """An architecture to compile for.

    Args:
        introduced: The oldest PTX version that knows it, 80 for 8.0.
        devices: What has it.
    """

    introduced: int
    devices: str


# "PTX ISA release history" (https://docs.nvidia.com/cuda/parallel-thread-execution/#release-notes).
TARGETS: dict[int, Target] = {
    75: Target(63, "Turing: T4, RTX 20"),
    80: Target(70, "A100, A30"),
    86: Target(71, "RTX 30, A10, A40"),
    87: Target(74, "Jetson Orin"),
    89: Target(78, "RTX 40, L4, L40"),
    90: Target(80, "H100, H200"),  # of 7.8, but what Triton writes is sm_90a first, which is of 8.0
    100: Target(86, "B200"),
    110: Target(90, "Jetson Thor"),
    120: Target(87, "RTX 50, RTX PRO"),
}
# What a driver must be to load a PTX version for sure: the release of CUDA that brought the version, and the Linux
# driver of that release (table 3 of https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/; CUDA 12.7, which brought
# 8.6, was no public release, so 12.8 stands in). Jetsons have drivers of their own, which come with JetPack: there the
# release counts. A version that is not here is not written.
DRIVERS: dict[int, tuple[str, str]] = {
    78: ("11.8", "520.61.05"),
    80: ("12.0", "525.60.13"),
    81: ("12.1", "530.30.02"),
    82: ("12.2", "535.54.03"),
    83: ("12.3", "545.23.06"),
    84: ("12.4", "550.54.14"),
    85: ("12.5", "555.42.02"),
    86: ("12.8", "570.26"),
    87: ("12.8", "570.26"),
    88: ("12.9", "575.51.03"),
    90: ("13.0", "580.65.06"),
}
USUAL = 80  # every target up to Hopper: TensorRT 10.9, the first with such plugins, asks for CUDA 12 and its drivers
# Of dynamic shared memory a kernel gets no more, unless its launcher asks for more, which TensorRT does not.
LARGEST_SHARED_MEMORY = 48 * 1024


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel for one architecture, and all that is needed to launch it.

    Args:
        op_type: Of the contract.
        outputs: The names of the outputs that it writes.
        name: Of the entry point.
        ptx: The code.
        parameters: In the order of the launch, name and type: the contract's inputs, extra int32 arguments, outputs.
        grid: Formulas of the inputs' sizes, by the contract's letters.
        arguments: Formulas of the extra arguments, by name.
        block: Threads along x, y and z.
        shared_memory: Bytes, dynamic.
        registers: Of a thread.
        spilled: Bytes of registers that did not fit and went to memory, stores and loads together.
        sm: The architecture; the code runs on it and on later ones.
        ptx_version: As ``80`` for 8.0.
        cuda, driver: The oldest CUDA release, and the oldest Linux driver, that are sure to load it.
    """

    op_type: str
    outputs: tuple[str, ...]
    name: str
    ptx: str
    parameters: tuple[tuple[str, str], ...]
    grid: tuple[str, str, str]
    arguments: dict[str, str]
    block: tuple[int, int, int]
    shared_memory: int
    registers: int
    spilled: int
    sm: int
    ptx_version: int
    cuda: str
    driver: str


def why_not() -> str | None:
    """Why kernels cannot be compiled here, and what to do about it; ``None`` if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed. Install it with: pip install 'rotary-press[plugins]' (Linux, CPython 3.10+)."
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set, so Triton interprets kernels and compiles none: unset it."
    return None


def kernels() -> dict[str, Kernel]:
    """The kernels by op type. Needs Triton."""
    from plugins.interleaved_rotary.kernel import KERNEL as INTERLEAVED_ROTARY
    from plugins.qkv_rotary.kernel import KERNEL as QKV_ROTARY
    from plugins.quantized_residual_layer_norm.kernel import KERNEL as QUANTIZED_RESIDUAL_LAYER_NORM
    from plugins.residual_layer_norm.kernel import KERNEL as RESIDUAL_LAYER_NORM

    table = (INTERLEAVED_ROTARY, QKV_ROTARY, RESIDUAL_LAYER_NORM, QUANTIZED_RESIDUAL_LAYER_NORM)
    return {kernel.contract.op_type: kernel for kernel in table}


def version_for(sm: int, asked: int | None = None) -> int:
    """The PTX version to write for an architecture.

    Args:
        sm: One of :data:`TARGETS`.
        asked: One of :data:`DRIVERS`, no older than the target; ``None`` for the oldest from 8.0 on.

    Raises:
        KernelError: If either is none of those.
    """
    if sm not in TARGETS:
        known = ", ".join(f"{known} ({target.devices})" for known, target in TARGETS.items())
        raise KernelError(f"No kernel can be compiled for SM {sm}; expected one of {known}.")
    if asked is None:
        return max(TARGETS[sm].introduced, USUAL)
    if asked not in DRIVERS or asked < TARGETS[sm].introduced:
        versions = ", ".join(str(of / 10) for of in DRIVERS if of >= TARGETS[sm].introduced)
        raise KernelError(f"PTX for sm_{sm} cannot be of version {asked / 10}; expected one of {versions}.")
    return asked


def compile_kernel(
    op_type: str,
    *,
    dtype: str,
    fixed: Mapping[str, int],
    attributes: Mapping[str, Any],
    sm: int,
    outputs: Sequence[str] | None = None,
    tactic: int = 0,
    ptx_version: int | None = None,
) -> CompiledKernel:
    """Compiles one kernel. The same request is compiled once in a process.

    Args:
        op_type: Of the contract.
        dtype: Of the tensors whose dtype may be chosen: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        fixed: The sizes that are compiled in, by letter; see :attr:`Kernel.fixed`.
        attributes: Of the node.
        sm: One of :data:`TARGETS`.
        outputs: The names of the outputs that the node has; all by default.
        tactic: Which of the kernel's tactics.
        ptx_version: See :func:`version_for`.

    Raises:
        KernelError: If Triton is missing or too old, the request is not one that the contract allows, or the result is
            not what TensorRT would launch.
    """
    if reason := why_not():
        raise KernelError(reason)
    version = version_for(sm, ptx_version)
    if dtype not in FLOATS:
        raise KernelError(f"{op_type} cannot be compiled for {dtype}; expected one of {', '.join(FLOATS)}.")
    contract = OPS[op_type].contract
    outputs = tuple(outputs if outputs is not None else (spec.name for spec in contract.outputs))
    if outputs not in set(contract.variants):
        raise KernelError(f"{op_type} has no variant with the outputs {outputs}; it has {list(contract.variants)}.")
    if not 0 <= tactic < len(kernels()[op_type].tactics):
        raise KernelError(f"{op_type} has no tactic {tactic}; it has {len(kernels()[op_type].tactics)}.")
    return _compile(
        op_type, dtype, tuple(sorted(fixed.items())), tuple(sorted(attributes.items())), sm, outputs, tactic, version
    )


@cache
def _compile(
    op_type: str,
    dtype: str,
    fixed: tuple[tuple[str, int], ...],
    attributes: tuple[tuple[str, Any], ...],
    sm: int,
    outputs: tuple[str, ...],
    tactic: int,
    ptx_version: int,
) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.errors import PTXASError

    kernel = kernels()[op_type]
    parameters = _parameters(kernel, dtype, outputs)
    launch = _launch_in_letters(kernel, dict(fixed), dict(attributes), outputs, kernel.tactics[tactic])
    names = kernel.function.arg_names
    signature = {name: parameters.get(name, "constexpr") for name in names}
    pointers = {
        (names.index(name),): [["tt.divisibility", ALIGNMENT]] for name, of in parameters.items() if of[0] == "*"
    }
    source = ASTSource(kernel.function, signature, launch.constants, pointers)
    options = {"num_warps": launch.num_warps, "ptx_version": ptx_version, "enable_fp_fusion": True}
    with triton.knobs.compilation.scope(), redirect_stdout(StringIO()):  # there Triton prints what ptxas refuses
        triton.knobs.compilation.disable_line_info = True  # it names files of this machine
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
        except PTXASError as error:
            told = next((line for line in str(error).splitlines() if "fatal" in line), str(error))
            raise KernelError(
                f"Triton {triton.__version__} cannot compile {op_type} for sm_{sm} as PTX {ptx_version / 10}: "
                f"{told.strip()}. Install a newer Triton, or ask for an older PTX version."
            ) from error
    ptx = _forward_compatible(compiled.asm["ptx"], sm)
    ptx = _with_parameters(ptx, [_ptx_type(of) for of in parameters.values()])
    registers, spilled = _assemble(ptx, sm)
    return CompiledKernel(
        op_type=op_type,
        outputs=outputs,
        name=compiled.metadata.name,
        ptx=ptx,
        parameters=tuple((name, _ptx_type(of)) for name, of in parameters.items()),
        grid=(str(launch.grid[0]), str(launch.grid[1]), str(launch.grid[2])),
        arguments={name: str(value) for name, value in launch.arguments.items()},
        block=(32 * launch.num_warps, 1, 1),
        shared_memory=_shared_memory(compiled.metadata.shared, f"{op_type} with {dict(fixed)}"),
        registers=registers,
        spilled=spilled,
        sm=sm,
        ptx_version=ptx_version,
        cuda=DRIVERS[ptx_version][0],
        driver=DRIVERS[ptx_version][1],
    )


def _parameters(kernel: Kernel, dtype: str, outputs: Collection[str]) -> dict[str, str]:
    """The parameters of the compiled kernel with their Triton types: inputs, extra arguments, outputs."""
    contract = kernel.contract
    written = [spec for spec in contract.outputs if spec.name in outputs]
    types = {
        spec.name: "*" + DTYPES[dtype if len(spec.dtypes) > 1 else spec.dtypes[0]]
        for spec in (*contract.inputs, *written)
    }
    inputs = [spec.name for spec in contract.inputs]
    order = [*inputs, *kernel.arguments, *(spec.name for spec in written)]
    return {name: types.get(name, "i32") for name in order}


def _launch_in_letters(
    kernel: Kernel, fixed: dict[str, int], attributes: dict[str, Any], outputs: Collection[str], tactic: Tactic
) -> Launch:
    """The launch with text in place of the sizes that only the run time knows."""
    letters = {letter for spec in kernel.contract.inputs for letter in spec.shape if len(letter) == 1}
    missing = [letter for letter in kernel.fixed if not isinstance(fixed.get(letter), int) or fixed[letter] < 1]
    if missing:
        raise KernelError(f"{kernel.contract.op_type} needs a fixed size for {missing}; got {fixed}.")
    sizes = {letter: Formula(letter) for letter in letters} | {letter: fixed[letter] for letter in kernel.fixed}
    return kernel.launch(Request(sizes, attributes, outputs, tactic))


def _ptx_type(triton_type: str) -> str:
    return "u64" if triton_type.startswith("*") else "u32"


def _forward_compatible(ptx: str, sm: int) -> str:
    """The code for an architecture and all later ones, instead of for that one alone."""
    ptx, count = re.subn(rf"^\.target sm_{sm}a?$", f".target sm_{sm}", ptx, flags=re.MULTILINE)
    if count != 1:
        raise KernelError(f"The compiled kernel has no target sm_{sm}. Report this with the version of Triton.")
    return ptx


def _with_parameters(ptx: str, expected: list[str]) -> str:
    """The code with exactly these parameters; those behind them are taken away if the code does not read them.

    Raises:
        KernelError: If it has others, or reads one that would go.
    """
    entry = re.search(r"(\.visible \.entry \w+\(\n)(.*?)(\n\)\n)", ptx, flags=re.DOTALL)
    declared = re.findall(r"\.param \.(\w+)[^,]*?(\w+)(?:,|$)", entry[2], flags=re.MULTILINE) if entry else []
    kept, added = declared[: len(expected)], declared[len(expected) :]
    types = [of.replace("b", "u") for of, _ in kept]
    body = ptx[entry.end() :] if entry else ""
    read = [name for _, name in added if re.search(rf"\b{name}\b", body)]
    if entry is None or types != expected or read:
        raise KernelError(
            f"The compiled kernel takes {types} and reads {read or 'nothing'} of what Triton adds; the contract says "
            f"{expected}. Report this with the version of Triton."
        )
    lines = entry[2].split(",\n")[: len(expected)]
    return ptx[: entry.start(2)] + ",\n".join(lines) + ptx[entry.end(2) :]


def _shared_memory(needed: int, by: str) -> int:
    """The bytes needed, if a launcher gives a kernel as many without being asked."""
    if needed > LARGEST_SHARED_MEMORY:
        raise KernelError(
            f"{by} needs {needed} bytes of shared memory; a plugin may have {LARGEST_SHARED_MEMORY}. "
            f"Lower the graph with `native` instead."
        )
    return needed


def _assemble(ptx: str, sm: int) -> tuple[int, int]:
    """The registers of a thread, and the bytes spilled, as NVIDIA's assembler says; it comes with Triton.

    Raises:
        KernelError: If it refuses the code.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        command = [
            get_ptxas(sm).path,
            "-v",
            f"--gpu-name=sm_{sm}",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # Triton's own
    if finished.returncode:
        raise KernelError(f"ptxas refused the kernel for sm_{sm}: {finished.stderr.strip()}")
    registers = re.search(r"Used (\d+) registers", finished.stderr)
    spilled = re.findall(r"(\d+) bytes spill", finished.stderr)
    return int(registers[1]) if registers else 0, sum(map(int, spilled))
