"""Running an exported model on text or ids. Needs neither torch nor onnx."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.engines import Arrays, get_engine
from exporter.errors import InputError, UserError
from exporter.files import inside
from exporter.manifest import load_manifest
from exporter.tokenization import Batch, Tokenizer, load_tokenizer

__all__ = ["Prediction", "Session"]

Prediction = dict[str, Any]
TOP_WORDS = 5


class Session:
    """An engine of an exported folder, and its tokenizer.

    Args:
        folder: Written by ``rotary-press export``.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``; ``None`` takes the first that was exported.
        target: Which engine.
        threads: How many CPU threads to use; ``None`` lets the runtime choose.

    Raises:
        BundleError: If the folder is no export, or is incomplete.
        UserError: If there is no such engine in it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        precision: str | None = None,
        target: str = "onnxruntime",
        threads: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = load_manifest(self.folder, check_files=False)
        entry = next(
            (e for e in self.manifest.engines if e.target == target and precision in (None, e.precision)), None
        )
        if entry is None:
            present = ", ".join(f"{engine.target} {engine.precision}" for engine in self.manifest.engines)
            raise UserError(f"{self.folder} has no engine for {target} {precision or ''}; it has {present}.")
        self.precision = entry.precision
        self._runner = get_engine(target).load(inside(self.folder, entry.file), threads=threads)
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            UserError: If the checkpoint had none.
        """
        if self._tokenizer is None:
            if not self.manifest.has_tokenizer:
                raise UserError(
                    f"{self.folder} was exported without tokenizer files: give ids to Session.run, or "
                    f"export again with the tokenizer beside the weights."
                )
            self._tokenizer = load_tokenizer(self.folder / "tokenizer", self.manifest.family)
        return self._tokenizer

    def run(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        token_type_ids: NDArray[Any] | None = None,
    ) -> Arrays:
        """Runs the engine on ids.

        Args:
            input_ids: (B, S) integers, each below vocab_size.
            attention_mask: (B, S), 1 for tokens and 0 for padding; all ones where it is not given.
            token_type_ids: (B, S), each below type_vocab_size; all zeros where it is not given.

        Returns:
            The task's outputs by name, float32.

        Raises:
            InputError: If a shape, a dtype, an id or the length does not fit the model.
        """
        ids = np.asarray(input_ids)
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask),
            "token_type_ids": np.zeros_like(ids) if token_type_ids is None else np.asarray(token_type_ids),
        }
        limits = {
            "input_ids": self.manifest.vocab_size,
            "attention_mask": 2,
            "token_type_ids": self.manifest.type_vocab_size,
        }
        for name, array in given.items():
            self._check(name, array, ids.shape, limits[name])
        return self._runner.run({name: given[name].astype(np.int64) for name in self.manifest.inputs})

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Runs the engine on texts and reads its outputs as the task means them.

        Returns:
            One dictionary per text. text-classification: ``label``, ``score`` and all ``scores`` (of a
            regression: ``values``). token-classification:
            ``tokens``, each with ``text``, ``label``, ``score``, ``start`` and ``end``. fill-mask: ``masks``, each with
            its best ``words`` and scores. feature-extraction: ``last_hidden_state``, (S, E), and ``pooler_output``,
            (E,), where the model has it.

        Raises:
            InputError: If a text is longer than the model's positions.
            UserError: If there is no tokenizer.
        """
        batch = self.tokenizer(texts, max_length=self.manifest.max_tokens)
        outputs = self.run(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        readers = {
            "text-classification": self._read_text,
            "token-classification": self._read_tokens,
            "fill-mask": self._read_masks,
            "feature-extraction": self._read_features,
        }
        read = readers[self.manifest.task]
        return [read(text, row, batch, outputs) for row, text in enumerate(texts)]

    def _check(self, name: str, array: NDArray[Any], shape: tuple[int, ...], limit: int) -> None:
        if array.ndim != 2 or not array.size or array.shape != shape:
            raise InputError(f"{name} must be (batch, sequence), filled, and shaped like input_ids; got {array.shape}.")
        if array.dtype.kind not in "iub":
            raise InputError(f"{name} must hold integers; got {array.dtype}.")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= limit:
            raise InputError(f"{name} must be from 0 to {limit - 1}; got {low if low < 0 else high}.")
        if name == "input_ids" and shape[1] > self.manifest.max_tokens:
            raise InputError(
                f"The input has {shape[1]} tokens; the model's positions hold {self.manifest.max_tokens}: "
                f"shorten or split the text."
            )

    def _read_text(self, text: str, row: int, _batch: Batch, outputs: Mapping[str, NDArray[Any]]) -> Prediction:
        logits = outputs["logits"][row].astype(np.float64)  # (labels,)
        labels = self.manifest.labels
        if self.manifest.problem_type == "regression" or len(labels) == 1:
            return {"text": text, "values": dict(zip(labels, logits.tolist(), strict=True))}
        several = self.manifest.problem_type == "multi_label_classification"
        scores = 1.0 / (1.0 + np.exp(-logits)) if several else _softmax(logits)
        best = int(scores.argmax())
        return {
            "text": text,
            "label": labels[best],
            "score": float(scores[best]),
            "scores": dict(zip(labels, scores.tolist(), strict=True)),
        }

    def _read_tokens(self, text: str, row: int, batch: Batch, outputs: Mapping[str, NDArray[Any]]) -> Prediction:
        scores = _softmax(outputs["logits"][row])  # (S, labels)
        tokens = []
        for position, (start, end) in enumerate(batch.offsets[row]):
            if batch.special_tokens_mask[row, position]:  # padding is special, too
                continue
            best = int(scores[position].argmax())
            tokens.append(
                {
                    "text": text[start:end],
                    "label": self.manifest.labels[best],
                    "score": float(scores[position, best]),
                    "start": start,
                    "end": end,
                }
            )
        return {"text": text, "tokens": tokens}

    def _read_masks(self, text: str, row: int, batch: Batch, outputs: Mapping[str, NDArray[Any]]) -> Prediction:
        masks = []
        for position in np.flatnonzero(batch.input_ids[row] == self.tokenizer.mask_token_id):
            scores = _softmax(outputs["logits"][row, position])  # (vocabulary,)
            best = np.argsort(-scores, kind="stable")[:TOP_WORDS]
            words = [{"word": self.tokenizer.decode([int(index)]), "score": float(scores[index])} for index in best]
            masks.append({"position": int(position), "words": words})
        return {"text": text, "masks": masks}

    def _read_features(self, text: str, row: int, batch: Batch, outputs: Mapping[str, NDArray[Any]]) -> Prediction:
        length = int(batch.attention_mask[row].sum())
        features: Prediction = {"text": text, "last_hidden_state": outputs["last_hidden_state"][row, :length].tolist()}
        if "pooler_output" in outputs:
            features["pooler_output"] = outputs["pooler_output"][row].tolist()
        return features


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
