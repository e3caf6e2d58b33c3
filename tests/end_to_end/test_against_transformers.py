"""A folder that ``transformers`` wrote, through the command line, to engines that agree with ``transformers``."""

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
from typer.testing import CliRunner

from exporter import Session
from exporter.cli import app

# Every family and head, and 1 to 12 layers, in six exports.
CHECKPOINTS = [
    ("roformer", "ForMaskedLM", {"num_hidden_layers": 1, "embedding_size": 24}),
    ("roformer", "ForSequenceClassification", {"num_hidden_layers": 12, "hidden_act": "relu"}),
    ("roformer", "ForTokenClassification", {"num_hidden_layers": 3, "rotary_value": True}),
    ("roberta-prelayernorm", "ForMaskedLM", {"num_hidden_layers": 12}),
    ("roberta-prelayernorm", "ForSequenceClassification", {"num_hidden_layers": 3, "type_vocab_size": 1}),
    ("roberta-prelayernorm", "ForTokenClassification", {"num_hidden_layers": 1, "hidden_act": "gelu_new"}),
]
TOLERANCE = 1e-5  # only the order of sums may differ between the engine and transformers


@pytest.mark.parametrize(("family", "head", "config"), CHECKPOINTS)
def test_export_agrees_with_transformers(
    family: str,
    head: str,
    config: dict[str, Any],
    write_checkpoint: Callable[..., Path],
    load_reference: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    checkpoint = write_checkpoint(
        family, head, hidden_size=32, intermediate_size=64, vocab_size=97, max_position_embeddings=40, **config
    )
    exported = tmp_path / "exported"

    result = CliRunner().invoke(app, ["export", str(checkpoint), str(exported), "--json"])

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"]
    theirs = load_reference(checkpoint)
    session = Session(exported)
    random = np.random.default_rng(1234)  # another seed than the parity cases': unseen inputs
    for batch, length in ((1, 1), (2, 13), (3, session.manifest.max_tokens)):
        ids = random.integers(2, 97, (batch, length))
        mask = np.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        types = random.integers(0, session.manifest.type_vocab_size, ids.shape)
        with torch.no_grad():
            expected = theirs(*map(torch.from_numpy, (ids, mask, types))).logits.numpy()
        assert np.abs(session.run(ids, mask, types)["logits"] - expected).max() <= TOLERANCE

    layers = config["num_hidden_layers"]
    ops = Counter(node.op_type for node in onnx.load(exported / "model" / "fp32.onnx").graph.node)
    assert ops["InterleavedRotary"] == {"roformer": 3 if config.get("rotary_value") else 2}.get(family, 0) * layers
    assert ops["ResidualLayerNorm"] == 2 * layers + 1
