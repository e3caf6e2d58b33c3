"""The table of tasks: which class serves it, what goes in, what comes out, and what must have fused.

Axis names: ``batch`` and ``sequence`` are dynamic; a number is fixed by the config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from exporter.errors import ConfigError, UserError

__all__ = ["TASKS", "Output", "Task", "TaskName", "expected_fusions", "find_task", "input_names"]

TaskName = Literal["feature-extraction", "fill-mask", "text-classification", "token-classification"]
FAMILY_PREFIX = {"roformer": "RoFormer", "roberta-prelayernorm": "RobertaPreLayerNorm"}


@dataclass(frozen=True)
class Output:
    """An output of a task.

    Args:
        name: As the PyTorch model and the engines call it.
        axes: Axis names; ``"hidden"``, ``"vocabulary"`` and ``"labels"`` stand for the config's sizes.
        is_scores: Whether the largest entry of the last axis is the prediction.
    """

    name: str
    axes: tuple[str, ...]
    is_scores: bool

    def shape(self, config: Any) -> tuple[str | int, ...]:
        """The axes, with the sizes that ``config`` fixes filled in."""
        sizes = {"hidden": config.hidden_size, "vocabulary": config.vocab_size, "labels": config.num_labels}
        return tuple(sizes.get(axis, axis) for axis in self.axes)


@dataclass(frozen=True)
class Task:
    """One row of the table: the class is the family's prefix and ``suffix``."""

    name: TaskName
    suffix: str
    outputs: tuple[Output, ...]


HIDDEN = Output("last_hidden_state", ("batch", "sequence", "hidden"), is_scores=False)
POOLED = Output("pooler_output", ("batch", "hidden"), is_scores=False)
TASKS: dict[TaskName, Task] = {
    "feature-extraction": Task("feature-extraction", "Model", (HIDDEN, POOLED)),
    "fill-mask": Task(
        "fill-mask", "ForMaskedLM", (Output("logits", ("batch", "sequence", "vocabulary"), is_scores=True),)
    ),
    "text-classification": Task(
        "text-classification", "ForSequenceClassification", (Output("logits", ("batch", "labels"), is_scores=True),)
    ),
    "token-classification": Task(
        "token-classification",
        "ForTokenClassification",
        (Output("logits", ("batch", "sequence", "labels"), is_scores=True),),
    ),
}
# Per family: how often each fusion pass must apply to a graph of this config. One norm more than two per layer: the
# sum of embeddings (both families); RoBERTa-PreLayerNorm's first block norm has no sum, its last norm has.
FUSIONS: dict[str, dict[str, Callable[[Any], int]]] = {
    "roformer": {
        "fuse_rotary": lambda config: config.num_hidden_layers * (3 if config.rotary_value else 2),
        "fuse_residual_layer_norm": lambda config: 2 * config.num_hidden_layers + 1,
    },
    "roberta-prelayernorm": {
        "fuse_rotary": lambda _config: 0,
        "fuse_residual_layer_norm": lambda config: 2 * config.num_hidden_layers + 1,
    },
}


def find_task(config: Any, requested: str | None) -> Task:
    """The task that was asked for, or the one that ``config.architectures`` names.

    Raises:
        UserError: If the requested task is unknown.
        ConfigError: If no task follows from the config.
    """
    if requested is not None:
        for name, task in TASKS.items():
            if name == requested:
                return task
        raise UserError(f"Unknown task {requested!r}; expected one of {', '.join(TASKS)}.")
    architecture = (config.architectures or [None])[0]
    for task in TASKS.values():
        if architecture == FAMILY_PREFIX[config.model_type] + task.suffix:
            return task
    raise ConfigError(
        f"config.json names the architecture {architecture!r}, for which there is no task yet. "
        f"Choose one with --task: {', '.join(TASKS)}."
    )


def input_names(config: Any) -> tuple[str, ...]:
    """The inputs of every task, each (batch, sequence) int64.

    A model with one segment type takes no ``token_type_ids``: there would be nothing to say.
    """
    names = ("input_ids", "attention_mask", "token_type_ids")
    return names if config.type_vocab_size > 1 else names[:2]


def expected_fusions(config: Any) -> dict[str, int]:
    """How often each fusion pass must apply, by its name."""
    return {name: count(config) for name, count in FUSIONS[config.model_type].items()}
