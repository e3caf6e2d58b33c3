"""Running the plugins' kernels in Triton's interpreter, on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

from benchmarks.launchers import KernelCall, checked, in_interpreter
from plugins.compile import kernels
from plugins.ops import Op

__all__ = ["DTYPES", "each_dtype", "each_tactic", "far_tensor", "run_kernel", "run_last_programs"]

DTYPES: list[Any] = [np.float32, np.float16, ml_dtypes.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16", "bfloat16"])

WRAPPED = 2**31  # how far before a tensor's beginning an offset can point that was computed in 32 bits


def each_tactic(op: Op) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tactic", range(len(kernels()[op.contract.op_type].tactics)))


def run_kernel(
    op: Op,
    arrays: Sequence[NDArray[Any]],
    *,
    outputs: Sequence[str] | None = None,
    tactic: int = 0,
    **attributes: float,
) -> list[NDArray[Any]]:
    """The outputs of one node of the op; what a kernel must not do is looked for."""
    call = KernelCall(op.contract.op_type, [as_tensor(array) for array in arrays], attributes, outputs, tactic)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.interpreter_builder, "cast_impl", cast_to_nearest)
        return [as_array(tensor) for tensor in checked(within_bounds, call)]


def within_bounds(call: KernelCall, outputs: Sequence[torch.Tensor]) -> None:
    """As ``in_interpreter``; every address that is read must be one of a tensor, whatever becomes of what was read."""
    builder = interpreter.interpreter_builder
    load: Callable[..., Any] = builder.create_masked_load
    tensors = (*call.inputs, *outputs)
    ranges = [(tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.itemsize) for tensor in tensors]

    def load_within_bounds(pointers: Any, mask: Any, *others: Any) -> Any:
        read = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        if read.size:
            lowest, highest = int(read.min()), int(read.max())
            assert any(start <= lowest and highest < end for start, end in ranges), "read outside of all tensors"
        return load(pointers, mask, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", load_within_bounds)
        in_interpreter(call, outputs)


def cast_to_nearest(source: Any, to: Any) -> Any:
    """A cast as GPUs do it: Triton's interpreter cuts off what bfloat16 has no room for."""
    if (source.dtype.scalar, to.scalar) == (tl.float32, tl.bfloat16):
        return interpreter.TensorHandle(source.data.astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)
    return type(interpreter.interpreter_builder).cast_impl(interpreter.interpreter_builder, source, to)


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """NumPy's bfloat16 is none that PyTorch knows."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: NDArray[Any] = tensor.numpy()
    return array


def far_tensor(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in a sparse file, of which only what is touched takes room, so it may be larger than the memory.

    Memory before it belongs to it too: a wrong offset is to give a wrong result, and not to end the process.
    """
    path = folder / "sparse"
    whole = torch.from_file(str(path), shared=True, size=WRAPPED + math.prod(shape), dtype=dtype)
    path.unlink()  # gone with the tensor
    return whole[WRAPPED:].view(*shape)


def run_last_programs(
    monkeypatch: pytest.MonkeyPatch, call: KernelCall, outputs: Sequence[torch.Tensor], count: int
) -> None:
    """As ``in_interpreter``, but only the last programs of the grid's first axis."""
    launch = call.launch()
    program_id: Callable[[int], Any] = interpreter.interpreter_builder.create_get_program_id

    def shifted(axis: int) -> Any:
        handle = program_id(axis)
        if axis == 0:
            handle.data = handle.data + np.int32(launch.grid[0] - count)
        return handle

    monkeypatch.setattr(interpreter.interpreter_builder, "create_get_program_id", shifted)
    # Otherwise the interpreter copies the memory of every tensor onto itself.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    names = [spec.name for spec in call.contract.inputs]
    tensors = dict(zip((*names, *call.written), (*call.inputs, *outputs), strict=True))
    function = kernels()[call.op_type].function
    grid = (count, *launch.grid[1:])
    function[grid](**tensors, **launch.arguments, **launch.constants)
