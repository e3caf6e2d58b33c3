"""A GPU in host memory, and ``cuda.bindings.runtime``, torch and TensorRT over it.

It is stricter than a real one. Nothing on a stream happens before it is waited for, so what reads too early reads
rubbish. Every access must be inside of memory that is allocated at that moment; addresses are never given twice. Memory
may not be freed while anything is on a stream.
"""

# ruff: noqa: N802, N815  # CUDA's names

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUBBISH = 0xDD
Operation = Callable[[], None]


class CudaRuntimeError(Enum):
    """As ``cudaError_t``, with its numbers."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStubLibrary = 34
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class MemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class StreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class FakeGpu:
    """Memory by address, and streams by handle."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.device = 0
        self.properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9)
        self.clock = 0.0  # seconds that its engines have run
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Operation]] = {}
        self.capturing: dict[int, list[Operation]] = {}
        self.graphs: list[FakeGraph] = []
        self.done: list[str] = []
        self._graveyard: list[Any] = []
        self._handles = itertools.count(1000)

    @property
    def used(self) -> int:
        return sum(map(len, self.memory.values()))

    @property
    def is_clean(self) -> bool:
        return not (self.memory or self.pinned or self.streams or any(graph.is_alive for graph in self.graphs))

    def allocate(self, size: int, *, on_host: bool = False) -> int | None:
        assert size > 0
        if not on_host and self.used + size > self.limit:
            return None
        buffer = (ctypes.c_uint8 * size)()
        ctypes.memset(buffer, RUBBISH, size)
        address = ctypes.addressof(buffer)
        (self.pinned if on_host else self.memory)[address] = buffer
        self.done.append(f"{'pin' if on_host else 'allocate'} {size}")
        return address

    def free(self, address: int, *, on_host: bool = False) -> None:
        assert not any(self.streams.values()), "memory is freed while work is on a stream"
        assert not self.capturing, "memory is freed during a capture"
        buffer = (self.pinned if on_host else self.memory).pop(address)
        ctypes.memset(buffer, RUBBISH, len(buffer))
        self._graveyard.append(buffer)

    def bytes_at(self, address: int, size: int, *, on_host: bool = False) -> NDArray[np.uint8]:
        for start, buffer in (self.pinned if on_host else self.memory).items():
            if start <= address and address + size <= start + len(buffer):
                return np.ctypeslib.as_array(buffer)[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def copy(self, target: int, source: int, size: int, *, upload: bool) -> None:
        self.bytes_at(target, size, on_host=not upload)[:] = self.bytes_at(source, size, on_host=upload)
        self.done.append("upload" if upload else "download")

    def new_stream(self) -> int:
        handle = next(self._handles)
        self.streams[handle] = []
        return handle

    def put(self, stream: int, operation: Operation) -> None:
        self.capturing.get(stream, self.streams[stream]).append(operation)

    def synchronize(self, stream: int) -> None:
        assert stream not in self.capturing, "a stream is waited for during its capture"
        operations, self.streams[stream] = self.streams[stream], []
        for operation in operations:
            operation()

    def end_capture(self, stream: int) -> FakeGraph:
        graph = FakeGraph(self.capturing.pop(stream))
        self.graphs.append(graph)
        return graph

    def launch(self, graph: FakeGraph, stream: int) -> None:
        assert graph.is_alive, "a dropped graph is launched"
        self.done.append("launch")
        for operation in graph.operations:
            self.put(stream, operation)

    def drop(self, graph: FakeGraph) -> None:
        assert graph.is_alive, "a graph is dropped twice"
        assert not any(self.streams.values()), "a graph is dropped while work is on a stream"
        graph.is_alive = False


@dataclass(eq=False)
class FakeGraph:
    operations: list[Operation]
    is_alive: bool = True


class FakeStream(int):
    """``cudaStream_t`` can be made an int, and is none."""


class FakeRuntime(ModuleType):
    """``cuda.bindings.runtime``: every function gives its status first."""

    cudaError_t = CudaRuntimeError
    cudaMemcpyKind = MemcpyKind
    cudaStreamCaptureMode = StreamCaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self, gpu: FakeGpu | None = None) -> None:
        super().__init__("cuda.bindings.runtime")
        self.gpu = gpu or FakeGpu()
        self.asked: list[str] = []
        self.fails: dict[str, CudaRuntimeError] = {}
        self.driver = 13000
        self.count = 1

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found

        def recorded(*arguments: Any) -> Any:
            self.asked.append(name)
            if name in self.fails:
                if name == "cudaStreamEndCapture":
                    self.gpu.capturing.clear()
                return self.fails[name], *[None] * RESULTS.get(name, 0)
            found_values = found(*arguments)
            assert len(found_values) == 1 + RESULTS.get(name, 0)
            return found_values

        return recorded

    def cudaGetDeviceCount(self) -> Any:
        return OK, self.count

    def cudaDriverGetVersion(self) -> Any:
        return OK, self.driver

    def cudaGetErrorName(self, status: CudaRuntimeError) -> Any:
        return OK, status.name.encode()

    def cudaGetErrorString(self, status: CudaRuntimeError) -> Any:
        return OK, b"as described"

    def cudaGetDeviceProperties(self, device: int) -> Any:
        assert device == self.gpu.device
        told = self.gpu.properties
        return OK, SimpleNamespace(name=told.name.encode(), major=told.major, minor=told.minor)

    def cudaGetDevice(self) -> Any:
        return OK, self.gpu.device

    def cudaSetDevice(self, device: int) -> Any:
        self.gpu.device = device
        return (OK,)

    def cudaMemGetInfo(self) -> Any:
        return OK, self.gpu.limit - self.gpu.used, self.gpu.limit

    def cudaMalloc(self, size: int) -> Any:
        address = self.gpu.allocate(size)
        return (OK, address) if address else (CudaRuntimeError.cudaErrorMemoryAllocation, None)

    def cudaFree(self, address: int) -> Any:
        self.gpu.free(address)
        return (OK,)

    def cudaMallocHost(self, size: int) -> Any:
        return OK, self.gpu.allocate(size, on_host=True)

    def cudaFreeHost(self, address: int) -> Any:
        self.gpu.free(address, on_host=True)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        return OK, FakeStream(self.gpu.new_stream())

    def cudaStreamDestroy(self, stream: FakeStream) -> Any:
        assert not self.gpu.streams.pop(stream)
        return (OK,)

    def cudaStreamSynchronize(self, stream: FakeStream) -> Any:
        self.gpu.synchronize(stream)
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: MemcpyKind, stream: FakeStream) -> Any:
        assert isinstance(stream, FakeStream)
        upload = kind == MemcpyKind.cudaMemcpyHostToDevice
        self.gpu.put(stream, lambda: self.gpu.copy(target, source, size, upload=upload))
        return (OK,)

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: StreamCaptureMode) -> Any:
        assert mode == StreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert stream not in self.gpu.capturing
        self.gpu.capturing[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: FakeStream) -> Any:
        return OK, self.gpu.end_capture(stream)

    def cudaGraphInstantiate(self, graph: FakeGraph, flags: int) -> Any:
        assert flags == 0
        executable = FakeGraph(graph.operations)
        self.gpu.graphs.append(executable)
        return OK, executable

    def cudaGraphLaunch(self, executable: FakeGraph, stream: FakeStream) -> Any:
        self.gpu.launch(executable, stream)
        return (OK,)

    def cudaGraphDestroy(self, graph: FakeGraph) -> Any:
        assert graph.is_alive
        graph.is_alive = False
        return (OK,)

    def cudaGraphExecDestroy(self, executable: FakeGraph) -> Any:
        self.gpu.drop(executable)
        return (OK,)


OK = CudaRuntimeError.cudaSuccess
# How many values follow the status.
RESULTS = {
    "cudaGetDeviceCount": 1,
    "cudaDriverGetVersion": 1,
    "cudaGetErrorName": 1,
    "cudaGetErrorString": 1,
    "cudaGetDevice": 1,
    "cudaGetDeviceProperties": 1,
    "cudaMemGetInfo": 2,
    "cudaMalloc": 1,
    "cudaMallocHost": 1,
    "cudaStreamCreateWithFlags": 1,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiate": 1,
}
# The arguments that CUDA gives them, where it gives any.
ARGUMENTS = {
    "cudaGetErrorName": 1,
    "cudaGetErrorString": 1,
    "cudaGetDeviceProperties": 1,
    "cudaSetDevice": 1,
    "cudaMalloc": 1,
    "cudaFree": 1,
    "cudaMallocHost": 1,
    "cudaFreeHost": 1,
    "cudaStreamCreateWithFlags": 1,
    "cudaStreamDestroy": 1,
    "cudaStreamSynchronize": 1,
    "cudaMemcpyAsync": 5,
    "cudaStreamBeginCapture": 2,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiate": 2,
    "cudaGraphLaunch": 2,
    "cudaGraphDestroy": 1,
    "cudaGraphExecDestroy": 1,
}


class OutOfMemoryError(RuntimeError):
    pass


class FakeTensor:
    """A ``torch.Tensor`` of bytes; its memory goes with the last that refers to it."""

    def __init__(self, torch: FakeTorch, size: int, *, on_host: bool) -> None:
        self.torch, self.size, self.on_host = torch, size, on_host
        address = torch.gpu.allocate(size, on_host=on_host)
        if address is None:
            raise OutOfMemoryError(f"Tried to allocate {size} bytes")
        self.address = address

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self.torch.gpu.free(self.address, on_host=self.on_host)

    def data_ptr(self) -> int:
        return self.address

    def numpy(self) -> NDArray[np.uint8]:
        assert self.on_host
        return self.torch.gpu.bytes_at(self.address, self.size, on_host=True)

    def __getitem__(self, part: slice) -> FakeSlice:
        assert part.start is None
        assert part.stop <= self.size
        return FakeSlice(self, part.stop)


@dataclass
class FakeSlice:
    tensor: FakeTensor
    size: int

    def copy_(self, source: FakeSlice, *, non_blocking: bool) -> None:
        assert non_blocking
        assert self.size == source.size
        assert source.tensor.on_host != self.tensor.on_host
        torch, upload = self.tensor.torch, source.tensor.on_host
        target, start, size = self.tensor.address, source.tensor.address, self.size
        stream = torch.current
        assert stream is not None, "a copy goes onto torch's own stream"
        torch.gpu.put(stream, lambda: torch.gpu.copy(target, start, size, upload=upload))


class FakeTorchGraph:
    def __init__(self, torch: FakeTorch) -> None:
        self.torch = torch
        self.captured: FakeGraph | None = None

    def replay(self) -> None:
        assert self.captured is not None
        assert self.torch.current is not None, "a graph goes onto torch's own stream"
        self.torch.gpu.launch(self.captured, self.torch.current)

    def reset(self) -> None:
        assert self.captured is not None
        self.torch.gpu.drop(self.captured)


class FakeTorch(ModuleType):
    """As much of torch as is used."""

    uint8 = "uint8"

    def __init__(self, gpu: FakeGpu | None = None) -> None:
        super().__init__("torch")
        self.gpu = gpu or FakeGpu()
        self.current: int | None = None
        self.version = SimpleNamespace(cuda="13.0")
        self.fails: dict[str, Exception] = {}
        self.count = 1
        self.cuda = SimpleNamespace(
            init=lambda: self._may_fail("init"),
            device_count=lambda: self.count,
            current_device=lambda: self.gpu.device,
            get_device_properties=self._properties,
            OutOfMemoryError=OutOfMemoryError,
            mem_get_info=lambda _device: (self.gpu.limit - self.gpu.used, self.gpu.limit),
            Stream=self._stream,
            stream=self._in_stream,
            device=self._in_device,
            graph=self._capturing,
            CUDAGraph=lambda: FakeTorchGraph(self),
        )

    def empty(self, size: int, *, dtype: str, device: str | None = None, pin_memory: bool = False) -> FakeTensor:
        assert dtype == "uint8"
        assert pin_memory == (device is None)
        self._may_fail("pin" if pin_memory else "empty")
        return FakeTensor(self, size, on_host=pin_memory)

    def _may_fail(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def _properties(self, device: int) -> SimpleNamespace:
        assert device == self.gpu.device
        self._may_fail("properties")
        return self.gpu.properties

    def _stream(self, *, device: int) -> Any:
        assert device == self.gpu.device
        self._may_fail("stream")
        return FakeTorchStream(self, self.gpu.new_stream())

    @contextmanager
    def _in_stream(self, stream: FakeTorchStream) -> Iterator[None]:
        before, self.current = self.current, stream.cuda_stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _in_device(self, device: int) -> Iterator[None]:
        before, self.gpu.device = self.gpu.device, device
        try:
            yield
        finally:
            self.gpu.device = before

    @contextmanager
    def _capturing(self, graph: FakeTorchGraph, *, stream: FakeTorchStream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self._may_fail("begin")
        before, self.current = self.current, stream.cuda_stream
        self.gpu.capturing[stream.cuda_stream] = []
        try:
            yield
        finally:  # as torch does, the stream is put back only if this does not fail
            captured = self.gpu.end_capture(stream.cuda_stream)
            captured.is_alive = sys.exc_info()[0] is None and "end" not in self.fails
            graph.captured = captured
            self._may_fail("end")
            self.current = before


class FakeTorchStream:
    def __init__(self, torch: FakeTorch, handle: int) -> None:
        self.torch, self.cuda_stream = torch, handle

    def __del__(self) -> None:
        assert not self.torch.gpu.streams.pop(self.cuda_stream)

    def synchronize(self) -> None:
        self.torch._may_fail("synchronize")
        self.torch.gpu.synchronize(self.cuda_stream)


# TensorRT

Shape = tuple[int, ...]
NUMBERS = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT64": np.int64, "INT8": np.int8}


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT64 = 8
    BF16 = 7


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity


@dataclass
class FakeModel:
    """What the fake engine computes: inputs and outputs with dtypes, and the shapes that it takes.

    ``logits`` (B, S) are ids times mask plus the sum of the past; ``present`` (B, P + S, 2) is the past, and behind it
    ids and mask side by side.
    """

    kind: str = "FLOAT"
    least: tuple[int, int, int] = (1, 1, 0)
    most: tuple[int, int, int] = (4, 16, 16)
    more: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = ()  # profiles after the first
    scratch: int = 64
    seconds: float = 0.0  # that a run takes, by the GPU's clock
    location: TensorLocation = TensorLocation.DEVICE
    unknown: bool = False

    @property
    def profiles(self) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
        return [(self.least, self.most), *self.more]

    @property
    def kinds(self) -> dict[str, str]:
        return {"ids": "INT64", "past": self.kind, "mask": "INT64", "logits": self.kind, "present": self.kind}

    def shapes(self, batch: int, sequence: int, past: int) -> dict[str, Shape]:
        flat = (batch, sequence)
        both = past + sequence
        return {"ids": flat, "past": (batch, past, 2), "mask": flat, "logits": flat, "present": (batch, both, 2)}

    def compute(self, ids: NDArray[Any], past: NDArray[Any], mask: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        return {
            "logits": (ids * mask + past.sum((1, 2))[:, None]).astype(np.float32),
            "present": np.concatenate([past, np.stack([ids, mask], -1)], 1).astype(np.float32),
        }


INPUTS = ("ids", "past", "mask")


@dataclass(eq=False)
class FakeContext:
    trt: FakeTrt
    model: FakeModel
    is_native: bool = False
    sizes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    scratch: int = 0
    is_frozen: bool = False  # a graph was captured from it
    is_warm: bool = False  # it has run since its shapes changed
    _profile: int = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert not self.sizes, "a profile must be chosen before shapes are set"
        assert stream_handle in self.trt.gpu.streams
        self._profile = profile_index
        return "profile" not in self.trt.refuses

    def set_device_memory(self, memory: int, size: int) -> None:
        assert not self.is_native
        assert size >= self.model.scratch
        self.scratch = memory

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        assert not self.is_frozen, "a context with a graph is changed"
        if name in self.trt.refuses:
            self.trt.say(Severity.ERROR, "shape refused.")
            return False
        least, most = (self.model.shapes(*sizes)[name] for sizes in self.model.profiles[self._profile])
        assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)), "not its profile"
        if self.sizes.get(name) != shape:
            self.is_warm = False
        self.sizes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        if "infer" in self.trt.refuses:
            raise RuntimeError("sizes differ")
        return [name for name in INPUTS if name not in self.sizes]

    def get_tensor_shape(self, name: str) -> Shape:
        if self.model.unknown:
            return (-1, 2)
        return self._shapes[name]

    def get_max_output_size(self, name: str) -> int:
        count = int(np.prod(self.model.shapes(*self.model.profiles[self._profile][1])[name]))
        return count * np.dtype(NUMBERS[self.model.kinds[name]]).itemsize

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self.is_frozen, "a context with a graph is changed"
        assert memory
        self.addresses[name] = memory
        return name + " address" not in self.trt.refuses

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self.trt.gpu
        self.trt.devices.append(gpu.device)
        assert stream_handle in gpu.streams
        assert len(set(self.addresses.values())) == len(self.addresses) == len(self.model.kinds)
        assert self.is_native or self.scratch
        if stream_handle in gpu.capturing:
            assert self.is_warm, "a context is captured that has not run with these shapes"
            self.is_frozen = True
            if "capture" in self.trt.refuses:
                self.trt.say(Severity.ERROR, "Operation cannot be captured")
                return False
        if "execute" in self.trt.refuses:
            self.trt.say(Severity.ERROR, "no kernel image is available")
            return False
        self.is_warm = True
        shapes, addresses, scratch = self._shapes, dict(self.addresses), self.scratch

        def work() -> None:
            if not self.is_native:
                gpu.bytes_at(scratch, self.model.scratch)[:] = RUBBISH

            def at(name: str) -> NDArray[Any]:
                dtype = np.dtype(NUMBERS[self.model.kinds[name]])
                size = int(np.prod(shapes[name])) * dtype.itemsize
                return gpu.bytes_at(addresses[name], size).view(dtype).reshape(shapes[name])

            past = at("past")
            if self.model.kind == "BF16":
                past = (past.astype(np.uint32) << 16).view(np.float32)
            found = self.model.compute(at("ids"), past, at("mask"))
            for name, array in found.items():
                if self.model.kind == "BF16":
                    at(name)[...] = array.view(np.uint32) >> 16
                else:
                    at(name)[...] = array
            gpu.clock += self.model.seconds
            gpu.done.append("execute")

        gpu.put(stream_handle, work)
        return True

    @property
    def _shapes(self) -> dict[str, Shape]:
        (batch, sequence), (_, past, _) = self.sizes["ids"], self.sizes["past"]
        return self.model.shapes(batch, sequence, past)


@dataclass(eq=False)
class FakeEngine:
    trt: FakeTrt
    model: FakeModel

    @property
    def num_io_tensors(self) -> int:
        return len(self.model.kinds)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.model.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        assert not self.trt.is_native
        return self.model.scratch

    def get_tensor_name(self, index: int) -> str:
        return list(self.model.kinds)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in INPUTS else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.model.kinds[name]]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return self.model.location if name == "mask" else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> Shape:
        if name == "past":
            return (-1, -1, 2)
        return (-1, -1) if self.model.least != self.model.most else self.model.shapes(*self.model.most)[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        least, most = (self.model.shapes(*sizes)[name] for sizes in self.model.profiles[profile_index])
        return [least, most, most]

    def create_runtime_config(self) -> Any:
        assert self.trt.is_native
        return SimpleNamespace(cuda_graph_strategy=CudaGraphStrategy.DISABLED)

    def create_execution_context(self, how: Any) -> FakeContext | None:
        self.trt.contexts.append(how)
        if len(self.trt.contexts) > self.trt.most_contexts:
            self.trt.say(Severity.ERROR, "out of memory")
            return None
        assert self.trt.is_native or how == ExecutionContextAllocationStrategy.USER_MANAGED
        return FakeContext(self.trt, self.model, self.trt.is_native)


class FakeTrt(ModuleType):
    """As much of TensorRT as is used, or, where it makes its graphs itself, of TensorRT-RTX."""

    __version__ = "11.4.0"
    DataType = DataType
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    ILogger = ILogger

    def __init__(self, gpu: FakeGpu, models: Mapping[bytes, FakeModel], *, is_native: bool = False) -> None:
        super().__init__("tensorrt_rtx" if is_native else "tensorrt")
        self.gpu, self.models, self.is_native = gpu, models, is_native
        self.refuses: set[str] = set()
        self.refitted: list[str] = []
        self.contexts: list[Any] = []
        self.most_contexts = 1 << 30
        self.logger: Any = None
        self.runtimes: list[FakeTrtRuntime] = []
        self.devices: list[int] = []  # current when there was something to do
        if is_native:
            self.CudaGraphStrategy = CudaGraphStrategy

    def say(self, severity: Severity, line: str) -> None:
        self.logger.log(severity, line)

    def Refitter(self, engine: Any, logger: Any) -> Any:
        assert logger is self.logger
        assert not self.contexts, "weights are put back before contexts are made"
        return SimpleNamespace(engine=engine, refit_cuda_engine=lambda: "refit" not in self.refuses)

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        def refit_from_file(model: str) -> bool:
            self.refitted.append(model)
            return "weights" not in self.refuses

        return SimpleNamespace(refit_from_file=refit_from_file)

    def Runtime(self, logger: Any) -> FakeTrtRuntime:
        assert isinstance(logger, ILogger)
        if "runtime" in self.refuses:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger
        self.devices.append(self.gpu.device)
        self.runtimes.append(FakeTrtRuntime(self))
        return self.runtimes[-1]


@dataclass(eq=False)
class FakeTrtRuntime:
    trt: FakeTrt
    engine_host_code_allowed: bool = False

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        self.trt.say(Severity.WARNING, "this is nothing to worry about")
        if plan not in self.trt.models:
            self.trt.say(Severity.ERROR, "magicTag is wrong.")
            self.trt.say(Severity.ERROR, "magicTag is wrong.")
            return None
        return FakeEngine(self.trt, self.trt.models[plan])
