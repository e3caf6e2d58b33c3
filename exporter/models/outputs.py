"""What the models return. Fields that were not computed are ``None``; every output also unpacks like a tuple."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor

__all__ = [
    "BaseModelOutput",
    "BaseModelOutputWithPooling",
    "MaskedLMOutput",
    "ModelOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
]


@dataclass
class ModelOutput:
    """The common part: named fields that behave like the tuple of those that are not ``None``."""

    def to_tuple(self) -> tuple[Tensor, ...]:
        """The fields that were computed, in the order of their definition."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if value is not None)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.to_tuple())

    def __getitem__(self, index: int) -> Tensor:
        return self.to_tuple()[index]

    def __len__(self) -> int:
        return len(self.to_tuple())


@dataclass
class BaseModelOutput(ModelOutput):
    """``last_hidden_state``: (B, S, E)."""

    last_hidden_state: Tensor


@dataclass
class BaseModelOutputWithPooling(BaseModelOutput):
    """``last_hidden_state``: (B, S, E); ``pooler_output``: (B, E), or ``None`` without a pooler."""

    pooler_output: Tensor | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, S, vocab_size)."""

    loss: Tensor | None
    logits: Tensor


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, num_labels)."""

    loss: Tensor | None
    logits: Tensor


@dataclass
class TokenClassifierOutput(ModelOutput):
    """``loss``: scalar, given labels; ``logits``: (B, S, num_labels)."""

    loss: Tensor | None
    logits: Tensor
