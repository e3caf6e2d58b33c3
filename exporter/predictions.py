"""From an engine's outputs to what they mean: one reader per task. Needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.engines import Arrays
from exporter.manifest import Manifest
from exporter.tokenization import Batch, Tokenizer

__all__ = ["Prediction", "best_span", "read", "read_choice"]

Prediction = dict[str, Any]
TOP_WORDS = 5
LONGEST_ANSWER = 30  # tokens; the usual bound of extractive question answering


def read(
    manifest: Manifest, tokenizer: Tokenizer, texts: Sequence[str], batch: Batch, outputs: Arrays
) -> list[Prediction]:
    """One prediction per text, for the tasks that read a text alone.

    Args:
        texts: B texts.
        batch: The same, encoded.
        outputs: Of the engine, by name; the first axis is B.
    """
    readers: dict[str, Callable[[str, int], Prediction]] = {
        "feature-extraction": lambda text, row: read_features(text, batch, row, outputs),
        "fill-mask": lambda text, row: read_masks(tokenizer, text, batch.input_ids[row], outputs["logits"][row]),
        "text-classification": lambda text, row: read_text(manifest, text, outputs["logits"][row]),
        "token-classification": lambda text, row: read_tokens(manifest, text, batch, row, outputs["logits"][row]),
    }
    return [readers[manifest.task](text, row) for row, text in enumerate(texts)]


def read_text(manifest: Manifest, text: str, logits: NDArray[Any]) -> Prediction:
    """(labels,) -> the best label and all scores, or the values of a regression."""
    labels = manifest.labels
    wide = logits.astype(np.float64)
    if manifest.problem_type == "regression" or len(labels) == 1:
        return {"text": text, "values": dict(zip(labels, wide.tolist(), strict=True))}
    scores = 1.0 / (1.0 + np.exp(-wide)) if manifest.problem_type == "multi_label_classification" else softmax(wide)
    best = int(scores.argmax())
    return {
        "text": text,
        "label": labels[best],
        "score": float(scores[best]),
        "scores": dict(zip(labels, scores.tolist(), strict=True)),
    }


def read_tokens(manifest: Manifest, text: str, batch: Batch, row: int, logits: NDArray[Any]) -> Prediction:
    """(S, labels) -> the best label of every token that is not special."""
    scores = softmax(logits)
    tokens = []
    for position in np.flatnonzero(batch.special_tokens_mask[row] == 0):  # padding is special, too
        best = int(scores[position].argmax())
        start, end = batch.offsets[row][position]
        tokens.append(
            {
                "text": text[start:end],
                "label": manifest.labels[best],
                "score": float(scores[position, best]),
                "start": start,
                "end": end,
            }
        )
    return {"text": text, "tokens": tokens}


def read_masks(tokenizer: Tokenizer, text: str, ids: NDArray[np.int64], logits: NDArray[Any]) -> Prediction:
    """(S,) and (S, vocabulary) -> the best words for every mask token."""
    masks = []
    for position in np.flatnonzero(ids == tokenizer.mask_token_id):
        scores = softmax(logits[position])
        best = np.argsort(-scores, kind="stable")[:TOP_WORDS]
        words = [{"word": tokenizer.decode([int(index)]), "score": float(scores[index])} for index in best]
        masks.append({"position": int(position), "words": words})
    return {"text": text, "masks": masks}


def read_features(text: str, batch: Batch, row: int, outputs: Arrays) -> Prediction:
    """The states of the tokens, (S, E), and the pooled state, (E,), where the model has it."""
    states = outputs["last_hidden_state"][row, batch.attention_mask[row] != 0]
    features: Prediction = {"text": text, "last_hidden_state": states.tolist()}
    if "pooler_output" in outputs:
        features["pooler_output"] = outputs["pooler_output"][row].tolist()
    return features


def read_choice(text: str, choices: Sequence[str], logits: NDArray[Any]) -> Prediction:
    """(C,) -> the best choice and all scores."""
    scores = softmax(logits)
    best = int(scores.argmax())
    return {
        "text": text,
        "choice": choices[best],
        "index": best,
        "score": float(scores[best]),
        "choices": [{"choice": choice, "score": float(score)} for choice, score in zip(choices, scores, strict=True)],
    }


def best_span(question: str, context: str, batch: Batch, outputs: Arrays) -> Prediction:
    """The best answer in the windows of one context: from a likely start to a likely end, not beyond 30 tokens.

    Args:
        batch: The windows, each a pair of question and context.
        outputs: start_logits and end_logits, (windows, S) each.

    Returns:
        ``answer``, its place in the context, and as ``score`` the product of both probabilities. They are taken over
        the context's tokens in all windows together, so that windows compare.
    """
    best: Prediction = {"text": question, "answer": "", "score": 0.0, "start": 0, "end": 0}
    in_context = batch.sequence_ids == 1
    if not in_context.any():
        return best
    chances = []
    for name in ("start_logits", "end_logits"):
        chance = np.zeros(in_context.shape)
        chance[in_context] = softmax(outputs[name][in_context])
        chances.append(chance)
    for row, (start, end) in enumerate(zip(*chances, strict=True)):
        spans = np.triu(np.outer(start, end))
        spans -= np.triu(spans, LONGEST_ANSWER)
        first, last = np.unravel_index(int(spans.argmax()), spans.shape)
        if spans[first, last] > best["score"]:
            begins, ends = batch.offsets[row][first][0], batch.offsets[row][last][1]
            best |= {"answer": context[begins:ends], "score": float(spans[first, last]), "start": begins, "end": ends}
    return best


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
