"""What the layers are given, the order of their parts, and the loop over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from exporter.models.attention import Attended
from exporter.models.config import FAMILIES, ModelConfig, RoFormerConfig
from exporter.models.layers import Context, Layer, LayerOutput, prepare_context, run_layers
from exporter.models.roberta_prelayernorm import RobertaPreLayerNormModel
from exporter.models.roformer import RoFormerModel

TINY: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
READER = TINY | {"is_decoder": True, "add_cross_attention": True}
LOWEST = torch.finfo(torch.float32).min
NO_MASK = torch.zeros(1, 1, 1, 1)


def context(config: ModelConfig, embedded: Tensor, **given: Any) -> Context:
    names = ("attention_mask", "past", "encoder_hidden_states", "encoder_attention_mask")
    return prepare_context(config, embedded, **(dict.fromkeys(names) | given))


def test_everything_is_attended_to_where_no_mask_is_given() -> None:
    embedded, states = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    encoder = context(RoFormerConfig.model_validate(TINY), embedded)
    assert encoder.mask.tolist() == torch.zeros(2, 1, 1, 3).tolist()
    assert (encoder.past, encoder.encoder_mask, encoder.angles) == (None, None, None)
    reader = context(RoFormerConfig.model_validate(READER), embedded, encoder_hidden_states=states)
    assert reader.encoder_hidden_states is states
    assert reader.encoder_mask is not None
    assert reader.encoder_mask.tolist() == torch.zeros(2, 1, 1, 5).tolist()
    assert (reader.mask[:, 0] == 0).tolist() == [torch.ones(3, 3).tril().bool().tolist()] * 2


def test_the_mask_of_a_decoder_covers_its_cache() -> None:
    past = ((torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4)),)
    found = context(RoFormerConfig.model_validate(READER), torch.randn(1, 2, 8), past=past)
    assert found.past is past
    assert found.mask.tolist() == [[[[0, 0, 0, LOWEST], [0, 0, 0, 0]]]]


def test_masks_have_the_dtype_of_what_they_are_added_to() -> None:
    embedded = torch.randn(1, 2, 8, dtype=torch.float16)
    given = {"encoder_hidden_states": torch.randn(1, 3, 8), "attention_mask": torch.tensor([[0, 1]])}
    found = context(RoFormerConfig.model_validate(READER), embedded, **given)
    assert found.encoder_mask is not None
    assert found.mask.dtype == found.encoder_mask.dtype == torch.float16
    assert found.mask.min() == torch.finfo(torch.float16).min


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reads", [True, False])
def test_a_layer_follows_its_definition(family: str, reads: bool) -> None:
    """Post-norm: x = norm(x + f(x)) for each block f. Pre-norm: x = x + f(norm(x))."""
    kind = RoFormerModel if family == "roformer" else RobertaPreLayerNormModel
    model: Any = kind(FAMILIES[family].model_validate(READER))  # type: ignore[arg-type]  # each gets its own
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    layer = model.encoder.layer[0].eval()
    x, states = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    encoder_mask = torch.zeros(2, 1, 1, 5)
    given = Context(NO_MASK, None, states, encoder_mask) if reads else Context(NO_MASK, None)
    found = layer(x, given, None)

    def attend(block: Any, y: Tensor, *given: Any) -> Attended:
        attended: Attended = block.self(y, *given)
        return attended

    def feed(y: Tensor) -> Tensor:
        output: Tensor = layer.output.dense(torch.nn.functional.gelu(layer.intermediate.dense(y)))
        return output

    own, cross, crossed = layer.attention, layer.crossattention, None
    if family == "roformer":
        attended = attend(own, x, NO_MASK)
        x = own.output.LayerNorm(x + own.output.dense(attended.context))
        if reads:
            crossed = attend(cross, x, encoder_mask, states)
            x = cross.output.LayerNorm(x + cross.output.dense(crossed.context))
        x = layer.output.LayerNorm(x + feed(x))
    else:
        attended = attend(own, own.LayerNorm(x), NO_MASK)
        x = x + own.output.dense(attended.context)
        if reads:
            crossed = attend(cross, cross.LayerNorm(x), encoder_mask, states)
            x = x + cross.output.dense(crossed.context)
        x = x + feed(layer.intermediate.LayerNorm(x))
    torch.testing.assert_close(found.hidden_states, x)
    torch.testing.assert_close(found.cache, attended.cache + (crossed.cache if crossed else ()))
    torch.testing.assert_close(found.weights, attended.weights)
    assert (found.cross_weights is None) == (crossed is None)


class _Counting(Layer):
    """Adds its number, and says what it was given."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden_states: Tensor, context: Context, past: tuple[Tensor, ...] | None) -> LayerOutput:
        cache = (torch.tensor(self.number), *(past or ()))
        cross = None if context.encoder_hidden_states is None else torch.tensor(-self.number)
        return LayerOutput(hidden_states + self.number, cache, torch.tensor(10 * self.number), cross)


def run(context: Context, *, cache: bool = False, attentions: bool = False, states: bool = False) -> dict[str, Any]:
    layers = [_Counting(1), _Counting(2)]
    asked = {"use_cache": cache, "output_attentions": attentions, "output_hidden_states": states}
    return dict(run_layers(layers, torch.tensor(5), context, **asked))


def test_layers_run_in_order_and_keep_what_was_asked_for() -> None:
    alone = Context(NO_MASK, None)
    assert run(alone) == {"last_hidden_state": 8}
    assert run(alone, states=True) == {"last_hidden_state": 8, "hidden_states": (5, 6, 8)}
    assert run(alone, attentions=True) == {"last_hidden_state": 8, "attentions": (10, 20)}
    assert run(alone, cache=True) == {"last_hidden_state": 8, "past_key_values": ((1,), (2,))}
    reading = Context(NO_MASK, None, torch.ones(1))
    assert run(reading) == {"last_hidden_state": 8}
    assert run(reading, attentions=True)["cross_attentions"] == (-1, -2)


def test_each_layer_gets_its_own_part_of_the_cache() -> None:
    past = ((torch.tensor(7),), (torch.tensor(8),))
    assert run(Context(NO_MASK, past), cache=True)["past_key_values"] == ((1, 7), (2, 8))
