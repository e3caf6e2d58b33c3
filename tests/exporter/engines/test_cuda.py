"""Both ways to a GPU do the same, and say what is in the way."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from exporter.engines import cuda as module
from exporter.engines.cuda import BindingsCuda, Cuda, Gpu, TorchCuda, find_cuda, find_gpu, why_no_cuda
from exporter.errors import RotaryPressError, UnavailableError
from tests.exporter.engines.fake_cuda import ARGUMENTS, RESULTS, CudaRuntimeError, FakeGpu, FakeRuntime, FakeTorch

MAKERS: dict[str, Callable[[FakeGpu], Cuda]] = {
    "cuda-bindings": lambda gpu: BindingsCuda(FakeRuntime(gpu)),
    "torch": lambda gpu: TorchCuda(FakeTorch(gpu)),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
Install = Callable[..., None]


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(runtime, torch)``: these are all there is; an error stands for a package that cannot be imported."""

    def install(runtime: ModuleType | Exception | None = None, torch: ModuleType | Exception | None = None) -> None:
        there = {BindingsCuda.module_name: runtime, TorchCuda.module_name: torch}

        def stand_in(name: str) -> ModuleType:
            found = there[name]
            if found is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(module, "import_module", stand_in)

    return install


@each
def test_bytes_go_there_and_back_in_the_order_of_the_stream(make: Callable[[FakeGpu], Cuda], gpu: FakeGpu) -> None:
    cuda = make(gpu)
    with cuda.current():
        device, source, target = cuda.allocate(6), cuda.pin(6), cuda.pin(8)
        source.array[:] = range(6)
        before = target.array.copy()
        cuda.upload(source, device, 6)
        cuda.download(device, target, 5)
        assert np.array_equal(target.array, before), "nothing happens before it is waited for"
        cuda.synchronize()
        assert target.array.tolist() == [0, 1, 2, 3, 4, *before[5:]]
        assert gpu.done[-2:] == ["upload", "download"]
        for memory in (device, source, target):
            cuda.free(memory)
        assert len(source.array) == 0, "freed memory cannot be touched"
    cuda.close()
    cuda.close()
    assert gpu.is_clean


@each
def test_nothing_is_copied_of_an_empty_tensor_but_it_has_memory(make: Callable[[FakeGpu], Cuda], gpu: FakeGpu) -> None:
    cuda = make(gpu)
    first, second, host = cuda.allocate(0), cuda.allocate(0), cuda.pin(0)
    assert 0 != first.address != second.address != 0
    assert first.size == len(host.array) == 1
    cuda.upload(host, first, 0)
    cuda.download(first, host, 0)
    assert gpu.streams == {cuda.stream: []}


@each
def test_a_graph_does_again_what_it_was_shown(make: Callable[[FakeGpu], Cuda], gpu: FakeGpu) -> None:
    cuda = make(gpu)
    device, host = cuda.allocate(3), cuda.pin(3)
    graph = cuda.capture(lambda: cuda.upload(host, device, 3))
    cuda.synchronize()
    assert "upload" not in gpu.done, "what is captured does not run"
    for values in ([1, 2, 3], [4, 5, 6]):
        host.array[:] = values
        cuda.launch(graph)
        cuda.synchronize()
        assert gpu.bytes_at(device.address, 3).tolist() == values
    cuda.drop(graph)
    cuda.free(device)
    cuda.free(host)
    cuda.close()
    assert gpu.is_clean


@each
def test_a_capture_that_fails_leaves_the_stream_as_it_was(make: Callable[[FakeGpu], Cuda], gpu: FakeGpu) -> None:
    cuda = make(gpu)
    device, host = cuda.allocate(3), cuda.pin(3)

    def fails() -> None:
        cuda.upload(host, device, 3)
        raise RotaryPressError("the engine failed")

    with pytest.raises(RotaryPressError, match="the engine failed"):
        cuda.capture(fails)
    assert not gpu.capturing
    assert gpu.streams == {cuda.stream: []}
    cuda.upload(host, device, 3)
    cuda.synchronize()
    assert gpu.done[-1] == "upload"
    assert not any(graph.is_alive for graph in gpu.graphs)


@each
def test_too_little_memory_says_how_much(make: Callable[[FakeGpu], Cuda]) -> None:
    gpu = FakeGpu(limit=8 << 20)
    cuda = make(gpu)
    kept = cuda.allocate(3 << 20)
    with pytest.raises(UnavailableError, match=r"6\.0 MiB were asked for, 5\.0 MiB of 8\.0 MiB are free\. Give it"):
        cuda.allocate(6 << 20)
    cuda.free(kept)
    cuda.allocate(6 << 20)


@each
def test_the_gpu_is_that_of_the_thread_for_a_while(make: Callable[[FakeGpu], Cuda], gpu: FakeGpu) -> None:
    gpu.device = 2
    cuda = make(gpu)
    gpu.device = 0
    with suppress(ZeroDivisionError), cuda.current():
        assert gpu.device == 2
        raise ZeroDivisionError
    assert gpu.device == 0


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("cudaGetDevice", lambda cuda: cuda.current().__enter__()),
        ("cudaGetDeviceProperties", lambda cuda: cuda.describe()),
        ("cudaMalloc", lambda cuda: cuda.allocate(1)),
        ("cudaMallocHost", lambda cuda: cuda.pin(1)),
        ("cudaFree", lambda cuda: cuda.free(cuda.allocate(1))),
        ("cudaFreeHost", lambda cuda: cuda.free(cuda.pin(1))),
        ("cudaMemcpyAsync", lambda cuda: cuda.upload(cuda.pin(1), cuda.allocate(1), 1)),
        ("cudaMemcpyAsync", lambda cuda: cuda.download(cuda.allocate(1), cuda.pin(1), 1)),
        ("cudaStreamSynchronize", lambda cuda: cuda.synchronize()),
        ("cudaStreamBeginCapture", lambda cuda: cuda.capture(lambda: None)),
        ("cudaStreamEndCapture", lambda cuda: cuda.capture(lambda: None)),
        ("cudaGraphInstantiate", lambda cuda: cuda.capture(lambda: None)),
        ("cudaGraphDestroy", lambda cuda: cuda.capture(lambda: None)),
        ("cudaGraphLaunch", lambda cuda: cuda.launch(cuda.capture(lambda: None))),
        ("cudaGraphExecDestroy", lambda cuda: cuda.drop(cuda.capture(lambda: None))),
        ("cudaStreamDestroy", lambda cuda: cuda.close()),
    ],
)
def test_every_status_is_looked_at(name: str, use: Callable[[Cuda], object]) -> None:
    runtime = FakeRuntime()
    cuda = BindingsCuda(runtime)
    runtime.fails[name] = CudaRuntimeError.cudaErrorIllegalAddress
    with pytest.raises(RotaryPressError, match=rf"^{name} failed: cudaErrorIllegalAddress \(as described\)\.$"):
        use(cuda)


def test_a_capture_that_was_lost_has_no_graph_to_destroy() -> None:
    runtime = FakeRuntime()
    cuda = BindingsCuda(runtime)
    runtime.fails["cudaStreamEndCapture"] = CudaRuntimeError.cudaErrorStreamCaptureInvalidated

    def fails() -> None:
        raise RotaryPressError("the engine failed")

    with pytest.raises(RotaryPressError, match="the engine failed"):
        cuda.capture(fails)
    assert "cudaGraphDestroy" not in runtime.asked


def test_pinned_memory_that_is_refused() -> None:
    runtime, torch = FakeRuntime(), FakeTorch()
    runtime.fails["cudaMallocHost"] = CudaRuntimeError.cudaErrorMemoryAllocation
    torch.fails["pin"] = RuntimeError("CUDA error: out of memory")
    for cuda in (BindingsCuda(runtime), TorchCuda(torch)):
        with pytest.raises(UnavailableError, match=r"gives no 2\.0 MiB of pinned memory"):
            cuda.pin(2 << 20)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("properties", lambda cuda: cuda.describe()),
        ("empty", lambda cuda: cuda.allocate(1)),
        ("begin", lambda cuda: cuda.capture(lambda: None)),
        ("end", lambda cuda: cuda.capture(lambda: None)),
        ("synchronize", lambda cuda: cuda.synchronize()),
    ],
)
def test_what_torch_raises_is_an_error_of_ours(name: str, use: Callable[[Cuda], object]) -> None:
    torch = FakeTorch()
    cuda = TorchCuda(torch)
    torch.fails[name] = RuntimeError("CUDA error: an illegal memory access")
    with pytest.raises(RotaryPressError, match=r"^CUDA failed in .*: CUDA error: an illegal memory access$"):
        use(cuda)
    assert torch.current is None, "the thread has its own stream again"


def test_cuda_bindings_are_preferred(install: Install) -> None:
    install(FakeRuntime(), FakeTorch())
    assert isinstance(find_cuda(), BindingsCuda)
    install(None, FakeTorch())
    assert isinstance(find_cuda(), TorchCuda)
    assert why_no_cuda() is None


def test_everyone_has_a_stream_of_their_own(install: Install) -> None:
    install(FakeRuntime())
    assert find_cuda().stream != find_cuda().stream


@pytest.mark.parametrize("through", ["cuda-bindings", "torch"])
def test_the_gpu_is_told_by_name_and_architecture(through: str, install: Install) -> None:
    runtime, torch = FakeRuntime(), FakeTorch()
    install(*((runtime,) if through == "cuda-bindings" else (None, torch)))
    assert find_gpu() == Gpu("NVIDIA L4", 89)
    assert runtime.gpu.is_clean
    assert torch.gpu.is_clean
    install()
    with pytest.raises(UnavailableError, match="No GPU can be used here: nothing to reach a GPU with"):
        find_gpu()


def runtime(status: CudaRuntimeError | None = None, *, driver: int = 13000, count: int = 1) -> FakeRuntime:
    made = FakeRuntime()
    made.driver, made.count = driver, count
    if status is not None:
        made.fails["cudaGetDeviceCount"] = status
    return made


def torch(error: Exception | None = None, *, built_for: str | None = "13.0", count: int = 1) -> FakeTorch:
    made = FakeTorch()
    made.version.cuda, made.count = built_for, count
    if error is not None:
        made.fails["init"] = error
    return made


ERRORS = CudaRuntimeError
OBSTACLES: dict[str, tuple[Any, Any, str]] = {
    "no package": (None, None, r"nothing to reach a GPU with is installed: pip install cuda-bindings"),
    "no driver": (runtime(ERRORS.cudaErrorInsufficientDriver, driver=0), None, "no NVIDIA driver was found: install"),
    "a stub": (runtime(ERRORS.cudaErrorStubLibrary), None, "no NVIDIA driver was found: install"),
    "no driver, says torch": (None, torch(RuntimeError("Found no NVIDIA driver on your system.")), "no NVIDIA driver"),
    "an old driver": (
        runtime(ERRORS.cudaErrorInsufficientDriver, driver=12080),
        None,
        r"too old: it is made for CUDA 12\.8, .* pip install 'cuda-bindings<13'$",
    ),
    "an old driver, says torch": (
        None,
        torch(RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate")),
        r"torch cannot start CUDA: The NVIDIA driver on your system is too old \(found version 11040\)\.$",
    ),
    "no GPU": (runtime(ERRORS.cudaErrorNoDevice), None, "finds no GPU: nvidia-smi"),
    "a count of 0": (runtime(count=0), torch(), "finds no GPU: nvidia-smi"),
    "no GPU, says torch": (None, torch(RuntimeError("No CUDA GPUs are available")), "finds no GPU: nvidia-smi"),
    "a count of 0, says torch": (None, torch(count=0), "finds no GPU: nvidia-smi"),
    "torch for the CPU": (None, torch(built_for=None), "built without CUDA: pip install cuda-bindings"),
    "something else": (runtime(ERRORS.cudaErrorIllegalAddress), None, r"cannot be started: cudaErrorIllegalAddress \("),
    "a broken package": (ImportError("libcudart"), None, r"cannot be imported \(libcudart\): install it again"),
    "a broken torch": (None, OSError("libc10"), r"torch cannot be imported \(libc10\)"),
    "both": (runtime(ERRORS.cudaErrorInsufficientDriver, driver=12080), torch(built_for=None), "driver is too old"),
}


@pytest.mark.parametrize(("bindings", "other", "expected"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_is_in_the_way(bindings: Any, other: Any, expected: str, install: Install) -> None:
    install(bindings, other)
    reason = why_no_cuda()
    assert reason is not None
    assert re.search(expected, reason)
    assert not reason.endswith("..")
    with pytest.raises(UnavailableError, match=rf"^No GPU can be used here: .*{expected.rstrip('$')}"):
        find_cuda()


def test_torch_is_used_where_cuda_bindings_are_too_new(install: Install) -> None:
    install(runtime(CudaRuntimeError.cudaErrorInsufficientDriver, driver=12080), torch(built_for="12.6"))
    assert isinstance(find_cuda(), TorchCuda)


@pytest.mark.parametrize("name", ["cudaGetDevice", "cudaStreamCreateWithFlags"])
def test_a_gpu_that_gives_no_stream_is_not_usable(name: str, install: Install) -> None:
    made = runtime()
    made.fails[name] = CudaRuntimeError.cudaErrorIllegalAddress
    install(made)
    with pytest.raises(UnavailableError, match=f"No GPU can be used here: {name} failed"):
        find_cuda()


def test_what_is_installed_here_says_something() -> None:
    """Whatever this machine has."""
    reason = why_no_cuda()
    if reason is None:
        find_cuda().close()
    else:
        with pytest.raises(UnavailableError, match=re.escape(reason)):
            find_cuda()


def test_the_fakes_are_as_the_real_cuda_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    faked = [name for name, _ in inspect.getmembers(FakeRuntime, inspect.isfunction) if name.startswith("cuda")]
    assert set(RESULTS) | set(ARGUMENTS) <= set(faked)
    for name in faked:
        document = inspect.getdoc(getattr(real, name))
        assert document is not None
        arguments = document.partition("(")[2].partition(")")[0]
        assert len([one for one in arguments.split(",") if one.strip()]) == ARGUMENTS.get(name, 0), document
        returned = document.partition("Returns\n-------\n")[2].partition("See Also")[0]
        values = [line for line in returned.splitlines() if line and not line.startswith((" ", "cudaError_t"))]
        assert len(values) == RESULTS.get(name, 0), document
    for fake in (CudaRuntimeError, FakeRuntime.cudaMemcpyKind, FakeRuntime.cudaStreamCaptureMode):
        enumeration = getattr(real, {"CudaRuntimeError": "cudaError_t"}.get(fake.__name__, f"cuda{fake.__name__}"))
        for member in fake:
            assert int(getattr(enumeration, member.name)) == member.value
    assert real.cudaStreamNonBlocking == FakeRuntime.cudaStreamNonBlocking


def test_the_fakes_are_as_the_real_torch() -> None:
    import torch

    for name in vars(FakeTorch().cuda):
        assert hasattr(torch.cuda, name)
    assert {"stream", "capture_error_mode"} <= set(inspect.signature(torch.cuda.graph.__init__).parameters)
    assert issubclass(torch.cuda.OutOfMemoryError, RuntimeError)
    for name in ("replay", "reset"):
        assert hasattr(torch.cuda.CUDAGraph, name)
    if torch.version.cuda is None:
        assert (
            TorchCuda.obstacle(torch) == "the torch that is installed was built without CUDA: pip install cuda-bindings"
        )


def test_nothing_heavy_is_imported_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cuda-bindings reach a GPU, torch is not even looked for."""
    asked = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_more: object) -> ModuleSpec | None:
            asked.append(name)
            return None

    fake = FakeRuntime()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert isinstance(find_cuda(), BindingsCuda)
    assert "torch" not in asked
