"""Attention: RoFormer's rotation of queries and keys, relative positions, causal masks, caches, cross-attention.

Shape letters: B batch, S queries, P past keys, K keys in all (P + S in self-attention), T encoder sequence, H heads,
D head size, E hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from exporter.models.config import ModelConfig, RobertaPreLayerNormConfig, RoFormerConfig

__all__ = ["Attended", "CrossAttention", "SelfAttention", "additive_mask", "rotate_interleaved"]


class Attended(NamedTuple):
    """What attention gives: ``context`` (B, S, E), ``cache`` keys and values (B, H, K, D), ``weights`` (B, H, S, K)."""

    context: Tensor
    cache: tuple[Tensor, Tensor]
    weights: Tensor


def additive_mask(attention_mask: Tensor, dtype: torch.dtype, *, causal_queries: int | None = None) -> Tensor:
    """Turns 1 / 0 (attend / do not) into 0 / most negative number of ``dtype``.

    The number is finite, so a row that may attend to nothing attends uniformly instead of becoming NaN.

    Args:
        attention_mask: (B, K), or (B, S, K) to say it for each query.
        causal_queries: S, where queries are the last S of the K tokens and must not see what comes after them. A mask
            of three axes says it all by itself, as in ``transformers``.

    Returns:
        (B, 1, 1 or S, K).
    """
    # Made in dtype from the start: a Python number would pass through float32, which does not hold float64's lowest.
    attend = torch.zeros((), dtype=dtype, device=attention_mask.device)
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=attention_mask.device)
    if attention_mask.ndim == 3:
        return torch.where(attention_mask[:, None] != 0, attend, lowest)
    allowed = attention_mask[:, None, None, :] != 0
    if causal_queries is not None:
        queries, keys = token_positions(causal_queries, attention_mask.shape[1], attention_mask.device)
        allowed = allowed & (keys <= queries[:, None])
    return torch.where(allowed, attend, lowest)


def token_positions(num_queries: int, num_keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions (S,) of queries and (K,) of keys, of which the queries are the last."""
    # Not the end of the keys': TensorRT's compiler would not know how long that is, and would not fuse the attention.
    return torch.arange(num_queries, device=device) + (num_keys - num_queries), torch.arange(num_keys, device=device)


def rotate_interleaved(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotates each adjacent pair (x0, x1), (x2, x3), … of the last axis by its position's angle.

    Args:
        x: (B, H, S, D).
        sin, cos: (1, S, D/2) or (B, S, D/2), one angle per position and pair.

    The pairs are adjacent ("interleaved"), unlike the half-split convention of GPT-NeoX and Llama. The arithmetic is
    kept in the order of the reference implementation (ZhuiyiTechnology/roformer), so that results agree to the bit.
    """
    sin, cos = sin[:, None], cos[:, None]  # (1 | B, 1, S, D/2)
    even, odd = x[..., 0::2], x[..., 1::2]  # (B, H, S, D/2)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


class _Attention(nn.Module):
    """softmax(q kᵀ / √D + mask) v over H heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_size = config.head_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def _attend(self, scaled_query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Attended:
        scores = scaled_query @ key.transpose(-1, -2) + mask  # (B, H, S, K)
        weights = self.dropout(scores.softmax(dim=-1))
        context = weights @ value  # (B, H, S, D)
        return Attended(context.transpose(1, 2).flatten(-2), (key, value), weights)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, S, E) -> (B, H, S, D)."""
        heads: Tensor = x.reshape(*x.shape[:-1], self.num_heads, self.head_size).transpose(1, 2)
        return heads


class SelfAttention(_Attention):
    """Attends to the sequence itself, and to what is cached of its beginning.

    RoFormer rotates q and k (and v with ``rotary_value``). RoBERTa-PreLayerNorm may add learnt scores that depend on
    the distance: q·a (``relative_key``: Shaw et al., arXiv 1803.02155) or q·a + k·a (``relative_key_query``: Huang et
    al., arXiv 2009.13658, method 4), a being the distance's embedding.
    """

    def __init__(self, config: RoFormerConfig | RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.rotary_value = isinstance(config, RoFormerConfig) and config.rotary_value
        if isinstance(config, RobertaPreLayerNormConfig) and config.position_embedding_type != "absolute":
            self.keys_know_distance = config.position_embedding_type == "relative_key_query"
            self.distance_embedding: nn.Embedding | None = nn.Embedding(
                2 * config.max_position_embeddings - 1, config.head_size
            )
        else:
            self.distance_embedding = None

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor,
        angles: tuple[Tensor, Tensor] | None = None,
        past: tuple[Tensor, ...] | None = None,
    ) -> Attended:
        """Attends.

        Args:
            hidden_states: (B, S, E).
            mask: (B, 1, 1 or S, P + S), added to the scores.
            angles: sines and cosines of the S positions, (1 | B, S, D/2) each.
            past: keys and values of the P tokens before, (B, H, P, D) each.
        """
        query = self._split_heads(self.query(hidden_states))  # (B, H, S, D)
        key = self._split_heads(self.key(hidden_states))
        value = self._split_heads(self.value(hidden_states))
        if angles is not None:
            query, key = rotate_interleaved(query, *angles), rotate_interleaved(key, *angles)
            if self.rotary_value:
                value = rotate_interleaved(value, *angles)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        # The query is scaled before the product, so that scores stay small enough for half precision.
        query = query * self.head_size**-0.5
        if self.distance_embedding is not None:
            mask = mask + self._distance_scores(self.distance_embedding, query, key)
        return self._attend(query, key, value, mask)

    def _distance_scores(self, embedding: nn.Embedding, scaled_query: Tensor, key: Tensor) -> Tensor:
        """The scores that depend on the distance, (B, H, S, K)."""
        query_at, key_at = token_positions(scaled_query.shape[2], key.shape[2], key.device)
        distance = query_at[:, None] - key_at  # (S, K), from -(M - 1) to M - 1 for M positions
        distances = embedding(distance + embedding.num_embeddings // 2)  # (S, K, D)
        scores = torch.einsum("bhsd,skd->bhsk", scaled_query, distances)
        if self.keys_know_distance:
            scores = scores + torch.einsum("bhkd,skd->bhsk", key * self.head_size**-0.5, distances)
        return scores


class CrossAttention(_Attention):
    """Attends to the states of an encoder, which have no order of their own here: nothing is rotated."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor,
        encoder_hidden_states: Tensor,
        past: tuple[Tensor, ...] | None = None,
    ) -> Attended:
        """Attends.

        Args:
            hidden_states: (B, S, E).
            mask: (B, 1, 1 or S, T), added to the scores.
            encoder_hidden_states: (B, T, E).
            past: keys and values of the encoder, (B, H, T, D) each, where a step before has computed them.
        """
        query = self._split_heads(self.query(hidden_states)) * self.head_size**-0.5
        if past is not None:
            key, value = past
        else:
            key = self._split_heads(self.key(encoder_hidden_states))
            value = self._split_heads(self.value(encoder_hidden_states))
        return self._attend(query, key, value, mask)
