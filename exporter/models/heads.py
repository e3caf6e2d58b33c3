"""The heads on top of the encoders, with the parameter names of the published checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.errors import InputError
from exporter.models.activations import ACTIVATIONS
from exporter.models.config import ModelConfig, RobertaPreLayerNormConfig, RoFormerConfig

__all__ = [
    "RoFormerClassificationHead",
    "RoFormerMaskedLMHead",
    "RobertaPreLayerNormClassificationHead",
    "RobertaPreLayerNormMaskedLMHead",
    "language_model_loss",
    "sequence_loss",
    "token_loss",
]


class _PredictionTransform(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_width)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.embedding_width, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.activation(self.dense(hidden_states)))
        return normalized


class _Predictions(nn.Module):
    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.transform = _PredictionTransform(config)
        self.decoder = nn.Linear(config.embedding_width, config.vocab_size)
        self.bias = self.decoder.bias  # checkpoints carry the one parameter under both names


class RoFormerMaskedLMHead(nn.Module):
    """Dense, activation, norm, then the vocabulary."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.predictions = _Predictions(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, E) -> (B, S, vocab_size)."""
        logits: Tensor = self.predictions.decoder(self.predictions.transform(hidden_states))
        return logits


class RobertaPreLayerNormMaskedLMHead(nn.Module):
    """Dense, GELU, norm, then the vocabulary."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = self.decoder.bias  # checkpoints carry the one parameter under both names

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, E) -> (B, S, vocab_size)."""
        logits: Tensor = self.decoder(self.layer_norm(F.gelu(self.dense(hidden_states))))
        return logits


class _ClassificationHead(nn.Module):
    """Dense, activation, projection on the first token: (B, S, E) -> (B, num_labels)."""

    def __init__(self, config: ModelConfig, *, activation: str, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[activation]  # type: ignore[index]  # both callers pass a documented name
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        first = self.dropout(hidden_states[:, 0])  # (B, E): [CLS] or <s>
        logits: Tensor = self.out_proj(self.dropout(self.activation(self.dense(first))))
        return logits


class RoFormerClassificationHead(_ClassificationHead):
    """RoFormer's sequence head uses the encoder's own activation."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__(config, activation=config.hidden_act, dropout=config.hidden_dropout_prob)


class RobertaPreLayerNormClassificationHead(_ClassificationHead):
    """RoBERTa's sequence head uses tanh, whatever the encoder uses."""

    def __init__(self, config: RobertaPreLayerNormConfig) -> None:
        super().__init__(config, activation="tanh", dropout=classifier_dropout(config))


def classifier_dropout(config: RobertaPreLayerNormConfig) -> float:
    """``classifier_dropout``, or the hidden dropout where it is not given."""
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def language_model_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over the vocabulary, (B, S, vocab_size) against (B, S) int64; labels of -100 do not count.

    Raises:
        InputError: If the labels' shape does not fit.
    """
    if labels.shape != logits.shape[:-1]:
        raise InputError(f"labels must have shape {tuple(logits.shape[:-1])}; got {tuple(labels.shape)}.")
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


token_loss = language_model_loss  # the same loss over num_labels classes


def sequence_loss(logits: Tensor, labels: Tensor, config: ModelConfig) -> Tensor:
    """The loss that ``config.problem_type`` names, or that follows from num_labels and the labels' dtype.

    Args:
        logits: (B, num_labels).
        labels: (B,) int64 or int32 for classes, (B,) or (B, num_labels) float for regression or several labels at once.

    Raises:
        InputError: If the labels' shape does not fit.
    """
    kind = config.problem_type
    if kind is None:
        if config.num_labels == 1:
            kind = "regression"
        elif labels.dtype in (torch.int32, torch.int64):
            kind = "single_label_classification"
        else:
            kind = "multi_label_classification"
    one_per_row = kind == "single_label_classification" or config.num_labels == 1
    shape = logits.shape[:1] if one_per_row else logits.shape
    if labels.shape != shape and not (one_per_row and labels.shape == (*shape, 1)):
        raise InputError(f"{kind} needs labels of shape {tuple(shape)}; got {tuple(labels.shape)}.")
    if kind == "single_label_classification":
        return F.cross_entropy(logits, labels.flatten().long())
    loss = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
    return loss(logits, labels.reshape(logits.shape).to(logits.dtype))
