"""What engines are given: completed where it is left out, refused by name where it does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exporter.engines import Arrays
from exporter.errors import InputError
from exporter.inputs import complete_inputs
from exporter.manifest import Manifest
from exporter.models import RobertaPreLayerNormConfig
from exporter.tasks import TASKS, TaskName

CONFIG: dict[str, Any] = {
    "vocab_size": 10,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 14,
    "pad_token_id": 1,
    "is_decoder": True,
    "add_cross_attention": True,
}
IDS = np.array([[5, 6, 7], [1, 8, 9]])
STATES = np.zeros((2, 4, 6), np.float32)


def manifest(task: TaskName, *, position_ids: bool = False, **config: Any) -> Manifest:
    made = RobertaPreLayerNormConfig(**(CONFIG | config))
    return Manifest(
        name="made up",
        family="roberta-prelayernorm",
        task=task,
        inputs=list(TASKS[task].input_specs(made, position_ids=position_ids)),
        outputs=[],
        pad_token_id=1,
        eos_token_ids=[],
        max_tokens=made.max_tokens,
        labels=["only"],
        problem_type=None,
        has_tokenizer=False,
        seed=0,
        passes=[],
        engines=[],
        source_files={},
        files={},
        versions={},
    )


DECODER = manifest("text-generation")


def cache(past: int, *, rows: int = 2, layers: int = 2) -> Arrays:
    return {
        f"past_key_values.{layer}.{kind}": np.ones((rows, 3, past, 2), np.float32)
        for layer in range(layers)
        for kind in ("key", "value")
    }


def test_what_is_left_out_is_completed() -> None:
    complete = complete_inputs(DECODER, {"input_ids": IDS, "encoder_hidden_states": STATES})
    assert list(complete) == [spec.name for spec in DECODER.inputs]
    assert complete["attention_mask"].tolist() == [[1, 1, 1]] * 2
    assert complete["token_type_ids"].tolist() == [[0, 0, 0]] * 2
    assert complete["encoder_attention_mask"].tolist() == [[1, 1, 1, 1]] * 2
    assert complete["past_key_values.1.value"].shape == (2, 3, 0, 2)
    for spec in DECODER.inputs:
        assert complete[spec.name].dtype == spec.dtype


def test_a_mask_covers_the_cache() -> None:
    complete = complete_inputs(DECODER, {"input_ids": IDS, "encoder_hidden_states": STATES} | cache(5))
    assert complete["attention_mask"].shape == (2, 8)
    assert complete["past_key_values.0.key"].tolist() == np.ones((2, 3, 5, 2)).tolist()


def test_choices_have_an_axis_of_their_own() -> None:
    complete = complete_inputs(manifest("multiple-choice"), {"input_ids": IDS[:, None].repeat(4, axis=1)})
    assert complete["attention_mask"].shape == (2, 4, 3)


def test_positions_count_tokens_cached_ones_included() -> None:
    counting = manifest("text-generation", position_ids=True)
    given = {"input_ids": IDS, "encoder_hidden_states": STATES}
    assert complete_inputs(counting, given)["position_ids"].tolist() == [[2, 3, 4], [1, 2, 3]]
    given |= cache(3) | {"attention_mask": np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 1]])}
    assert complete_inputs(counting, given)["position_ids"].tolist() == [[5, 6, 7], [1, 3, 4]]
    assert complete_inputs(counting, given | {"position_ids": IDS})["position_ids"].tolist() == IDS.tolist()


def test_the_longest_input_counts_the_cache() -> None:
    given = {"input_ids": IDS, "encoder_hidden_states": STATES}
    complete_inputs(DECODER, given | cache(9))
    with pytest.raises(InputError, match="The input has 13 tokens, 10 of them cached; the model's positions hold 12"):
        complete_inputs(DECODER, given | cache(10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder_hidden_states": None}, r"encoder_hidden_states must be given, with the axes \(batch, encoder_seq"),
        ({"encoder_hidden_states": STATES[:, :0]}, r"encoder_hidden_states must not be empty; got .*\(2, 0, 6\)"),
        (
            {"encoder_hidden_states": STATES[:1]},
            r"encoder_hidden_states must have the shape \(2, 4, 6\) .*got \(1, 4, 6",
        ),
        ({"encoder_hidden_states": STATES[..., :5]}, r"encoder_hidden_states must have the shape \(2, 4, 6\)"),
        ({"encoder_hidden_states": STATES * np.nan}, "encoder_hidden_states must hold finite numbers"),
        ({"encoder_hidden_states": STATES.astype(str)}, "encoder_hidden_states must hold finite numbers; got <U"),
        ({"encoder_attention_mask": IDS // IDS}, r"encoder_attention_mask must have the shape \(2, 4\)"),
        ({"encoder_attention_mask": np.full((2, 4), -1)}, "encoder_attention_mask must be from 0 to 1; got -1"),
        ({"attention_mask": np.ones((2, 3, 3), int)}, r"attention_mask must have the shape \(2, 3\)"),
        (cache(2, layers=1), r"every layer; past_key_values.1.key, past_key_values.1.value are missing"),
        (cache(2, layers=3), "past_key_values.2.key was given, but this engine takes input_ids, "),
        (cache(2, rows=1), r"past_key_values.0.key must have the shape \(2, 3, 2, 2\)"),
        (cache(2) | {"past_key_values.1.key": np.ones((2, 3, 1, 2))}, r"past_key_values.1.key must have the shape"),
        (cache(2) | {"past_key_values.0.key": np.ones((2, 6))}, r"past_key_values.0.key must have the axes"),
        (
            cache(2) | {"attention_mask": IDS // IDS},
            r"attention_mask must have the shape \(2, 5\) \(batch, past \+ seq",
        ),
        ({"position_ids": IDS}, "position_ids was given, but this engine takes input_ids, attention_mask"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    arrays = {"input_ids": IDS, "encoder_hidden_states": STATES} | given
    with pytest.raises(InputError, match=message):
        complete_inputs(DECODER, {name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(("value", "message"), [(-1, "from 0 to 13; got -1"), (14, "from 0 to 13; got 14")])
def test_positions_outside_of_the_table(value: int, message: str) -> None:
    positions = np.array([[2, 3, 4], [2, 3, value]])
    with pytest.raises(InputError, match=f"position_ids must be {message}"):
        complete_inputs(
            manifest("fill-mask", position_ids=True, add_cross_attention=False),
            {"input_ids": IDS, "position_ids": positions},
        )


def test_choices_are_needed_where_they_belong() -> None:
    with pytest.raises(InputError, match=r"input_ids must have the axes \(batch, choices, sequence\)"):
        complete_inputs(manifest("multiple-choice"), {"input_ids": IDS})
