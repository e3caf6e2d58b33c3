"""Losses against ``transformers``, wrong labels, and what is peculiar to each head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exporter import models
from exporter.errors import InputError
from exporter.models.config import RobertaPreLayerNormConfig, RoFormerConfig
from exporter.models.heads import (
    RobertaPreLayerNormClassificationHead,
    RoFormerClassificationHead,
    language_model_loss,
    sequence_loss,
    token_loss,
)

PREFIXES = {"roformer": "RoFormer", "roberta-prelayernorm": "RobertaPreLayerNorm"}
both_families = pytest.mark.parametrize("family", PREFIXES)
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@both_families
@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, torch.tensor([0, 2])),
        ({}, torch.tensor([0, 2], dtype=torch.int32)),
        ({}, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
        ({"num_labels": 1}, torch.tensor([0.5, -2.0])),
        ({"num_labels": 1}, torch.tensor([[0.5], [-2.0]])),
        ({"problem_type": SINGLE}, torch.tensor([0, 2])),
        ({"problem_type": SINGLE}, torch.tensor([[0], [2]])),
        ({"problem_type": SINGLE}, torch.tensor([-100, 2])),
        ({"problem_type": MULTI}, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])),
        ({"problem_type": REGRESSION}, torch.tensor([[0.5, 1.0, -1.0], [0.0, 0.3, 2.0]])),
        ({"problem_type": REGRESSION, "num_labels": 1}, torch.tensor([0.5, -2.0])),
    ],
    ids=str,
)
def test_sequence_loss_equals_that_of_transformers(
    family: str,
    config: dict[str, Any],
    labels: Tensor,
    write_checkpoint: Callable[..., Path],
    load_reference: Callable[[Path], Any],
) -> None:
    folder = write_checkpoint(family, "ForSequenceClassification", **config)
    reference = load_reference(folder)
    ours = getattr(models, type(reference).__name__).from_pretrained(folder)
    input_ids = torch.randint(2, 41, (2, 6))
    theirs_labels = labels.long() if labels.dtype == torch.int32 else labels  # its loss takes int64 alone
    expected = reference(input_ids, labels=theirs_labels).loss
    found = ours(input_ids, labels=labels).loss
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    assert found > 0.01


@both_families
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForTokenClassification"])
def test_token_losses_and_gradients_equal_those_of_transformers(
    family: str, head: str, write_checkpoint: Callable[..., Path], load_reference: Callable[[Path], Any]
) -> None:
    folder = write_checkpoint(family, head)
    reference = load_reference(folder)
    ours = getattr(models, type(reference).__name__).from_pretrained(folder)
    input_ids = torch.randint(2, 41, (2, 6))
    labels = torch.randint(0, 3, (2, 6))
    labels[0, :4] = -100
    expected, found = reference(input_ids, labels=labels).loss, ours(input_ids, labels=labels).loss
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    assert not torch.isclose(found, ours(input_ids, labels=labels.clamp(min=0)).loss)  # -100 does not count

    expected.backward()
    found.backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name in gradients:  # an alias goes by either of its names
            torch.testing.assert_close(parameter.grad, gradients[name], atol=5e-5, rtol=0, msg=name)
    assert len(gradients.keys() & dict(ours.named_parameters()).keys()) > 30


@both_families
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_there_is_no_loss_without_labels(family: str, head: str, write_checkpoint: Callable[..., Path]) -> None:
    model = getattr(models, PREFIXES[family] + head).from_pretrained(write_checkpoint(family, head))
    output = model(torch.tensor([[2, 3, 4]]))
    assert output.loss is None
    assert output.to_tuple() == (output.logits,)


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
    with pytest.raises(InputError, match=f"needs labels of shape {shape}; got"):
        sequence_loss(logits, labels, RoFormerConfig.model_validate(config))


@pytest.mark.parametrize("loss", [language_model_loss, token_loss])
@pytest.mark.parametrize("shape", [(2,), (10,), (5, 2), (2, 4), (2, 5, 3)])
def test_token_labels_of_a_wrong_shape_are_refused(
    loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match=r"labels must have shape \(2, 5\); got"):
        loss(torch.randn(2, 5, 3), torch.zeros(shape, dtype=torch.int64))


def test_whole_numbers_will_do_as_several_labels() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([[1, 0, 1], [0, 0, 1]])
    config = RoFormerConfig(num_labels=3, problem_type=MULTI)
    torch.testing.assert_close(sequence_loss(logits, labels, config), sequence_loss(logits, labels.float(), config))


@torch.no_grad()
@both_families
def test_a_sequence_is_classified_by_its_first_token(family: str) -> None:
    config = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_labels": 3}
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
    config = RobertaPreLayerNormConfig(
        vocab_size=9,
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        hidden_dropout_prob=0.3,
        classifier_dropout=classifier_dropout,
    )
    model = getattr(models, f"RobertaPreLayerNorm{head}")(config)
    dropout = model.dropout if head == "ForTokenClassification" else model.classifier.dropout
    assert dropout.p == expected
