"""Config fields, defaults, round trips and wrong values, for both families."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from exporter.errors import CheckpointError, ConfigError
from exporter.models.config import (
    Activation,
    ModelConfig,
    RobertaPreLayerNormConfig,
    RoFormerConfig,
    load_config,
)

BOTH = pytest.mark.parametrize("config_class", [RoFormerConfig, RobertaPreLayerNormConfig])
ROFORMER, ROBERTA = {"model_type": "roformer"}, {"model_type": "roberta-prelayernorm"}


def write_config(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


@BOTH
def test_documented_fields_have_the_documented_defaults(config_class: type[ModelConfig], transformers: Any) -> None:
    documented = getattr(transformers, config_class.__name__)
    own = {field.name for field in dataclasses.fields(documented)} - {
        field.name for field in dataclasses.fields(transformers.PreTrainedConfig)
    }
    assert {"vocab_size", "layer_norm_eps", "tie_word_embeddings"} <= own
    names = own | {"model_type", "architectures", "id2label", "problem_type", "num_labels"}
    ours, theirs = config_class.model_validate({}), documented()
    found = {name: getattr(ours, name) for name in names}
    if isinstance(ours, RoFormerConfig):
        found["embedding_size"] = ours.embedding_width  # theirs fills it in at once
    assert found == {name: getattr(theirs, name) for name in names}


@BOTH
def test_undocumented_fields_have_inert_defaults(config_class: type[ModelConfig], transformers: Any) -> None:
    """Only what theirs reads, or once read, without a field for it; the default is what it does without one."""
    documented = {field.name for field in dataclasses.fields(getattr(transformers, config_class.__name__))}
    alone = {
        name: getattr(config_class.model_validate({}), name)
        for name in config_class.model_fields
        if name not in documented | {"model_type"}
    }
    of_family: dict[str, object] = {"position_embedding_type": "absolute"}
    if config_class is RoFormerConfig:
        of_family = {
            "summary_type": "last",
            "summary_use_proj": False,
            "summary_proj_to_labels": False,
            "summary_activation": None,
            "summary_first_dropout": 0.0,
            "summary_last_dropout": 0.0,
        }
    assert alone == {"output_attentions": False} | of_family


@BOTH
def test_round_trip_keeps_what_transformers_wrote(
    config_class: type[ModelConfig], transformers: Any, tmp_path: Path
) -> None:
    written = getattr(transformers, config_class.__name__)(
        hidden_size=24,
        num_attention_heads=6,
        layer_norm_eps=1e-5,
        num_labels=4,
        is_decoder=True,
        add_cross_attention=True,
        custom_note={"deep": [1, None]},
    )
    written.save_pretrained(tmp_path)
    original = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {"transformers_version", "custom_note"} <= original.keys()

    loaded = load_config(tmp_path)
    assert isinstance(loaded, config_class)
    assert loaded.to_dict() | original == loaded.to_dict()  # nothing lost, nothing altered
    write_config(tmp_path, loaded.to_dict())
    assert load_config(tmp_path) == loaded
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    written.name_or_path = again.name_or_path  # which folder it came from is no part of the file
    assert again.to_dict() | written.to_dict() == again.to_dict()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"num_labels": 1},
        {"num_labels": 2},
        {"num_labels": 5},
        {"num_labels": 2, "id2label": {"0": "no", "1": "yes"}},
        {"num_labels": 3, "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}},
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"id2label": None},
        {"id2label": None, "num_labels": 4},
    ],
)
@BOTH
def test_labels_are_counted_as_transformers_counts_them(
    config_class: type[ModelConfig], content: dict[str, Any], transformers: Any
) -> None:
    ours = config_class.model_validate(content)
    theirs = getattr(transformers, config_class.__name__)(**content)
    assert (ours.id2label, ours.num_labels) == (theirs.id2label, theirs.num_labels)
    written = ours.to_dict()
    assert written["label2id"] == {label: index for index, label in theirs.id2label.items()}
    assert "num_labels" not in written


def test_reading_labels_leaves_the_given_dict_alone() -> None:
    content = {"num_labels": 3, "id2label": None}
    RoFormerConfig.model_validate(content)
    assert content == {"num_labels": 3, "id2label": None}


@BOTH
@pytest.mark.parametrize("name", get_args(Activation))
def test_every_activation_is_accepted(config_class: type[ModelConfig], name: str, tmp_path: Path) -> None:
    model_type = config_class.model_fields["model_type"].default
    assert load_config(write_config(tmp_path, {"model_type": model_type, "hidden_act": name})).hidden_act == name


@pytest.mark.parametrize("family", [ROFORMER, ROBERTA], ids=lambda family: family["model_type"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", "many"),
        ("hidden_size", -8),
        ("hidden_size", 100),  # not a multiple of 12 heads
        ("hidden_size", None),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 2.5),
        ("num_attention_heads", 0),
        ("num_attention_heads", 7),
        ("intermediate_size", []),
        ("hidden_act", "mish"),
        ("hidden_act", None),
        ("hidden_dropout_prob", 1.1),
        ("attention_probs_dropout_prob", -0.1),
        ("max_position_embeddings", 0),
        ("type_vocab_size", 0),
        ("initializer_range", 0.0),
        ("layer_norm_eps", -1e-12),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", float("inf")),
        ("pad_token_id", -1),
        ("pad_token_id", 60000),  # beyond both vocabularies
        ("bos_token_id", "<s>"),
        ("eos_token_id", [2, -1]),
        ("tie_word_embeddings", "perhaps"),
        ("is_decoder", "perhaps"),
        ("use_cache", None),
        ("id2label", {}),
        ("id2label", ["a", "b"]),
        ("id2label", {"first": "a"}),
        ("num_labels", 0),
        ("num_labels", -1),
        ("num_labels", "three"),
        ("num_labels", 2.5),
        ("problem_type", "clustering"),
        ("architectures", "RoFormerModel"),
    ],
)
def test_a_wrong_value_is_named(family: dict[str, str], field: str, value: object, tmp_path: Path) -> None:
    write_config(tmp_path, family | {field: value})
    with pytest.raises(ConfigError, match=re.escape(field)) as caught:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (ROFORMER | {"embedding_size": 0}, "embedding_size"),
        (ROFORMER | {"rotary_value": "sometimes"}, "rotary_value"),
        (ROFORMER | {"summary_type": "attn"}, "summary_type"),
        (ROFORMER | {"summary_activation": "mish"}, "summary_activation"),
        (ROFORMER | {"add_cross_attention": True}, "add_cross_attention needs is_decoder"),
        (ROBERTA | {"add_cross_attention": True}, "add_cross_attention needs is_decoder"),
        (ROBERTA | {"classifier_dropout": 2.0}, "classifier_dropout"),
        (ROBERTA | {"position_embedding_type": "rotary"}, "position_embedding_type"),
        (ROBERTA | {"pad_token_id": None}, "pad_token_id"),
        (ROBERTA | {"max_position_embeddings": 2}, "max_position_embeddings"),  # pad_token_id is 1: no row is left
        (
            ROBERTA | {"max_position_embeddings": 1, "position_embedding_type": "relative_key"},
            "max_position_embeddings",
        ),
        (ROBERTA | {"pad_token_id": 600}, "pad_token_id"),  # the position table has 512 rows
    ],
)
def test_a_wrong_value_of_one_family_is_named(content: dict[str, object], field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=field):
        load_config(write_config(tmp_path, content))


def test_every_wrong_value_is_reported_at_once(tmp_path: Path) -> None:
    write_config(tmp_path, ROFORMER | {"hidden_act": "mish", "vocab_size": 0, "num_hidden_layers": "x"})
    with pytest.raises(ConfigError, match=r"(?s)vocab_size.*num_hidden_layers.*hidden_act"):
        load_config(tmp_path)


def test_only_a_rotary_head_must_be_even(tmp_path: Path) -> None:
    sizes = {"hidden_size": 15, "num_attention_heads": 5}
    with pytest.raises(ConfigError, match=r"num_attention_heads must be even; got 3"):
        load_config(write_config(tmp_path, ROFORMER | sizes))
    assert load_config(write_config(tmp_path, ROBERTA | sizes)).head_size == 3


def test_roformer_without_a_pad_token_is_accepted(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path, ROFORMER | {"pad_token_id": None})).pad_token_id is None


@pytest.mark.parametrize(("embedding_size", "width"), [(None, 768), (256, 256)])
def test_embedding_width_follows_the_hidden_size(embedding_size: int | None, width: int) -> None:
    assert RoFormerConfig(embedding_size=embedding_size).embedding_width == width


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (RoFormerConfig(max_position_embeddings=9), 9),
        (RobertaPreLayerNormConfig(max_position_embeddings=9), 7),
        (RobertaPreLayerNormConfig(max_position_embeddings=9, pad_token_id=0), 8),
        (RobertaPreLayerNormConfig(max_position_embeddings=9, position_embedding_type="relative_key"), 9),
        (RobertaPreLayerNormConfig(max_position_embeddings=2, position_embedding_type="relative_key_query"), 2),
    ],
)
def test_max_tokens_leaves_out_positions_that_padding_takes(config: ModelConfig, tokens: int) -> None:
    assert config.max_tokens == tokens


def test_assignments_are_checked_too() -> None:
    config = RoFormerConfig()
    config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="num_hidden_layers"):
        config.num_hidden_layers = 0
    assert config.num_hidden_layers == 3


@pytest.mark.parametrize("content", [{"model_type": "bert"}, {"model_type": ["roformer"]}, {"hidden_size": 8}])
def test_another_architecture_is_refused(content: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"another architecture.*'roformer', 'roberta-prelayernorm'") as caught:
        load_config(write_config(tmp_path, content))
    assert repr(content.get("model_type")) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "roformer",}', "model_type: roformer"])
def test_broken_json_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_config(write_config(tmp_path, text))


def test_json_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff\xfe"}')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_config(tmp_path)


@pytest.mark.parametrize(("content", "kind"), [([ROFORMER], "list"), ('"roformer"', "str"), ("null", "NoneType")])
def test_anything_but_an_object_is_refused(content: object, kind: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"JSON object; got a {kind}"):
        load_config(write_config(tmp_path, content))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No checkpoint folder"):
        load_config(tmp_path / "absent")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="No checkpoint folder"):
        load_config(tmp_path / "file")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_config(tmp_path)
