"""Rotary Press: RoFormer and RoBERTa-PreLayerNorm checkpoints to engines that are proved to compute the same thing.

``Session``, ``validate`` and ``load_tokenizer`` need only the base install. The rest needs the ``export`` extra and
imports torch when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.exporting import export, load_model
    from exporter.models import (
        RobertaPreLayerNormConfig,
        RobertaPreLayerNormForMaskedLM,
        RobertaPreLayerNormForSequenceClassification,
        RobertaPreLayerNormForTokenClassification,
        RobertaPreLayerNormModel,
        RoFormerConfig,
        RoFormerForMaskedLM,
        RoFormerForSequenceClassification,
        RoFormerForTokenClassification,
        RoFormerModel,
    )
    from exporter.session import Session
    from exporter.tokenization import load_tokenizer
    from exporter.validation import validate

__all__ = [
    "RoFormerConfig",
    "RoFormerForMaskedLM",
    "RoFormerForSequenceClassification",
    "RoFormerForTokenClassification",
    "RoFormerModel",
    "RobertaPreLayerNormConfig",
    "RobertaPreLayerNormForMaskedLM",
    "RobertaPreLayerNormForSequenceClassification",
    "RobertaPreLayerNormForTokenClassification",
    "RobertaPreLayerNormModel",
    "Session",
    "export",
    "load_model",
    "load_tokenizer",
    "validate",
]

_HOMES = {
    "Session": "exporter.session",
    "export": "exporter.exporting",
    "load_model": "exporter.exporting",
    "load_tokenizer": "exporter.tokenization",
    "validate": "exporter.validation",
}
_EXPORT_EXTRA = {"onnx", "onnx_graphsurgeon", "onnxscript", "polygraphy", "torch"}


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use, so that a device without torch can import the package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES.get(name, "exporter.models")), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXPORT_EXTRA:
            raise
        from exporter.errors import UnavailableError

        raise UnavailableError(
            f"{name} needs {error.name}, which is not installed: pip install 'rotary-press[export]'."
        ) from error
    globals()[name] = value
    return value
