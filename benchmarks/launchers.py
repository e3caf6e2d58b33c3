"""Launching the plugins' kernels without TensorRT, just as it would: in Triton's interpreter, or as PTX on a GPU.

Both take what TensorRT takes: inputs in the contract's order, the extra int32 arguments and the grid by their formulas,
then the outputs. Both also look after what a kernel must not do: outputs are filled with two patterns of bytes in two
runs, so an element that is not written differs; memory around them and the inputs must come back as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plugins.compile import CompiledKernel, compile_kernel, kernels
from plugins.contract import PluginContract
from plugins.kernel import Launch, Request
from plugins.ops import OPS

__all__ = ["KernelCall", "LaunchError", "checked", "in_interpreter", "on_cuda"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
PATTERNS = (0xA5, 0x3C)
GUARD = 256  # bytes before and behind each output; a multiple of what TensorRT aligns tensors to


class LaunchError(Exception):
    """A kernel wrote what it must not, left what it must write, or could not be launched."""


@dataclass(frozen=True)
class KernelCall:
    """One node of an op with its inputs.

    Args:
        op_type: Of the contract.
        inputs: In the contract's order, contiguous, on one device.
        attributes: Of the node.
        outputs: The names of those that the node has; ``None`` for all.
        tactic: Which of the kernel's tactics.
    """

    op_type: str
    inputs: Sequence[torch.Tensor]
    attributes: Mapping[str, Any]
    outputs: Sequence[str] | None = None
    tactic: int = 0

    @property
    def contract(self) -> PluginContract:
        """Of the op."""
        return OPS[self.op_type].contract

    @property
    def written(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(self.outputs if self.outputs is not None else (spec.name for spec in self.contract.outputs))

    @property
    def sizes(self) -> dict[str, int]:
        """By letter."""
        shapes = {spec.name: tuple(t.shape) for spec, t in zip(self.contract.inputs, self.inputs, strict=True)}
        return self.contract.sizes(shapes, self.attributes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors whose dtype may be chosen."""
        specs = self.contract.inputs
        return next(t.dtype for spec, t in zip(specs, self.inputs, strict=True) if len(spec.dtypes) > 1)

    def launch(self) -> Launch:
        """With numbers for all formulas."""
        kernel = kernels()[self.op_type]
        return kernel.launch(Request(self.sizes, self.attributes, self.written, kernel.tactics[self.tactic]))

    def results(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each output."""
        specs = [spec for spec in self.contract.outputs if spec.name in self.written]
        return [
            (
                tuple(self.sizes[letter] for letter in spec.shape),
                self.dtype if len(spec.dtypes) > 1 else DTYPES[spec.dtypes[0]],
            )
            for spec in specs
        ]


Run = Callable[[KernelCall, Sequence[torch.Tensor]], None]


def in_interpreter(call: KernelCall, outputs: Sequence[torch.Tensor]) -> None:
    """Runs the kernel on the CPU. Needs TRITON_INTERPRET=1 from before Triton was imported."""
    kernel, launch = kernels()[call.op_type], call.launch()
    if any(size < 1 for size in launch.grid):
        raise LaunchError(f"{call.op_type}: the grid {launch.grid} is empty.")
    names = [spec.name for spec in call.contract.inputs]
    tensors = dict(zip((*names, *call.written), (*call.inputs, *outputs), strict=True))
    kernel.function[launch.grid](**tensors, **launch.arguments, **launch.constants)


def compiled(call: KernelCall, sm: int) -> CompiledKernel:
    """The PTX for a call."""
    kernel = kernels()[call.op_type]
    return compile_kernel(
        call.op_type,
        dtype=str(call.dtype).removeprefix("torch."),
        fixed={letter: call.sizes[letter] for letter in kernel.fixed},
        attributes=call.attributes,
        sm=sm,
        outputs=call.written,
        tactic=call.tactic,
    )


def on_cuda(sm: int) -> Run:
    """A runner that loads the PTX for an architecture into the CUDA driver. Needs ``cuda-bindings`` and a GPU."""
    import ctypes

    from cuda.bindings import driver

    loaded: dict[int, Any] = {}

    def checked_call(result: tuple[Any, ...], what: str) -> Any:
        status, *values = result
        if status != driver.CUresult.CUDA_SUCCESS:
            raise LaunchError(f"{what} failed: {status}.")
        return values[0] if values else None

    def run(call: KernelCall, outputs: Sequence[torch.Tensor]) -> None:
        code, launch = compiled(call, sm), call.launch()
        torch.cuda.current_stream()  # the driver's context is that of torch
        if id(code) not in loaded:
            module = checked_call(driver.cuModuleLoadData(code.ptx.encode() + b"\0"), f"loading {code.name} sm_{sm}")
            function = checked_call(driver.cuModuleGetFunction(module, code.name.encode()), f"finding {code.name}")
            loaded[id(code)] = code, module, function
        function = loaded[id(code)][2]
        pointers = [tensor.data_ptr() for tensor in call.inputs], [tensor.data_ptr() for tensor in outputs]
        values = (*pointers[0], *launch.arguments.values(), *pointers[1])
        types = (
            *[ctypes.c_void_p] * len(pointers[0]),
            *[ctypes.c_int32] * len(launch.arguments),
            *[ctypes.c_void_p] * len(pointers[1]),
        )
        stream = torch.cuda.current_stream().cuda_stream
        launched = driver.cuLaunchKernel(
            function, *launch.grid, *code.block, code.shared_memory, stream, (values, types), 0
        )
        checked_call(launched, f"launching {code.name}")

    return run


def checked(run: Run, call: KernelCall) -> list[torch.Tensor]:
    """The outputs of a call, after two runs that agree.

    Raises:
        LaunchError: If an element of an output was not written, memory around the outputs was, or an input changed.
    """
    before = [tensor.clone() for tensor in call.inputs]
    found = []
    for pattern in PATTERNS:
        buffers = [
            torch.full((size(shape, dtype) + 2 * GUARD,), pattern, dtype=torch.uint8, device=call.inputs[0].device)
            for shape, dtype in call.results()
        ]
        outputs = [
            buffer[GUARD : GUARD + size(shape, dtype)].view(dtype).view(shape)
            for buffer, (shape, dtype) in zip(buffers, call.results(), strict=True)
        ]
        run(call, outputs)
        for name, buffer in zip(call.written, buffers, strict=True):
            if not bool(((buffer[:GUARD] == pattern) & (buffer[-GUARD:] == pattern)).all()):
                raise LaunchError(f"{call.op_type} wrote outside of {name}.")
        found.append([output.contiguous().view(-1).view(torch.uint8) for output in outputs])
    for spec, tensor, copy in zip(call.contract.inputs, call.inputs, before, strict=True):
        if not torch.equal(tensor.view(-1).view(torch.uint8), copy.view(-1).view(torch.uint8)):
            raise LaunchError(f"{call.op_type} changed its input {spec.name}.")
    for name, first, second in zip(call.written, *found, strict=True):
        if not torch.equal(first, second):
            raise LaunchError(f"{call.op_type} left {int((first != second).sum())} bytes of {name} unwritten.")
    return outputs


def size(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    count = dtype.itemsize
    for extent in shape:
        count *= extent
    return count
