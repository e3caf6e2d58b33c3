"""RoFormer: a post-norm encoder with rotary position embeddings.

Source: Su et al., arXiv 2104.09864; parameter names as in ``transformers``. Shape letters: B batch, S sequence,
E hidden size.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from exporter.models.activations import ACTIVATIONS
from exporter.models.attention import SelfAttention, additive_mask
from exporter.models.checkpoint import PreTrainedModel
from exporter.models.config import RoFormerConfig
from exporter.models.embeddings import RoFormerEmbeddings, SinusoidalPositions, sinusoid_table
from exporter.models.heads import (
    RoFormerClassificationHead,
    RoFormerMaskedLMHead,
    language_model_loss,
    sequence_loss,
    token_loss,
)
from exporter.models.outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

__all__ = [
    "RoFormerForMaskedLM",
    "RoFormerForSequenceClassification",
    "RoFormerForTokenClassification",
    "RoFormerModel",
]


class _AddAndNorm(nn.Module):
    """LayerNorm(dense(x) + residual): the post-norm ending of both blocks."""

    def __init__(self, config: RoFormerConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return normalized


class _Attention(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config, rotary_value=config.rotary_value)
        self.output = _AddAndNorm(config, config.hidden_size)

    def forward(self, hidden_states: Tensor, mask: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        normalized: Tensor = self.output(self.self(hidden_states, mask, angles), hidden_states)
        return normalized


class _Intermediate(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_states))


class _Layer(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _AddAndNorm(config, config.intermediate_size)

    def forward(self, hidden_states: Tensor, mask: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        attended = self.attention(hidden_states, mask, angles)
        normalized: Tensor = self.output(self.intermediate(attended), attended)
        return normalized


class _Encoder(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.embed_positions = SinusoidalPositions(config.max_position_embeddings, config.head_size)
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        angles = self.embed_positions(hidden_states.shape[1])
        for layer in self.layer:
            hidden_states = layer(hidden_states, mask, angles)
        return hidden_states


class RoFormerPreTrainedModel(PreTrainedModel[RoFormerConfig]):
    """What every RoFormer class shares."""

    config_class = RoFormerConfig
    base_model_prefix = "roformer"

    def computed_tensors(self) -> dict[str, Tensor]:
        prefix = "" if isinstance(self, RoFormerModel) else f"{self.base_model_prefix}."
        table = sinusoid_table(self.config.max_position_embeddings, self.config.head_size)
        return {f"{prefix}encoder.embed_positions.weight": table}


class RoFormerModel(RoFormerPreTrainedModel):
    """The encoder without a head."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.embeddings = RoFormerEmbeddings(config)
        if config.embedding_width != config.hidden_size:
            self.embeddings_project: nn.Module = nn.Linear(config.embedding_width, config.hidden_size)
        else:
            self.embeddings_project = nn.Identity()
        self.encoder = _Encoder(config)
        self.initialize_weights()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> BaseModelOutput:
        """Encodes a batch.

        Args:
            input_ids: (B, S) int64, each below vocab_size.
            attention_mask: (B, S), 1 for tokens and 0 for padding; all ones where it is not given.
            token_type_ids: (B, S) int64, each below type_vocab_size; all zeros where it is not given.

        Raises:
            InputError: If S is beyond max_position_embeddings.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        hidden_states = self.embeddings_project(self.embeddings(input_ids, token_type_ids))
        return BaseModelOutput(self.encoder(hidden_states, additive_mask(attention_mask, hidden_states.dtype)))


class RoFormerForMaskedLM(RoFormerPreTrainedModel):
    """The encoder with a masked-language-model head."""

    tied_weights: ClassVar = {"cls.predictions.decoder.weight": "roformer.embeddings.word_embeddings.weight"}
    aliases: ClassVar = {"cls.predictions.decoder.bias": "cls.predictions.bias"}

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.cls = RoFormerMaskedLMHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Inputs as for :class:`RoFormerModel`; ``labels``: (B, S) int64, -100 where there is nothing to predict."""
        logits = self.cls(self.roformer(input_ids, attention_mask, token_type_ids).last_hidden_state)
        return MaskedLMOutput(None if labels is None else language_model_loss(logits, labels), logits)


class RoFormerForSequenceClassification(RoFormerPreTrainedModel):
    """The encoder with a classifier (or a regression) on the first token."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.classifier = RoFormerClassificationHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Inputs as for :class:`RoFormerModel`; ``labels`` as for :func:`exporter.models.heads.sequence_loss`."""
        logits = self.classifier(self.roformer(input_ids, attention_mask, token_type_ids).last_hidden_state)
        return SequenceClassifierOutput(None if labels is None else sequence_loss(logits, labels, self.config), logits)


class RoFormerForTokenClassification(RoFormerPreTrainedModel):
    """The encoder with a classifier on every token."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config)
        self.roformer = RoFormerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> TokenClassifierOutput:
        """Inputs as for :class:`RoFormerModel`; ``labels``: (B, S) int64, -100 where a token has no label."""
        hidden_states = self.roformer(input_ids, attention_mask, token_type_ids).last_hidden_state
        logits = self.classifier(self.dropout(hidden_states))
        return TokenClassifierOutput(None if labels is None else token_loss(logits, labels), logits)
