"""The configurations of the two families, as ``config.json`` holds them.

Every field and default is the documented one, so a folder that ``transformers`` wrote loads unchanged. Keys that
the documents do not name (``transformers_version``, ``dtype``, …) are kept and written back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from exporter.errors import CheckpointError, ConfigError

__all__ = ["Activation", "ModelConfig", "RoFormerConfig", "RobertaPreLayerNormConfig", "load_config"]

Activation = Literal["gelu", "gelu_new", "relu", "selu", "silu", "swish", "tanh"]


class ModelConfig(BaseModel):
    """What both families share. Construct it with keywords; unknown keywords are kept, as in ``config.json``."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, allow_inf_nan=False)

    model_type: str
    architectures: list[str] | None = None
    vocab_size: PositiveInt
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: float = Field(0.1, ge=0.0, le=1.0)
    attention_probs_dropout_prob: float = Field(0.1, ge=0.0, le=1.0)
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt = 2
    initializer_range: float = Field(0.02, gt=0.0)
    layer_norm_eps: float = Field(1e-12, ge=0.0)
    pad_token_id: NonNegativeInt | None
    bos_token_id: NonNegativeInt | None
    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None
    is_decoder: bool = False
    add_cross_attention: bool = False
    use_cache: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    tie_word_embeddings: bool = True
    id2label: dict[int, str] = Field({0: "LABEL_0", 1: "LABEL_1"}, min_length=1)
    label2id: dict[str, int] | None = None
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_num_labels(cls, data: Any) -> Any:
        """``num_labels`` is only another way to say how many entries ``id2label`` has."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        count, labels = data.pop("num_labels", None), data.get("id2label")
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"num_labels must be a positive integer; got {count!r}")
        if labels is None:
            data.pop("id2label", None)  # null stands for the default
        if count is not None and (labels is None or (isinstance(labels, dict) and len(labels) != count)):
            data["id2label"] = {index: f"LABEL_{index}" for index in range(count)}
            data["label2id"] = None
        return data

    @model_validator(mode="after")
    def _check_sizes(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads; "
                f"got hidden_size={self.hidden_size}, num_attention_heads={self.num_attention_heads}"
            )
        if self.add_cross_attention and not self.is_decoder:
            raise ValueError("add_cross_attention needs is_decoder: only a decoder reads the states of an encoder")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(
                f"pad_token_id must be below vocab_size; got {self.pad_token_id} with vocab_size={self.vocab_size}"
            )
        return self

    @property
    def num_labels(self) -> int:
        """The number of classes of a classification head."""
        return len(self.id2label)

    @property
    def head_size(self) -> int:
        """The width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """How many tokens, special ones included, fit the model's positions."""
        return self.max_position_embeddings

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        content = self.model_dump(mode="json")
        content["label2id"] = {label: index for index, label in self.id2label.items()}
        return content


class RoFormerConfig(ModelConfig):
    """RoFormer: a BERT-like encoder whose queries and keys are rotated by their position.

    Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding (arXiv 2104.09864).

    Raises:
        pydantic.ValidationError: If a value is of the wrong type or out of range.
    """

    model_type: Literal["roformer"] = "roformer"
    vocab_size: PositiveInt = 50000
    embedding_size: PositiveInt | None = None  # None means hidden_size
    max_position_embeddings: PositiveInt = 1536
    pad_token_id: NonNegativeInt | None = 0
    bos_token_id: NonNegativeInt | None = None
    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = None
    rotary_value: bool = False
    # Of ForMultipleChoice alone: how a sequence becomes one vector.
    summary_type: Literal["last", "first", "mean", "cls_index"] = "last"
    summary_use_proj: bool = False
    summary_proj_to_labels: bool = False
    summary_activation: Activation | None = None
    summary_first_dropout: float = Field(0.0, ge=0.0, le=1.0)
    summary_last_dropout: float = Field(0.0, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _check_rotary(self) -> RoFormerConfig:
        if self.head_size % 2:
            raise ValueError(
                f"a rotary head rotates pairs, so hidden_size / num_attention_heads must be even; got {self.head_size}"
            )
        return self

    @property
    def embedding_width(self) -> int:
        """The width of the embedding tables: ``embedding_size``, or ``hidden_size`` where it is not given."""
        return self.embedding_size or self.hidden_size


class RobertaPreLayerNormConfig(ModelConfig):
    """RoBERTa with the normalisation before each block (fairseq's ``--encoder-normalize-before``).

    Source: Ott et al., fairseq (arXiv 1904.01038); checkpoints ``efficient_mlm_*`` by Wettig et al.

    Raises:
        pydantic.ValidationError: If a value is of the wrong type or out of range.
    """

    model_type: Literal["roberta-prelayernorm"] = "roberta-prelayernorm"
    vocab_size: PositiveInt = 50265
    max_position_embeddings: PositiveInt = 512
    pad_token_id: NonNegativeInt = 1
    bos_token_id: NonNegativeInt | None = 0
    eos_token_id: NonNegativeInt | list[NonNegativeInt] | None = 2
    position_embedding_type: Literal["absolute", "relative_key", "relative_key_query"] = "absolute"
    classifier_dropout: float | None = Field(None, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _check_positions(self) -> RobertaPreLayerNormConfig:
        if self.max_tokens < 1 or self.max_position_embeddings <= self.pad_token_id:
            raise ValueError(
                f"positions count from pad_token_id + 1, so max_position_embeddings must be above that; "
                f"got max_position_embeddings={self.max_position_embeddings}, pad_token_id={self.pad_token_id}"
            )
        return self

    @property
    def max_tokens(self) -> int:
        """How many tokens fit: positions count from pad_token_id + 1, so a table of 514 rows holds 512.

        Relative positions have no such offset: their table holds each distance below max_position_embeddings.
        """
        if self.position_embedding_type != "absolute":
            return self.max_position_embeddings
        return self.max_position_embeddings - self.pad_token_id - 1


FAMILIES: dict[str, type[RoFormerConfig] | type[RobertaPreLayerNormConfig]] = {
    "roformer": RoFormerConfig,
    "roberta-prelayernorm": RobertaPreLayerNormConfig,
}


def load_config(folder: Path) -> RoFormerConfig | RobertaPreLayerNormConfig:
    """Reads ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: If the folder or the file is missing, or the file is not a JSON object.
        ConfigError: If the architecture is not one of ours, or a value is wrong.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"No checkpoint folder at {folder}: expected a folder with config.json and model.safetensors. "
            f"Download a hub model first (hf download NAME --local-dir DIR) and give that folder."
        )
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: expected a folder in the Hugging Face layout.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): copy the file again from its source.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object; got a {type(content).__name__}.")
    family = FAMILIES.get(str(content.get("model_type")))
    if family is None:
        raise ConfigError(
            f"{path} is of another architecture: model_type is {content.get('model_type')!r}, "
            f"expected one of {', '.join(map(repr, FAMILIES))}."
        )
    try:
        return family(**content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'values'}: {item['msg']} (got {item['input']!r})"
            if item["loc"]
            else item["msg"]
            for item in error.errors()
        )
        raise ConfigError(f"{path} has wrong values: {problems}.") from error
