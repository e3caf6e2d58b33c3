"""The inputs that parity is judged on: seeded, and shaped to hurt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.tasks import TensorSpec

__all__ = ["Case", "make_cases"]

BUDGET = 1 << 23  # elements of one output: keeps a 50,000-word vocabulary from making gigabytes of reference
ENCODER_LENGTH = 11


@dataclass(frozen=True)
class Case:
    """One batch of inputs, and the name that reports call it by.

    Attributes:
        inputs: By name, shaped as the task table says.
        follows: The case whose cache this one goes on from; its tensors are filled in when the reference is computed.
    """

    name: str
    inputs: dict[str, NDArray[Any]]
    follows: str | None = None


def make_cases(
    specs: Sequence[TensorSpec],
    *,
    pad_token_id: int,
    max_tokens: int,
    output_width: int,
    seed: int,
) -> list[Case]:
    """Random ids, never padding, in the shapes that break engines.

    Args:
        specs: The model's inputs.
        pad_token_id, max_tokens: Of the model.
        output_width: Numbers per token of the widest output; bounds the longest case.
        seed: The same seed gives the same cases.
    """
    maker = _Maker(specs, pad_token_id, np.random.default_rng(seed))
    longest = max(1, min(max_tokens, BUDGET // output_width))
    if maker.has_cache:
        longest = max(1, longest - 1)  # leaves one place for a step

    def batch(name: str, lengths: tuple[int, ...], *, left: bool = False) -> Case:
        lengths = tuple(min(length, longest) for length in lengths)
        position = np.arange(max(1, *lengths))
        count = np.array(lengths)[:, None]
        return maker.first(name, (position >= position.size - count) if left else (position < count))

    cases = [
        batch("one token", (1,)),
        batch("odd length", (17, 17, 17)),
        batch("padding on the right", (33, 20, 7, 1)),
        batch("padding on the left", (29, 12, 3, 1), left=True),
        batch("a row of padding alone", (12, 0, 5)),
        batch("a large batch", (3,) * 32),
        batch("the longest input", (longest,)),
    ]
    if maker.has_cache:
        cases += [
            maker.step(case, length)
            for case in cases
            for length in (1, 5)
            if case.name != "a large batch" and case.inputs["attention_mask"].shape[1] + length <= max_tokens
        ]
    return cases


class _Maker:
    """Fills the inputs of a model, given which places are tokens."""

    def __init__(self, specs: Sequence[TensorSpec], pad_token_id: int, random: np.random.Generator) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.pad_token_id = pad_token_id
        self.random = random
        self.has_cache = any(name.startswith("past_key_values.") for name in self.specs)

    def first(self, name: str, mask: NDArray[np.bool_]) -> Case:
        """A case with nothing before it; ``mask``: (rows, S), true for tokens."""
        rows = mask.shape[0]
        inputs = self._tokens(mask) | {"attention_mask": mask.astype(np.int64)}
        if "choices" in self.specs["input_ids"].axes:
            choices = next(count for count in (3, 2, 1) if rows % count == 0)
            inputs = {key: array.reshape(-1, choices, mask.shape[1]) for key, array in inputs.items()}
        for key, spec in self.specs.items():
            if key.startswith("past_key_values."):
                _, heads, _, size = spec.axes
                inputs[key] = np.zeros((rows, int(heads), 0, int(size)), np.float32)
            elif key == "encoder_hidden_states":
                shape = (rows, ENCODER_LENGTH, int(spec.axes[-1]))
                inputs[key] = self.random.standard_normal(shape).astype(np.float32)
            elif key == "encoder_attention_mask":  # the first row sees all, the last one nothing
                lengths = np.linspace(ENCODER_LENGTH, 0, rows).astype(int)
                inputs[key] = (np.arange(ENCODER_LENGTH) < lengths[:, None]).astype(np.int64)
        return Case(name, {key: inputs[key] for key in self.specs})

    def step(self, before: Case, length: int) -> Case:
        """``length`` tokens more for every row of ``before``."""
        mask = np.ones((before.inputs["input_ids"].shape[0], length), np.bool_)
        inputs = before.inputs | self._tokens(mask)
        inputs["attention_mask"] = np.concatenate((before.inputs["attention_mask"], mask.astype(np.int64)), axis=1)
        what = "a step" if length == 1 else f"{length} tokens"
        return Case(f"{what} after {before.name}", {key: inputs[key] for key in self.specs}, before.name)

    def _tokens(self, mask: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for key in ("input_ids", "token_type_ids", "position_ids"):
            if key not in self.specs:
                continue
            below = np.arange(self.specs[key].limit or 1)
            if key == "input_ids":
                ordinary = np.setdiff1d(below, [self.pad_token_id])
                arrays[key] = np.where(mask, self.random.choice(ordinary, mask.shape), self.pad_token_id)
            else:
                arrays[key] = self.random.choice(below, mask.shape) * mask
            arrays[key] = arrays[key].astype(np.int64)
        return arrays
