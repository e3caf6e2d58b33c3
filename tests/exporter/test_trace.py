"""torch -> ONNX: the interface is the promised one, and really dynamic."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from exporter import load_model, models
from exporter.errors import TraceError
from exporter.tasks import TASKS, TaskName, input_names
from exporter.trace import OPSET, check_interface, trace

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 13,
    "pad_token_id": 1,
    "num_labels": 5,
}
Shape = tuple[str | int, ...]
Traced = tuple[torch.nn.Module, onnx.ModelProto, dict[str, Shape]]
THREE = ("input_ids", "attention_mask", "token_type_ids")


def small(name: str, **values: Any) -> Any:
    """A model of ours whose parameters, biases included, are random."""
    model_class = getattr(models, name)
    model = model_class(model_class.config_class(**SIZES | values)).eval()
    model.initialize_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(
    scope="module",
    params=[
        ("RobertaPreLayerNormModel", "feature-extraction", {}),
        ("RoFormerForTokenClassification", "token-classification", {"type_vocab_size": 1}),
        "shared",
    ],
    ids=lambda param: param if isinstance(param, str) else param[1],
)
def case(request: pytest.FixtureRequest, seed: int) -> Traced:
    """A model, its graph, and the outputs that the graph must have."""
    if request.param == "shared":  # the text classifier of every test of the exporter
        model: Any = load_model(request.getfixturevalue("checkpoint"))
        return model, request.getfixturevalue("traced"), {"logits": ("batch", 3)}
    architecture, task, values = request.param
    torch.manual_seed(seed)
    model = small(architecture, **values)
    outputs: dict[str, dict[str, Shape]] = {
        "feature-extraction": {"last_hidden_state": ("batch", "sequence", 8), "pooler_output": ("batch", 8)},
        "token-classification": {"logits": ("batch", "sequence", 5)},
    }
    name: TaskName = task
    return model, trace(model, TASKS[name]), outputs[task]


def test_the_interface_is_the_promised_one(case: Traced) -> None:
    model, graph, outputs = case
    config: Any = model.config
    names = THREE if config.type_vocab_size > 1 else THREE[:2]
    check_interface(graph, dict.fromkeys(names, ("batch", "sequence")), outputs)
    assert {value.type.tensor_type.elem_type for value in graph.graph.input} == {TensorProto.INT64}
    assert {value.type.tensor_type.elem_type for value in graph.graph.output} == {TensorProto.FLOAT}


def test_the_graph_is_plain_onnx_with_its_weights_inside(case: Traced) -> None:
    _, graph, _ = case
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == OPSET
    assert {node.domain for node in graph.graph.node} == {""}
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in graph.graph.initializer)


def test_every_shape_computes_what_torch_computes(case: Traced) -> None:
    model, graph, outputs = case
    config: Any = model.config
    random = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in [(1, 1), (1, 2), (2, 7), (5, 3), (1, config.max_tokens), (3, config.max_tokens)]:
        mask = np.arange(shape[1]) < random.integers(1, shape[1], (shape[0], 1), endpoint=True)
        inputs = {
            "input_ids": np.where(mask, random.integers(2, config.vocab_size, shape), config.pad_token_id),
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": random.integers(0, config.type_vocab_size, shape),
        }
        inputs = {name: inputs[name] for name in input_names(config)}
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        for name, found in zip(outputs, session.run(list(outputs), inputs), strict=True):
            np.testing.assert_allclose(found, getattr(expected, name), rtol=1e-4, atol=1e-5, err_msg=f"{name} {shape}")


def interface(inputs: dict[str, Shape], outputs: dict[str, Shape]) -> onnx.ModelProto:
    """A graph with nothing but an interface."""
    ins, outs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    )
    return helper.make_model(helper.make_graph([], "interface", ins, outs))


PROMISED_IN: dict[str, Shape] = dict.fromkeys(THREE, ("batch", "sequence"))
PROMISED_OUT: dict[str, Shape] = {"last_hidden_state": ("batch", "sequence", 8), "pooler_output": ("batch", 8)}
DRIFTED: dict[str, tuple[dict[str, Shape], dict[str, Shape]]] = {
    "fixed batch": (PROMISED_IN | {"input_ids": (2, "sequence")}, PROMISED_OUT),
    "fixed sequence": (PROMISED_IN | {"attention_mask": ("batch", 7)}, PROMISED_OUT),
    "another axis name": (PROMISED_IN | {"input_ids": ("batch", "s1")}, PROMISED_OUT),
    "an input lacks": (dict.fromkeys(THREE[:2], ("batch", "sequence")), PROMISED_OUT),
    "an input too many": (PROMISED_IN | {"position_ids": ("batch", "sequence")}, PROMISED_OUT),
    "inputs in another order": (dict(reversed(PROMISED_IN.items())), PROMISED_OUT),
    "another size": (PROMISED_IN, PROMISED_OUT | {"pooler_output": ("batch", 9)}),
    "another rank": (PROMISED_IN, PROMISED_OUT | {"pooler_output": ("batch", 8, 1)}),
    "an output lacks": (PROMISED_IN, {"last_hidden_state": ("batch", "sequence", 8)}),
    "outputs in another order": (PROMISED_IN, dict(reversed(PROMISED_OUT.items()))),
}


def test_the_promised_interface_is_accepted() -> None:
    check_interface(interface(PROMISED_IN, PROMISED_OUT), PROMISED_IN, PROMISED_OUT)


@pytest.mark.parametrize(("inputs", "outputs"), DRIFTED.values(), ids=DRIFTED)
def test_a_difference_is_refused(inputs: dict[str, Shape], outputs: dict[str, Shape]) -> None:
    wrong = "inputs" if list(inputs.items()) != list(PROMISED_IN.items()) else "outputs"
    with pytest.raises(TraceError, match=f"traced graph has {wrong} .*; the task table promises"):
        check_interface(interface(inputs, outputs), PROMISED_IN, PROMISED_OUT)


@pytest.fixture
def torch_gives(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``torch_gives(inputs, outputs)``: what torch is asked to export, while it answers with such a graph."""

    def give(*sides: dict[str, Shape]) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def export(_model: Any, **options: Any) -> SimpleNamespace:
            asked.update(options)
            return SimpleNamespace(model_proto=interface(*sides))

        monkeypatch.setattr(torch.onnx, "export", export)
        return asked

    return give


@pytest.mark.parametrize(("inputs", "outputs"), DRIFTED.values(), ids=DRIFTED)
def test_a_graph_that_drifted_is_never_returned(
    inputs: dict[str, Shape], outputs: dict[str, Shape], torch_gives: Callable[..., dict[str, Any]]
) -> None:
    torch_gives(inputs, outputs)
    level = logging.getLogger("torch.onnx").level
    with pytest.raises(TraceError):
        trace(small("RobertaPreLayerNormModel"), TASKS["feature-extraction"])
    assert logging.getLogger("torch.onnx").level == level


def test_outputs_that_a_model_does_not_compute_are_left_out(torch_gives: Callable[..., dict[str, Any]]) -> None:
    asked = torch_gives(PROMISED_IN, {"last_hidden_state": ("batch", "sequence", 8)})
    trace(small("RoFormerModel"), TASKS["feature-extraction"])  # this family has no pooler
    assert asked["output_names"] == ["last_hidden_state"]


def test_the_longest_sequence_is_what_the_positions_hold(
    checkpoint: Path, torch_gives: Callable[..., dict[str, Any]]
) -> None:
    asked = torch_gives(PROMISED_IN, {"logits": ("batch", 3)})
    model = load_model(checkpoint)
    trace(model, TASKS["text-classification"])
    assert asked["dynamic_shapes"]["input_ids"][1].max == model.config.max_tokens == 20
