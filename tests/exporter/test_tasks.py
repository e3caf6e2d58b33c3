"""The table of tasks: finding a row, and what each row promises."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from exporter import models
from exporter.errors import ConfigError, UserError
from exporter.manifest import Manifest
from exporter.models.config import FAMILIES
from exporter.tasks import FAMILY_PREFIX, TASKS, TaskName, expected_fusions, find_task, input_names

SIZES: dict[str, Any] = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
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
        ("roformer", ["RoFormerForMultipleChoice"]),
        ("roformer", ["RobertaPreLayerNormModel"]),
        ("roberta-prelayernorm", ["RoFormerModel"]),
        ("roberta-prelayernorm", ["Model"]),
    ],
)
def test_no_task_follows_from_the_config(family: str, architectures: list[str] | None) -> None:
    named = architectures[0] if architectures else None
    with pytest.raises(ConfigError, match=f"architecture {named!r}.* Choose one with --task: feature-extraction, "):
        find_task(config_of(family, architectures=architectures), None)


@every_family
def test_one_segment_type_needs_no_ids(family: str) -> None:
    assert input_names(config_of(family, type_vocab_size=1)) == ("input_ids", "attention_mask")
    assert input_names(config_of(family, type_vocab_size=2)) == ("input_ids", "attention_mask", "token_type_ids")


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("feature-extraction", {"last_hidden_state": ("batch", "sequence", 16), "pooler_output": ("batch", 16)}),
        ("fill-mask", {"logits": ("batch", "sequence", 41)}),
        ("text-classification", {"logits": ("batch", 5)}),
        ("token-classification", {"logits": ("batch", "sequence", 5)}),
    ],
)
@every_family
def test_outputs_and_their_shapes(family: str, name: TaskName, outputs: dict[str, tuple[str | int, ...]]) -> None:
    config = config_of(family, num_labels=5)
    assert {output.name: output.shape(config) for output in TASKS[name].outputs} == outputs
    assert {output.is_scores for output in TASKS[name].outputs} == {name != "feature-extraction"}


@pytest.mark.parametrize(
    ("family", "values", "rotary"),
    [
        ("roformer", {}, 6),  # queries and keys of three layers
        ("roformer", {"rotary_value": True}, 9),
        ("roberta-prelayernorm", {}, 0),
    ],
)
def test_how_often_each_fusion_must_apply(family: str, values: dict[str, Any], rotary: int) -> None:
    assert expected_fusions(config_of(family, **values)) == {"fuse_rotary": rotary, "fuse_residual_layer_norm": 7}
