"""What the models return. Fields that were not computed are ``None``; every output also unpacks like a tuple.

Shape letters: B batch, C choices, S sequence, P past, T encoder sequence, H heads, D head size, E hidden size,
N layers. Every class may carry ``hidden_states`` (N + 1 of (B, S, E): the embeddings, then each layer; the last is
``last_hidden_state``), ``attentions`` (N of (B, H, S, P + S)) and ``cross_attentions`` (N of (B, H, S, T)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar, overload

from torch import Tensor

from exporter.models.config import ModelConfig

__all__ = [
    "BaseModelOutput",
    "BaseModelOutputWithPooling",
    "CausalLMOutput",
    "MaskedLMOutput",
    "ModelOutput",
    "MultipleChoiceOutput",
    "PastKeyValues",
    "QuestionAnsweringOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "as_requested",
]

PastKeyValues = tuple[tuple[Tensor, ...], ...]
"""For each layer: keys and values, (B, H, P, D) each, and where there is cross-attention its keys and values as well,
(B, H, T, D) each."""
Tensors = tuple[Tensor, ...]


@dataclass
class ModelOutput:
    """The common part: named fields that behave like the tuple of those that are not ``None``."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that were computed, in the order of their definition."""
        return tuple(getattr(self, name) for name in self.keys())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    @overload
    def __getitem__(self, key: int | str) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that were computed: ``dict(output)`` holds them."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)


OutputT = TypeVar("OutputT", bound=ModelOutput)


def as_requested(output: OutputT, return_dict: bool | None, config: ModelConfig) -> OutputT:
    """``output``, or the tuple of it where ``return_dict`` (``None``: the config's) is false.

    Typed as the output class in both cases: a tuple is what the caller asked for by name.
    """
    named = config.return_dict if return_dict is None else return_dict
    return output if named else output.to_tuple()  # type: ignore[return-value]


@dataclass
class BaseModelOutput(ModelOutput):
    """``last_hidden_state``: (B, S, E); ``past_key_values``: of a decoder with ``use_cache``."""

    last_hidden_state: Tensor
    past_key_values: PastKeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """``last_hidden_state``: (B, S, E); ``pooler_output``: (B, E), or ``None`` without a pooler."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: Tensors | None = None
    past_key_values: PastKeyValues | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass
class CausalLMOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, S or logits_to_keep, vocab_size)."""

    loss: Tensor | None
    logits: Tensor
    past_key_values: PastKeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, S, vocab_size)."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, num_labels)."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class MultipleChoiceOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, C). The B * C choices are the batch of the states."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, S, num_labels)."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass
class QuestionAnsweringOutput(ModelOutput):
    """``loss``: scalar, given both positions; ``start_logits`` and ``end_logits``: (B, S)."""

    loss: Tensor | None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
