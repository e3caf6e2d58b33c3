"""What looks after kernels finds those that do what they must not."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import launchers
from benchmarks.launchers import KernelCall, LaunchError, checked, in_interpreter, on_cuda
from plugins.compile import CompiledKernel

Outputs = Sequence[torch.Tensor]


def call(batch: int = 2) -> KernelCall:
    x, residual = torch.randn(batch, 3, 8), torch.randn(batch, 3, 8)
    return KernelCall("ResidualLayerNorm", (x, residual, *(torch.randn(8) for _ in range(3))), {"epsilon": 1e-5})


def does_it_right(call: KernelCall, outputs: Outputs) -> None:
    x, residual, bias, gamma, beta = call.inputs
    total = x + bias + residual
    outputs[0].copy_(torch.nn.functional.layer_norm(total, (8,), gamma, beta, call.attributes["epsilon"]))
    outputs[1].copy_(total)


def test_a_kernel_that_does_it_right_is_left_alone() -> None:
    problem = call()
    y, s = checked(does_it_right, problem)
    assert y.shape == s.shape == (2, 3, 8)
    x, residual, bias, *_ = problem.inputs
    assert torch.equal(s, x + bias + residual)


def test_our_kernel_is_left_alone() -> None:
    problem = call()
    for found, expected in zip(checked(in_interpreter, problem), checked(does_it_right, problem), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("index", [0, 17, 47])
def test_an_element_that_is_not_written_is_found(index: int) -> None:
    def leaves_one(call: KernelCall, outputs: Outputs) -> None:
        kept = outputs[1].view(-1)[index].clone()
        does_it_right(call, outputs)
        outputs[1].view(-1)[index] = kept

    with pytest.raises(LaunchError, match=r"ResidualLayerNorm left 4 bytes of s unwritten"):
        checked(leaves_one, call())


def test_a_kernel_that_adds_to_what_was_there_is_found() -> None:
    def accumulates(call: KernelCall, outputs: Outputs) -> None:
        before = outputs[0].clone()
        does_it_right(call, outputs)
        outputs[0].add_(before)

    with pytest.raises(LaunchError, match=r"bytes of y unwritten"):
        checked(accumulates, call())


@pytest.mark.parametrize("value", [0.0, float.fromhex("-0x1.4b4b4ap-52")], ids=["zero", "the pattern itself"])
@pytest.mark.parametrize("offset", [-64, -1, 48, 48 + 63])
@pytest.mark.parametrize("output", [0, 1])
def test_a_write_outside_of_an_output_is_found(output: int, offset: int, value: float) -> None:
    """One float32 of the 64 before or behind it, even if it is what the memory held in one of the runs."""

    def writes_outside(call: KernelCall, outputs: Outputs) -> None:
        does_it_right(call, outputs)
        target = outputs[output]
        target.as_strided((1,), (1,), target.storage_offset() + offset).fill_(value)

    with pytest.raises(LaunchError, match=rf"ResidualLayerNorm wrote outside of {'ys'[output]}\."):
        checked(writes_outside, call())


def test_the_pattern_itself_is_what_it_says() -> None:
    pattern = torch.full((4,), 0xA5, dtype=torch.uint8).view(torch.float32)
    assert pattern.item() == float.fromhex("-0x1.4b4b4ap-52")


@pytest.mark.parametrize("index", range(5))
def test_a_changed_input_is_found(index: int) -> None:
    def changes_an_input(call: KernelCall, outputs: Outputs) -> None:
        for output in outputs:
            output.zero_()
        call.inputs[index].view(-1)[-1] = 7.0

    name = ("x", "residual", "bias", "gamma", "beta")[index]
    with pytest.raises(LaunchError, match=rf"ResidualLayerNorm changed its input {name}\."):
        checked(changes_an_input, call())


def test_nan_that_comes_in_is_no_change() -> None:
    problem = call()
    problem.inputs[0][0, 0, 0] = torch.nan
    _, s = checked(in_interpreter, problem)
    assert torch.isnan(s).sum() == 1


def test_a_grid_without_programs_is_refused() -> None:
    """CUDA would refuse it."""
    with pytest.raises(LaunchError, match=r"the grid \(0, 1, 1\) is empty"):
        checked(in_interpreter, call(batch=0))


def test_outputs_have_the_shapes_and_dtypes_of_the_contract() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.bfloat16)
    inputs = (x, x, *(torch.randn(8) for _ in range(3)), torch.tensor(0.1))
    problem = KernelCall("QuantizedResidualLayerNorm", inputs, {"epsilon": 1e-5}, ("quantized", "s"))
    assert problem.dtype == torch.bfloat16
    assert problem.sizes == {"B": 2, "S": 3, "E": 8}
    assert problem.results() == [((2, 3, 8), torch.int8), ((2, 3, 8), torch.bfloat16)]
    angles = torch.randn(1, 3, 2)
    qkv = torch.randn(2, 3, 24, dtype=torch.float16)
    attributes = {"num_heads": 2, "scale": 0.5, "rotary_value": 0}
    rotary = KernelCall("QKVRotary", (qkv, torch.randn(24), angles, angles), attributes)
    assert rotary.written == ("q", "k", "v")
    assert rotary.sizes == {"B": 2, "S": 3, "H": 2, "D": 4, "P": 1}
    assert rotary.results() == [((2, 2, 3, 4), torch.float16)] * 3


class Driver(ModuleType):
    """Stands in for CUDA's: remembers what it is asked."""

    class CUresult:
        CUDA_SUCCESS = 0
        CUDA_ERROR_INVALID_PTX = 218

    def __init__(self, status: int = 0) -> None:
        super().__init__("cuda.bindings.driver")
        self.status = status
        self.asked: list[tuple[Any, ...]] = []

    def cuModuleLoadData(self, image: bytes) -> tuple[int, str]:  # noqa: N802  # CUDA's names
        self.asked.append(("load", image))
        return self.status, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:  # noqa: N802
        self.asked.append(("find", module, name))
        return 0, "function"

    def cuLaunchKernel(self, *arguments: Any) -> tuple[int]:  # noqa: N802
        self.asked.append(("launch", *arguments))
        return (0,)


CODE = CompiledKernel(
    op_type="InterleavedRotary",
    outputs=("y",),
    name="turn",
    ptx="code",
    parameters=(),
    grid=("1", "1", "1"),
    arguments={},
    block=(128, 1, 1),
    shared_memory=2048,
    registers=32,
    spilled=0,
    sm=75,
    ptx_version=80,
    cuda="12.0",
    driver="525.60.13",
)


@pytest.fixture
def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], None]:
    def pretend(driver: Driver) -> None:
        bindings = ModuleType("cuda.bindings")
        bindings.driver = driver  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
        monkeypatch.setattr(launchers, "compiled", lambda _call, _sm: CODE)

    return pretend


def test_a_gpu_is_given_what_tensorrt_gives_it(pretend_cuda: Callable[[Driver], None]) -> None:
    driver = Driver()
    pretend_cuda(driver)
    call = KernelCall("InterleavedRotary", [torch.randn(2, 3, 5, 6), torch.randn(2, 5, 3), torch.randn(2, 5, 3)], {})
    y = torch.empty(2, 3, 5, 6)
    run = on_cuda(75)
    run(call, [y])
    run(call, [y])
    loaded, found, *launched = driver.asked
    assert loaded == ("load", b"code\0")
    assert found == ("find", "module", b"turn")
    pointers = [tensor.data_ptr() for tensor in (*call.inputs, y)]
    values = (*pointers[:3], 10, 5, 5, pointers[3])  # rows, length, angle_stride
    types = (*[ctypes.c_void_p] * 3, *[ctypes.c_int32] * 3, ctypes.c_void_p)
    expected = ("launch", "function", *call.launch().grid, 128, 1, 1, 2048, 7, (values, types), 0)
    assert launched == [expected, expected], "loaded once, launched twice"


def test_what_the_driver_refuses_is_an_error(pretend_cuda: Callable[[Driver], None]) -> None:
    pretend_cuda(Driver(status=Driver.CUresult.CUDA_ERROR_INVALID_PTX))
    call = KernelCall("InterleavedRotary", [torch.randn(1, 1, 1, 2), torch.randn(1, 1, 1), torch.randn(1, 1, 1)], {})
    with pytest.raises(LaunchError, match="loading turn sm_75 failed: 218"):
        on_cuda(75)(call, [torch.empty(1, 1, 1, 2)])
