"""The committed checkpoints: their size, their accuracy, and that transformers computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from examples import data
from examples.train import RECIPES, accuracy
from exporter.models import RobertaPreLayerNormForTokenClassification, RoFormerForSequenceClassification
from exporter.tokenization import load_tokenizer

CLASSES: dict[str, tuple[Any, Any]] = {
    "roformer": (RoFormerForSequenceClassification, transformers.AutoModelForSequenceClassification),
    "roberta-prelayernorm": (RobertaPreLayerNormForTokenClassification, transformers.AutoModelForTokenClassification),
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_checkpoint(name: str) -> None:
    folder = data.folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4e6
    ours, theirs = CLASSES[name]
    model, oracle = ours.from_pretrained(folder), theirs.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == model.config.vocab_size
    evaluation = data.held_out(name, tokenizer, limit=16)
    assert dict(enumerate(evaluation.label_names)) == model.config.id2label
    assert accuracy(model, evaluation) > 0.88  # other Python versions have other texts

    batch = [torch.from_numpy(array) for array in evaluation.batches[0][:3]]
    with torch.inference_mode():
        logits = model(*batch).logits
        expected = oracle(input_ids=batch[0], attention_mask=batch[1], token_type_ids=batch[2]).logits
    # Logits reach 20, where a rounding is 1e-6, and the oracle's fused attention sums in another order.
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(RECIPES))
def test_transformers_reads_the_tokenizer(name: str) -> None:
    texts = [item.text for item in data.TASKS[name].texts("held-out")[:20]]
    oracle = transformers.AutoTokenizer.from_pretrained(data.folder(name))
    assert load_tokenizer(data.folder(name))(texts).input_ids.tolist() == oracle(texts, padding=True)["input_ids"]
