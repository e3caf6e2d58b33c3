"""Tiny traced models, and ways to write, run and compare graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, inliner, parser
from onnx.reference import ReferenceEvaluator

from exporter.tasks import FAMILY_PREFIX, TASKS, expected_fusions
from graph_passes.graph_pass import PassReport
from tests.traced_models import MODELS, TINY, fuse_model, trace_model

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Traced:
    """A tiny model before and after fusion. The graphs are shared: copy before changing one."""

    name: str
    config: Any
    plain: ModelProto
    fused: ModelProto
    reports: dict[str, PassReport]
    expected: dict[str, int]


@functools.cache
def trace_tiny(name: str) -> Traced:
    known = trace_model(name)
    expected = expected_fusions(known.config, TASKS[MODELS[name].task])
    fused, reports = fuse_model(name)
    return Traced(name, known.config, known.plain, fused, {report.name: report for report in reports}, expected)


@pytest.fixture
def get_traced() -> Callable[[str], Traced]:
    """``get_traced(name)``: one of the tiny models."""
    return trace_tiny


@pytest.fixture(params=MODELS, scope="session")
def traced(request: pytest.FixtureRequest) -> Traced:
    """Every task of every family, and more."""
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
        known = {"batch": 2, "choices": 3, "sequence": 5, "past": 2, "encoder_sequence": 4} | sizes
        feeds: Feeds = {}
        for value in model.graph.input:
            tensor = value.type.tensor_type
            shape = [
                sum(known[part] for part in axis.dim_param.split(" + ")) if axis.dim_param else axis.dim_value
                for axis in tensor.shape.dim
            ]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if value.name.endswith("attention_mask"):
                lengths = random.integers(1, shape[-1] + 1, (*shape[:-1], 1))
                feeds[value.name] = (np.arange(shape[-1]) < lengths).astype(dtype)
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
        # It knows Gelu by its definition alone, for which it must know the dtypes.
        inlined = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(model))
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(inlined).run(None, feeds)
        return dict(zip((output.name for output in model.graph.output), map(np.asarray, results), strict=True))

    return evaluate


@pytest.fixture
def assert_equal(
    run: Callable[[ModelProto, Feeds], Feeds], make_feeds: Callable[..., Feeds]
) -> Callable[[ModelProto, ModelProto], None]:
    """``assert_equal(before, after)``: same outputs, in name, order and value, at three sizes."""
    sizes = [
        {"batch": 2, "sequence": 5},
        {"batch": 1, "sequence": 1, "choices": 1, "past": 0, "encoder_sequence": 1},
        {"batch": 3, "sequence": 13, "choices": 2, "past": 7},
    ]

    def check(before: ModelProto, after: ModelProto, atol: float = 1e-5) -> None:
        assert [value.name for value in before.graph.input] == [value.name for value in after.graph.input]
        for seed, known in enumerate(sizes):
            feeds = make_feeds(before, seed=seed, **known)
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
