"""Outputs are named fields and tuples at once."""

from __future__ import annotations

import pytest
import torch

from exporter.models.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

A, B = torch.tensor(1.0), torch.tensor([2.0, 3.0])


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (BaseModelOutput(A), (A,)),
        (BaseModelOutputWithPooling(A, B), (A, B)),
        (BaseModelOutputWithPooling(A), (A,)),
        *((kind(A, B), (A, B)) for kind in (MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput)),
        *((kind(None, B), (B,)) for kind in (MaskedLMOutput, SequenceClassifierOutput, TokenClassifierOutput)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_computed_fields_form_a_tuple_in_order(output: ModelOutput, expected: tuple[torch.Tensor, ...]) -> None:
    assert len(output) == len(expected)
    for found in (output.to_tuple(), tuple(output), tuple(output[index] for index in range(len(output)))):
        assert all(value is wanted for value, wanted in zip(found, expected, strict=True))
    assert output[-1] is expected[-1]
    with pytest.raises(IndexError):
        output[len(expected)]


def test_fields_go_by_their_names() -> None:
    with_pooling = BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=B)
    assert (with_pooling.last_hidden_state, with_pooling.pooler_output) == (A, B)
    with_loss = MaskedLMOutput(loss=A, logits=B)
    loss, logits = with_loss
    assert loss is with_loss.loss
    assert logits is with_loss.logits


def test_a_loss_that_was_not_computed_is_left_out_of_unpacking() -> None:
    (logits,) = TokenClassifierOutput(loss=None, logits=B)
    assert logits is B
