"""Token, segment and position embeddings.

Shape letters: B batch, S sequence, H heads, D head size, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporter.errors import InputError
from exporter.models.config import RobertaPreLayerNormConfig, RoFormerConfig
from exporter.models.inputs import check_indices, check_shape

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

    def forward(self, length: int, past_length: int | None = None) -> tuple[Tensor, Tensor]:
        """The sines and cosines of the ``length`` positions after ``past_length``, (1, S, D/2) each.

        Raises:
            InputError: If a position is beyond the table.
        """
        total = length + (past_length or 0) if not torch.compiler.is_exporting() else 0
        if total > self.weight.shape[0]:
            raise InputError(
                f"The input has {total} tokens, but max_position_embeddings is {self.weight.shape[0]}: "
                f"shorten or split the text, or load the model with a larger max_position_embeddings, which is exact."
            )
        if past_length is None:
            rows = self.weight[None, :length]
        else:  # a gather: a slice from here to there would be traced with bounds that exclude an empty past
            rows = self.weight[None, torch.arange(length, device=self.weight.device) + past_length]
        sin, cos = rows.chunk(2, dim=-1)
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

    def forward(self, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """(B, S) int64, or (B, S, embedding_size) in place of the ids -> (B, S, embedding_size)."""
        words, token_type_ids = _words(self.word_embeddings, input_ids, token_type_ids, inputs_embeds)
        normalized: Tensor = self.dropout(self.LayerNorm(words + self.token_type_embeddings(token_type_ids)))
        return normalized


class RobertaPreLayerNormEmbeddings(nn.Module):
    """Word + segment + learnt position embeddings, normalised."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.padding_idx = config.pad_token_id
        self.max_tokens = config.max_tokens
        self.is_absolute = config.position_embedding_type == "absolute"
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=self.padding_idx)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, padding_idx=self.padding_idx)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor | None = None,
        past_tokens: Tensor | int = 0,
    ) -> Tensor:
        """(B, S) int64, or (B, S, E) in place of the ids -> (B, S, E).

        Args:
            position_ids: (B, S) or (1, S) int64, rows of the position table; by default as :meth:`positions` counts.
            past_tokens: How many tokens each row has in the cache, padding not counted: (B, 1) int64 or a number.

        Raises:
            InputError: If a position is outside of the table, or position_ids have another shape.
        """
        words, token_type_ids = _words(self.word_embeddings, input_ids, token_type_ids, inputs_embeds)
        embeddings = words + self.token_type_embeddings(token_type_ids)
        if self.is_absolute:
            rows = self.position_embeddings.num_embeddings
            if position_ids is None:
                position_ids = self.positions(input_ids, words, past_tokens)
                if not torch.compiler.is_exporting() and (last := int(position_ids.max())) >= rows:
                    raise InputError(
                        f"The input reaches token {last - self.padding_idx}, but the positions hold {self.max_tokens} "
                        f"(max_position_embeddings less pad_token_id + 1): shorten or split the text."
                    )
            elif not torch.compiler.is_exporting():
                check_shape("position_ids", position_ids, tuple(words.shape[:2]), (1, words.shape[1]))
                check_indices("position_ids", position_ids, rows, "max_position_embeddings - 1")
            embeddings = embeddings + self.position_embeddings(position_ids)
        normalized: Tensor = self.dropout(self.LayerNorm(embeddings))
        return normalized

    def positions(self, input_ids: Tensor | None, words: Tensor, past_tokens: Tensor | int = 0) -> Tensor:
        """Positions count the tokens that are not padding, from padding_idx + 1; padding itself sits at padding_idx.

        (B, S) int64 -> (B, S) int64. The convention is fairseq's ``make_positions``. Embeddings do not tell what is
        padding, so without ids every place counts: (B, S, E) -> (1, S).
        """
        if input_ids is None:
            return torch.arange(words.shape[1], device=words.device)[None] + past_tokens + self.padding_idx + 1
        is_token = (input_ids != self.padding_idx).to(torch.int64)
        counts = (is_token.cumsum(dim=1) + past_tokens) * is_token
        return counts + self.padding_idx


def _words(
    embedding: nn.Embedding, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The embedded words (B, S, width) and the segment ids (B, S), all zeros where they are not given."""
    words = embedding(input_ids) if inputs_embeds is None else inputs_embeds
    if token_type_ids is None:
        token_type_ids = torch.zeros(words.shape[:2], dtype=torch.int64, device=words.device)
    return words, token_type_ids
