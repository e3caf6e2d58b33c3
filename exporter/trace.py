"""torch -> plain ONNX, with dynamic axes, named inputs and outputs, and shapes checked."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from exporter.errors import TraceError
from exporter.tasks import Task, TensorSpec

__all__ = ["OPSET", "Interface", "trace"]

# 20 is the oldest set with Gelu, and every runtime we target reads it.
OPSET = 20
# Sizes that no weight has by accident, so that no axis is taken for a constant; smaller where the positions are few,
# but never one, which torch.export takes for a constant.
SAMPLE_SIZES = {"batch": 2, "choices": 3, "sequence": 7, "past": 5, "encoder_sequence": 11}
# What the exporter warns of although it is as intended: one axis name serves all inputs.
EXPECTED_WARNINGS = (
    r".*shares the same shape constraints with another axis.*",
    r".*isinstance\(treespec, LeafSpec\).*",
)


class Interface(nn.Module):
    """A model as its engines will be called: flat tensors in the order of the task table, in and out.

    Args:
        model: One of ours. Outputs that it does not compute (no pooler) are left out.
        task: Of the model.
        position_ids: Whether positions are an input; by default they are counted in the graph.

    Raises:
        ConfigError: If the config does not fit the task.
    """

    def __init__(self, model: nn.Module, task: Task, *, position_ids: bool = False) -> None:
        super().__init__()
        config: Any = model.config
        self.model = model
        self.inputs = task.input_specs(config, position_ids=position_ids)
        has_pooler = getattr(model, "pooler", None) is not None
        self.outputs = tuple(spec for spec in task.output_specs(config) if has_pooler or spec.name != "pooler_output")
        self.has_cache = task.has_cache
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """One tensor per entry of ``inputs`` -> one per entry of ``outputs``."""
        arguments: dict[str, Any] = {}
        past: list[Tensor] = []
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            if spec.name.startswith("past_key_values."):
                past.append(tensor)
            else:
                arguments[spec.name] = tensor
        if self.has_cache:
            arguments |= {"past_key_values": tuple(zip(past[0::2], past[1::2], strict=True)), "use_cache": True}
        output = self.model(**arguments, return_dict=True)
        named = [getattr(output, spec.name) for spec in self.outputs if not spec.name.startswith("present.")]
        present = [tensor for layer in output.past_key_values for tensor in layer[:2]] if self.has_cache else []
        return (*named, *present)


def trace(interface: Interface) -> onnx.ModelProto:
    """Exports a model in evaluation mode, float32, on the CPU.

    Returns:
        Opset 20; inputs and outputs as the task table says; weights inside.

    Raises:
        TraceError: If the graph's inputs, outputs or shapes are not what the task table says.
    """
    config: Any = interface.model.config
    names = [spec.name for spec in interface.inputs]
    shapes = {**SAMPLE_SIZES, **_few_positions(config.max_tokens, has_cache=interface.has_cache)}
    axes = {name: torch.export.Dim(name, max=_longest(name, config)) for name in SAMPLE_SIZES}
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            program = torch.onnx.export(
                interface,
                tuple(_sample(spec, shapes, config.vocab_size) for spec in interface.inputs),
                input_names=names,
                output_names=[spec.name for spec in interface.outputs],
                dynamic_shapes=(tuple(_dynamic(spec, axes) for spec in interface.inputs),),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None  # with dynamo=True there always is one
    traced = program.model_proto
    _forget_places(traced)
    _name_sums(traced, interface.inputs)
    check_interface(traced, interface.inputs, interface.outputs)
    return traced


def check_interface(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Compares a graph's inputs and outputs, in order, with what was promised.

    Raises:
        TraceError: At the first difference.
    """
    for kind, values, specs in (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs)):
        found = [
            (value.name, tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim))
            for value in values
        ]
        promised = [(spec.name, spec.axes) for spec in specs]
        if found != promised:
            raise TraceError(f"The traced graph has {kind} {found}; the task table promises {promised}.")


def _forget_places(model: onnx.ModelProto) -> None:
    """Takes the stack traces off the nodes: they name files of the machine that traced."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


def _name_sums(model: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> None:
    """Gives axes that are a sum of two others the promised name of that sum, in the whole graph.

    The exporter calls such an axis of an input by a symbol of its own, and writes the terms elsewhere in any order.
    """
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.input, inputs, strict=False):
        for axis, promised in zip(value.type.tensor_type.shape.dim, spec.axes, strict=False):
            if isinstance(promised, str) and " + " in promised and axis.dim_param:
                names[axis.dim_param] = promised
                names[" + ".join(reversed(promised.split(" + ")))] = promised
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def _few_positions(max_tokens: int, *, has_cache: bool) -> dict[str, int]:
    if not has_cache:
        return {"sequence": max(2, min(SAMPLE_SIZES["sequence"], max_tokens))}
    past = max(2, min(SAMPLE_SIZES["past"], max_tokens // 2))
    return {"past": past, "sequence": max(2, min(SAMPLE_SIZES["sequence"], max_tokens - past))}


def _longest(axis: str, config: Any) -> int | None:
    return max(2, int(config.max_tokens)) if axis in ("sequence", "past") else None


def _size(axis: str | int, sizes: Mapping[str, int]) -> int:
    return axis if isinstance(axis, int) else sum(sizes[part] for part in axis.split(" + "))


def _sample(spec: TensorSpec, sizes: Mapping[str, int], vocab_size: int) -> Tensor:
    shape = tuple(_size(axis, sizes) for axis in spec.axes)
    if spec.dtype == "float32":
        return torch.zeros(shape)
    if spec.name.endswith("mask"):
        return torch.ones(shape, dtype=torch.int64)
    if spec.name == "input_ids":
        return (torch.arange(torch.Size(shape).numel()) % vocab_size).reshape(shape)
    return torch.zeros(shape, dtype=torch.int64)


def _dynamic(spec: TensorSpec, axes: Mapping[str, Any]) -> dict[int, Any]:
    """Which axes vary. A sum of two names follows from the graph; torch.export has no way to say it beforehand."""
    return {
        index: axes.get(axis, torch.export.Dim.DYNAMIC) for index, axis in enumerate(spec.axes) if isinstance(axis, str)
    }
