"""Rotary Press: RoFormer and RoBERTa-PreLayerNorm checkpoints to engines that are proved to compute the same thing.

``Session``, ``Sampling``, ``validate`` and the tokenizers need only the base install. The rest needs the ``export``
extra and imports torch when it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# From 1.29 on, ONNX Runtime tells its makers about the models that it runs, and writes to HOME, unless this is set
# before it is imported. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from exporter.building import build
    from exporter.exporting import export, load_model
    from exporter.fusing import fuse
    from exporter.generation import Sampling
    from exporter.kernels import write_kernels
    from exporter.models import (
        RobertaPreLayerNormConfig,
        RobertaPreLayerNormForCausalLM,
        RobertaPreLayerNormForMaskedLM,
        RobertaPreLayerNormForMultipleChoice,
        RobertaPreLayerNormForQuestionAnswering,
        RobertaPreLayerNormForSequenceClassification,
        RobertaPreLayerNormForTokenClassification,
        RobertaPreLayerNormModel,
        RoFormerConfig,
        RoFormerForCausalLM,
        RoFormerForMaskedLM,
        RoFormerForMultipleChoice,
        RoFormerForQuestionAnswering,
        RoFormerForSequenceClassification,
        RoFormerForTokenClassification,
        RoFormerModel,
    )
    from exporter.session import Session
    from exporter.tokenization import RobertaTokenizer, RoFormerTokenizer, RoFormerTokenizerFast, load_tokenizer
    from exporter.validation import validate

__all__ = [
    "RoFormerConfig",
    "RoFormerForCausalLM",
    "RoFormerForMaskedLM",
    "RoFormerForMultipleChoice",
    "RoFormerForQuestionAnswering",
    "RoFormerForSequenceClassification",
    "RoFormerForTokenClassification",
    "RoFormerModel",
    "RoFormerTokenizer",
    "RoFormerTokenizerFast",
    "RobertaPreLayerNormConfig",
    "RobertaPreLayerNormForCausalLM",
    "RobertaPreLayerNormForMaskedLM",
    "RobertaPreLayerNormForMultipleChoice",
    "RobertaPreLayerNormForQuestionAnswering",
    "RobertaPreLayerNormForSequenceClassification",
    "RobertaPreLayerNormForTokenClassification",
    "RobertaPreLayerNormModel",
    "RobertaTokenizer",
    "Sampling",
    "Session",
    "build",
    "export",
    "fuse",
    "load_model",
    "load_tokenizer",
    "validate",
    "write_kernels",
]

_HOMES = {
    "RoFormerTokenizer": "exporter.tokenization",
    "RoFormerTokenizerFast": "exporter.tokenization",
    "RobertaTokenizer": "exporter.tokenization",
    "Sampling": "exporter.generation",
    "Session": "exporter.session",
    "build": "exporter.building",
    "export": "exporter.exporting",
    "fuse": "exporter.fusing",
    "load_model": "exporter.exporting",
    "load_tokenizer": "exporter.tokenization",
    "validate": "exporter.validation",
    "write_kernels": "exporter.kernels",
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
