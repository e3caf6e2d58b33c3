"""The runner gets numbers through a GPU and back, whatever shapes come, and gives all back."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from exporter.engines.cuda import BindingsCuda, Cuda, TorchCuda
from exporter.engines.tensorrt_runner import RECENT, Tensor, TensorRTRunner
from exporter.errors import BundleError, InputError, RotaryPressError, UnavailableError, UserError
from tests.exporter.engines import fake_cuda
from tests.exporter.engines.fake_cuda import CudaRuntimeError, FakeGpu, FakeModel, FakeRuntime, FakeTorch, FakeTrt

PLAN = b"plan"
FILE = Path("out/model.engine")
MAKERS: dict[str, Callable[[FakeGpu], Cuda]] = {
    "cuda-bindings": lambda gpu: BindingsCuda(FakeRuntime(gpu)),
    "torch": lambda gpu: TorchCuda(FakeTorch(gpu)),
}
each_cuda = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
each_trt = pytest.mark.parametrize("is_native", [False, True], ids=["tensorrt", "tensorrt-rtx"])

Sizes = tuple[int, int, int]
COUNT = itertools.count()


class Bench:
    """A runner, and what is under it."""

    def __init__(
        self,
        model: FakeModel | None = None,
        make: Callable[[FakeGpu], Cuda] = MAKERS["cuda-bindings"],
        *,
        is_native: bool = False,
        **options: Any,
    ) -> None:
        self.model = model or FakeModel()
        self.gpu = FakeGpu()
        self.trt = FakeTrt(self.gpu, {PLAN: self.model}, is_native=is_native)
        self.runner = TensorRTRunner(self.trt, make(self.gpu), PLAN, FILE, **options)

    @property
    def runtime(self) -> FakeRuntime:
        """Of cuda-bindings."""
        found: FakeRuntime = self.runner._cuda._runtime  # type: ignore[attr-defined]
        return found

    @property
    def graphs(self) -> int:
        return sum(graph.is_alive for graph in self.gpu.graphs)

    def check(self, *sizes: int) -> list[str]:
        """Runs it, compares, and tells what the GPU did."""
        inputs = inputs_of(*sizes)
        self.gpu.done.clear()
        found = self.runner.run(inputs)
        assert list(found) == ["logits", "present"]
        for name, expected in self.model.compute(**inputs).items():
            assert found[name].dtype == np.float32
            assert found[name].flags.writeable
            np.testing.assert_array_equal(found[name], expected)
        return self.gpu.done


def inputs_of(batch: int, sequence: int, past: int) -> dict[str, NDArray[Any]]:
    """Small whole numbers, which every dtype holds; not those of the call before."""
    generator = np.random.default_rng(next(COUNT))
    return {
        "mask": generator.integers(0, 2, (batch, sequence)),
        "ids": generator.integers(0, 8, (batch, sequence)),
        "past": generator.integers(0, 4, (batch, past, 2)).astype(np.float32),
    }


@each_cuda
@each_trt
@pytest.mark.parametrize("kind", ["FLOAT", "HALF", "BF16"])
def test_numbers_go_through_the_engine(make: Callable[[FakeGpu], Cuda], is_native: bool, kind: str) -> None:
    bench = Bench(FakeModel(kind), make, is_native=is_native)
    done = bench.check(2, 3, 4)
    assert done[-6:] == ["upload", "upload", "upload", "execute", "download", "download"]
    bench.check(1, 5, 2)
    bench.runner.close()
    assert bench.gpu.is_clean


@each_cuda
@each_trt
def test_an_empty_cache_has_an_address_and_no_copy(make: Callable[[FakeGpu], Cuda], is_native: bool) -> None:
    bench = Bench(make=make, is_native=is_native)
    for _ in range(4):
        done = bench.check(2, 3, 0)
        assert done.count("upload") == 2
    assert bench.check(2, 3, 1).count("upload") == 3


@each_trt
def test_the_engine_can_be_looked_into(is_native: bool) -> None:
    bench = Bench(is_native=is_native)
    with bench.runner.opened() as (engine, context):
        assert engine.get_tensor_name(0) in inputs_of(1, 1, 1)
        assert context.set_input_shape(engine.get_tensor_name(0), (2, 3))
    bench.check(2, 3, 4)


def test_memory_is_kept_and_only_grows() -> None:
    bench = Bench(graphs=0)
    assert sum(line.startswith(("allocate", "pin")) for line in bench.check(2, 8, 0)) == 10
    for sizes in ((2, 8, 0), (1, 8, 0), (2, 3, 0), (1, 16, 0)):
        assert not any(line.startswith(("allocate", "pin")) for line in bench.check(*sizes))
    assert [line for line in bench.check(3, 8, 0) if line.startswith("allocate")] == [
        "allocate 256",  # ids of int64: 2 * 8 * 8 bytes, doubled
        "allocate 256",
        "allocate 128",
        "allocate 256",
    ]


def test_memory_doubles_up_to_what_the_profile_allows() -> None:
    """A cache that grows by one in each step moves a few times only."""
    bench = Bench(FakeModel(most=(1, 1, 16)), graphs=0)
    moves = [sum(line.startswith("allocate") for line in bench.check(1, 1, past)) for past in range(1, 17)]
    assert moves[0] == 5
    assert sum(moves[1:]) == 4 + 4  # of past and present, to 2, 4, 8 and 16, or 17 of them
    assert bench.gpu.used == 64 + 8 + 8 + 4 + 16 * 2 * 4 + 17 * 2 * 4


@each_cuda
def test_shapes_that_come_again_become_a_graph(make: Callable[[FakeGpu], Cuda]) -> None:
    bench = Bench(make=make)
    assert "launch" not in bench.check(2, 3, 4)
    assert bench.graphs == 0
    assert "launch" not in bench.check(2, 3, 4), "it is captured, after it ran"
    assert bench.graphs == 1
    for _ in range(3):
        assert bench.check(2, 3, 4) == ["launch", *["upload"] * 3, "execute", *["download"] * 2]
    assert len(bench.trt.contexts) == 2
    assert "launch" not in bench.check(1, 3, 4)
    assert "launch" in bench.check(2, 3, 4)
    bench.runner.close()
    assert bench.gpu.is_clean


def test_a_buffer_that_moves_takes_the_graphs_with_it() -> None:
    bench = Bench()
    for _ in range(3):
        bench.check(1, 3, 0)
    assert bench.graphs == 1
    assert "launch" not in bench.check(1, 4, 0)
    assert bench.graphs == 0
    assert "launch" not in bench.check(1, 3, 0)
    assert "launch" in bench.check(1, 3, 0), "it is captured anew"


def test_the_graph_that_was_not_used_for_longest_goes() -> None:
    bench = Bench(graphs=2)
    bench.check(1, 16, 16)
    for length in (1, 1, 2, 2):
        bench.check(1, length, 1)
    assert "launch" in bench.check(1, 1, 1)
    bench.check(1, 3, 1)
    assert bench.graphs == 1
    assert "launch" in bench.check(1, 1, 1)
    assert "launch" not in bench.check(1, 2, 1)


def test_shapes_that_come_around_late_are_not_captured() -> None:
    """As in a generation, where each step has its own."""
    bench = Bench()
    for _ in range(3):
        for past in range(RECENT + 1):
            bench.check(1, 1, past)
    assert not bench.gpu.graphs


def test_no_graphs_if_none_are_wanted() -> None:
    bench = Bench(graphs=0)
    for _ in range(4):
        assert "launch" not in bench.check(1, 1, 1)
    assert not bench.gpu.graphs
    assert bench.runner.why_no_graphs is None


@pytest.mark.parametrize("graphs", [0, 4])
def test_tensorrt_rtx_makes_its_graphs_itself(graphs: int) -> None:
    bench = Bench(is_native=True, graphs=graphs)
    for _ in range(4):
        assert "launch" not in bench.check(1, 1, 1)
    assert not bench.gpu.graphs
    (config,) = bench.trt.contexts
    assert config.cuda_graph_strategy.name == ("WHOLE_GRAPH_CAPTURE" if graphs else "DISABLED")


def test_an_engine_that_cannot_be_captured_runs_without_graphs() -> None:
    bench = Bench()
    bench.trt.refuses.add("capture")
    for _ in range(4):
        bench.check(1, 2, 1)
    assert bench.graphs == 0
    assert len(bench.trt.contexts) == 2, "it is tried once"
    assert bench.runner.why_no_graphs == f"{FILE} failed on the GPU: Operation cannot be captured."


def test_too_little_memory_for_a_second_context_is_no_failure() -> None:
    bench = Bench()
    bench.trt.most_contexts = 1
    for _ in range(4):
        bench.check(1, 2, 1)
    assert bench.graphs == 0
    assert "out of memory" in (bench.runner.why_no_graphs or "")


def test_results_are_the_callers_own() -> None:
    bench = Bench()
    inputs = inputs_of(1, 2, 1)
    first = bench.runner.run(inputs)
    kept = {name: array.copy() for name, array in first.items()}
    bench.check(1, 2, 1)
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    bench = Bench()
    inputs = {name: np.moveaxis(np.moveaxis(array, 1, 0).copy(), 0, 1) for name, array in inputs_of(3, 4, 2).items()}
    assert not any(array.flags.c_contiguous for array in inputs.values())
    found = bench.runner.run(inputs)
    for name, expected in bench.model.compute(**inputs).items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 3, 4), r"ids must have a shape from \(1, 2\) to \(4, 16\), .*; got \(5, 3\)\. Split the input, or build"),
        ((1, 17, 4), r"ids must have .* got \(1, 17\)"),
        ((1, 1, 4), r"ids must have a shape from \(1, 2\) .* got \(1, 1\)"),
        ((1, 3, 17), r"past must have a shape from \(1, 0, 2\) to \(4, 16, 2\), .*; got \(1, 17, 2\)"),
    ],
)
def test_a_shape_outside_of_the_profile_is_refused(sizes: Sizes, message: str) -> None:
    bench = Bench(FakeModel(least=(1, 2, 0)))
    with pytest.raises(InputError, match=message):
        bench.runner.run(inputs_of(*sizes))
    bench.check(4, 16, 16)


def test_weights_that_were_left_out_are_put_back_first() -> None:
    bench = Bench(weights=Path("m.onnx"))
    assert bench.trt.refitted == ["m.onnx"]
    bench.check(1, 2, 3)
    assert Bench().trt.refitted == []


@pytest.mark.parametrize("refused", ["refit", "weights"])
def test_weights_that_are_refused(refused: str) -> None:
    gpu = FakeGpu()
    trt = FakeTrt(gpu, {PLAN: FakeModel()})
    trt.refuses.add(refused)
    with pytest.raises(BundleError, match=r"The weights in m.onnx cannot be put into .*It must be the graph"):
        TensorRTRunner(trt, MAKERS["cuda-bindings"](gpu), PLAN, FILE, weights=Path("m.onnx"))
    assert gpu.is_clean


PROMPT_AND_STEP = FakeModel(least=(1, 1, 0), most=(4, 16, 0), more=(((1, 1, 1), (4, 1, 15)),))


@each_cuda
@pytest.mark.parametrize("is_native", [False, True])
def test_a_prompt_and_its_steps_have_profiles_of_their_own(make: Callable[[FakeGpu], Cuda], is_native: bool) -> None:
    bench = Bench(PROMPT_AND_STEP, make, is_native=is_native)
    for _ in range(3):
        bench.check(2, 7, 0)
        for past in (7, 8, 9):
            bench.check(2, 1, past)
    bench.runner.close()
    assert bench.gpu.is_clean


def test_shapes_that_fit_no_profile_together_are_refused() -> None:
    bench = Bench(PROMPT_AND_STEP)
    with pytest.raises(
        InputError, match=r"past must have a shape from \(1, 0, 2\) to \(4, 0, 2\) or from \(1, 1, 2\) to"
    ):
        bench.runner.run(inputs_of(2, 7, 3))
    with pytest.raises(InputError, match=r"in one profile with the other inputs; got \(2, 16, 2\)"):
        bench.runner.run(inputs_of(2, 1, 16))


def test_a_profile_that_is_refused() -> None:
    bench = Bench(PROMPT_AND_STEP)
    bench.trt.refuses.add("profile")
    with pytest.raises(RotaryPressError, match="refuses its profile 1"):
        bench.runner.run(inputs_of(1, 1, 3))
    bench.check(1, 3, 0)


def test_an_axis_too_many_and_a_shape_that_is_fixed() -> None:
    bench = Bench(FakeModel(least=(2, 3, 1), most=(2, 3, 1)))
    bench.check(2, 3, 1)
    with pytest.raises(InputError, match=r"ids must have a shape from \(2, 3\) to \(2, 3\), .*; got \(2, 4\)"):
        bench.runner.run(inputs_of(2, 4, 1))
    inputs = inputs_of(2, 3, 1)
    with pytest.raises(InputError, match=r"got \(1, 2, 3\)"):
        bench.runner.run(inputs | {"ids": inputs["ids"][None]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs.pop("mask"), "takes ids, mask, past, not ids, past: it is not the engine of this model"),
        (lambda inputs: inputs.update(more=inputs["ids"]), "takes ids, mask, past, not ids, mask, more, past"),
        (lambda inputs: inputs.clear(), "takes ids, mask, past, not nothing"),
        (lambda inputs: inputs.update(ids=inputs["ids"] * 1.0), "takes ids as INT64, not as float64"),
        (lambda inputs: inputs.update(past=inputs["past"].astype(int)), "takes past as FLOAT, not as int64"),
    ],
)
def test_inputs_of_another_model_are_refused(change: Callable[[Any], object], message: str) -> None:
    bench = Bench()
    inputs = inputs_of(1, 2, 3)
    change(inputs)
    with pytest.raises(BundleError, match=message):
        bench.runner.run(inputs)
    bench.check(1, 2, 3)


def test_bfloat16_is_no_integer() -> None:
    bench = Bench(FakeModel("BF16"))
    inputs = inputs_of(1, 2, 3)
    with pytest.raises(BundleError, match="takes past as BF16, not as uint16"):
        bench.runner.run(inputs | {"past": inputs["past"].astype(np.uint16)})


@each_cuda
@each_trt
def test_a_file_that_is_no_engine_is_refused_with_what_was_said(
    make: Callable[[FakeGpu], Cuda], is_native: bool
) -> None:
    gpu = FakeGpu()
    trt = FakeTrt(gpu, {}, is_native=is_native)
    with pytest.raises(
        BundleError, match=rf"^{FILE} cannot be loaded by {trt.__name__} 11\.4\.0: magicTag is wrong\. B"
    ):
        TensorRTRunner(trt, make(gpu), b"nonsense", FILE)
    gc.collect()
    assert gpu.is_clean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "INT8"}, "its tensor past is INT8"),
        ({"location": fake_cuda.TensorLocation.HOST}, "its tensor mask is not on the GPU"),
    ],
)
def test_an_engine_of_others_is_refused(change: dict[str, Any], message: str) -> None:
    gpu = FakeGpu()
    trt = FakeTrt(gpu, {PLAN: replace(FakeModel(), **change)})
    with pytest.raises(BundleError, match=f"{FILE} is no engine of Rotary Press: {message}"):
        TensorRTRunner(trt, MAKERS["cuda-bindings"](gpu), PLAN, FILE)
    assert gpu.is_clean


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("ids", r"refuses the shape \(1, 2\) of ids: shape refused\.$"),
        ("infer", "cannot tell the shapes of its outputs: sizes differ"),
        ("past address", "refuses memory for past: no reason given"),
        ("execute", "failed on the GPU: no kernel image is available"),
    ],
)
@each_trt
def test_what_an_engine_refuses_is_an_error(refused: str, message: str, is_native: bool) -> None:
    bench = Bench(is_native=is_native)
    bench.trt.refuses.add(refused)
    with pytest.raises(RotaryPressError, match=message):
        bench.runner.run(inputs_of(1, 2, 1))
    assert not any(bench.gpu.streams.values()), "nothing is left on the stream"
    bench.trt.refuses.clear()
    bench.check(1, 2, 1)
    bench.runner.close()
    assert bench.gpu.is_clean


def test_outputs_whose_shapes_depend_on_data_are_refused() -> None:
    bench = Bench(FakeModel(unknown=True))
    with pytest.raises(BundleError, match="the shapes of its outputs depend on data"):
        bench.runner.run(inputs_of(1, 2, 1))


@each_cuda
@pytest.mark.parametrize("step", ["scratch", "context", "runtime"])
def test_what_fails_while_loading_gives_all_back(make: Callable[[FakeGpu], Cuda], step: str) -> None:
    gpu = FakeGpu(limit=10 if step == "scratch" else 1000)
    trt = FakeTrt(gpu, {PLAN: FakeModel()})
    if step == "context":
        trt.most_contexts = 0
    if step == "runtime":
        trt.refuses.add("runtime")
    messages = {
        "scratch": "too little memory",
        "context": f"tensorrt 11.4.0 cannot make {FILE} ready to run: out of memory. Often",
        "runtime": "tensorrt 11.4.0 cannot start here: pybind11",
    }
    with pytest.raises(UnavailableError, match=messages[step]):
        TensorRTRunner(trt, make(gpu), PLAN, FILE)
    gc.collect()
    assert gpu.is_clean


@each_cuda
def test_a_run_for_which_memory_is_too_little_spoils_nothing(make: Callable[[FakeGpu], Cuda]) -> None:
    bench = Bench(make=make)
    bench.check(1, 2, 1)
    bench.gpu.limit = bench.gpu.used + 40
    for _ in range(2):
        with pytest.raises(UnavailableError, match="too little memory"):
            bench.runner.run(inputs_of(4, 16, 16))
    bench.check(1, 2, 1)
    bench.gpu.limit = 1 << 20
    bench.check(4, 16, 16)
    bench.runner.close()
    gc.collect()
    assert bench.gpu.is_clean


def test_a_gpu_that_fails_is_an_error_and_closing_gives_back_the_rest() -> None:
    bench = Bench()
    bench.check(1, 2, 1)
    bench.runtime.fails["cudaMemcpyAsync"] = CudaRuntimeError.cudaErrorIllegalAddress
    with pytest.raises(RotaryPressError, match="cudaMemcpyAsync failed: cudaErrorIllegalAddress"):
        bench.runner.run(inputs_of(1, 2, 1))
    bench.runtime.fails["cudaFreeHost"] = CudaRuntimeError.cudaErrorIllegalAddress
    with pytest.raises(RotaryPressError, match="cudaFreeHost failed"):
        bench.runner.close()
    assert not bench.gpu.memory
    assert not bench.gpu.streams
    bench.runner.close()


def test_work_that_could_not_be_waited_for_is_waited_for_before_memory_goes() -> None:
    bench = Bench()
    bench.runtime.fails["cudaStreamSynchronize"] = CudaRuntimeError.cudaErrorIllegalAddress
    with pytest.raises(RotaryPressError, match="cudaStreamSynchronize failed"):
        bench.runner.run(inputs_of(1, 2, 1))
    bench.runtime.fails.clear()
    bench.runner.close()
    assert bench.gpu.is_clean


@each_cuda
def test_closed_by_a_with_statement(make: Callable[[FakeGpu], Cuda]) -> None:
    bench = Bench(make=make)
    with bench.runner as runner:
        for _ in range(3):
            bench.check(1, 2, 3)
    assert bench.gpu.is_clean
    with pytest.raises(UserError, match="was closed: load it again"):
        runner.run(inputs_of(1, 2, 3))
    runner.close()


@each_cuda
def test_a_runner_that_is_forgotten_gives_all_back(make: Callable[[FakeGpu], Cuda]) -> None:
    bench = Bench(make=make)
    for _ in range(3):
        bench.check(1, 2, 3)
    del bench.runner
    assert bench.gpu.is_clean


def test_code_of_an_engine_runs_only_where_it_is_trusted() -> None:
    for allowed in (False, True):
        (runtime,) = Bench(host_code=allowed).trt.runtimes
        assert runtime.engine_host_code_allowed is allowed


def test_the_gpu_of_the_runner_is_used_whatever_is_current() -> None:
    gpu = FakeGpu()
    trt = FakeTrt(gpu, {PLAN: FakeModel()})
    gpu.device = 2
    cuda = MAKERS["cuda-bindings"](gpu)
    gpu.device = 1
    runner = TensorRTRunner(trt, cuda, PLAN, FILE)
    runner.run(inputs_of(1, 2, 1))
    assert trt.devices == [2, 2]
    assert gpu.device == 1


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns far more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
@each_cuda
@each_trt
def test_threads_may_share_a_runner(make: Callable[[FakeGpu], Cuda], is_native: bool) -> None:
    bench = Bench(make=make, is_native=is_native, graphs=2)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                inputs = inputs_of(1 + number % 2, 1 + (number + turn) % 3, number)
                found = bench.runner.run(inputs)
                for name, expected in bench.model.compute(**inputs).items():
                    np.testing.assert_array_equal(found[name], expected)
        except BaseException as error:  # noqa: BLE001  # told below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=25),
    st.integers(0, 3),
    st.sampled_from(["FLOAT", "HALF", "BF16"]),
    st.sampled_from(sorted(MAKERS)),
    st.booleans(),
)
def test_any_sequence_of_shapes(sequence: list[Sizes], graphs: int, kind: str, name: str, is_native: bool) -> None:
    """The fakes look after sizes, lifetimes and the order of things."""
    bench = Bench(FakeModel(kind), MAKERS[name], graphs=graphs, is_native=is_native)
    recent: list[Sizes] = []
    for sizes in sequence:
        done = bench.check(*sizes)
        if "launch" in done:
            assert sizes in recent
        recent = [*[other for other in recent if other != sizes], sizes][-graphs:] if graphs else []
        assert bench.graphs <= (0 if is_native else graphs)
        for tensor, buffer in bench.runner._buffers.items():
            assert buffer.device.size >= 1, tensor
    bench.runner.close()
    assert bench.gpu.is_clean


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat16_is_rounded_as_torch_does(values: list[float]) -> None:
    import torch

    array = np.array(values, np.float32)
    tensor = Tensor("x", "BF16")
    memory = np.zeros(2 * len(values), np.uint8)
    tensor.write(array, memory)
    expected = torch.tensor(array).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(tensor.read((len(values),), memory), expected)


NAMES = {
    "IExecutionContext": [
        "set_device_memory",
        "set_optimization_profile_async",
        "set_input_shape",
        "infer_shapes",
        "get_tensor_shape",
        "get_max_output_size",
        "set_tensor_address",
        "execute_async_v3",
    ],
    "ICudaEngine": [
        "num_io_tensors",
        "num_optimization_profiles",
        "device_memory_size_v2",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_shape",
        "get_tensor_profile_shape",
        "create_execution_context",
        "create_runtime_config",
    ],
    "IRuntimeConfig": ["cuda_graph_strategy"],
    "Runtime": ["deserialize_cuda_engine", "engine_host_code_allowed"],
}


@pytest.fixture(scope="module")
def real() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def test_the_fakes_are_as_the_real_tensorrt(real: Any) -> None:
    absent = {"set_device_memory", "device_memory_size_v2"}  # of TensorRT alone, which makes no graphs itself
    for kind, names in NAMES.items():
        for name in names:
            assert hasattr(getattr(real, kind), name) or name in absent, f"{kind}.{name}"
    fakes = {"IExecutionContext": fake_cuda.FakeContext, "ICudaEngine": fake_cuda.FakeEngine}
    for kind, fake in fakes.items():
        public = {
            name for name, value in vars(fake).items() if not name.startswith("_") and not isinstance(value, bool)
        }
        assert public - {"trt", "model", "scratch"} == set(NAMES[kind])
    for name in (
        "DataType",
        "TensorIOMode",
        "TensorLocation",
        "ExecutionContextAllocationStrategy",
        "CudaGraphStrategy",
    ):
        for member in getattr(fake_cuda, name):
            assert int(getattr(real, name).__members__[member.name]) == member.value
    for severity in fake_cuda.Severity:
        assert int(real.ILogger.Severity.__members__[severity.name]) == severity


@pytest.mark.parametrize("plan", [b"", b"nonsense" * 100], ids=["empty", "nonsense"])
def test_the_real_tensorrt_rtx_refuses_what_is_no_engine(plan: bytes, real: Any) -> None:
    """Its own words are quoted. It needs no GPU for that."""
    gpu = FakeGpu()
    with pytest.raises(
        BundleError, match=rf"^{FILE} cannot be loaded by tensorrt_rtx .*(magicTag|empty memory buffer)"
    ):
        TensorRTRunner(real, BindingsCuda(FakeRuntime(gpu)), plan, FILE)
    assert gpu.is_clean
