"""Losses against their definitions, wrong labels, and what is peculiar to each head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exporter import models
from exporter.errors import ConfigError, InputError
from exporter.models.config import FAMILIES, RobertaPreLayerNormConfig, RoFormerConfig
from exporter.models.heads import (
    RobertaPreLayerNormClassificationHead,
    RoFormerClassificationHead,
    RoFormerSequenceSummary,
    choice_loss,
    flatten_choices,
    keep_logits,
    next_token_loss,
    sequence_loss,
    span_loss,
    token_loss,
)

PREFIXES = {"roformer": "RoFormer", "roberta-prelayernorm": "RobertaPreLayerNorm"}
both_families = pytest.mark.parametrize("family", PREFIXES)
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
TINY: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}


def surprises(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the probability of each label that counts, one at a time."""
    rows = zip(logits.reshape(-1, logits.shape[-1]).log_softmax(-1), labels.flatten().tolist(), strict=True)
    return torch.stack([-row[label] for row, label in rows if label != -100])


# Losses. Those of the models equal transformers': test_against_transformers.py.


def test_a_token_loss_is_the_mean_over_labels_that_count() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, -100, 2, 1, -100], [1, 1, -100, 0, 2]])
    torch.testing.assert_close(token_loss(logits, labels), surprises(logits, labels).mean())
    torch.testing.assert_close(token_loss(logits, labels.int()), token_loss(logits, labels), atol=0, rtol=0)


def test_each_place_is_judged_by_the_next_token() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, -100, 2, 1, -100], [1, 1, -100, 0, 2]])
    expected = surprises(logits[:, :4], labels[:, 1:]).mean()
    torch.testing.assert_close(next_token_loss(logits, labels), expected)
    labels[:, 0] = 2  # nothing comes before the first
    torch.testing.assert_close(next_token_loss(logits, labels), expected)
    assert next_token_loss(logits[:, :1], labels[:, :1]).isnan()  # nothing counts, as in transformers


def test_a_choice_loss_is_that_of_one_class_per_row() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([3, -100, 0])
    torch.testing.assert_close(choice_loss(logits, labels), surprises(logits, labels).mean())


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.tuples(st.integers(-3, 9), st.integers(-3, 9)), min_size=1, max_size=4),
    nested=st.booleans(),
)
def test_a_span_loss_leaves_out_places_beyond_the_sequence(
    seed: int, rows: list[tuple[int, int]], nested: bool
) -> None:
    scores = torch.randn(2, len(rows), 5, generator=torch.Generator().manual_seed(seed))
    places = torch.tensor(rows).T
    means = []
    for logits, positions in zip(scores, places, strict=True):
        kept = [-row.log_softmax(-1)[max(int(p), 0)] for row, p in zip(logits, positions, strict=True) if p < 5]
        means.append(torch.stack(kept).mean() if kept else torch.tensor(float("nan")))
    start, end = (positions[:, None] if nested else positions for positions in places)
    found = span_loss(scores[0], scores[1], start, end)
    torch.testing.assert_close(found, (means[0] + means[1]) / 2, equal_nan=True)


def test_a_span_needs_both_ends() -> None:
    logits, places = torch.randn(2, 5), torch.tensor([1, 2])
    assert span_loss(logits, logits, places, None) is None
    assert span_loss(logits, logits, None, places) is None


def test_whole_numbers_will_do_as_several_labels() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([[1, 0, 1], [0, 0, 1]])
    config = RoFormerConfig(num_labels=3, problem_type=MULTI)
    torch.testing.assert_close(sequence_loss(logits, labels, config), sequence_loss(logits, labels.float(), config))


def test_short_integers_will_do_as_classes() -> None:
    logits, labels, config = torch.randn(2, 3), torch.tensor([2, 0]), RoFormerConfig(num_labels=3)
    assert sequence_loss(logits, labels.int(), config) == sequence_loss(logits, labels, config)
    assert config.problem_type is None  # what followed from one call's labels does not decide the next


@both_families
@pytest.mark.parametrize(
    "head", ["ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"]
)
def test_there_is_no_loss_without_labels(family: str, head: str) -> None:
    model = getattr(models, PREFIXES[family] + head)(FAMILIES[family].model_validate(TINY)).eval()
    ids = torch.tensor([[2, 3, 4]])
    output = model(ids[None] if head == "ForMultipleChoice" else ids)
    assert output.loss is None
    assert output.to_tuple() == (output.logits,)


# Wrong labels.


@pytest.mark.parametrize(
    ("config", "labels", "shape"),
    [
        ({"num_labels": 3}, torch.zeros(3, dtype=torch.int64), r"\(2,\)"),
        ({"num_labels": 3}, torch.zeros(2, 2, dtype=torch.int64), r"\(2,\)"),
        ({"num_labels": 3}, torch.zeros(1, 2, dtype=torch.int64), r"\(2,\)"),
        ({"num_labels": 3}, torch.tensor(1), r"\(2,\)"),
        ({"num_labels": 3}, torch.zeros(2), r"\(2, 3\)"),
        ({"num_labels": 3}, torch.zeros(3, 2), r"\(2, 3\)"),  # as many values, in another order
        ({"num_labels": 3, "problem_type": MULTI}, torch.zeros(6), r"\(2, 3\)"),
        ({"num_labels": 3, "problem_type": REGRESSION}, torch.zeros(2, 1), r"\(2, 3\)"),
        ({"num_labels": 1}, torch.zeros(3), r"\(2,\)"),
        ({"num_labels": 1}, torch.zeros(2, 2), r"\(2,\)"),
    ],
    ids=str,
)
def test_sequence_labels_of_a_wrong_shape_are_refused(config: dict[str, Any], labels: Tensor, shape: str) -> None:
    logits = torch.randn(2, config["num_labels"])
    with pytest.raises(InputError, match=f"labels of .* must have shape {shape}; got"):
        sequence_loss(logits, labels, RoFormerConfig.model_validate(config))


def as_sequence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return sequence_loss(logits, labels, RoFormerConfig(num_labels=3, problem_type=SINGLE))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [(token_loss, (2, 5)), (next_token_loss, (2, 5)), (choice_loss, (2,)), (as_sequence_loss, (2,))],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_labels_that_are_no_classes_are_refused(
    loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    logits = torch.randn(*shape, 3)
    labels = torch.full(shape, 2)
    labels[0] = -100
    assert loss(logits, labels) > 0
    for wrong in (3, -1, -99, 1000):
        labels.view(-1)[-1] = wrong
        with pytest.raises(InputError, match=rf"labels.* must be from 0 to 2, or -100; got {wrong}\."):
            loss(logits, labels)
    with pytest.raises(InputError, match=r"labels.* must be int64; got torch\.float32"):
        loss(logits, torch.zeros(shape))
    for other in ((3,), (10,), (5, 2), (2, 4), (2, 5, 3)):
        with pytest.raises(InputError, match=rf"labels.* must have shape \({shape[0]},.*; got"):
            loss(logits, torch.zeros(other, dtype=torch.int64))


@pytest.mark.parametrize("end", ["start", "end"])
def test_wrong_places_of_a_span_are_refused(end: str) -> None:
    def loss(wrong: Tensor) -> object:
        right, logits = torch.tensor([1, 2]), torch.randn(2, 5)
        return span_loss(logits, logits, *((wrong, right) if end == "start" else (right, wrong)))

    with pytest.raises(InputError, match=rf"{end}_positions must have shape \(2,\); got \(3,\)"):
        loss(torch.tensor([1, 2, 3]))
    with pytest.raises(InputError, match=rf"{end}_positions must have shape \(2,\); got \(2, 5\)"):
        loss(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(InputError, match=rf"{end}_positions must be int64; got torch\.float32"):
        loss(torch.zeros(2))


@both_families
def test_labels_need_the_logits_of_every_place(family: str) -> None:
    config = FAMILIES[family].model_validate(TINY | {"is_decoder": True})
    model = getattr(models, f"{PREFIXES[family]}ForCausalLM")(config)
    ids = torch.tensor([[2, 3, 4]])
    for kept in (1, torch.tensor([0])):
        with pytest.raises(InputError, match=r"labels must have shape \(1, 1\); got \(1, 3\)"):
            model(ids, labels=ids, logits_to_keep=kept)


# Which logits.


@given(length=st.integers(1, 6), data=st.data())
def test_logits_are_kept_where_they_are_asked_for(length: int, data: st.DataObject) -> None:
    states = torch.arange(2 * length * 3).reshape(2, length, 3)
    count = data.draw(st.integers(1, 8))
    assert keep_logits(states, count).tolist() == [row[-count:] for row in states.tolist()]
    places = data.draw(st.lists(st.integers(-length, length - 1)))
    kept = keep_logits(states, torch.tensor(places, dtype=torch.int64))
    assert kept.tolist() == [[row[place] for place in places] for row in states.tolist()]


def test_all_logits_are_kept_unless_some_are_asked_for() -> None:
    states = torch.randn(2, 4, 3)
    assert keep_logits(states, 0) is states


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (torch.tensor([[0, 1]]), r"one axis; got torch\.int64 of shape \(1, 2\)"),
        (torch.tensor(1), r"one axis; got torch\.int64 of shape \(\)"),
        (torch.tensor([0.0]), r"one axis; got torch\.float32 of shape \(1,\)"),
        (torch.tensor([True, False, True, False]), r"one axis; got torch\.bool of shape \(4,\)"),
        (torch.tensor([0, 4]), r"some of the 4 places; got \[0, 4\]"),
        (torch.tensor([-5]), r"some of the 4 places; got \[-5\]"),
    ],
    ids=str,
)
def test_logits_to_keep_that_are_no_places_are_refused(places: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=f"logits_to_keep must .*{message}"):
        keep_logits(torch.randn(2, 4, 3), places)


# Heads.


@torch.no_grad()
@both_families
def test_a_sequence_is_classified_by_its_first_token(family: str) -> None:
    config = TINY | {"num_labels": 3}
    head: torch.nn.Module = (
        RoFormerClassificationHead(RoFormerConfig.model_validate(config)).eval()
        if family == "roformer"
        else RobertaPreLayerNormClassificationHead(RobertaPreLayerNormConfig.model_validate(config)).eval()
    )
    states = torch.randn(2, 4, 8)
    logits = head(states)
    assert logits.shape == (2, 3)
    states[:, 1:] = 0
    assert head(states).tolist() == logits.tolist()


@pytest.mark.parametrize(("classifier_dropout", "expected"), [(None, 0.3), (0.0, 0.0), (0.7, 0.7)])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_classifier_dropout_falls_back_to_the_hidden_one(
    head: str, classifier_dropout: float | None, expected: float
) -> None:
    config = TINY | {"hidden_dropout_prob": 0.3, "classifier_dropout": classifier_dropout}
    model = getattr(models, f"RobertaPreLayerNorm{head}")(RobertaPreLayerNormConfig.model_validate(config))
    dropout = model.dropout if head == "ForTokenClassification" else model.classifier.dropout
    assert dropout.p == expected


@torch.no_grad()
@pytest.mark.parametrize("kind", ["last", "cls_index", "first", "mean"])
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("activation", [None, "tanh", "relu"])
def test_a_summary_is_one_vector_of_the_sequence(kind: str, projected: bool, activation: str | None) -> None:
    options = {"summary_type": kind, "summary_use_proj": projected, "summary_activation": activation}
    summary = RoFormerSequenceSummary(RoFormerConfig.model_validate(TINY | options)).eval()
    states = torch.randn(2, 4, 8)
    expected = {"first": states[:, 0], "mean": states.sum(1) / 4}.get(kind, states[:, 3])
    if projected:
        expected = torch.nn.functional.linear(expected, *summary.summary.parameters())
    if activation is not None:
        expected = {"tanh": torch.tanh, "relu": torch.relu}[activation](expected)
    torch.testing.assert_close(summary(states), expected)


def test_a_summary_drops_before_and_after_in_training_alone() -> None:
    for name in ("summary_first_dropout", "summary_last_dropout"):
        summary = RoFormerSequenceSummary(RoFormerConfig.model_validate(TINY | {name: 0.5}))
        states = torch.ones(8, 4, 8)
        assert 0 < summary.train()(states).count_nonzero() < 64
        assert summary.eval()(states).tolist() == states[:, 0].tolist()


def test_a_summary_that_the_classifier_cannot_read_is_refused() -> None:
    config = TINY | {"summary_use_proj": True, "summary_proj_to_labels": True, "num_labels": 3}
    with pytest.raises(ConfigError, match=r"summary_proj_to_labels=true gives 3 .* reads hidden_size=8"):
        models.RoFormerForMultipleChoice(RoFormerConfig.model_validate(config))
    for harmless in ({"num_labels": 8}, {"summary_use_proj": False}):
        models.RoFormerForMultipleChoice(RoFormerConfig.model_validate(config | harmless))


def test_choices_become_rows() -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    flat = flatten_choices(x)
    assert flat is not None
    assert flat.tolist() == [row for choices in x.tolist() for row in choices]
    assert flatten_choices(None) is None
    with pytest.raises(InputError, match=r"\(batch, choices, sequence\); got shape \(2, 3\)"):
        flatten_choices(x[..., 0])


@pytest.mark.parametrize("num_labels", [1, 3])
def test_question_answering_has_two_labels(num_labels: int) -> None:
    config = TINY | {"num_labels": num_labels}
    with pytest.raises(ConfigError, match=f"2 labels, start and end; config.json has {num_labels}"):
        models.RobertaPreLayerNormForQuestionAnswering(RobertaPreLayerNormConfig.model_validate(config))
    # As in transformers, RoFormer's has two whatever the config says.
    model = models.RoFormerForQuestionAnswering(RoFormerConfig.model_validate(config)).eval()
    assert model(torch.tensor([[2, 3, 4]])).end_logits.shape == (1, 3)
