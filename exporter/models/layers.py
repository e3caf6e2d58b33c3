"""What the layers of both families share: their order, their inputs, and the loop over them.

Shape letters: B batch, S sequence, P past, T encoder sequence, H heads, D head size, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exporter.models.attention import CrossAttention, SelfAttention, additive_mask
from exporter.models.config import ModelConfig
from exporter.models.outputs import BaseModelOutput, PastKeyValues

__all__ = ["AttentionBlock", "Context", "Layer", "prepare_context", "run_layers"]


@dataclass(frozen=True)
class Context:
    """What every layer reads beside the hidden states.

    Attributes:
        mask: (B, 1, 1 or S, P + S), added to the scores of self-attention.
        past: Of each layer, or ``None`` where nothing is cached.
        encoder_hidden_states: (B, T, E), where there is cross-attention.
        encoder_mask: (B, 1, 1 or S, T), added to the scores of cross-attention.
        angles: Sines and cosines of the S positions, (1, S, D/2) each; RoFormer only.
    """

    mask: Tensor
    past: PastKeyValues | None
    encoder_hidden_states: Tensor | None = None
    encoder_mask: Tensor | None = None
    angles: tuple[Tensor, Tensor] | None = None


class LayerOutput(NamedTuple):
    """``hidden_states`` (B, S, E), ``cache`` as in PastKeyValues, and the weights of both attentions."""

    hidden_states: Tensor
    cache: tuple[Tensor, ...]
    weights: Tensor
    cross_weights: Tensor | None


class AttentionBlock(nn.Module):
    """Attention with what the family puts before and after it. ``self`` is the name in the checkpoints."""

    def __init__(self, attention: SelfAttention | CrossAttention, output: nn.Module) -> None:
        super().__init__()
        self.self = attention
        self.output = output

    def before(self, hidden_states: Tensor) -> Tensor:
        """What attention reads."""
        return hidden_states


class Layer(nn.Module):
    """Self-attention, cross-attention where the decoder has it, feed-forward."""

    attention: AttentionBlock
    crossattention: AttentionBlock | None
    intermediate: nn.Module
    output: nn.Module

    def forward(self, hidden_states: Tensor, context: Context, past: tuple[Tensor, ...] | None) -> LayerOutput:
        """(B, S, E) -> (B, S, E); ``past`` is this layer's part of the cache."""
        block = self.attention
        attended = block.self(
            block.before(hidden_states), context.mask, context.angles, None if past is None else past[:2]
        )
        hidden_states = block.output(attended.context, hidden_states)
        cache, cross_weights = attended.cache, None
        if context.encoder_hidden_states is not None:
            assert self.crossattention is not None  # check_inputs has seen to it
            block = self.crossattention
            known = past[2:] if past is not None and len(past) > 2 else None
            crossed = block.self(
                block.before(hidden_states), context.encoder_mask, context.encoder_hidden_states, known
            )
            hidden_states = block.output(crossed.context, hidden_states)
            cache, cross_weights = cache + crossed.cache, crossed.weights
        hidden_states = self.output(self.intermediate(hidden_states), hidden_states)
        return LayerOutput(hidden_states, cache, attended.weights, cross_weights)


def run_layers(
    layers: Sequence[Layer] | nn.ModuleList,
    hidden_states: Tensor,
    context: Context,
    *,
    use_cache: bool,
    output_attentions: bool,
    output_hidden_states: bool,
) -> BaseModelOutput:
    """Runs the layers in order, keeping what was asked for."""
    states, outputs = [hidden_states], []
    for index, layer in enumerate(layers):
        outputs.append(layer(states[-1], context, None if context.past is None else context.past[index]))
        states.append(outputs[-1].hidden_states)
    crosses = output_attentions and context.encoder_hidden_states is not None
    return BaseModelOutput(
        states[-1],
        tuple(output.cache for output in outputs) if use_cache else None,
        tuple(states) if output_hidden_states else None,
        tuple(output.weights for output in outputs) if output_attentions else None,
        tuple(output.cross_weights for output in outputs) if crosses else None,
    )


def prepare_context(
    config: ModelConfig,
    embedded: Tensor,
    *,
    attention_mask: Tensor | None,
    past: PastKeyValues | None,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Context:
    """Makes the masks that are added to the scores, of what :func:`~exporter.models.inputs.check_inputs` has passed.

    Args:
        embedded: What the first layer reads, (B, S, E); the masks get its dtype.
        attention_mask: (B, P + S), or (B, S, P + S) to say it for each query; all ones where it is not given.
        past: Passed on.
        encoder_hidden_states: (B, T, E); passed on.
        encoder_attention_mask: (B, T) or (B, S, T); all ones where it is not given.
        angles: Passed on.
    """
    batch, length = embedded.shape[:2]
    if attention_mask is None:
        keys = length if past is None else past[0][0].shape[2] + length
        attention_mask = torch.ones(batch, keys, dtype=torch.int64, device=embedded.device)
    encoder_mask = None
    if encoder_hidden_states is not None:
        if encoder_attention_mask is None:
            size = encoder_hidden_states.shape[:2]
            encoder_attention_mask = torch.ones(size, dtype=torch.int64, device=embedded.device)
        encoder_mask = additive_mask(encoder_attention_mask, embedded.dtype)
    return Context(
        additive_mask(attention_mask, embedded.dtype, causal_queries=length if config.is_decoder else None),
        past,
        encoder_hidden_states,
        encoder_mask,
        angles,
    )
