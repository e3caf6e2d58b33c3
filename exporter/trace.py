"""torch -> plain ONNX, with dynamic batch and sequence, named inputs and outputs, and shapes checked."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from exporter.errors import TraceError
from exporter.tasks import Task, input_names

__all__ = ["OPSET", "trace"]

# 20 is the oldest set with Gelu, and every runtime we target reads it.
OPSET = 20
# Two rows of seven, where the positions allow it: sizes that no weight has by accident, so that no axis is taken for
# a constant.
SAMPLE_ROWS, SAMPLE_TOKENS = 2, 7
# What the exporter warns of although it is as intended: one axis name serves all inputs.
EXPECTED_WARNINGS = (
    r".*shares the same shape constraints with another axis.*",
    r".*isinstance\(treespec, LeafSpec\).*",
)


class _Positional(nn.Module):
    """Gives the wanted fields of a model's output as a tuple, which is what the exporter reads."""

    def __init__(self, model: nn.Module, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        output = self.model(input_ids, attention_mask, token_type_ids)
        return tuple(getattr(output, field) for field in self.fields)


def trace(model: nn.Module, task: Task) -> onnx.ModelProto:
    """Exports a model in evaluation mode.

    Args:
        model: One of ours, float32, on the CPU.
        task: Names the outputs. Those that this model does not compute (no pooler) are left out.

    Returns:
        Opset 20; inputs (batch, sequence) int64; weights inside.

    Raises:
        TraceError: If the graph's inputs, outputs or shapes are not what the task table says.
    """
    config: Any = model.config
    names = input_names(config)
    shape = (SAMPLE_ROWS, min(SAMPLE_TOKENS, config.max_tokens))
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % config.vocab_size
    samples = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    with torch.no_grad():
        computed = model(ids)
    outputs = [output for output in task.outputs if getattr(computed, output.name, None) is not None]
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=config.max_tokens)}
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            program = torch.onnx.export(
                _Positional(model, tuple(output.name for output in outputs)).eval(),
                kwargs=dict(zip(names, samples, strict=False)),
                dynamo=True,
                dynamic_shapes=dict.fromkeys(names, axes),
                opset_version=OPSET,
                output_names=[output.name for output in outputs],
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None  # with dynamo=True there always is one
    traced = program.model_proto
    check_interface(traced, dict.fromkeys(names, ("batch", "sequence")), {o.name: o.shape(config) for o in outputs})
    return traced


def check_interface(
    model: onnx.ModelProto,
    inputs: dict[str, tuple[str | int, ...]],
    outputs: dict[str, tuple[str | int, ...]],
) -> None:
    """Compares a graph's inputs and outputs, in order, with what was promised.

    Raises:
        TraceError: At the first difference.
    """
    for kind, values, promised in (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs)):
        found = {
            value.name: tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
            for value in values
        }
        if list(found.items()) != list(promised.items()):
            raise TraceError(f"The traced graph has {kind} {found}; the task table promises {promised}.")
