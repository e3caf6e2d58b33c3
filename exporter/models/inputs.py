"""What a base model is given, checked before anything is computed, so that a mistake is told in the caller's names.

Shape letters: B batch, S sequence, P past, T encoder sequence, H heads, D head size, E hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exporter.errors import InputError
from exporter.models.config import ModelConfig
from exporter.models.outputs import PastKeyValues

__all__ = ["INTEGERS", "check_indices", "check_inputs", "check_shape"]

INTEGERS = (torch.int32, torch.int64)  # what torch looks up rows by


def check_inputs(
    config: ModelConfig,
    width: int,
    *,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    past_key_values: PastKeyValues | None,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
) -> int | None:
    """Checks everything but positions, which each family has its own rule for.

    While a model is traced, sizes are symbols and values unknown: only what is given at all is checked then.

    Args:
        width: The last axis of inputs_embeds.

    Returns:
        P, or ``None`` without past_key_values.

    Raises:
        InputError: If the model cannot take one of them, or a shape, a dtype or a value does not fit.
    """
    if (input_ids is None) == (inputs_embeds is None):
        found = "neither" if input_ids is None else "both"
        raise InputError(f"Give exactly one of input_ids and inputs_embeds; got {found}.")
    if past_key_values is not None and not config.is_decoder:
        raise InputError("past_key_values were given, but only a decoder has a cache: is_decoder is false.")
    if encoder_hidden_states is not None and not config.add_cross_attention:
        raise InputError("encoder_hidden_states were given, but the config has add_cross_attention=false.")
    if encoder_hidden_states is None and encoder_attention_mask is not None:
        raise InputError("encoder_attention_mask was given without encoder_hidden_states.")
    if not torch.compiler.is_exporting():
        batch, length = _check_tokens(config, width, input_ids, token_type_ids, inputs_embeds)
        past_length, encoder_length = 0, None
        if encoder_hidden_states is not None:
            encoder_length = encoder_hidden_states.shape[1] if encoder_hidden_states.ndim > 1 else 0
            check_shape("encoder_hidden_states", encoder_hidden_states, (batch, encoder_length, config.hidden_size))
        if past_key_values is not None:
            past_length = _check_past(config, past_key_values, batch, encoder_length)
        _check_mask("attention_mask", attention_mask, batch, length, past_length + length)
        _check_mask("encoder_attention_mask", encoder_attention_mask, batch, length, encoder_length or 0)
    return None if past_key_values is None else past_key_values[0][0].shape[2]


def check_shape(name: str, tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    """Raises an InputError unless the shape is one of ``shapes``."""
    if tuple(tensor.shape) not in shapes:
        raise InputError(f"{name} must have shape {' or '.join(map(str, shapes))}; got {tuple(tensor.shape)}.")


def check_indices(name: str, indices: Tensor, rows: int, limit: str) -> None:
    """Raises an InputError unless all are whole numbers from 0 to below ``rows``, which ``limit`` explains."""
    if indices.dtype not in INTEGERS:
        raise InputError(f"{name} must be int64; got {indices.dtype}.")
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= rows:
        raise InputError(f"{name} must be from 0 to {rows - 1} ({limit}); got {low if low < 0 else high}.")


def _check_tokens(
    config: ModelConfig,
    width: int,
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    inputs_embeds: Tensor | None,
) -> tuple[int, int]:
    """The batch and the length of the given tokens."""
    if input_ids is not None:
        name, given, axes, fits = "input_ids", input_ids, "batch, sequence", input_ids.ndim == 2
    else:
        assert inputs_embeds is not None
        name, given, axes = "inputs_embeds", inputs_embeds, f"batch, sequence, {width}"
        fits = given.ndim == 3 and given.shape[2] == width and given.is_floating_point()
    if not fits or not given.numel():
        raise InputError(
            f"{name} must be ({axes}), with at least one token; got {given.dtype} of shape {tuple(given.shape)}."
        )
    if input_ids is not None:
        check_indices("input_ids", input_ids, config.vocab_size, "vocab_size - 1")
    batch, length = given.shape[:2]
    if token_type_ids is not None:
        check_shape("token_type_ids", token_type_ids, (batch, length))
        check_indices("token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size - 1")
    return batch, length


def _check_past(config: ModelConfig, past: Any, batch: int, encoder_length: int | None) -> int:
    """The length of the cache."""
    layers = past if isinstance(past, tuple | list) else ()
    sizes = [len(layer) if isinstance(layer, tuple | list) else 0 for layer in layers]
    if len(sizes) != config.num_hidden_layers or not set(sizes) <= {2, 4}:
        raise InputError(
            f"past_key_values must be a tuple of {config.num_hidden_layers} layers, each (key, value) or (key, value, "
            f"cross key, cross value), as a step before returned it; got a {type(past).__name__} of {sizes}."
        )
    heads = batch, config.num_attention_heads
    length: int = past[0][0].shape[2] if past[0][0].ndim == 4 else 0
    for index, layer in enumerate(past):
        name = f"past_key_values[{index}]"
        for tensor in layer[:2]:
            check_shape(name, tensor, (*heads, length, config.head_size))
        if len(layer) == 4 and encoder_length is None:
            raise InputError(f"{name} holds keys of an encoder, but encoder_hidden_states were not given.")
        for tensor in layer[2:]:
            check_shape(name, tensor, (*heads, encoder_length or 0, config.head_size))
    return length


def _check_mask(name: str, mask: Tensor | None, batch: int, queries: int, keys: int) -> None:
    if mask is not None:
        check_shape(name, mask, (batch, keys), (batch, queries, keys))
