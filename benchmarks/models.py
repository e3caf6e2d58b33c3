"""The models and inputs that several benchmarks share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from exporter import RobertaPreLayerNormConfig, RobertaPreLayerNormModel, RoFormerConfig, RoFormerModel
from exporter.trace import Interface

__all__ = ["base_model", "random_inputs"]


def base_model(family: str) -> RoFormerModel | RobertaPreLayerNormModel:
    """A random encoder of base size (12 x 768), always the same, in evaluation mode."""
    torch.manual_seed(0)
    if family == "roformer":
        return RoFormerModel(RoFormerConfig()).eval()
    return RobertaPreLayerNormModel(RobertaPreLayerNormConfig(max_position_embeddings=514)).eval()


def random_inputs(
    interface: Interface, batch: int, tokens: int, vocab_size: int, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Random ids without padding, by the names of an encoder's inputs, each (batch, tokens)."""
    ids = np.random.default_rng(seed).integers(3, vocab_size, (batch, tokens))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {spec.name: arrays[spec.name] for spec in interface.inputs}
