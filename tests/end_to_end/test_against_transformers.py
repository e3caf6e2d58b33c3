"""Folders that ``transformers`` wrote, through the command line, to engines that agree with ``transformers``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from exporter import Session, load_model
from exporter.cli import app
from exporter.generation import Sampling

DECODER = {"is_decoder": True}
READER = {"is_decoder": True, "add_cross_attention": True}
# Every family and class, and 1 to 12 layers; each with another variant of the config.
CHECKPOINTS = [
    ("roformer", "Model", {"num_hidden_layers": 2, "hidden_act": "gelu_new"}),
    ("roformer", "ForCausalLM", {"num_hidden_layers": 2, "rotary_value": True, **READER}),
    ("roformer", "ForMaskedLM", {"num_hidden_layers": 1, "embedding_size": 24}),
    ("roformer", "ForSequenceClassification", {"num_hidden_layers": 12, "hidden_act": "relu"}),
    ("roformer", "ForMultipleChoice", {"num_hidden_layers": 2, "summary_type": "mean"}),
    ("roformer", "ForTokenClassification", {"num_hidden_layers": 3, "rotary_value": True}),
    ("roformer", "ForQuestionAnswering", {"num_hidden_layers": 2, "tie_word_embeddings": False}),
    ("roberta-prelayernorm", "Model", {"num_hidden_layers": 2, **DECODER}),
    ("roberta-prelayernorm", "ForCausalLM", {"num_hidden_layers": 2, **READER}),
    ("roberta-prelayernorm", "ForMaskedLM", {"num_hidden_layers": 12, "tie_word_embeddings": False}),
    ("roberta-prelayernorm", "ForSequenceClassification", {"num_hidden_layers": 3, "type_vocab_size": 1}),
    ("roberta-prelayernorm", "ForMultipleChoice", {"num_hidden_layers": 2, "hidden_act": "silu"}),
    ("roberta-prelayernorm", "ForTokenClassification", {"num_hidden_layers": 1, "hidden_act": "gelu_new"}),
    ("roberta-prelayernorm", "ForQuestionAnswering", {"num_hidden_layers": 2, "num_labels": 2}),
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 97,
    "max_position_embeddings": 40,
    "use_cache": False,
}
TOLERANCE = 1e-5  # only the order of sums may differ between the engine and transformers
STEPS = 64


def export(checkpoint: Path, folder: Path, *options: str) -> Session:
    result = CliRunner().invoke(app, ["export", str(checkpoint), str(folder), "--json", *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"]
    return Session(folder)


def inputs_for(session: Session, config: dict[str, Any], *shape: int, seed: int = 1234) -> dict[str, NDArray[Any]]:
    """Random ids with padding on the right, on the left, and a row of it alone, as far as there are rows."""
    random = np.random.default_rng(seed)  # another seed than the parity cases': unseen inputs
    ids = random.integers(2, 97, shape)
    mask = np.ones_like(ids)
    mask[..., -1, shape[-1] // 2 + 1 :] = 0
    if shape[-2] > 1:
        mask[..., 0, : shape[-1] // 2] = 0
    if shape[-2] > 2:
        mask[..., 1, :] = 0
    inputs = {"input_ids": np.where(mask, ids, 1), "attention_mask": mask}
    if config.get("type_vocab_size") != 1:
        inputs["token_type_ids"] = random.integers(0, 2, shape)
    if "encoder_hidden_states" in {spec.name for spec in session.manifest.inputs}:
        inputs["encoder_hidden_states"] = random.standard_normal((shape[0], 5, 32)).astype(np.float32)
        inputs["encoder_attention_mask"] = random.integers(0, 2, (shape[0], 5))
    return inputs


@pytest.mark.parametrize(("family", "head", "config"), CHECKPOINTS)
def test_export_agrees_with_transformers(
    family: str,
    head: str,
    config: dict[str, Any],
    write_checkpoint: Callable[..., Path],
    load_reference: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    checkpoint = write_checkpoint(family, head, **(SIZES | config))
    session = export(checkpoint, tmp_path / "exported", "--precision", "fp32")
    theirs = load_reference(checkpoint)

    for rows, length in ((1, 1), (2, 13), (3, session.manifest.max_tokens)):
        shape = (2, rows, length) if head == "ForMultipleChoice" else (rows, length)
        inputs: dict[str, Any] = inputs_for(session, config, *shape)
        with torch.no_grad():
            expected = theirs(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        found = session.run(**inputs)
        assert set(found) >= set(expected) - {"past_key_values"}
        for name in set(found) & set(expected):
            assert np.abs(found[name] - expected[name].numpy()).max() <= TOLERANCE, (name, shape)

    layers, crosses = config["num_hidden_layers"], "add_cross_attention" in config
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "exported" / "model" / "fp32.onnx").graph.node)
    assert ops["InterleavedRotary"] == {"roformer": 3 if config.get("rotary_value") else 2}.get(family, 0) * layers
    assert ops["ResidualLayerNorm"] == (3 if crosses else 2) * layers + 1


@pytest.mark.parametrize("family", ["roformer", "roberta-prelayernorm"])
def test_64_cached_steps_give_the_tokens_of_uncached_passes_and_of_transformers(
    family: str, write_checkpoint: Callable[..., Path], load_reference: Callable[[Path], Any], tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(
        family, "ForCausalLM", is_decoder=True, hidden_size=32, vocab_size=97, max_position_embeddings=90
    )
    session = export(checkpoint, tmp_path / "exported", "--precision", "fp32")
    prompts = np.random.default_rng(5).integers(3, 97, (3, 7))
    mask = np.ones_like(prompts)
    for row, padding in enumerate((0, 2, 5)):
        prompts[row, :padding], mask[row, :padding] = 1, 0

    cached = session.generate_ids(prompts, mask, sampling=Sampling(max_new_tokens=STEPS), eos_token_ids=())

    model, ids, attended = load_model(checkpoint), torch.from_numpy(prompts), torch.from_numpy(mask)
    for _ in range(STEPS):
        with torch.no_grad():
            best = model(ids, attended).logits[:, -1:].argmax(-1)
        ids, attended = torch.cat((ids, best), 1), torch.cat((attended, torch.ones_like(best)), 1)
    assert [row.ids for row in cached] == ids[:, 7:].tolist()
    assert len({tuple(row.ids) for row in cached}) == 3  # the prompts matter

    # transformers would start RoBERTa's positions at 0 here, unlike its own forward pass: they are given instead.
    positions = {"position_ids": torch.from_numpy(mask.cumsum(1) * mask + 1)} if family != "roformer" else {}
    generated = load_reference(checkpoint).generate(
        torch.from_numpy(prompts),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=1,
        **positions,
    )
    assert [row.ids for row in cached] == generated[:, 7:].tolist()


def test_positions_can_be_given(
    write_checkpoint: Callable[..., Path], load_reference: Callable[[Path], Any], tmp_path: Path
) -> None:
    checkpoint = write_checkpoint("roberta-prelayernorm", "ForTokenClassification")
    session = export(checkpoint, tmp_path / "exported", "--precision", "fp32", "--position-ids")
    random = np.random.default_rng(2)
    ids, positions = random.integers(2, 41, (2, 2, 9)) % np.array([41, 20])[:, None, None]
    with torch.no_grad():
        theirs = load_reference(checkpoint)
        given = theirs(torch.from_numpy(ids), position_ids=torch.from_numpy(positions)).logits.numpy()
        counted = theirs(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(session.run(ids, position_ids=positions)["logits"] - given).max() <= TOLERANCE
    assert np.abs(session.run(ids)["logits"] - counted).max() <= TOLERANCE


def test_roformer_goes_on_past_its_table(
    transformers: Any, write_checkpoint: Callable[..., Path], load_reference: Callable[[Path], Any], tmp_path: Path
) -> None:
    checkpoint = write_checkpoint("roformer", "ForMaskedLM")
    session = export(checkpoint, tmp_path / "out", "--precision", "fp32", "--max-position-embeddings", "50")
    config = transformers.RoFormerConfig.from_pretrained(checkpoint, max_position_embeddings=50)
    theirs = transformers.RoFormerForMaskedLM(config).eval()
    state = load_reference(checkpoint).state_dict()
    table = "roformer.encoder.embed_positions.weight"
    theirs.load_state_dict(state | {table: theirs.roformer.encoder.embed_positions.create_weight()})
    ids = np.random.default_rng(3).integers(2, 41, (2, 50))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(session.run(ids)["logits"] - expected).max() <= TOLERANCE
