"""The heads on top of the encoders, with the parameter names of the published checkpoints, and their losses.

Shape letters: B batch, C choices, S sequence, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.errors import ConfigError, InputError
from exporter.models.activations import ACTIVATIONS
from exporter.models.config import ModelConfig, RobertaPreLayerNormConfig, RoFormerConfig
from exporter.models.inputs import INTEGERS

__all__ = [
    "RoFormerClassificationHead",
    "RoFormerLMHead",
    "RoFormerSequenceSummary",
    "RobertaPreLayerNormClassificationHead",
    "RobertaPreLayerNormLMHead",
    "choice_loss",
    "classifier_dropout",
    "flatten_choices",
    "keep_logits",
    "next_token_loss",
    "sequence_loss",
    "span_loss",
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


class RoFormerLMHead(nn.Module):
    """Dense, activation, norm, then the vocabulary."""

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        self.predictions = _Predictions(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, E) -> (B, S, vocab_size)."""
        logits: Tensor = self.predictions.decoder(self.predictions.transform(hidden_states))
        return logits


class RobertaPreLayerNormLMHead(nn.Module):
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


class RoFormerSequenceSummary(nn.Module):
    """One vector per sequence: its last token, first token or mean, then what the config's ``summary_*`` adds.

    The last token is the last place of the row, padding or not, as in the reference implementation.

    Raises:
        ConfigError: If the config asks for a projection that the classifier cannot read.
    """

    def __init__(self, config: RoFormerConfig) -> None:
        super().__init__()
        if config.summary_use_proj and config.summary_proj_to_labels and config.num_labels != config.hidden_size:
            raise ConfigError(
                f"summary_proj_to_labels=true gives {config.num_labels} features, but the classifier of multiple "
                f"choice reads hidden_size={config.hidden_size}: set it to false."
            )
        self.kind = config.summary_type
        self.summary = nn.Linear(config.hidden_size, config.hidden_size) if config.summary_use_proj else nn.Identity()
        self.activation = ACTIVATIONS[config.summary_activation] if config.summary_activation else nn.Identity()
        self.first_dropout = nn.Dropout(config.summary_first_dropout)
        self.last_dropout = nn.Dropout(config.summary_last_dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, E) -> (B, E)."""
        if self.kind == "mean":
            summary = hidden_states.mean(dim=1)
        else:
            summary = hidden_states[:, 0 if self.kind == "first" else -1]
        vector: Tensor = self.last_dropout(self.activation(self.summary(self.first_dropout(summary))))
        return vector


def flatten_choices(x: Tensor | None) -> Tensor | None:
    """(B, C, …) -> (B * C, …): every choice is a row of its own until the classifier.

    Raises:
        InputError: If there is no axis of choices.
    """
    if x is not None and x.ndim < 3:
        raise InputError(f"Multiple choice takes (batch, choices, sequence); got shape {tuple(x.shape)}.")
    return None if x is None else x.flatten(0, 1)


def keep_logits(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The last ``logits_to_keep`` places of (B, S, E), or those that a tensor of one axis names; 0 keeps all.

    Raises:
        InputError: If the tensor has another shape or dtype, or names a place outside of the sequence.
    """
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.ndim != 1 or logits_to_keep.dtype not in INTEGERS:
            raise InputError(
                f"logits_to_keep must be a number or int64 of one axis; got {logits_to_keep.dtype} of shape "
                f"{tuple(logits_to_keep.shape)}."
            )
        length = hidden_states.shape[1]
        if not torch.compiler.is_exporting() and ((logits_to_keep < -length) | (logits_to_keep >= length)).any():
            raise InputError(f"logits_to_keep must name some of the {length} places; got {logits_to_keep.tolist()}.")
        return hidden_states[:, logits_to_keep]
    return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of (B, S, classes) against (B, S) int64; labels of -100 do not count.

    Raises:
        InputError: If the labels' shape does not fit, or a label is outside of the classes.
    """
    labels = _as_classes("labels", labels, logits, logits.shape[:-1])
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each place of (B, S, vocab_size) against the next label of (B, S) int64; -100 does not count.

    Raises:
        InputError: If the labels' shape does not fit, or a label is outside of the vocabulary.
    """
    labels = _as_classes("labels", labels, logits, logits.shape[:-1])
    return F.cross_entropy(logits[:, :-1].flatten(0, -2), labels[:, 1:].flatten())


def choice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of (B, C) against (B,) int64.

    Raises:
        InputError: If the labels' shape does not fit, or a label is outside of the choices.
    """
    return F.cross_entropy(logits, _as_classes("labels", labels, logits, logits.shape[:1]))


def span_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor | None, end: Tensor | None) -> Tensor | None:
    """The mean of two cross entropies, (B, S) against (B,) int64 each; ``None`` where a position is not given.

    Positions beyond the sequence do not count; negative ones are taken for 0, as in ``transformers``.

    Raises:
        InputError: If a position's shape or dtype does not fit.
    """
    if start is None or end is None:
        return None
    length, losses = start_logits.shape[1], []
    for name, logits, positions in (("start", start_logits, start), ("end", end_logits, end)):
        places = _as_integers(f"{name}_positions", positions, logits.shape[:1]).clamp(0, length)
        losses.append(F.cross_entropy(logits, places, ignore_index=length))
    return (losses[0] + losses[1]) / 2


def sequence_loss(logits: Tensor, labels: Tensor, config: ModelConfig) -> Tensor:
    """The loss that ``config.problem_type`` names, or that follows from num_labels and the labels' dtype.

    Args:
        logits: (B, num_labels).
        labels: (B,) int64 or int32 for classes, (B,) or (B, num_labels) float for regression or several labels at once.

    Raises:
        InputError: If the labels' shape does not fit, or a label is outside of the classes.
    """
    kind = config.problem_type
    if kind is None:
        if config.num_labels == 1:
            kind = "regression"
        elif labels.dtype in (torch.int32, torch.int64):
            kind = "single_label_classification"
        else:
            kind = "multi_label_classification"
    if kind == "single_label_classification":
        return F.cross_entropy(logits, _as_classes(f"labels of {kind}", labels, logits, logits.shape[:1]))
    labels = _one_per_row(f"labels of {kind}", labels, logits.shape[:1] if config.num_labels == 1 else logits.shape)
    loss = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
    return loss(logits, labels.reshape(logits.shape).to(logits.dtype))


def _one_per_row(name: str, values: Tensor, shape: torch.Size) -> Tensor:
    """The values in ``shape``. Where that is (B,), (B, 1) will do as well."""
    if values.shape != shape and (len(shape) != 1 or values.shape != (*shape, 1)):
        raise InputError(f"{name} must have shape {tuple(shape)}; got {tuple(values.shape)}.")
    return values.reshape(shape)


def _as_integers(name: str, values: Tensor, shape: torch.Size) -> Tensor:
    if values.dtype not in INTEGERS:
        raise InputError(f"{name} must be int64; got {values.dtype}.")
    return _one_per_row(name, values, shape).long()


def _as_classes(name: str, labels: Tensor, logits: Tensor, shape: torch.Size) -> Tensor:
    labels, classes = _as_integers(name, labels, shape), logits.shape[-1]
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise InputError(f"{name} must be from 0 to {classes - 1}, or -100; got {int(wrong[0])}.")
    return labels
