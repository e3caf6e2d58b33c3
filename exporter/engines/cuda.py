"""A GPU's memory, copies, stream and graphs: through ``cuda-bindings``, or through torch where only that is there.

Nothing of either is imported before a GPU is looked for.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import RotaryPressError, UnavailableError

__all__ = [
    "BindingsCuda",
    "Cuda",
    "DeviceMemory",
    "Gpu",
    "PinnedMemory",
    "TorchCuda",
    "find_cuda",
    "find_gpu",
    "why_no_cuda",
]

NO_PACKAGE = "nothing to reach a GPU with is installed: pip install cuda-bindings"
NO_DRIVER = (
    "no NVIDIA driver was found: install one from nvidia.com/drivers; a container must be started with access to the "
    "GPUs (docker run --gpus all)"
)
NO_GPU = (
    "the NVIDIA driver finds no GPU: nvidia-smi must list one, and CUDA_VISIBLE_DEVICES, where it is set, must not "
    "leave it out"
)
NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Gpu:
    """What a GPU is.

    Attributes:
        name: As its driver calls it.
        sm: Its architecture, 89 for compute capability 8.9.
    """

    name: str
    sm: int


@dataclass(eq=False)
class DeviceMemory:
    """Memory of the GPU.

    Attributes:
        address: Aligned to 256 bytes at least.
        size: In bytes.
        owner: What the implementation frees.
    """

    address: int
    size: int
    owner: Any


@dataclass(eq=False)
class PinnedMemory:
    """Memory of the host that the GPU copies from and to by itself.

    Attributes:
        array: Its bytes. Must not be used once it is freed.
        owner: As above.
    """

    array: NDArray[np.uint8]
    owner: Any


class Cuda(ABC):
    """A GPU, and a stream of one's own on it: what is put there runs in order, and nobody else's work between.

    One owner uses it, from one thread at a time, and inside of :meth:`current` only.

    Attributes:
        module_name: What it goes through.
        stream: The handle of the stream.
    """

    module_name: str
    stream: int

    @abstractmethod
    def __init__(self, module: Any) -> None: ...

    @classmethod
    @abstractmethod
    def obstacle(cls, module: Any) -> str | None:
        """``None`` if a GPU can be reached through the module, else the reason."""

    @abstractmethod
    def describe(self) -> Gpu:
        """Which GPU it is."""

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Makes the GPU that of this thread, for a while."""

    @abstractmethod
    def allocate(self, size: int) -> DeviceMemory:
        """Memory of the GPU, at least one byte.

        Raises:
            UnavailableError: If it has not that much.
        """

    @abstractmethod
    def pin(self, size: int) -> PinnedMemory:
        """Pinned memory of the host, at least one byte.

        Raises:
            UnavailableError: If it has not that much.
        """

    @abstractmethod
    def free(self, memory: DeviceMemory | PinnedMemory) -> None:
        """Gives memory back. What uses it must have been waited for."""

    @abstractmethod
    def upload(self, source: PinnedMemory, target: DeviceMemory, size: int) -> None:
        """Puts a copy of the first bytes onto the stream. Until it is waited for, the source must stay as it is."""

    @abstractmethod
    def download(self, source: DeviceMemory, target: PinnedMemory, size: int) -> None:
        """Puts a copy of the first bytes onto the stream."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for all that is on the stream.

        Raises:
            RotaryPressError: If some of it failed.
        """

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Any:
        """What ``work`` puts onto the stream, as a graph. None of it runs.

        Raises:
            RotaryPressError: If there is something in it that no graph can hold. The stream is as before.
        """

    @abstractmethod
    def launch(self, graph: Any) -> None:
        """Puts a graph onto the stream. The memory that was used when it was captured must still be there."""

    @abstractmethod
    def drop(self, graph: Any) -> None:
        """Forgets a graph that has been waited for."""

    @abstractmethod
    def close(self) -> None:
        """Gives the stream back. May be called twice."""


class BindingsCuda(Cuda):
    """Through ``cuda.bindings.runtime``, which is small enough for any device."""

    module_name = "cuda.bindings.runtime"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        """See :class:`Cuda`. No context is made for that."""
        status, count = module.cudaGetDeviceCount()
        errors = module.cudaError_t
        if status == errors.cudaSuccess:
            return None if count else NO_GPU
        if status == errors.cudaErrorNoDevice:
            return NO_GPU
        _, version = module.cudaDriverGetVersion()
        if status == errors.cudaErrorStubLibrary or (status == errors.cudaErrorInsufficientDriver and not version):
            return NO_DRIVER
        if status == errors.cudaErrorInsufficientDriver:
            return (
                f"the NVIDIA driver is too old: it is made for CUDA {version // 1000}.{version % 1000 // 10}, which "
                f"this release of cuda-bindings is too new for. Update the driver, or pip install "
                f"'cuda-bindings<{version // 1000 + 1}'"
            )
        return f"CUDA cannot be started: {_described(module, status)}"

    def __init__(self, module: Any) -> None:
        self._runtime = module
        self._device = self._call("cudaGetDevice")
        # Streams that wait for the default stream would wait for other libraries in this process.
        self._stream = self._call("cudaStreamCreateWithFlags", module.cudaStreamNonBlocking)
        self._is_closed = False
        self.stream = int(self._stream)

    def describe(self) -> Gpu:  # noqa: D102  # see Cuda, here and below
        told = self._call("cudaGetDeviceProperties", self._device)
        return Gpu(told.name.decode(), 10 * told.major + told.minor)

    @contextmanager
    def current(self) -> Iterator[None]:  # noqa: D102
        before = self._call("cudaGetDevice")
        if before != self._device:
            self._call("cudaSetDevice", self._device)
        try:
            yield
        finally:
            if before != self._device:
                self._call("cudaSetDevice", before)

    def allocate(self, size: int) -> DeviceMemory:  # noqa: D102
        size = max(size, 1)
        status, address = self._runtime.cudaMalloc(size)
        if status == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise _too_little(size, *self._call("cudaMemGetInfo"))
        self._check("cudaMalloc", status)
        return DeviceMemory(int(address), size, int(address))

    def pin(self, size: int) -> PinnedMemory:  # noqa: D102
        size = max(size, 1)
        status, address = self._runtime.cudaMallocHost(size)
        if status == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise _cannot_pin(size)
        self._check("cudaMallocHost", status)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))
        return PinnedMemory(array, int(address))

    def free(self, memory: DeviceMemory | PinnedMemory) -> None:  # noqa: D102
        if isinstance(memory, PinnedMemory):
            memory.array = NOTHING
        self._call("cudaFree" if isinstance(memory, DeviceMemory) else "cudaFreeHost", memory.owner)

    def upload(self, source: PinnedMemory, target: DeviceMemory, size: int) -> None:  # noqa: D102
        self._copy(target.address, source.owner, size, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, source: DeviceMemory, target: PinnedMemory, size: int) -> None:  # noqa: D102
        self._copy(target.owner, source.address, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def synchronize(self) -> None:  # noqa: D102
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Any:  # noqa: D102
        # What other threads do meanwhile is theirs.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            status, unfinished = self._runtime.cudaStreamEndCapture(self._stream)
            if status == self._runtime.cudaError_t.cudaSuccess:  # else it was lost, and there is nothing to destroy
                self._runtime.cudaGraphDestroy(unfinished)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:  # noqa: D102
        self._call("cudaGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:  # noqa: D102
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:  # noqa: D102
        if not self._is_closed:
            self._is_closed = True
            self._call("cudaStreamDestroy", self._stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        if size:
            self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, name)(*arguments)
        self._check(name, status)
        return values[0] if len(values) == 1 else values

    def _check(self, name: str, status: Any) -> None:
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise RotaryPressError(f"{name} failed: {_described(self._runtime, status)}.")


class TorchCuda(Cuda):
    """Through torch, whose allocator the memory comes from."""

    module_name = "torch"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        """See :class:`Cuda`."""
        if module.version.cuda is None:
            return "the torch that is installed was built without CUDA: pip install cuda-bindings"
        try:
            module.cuda.init()
        except (RuntimeError, AssertionError) as error:
            said = str(error).strip() or type(error).__name__
            if "no NVIDIA driver" in said:
                return NO_DRIVER
            if "No CUDA GPUs" in said:
                return NO_GPU
            return f"torch cannot start CUDA: {said.splitlines()[0]}"
        return None if module.cuda.device_count() else NO_GPU

    def __init__(self, module: Any) -> None:
        self._torch = module
        with self._checked("a stream"):
            self._device = module.cuda.current_device()
            self._stream: Any = module.cuda.Stream(device=self._device)
            self.stream = int(self._stream.cuda_stream)

    def describe(self) -> Gpu:  # noqa: D102
        with self._checked("asking for the GPU's name"):
            told = self._torch.cuda.get_device_properties(self._device)
        return Gpu(told.name, 10 * told.major + told.minor)

    @contextmanager
    def current(self) -> Iterator[None]:  # noqa: D102
        with self._torch.cuda.device(self._device):
            yield

    def allocate(self, size: int) -> DeviceMemory:  # noqa: D102
        size = max(size, 1)
        with self._checked("allocating"):
            try:
                tensor = self._torch.empty(size, dtype=self._torch.uint8, device=f"cuda:{self._device}")
            except self._torch.cuda.OutOfMemoryError as error:
                raise _too_little(size, *self._torch.cuda.mem_get_info(self._device)) from error
        return DeviceMemory(int(tensor.data_ptr()), size, tensor)

    def pin(self, size: int) -> PinnedMemory:  # noqa: D102
        size = max(size, 1)
        try:
            tensor = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise _cannot_pin(size) from error
        return PinnedMemory(tensor.numpy(), tensor)

    def free(self, memory: DeviceMemory | PinnedMemory) -> None:  # noqa: D102
        memory.owner = None
        if isinstance(memory, PinnedMemory):
            memory.array = NOTHING  # the other would keep it

    def upload(self, source: PinnedMemory, target: DeviceMemory, size: int) -> None:  # noqa: D102
        self._copy(target.owner, source.owner, size)

    def download(self, source: DeviceMemory, target: PinnedMemory, size: int) -> None:  # noqa: D102
        self._copy(target.owner, source.owner, size)

    def synchronize(self) -> None:  # noqa: D102
        with self._checked("the work on the GPU"):
            self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Any:  # noqa: D102
        cuda = self._torch.cuda
        graph = cuda.CUDAGraph()
        # The outer one puts the thread's stream back even where ending a capture fails.
        with self._checked("capturing a graph"), cuda.stream(self._stream):  # noqa: SIM117  # the order matters
            with cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        return graph

    def launch(self, graph: Any) -> None:  # noqa: D102
        with self._checked("launching a graph"), self._torch.cuda.stream(self._stream):
            graph.replay()

    def drop(self, graph: Any) -> None:  # noqa: D102
        with self._checked("dropping a graph"):
            graph.reset()

    def close(self) -> None:  # noqa: D102
        self._stream = None

    def _copy(self, target: Any, source: Any, size: int) -> None:
        if size:
            with self._checked("copying"), self._torch.cuda.stream(self._stream):
                target[:size].copy_(source[:size], non_blocking=True)

    @contextmanager
    def _checked(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch has no narrower one in all its releases
            raise RotaryPressError(f"CUDA failed in {what}: {str(error).strip()}") from error


IMPLEMENTATIONS: tuple[type[Cuda], ...] = (BindingsCuda, TorchCuda)


def find_cuda() -> Cuda:
    """The GPU that is current, with a new stream. Its owner closes it.

    Raises:
        UnavailableError: If there is none, or nothing to reach it with.
    """
    found = _found()
    if isinstance(found, str):
        raise UnavailableError(f"No GPU can be used here: {found}.")
    kind, module = found
    try:
        return kind(module)
    except RotaryPressError as error:
        raise UnavailableError(f"No GPU can be used here: {error}") from error


def find_gpu() -> Gpu:
    """Which GPU is current.

    Raises:
        UnavailableError: If there is none, or nothing to reach it with.
    """
    cuda = find_cuda()
    try:
        return cuda.describe()
    finally:
        cuda.close()


def why_no_cuda() -> str | None:
    """``None`` where a GPU can be used, else the reason and what to do."""
    found = _found()
    return found if isinstance(found, str) else None


def _found() -> tuple[type[Cuda], Any] | str:
    reasons = []
    for kind in IMPLEMENTATIONS:
        try:
            module = import_module(kind.module_name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            reasons.append(f"{kind.module_name} cannot be imported ({error}): install it again")
            continue
        reason = kind.obstacle(module)
        if reason is None:
            return kind, module
        if reason in (NO_DRIVER, NO_GPU):
            return reason  # nothing else would find more
        reasons.append(reason)
    return reasons[0] if reasons else NO_PACKAGE


def _described(runtime: Any, status: Any) -> str:
    _, name = runtime.cudaGetErrorName(status)
    _, text = runtime.cudaGetErrorString(status)
    return f"{name.decode()} ({text.decode()})"


def _too_little(size: int, free: int, total: int) -> UnavailableError:
    return UnavailableError(
        f"The GPU has too little memory: {_mib(size)} were asked for, {_mib(free)} of {_mib(total)} are free. Give it "
        f"smaller batches or shorter texts, or end other programs on it."
    )


def _cannot_pin(size: int) -> UnavailableError:
    return UnavailableError(
        f"The system gives no {_mib(size)} of pinned memory. Give smaller batches or shorter texts, or end other "
        f"programs."
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
