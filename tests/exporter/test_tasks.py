"""The table of tasks: finding a row, and what each row promises."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from exporter import models
from exporter.errors import ConfigError, UserError
from exporter.manifest import Manifest
from exporter.models.config import FAMILIES
from exporter.tasks import FAMILY_PREFIX, TASKS, Task, TaskName, TensorSpec, expected_fusions, find_task

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
}
DECODER: dict[str, Any] = {"is_decoder": True}
CROSS: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_task = pytest.mark.parametrize("name", TASKS)


def config_of(family: str, **values: Any) -> Any:
    return FAMILIES[family](**SIZES | values)


def test_every_task_has_a_row_and_a_place_in_the_manifest() -> None:
    assert tuple(TASKS) == get_args(TaskName) == get_args(Manifest.model_fields["task"].annotation)
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


def test_every_family_has_a_row() -> None:
    assert FAMILY_PREFIX.keys() == FAMILIES.keys()


@every_family
@every_task
def test_the_architecture_names_the_task_and_the_class(family: str, name: TaskName) -> None:
    architecture = FAMILY_PREFIX[family] + TASKS[name].suffix
    assert find_task(config_of(family, architectures=[architecture]), None) is TASKS[name]
    assert getattr(models, architecture).config_class is FAMILIES[family]


@every_family
@every_task
@pytest.mark.parametrize("architectures", [None, [], ["Unknown"], ["RoFormerModel"]])
def test_a_requested_task_counts_more(family: str, name: TaskName, architectures: list[str] | None) -> None:
    assert find_task(config_of(family, architectures=architectures), name) is TASKS[name]


@pytest.mark.parametrize("requested", ["", "translation", "Fill-Mask", "logits"])
def test_an_unknown_task(requested: str) -> None:
    with pytest.raises(UserError, match=f"Unknown task {requested!r}; expected one of feature-extraction, fill-mask, "):
        find_task(config_of("roformer", architectures=["RoFormerModel"]), requested)


@pytest.mark.parametrize(
    ("family", "architectures"),
    [
        ("roformer", None),
        ("roformer", []),
        ("roformer", ["RoFormerForPreTraining"]),
        ("roformer", ["RobertaPreLayerNormModel"]),
        ("roberta-prelayernorm", ["RoFormerModel"]),
        ("roberta-prelayernorm", ["Model"]),
    ],
)
def test_no_task_follows_from_the_config(family: str, architectures: list[str] | None) -> None:
    named = architectures[0] if architectures else None
    with pytest.raises(ConfigError, match=f"architecture {named!r}.* Choose one with --task: feature-extraction, "):
        find_task(config_of(family, architectures=architectures), None)


# what goes in

Axes = tuple[str | int, ...]
Described = dict[str, tuple[str, Axes, int | None]]


def described(specs: tuple[TensorSpec, ...]) -> Described:
    """Name -> dtype, axes and limit."""
    names: Described = {spec.name: (spec.dtype, spec.axes, spec.limit) for spec in specs}
    assert len(names) == len(specs)
    return names


def tokens(*axes: str, mask: str | None = None) -> Described:
    """What every model takes."""
    return {
        "input_ids": ("int64", axes, 41),
        "attention_mask": ("int64", (*axes[:-1], mask or axes[-1]), 2),
        "token_type_ids": ("int64", axes, 2),
    }


def cache(prefix: str, axis: str) -> Described:
    return {
        f"{prefix}.{layer}.{kind}": ("float32", ("batch", 4, axis, 4), None)
        for layer in range(3)
        for kind in ("key", "value")
    }


ENCODER: Described = {
    "encoder_hidden_states": ("float32", ("batch", "encoder_sequence", 16), None),
    "encoder_attention_mask": ("int64", ("batch", "encoder_sequence"), 2),
}
ROWS = tokens("batch", "sequence")
GENERATION = tokens("batch", "sequence", mask="past + sequence") | cache("past_key_values", "past")
READ_THE_ENCODER = ("feature-extraction", "fill-mask", "text-generation")


@every_family
@every_task
def test_inputs_in_order(family: str, name: TaskName) -> None:
    config = config_of(family, **DECODER if name == "text-generation" else {})
    special = {"multiple-choice": tokens("batch", "choices", "sequence"), "text-generation": GENERATION}
    found = described(TASKS[name].input_specs(config))
    assert list(found.items()) == list(special.get(name, ROWS).items())


@every_family
@every_task
def test_a_decoder_with_cross_attention_takes_the_states_of_an_encoder_where_the_class_passes_them_on(
    family: str, name: TaskName
) -> None:
    alone = described(TASKS[name].input_specs(config_of(family, **DECODER)))
    crossed = described(TASKS[name].input_specs(config_of(family, **CROSS)))
    expected = alone | ENCODER if name in READ_THE_ENCODER else alone
    assert list(crossed.items()) == list(expected.items())


@every_family
@every_task
def test_one_segment_type_needs_no_ids(family: str, name: TaskName) -> None:
    with_types, without = (
        described(TASKS[name].input_specs(config_of(family, type_vocab_size=count, **CROSS))) for count in (3, 1)
    )
    assert with_types.pop("token_type_ids")[2] == 3
    assert list(without.items()) == list(with_types.items())


@every_task
def test_positions_may_be_asked_for_where_they_are_learnt(name: TaskName) -> None:
    config = config_of("roberta-prelayernorm", **CROSS)
    without, asked = (described(TASKS[name].input_specs(config, position_ids=asks)) for asks in (False, True))
    assert list(asked).index("position_ids") == 3
    assert asked["position_ids"] == ("int64", asked["input_ids"][1], 20), "rows of the table, not tokens"
    assert list(asked.items() - without.items()) == [("position_ids", asked["position_ids"])]


@every_task
@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("roformer", {}),
        ("roberta-prelayernorm", {"position_embedding_type": "relative_key"}),
        ("roberta-prelayernorm", {"position_embedding_type": "relative_key_query"}),
    ],
)
def test_there_are_no_positions_to_ask_for_without_a_table(family: str, values: dict[str, Any], name: TaskName) -> None:
    config = config_of(family, **DECODER, **values)
    with pytest.raises(ConfigError, match=f"this {family} model has no table of learnt positions"):
        TASKS[name].input_specs(config, position_ids=True)
    assert "position_ids" not in described(TASKS[name].input_specs(config))


@every_family
def test_generation_needs_a_decoder(family: str) -> None:
    with pytest.raises(ConfigError, match=r"text-generation needs a decoder, but config\.json has is_decoder=false"):
        TASKS["text-generation"].input_specs(config_of(family))


# what comes out


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("feature-extraction", {"last_hidden_state": ("batch", "sequence", 16), "pooler_output": ("batch", 16)}),
        ("fill-mask", {"logits": ("batch", "sequence", 41)}),
        ("multiple-choice", {"logits": ("batch", "choices")}),
        ("question-answering", {"start_logits": ("batch", "sequence"), "end_logits": ("batch", "sequence")}),
        ("text-classification", {"logits": ("batch", 5)}),
        ("text-generation", {"logits": ("batch", "sequence", 41)}),
        ("token-classification", {"logits": ("batch", "sequence", 5)}),
    ],
)
@every_family
def test_outputs_and_their_axes(family: str, name: TaskName, outputs: dict[str, Axes]) -> None:
    specs = TASKS[name].output_specs(config_of(family, num_labels=5, **CROSS))
    expected: Described = {output: ("float32", axes, None) for output, axes in outputs.items()}
    if name == "text-generation":
        expected |= cache("present", "past + sequence")
    assert list(described(specs).items()) == list(expected.items())
    scores = {spec.name for spec in specs if spec.is_scores}
    assert scores == (set() if name == "feature-extraction" else set(outputs))


def test_what_goes_in_as_a_cache_comes_out_as_one() -> None:
    config = config_of("roformer", **DECODER)
    task: Task = TASKS["text-generation"]
    past = [spec for spec in task.input_specs(config) if spec.name.startswith("past_key_values.")]
    present = [spec for spec in task.output_specs(config) if spec.name.startswith("present.")]
    assert [spec.name.partition(".")[2] for spec in past] == [spec.name.partition(".")[2] for spec in present]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_leaves_something_below_it(limit: int) -> None:
    with pytest.raises(ValidationError, match="limit"):
        TensorSpec(name="input_ids", axes=("batch",), dtype="int64", limit=limit)


# what must have fused


@pytest.mark.parametrize(
    ("family", "values", "rotary"),
    [
        ("roformer", {}, 6),  # queries and keys of three layers
        ("roformer", {"rotary_value": True}, 9),
        ("roformer", CROSS, 6),  # what an encoder gives is not rotated
        ("roberta-prelayernorm", {}, 0),
        ("roberta-prelayernorm", CROSS, 0),
        ("roberta-prelayernorm", {"position_embedding_type": "relative_key"}, 0),
    ],
)
@every_task
def test_how_often_each_fusion_must_apply(family: str, values: dict[str, Any], rotary: int, name: TaskName) -> None:
    crosses = values is CROSS and name in READ_THE_ENCODER
    assert expected_fusions(config_of(family, **values), TASKS[name]) == {
        "fuse_rotary": rotary,
        "fuse_residual_layer_norm": 10 if crosses else 7,
        "fuse_attention": 6 if crosses else 3,
        "fuse_bias_gelu": 4 if name in ("fill-mask", "text-generation") else 3,
    }


@pytest.mark.parametrize(("activation", "per_layer"), [("gelu", 1), ("gelu_new", 1), ("relu", 0), ("silu", 0)])
@pytest.mark.parametrize(("family", "head"), [("roformer", 0), ("roberta-prelayernorm", 1)])
def test_only_gelus_are_expected_to_fuse_as_such(family: str, head: int, activation: str, per_layer: int) -> None:
    """The vocabulary head of RoBERTa-PreLayerNorm has one whatever the config says."""
    counts = expected_fusions(config_of(family, hidden_act=activation), TASKS["fill-mask"])
    assert counts["fuse_bias_gelu"] == 3 * per_layer + max(per_layer, head)


def test_counting_leaves_the_config_as_it_is() -> None:
    config = config_of("roformer", **CROSS)
    expected_fusions(config, TASKS["question-answering"])
    assert config.add_cross_attention
