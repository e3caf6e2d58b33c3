"""torch -> ONNX: the interface is the promised one, and really dynamic."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from exporter import load_model
from exporter.errors import ConfigError, TraceError
from exporter.models import (
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
    RoFormerConfig,
    RoFormerForCausalLM,
    RoFormerModel,
)
from exporter.tasks import TASKS, TensorSpec
from exporter.trace import OPSET, Interface, check_interface, trace
from tests.traced_models import MODELS, VARIANTS, TracedModel, make_model, trace_model

Arrays = dict[str, NDArray[Any]]
Sizes = Mapping[str, int]


@pytest.fixture(scope="module", params=MODELS | VARIANTS)
def traced(request: pytest.FixtureRequest) -> TracedModel:
    """Every task of every family, and what changes a graph."""
    return trace_model(request.param)


def run(graph: onnx.ModelProto, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_torch(interface: Interface, inputs: Arrays) -> Arrays:
    with torch.no_grad():
        tensors = interface(*(torch.from_numpy(inputs[spec.name]) for spec in interface.inputs))
    return {spec.name: tensor.numpy() for spec, tensor in zip(interface.outputs, tensors, strict=True)}


def make_inputs(specs: tuple[TensorSpec, ...], sizes: Sizes, random: np.random.Generator) -> Arrays:
    """Random inputs with some padding on the right, of the caches as well."""
    inputs: Arrays = {}
    for spec in specs:
        shape = [
            axis if isinstance(axis, int) else sum(sizes[part] for part in axis.split(" + ")) for axis in spec.axes
        ]
        if spec.name.endswith("mask"):
            lengths = random.integers(1, shape[-1], (*shape[:-1], 1), endpoint=True)
            inputs[spec.name] = (np.arange(shape[-1]) < lengths).astype(np.int64)
        elif spec.limit is not None:
            inputs[spec.name] = random.integers(0, spec.limit, shape)
        else:
            inputs[spec.name] = random.standard_normal(shape).astype(np.float32)
    return inputs


def sizes_of(traced: TracedModel) -> Iterator[dict[str, int]]:
    """Sizes other than the sampled ones: one of everything, nothing and something cached, as long as can be."""
    longest = traced.config.max_tokens
    others: list[dict[str, int]] = [
        {"batch": 1, "choices": 1, "encoder_sequence": 1},
        {"batch": 3, "choices": 5, "encoder_sequence": 2},
        {"batch": 1, "choices": 4, "encoder_sequence": 13},
    ]
    used = {axis for spec in traced.interface.inputs for axis in spec.axes}
    for rest, past, sequence in product(others, (0, 1, 4, longest - 1), (1, 3, longest)):
        if "past" not in used:
            if past == 0 and sequence <= longest:
                yield rest | {"sequence": sequence}
        elif past + sequence <= longest:
            yield rest | {"past": past, "sequence": sequence}


def assert_equal(found: Arrays, expected: Arrays, note: object) -> None:
    """float32 twice, where only the order of sums differs: at scores of up to ten, a dozen roundings are 1e-5."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=f"{name} {note}")


# real graphs


def test_the_interface_is_the_promised_one(traced: TracedModel) -> None:
    recipe = (MODELS | VARIANTS)[traced.name]
    graph, task = traced.plain.graph, TASKS[recipe.task]
    inputs = task.input_specs(traced.config, position_ids=recipe.position_ids)
    outputs = [
        spec
        for spec in task.output_specs(traced.config)
        if spec.name != "pooler_output" or recipe.family == "roberta-prelayernorm"
    ]
    types = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    for values, specs in ((graph.input, inputs), (graph.output, outputs)):
        found = [
            (
                value.name,
                value.type.tensor_type.elem_type,
                tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]
        assert found == [(spec.name, types[spec.dtype], spec.axes) for spec in specs]


def test_the_graph_is_plain_onnx_with_its_weights_inside(traced: TracedModel) -> None:
    onnx.checker.check_model(traced.plain, full_check=True)
    assert {entry.domain: entry.version for entry in traced.plain.opset_import}[""] == OPSET
    assert {node.domain for node in traced.plain.graph.node} == {""}
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in traced.plain.graph.initializer)


def test_the_graph_names_its_layers_but_no_file(traced: TracedModel) -> None:
    notes = [entry for node in traced.plain.graph.node for entry in node.metadata_props]
    assert any(entry.key == "namespace" for entry in notes)
    assert not any(".py" in entry.value for entry in notes)


def test_every_size_computes_what_torch_computes(traced: TracedModel) -> None:
    random = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(traced.plain.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in traced.interface.outputs]
    seen = 0
    for sizes in sizes_of(traced):
        inputs = make_inputs(traced.interface.inputs, sizes, random)
        found = dict(zip(names, session.run(names, inputs), strict=True))
        assert_equal(found, run_torch(traced.interface, inputs), sizes)
        seen += 1
    assert seen >= (3 if traced.config.max_tokens < 3 else 9)


def test_every_input_matters(traced: TracedModel) -> None:
    """An input that the graph takes and forgets would pass every comparison in which it is not moved."""
    random = np.random.default_rng(0)
    sizes = {"batch": 2, "choices": 2, "sequence": 1, "past": 1, "encoder_sequence": 5}
    if traced.config.max_tokens > 3:
        sizes |= {"sequence": 3, "past": 4}
    inputs = make_inputs(traced.interface.inputs, sizes, random)
    inputs |= {name: np.ones_like(array) for name, array in inputs.items() if name.endswith("mask")}
    before = run(traced.plain, inputs)
    for spec in traced.interface.inputs:
        moved = inputs[spec.name].copy()
        moved[..., 0] = moved[..., 0] + 1 if spec.limit is None else (moved[..., 0] + 1) % spec.limit
        after = run(traced.plain, inputs | {spec.name: moved})
        changed = [name for name, array in before.items() if not np.allclose(after[name], array, atol=1e-4)]
        alone = spec.name == "attention_mask" and moved.shape[-1] == 1  # the only token is attended to in any case
        assert changed or alone, spec.name


GENERATORS = [name for name, recipe in (MODELS | VARIANTS).items() if recipe.task == "text-generation"]


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_one_graph_serves_the_prompt_and_every_step(name: str, side: str) -> None:
    """A prompt of padded rows and then token by token: as one pass of torch without a cache."""
    traced = trace_model(name)
    specs, random = traced.interface.inputs, np.random.default_rng(1)
    total = min(7, traced.config.max_tokens)
    prompt = max(1, total - 3)
    whole = make_inputs(specs, {"batch": 2, "past": 0, "sequence": total, "encoder_sequence": 5}, random)
    mask = np.ones((2, total), np.int64)
    mask[1, : prompt // 2] = 0
    if side == "right":
        mask[:, :prompt] = mask[:, :prompt][:, ::-1]
    whole["attention_mask"] = mask
    ordinary = random.integers(2, 41, (2, total))
    whole["input_ids"] = np.where(mask == 1, ordinary, traced.config.pad_token_id)
    expected = run_torch(traced.interface, whole)["logits"]
    cache = {name: array for name, array in whole.items() if name.startswith("past_key_values.")}
    found, start = [], 0
    for end in range(prompt, total + 1):
        step = whole | cache | {"attention_mask": mask[:, :end]}
        for given in ("input_ids", "token_type_ids", "position_ids"):
            if given in whole:
                step[given] = whole[given][:, start:end]
        outputs = run(traced.plain, step)
        cache = {
            key.replace("present.", "past_key_values."): array
            for key, array in outputs.items()
            if key.startswith("present.")
        }
        found.append(outputs["logits"])
        start = end
    # As assert_equal; where a row is padding, neither its logits nor its share of the cache are anybody's.
    counted = mask == 1
    np.testing.assert_allclose(np.concatenate(found, axis=1)[counted], expected[counted], rtol=1e-5, atol=1e-5)


def test_a_row_that_sees_nothing_of_the_encoder_is_finite() -> None:
    for name in ("roformer-with-cross-attention", "roberta-prelayernorm-with-cross-attention"):
        traced = trace_model(name)
        sizes = {"batch": 2, "past": 2, "sequence": 3, "encoder_sequence": 4}
        inputs = make_inputs(traced.interface.inputs, sizes, np.random.default_rng(0))
        inputs["encoder_attention_mask"][1] = 0
        found = run(traced.plain, inputs)
        assert all(np.isfinite(array).all() for array in found.values())
        assert_equal(found, run_torch(traced.interface, inputs), name)


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_a_checkpoint_with_relative_positions_is_loaded_and_traced(kind: str, tmp_path: Path) -> None:
    known = "keys" if kind == "relative_key" else "positions"
    name = f"roberta-prelayernorm-with-relative-{known}"
    make_model(name).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.position_embedding_type == kind
    traced = trace_model(name)
    inputs = make_inputs(traced.interface.inputs, {"batch": 2, "past": 1, "sequence": 6}, np.random.default_rng(0))
    interface = Interface(loaded, TASKS[MODELS[name].task if name in MODELS else VARIANTS[name].task])
    assert_equal(run(traced.plain, inputs), run_torch(interface, inputs), kind)


# the interface


SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 13,
    "pad_token_id": 1,
}


def pooled() -> Interface:
    """The one that PROMISED_IN and PROMISED_OUT describe."""
    return Interface(RobertaPreLayerNormModel(RobertaPreLayerNormConfig(**SIZES)), TASKS["feature-extraction"])


Shape = tuple[str | int, ...]
Side = dict[str, Shape]


def graph_of(inputs: Side, outputs: Side) -> onnx.ModelProto:
    """A graph with nothing but an interface."""
    ins, outs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    )
    return helper.make_model(helper.make_graph([], "interface", ins, outs))


def specs_of(side: Side) -> list[TensorSpec]:
    return [TensorSpec(name=name, axes=axes) for name, axes in side.items()]


THREE = ("input_ids", "attention_mask", "token_type_ids")
PROMISED_IN: Side = dict.fromkeys(THREE, ("batch", "sequence"))
PROMISED_OUT: Side = {"last_hidden_state": ("batch", "sequence", 8), "pooler_output": ("batch", 8)}
DRIFTED: dict[str, tuple[Side, Side]] = {
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
    check_interface(graph_of(PROMISED_IN, PROMISED_OUT), specs_of(PROMISED_IN), specs_of(PROMISED_OUT))


@pytest.mark.parametrize(("inputs", "outputs"), DRIFTED.values(), ids=DRIFTED)
def test_a_difference_is_refused(inputs: Side, outputs: Side) -> None:
    wrong = "inputs" if list(inputs.items()) != list(PROMISED_IN.items()) else "outputs"
    with pytest.raises(TraceError, match=f"traced graph has {wrong} .*; the task table promises"):
        check_interface(graph_of(inputs, outputs), specs_of(PROMISED_IN), specs_of(PROMISED_OUT))


@pytest.fixture
def torch_gives(monkeypatch: pytest.MonkeyPatch) -> Callable[[Side, Side], dict[str, Any]]:
    """``torch_gives(inputs, outputs)``: what torch is asked to export, while it answers with such a graph."""

    def give(inputs: Side, outputs: Side) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def export(_interface: Any, samples: tuple[torch.Tensor, ...], **options: Any) -> SimpleNamespace:
            asked.update(options, samples=samples)
            return SimpleNamespace(model_proto=graph_of(inputs, outputs))

        monkeypatch.setattr(torch.onnx, "export", export)
        return asked

    return give


@pytest.mark.parametrize(("inputs", "outputs"), DRIFTED.values(), ids=DRIFTED)
def test_a_graph_that_drifted_is_never_returned(
    inputs: Side, outputs: Side, torch_gives: Callable[..., dict[str, Any]]
) -> None:
    torch_gives(inputs, outputs)
    level = logging.getLogger("torch.onnx").level
    with pytest.raises(TraceError):
        trace(pooled())
    assert logging.getLogger("torch.onnx").level == level


def test_outputs_that_a_model_does_not_compute_are_left_out() -> None:
    roformer = RoFormerModel(RoFormerConfig(**SIZES))  # this family has no pooler
    pooler_less = RobertaPreLayerNormModel(RobertaPreLayerNormConfig(**SIZES), add_pooling_layer=False)
    for model in (roformer, pooler_less):
        interface = Interface(model, TASKS["feature-extraction"])
        assert [spec.name for spec in interface.outputs] == ["last_hidden_state"]
    assert [spec.name for spec in pooled().outputs] == ["last_hidden_state", "pooler_output"]


def test_an_interface_is_in_evaluation_mode() -> None:
    model = RobertaPreLayerNormModel(RobertaPreLayerNormConfig(**SIZES)).train()
    Interface(model, TASKS["feature-extraction"])
    assert not any(module.training for module in model.modules())


def test_a_config_that_does_not_fit_the_task_is_refused() -> None:
    model = RoFormerForCausalLM(RoFormerConfig(**SIZES))
    with pytest.raises(ConfigError, match="text-generation needs a decoder"):
        Interface(model, TASKS["text-generation"])
    with pytest.raises(ConfigError, match="no table of learnt positions"):
        Interface(RoFormerModel(RoFormerConfig(**SIZES)), TASKS["feature-extraction"], position_ids=True)


@pytest.mark.parametrize("family", ["roformer", "roberta-prelayernorm"])
def test_a_config_that_asks_for_less_is_overruled(family: str) -> None:
    """``return_dict`` and ``use_cache`` of the config are about Python callers: an engine has the table's outputs."""
    name = f"{family}-text-generation"
    model = make_model(name)
    model.config.return_dict = model.config.use_cache = False
    model.config.output_attentions = model.config.output_hidden_states = True
    interface = Interface(model, TASKS["text-generation"])
    sizes = {"batch": 2, "past": 3, "sequence": 2}
    inputs = make_inputs(interface.inputs, sizes, np.random.default_rng(0))
    assert_equal(run_torch(interface, inputs), run_torch(trace_model(name).interface, inputs), family)


def test_the_longest_sequence_is_what_the_positions_hold(
    checkpoint: Path, torch_gives: Callable[..., dict[str, Any]]
) -> None:
    asked = torch_gives(PROMISED_IN, {"logits": ("batch", 3)})
    model = load_model(checkpoint)
    trace(Interface(model, TASKS["text-classification"]))
    [axes] = asked["dynamic_shapes"]
    assert [axis[1].max for axis in axes] == [model.config.max_tokens] * 3 == [20] * 3


@pytest.mark.parametrize("positions", range(1, 20))
def test_samples_are_within_the_positions_and_never_a_constant(
    positions: int, torch_gives: Callable[..., dict[str, Any]]
) -> None:
    """torch.export takes a size of one for a constant. Two cached and two more are the least for a decoder."""
    asked = torch_gives({}, {})
    model = RoFormerForCausalLM(RoFormerConfig(**SIZES | {"max_position_embeddings": positions, "is_decoder": True}))
    with pytest.raises(TraceError):
        trace(Interface(model, TASKS["text-generation"]))
    ids, mask, _, *cache = asked["samples"]
    batch, sequence = ids.shape
    past = cache[0].shape[2]
    assert min(batch, sequence, past) >= 2
    assert mask.shape == (batch, past + sequence)
    assert past + sequence <= max(4, positions)


def drifted_decoder(change: Callable[[str], str | int]) -> tuple[Interface, Side, Side]:
    """A decoder, and its inputs and outputs with every ``past + sequence`` written as ``change(name)`` says."""
    model = RoFormerForCausalLM(RoFormerConfig(**SIZES | {"is_decoder": True}))
    interface = Interface(model, TASKS["text-generation"])
    inputs, outputs = (
        {
            spec.name: tuple(change(spec.name) if axis == "past + sequence" else axis for axis in spec.axes)
            for spec in side
        }
        for side in (interface.inputs, interface.outputs)
    )
    return interface, inputs, outputs


def test_a_sum_is_named_as_promised_wherever_the_exporter_wrote_it(
    torch_gives: Callable[..., dict[str, Any]],
) -> None:
    """torch calls the mask's last axis by a symbol of its own, and writes the terms elsewhere in any order."""
    interface, inputs, outputs = drifted_decoder(lambda name: "s7" if "mask" in name else "sequence + past")
    torch_gives(inputs, outputs | {"present.0.key": ("batch", 2, "s7", 4)})
    graph = trace(interface).graph
    assert [axis.dim_param for axis in graph.input[1].type.tensor_type.shape.dim] == ["batch", "past + sequence"]


def test_a_sum_that_became_a_constant_is_refused(torch_gives: Callable[..., dict[str, Any]]) -> None:
    """It has no name to be replaced, and neither has any other constant."""
    interface, inputs, outputs = drifted_decoder(lambda name: 12 if "mask" in name else "past + sequence")
    torch_gives(inputs, outputs)
    found = r"\('attention_mask', \('batch', 12\)\).*\('past_key_values\.0\.key', \('batch', 2, 'past', 4\)\)"
    with pytest.raises(TraceError, match=rf"has inputs .*{found}.*the task table promises"):
        trace(interface)
