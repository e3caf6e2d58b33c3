"""Self-attention with RoFormer's rotation of queries and keys.

Shape letters: B batch, S sequence, H heads, D head size, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.models.config import ModelConfig

__all__ = ["SelfAttention", "additive_mask", "rotate_interleaved"]


def additive_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns 1 / 0 (attend / padding), (B, S), into 0 / most negative number, (B, 1, 1, S), of ``dtype``.

    The number is finite, so a row that is all padding attends uniformly instead of becoming NaN.
    """
    # Made in dtype from the start: a Python number would pass through float32, which does not hold float64's lowest.
    attend = torch.zeros((), dtype=dtype, device=attention_mask.device)
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=attention_mask.device)
    return torch.where(attention_mask[:, None, None, :] != 0, attend, lowest)


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


class SelfAttention(nn.Module):
    """softmax(q kᵀ / √D + mask) v over H heads, with q and k (and v on request) rotated when angles are given."""

    def __init__(self, config: ModelConfig, *, rotary_value: bool = False) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_size = config.head_size
        self.rotary_value = rotary_value
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: Tensor, mask: Tensor, angles: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attends.

        Args:
            hidden_states: (B, S, E).
            mask: (B, 1, 1, S), added to the scores.
            angles: sines and cosines, (1 | B, S, D/2) each.

        Returns:
            (B, S, E).
        """
        query = self._split_heads(self.query(hidden_states))  # (B, H, S, D)
        key = self._split_heads(self.key(hidden_states))
        value = self._split_heads(self.value(hidden_states))
        if angles is not None:
            query, key = rotate_interleaved(query, *angles), rotate_interleaved(key, *angles)
            if self.rotary_value:
                value = rotate_interleaved(value, *angles)
        # The query is scaled before the product, so that scores stay small enough for half precision.
        scores = (query * self.head_size**-0.5) @ key.transpose(-1, -2) + mask  # (B, H, S, S)
        context = self.dropout(scores.softmax(dim=-1)) @ value  # (B, H, S, D)
        merged: Tensor = context.transpose(1, 2).flatten(-2)
        return merged

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, S, E) -> (B, H, S, D)."""
        heads: Tensor = x.reshape(*x.shape[:-1], self.num_heads, self.head_size).transpose(1, 2)
        return heads
