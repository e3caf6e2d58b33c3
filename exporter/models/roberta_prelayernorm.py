"""RoBERTa-PreLayerNorm: RoBERTa with the norm before each block and one more at the end.

Source: fairseq's ``--encoder-normalize-before`` (arXiv 1904.01038); parameter names as in ``transformers``.
Shape letters: B batch, S sequence, E hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exporter.models.activations import ACTIVATIONS
from exporter.models.attention import SelfAttention, additive_mask
from exporter.models.checkpoint import PreTrainedModel
from exporter.models.config import RobertaPreLayerNormConfig
from exporter.models.embeddings import RobertaPreLayerNormEmbeddings
from exporter.models.heads import (
    RobertaPreLayerNormClassificationHead,
    RobertaPreLayerNormMaskedLMHead,
    classifier_dropout,
    language_model_loss,
    sequence_loss,
    token_loss,
)
from exporter.models.outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

__all__ = [
    "RobertaPreLayerNormForMaskedLM",
    "RobertaPreLayerNormForSequenceClassification",
    "RobertaPreLayerNormForTokenClassification",
    "RobertaPreLayerNormModel",
]


class _AddResidual(nn.Module):
    """dense(x) + residual: the pre-norm ending of both blocks."""

    def __init__(self, config: RobertaPreLayerNormConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        total: Tensor = self.dropout(self.dense(x)) + residual
        return total


class _Attention(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self = SelfAttention(config)
        self.output = _AddResidual(config, config.hidden_size)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        total: Tensor = self.output(self.self(self.LayerNorm(hidden_states), mask), hidden_states)
        return total


class _Intermediate(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(self.LayerNorm(hidden_states)))


class _Layer(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _AddResidual(config, config.intermediate_size)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        attended = self.attention(hidden_states, mask)
        total: Tensor = self.output(self.intermediate(attended), attended)
        return total


class _Encoder(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            hidden_states = layer(hidden_states, mask)
        return hidden_states


class _Pooler(nn.Module):
    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, E) -> (B, E), from the first token."""
        return torch.tanh(self.dense(hidden_states[:, 0]))


class RobertaPreLayerNormPreTrainedModel(PreTrainedModel[RobertaPreLayerNormConfig]):
    """What every RobertaPreLayerNorm class shares."""

    config_class = RobertaPreLayerNormConfig
    base_model_prefix = "roberta_prelayernorm"


class RobertaPreLayerNormModel(RobertaPreLayerNormPreTrainedModel):
    """The encoder without a head; with ``add_pooling_layer`` also a pooled first token."""

    def __init__(self, config: RobertaPreLayerNormConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = RobertaPreLayerNormEmbeddings(config)
        self.encoder = _Encoder(config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = _Pooler(config) if add_pooling_layer else None
        self.initialize_weights()

    @classmethod
    def options_for(cls, state: Mapping[str, Tensor], /) -> dict[str, Any]:
        """No pooler for a checkpoint without one (a language model, a token classifier): a random one helps nobody."""
        return {"add_pooling_layer": any("pooler.dense." in name for name in state)}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Encodes a batch.

        Args:
            input_ids: (B, S) int64, each below vocab_size.
            attention_mask: (B, S), 1 for tokens and 0 for padding; all ones where it is not given.
            token_type_ids: (B, S) int64, each below type_vocab_size; all zeros where it is not given.

        Raises:
            InputError: If a row has more tokens than the positions hold.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        hidden_states = self.embeddings(input_ids, token_type_ids)
        hidden_states = self.encoder(hidden_states, additive_mask(attention_mask, hidden_states.dtype))
        hidden_states = self.LayerNorm(hidden_states)
        return BaseModelOutputWithPooling(hidden_states, None if self.pooler is None else self.pooler(hidden_states))


class RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormPreTrainedModel):
    """The encoder with a masked-language-model head."""

    tied_weights: ClassVar = {"lm_head.decoder.weight": "roberta_prelayernorm.embeddings.word_embeddings.weight"}
    aliases: ClassVar = {"lm_head.decoder.bias": "lm_head.bias"}

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        self.lm_head = RobertaPreLayerNormMaskedLMHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Inputs as for the base model; ``labels``: (B, S) int64, -100 where there is nothing to predict."""
        logits = self.lm_head(self.roberta_prelayernorm(input_ids, attention_mask, token_type_ids).last_hidden_state)
        return MaskedLMOutput(None if labels is None else language_model_loss(logits, labels), logits)


class RobertaPreLayerNormForSequenceClassification(RobertaPreLayerNormPreTrainedModel):
    """The encoder with a classifier (or a regression) on the first token."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        self.classifier = RobertaPreLayerNormClassificationHead(config)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Inputs as for the base model; ``labels`` as for :func:`exporter.models.heads.sequence_loss`."""
        encoded = self.roberta_prelayernorm(input_ids, attention_mask, token_type_ids)
        logits = self.classifier(encoded.last_hidden_state)
        return SequenceClassifierOutput(None if labels is None else sequence_loss(logits, labels, self.config), logits)


class RobertaPreLayerNormForTokenClassification(RobertaPreLayerNormPreTrainedModel):
    """The encoder with a classifier on every token."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config)
        self.roberta_prelayernorm = RobertaPreLayerNormModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialize_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> TokenClassifierOutput:
        """Inputs as for the base model; ``labels``: (B, S) int64, -100 where a token has no label."""
        encoded = self.roberta_prelayernorm(input_ids, attention_mask, token_type_ids)
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        return TokenClassifierOutput(None if labels is None else token_loss(logits, labels), logits)
