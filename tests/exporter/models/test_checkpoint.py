"""What ``transformers`` wrote computes the same here, what we write computes the same there, damage is refused."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter import models
from exporter.errors import BundleError, CheckpointError, ConfigError
from exporter.models.checkpoint import PreTrainedModel, weights_file
from exporter.models.config import FAMILIES as CONFIGS
from exporter.models.embeddings import sinusoid_table

TOLERANCE = 5e-6  # a few hundred float32 additions apart, on values of the order of 1
FAMILIES = ["roformer", "roberta-prelayernorm"]
HEADS = [
    "Model",
    "ForCausalLM",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
]
LANGUAGE_MODELS = ["ForCausalLM", "ForMaskedLM"]
PREFIXES = {"roformer": "roformer.", "roberta-prelayernorm": "roberta_prelayernorm."}
DECODERS = {"roformer": "cls.predictions.decoder", "roberta-prelayernorm": "lm_head.decoder"}
PAD, VOCAB_SIZE = 1, 41

both_families = pytest.mark.parametrize("family", FAMILIES)
every_head = pytest.mark.parametrize("head", HEADS)

WriteCheckpoint = Callable[..., Path]
LoadReference = Callable[[Path], Any]
Model = PreTrainedModel[Any]


def model_class(family: str, head: str) -> type[Model]:
    prefix = {"roformer": "RoFormer", "roberta-prelayernorm": "RobertaPreLayerNorm"}[family]
    found: type[Model] = getattr(models, prefix + head)
    return found


@pytest.fixture
def write_checkpoint(write_checkpoint: WriteCheckpoint) -> WriteCheckpoint:
    """As everywhere, but with the two labels that question answering needs."""

    def write(family: str, head: str, **config: Any) -> Path:
        if head == "ForQuestionAnswering":
            config["num_labels"] = 2
        return write_checkpoint(family, head, **config)

    return write


def batch(head: str = "Model", padded: str = "right") -> dict[str, Tensor]:
    """Three rows (or a row of three choices) of which two are padded."""
    input_ids = torch.randint(PAD + 1, VOCAB_SIZE, (3, 7))
    attention_mask = torch.ones_like(input_ids)
    for row, count in enumerate((0, 2, 4)):
        attention_mask[row, slice(count) if padded == "left" else slice(7 - count, None)] = 0
    input_ids[attention_mask == 0] = PAD
    token_type_ids = torch.randint(0, 2, (3, 7))
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    return {name: value[None] for name, value in inputs.items()} if head == "ForMultipleChoice" else inputs


@torch.no_grad()
def assert_same_outputs(ours: Model, reference: Any, inputs: dict[str, Tensor]) -> None:
    ours_tuple, theirs = ours(**inputs).to_tuple(), reference(**inputs).to_tuple()
    assert len(ours_tuple) == len(theirs)
    for found, expected in zip(ours_tuple, theirs, strict=True):
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
        assert expected.std() > 0.01, "outputs that hardly vary would not show an error"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the tensors of a checkpoint in place."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors")


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values))


# What loads, and what is written. That it computes the same: test_against_transformers.py.


@both_families
def test_masks_and_segments_have_documented_defaults(family: str, write_checkpoint: WriteCheckpoint) -> None:
    model = model_class(family, "Model").from_pretrained(write_checkpoint(family, "Model"))
    inputs = batch() | {"attention_mask": torch.ones(3, 7, dtype=torch.int64)}
    given = model(inputs["input_ids"], inputs["attention_mask"], torch.zeros_like(inputs["input_ids"]))
    torch.testing.assert_close(model(inputs["input_ids"])[0], given[0], rtol=0, atol=0)
    segments = model(**inputs)
    assert not torch.allclose(segments[0], given[0], atol=1e-3)


@both_families
@every_head
def test_a_loaded_model_is_float32_and_in_evaluation_mode(
    family: str, head: str, write_checkpoint: WriteCheckpoint
) -> None:
    folder = write_checkpoint(family, head)
    rewrite(folder, lambda state: state.update({name: tensor.to(torch.float16) for name, tensor in state.items()}))
    model = model_class(family, head).from_pretrained(str(folder))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    inputs = batch(head)
    torch.testing.assert_close(model(**inputs)[0], model(**inputs)[0], rtol=0, atol=0)  # no dropout


@both_families
@every_head
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_loads_in_transformers(
    family: str, head: str, tied: bool, write_checkpoint: WriteCheckpoint, load_reference: LoadReference, tmp_path: Path
) -> None:
    source = write_checkpoint(family, head, tie_word_embeddings=tied)
    ours = model_class(family, head).from_pretrained(source)
    ours.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    reference = load_reference(tmp_path / "saved")
    assert type(reference).__name__ == type(ours).__name__
    inputs = batch(head)
    assert_same_outputs(ours, reference, inputs)
    again = type(ours).from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(**inputs).to_tuple(), ours(**inputs).to_tuple(), rtol=0, atol=0)
    assert again.config.to_dict() == ours.config.to_dict()


@both_families
@pytest.mark.parametrize("head", ["Model", *LANGUAGE_MODELS])
def test_a_saved_decoder_with_an_encoder_loads_in_transformers(
    family: str, head: str, write_checkpoint: WriteCheckpoint, load_reference: LoadReference, tmp_path: Path
) -> None:
    source = write_checkpoint(family, head, is_decoder=True, add_cross_attention=True, use_cache=False)
    ours = model_class(family, head).from_pretrained(source)
    ours.save_pretrained(tmp_path / "saved")
    states = {"encoder_hidden_states": torch.randn(3, 5, 16)}
    assert_same_outputs(ours, load_reference(tmp_path / "saved"), batch() | states)


@both_families
def test_layers_that_read_an_encoder_are_neither_made_up_nor_dropped(
    family: str, write_checkpoint: WriteCheckpoint
) -> None:
    decoder = {"is_decoder": True, "add_cross_attention": False}
    folder = write_checkpoint(family, "ForCausalLM", **decoder)
    set_config(folder, add_cross_attention=True)
    with pytest.raises(CheckpointError, match=r"lacks .*encoder\.layer\.0\.crossattention\."):
        model_class(family, "ForCausalLM").from_pretrained(folder)
    folder = write_checkpoint(family, "ForCausalLM", **decoder | {"add_cross_attention": True})
    set_config(folder, **decoder)
    with pytest.raises(CheckpointError, match=r"no place for: .*encoder\.layer\.0\.crossattention\."):
        model_class(family, "ForCausalLM").from_pretrained(folder)


@both_families
def test_what_is_saved_names_its_own_class(
    family: str, write_checkpoint: WriteCheckpoint, load_reference: LoadReference, tmp_path: Path
) -> None:
    base = model_class(family, "Model").from_pretrained(write_checkpoint(family, "ForMaskedLM"))
    base.save_pretrained(tmp_path / "saved")
    assert type(load_reference(tmp_path / "saved")).__name__ == type(base).__name__


@both_families
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", LANGUAGE_MODELS)
def test_a_new_model_ties_its_weights_as_the_config_says(family: str, head: str, tied: bool) -> None:
    config = CONFIGS[family](
        vocab_size=11, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, tie_word_embeddings=tied
    )
    model = model_class(family, head)(config)
    decoder = model.get_parameter(f"{DECODERS[family]}.weight")
    words = model.get_parameter(f"{PREFIXES[family]}embeddings.word_embeddings.weight")
    assert (decoder is words) == tied
    assert words[config.pad_token_id or 0].count_nonzero() == 0
    assert abs(words.std() - config.initializer_range) < 0.01


@both_families
@pytest.mark.parametrize("head", LANGUAGE_MODELS)
def test_a_loaded_model_keeps_tied_weights_tied(family: str, head: str, write_checkpoint: WriteCheckpoint) -> None:
    model = model_class(family, head).from_pretrained(write_checkpoint(family, head))
    words = model.get_parameter(f"{PREFIXES[family]}embeddings.word_embeddings.weight")
    assert model.get_parameter(f"{DECODERS[family]}.weight") is words
    bias = model.get_parameter(f"{DECODERS[family].removesuffix('.decoder')}.bias")
    assert model.get_parameter(f"{DECODERS[family]}.bias") is bias


@both_families
@pytest.mark.parametrize("head", HEADS[1:])
def test_a_base_model_loads_from_a_checkpoint_with_a_head(
    family: str, head: str, write_checkpoint: WriteCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(family, head)
    with caplog.at_level(logging.INFO, logger="exporter"):
        base = model_class(family, "Model").from_pretrained(folder)
    inputs = batch()
    encoder = model_class(family, head).from_pretrained(folder).get_submodule(PREFIXES[family].rstrip("."))
    torch.testing.assert_close(base(**inputs)[0], encoder(**inputs)[0], rtol=0, atol=0)
    unused = DECODERS[family].removesuffix(".decoder") if head in LANGUAGE_MODELS else "classifier."
    unused = "qa_outputs." if head == "ForQuestionAnswering" else unused
    assert unused in caplog.text


@pytest.mark.parametrize(("head", "has_pooler"), [("Model", True), ("ForMultipleChoice", True), ("ForMaskedLM", False)])
def test_a_model_has_a_pooler_where_the_checkpoint_has_one(
    head: str, has_pooler: bool, write_checkpoint: WriteCheckpoint
) -> None:
    folder = write_checkpoint("roberta-prelayernorm", head)
    model = models.RobertaPreLayerNormModel.from_pretrained(folder)
    assert (model(torch.tensor([[2, 3]])).pooler_output is not None) == has_pooler
    without = models.RobertaPreLayerNormModel.from_pretrained(folder, add_pooling_layer=False)
    assert without(torch.tensor([[2, 3]])).pooler_output is None


def test_a_pooler_that_was_asked_for_is_never_made_up(write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roberta-prelayernorm", "ForMaskedLM")
    with pytest.raises(CheckpointError, match=r"lacks 2 .*pooler\.dense\.weight"):
        models.RobertaPreLayerNormModel.from_pretrained(folder, add_pooling_layer=True)


@both_families
@pytest.mark.parametrize("head", HEADS[1:])
def test_a_head_is_never_made_up(family: str, head: str, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint(family, "Model", num_labels=2)
    with pytest.raises(CheckpointError, match=r"without a head.*feature-extraction"):
        model_class(family, head).from_pretrained(folder)


@both_families
def test_one_head_is_not_taken_for_another(family: str, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint(family, "ForMaskedLM")
    with pytest.raises(CheckpointError, match=r"lacks 2 .*classifier\.weight"):
        model_class(family, "ForTokenClassification").from_pretrained(folder)


@both_families
def test_the_other_family_is_refused(family: str, write_checkpoint: WriteCheckpoint) -> None:
    other = FAMILIES[1 - FAMILIES.index(family)]
    with pytest.raises(ConfigError, match=rf"holds a {family} checkpoint; .* needs {other}"):
        model_class(other, "Model").from_pretrained(write_checkpoint(family, "Model"))


# Files in other layouts.


@both_families
def test_legacy_names_and_computed_tensors_are_understood(
    family: str, write_checkpoint: WriteCheckpoint, load_reference: LoadReference
) -> None:
    """Old releases wrote gamma and beta, position_ids, and no table of sinusoids."""
    folder = write_checkpoint(family, "ForSequenceClassification")
    reference = load_reference(folder)

    def age(state: dict[str, Tensor]) -> None:
        for name in list(state):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            state[old] = state.pop(name)
        assert any(name.endswith("gamma") for name in state)
        state[f"{PREFIXES[family]}embeddings.position_ids"] = torch.arange(20)[None]
        state[f"{PREFIXES[family]}embeddings.token_type_ids"] = torch.zeros(1, 20, dtype=torch.int64)
        state.pop(f"{PREFIXES[family]}encoder.embed_positions.weight", None)

    rewrite(folder, age)
    ours = model_class(family, "ForSequenceClassification").from_pretrained(folder)
    assert_same_outputs(ours, reference, batch())


def test_a_table_of_sinusoids_in_the_checkpoint_is_used(write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roformer", "Model")
    name = "encoder.embed_positions.weight"
    rewrite(folder, lambda state: state.update({name: state[name] * 0.5}))
    table = models.RoFormerModel.from_pretrained(folder).get_buffer(name)
    torch.testing.assert_close(table, load_file(folder / "model.safetensors")[name], rtol=0, atol=0)


# More positions. That they compute the same as a larger config's: test_against_transformers.py.


def test_extending_keeps_the_rows_of_the_checkpoint(write_checkpoint: WriteCheckpoint) -> None:
    folder, name = write_checkpoint("roformer", "Model"), "encoder.embed_positions.weight"
    for positions in (20, 21, 50):
        model = models.RoFormerModel.from_pretrained(folder, max_position_embeddings=positions)
        table = model.get_buffer(name)
        assert (model.config.max_position_embeddings, model.config.max_tokens) == (positions, positions)
        assert table[:20].tolist() == load_file(folder / "model.safetensors")[name].tolist()
        assert table[20:].tolist() == sinusoid_table(positions, 4)[20:].tolist()
        assert model(torch.full((1, positions), 5))[0].isfinite().all()


@pytest.mark.parametrize("change", ["missing", "half precision"])
def test_a_table_that_is_missing_or_rounded_can_be_extended(change: str, write_checkpoint: WriteCheckpoint) -> None:
    folder, name = write_checkpoint("roformer", "Model"), "encoder.embed_positions.weight"
    rounded = load_file(folder / "model.safetensors")[name].half()
    rewrite(folder, lambda state: state.pop(name) if change == "missing" else state.update({name: rounded}))
    inputs = batch()
    extended = models.RoFormerModel.from_pretrained(folder, max_position_embeddings=30)
    assert extended(**inputs)[0].tolist() == models.RoFormerModel.from_pretrained(folder)(**inputs)[0].tolist()


def test_an_extended_model_is_saved_with_its_positions(write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    folder = write_checkpoint("roformer", "ForMaskedLM")
    extended = models.RoFormerForMaskedLM.from_pretrained(folder, max_position_embeddings=30)
    extended.save_pretrained(tmp_path / "saved")
    again = models.RoFormerForMaskedLM.from_pretrained(tmp_path / "saved")
    ids = torch.full((1, 30), 5)
    assert again(ids)[0].tolist() == extended(ids)[0].tolist()


@pytest.mark.parametrize("positions", [19, 1, 0, -5])
def test_positions_cannot_become_fewer(positions: int, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roformer", "Model")
    with pytest.raises(ConfigError, match=f"extended from 20 upwards; got {positions}"):
        models.RoFormerModel.from_pretrained(folder, max_position_embeddings=positions)


@every_head
def test_learnt_positions_cannot_be_extended(head: str, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roberta-prelayernorm", head)
    with pytest.raises(ConfigError, match=r"max_position_embeddings=30 .* roberta-prelayernorm model are learnt"):
        model_class("roberta-prelayernorm", head).from_pretrained(folder, max_position_embeddings=30)


@pytest.mark.parametrize("change", ["halved", "one value", "of NaN"])
def test_a_table_of_something_else_cannot_be_extended(change: str, write_checkpoint: WriteCheckpoint) -> None:
    folder, name = write_checkpoint("roformer", "Model"), "encoder.embed_positions.weight"

    def alter(state: dict[str, Tensor]) -> None:
        if change == "halved":
            state[name] *= 0.5
        else:
            state[name][7, 2] = 0.01 if change == "one value" else float("nan")

    rewrite(folder, alter)
    with pytest.raises(CheckpointError, match="not the table that follows from the config, so it cannot be extended"):
        models.RoFormerModel.from_pretrained(folder, max_position_embeddings=30)


@pytest.mark.parametrize("shape", [(19, 4), (25, 4), (20, 6), (4,), ()])
@pytest.mark.parametrize("positions", [None, 22])
def test_a_table_of_another_shape_is_refused(
    shape: tuple[int, ...], positions: int | None, write_checkpoint: WriteCheckpoint
) -> None:
    folder, name = write_checkpoint("roformer", "Model"), "encoder.embed_positions.weight"
    table = sinusoid_table(*shape) if len(shape) == 2 else torch.zeros(shape)
    rewrite(folder, lambda state: state.update({name: table}))
    if (shape, positions) == ((19, 4), 22):  # what it lacks can be computed
        models.RoFormerModel.from_pretrained(folder, max_position_embeddings=positions)
        return
    with pytest.raises(CheckpointError, match=rf"{name} has shape {re.escape(str(shape))}; config.json asks for"):
        models.RoFormerModel.from_pretrained(folder, max_position_embeddings=positions)


def pickle_state(folder: Path, state: object, **options: Any) -> Path:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


@both_families
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_a_pickled_checkpoint_computes_the_same(
    family: str, head: str, write_checkpoint: WriteCheckpoint, load_reference: LoadReference
) -> None:
    folder = write_checkpoint(family, head)
    reference = load_reference(folder)
    pickle_state(folder, reference.state_dict())  # unlike safetensors, with every name of a tied tensor
    ours = model_class(family, head).from_pretrained(folder)
    assert_same_outputs(ours, reference, batch(head, "left"))


def test_safetensors_are_preferred_to_a_pickle(write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roformer", "Model")
    (folder / "pytorch_model.bin").write_bytes(b"not even read")
    assert weights_file(folder).name == "model.safetensors"
    models.RoFormerModel.from_pretrained(folder)


class _Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.mkdir, (self.victim,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(
    legacy: bool, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder, victim = write_checkpoint("roformer", "Model"), tmp_path / "victim"
    path = pickle_state(
        folder, {"weight": torch.ones(1), "x": _Malicious(victim)}, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        models.RoFormerModel.from_pretrained(folder)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the pickle does work, where it is trusted
    assert victim.is_dir()


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"weight": 3.0}, {"model": {"weight": torch.ones(2)}}, {0: torch.ones(2)}]
)
def test_a_pickle_of_anything_but_named_tensors_is_refused(content: object, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roformer", "Model")
    pickle_state(folder, content)
    with pytest.raises(CheckpointError, match="must hold tensors by name"):
        models.RoFormerModel.from_pretrained(folder)


# Damage.


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("layout", ["safetensors", "pickle", "legacy pickle"])
def test_a_truncated_file_is_refused(layout: str, kept: float, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roformer", "Model")
    path = folder / "model.safetensors"
    if layout != "safetensors":
        path = pickle_state(folder, load_file(path), _use_new_zipfile_serialization=layout == "pickle")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"bytes\) cannot be read: .*\S\. The file is truncated, damaged"):
        models.RoFormerModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", pickle.dumps("x"), b"\x80\x02q"])
def test_a_file_of_something_else_is_refused(name: str, content: bytes, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roformer", "Model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read|must hold tensors"):
        models.RoFormerModel.from_pretrained(folder)


def test_a_folder_without_weights_is_refused(write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint("roformer", "Model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors \(nor pytorch_model\.bin\)"):
        models.RoFormerModel.from_pretrained(folder)


def test_a_checkpoint_in_shards_is_refused(
    write_checkpoint: WriteCheckpoint, load_reference: LoadReference, tmp_path: Path
) -> None:
    load_reference(write_checkpoint("roformer", "Model")).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    with pytest.raises(CheckpointError, match=r"several shards.*max_shard_size"):
        models.RoFormerModel.from_pretrained(tmp_path / "shards")


@both_families
@every_head
def test_any_missing_tensor_is_named(family: str, head: str, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint(family, head, num_hidden_layers=1)
    complete = load_file(folder / "model.safetensors")
    names = [name for name in complete if not name.endswith("embed_positions.weight")]
    for name in names:
        save_file({other: tensor for other, tensor in complete.items() if other != name}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"lacks \d+ of the .* num_hidden_layers") as caught:
            model_class(family, head).from_pretrained(folder)
        assert name in str(caught.value)


@both_families
def test_many_missing_tensors_are_counted(family: str, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint(family, "Model")
    set_config(folder, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"lacks 16 of the .*encoder\.layer\.2\.attention.*, …\."):
        model_class(family, "Model").from_pretrained(folder)


@both_families
@every_head
def test_extra_layers_are_refused(family: str, head: str, write_checkpoint: WriteCheckpoint) -> None:
    folder = write_checkpoint(family, head)
    set_config(folder, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"holds 16 encoder tensors .*encoder\.layer\.1\."):
        model_class(family, head).from_pretrained(folder)


@both_families
@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        ({"vocab_size": 40}, "embeddings.word_embeddings.weight"),
        ({"type_vocab_size": 3}, "embeddings.token_type_embeddings.weight"),
        ({"intermediate_size": 23}, "encoder.layer.0.intermediate.dense.weight"),
        ({"num_labels": 4}, "classifier.weight"),
    ],
)
def test_a_wrong_shape_is_named_with_both_shapes(
    family: str, change: dict[str, int], tensor: str, write_checkpoint: WriteCheckpoint
) -> None:
    folder = write_checkpoint(family, "ForTokenClassification")
    set_config(folder, **change)
    with pytest.raises(CheckpointError, match=rf"{tensor} has shape \(\d+, \d+\); config.json asks for \(\d+, \d+\)"):
        model_class(family, "ForTokenClassification").from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
@both_families
def test_integer_weights_are_refused(family: str, dtype: torch.dtype, write_checkpoint: WriteCheckpoint) -> None:
    folder, name = write_checkpoint(family, "Model"), "encoder.layer.1.output.dense.weight"
    rewrite(folder, lambda state: state.update({name: state[name].to(dtype)}))
    with pytest.raises(CheckpointError, match=f"tensor {name} is {dtype}; expected a floating-point dtype"):
        model_class(family, "Model").from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@both_families
def test_values_that_are_not_finite_are_refused(family: str, value: float, write_checkpoint: WriteCheckpoint) -> None:
    folder, name = write_checkpoint(family, "Model"), "encoder.layer.0.attention.self.key.bias"
    rewrite(folder, lambda state: state[name].__setitem__(5, value))
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN or infinity"):
        model_class(family, "Model").from_pretrained(folder)


def test_float64_values_that_float32_cannot_hold_are_refused(write_checkpoint: WriteCheckpoint) -> None:
    folder, name = write_checkpoint("roformer", "Model"), "embeddings.LayerNorm.weight"
    rewrite(folder, lambda state: state.update({name: state[name].to(torch.float64) * 1e300}))
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN or infinity"):
        models.RoFormerModel.from_pretrained(folder)


@both_families
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_tied_tensors_that_differ_are_refused(
    family: str, part: str, write_checkpoint: WriteCheckpoint, load_reference: LoadReference
) -> None:
    folder = write_checkpoint(family, "ForMaskedLM", tie_word_embeddings=False)
    set_config(folder, tie_word_embeddings=True)
    words, head = f"{PREFIXES[family]}embeddings.word_embeddings.weight", DECODERS[family].removesuffix(".decoder")

    def tie_the_other(state: dict[str, Tensor]) -> None:
        if part == "bias":
            state[f"{DECODERS[family]}.weight"] = state[words]
        else:
            state[f"{head}.bias"] = state[f"{DECODERS[family]}.bias"]

    rewrite(folder, tie_the_other)
    with pytest.raises(CheckpointError, match=rf"{DECODERS[family]}\.{part} and .* differ.*tie_word_embeddings"):
        model_class(family, "ForMaskedLM").from_pretrained(folder)


@both_families
@pytest.mark.parametrize("lost", ["decoder", "words"])
def test_an_untied_weight_is_not_filled_in_from_the_other(
    family: str, lost: str, write_checkpoint: WriteCheckpoint
) -> None:
    folder = write_checkpoint(family, "ForMaskedLM", tie_word_embeddings=False)
    names = {"decoder": f"{DECODERS[family]}.weight", "words": f"{PREFIXES[family]}embeddings.word_embeddings.weight"}
    rewrite(folder, lambda state: state.pop(names[lost]))
    with pytest.raises(CheckpointError, match=f"lacks 1 .*{names[lost]}"):
        model_class(family, "ForMaskedLM").from_pretrained(folder)


# Writing.


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_cannot_be_written_is_refused_and_left_alone(
    out: str, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    model = models.RoFormerModel.from_pretrained(write_checkpoint("roformer", "Model"))
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(BundleError, match="Cannot write"):
        model.save_pretrained(tmp_path / out)
    assert contents(tmp_path) == before


def test_a_failed_save_keeps_the_old_files(write_checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint("roformer", "Model")
    model = models.RoFormerModel.from_pretrained(folder)
    before = contents(folder)

    def fill_the_disk(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("exporter.models.checkpoint.save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    assert contents(folder) == before
