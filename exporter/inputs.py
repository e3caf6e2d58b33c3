"""Checking what an engine is given, and completing it. Needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.engines import Arrays
from exporter.errors import InputError
from exporter.tasks import TensorSpec

__all__ = ["Described", "complete_inputs"]


class Described(Protocol):
    """What must be known of a model to complete its inputs; the manifest of an export says it."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...  # noqa: D102  # as the manifest's
    @property
    def max_tokens(self) -> int: ...  # noqa: D102
    @property
    def pad_token_id(self) -> int: ...  # noqa: D102


def complete_inputs(model: Described, given: Mapping[str, NDArray[Any]]) -> Arrays:
    """Everything that the engines of an export take, in their dtypes.

    Left out, masks are all ones, token types zeros, caches empty, and positions count as the graph would.

    Args:
        model: Which it is for.
        given: Arrays by the names of inputs; ``input_ids`` at least.

    Raises:
        InputError: If a name, a shape, a dtype, a value or the length does not fit the model.
    """
    specs = {spec.name: spec for spec in model.inputs}
    for name, array in given.items():
        if name == "token_type_ids" and name not in specs:
            if np.any(array):
                raise InputError("token_type_ids must be 0: this model has one type.")
        elif name not in specs:
            raise InputError(f"{name} was given, but this engine takes {_listed(specs)}.")
    caches = [name for name in specs if name.startswith("past_key_values.")]
    if lacking := [name for name in caches if name not in given] if any(name in given for name in caches) else []:
        raise InputError(f"past_key_values must be given for every layer; {_listed(lacking)} are missing.")
    sizes = _sizes(specs, given)
    if sizes["past"] + sizes["sequence"] > model.max_tokens:
        cached = f", {sizes['past']} of them cached" if sizes["past"] else ""
        raise InputError(
            f"The input has {sizes['past'] + sizes['sequence']} tokens{cached}; the model's positions hold "
            f"{model.max_tokens}: shorten or split the text."
        )
    complete: Arrays = {}
    for name, spec in specs.items():
        shape = tuple(axis if isinstance(axis, int) else _size(axis, sizes) for axis in spec.axes)
        if name in given:
            array = given[name]
            _check(spec, array, shape)
        elif name == "position_ids":
            array = _positions(complete, model.pad_token_id, sizes["past"])
        else:
            array = np.ones(shape) if name.endswith("mask") else np.zeros(shape)
        complete[name] = array.astype(spec.dtype)
    return complete


def _sizes(specs: Mapping[str, TensorSpec], given: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The size of every dynamic axis, from the inputs that decide about it."""
    sizes = {"past": 0}
    for name, decides in (
        ("input_ids", ("batch", "choices", "sequence")),
        ("past_key_values.0.key", ("past",)),
        ("encoder_hidden_states", ("encoder_sequence",)),
    ):
        if name not in specs or (name not in given and name.startswith("past_key_values.")):
            continue
        axes = specs[name].axes
        if name not in given:
            raise InputError(f"{name} must be given, with the axes ({_listed(axes)}).")
        shape = given[name].shape
        if len(shape) != len(axes):
            raise InputError(f"{name} must have the axes ({_listed(axes)}); got the shape {shape}.")
        found = {axis: size for axis, size in zip(axes, shape, strict=True) if axis in decides}
        if name != "past_key_values.0.key" and 0 in found.values():
            raise InputError(f"{name} must not be empty; got the shape {shape}.")
        sizes |= {str(axis): size for axis, size in found.items()}
    return sizes


def _size(axis: str, sizes: Mapping[str, int]) -> int:
    return sum(sizes[part] for part in axis.split(" + "))


def _check(spec: TensorSpec, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InputError(f"{spec.name} must have the shape {shape} ({_listed(spec.axes)}); got {array.shape}.")
    if spec.dtype == "float32":
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise InputError(f"{spec.name} must hold finite numbers; got {array.dtype} with NaN or infinity in it.")
        return
    if array.dtype.kind not in "iub":
        raise InputError(f"{spec.name} must hold integers; got {array.dtype}.")
    low, high = int(array.min()), int(array.max())
    if spec.limit is not None and (low < 0 or high >= spec.limit):
        raise InputError(f"{spec.name} must be from 0 to {spec.limit - 1}; got {low if low < 0 else high}.")


def _positions(complete: Arrays, pad_token_id: int, past: int) -> NDArray[Any]:
    """Places that are not padding, counted from pad_token_id + 1 (fairseq's convention)."""
    is_token = (complete["input_ids"] != pad_token_id).astype(np.int64)
    before = complete["attention_mask"][..., :past].sum(axis=-1, keepdims=True)
    return np.asarray((is_token.cumsum(axis=-1) + before) * is_token + pad_token_id)


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))
