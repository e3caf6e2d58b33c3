"""Text generation: a loop of cached steps, greedy or sampled. Needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.engines import Arrays
from exporter.errors import InputError, UserError

__all__ = ["Continuation", "Sampling", "generate", "probabilities"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    Attributes:
        max_new_tokens: The most tokens that a row gets.
        temperature: 0 takes the best token (greedy); above, scores are divided by it and a token is drawn.
        top_k: Draw from the best ``top_k`` tokens alone; 0 is no limit.
        top_p: Draw from the best tokens that have this probability together (Holtzman et al., arXiv 1904.09751).
        seed: Of the draws; the rows of a batch share them.

    Raises:
        UserError: If a value is out of range, or would have no effect without a temperature.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, fits, expected in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0.0 <= self.temperature < float("inf"), "0 or more, and finite"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
        ):
            if not fits:
                raise UserError(f"{name} must be {expected}; got {value}.")
        if not self.temperature and (self.top_k or self.top_p < 1.0):
            raise UserError("top_k and top_p choose among draws, but temperature 0 draws nothing: give a temperature.")


@dataclass(frozen=True)
class Continuation:
    """What a row got: its new tokens (an end token included), and why it ended: "eos", "length" or "positions"."""

    ids: list[int]
    finish_reason: str


def generate(
    run: Callable[[Mapping[str, NDArray[Any]]], Arrays],
    inputs: Mapping[str, NDArray[Any]],
    *,
    sampling: Sampling,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    max_tokens: int,
) -> list[Continuation]:
    """Goes on from prompts, one token per row and step.

    Args:
        run: One pass of the engine over named inputs, without those that are left out.
        inputs: Of the first pass: input_ids and attention_mask, (B, S) each, padded on the left; what else the engine
            takes is kept for every step.
        sampling: How to choose, and how many.
        eos_token_ids: Tokens that end a row.
        pad_token_id: What ended rows go on with.
        max_tokens: How many tokens the positions hold, the prompt included.

    Raises:
        InputError: If a prompt is padded on the right, or fills the positions already.
    """
    mask = inputs["attention_mask"]
    if not mask[:, -1].all():
        raise InputError("Prompts must be padded on the left: the last place of every row must be a token.")
    if mask.shape[1] >= max_tokens:
        raise InputError(
            f"The longest prompt has {mask.shape[1]} tokens, and the model's positions hold {max_tokens}: "
            f"there is no room to go on."
        )
    random = np.random.default_rng(sampling.seed)
    feeds = dict(inputs)
    continuations: list[list[int]] = [[] for _ in mask]
    finished = np.zeros(len(mask), np.bool_)
    room = max_tokens - mask.shape[1]
    for _ in range(min(sampling.max_new_tokens, room)):
        outputs = run(feeds)
        chosen = _choose(outputs["logits"][:, -1], sampling, random)
        chosen[finished] = pad_token_id
        for row in np.flatnonzero(~finished):
            continuations[row].append(int(chosen[row]))
        finished |= np.isin(chosen, list(eos_token_ids))
        if finished.all():
            break
        mask = np.concatenate((mask, np.ones((len(mask), 1), mask.dtype)), axis=1)
        feeds |= {name.replace("present.", "past_key_values."): array for name, array in outputs.items() if "." in name}
        feeds |= {"input_ids": chosen[:, None], "attention_mask": mask}
        if "token_type_ids" in feeds:
            feeds["token_type_ids"] = feeds["token_type_ids"][:, -1:]
        feeds.pop("position_ids", None)  # they count on from the mask
    reason = "length" if sampling.max_new_tokens <= room else "positions"
    return [
        Continuation(ids, "eos" if done else reason) for ids, done in zip(continuations, finished.tolist(), strict=True)
    ]


def probabilities(logits: NDArray[Any], sampling: Sampling) -> NDArray[np.float64]:
    """What a draw is made from: (V,) scores -> (V,) probabilities, by temperature, then top_k, then top_p."""
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    chances: NDArray[np.float64] = np.exp(scores - scores.max())
    chances /= chances.sum()
    if sampling.top_p < 1.0:
        order = np.argsort(-chances, kind="stable")
        before = np.cumsum(chances[order]) - chances[order]  # the chance of everything better
        chances[order[before >= sampling.top_p]] = 0.0
        chances /= chances.sum()
    return chances


def _choose(logits: NDArray[Any], sampling: Sampling, random: np.random.Generator) -> NDArray[np.int64]:
    """(B, V) -> (B,)."""
    if not sampling.temperature:
        return np.asarray(logits.argmax(axis=-1), np.int64)
    return np.array([random.choice(len(row), p=probabilities(row, sampling)) for row in logits], np.int64)
