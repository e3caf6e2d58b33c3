"""The table of tasks: which class serves it, what goes in, what comes out, and what must have fused.

Axis names: ``batch``, ``choices``, ``sequence``, ``past`` and ``encoder_sequence`` are dynamic, and so is
``past + sequence``, their sum; a number is fixed by the config. The names are those in the ONNX graphs.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveInt

from exporter.errors import ConfigError, UserError

__all__ = ["CACHE_KINDS", "TASKS", "Task", "TaskName", "TensorSpec", "expected_fusions", "find_task"]

TaskName = Literal[
    "feature-extraction",
    "fill-mask",
    "multiple-choice",
    "question-answering",
    "text-classification",
    "text-generation",
    "token-classification",
]
FAMILY_PREFIX = {"roformer": "RoFormer", "roberta-prelayernorm": "RobertaPreLayerNorm"}
CACHE_KINDS = ("key", "value")


class TensorSpec(BaseModel):
    """An input or an output of an exported model.

    Attributes:
        name: As the engines call it.
        axes: A name where the size is dynamic, else the size.
        limit: Of integers: they are from 0 to ``limit - 1``.
        is_scores: Of an output: whether the largest entry of the last axis is the prediction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    axes: tuple[str | int, ...]
    dtype: Literal["int64", "float32"] = "float32"
    limit: PositiveInt | None = None
    is_scores: bool = False


class Task(NamedTuple):
    """One row of the table: the class is the family's prefix and ``suffix``.

    ``outputs`` names what the class computes, with ``"hidden"``, ``"vocabulary"`` and ``"labels"`` for sizes that the
    config fixes. ``reads_encoder``: whether the class passes an encoder's states on to cross-attention.
    """

    name: TaskName
    suffix: str
    outputs: tuple[TensorSpec, ...]
    token_axes: tuple[str, ...] = ("batch", "sequence")
    reads_encoder: bool = False
    has_cache: bool = False

    def input_specs(self, config: Any, *, position_ids: bool = False) -> tuple[TensorSpec, ...]:
        """The inputs for a config, in order.

        A model with one segment type takes no ``token_type_ids``: there would be nothing to say.

        Args:
            position_ids: Whether the caller gives positions, too. By default the graph counts them.

        Raises:
            ConfigError: If the model has no such input, or the config does not fit the task.
        """
        mask_axes = (*self.token_axes[:-1], "past + sequence") if self.has_cache else self.token_axes
        specs = [
            _integers("input_ids", self.token_axes, config.vocab_size),
            _integers("attention_mask", mask_axes, 2),
        ]
        if config.type_vocab_size > 1:
            specs.append(_integers("token_type_ids", self.token_axes, config.type_vocab_size))
        if position_ids:
            if getattr(config, "position_embedding_type", None) != "absolute":
                raise ConfigError(
                    f"position_ids were asked for, but this {config.model_type} model has no table of learnt positions."
                )
            specs.append(_integers("position_ids", self.token_axes, config.max_position_embeddings))
        if self.has_cache:
            if not config.is_decoder:
                raise ConfigError(
                    f"{self.name} needs a decoder, but config.json has is_decoder=false. "
                    f"Set it to true if the model was trained to predict the next token."
                )
            specs += self._cache("past_key_values", "past", config)
        if self.reads_encoder and config.add_cross_attention:
            axes = ("batch", "encoder_sequence")
            specs.append(TensorSpec(name="encoder_hidden_states", axes=(*axes, config.hidden_size)))
            specs.append(_integers("encoder_attention_mask", axes, 2))
        return tuple(specs)

    def output_specs(self, config: Any) -> tuple[TensorSpec, ...]:
        """The outputs for a config, in order; a model without a pooler lacks ``pooler_output``."""
        sizes = {"hidden": config.hidden_size, "vocabulary": config.vocab_size, "labels": config.num_labels}
        specs = [
            spec.model_copy(update={"axes": tuple(sizes.get(str(axis), axis) for axis in spec.axes)})
            for spec in self.outputs
        ]
        return (*specs, *(self._cache("present", "past + sequence", config) if self.has_cache else ()))

    def _cache(self, prefix: str, axis: str, config: Any) -> list[TensorSpec]:
        axes = ("batch", config.num_attention_heads, axis, config.head_size)
        return [
            TensorSpec(name=f"{prefix}.{layer}.{kind}", axes=axes)
            for layer in range(config.num_hidden_layers)
            for kind in CACHE_KINDS
        ]


def _integers(name: str, axes: tuple[str, ...], limit: int) -> TensorSpec:
    return TensorSpec(name=name, axes=axes, dtype="int64", limit=limit)


def _scores(name: str, *axes: str) -> TensorSpec:
    return TensorSpec(name=name, axes=axes, is_scores=True)


TASKS: dict[TaskName, Task] = {
    task.name: task
    for task in (
        Task(
            "feature-extraction",
            "Model",
            (
                TensorSpec(name="last_hidden_state", axes=("batch", "sequence", "hidden")),
                TensorSpec(name="pooler_output", axes=("batch", "hidden")),
            ),
            reads_encoder=True,
        ),
        Task("fill-mask", "ForMaskedLM", (_scores("logits", "batch", "sequence", "vocabulary"),), reads_encoder=True),
        Task(
            "multiple-choice",
            "ForMultipleChoice",
            (_scores("logits", "batch", "choices"),),
            token_axes=("batch", "choices", "sequence"),
        ),
        Task(
            "question-answering",
            "ForQuestionAnswering",
            (_scores("start_logits", "batch", "sequence"), _scores("end_logits", "batch", "sequence")),
        ),
        Task("text-classification", "ForSequenceClassification", (_scores("logits", "batch", "labels"),)),
        Task(
            "text-generation",
            "ForCausalLM",
            (_scores("logits", "batch", "sequence", "vocabulary"),),
            reads_encoder=True,
            has_cache=True,
        ),
        Task("token-classification", "ForTokenClassification", (_scores("logits", "batch", "sequence", "labels"),)),
    )
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
        f"config.json names the architecture {architecture!r}, for which there is no task. "
        f"Choose one with --task: {', '.join(TASKS)}."
    )


def expected_fusions(config: Any, task: Task) -> dict[str, int]:
    """How often each fusion pass must apply, by its name."""
    layers = int(config.num_hidden_layers)
    attentions = 2 if config.add_cross_attention and task.reads_encoder else 1  # others hold its layers, but run none
    is_roformer = config.model_type == "roformer"
    is_gelu = config.hidden_act in ("gelu", "gelu_new")
    has_vocabulary = any("vocabulary" in spec.axes for spec in task.outputs)
    return {
        "fuse_rotary": layers * (3 if config.rotary_value else 2) if is_roformer else 0,
        # One sum and norm after each attention and feed-forward, and one of embeddings. RoBERTa-PreLayerNorm's first
        # norm has no sum of its own, but its last one has.
        "fuse_residual_layer_norm": layers * (attentions + 1) + 1,
        "fuse_attention": layers * attentions,
        # RoBERTa's vocabulary head knows no other activation; a head on one token has no sequence axis.
        "fuse_bias_gelu": layers * is_gelu + (has_vocabulary and (is_gelu or not is_roformer)),
    }
