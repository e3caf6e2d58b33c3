"""Runs an engine of TensorRT or TensorRT-RTX on a GPU.

Memory is kept from run to run and only grows. Everything that a run puts onto its stream, copies included, is also kept
as a CUDA graph when its shapes come again. A graph belongs to the state of the context that it was captured from, so
each has a context of its own, which is left alone from then on; what the contexts compute in is shared, because they
run one after another. TensorRT-RTX makes such graphs itself, and better: it knows when it has compiled kernels for a
shape.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from exporter.engines.cuda import Cuda, DeviceMemory, PinnedMemory
from exporter.engines.engine import Arrays, Runner
from exporter.errors import BundleError, InputError, RotaryPressError, UnavailableError, UserError

__all__ = ["TensorRTRunner"]

Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]

# Of how many shapes it is known that they came lately, and so the most graphs that are kept. A generation, where each
# step has its own shape, comes around too late to be captured in vain.
RECENT = 8
SAID = 5  # lines of the log that an error quotes
# How numbers lie in memory. NumPy has no bfloat16: it is the upper half of a float32.
DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT32": np.int32, "INT64": np.int64}
FLOATS = ("FLOAT", "HALF", "BF16")


@dataclass(frozen=True)
class Tensor:
    """An input or an output of an engine.

    Attributes:
        kind: The name of TensorRT's dtype.
        ranges: The smallest and the largest shape that each of the engine's profiles takes; of an output, empty.
    """

    name: str
    kind: str
    ranges: tuple[tuple[Shape, Shape], ...] = ()

    @property
    def most(self) -> Shape:
        """The largest size of each axis in any profile."""
        return tuple(max(sizes) for sizes in zip(*(most for _, most in self.ranges), strict=True))

    def fits(self, shape: Shape, profile: int) -> bool:
        """Whether a profile takes an input of this shape."""
        least, most = self.ranges[profile]
        return len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements in memory."""
        return np.dtype(DTYPES[self.kind])

    def size(self, shape: Shape) -> int:
        """In bytes."""
        return math.prod(shape) * self.dtype.itemsize

    def write(self, array: NDArray[Any], memory: NDArray[np.uint8]) -> None:
        """Puts numbers into memory as the engine reads them."""
        view = memory[: self.size(array.shape)].view(self.dtype).reshape(array.shape)
        if self.kind == "BF16":
            view[...] = _to_bfloat16(array)
        else:
            np.copyto(view, array, casting="same_kind")

    def read(self, shape: Shape, memory: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A copy of the numbers that the engine wrote, as float32."""
        view = memory[: self.size(shape)].view(self.dtype).reshape(shape)
        if self.kind == "BF16":
            return np.asarray((view.astype(np.uint32) << 16).view(np.float32))
        return view.astype(np.float32)


@dataclass
class Captured:
    """A graph, the context that it was captured from, and the shapes of its outputs."""

    graph: Any
    context: Any
    outputs: Shapes


class Buffer:
    """Memory for a tensor, on the GPU and pinned on the host."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: DeviceMemory | None = None
        self._host: PinnedMemory | None = None
        self.capacity = 0

    @property
    def device(self) -> DeviceMemory:
        """Once it has grown."""
        assert self._device is not None
        return self._device

    @property
    def host(self) -> PinnedMemory:
        """As above."""
        assert self._host is not None
        return self._host

    def grow(self, capacity: int) -> None:
        """Frees what there is before it allocates; if that fails, there is nothing, and it may be tried again."""
        self.free()
        self._device = self._cuda.allocate(capacity)
        self._host = self._cuda.pin(capacity)
        self.capacity = capacity

    def free(self) -> None:
        """Gives all back."""
        self.capacity = 0
        device, self._device = self._device, None
        host, self._host = self._host, None
        with ExitStack() as stack:  # the second also where the first fails
            for memory in (device, host):
                if memory is not None:
                    stack.callback(self._cuda.free, memory)


class TensorRTRunner(Runner):
    """A loaded engine. Threads may share it: they run one after another.

    Args:
        trt: The module: ``tensorrt`` or ``tensorrt_rtx``.
        cuda: The GPU; the runner's own from now on, which closes it.
        plan: The engine.
        path: Of its file, for messages.
        graphs: The most CUDA graphs that are kept; 0 for none.
        host_code: Let the engine bring code for the CPU, as version-compatible ones do. It is run: trust it first.
        weights: The ONNX file whose weights were left out of the engine; ``None`` if they are in it.

    Attributes:
        why_no_graphs: Why graphs were given up, if they were.

    Raises:
        BundleError: If the engine or its weights are refused, or it is none of this compiler's.
        UnavailableError: If the GPU has too little memory.
    """

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        plan: bytes,
        path: Path,
        *,
        graphs: int = RECENT,
        host_code: bool = False,
        weights: Path | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._trt, self._cuda, self._path = trt, cuda, path
        self._makes_graphs_itself = hasattr(trt, "CudaGraphStrategy")
        self._graphs = graphs
        self.why_no_graphs: str | None = None
        self._recent: OrderedDict[Shapes, Captured | None] = OrderedDict()
        self._buffers: dict[str, Buffer] = {}
        self._scratch: DeviceMemory | None = None
        self._log: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: dict[int, Any] = {}  # by profile; made when it is first needed
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._is_closed = False
        try:
            with cuda.current():
                self._load(plan, host_code, weights)
        except BaseException:
            with suppress(RotaryPressError):  # the first error tells more
                self.close()
            raise

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See :class:`Runner`.

        Raises:
            InputError: If a shape is outside of the engine's profile.
            UnavailableError: If the GPU has too little memory.
        """
        with self._lock:
            if self._is_closed:
                raise UserError(f"The engine {self._path} was closed: load it again.")
            arrays, profile = self._accepted(inputs)
            with self._cuda.current():
                try:
                    found = self._run(arrays, profile)
                except BaseException:
                    with suppress(RotaryPressError):  # memory must not change under what is still on the stream
                        self._cuda.synchronize()
                    raise
        return {tensor.name: array for tensor, array in zip(self._outputs, found, strict=True)}

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, Any]]:
        """The module's own engine, and its context for the first profile, to look into."""
        with self._lock, self._cuda.current():
            yield self._engine, self._contexts[0]

    def close(self) -> None:
        """Gives all memory back. May be called twice.

        Raises:
            RotaryPressError: If CUDA fails; all that can be given back is, nevertheless.
        """
        with self._lock, ExitStack() as stack:  # the last is done first, and all of them are
            if self._is_closed:
                return
            self._is_closed = True
            stack.callback(self._cuda.close)
            with suppress(RotaryPressError):
                stack.enter_context(self._cuda.current())
            if self._scratch is not None:
                stack.callback(self._cuda.free, self._scratch)
            for buffer in self._buffers.values():
                stack.callback(buffer.free)
            stack.callback(self._forget_engine)
            stack.callback(self._drop_graphs)
            stack.callback(self._cuda.synchronize)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # the process gives all back; what would do it here may be gone
            with suppress(Exception):  # whatever is missing, if the constructor was never entered
                self.close()

    def _load(self, plan: bytes, host_code: bool, weights: Path | None) -> None:
        trt = self._trt
        self._log = _log(trt)
        try:
            self._runtime = runtime = trt.Runtime(self._log)
        except (RuntimeError, TypeError) as error:  # of pybind11, where there is no runtime
            raise UnavailableError(f"{self._module} cannot start here: {self._said(str(error))}.") from error
        if host_code:
            runtime.engine_host_code_allowed = True
        self._engine = engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BundleError(
                f"{self._path} cannot be loaded by {self._module}: {self._said('it gives no reason')}. Build it again "
                f"with the release, and for the GPU, that is to run it."
            )
        if weights is not None:
            self._refit(weights)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._inputs.append(self._tensor(engine, name, self._ranges(engine, name)))
            else:
                self._outputs.append(self._tensor(engine, name))
            self._buffers[name] = Buffer(self._cuda)
        if not self._makes_graphs_itself:
            self._scratch = self._cuda.allocate(engine.device_memory_size_v2)
        self._contexts[0] = self._new_context(0)

    def _refit(self, weights: Path) -> None:
        """Puts back what was left out, before anything is made of the engine."""
        trt = self._trt
        refitter = trt.Refitter(self._engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise BundleError(
                f"The weights in {weights} cannot be put into {self._path}: {self._said('it gives no reason')}. It "
                f"must be the graph that the engine was built from."
            )

    def _tensor(self, engine: Any, name: str, ranges: tuple[tuple[Shape, Shape], ...] = ()) -> Tensor:
        kind = engine.get_tensor_dtype(name).name
        if kind not in (FLOATS if engine.get_tensor_mode(name) != self._trt.TensorIOMode.INPUT else DTYPES):
            raise BundleError(f"{self._path} is no engine of Rotary Press: its tensor {name} is {kind}.")
        if engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise BundleError(f"{self._path} is no engine of Rotary Press: its tensor {name} is not on the GPU.")
        return Tensor(name, kind, ranges)

    def _ranges(self, engine: Any, name: str) -> tuple[tuple[Shape, Shape], ...]:
        fixed = tuple(engine.get_tensor_shape(name))
        found = []
        for profile in range(engine.num_optimization_profiles):
            least, _, most = engine.get_tensor_profile_shape(name, profile) if -1 in fixed else (fixed, fixed, fixed)
            found.append((tuple(least), tuple(most)))
        return tuple(found)

    def _new_context(self, profile: int) -> Any:
        trt, engine = self._trt, self._engine
        if self._makes_graphs_itself:
            config = engine.create_runtime_config()
            if self._graphs:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise UnavailableError(
                f"{self._module} cannot make {self._path} ready to run: {self._said('it gives no reason')}. Often, the "
                f"GPU has too little memory: end other programs on it, or build with smaller profiles."
            )
        if self._scratch is not None:
            context.set_device_memory(self._scratch.address, self._scratch.size)
        if profile and not context.set_optimization_profile_async(profile, self._cuda.stream):
            raise RotaryPressError(f"{self._path} refuses its profile {profile}: {self._said('no reason given')}.")
        return context

    def _accepted(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[list[NDArray[Any]], int]:
        """The arrays in the engine's order, and the first profile that takes them all."""
        names = {tensor.name for tensor in self._inputs}
        if names != set(inputs):
            raise BundleError(
                f"{self._path} takes {_listed(sorted(names))}, not {_listed(sorted(inputs))}: it is not the engine of "
                f"this model."
            )
        arrays = []
        profiles = list(range(self._engine.num_optimization_profiles))
        for tensor in self._inputs:
            array = np.asarray(inputs[tensor.name])
            if array.dtype.kind != ("f" if tensor.kind in FLOATS else "i"):
                raise BundleError(
                    f"{self._path} takes {tensor.name} as {tensor.kind}, not as {array.dtype}: it is not the engine of "
                    f"this model."
                )
            profiles = [profile for profile in profiles if tensor.fits(array.shape, profile)]
            if not profiles:
                taken = " or ".join(f"from {least} to {most}" for least, most in dict.fromkeys(tensor.ranges))
                raise InputError(
                    f"{tensor.name} must have a shape {taken}, for which {self._path} was built, in one profile with "
                    f"the other inputs; got {array.shape}. Split the input, or build with larger profiles (--profile)."
                )
            arrays.append(array)
        return arrays, profiles[0]

    def _run(self, arrays: Sequence[NDArray[Any]], profile: int) -> list[NDArray[np.float32]]:
        shapes = tuple(array.shape for array in arrays)
        captured = self._recent.get(shapes)
        if captured is not None:
            self._recent.move_to_end(shapes)
            self._write(arrays)
            self._cuda.launch(captured.graph)
            self._cuda.synchronize()
            return self._read(captured.outputs)
        context = self._context_for(shapes, profile)
        outputs = self._prepare(context, shapes)
        self._write(arrays)
        self._put_onto_stream(context, shapes, outputs)  # once before a capture: a context has things to set up
        self._cuda.synchronize()
        found = self._read(outputs)
        if self._graphs and not self._makes_graphs_itself:
            is_usual = context is self._contexts[profile]
            self._remember(shapes, None if is_usual else self._capture(context, shapes, outputs))
        return found

    def _context_for(self, shapes: Shapes, profile: int) -> Any:
        """The usual context of the profile, or for shapes that came lately a new one, whose work will be captured."""
        if profile not in self._contexts:
            self._contexts[profile] = self._new_context(profile)
        if shapes in self._recent:
            try:
                return self._new_context(profile)
            except RotaryPressError as error:
                self._give_up_graphs(error)
        return self._contexts[profile]

    def _prepare(self, context: Any, shapes: Shapes) -> Shapes:
        """Sets shapes, makes sure that there is memory, and sets addresses. Returns the shapes of the outputs."""
        for tensor, shape in zip(self._inputs, shapes, strict=True):
            if not context.set_input_shape(tensor.name, shape):
                raise BundleError(
                    f"{self._path} refuses the shape {shape} of {tensor.name}: {self._said('no reason given')}."
                )
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:
            raise BundleError(
                f"{self._path} cannot tell the shapes of its outputs: {self._said(str(error))}."
            ) from error
        outputs = tuple(tuple(context.get_tensor_shape(tensor.name)) for tensor in self._outputs)
        if unknown or any(size < 0 for shape in outputs for size in shape):
            raise BundleError(f"{self._path} is no engine of Rotary Press: the shapes of its outputs depend on data.")
        for tensor, shape in zip(self._inputs, shapes, strict=True):
            self._reserve(tensor.name, tensor.size(shape), tensor.size(tensor.most))
        for tensor, shape in zip(self._outputs, outputs, strict=True):
            self._reserve(tensor.name, tensor.size(shape), context.get_max_output_size(tensor.name))
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.device.address):
                raise RotaryPressError(f"{self._path} refuses memory for {name}: {self._said('no reason given')}.")
        return outputs

    def _reserve(self, name: str, size: int, most: int) -> None:
        """Makes a buffer large enough. One that must grow at least doubles, up to the most that can be needed.

        Even an empty tensor needs an address, and one of its own.
        """
        buffer = self._buffers[name]
        if buffer.capacity >= max(size, 1):
            return
        self._drop_graphs()  # they hold the old addresses
        buffer.grow(max(size, min(2 * buffer.capacity, most), 1))

    def _write(self, arrays: Sequence[NDArray[Any]]) -> None:
        for tensor, array in zip(self._inputs, arrays, strict=True):
            tensor.write(array, self._buffers[tensor.name].host.array)

    def _read(self, shapes: Shapes) -> list[NDArray[np.float32]]:
        return [
            tensor.read(shape, self._buffers[tensor.name].host.array)
            for tensor, shape in zip(self._outputs, shapes, strict=True)
        ]

    def _put_onto_stream(self, context: Any, inputs: Shapes, outputs: Shapes) -> None:
        for tensor, shape in zip(self._inputs, inputs, strict=True):
            buffer = self._buffers[tensor.name]
            self._cuda.upload(buffer.host, buffer.device, tensor.size(shape))
        if not context.execute_async_v3(self._cuda.stream):
            raise RotaryPressError(f"{self._path} failed on the GPU: {self._said('no reason given')}.")
        for tensor, shape in zip(self._outputs, outputs, strict=True):
            buffer = self._buffers[tensor.name]
            self._cuda.download(buffer.device, buffer.host, tensor.size(shape))

    def _capture(self, context: Any, shapes: Shapes, outputs: Shapes) -> Captured | None:
        """``None`` if it cannot be: the engine runs all the same."""
        try:
            graph = self._cuda.capture(lambda: self._put_onto_stream(context, shapes, outputs))
        except RotaryPressError as error:
            self._give_up_graphs(error)
            return None
        return Captured(graph, context, outputs)

    def _remember(self, shapes: Shapes, captured: Captured | None) -> None:
        self._recent[shapes] = captured
        self._recent.move_to_end(shapes)
        while len(self._recent) > self._graphs:
            _, oldest = self._recent.popitem(last=False)
            if oldest is not None:
                self._cuda.drop(oldest.graph)

    def _drop_graphs(self) -> None:
        """Which shapes came lately is still known."""
        for shapes, captured in self._recent.items():
            if captured is not None:
                self._recent[shapes] = None
                self._cuda.drop(captured.graph)

    def _give_up_graphs(self, error: RotaryPressError) -> None:
        self._drop_graphs()
        self._recent.clear()
        self._graphs = 0
        self.why_no_graphs = str(error)

    def _forget_engine(self) -> None:
        self._contexts.clear()
        self._engine = None
        self._runtime = None
        self._log = None

    @property
    def _module(self) -> str:
        return f"{self._trt.__name__} {self._trt.__version__}"

    def _said(self, otherwise: str) -> str:
        """The last errors of the log, each quoted once."""
        lines = dict.fromkeys(line.strip().rstrip(".") for line in self._log.lines)
        self._log.lines.clear()
        return "; ".join(lines) or otherwise.strip().rstrip(".")


def _log(trt: Any) -> Any:
    """A logger of the module that keeps the last errors."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines = deque[str](maxlen=SAID)

        def log(self, severity: Any, line: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.lines.append(line)

    return Log()


def _to_bfloat16(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).reshape(array.shape)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values) or "nothing"
