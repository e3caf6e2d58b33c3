"""Running an exported model on text or ids. Needs neither torch nor onnx."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter import predictions
from exporter.engines import Arrays, get_engine
from exporter.errors import InputError, UserError
from exporter.files import inside
from exporter.generation import Continuation, Sampling, generate
from exporter.inputs import complete_inputs
from exporter.manifest import load_manifest
from exporter.predictions import Prediction
from exporter.tasks import CACHE_KINDS
from exporter.tokenization import Tokenizer, load_tokenizer

__all__ = ["Prediction", "Session"]

# How much of a window the next one repeats, so that no answer is cut in two: the usual 128 tokens, or a quarter.
STRIDE = 128


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
        *,
        position_ids: NDArray[Any] | None = None,
        past_key_values: Sequence[tuple[NDArray[Any], NDArray[Any]]] | None = None,
        encoder_hidden_states: NDArray[Any] | None = None,
        encoder_attention_mask: NDArray[Any] | None = None,
    ) -> Arrays:
        """Runs the engine on ids.

        B batch, S sequence, P past, T encoder sequence; for multiple-choice, an axis of choices follows B.

        Args:
            input_ids: (B, S) integers, each below vocab_size; without those that are cached.
            attention_mask: (B, P + S), 1 for tokens and 0 for padding; all ones where it is not given.
            token_type_ids: (B, S), each below type_vocab_size; all zeros where it is not given.
            position_ids: (B, S), if the export was made to take them; counted where it is not given.
            past_key_values: Of text-generation: for each layer keys and values, (B, H, P, D) each, which are the
                outputs ``present.N.key`` and ``present.N.value`` of the pass before. Nothing is cached by default.
            encoder_hidden_states: (B, T, hidden_size), of a decoder with cross-attention, which must have them.
            encoder_attention_mask: (B, T), as ``attention_mask``.

        Returns:
            The task's outputs by name, float32.

        Raises:
            InputError: If a shape, a dtype, an id or the length does not fit the model.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
        }
        for layer, cache in enumerate(past_key_values or ()):
            given |= {f"past_key_values.{layer}.{kind}": array for kind, array in zip(CACHE_KINDS, cache, strict=True)}
        return self._run({name: np.asarray(array) for name, array in given.items() if array is not None})

    def predict(
        self,
        texts: Sequence[str],
        *,
        contexts: Sequence[str] | None = None,
        choices: Sequence[Sequence[str]] | None = None,
    ) -> list[Prediction]:
        """Runs the engine on texts and reads its outputs as the task means them.

        Args:
            texts: What to predict on; for question-answering the questions, for multiple-choice the beginnings.
            contexts: For question-answering: where to look for each answer. A long one is read in windows.
            choices: For multiple-choice: the endings of each text.

        Returns:
            One dictionary per text. text-classification: ``label``, ``score`` and all ``scores`` (of a regression:
            ``values``). token-classification: ``tokens``, each with ``text``, ``label``, ``score``, ``start`` and
            ``end``. fill-mask: ``masks``, each with its best ``words`` and scores. feature-extraction:
            ``last_hidden_state``, (S, E), and ``pooler_output``, (E,), where the model has it. question-answering:
            ``answer``, ``score``, ``start`` and ``end``. multiple-choice: ``choice``, ``index``, ``score`` and all
            ``choices``. text-generation: as :meth:`generate`, greedily.

        Raises:
            InputError: If a text is longer than the model's positions.
            UserError: If there is no tokenizer, or contexts or choices do not fit the task.
        """
        _check_texts(texts)
        task = self.manifest.task
        for name, second, wanted in (
            ("contexts", contexts, task == "question-answering"),
            ("choices", choices, task == "multiple-choice"),
        ):
            if wanted and (second is None or len(second) != len(texts)):
                raise UserError(f"{task} needs {name}, one for each text; got {0 if second is None else len(second)}.")
            if second is not None and not wanted:
                raise UserError(f"{task} takes texts alone, no {name}.")
        if task == "text-generation":
            return self.generate(texts)
        if contexts is not None:
            return [self._answer(question, context) for question, context in zip(texts, contexts, strict=True)]
        if choices is not None:
            return [self._choose(text, list(endings)) for text, endings in zip(texts, choices, strict=True)]
        batch = self.tokenizer(texts, max_length=self.manifest.max_tokens)
        outputs = self.run(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        return predictions.read(self.manifest, self.tokenizer, texts, batch, outputs)

    def generate(self, texts: Sequence[str], *, sampling: Sampling = Sampling()) -> list[Prediction]:  # noqa: B008
        """Goes on from texts. A prompt is the begin token and the text, without an end token.

        Args:
            texts: The prompts.
            sampling: How the next token is chosen, and when to stop; by default the best one.

        Returns:
            One dictionary per text: ``continuation``, its ``ids``, and ``finish_reason``: "eos", "length" or
            "positions".

        Raises:
            InputError: If a text leaves no room in the model's positions.
            UserError: If the task is not text-generation, or there is no tokenizer.
        """
        _check_texts(texts)
        tokenizer = self.tokenizer
        begin = tokenizer.special_ids["cls_token"]
        rows = [[begin, *row] for row in map(self._ids, texts)]
        width = max(map(len, rows), default=0)
        ids = np.array([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows], np.int64)
        mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows], np.int64)
        found = self.generate_ids(ids, mask, sampling=sampling)
        return [
            {
                "text": text,
                "continuation": tokenizer.decode(continuation.ids),
                "ids": continuation.ids,
                "finish_reason": continuation.finish_reason,
            }
            for text, continuation in zip(texts, found, strict=True)
        ]

    def generate_ids(
        self,
        input_ids: NDArray[Any],
        attention_mask: NDArray[Any] | None = None,
        token_type_ids: NDArray[Any] | None = None,
        *,
        encoder_hidden_states: NDArray[Any] | None = None,
        encoder_attention_mask: NDArray[Any] | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        eos_token_ids: Collection[int] | None = None,
    ) -> list[Continuation]:
        """Goes on from prompts of ids, (B, S), padded on the left; inputs as for :meth:`run`.

        Args:
            sampling: How the next token is chosen, and when to stop.
            eos_token_ids: Tokens that end a row; ``None`` takes the checkpoint's ``eos_token_id``.

        Raises:
            InputError: If an input does not fit the model, a row is padded on the right, or no room is left.
            UserError: If the task is not text-generation.
        """
        if self.manifest.task != "text-generation":
            raise UserError(f"{self.folder} was exported for {self.manifest.task}; generating needs text-generation.")
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
        }
        arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
        return generate(
            self._run,
            complete_inputs(self.manifest, arrays),
            sampling=sampling,
            eos_token_ids=self.manifest.eos_token_ids if eos_token_ids is None else eos_token_ids,
            pad_token_id=self.manifest.pad_token_id,
            max_tokens=self.manifest.max_tokens,
        )

    def _run(self, given: Mapping[str, NDArray[Any]]) -> Arrays:
        return self._runner.run(complete_inputs(self.manifest, given))

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self.tokenizer([text], add_special_tokens=False).input_ids[0].tolist()
        return ids

    def _answer(self, question: str, context: str) -> Prediction:
        room = self.manifest.max_tokens
        windows = self.tokenizer(
            [question],
            [context],
            truncation="only_second",
            max_length=room,
            stride=min(STRIDE, room // 4),
            return_overflowing_tokens=True,
        )
        outputs = self.run(windows.input_ids, windows.attention_mask, windows.token_type_ids)
        return predictions.best_span(question, context, windows, outputs)

    def _choose(self, text: str, endings: list[str]) -> Prediction:
        if not endings:
            raise InputError("Every text needs at least one choice; got none.")
        batch = self.tokenizer([text] * len(endings), endings, max_length=self.manifest.max_tokens)
        arrays = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
        outputs = self.run(*(array[None] for array in arrays))
        return predictions.read_choice(text, endings, outputs["logits"][0])


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not len(texts):
        raise InputError(f"texts must be a list of at least one text; got {texts!r}. Put a single one into a list.")
