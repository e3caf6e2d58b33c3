"""Reference PyTorch models of the two families. Importing this package imports torch."""

from exporter.models.checkpoint import PreTrainedModel
from exporter.models.config import ModelConfig, RobertaPreLayerNormConfig, RoFormerConfig, load_config
from exporter.models.roberta_prelayernorm import (
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormForSequenceClassification,
    RobertaPreLayerNormForTokenClassification,
    RobertaPreLayerNormModel,
)
from exporter.models.roformer import (
    RoFormerForMaskedLM,
    RoFormerForSequenceClassification,
    RoFormerForTokenClassification,
    RoFormerModel,
)

__all__ = [
    "ModelConfig",
    "PreTrainedModel",
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
    "load_config",
]
