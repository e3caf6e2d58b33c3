"""Outputs are named fields and tuples at once."""

from __future__ import annotations

import pytest
import torch

from exporter.models.config import RoFormerConfig
from exporter.models.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    CausalLMOutput,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceOutput,
    QuestionAnsweringOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    as_requested,
)

A, B, C = torch.tensor(1.0), torch.tensor([2.0, 3.0]), torch.tensor([4.0])
WITH_LOSS = (CausalLMOutput, MaskedLMOutput, MultipleChoiceOutput, SequenceClassifierOutput, TokenClassifierOutput)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (BaseModelOutput(A), (A,)),
        (BaseModelOutputWithPooling(A, B), (A, B)),
        (BaseModelOutputWithPooling(A), (A,)),
        (BaseModelOutput(A, cross_attentions=(B,), attentions=(C,)), (A, (C,), (B,))),
        (BaseModelOutputWithPooling(A, attentions=(C,), past_key_values=((B, C),)), (A, ((B, C),), (C,))),
        (QuestionAnsweringOutput(None, B, C), (B, C)),
        (QuestionAnsweringOutput(A, B, C), (A, B, C)),
        *((kind(A, B), (A, B)) for kind in WITH_LOSS),
        *((kind(None, B), (B,)) for kind in WITH_LOSS),
        *((kind(A, B, hidden_states=(C,)), (A, B, (C,))) for kind in WITH_LOSS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_computed_fields_form_a_tuple_in_order(output: ModelOutput, expected: tuple[torch.Tensor, ...]) -> None:
    assert len(output) == len(expected)
    by_place = tuple(output[place] for place in range(len(output)))
    for found in (output.to_tuple(), tuple(output), by_place, output[:], tuple(dict(output).values())):
        assert found == expected  # the very tensors, so that none is compared by value
    assert output[-1] is output.to_tuple()[-1]
    assert output[1:] == expected[1:]
    with pytest.raises(IndexError):
        output[len(expected)]


def test_fields_are_found_by_their_names() -> None:
    output = MaskedLMOutput(None, B, attentions=(C,))
    assert dict(output) == {"logits": B, "attentions": (C,)}
    assert "logits" in output
    for absent in ("loss", "hidden_states", "to_tuple", "logit", 0, B):
        assert absent not in output
    for name in ("loss", "hidden_states", "to_tuple", "logit"):
        with pytest.raises(KeyError, match=name):
            output[name]


@pytest.mark.parametrize("of_config", [True, False])
@pytest.mark.parametrize("of_call", [None, True, False])
def test_a_tuple_is_given_where_it_is_asked_for(of_call: bool | None, of_config: bool) -> None:
    output = MaskedLMOutput(A, B)
    given: object = as_requested(output, of_call, RoFormerConfig(return_dict=of_config))
    if of_config if of_call is None else of_call:
        assert given is output
    else:
        assert given == (A, B)


def test_fields_go_by_their_attributes() -> None:
    with_pooling = BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=B)
    assert (with_pooling.last_hidden_state, with_pooling.pooler_output) == (A, B)
    with_loss = MaskedLMOutput(loss=A, logits=B)
    loss, logits = with_loss
    assert loss is with_loss.loss
    assert logits is with_loss.logits


def test_a_loss_that_was_not_computed_is_left_out_of_unpacking() -> None:
    (logits,) = TokenClassifierOutput(loss=None, logits=B)
    assert logits is B
