"""Tiny traced models (each traced once per run), and ways to write, run and compare graphs."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper, parser
from onnx.reference import ReferenceEvaluator

from exporter import models
from exporter.tasks import FAMILY_PREFIX, TASKS, TaskName, expected_fusions
from exporter.trace import trace
from graph_passes import pipeline
from graph_passes.graph_pass import PassReport

Feeds = dict[str, NDArray[Any]]

# No size that is a power of two or equals another: head size 6, and widths that show a transposed weight.
TINY: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "num_labels": 3,
}
# Every head of both families, with one layer where a second would show nothing new: tracing takes seconds.
TRACED: dict[str, tuple[str, TaskName, dict[str, Any]]] = {
    f"{family}-{task}": (family, task, {} if task == "fill-mask" else {"num_hidden_layers": 1})
    for family in FAMILY_PREFIX
    for task in TASKS
} | {
    "roformer-with-rotary-value-and-projection": (
        "roformer",
        "feature-extraction",
        {"rotary_value": True, "embedding_size": 20},
    )
}


@dataclass(frozen=True)
class Traced:
    """A tiny model before and after fusion. The graphs are shared: copy before changing one."""

    name: str
    config: Any
    plain: ModelProto
    fused: ModelProto
    reports: dict[str, PassReport]


@functools.cache
def trace_tiny(name: str) -> Traced:
    family, task, options = TRACED[name]
    torch.manual_seed(0)
    model_class = getattr(models, FAMILY_PREFIX[family] + TASKS[task].suffix)
    config = model_class.config_class(**TINY | options)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no bias stays zero and no gamma one
            parameter.add_(0.2 * torch.randn_like(parameter))
    plain = trace(model, TASKS[task])
    fused, reports = pipeline.fuse(plain, expected=expected_fusions(config))
    gc.freeze()
    return Traced(name, config, plain, fused, {report.name: report for report in reports})


@pytest.fixture(scope="session", autouse=True)
def _cheap_collections() -> None:
    """The compiler collects garbage after each run: what torch keeps for good (more after a trace) need not be seen."""
    gc.freeze()


@pytest.fixture
def get_traced() -> Callable[[str], Traced]:
    """``get_traced(name)``: one of the tiny models."""
    return trace_tiny


@pytest.fixture(params=TRACED, scope="session")
def traced(request: pytest.FixtureRequest) -> Traced:
    """Every head of every family."""
    return trace_tiny(request.param)


@pytest.fixture(params=[f"{family}-fill-mask" for family in FAMILY_PREFIX], scope="session")
def masked_lm(request: pytest.FixtureRequest) -> Traced:
    """One model of each family."""
    return trace_tiny(request.param)


@pytest.fixture
def rewrite() -> Callable[..., ModelProto]:
    """``rewrite(text, (old, new), …)``: the model that an ONNX text describes after these replacements.

    Each must find something, so that a case cannot go stale.
    """

    def parse(text: str, *replacements: tuple[str, str]) -> ModelProto:
        for old, new in replacements:
            assert old in text, f"{old!r} is not in the text"
            text = text.replace(old, new)
        return parser.parse_model(text)

    return parse


@pytest.fixture
def make_feeds() -> Callable[..., Feeds]:
    """``make_feeds(model, seed=…, scale=…, **sizes)``: random inputs; ``sizes`` are those of the symbolic axes."""

    def make(model: ModelProto, *, seed: int = 0, scale: float = 1.0, **sizes: int) -> Feeds:
        random = np.random.default_rng(seed)
        known = {"batch": 2, "sequence": 5} | sizes
        feeds: Feeds = {}
        for value in model.graph.input:
            tensor = value.type.tensor_type
            shape = [known[axis.dim_param] if axis.dim_param else axis.dim_value for axis in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if value.name == "attention_mask":
                lengths = random.integers(1, shape[1] + 1, (shape[0], 1))
                feeds[value.name] = (np.arange(shape[1]) < lengths).astype(dtype)
            elif np.issubdtype(dtype, np.integer):
                below = 2 if value.name == "token_type_ids" else TINY["vocab_size"]
                feeds[value.name] = random.integers(0, below, shape, dtype=dtype)
            else:
                feeds[value.name] = (scale * random.standard_normal(shape)).astype(dtype)
        return feeds

    return make


@pytest.fixture
def run() -> Callable[[ModelProto, Feeds], Feeds]:
    """``run(model, feeds)``: the outputs by name, of the graph as it is written."""

    def evaluate(model: ModelProto, feeds: Feeds) -> Feeds:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return evaluate


@pytest.fixture
def run_strictly() -> Callable[[ModelProto, Feeds], Feeds]:
    """``run_strictly(model, feeds)``: the same by the standard's reference, in the dtypes that the graph says.

    ONNX Runtime's CPU computes half precision in float32 and may skip a rounding in between.
    """

    def evaluate(model: ModelProto, feeds: Feeds) -> Feeds:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, feeds)
        return dict(zip((output.name for output in model.graph.output), map(np.asarray, results), strict=True))

    return evaluate


@pytest.fixture
def assert_equal(
    run: Callable[[ModelProto, Feeds], Feeds], make_feeds: Callable[..., Feeds]
) -> Callable[[ModelProto, ModelProto], None]:
    """``assert_equal(before, after)``: same outputs, in name, order and value, at three sizes."""

    def check(before: ModelProto, after: ModelProto, atol: float = 1e-5) -> None:
        assert [value.name for value in before.graph.input] == [value.name for value in after.graph.input]
        for seed, (batch, sequence) in enumerate([(2, 5), (1, 1), (3, 13)]):
            feeds = make_feeds(before, seed=seed, batch=batch, sequence=sequence)
            expected, found = run(before, feeds), run(after, feeds)
            assert list(found) == list(expected)
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=atol, err_msg=name)

    return check


@pytest.fixture
def dtypes_of() -> Callable[[ModelProto], Mapping[str, int]]:
    """``dtypes_of(model)``: the ONNX element type of every tensor, as inference finds it."""

    def infer(model: ModelProto) -> Mapping[str, int]:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
        values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        return values | {weight.name: weight.data_type for weight in graph.initializer}

    return infer


def interface(model: ModelProto) -> dict[str, list[Any]]:
    """Names, element types and axes of the inputs and of the outputs."""
    return {
        kind: [
            [
                value.name,
                helper.tensor_dtype_to_string(value.type.tensor_type.elem_type).removeprefix("TensorProto."),
                [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            ]
            for value in values
        ]
        for kind, values in (("inputs", model.graph.input), ("outputs", model.graph.output))
    }


@pytest.fixture
def interface_of() -> Callable[[ModelProto], dict[str, list[Any]]]:
    """``interface_of(model)``: names, element types and axes of the inputs and of the outputs."""
    return interface
