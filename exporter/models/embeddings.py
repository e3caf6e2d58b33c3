"""Token, segment and position embeddings.

Shape letters: B batch, S sequence, H heads, D head size, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.errors import InputError
from exporter.models.config import RobertaPreLayerNormConfig, RoFormerConfig

__all__ = ["RoFormerEmbeddings", "RobertaPreLayerNormEmbeddings", "SinusoidalPositions", "sinusoid_table"]


def sinusoid_table(num_positions: int, head_size: int) -> Tensor:
    """The angles of RoFormer as sines, then cosines: (num_positions, D), float32.

    Row p holds sin(p * w_i) for i < D/2, then cos(p * w_i), with w_i = 10000^(-2i/D) (arXiv 2104.09864, section 3.2.2).
    Computed in float64: a float32 angle is already off by 1e-4 at position 1000.
    """
    frequencies = 10000.0 ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)  # (D/2,)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies  # (num_positions, D/2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(torch.float32)


class SinusoidalPositions(nn.Module):
    """RoFormer's table of angles, shared by all layers. It is computed, but a checkpoint may carry its own copy."""

    def __init__(self, num_positions: int, head_size: int) -> None:
        super().__init__()
        self.weight = nn.Buffer(sinusoid_table(num_positions, head_size))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """The sines and cosines of the first ``length`` positions, (1, S, D/2) each.

        Raises:
            InputError: If ``length`` is beyond the table.
        """
        if not torch.compiler.is_exporting() and length > self.weight.shape[0]:
            raise InputError(
                f"The input has {length} tokens, but max_position_embeddings is {self.weight.shape[0]}: "
                f"shorten or split the text."
            )
        sin, cos = self.weight[None, :length].chunk(2, dim=-1)
        return sin, cos


class RoFormerEmbeddings(nn.Module):
    """Word + segment embeddings, normalised. Positions enter in the attention, not here."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        width = config.embedding_width
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, S) int64 twice -> (B, S, embedding_size)."""
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        normalized: Tensor = self.dropout(self.LayerNorm(embeddings))
        return normalized


class RobertaPreLayerNormEmbeddings(nn.Module):
    """Word + segment + learnt position embeddings, normalised."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.padding_idx = config.pad_token_id
        self.max_tokens = config.max_tokens
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=self.padding_idx)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, padding_idx=self.padding_idx)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, S) int64 twice -> (B, S, E).

        Raises:
            InputError: If more tokens than the positions can hold are not padding.
        """
        position_ids = self.position_ids(input_ids)
        embeddings = (
            self.word_embeddings(input_ids)
            + self.token_type_embeddings(token_type_ids)
            + self.position_embeddings(position_ids)
        )
        normalized: Tensor = self.dropout(self.LayerNorm(embeddings))
        return normalized

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Positions count the tokens that are not padding, from padding_idx + 1; padding itself sits at padding_idx.

        (B, S) int64 -> (B, S) int64. The convention is fairseq's ``make_positions``.
        """
        is_token = (input_ids != self.padding_idx).to(torch.int64)
        counts = is_token.cumsum(dim=1) * is_token
        if not torch.compiler.is_exporting() and int(counts.max()) > self.max_tokens:
            raise InputError(
                f"The input has {int(counts.max())} tokens, but the positions hold {self.max_tokens} "
                f"(max_position_embeddings less pad_token_id + 1): shorten or split the text."
            )
        return counts + self.padding_idx
