"""Trains the two example checkpoints: ``python -m examples.train roformer|roberta-prelayernorm [--out DIR]``.

Seeded: the same machine, Python and libraries give the same files again.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from examples.data import TASKS, EvaluationBatch, EvaluationSet, Example, encode, folder, held_out, pad
from exporter.models import (
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForTokenClassification,
    RoFormerConfig,
    RoFormerForSequenceClassification,
)
from exporter.tokenization import RobertaTokenizer, RoFormerTokenizerFast, Tokenizer

Model = RoFormerForSequenceClassification | RobertaPreLayerNormForTokenClassification

SEED = 20240229
THREADS = 1  # as fast as two at these sizes
SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made."""

    tokenizer: Callable[[list[str]], Tokenizer]
    model: Callable[[Tokenizer, dict[int, str]], Model]
    batch_size: int
    steps: int
    learning_rate: float
    embedding_rate: float  # of the word embeddings, most of which few batches touch
    crops: bool  # train on random parts of the examples


def train_word_pieces(texts: list[str]) -> Tokenizer:
    """A lower-cased WordPiece vocabulary for RoFormer."""
    names = RoFormerTokenizerFast.special_names
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=names["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(handle_chinese_chars=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [names[key] for key in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")]
    trainer = trainers.WordPieceTrainer(
        vocab_size=2000, limit_alphabet=100, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    # The trainer numbers pieces in an order of its own, new each time.
    pieces = [*special, *sorted(backend.get_vocab().keys() - set(special))]
    backend.model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token=names["unk_token"])
    return _from_backend(RoFormerTokenizerFast, backend)


def train_byte_pairs(texts: list[str]) -> Tokenizer:
    """A byte-level BPE vocabulary for RoBERTa."""
    names = RobertaTokenizer.special_names
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [names[key] for key in ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[AddedToken(token, lstrip=token == names["mask_token"], special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _from_backend(RobertaTokenizer, backend)


def _from_backend(
    cls: type[RobertaTokenizer] | type[RoFormerTokenizerFast], backend: tokenizers.Tokenizer
) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        backend.save(str(path))
        return cls(tokenizer_file=path)


def make_roformer(tokenizer: Tokenizer, id2label: dict[int, str]) -> Model:
    """An untrained RoFormer for passages."""
    config = RoFormerConfig(
        vocab_size=tokenizer.vocab_size,
        embedding_size=64,
        initializer_range=0.05,  # the default suits models six times as wide
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        id2label=id2label,
        **SIZES,
    )
    return RoFormerForSequenceClassification(config)


def make_roberta(tokenizer: Tokenizer, id2label: dict[int, str]) -> Model:
    """An untrained RoBERTa-PreLayerNorm for tokens."""
    config = RobertaPreLayerNormConfig(
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=258,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.special_ids["bos_token"],
        eos_token_id=tokenizer.special_ids["eos_token"],
        id2label=id2label,
        **SIZES,
    )
    return RobertaPreLayerNormForTokenClassification(config)


RECIPES = {
    "roformer": Recipe(train_word_pieces, make_roformer, 16, 1200, learning_rate=1e-3, embedding_rate=1e-2, crops=True),
    "roberta-prelayernorm": Recipe(
        train_byte_pairs, make_roberta, 16, 2000, learning_rate=2e-3, embedding_rate=2e-3, crops=False
    ),
}


def epochs(examples: list[Example], recipe: Recipe, tokenizer: Tokenizer) -> Iterator[EvaluationBatch]:
    """Endless shuffled batches."""
    random = np.random.default_rng(SEED)
    while True:
        order = random.permutation(len(examples))
        for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
            batch = [examples[index] for index in order[start : start + recipe.batch_size]]
            if recipe.crops:
                size = int(random.integers(48, 255))
                batch = [crop(example, size, tokenizer.mask_token_id, random) for example in batch]
            yield pad(batch, tokenizer.pad_token_id)


def crop(example: Example, size: int, mask_token_id: int, random: np.random.Generator) -> Example:
    """Some consecutive tokens of a passage, a part of them masked: few passages would else be learned by heart."""
    first, last = example.input_ids[:1], example.input_ids[-1:]
    start = int(random.integers(1, max(2, example.input_ids.size - size)))
    kept = example.input_ids[start:-1][:size]
    masked = np.where(random.random(kept.size) < 0.15, mask_token_id, kept)
    return Example(np.concatenate([first, masked, last]), example.labels)


def train(model: Model, recipe: Recipe, examples: list[Example], tokenizer: Tokenizer) -> None:
    """AdamW with a warm-up of a tenth and a linear decay to zero."""
    weights = dict(model.named_parameters())
    embeddings = [weights.pop(name) for name in list(weights) if "word_embeddings" in name]
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": embeddings},
        {"params": matrices},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    rates = [recipe.embedding_rate, recipe.learning_rate, recipe.learning_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, recipe.steps, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    started, recent = time.perf_counter(), 0.0
    model.train()
    for step, batch in zip(range(1, recipe.steps + 1), epochs(examples, recipe, tokenizer), strict=False):
        loss = model(*map(torch.from_numpy, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += loss.item()
        if step % 100 == 0:
            print(
                f"step {step}/{recipe.steps}: loss {recent / 100:.3f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
            recent = 0.0
    model.eval()


def accuracy(model: Model, evaluation: EvaluationSet) -> float:
    """The share of labels that the model predicts."""
    right = 0
    with torch.inference_mode():
        for batch in evaluation.batches:
            predicted = model(*map(torch.from_numpy, batch[:3])).logits.argmax(-1).numpy()
            right += int((predicted == batch.labels).sum())
    return right / evaluation.count


def main() -> None:
    """Trains, saves and measures one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="the folder to write; the committed one where it is not given")
    arguments = parser.parse_args()
    recipe, task = RECIPES[arguments.name], TASKS[arguments.name]
    out = arguments.out or folder(arguments.name)

    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    texts = task.texts("train")
    tokenizer = recipe.tokenizer([item.text for item in texts])
    examples = encode(tokenizer, texts, task.max_tokens)
    print(f"{len(examples)} examples, {tokenizer.vocab_size} tokens, {time.perf_counter() - started:.0f} s", flush=True)

    model = recipe.model(tokenizer, dict(enumerate(task.label_names)))
    model.initialize_weights()
    train(model, recipe, examples, tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    evaluation = held_out(arguments.name, tokenizer)
    print(
        f"{out}: {accuracy(model, evaluation):.2%} of {evaluation.count} held-out labels are right "
        f"(Python {platform.python_version()}), {(time.perf_counter() - started) / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
