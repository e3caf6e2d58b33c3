"""The ranges of activations for static int8: found by running the fused float32 graph on real texts.

Needs the ``export`` extra. What is counted is the magnitude of every number that a quantised product reads, at every
place that is no padding, over all batches; of that, only a histogram is kept. Its bins are those of float32 itself (the
exponent and the first eight bits after it), so it holds any number, its size is fixed, and the order of batches cannot
matter. A bin is at most 1/256 wide, relative to what it holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from exporter.errors import InputError, UserError
from exporter.files import new_file
from exporter.inputs import complete_inputs
from exporter.tasks import TensorSpec
from exporter.tokenization import Tokenizer
from graph_passes.graph_tools import copy_graph, open_session, with_weights_as_inputs
from graph_passes.observation import CANNOT_RUN
from graph_passes.quantization import tensors_to_quantize

__all__ = ["METHODS", "PERCENTILE", "Method", "Ranges", "batches_of_texts", "calibrate", "fingerprint", "read_texts"]

Arrays = dict[str, NDArray[Any]]
Batch = Mapping[str, NDArray[Any]]
Method = Literal["max", "percentile"]
Range = Annotated[float, Field(gt=0, allow_inf_nan=False)]
METHODS: tuple[Method, ...] = ("max", "percentile")
# Measured on both examples, calibrated on 256 texts that they were trained on, as the SQNR of the logits of held-out
# ones: 50.8 and 41.7 dB for the largest, 51.2 and 42.8 for 99.999, 51.6 and 43.3 for 99.99, 47.5 and 35.1 for 99.9.
# Above it, steps are wider than need be; below it, what outliers carry is lost. 32 texts give the same to 0.1 dB.
PERCENTILE = 99.99
BINS = 1 << 16
SHIFT = 15  # of the 31 bits of a magnitude, the bins tell apart the first 16
HOW_TO = "Static int8 needs calibration data: a text file with one text per line, like those that the model will read."


class Ranges(BaseModel):
    """What int8 is to represent of each tensor, and how that was found: the content of ``calibration.json``.

    Attributes:
        method: "max" takes the largest magnitude; "percentile" that which so many of a hundred do not exceed.
        percentile: Of that method.
        samples, tokens: How many texts there were, and how many tokens in them, padding not counted.
        model: The :func:`fingerprint` of the graph: ranges of one model say nothing about another.
        ranges: By the name of the tensor in the fused graph.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    method: Method
    percentile: float | None = Field(None, gt=0, le=100)
    samples: PositiveInt
    tokens: PositiveInt
    model: str
    ranges: dict[str, Range]

    def of(self, graph: gs.Graph) -> dict[str, float]:
        """The ranges, for the graph that they were found on.

        Args:
            graph: Fused, in float32.

        Raises:
            UserError: If it is another one.
        """
        found = fingerprint(graph)
        if found != self.model:
            raise UserError(
                f"These ranges are of another model: they were found on the graph {self.model[:12]}…, and this one is "
                f"{found[:12]}…. Its weights or the versions that traced it differ. Calibrate again."
            )
        return dict(self.ranges)

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            BundleError: If the folder cannot be written.
        """
        with new_file(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Reads the file.

        Raises:
            UserError: If it is missing or holds something else.
        """
        if not path.is_file():
            raise UserError(f"There is no file at {path}: expected the ranges that a calibration wrote. {HOW_TO}")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "the file"
            raise UserError(f"{path} holds no ranges: {where}: {problem['msg']}. Calibrate again.") from error


def calibrate(
    graph: gs.Graph, batches: Iterable[Batch], *, method: Method = "percentile", percentile: float = PERCENTILE
) -> Ranges:
    """Runs a graph on batches and finds the range of every tensor that static int8 quantises.

    Memory does not grow with the number of batches.

    Args:
        graph: Fused, in float32. Left as it is.
        batches: The inputs of the graph by name, as the engines take them; ``attention_mask`` says what is padding.
        method: See :class:`Ranges`.
        percentile: Of that method, from 0 to 100.

    Raises:
        UserError: If there is no batch, or not a token in them; if a batch does not fit the graph; if a tensor is zero
            throughout, infinite or NaN; if the method is unknown. The message names the tensor.
    """
    if method not in METHODS:
        raise UserError(f"Unknown calibration method {method!r}; expected one of {', '.join(METHODS)}.")
    if not 0 < percentile <= 100:
        raise UserError(f"The percentile must be above 0 and at most 100; got {percentile}.")
    tensors = tensors_to_quantize(graph)
    if not tensors:
        raise UserError("There is nothing to quantise in the graph: expected a fused one, in float32.")
    seen = {tensor.name: Magnitudes() for tensor in tensors}
    samples = tokens = 0
    for batch, values in _runs(graph, tensors, batches):
        for name, array in values.items():
            seen[name].add(_of_tokens(name, array, batch))
        samples += len(batch["input_ids"])
        tokens += int(batch["attention_mask"].astype(bool).sum())
    if not tokens:
        raise UserError(f"There is no text to calibrate on. {HOW_TO}")
    share = 1.0 if method == "max" else percentile / 100
    return Ranges(
        method=method,
        percentile=percentile if method == "percentile" else None,
        samples=samples,
        tokens=tokens,
        model=fingerprint(graph),
        ranges={name: _range_of(name, magnitudes, share) for name, magnitudes in seen.items()},
    )


class Magnitudes:
    """How often each magnitude occurred among numbers: a histogram of fixed size, and the largest one."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.largest = np.float32(0)

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts numbers, of any shape."""
        magnitudes = np.abs(values, dtype=np.float32).reshape(-1)
        self.counts += np.bincount(magnitudes.view(np.uint32) >> SHIFT, minlength=BINS)
        self.largest = np.maximum(self.largest, magnitudes.max(initial=0))  # NaN stays

    def reaching(self, share: float) -> float:
        """What this share of the numbers does not exceed: the end of a bin, or the largest."""
        needed = int(np.ceil(share * self.counts.sum()))
        last = int(np.searchsorted(self.counts.cumsum(), needed))
        end = np.array([min(last + 1, BINS - 1) << SHIFT], np.uint32).view(np.float32)[0]
        return float(min(end, self.largest))


def _range_of(name: str, magnitudes: Magnitudes, share: float) -> float:
    if not np.isfinite(magnitudes.largest):
        raise UserError(f"The tensor {name!r} is not finite on this data: the checkpoint or a text is broken.")
    found = magnitudes.reaching(share)
    if not found > 0:
        raise UserError(f"The tensor {name!r} is zero throughout on this data: calibrate on texts that use it.")
    return found


def _runs(
    graph: gs.Graph, tensors: Sequence[gs.Tensor], batches: Iterable[Batch]
) -> Iterator[tuple[Arrays, dict[str, NDArray[np.float32]]]]:
    """For each batch, what the graph takes of it, and those tensors. One batch is held at a time."""
    inputs = {tensor.name for tensor in graph.inputs}
    names = [tensor.name for tensor in tensors if tensor.name not in inputs]
    watched = copy_graph(graph)
    known = watched.tensors()
    watched.outputs = [known[name] for name in names]
    model, weights = with_weights_as_inputs(watched.cleanup())
    session = open_session(model)
    for batch in batches:
        if lacking := [tensor.name for tensor in graph.inputs if tensor.name not in batch]:
            raise InputError(f"A batch must hold every input of the graph; {', '.join(lacking)} are missing.")
        feeds = {name: batch[name] for name in inputs}
        try:
            results = session.run(names, {key.name: (feeds | weights)[key.name] for key in session.get_inputs()})
        except CANNOT_RUN as error:
            raise InputError(f"The graph does not run on this batch: {str(error).splitlines()[0]}") from error
        yield (
            feeds,
            {tensor.name: feeds[tensor.name] for tensor in tensors if tensor.name in inputs}
            | dict(zip(names, results, strict=True)),
        )


def _of_tokens(name: str, values: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
    """Of a tensor (…, S, E), the rows of places that are no padding; all, where the masks do not speak of its places.

    A mask is (…, S), or longer by the cached tokens before; leading axes may have been put together.
    """
    mask = batch.get("encoder_attention_mask" if name == "encoder_hidden_states" else "attention_mask")
    if mask is None or values.ndim < 2 or mask.shape[-1] < values.shape[-2]:
        return values
    is_token = mask[..., mask.shape[-1] - values.shape[-2] :].astype(bool)
    if is_token.size != np.prod(values.shape[:-1]):
        return values
    rows: NDArray[np.float32] = values.reshape(-1, values.shape[-1])[is_token.reshape(-1)]
    return rows


def fingerprint(graph: gs.Graph) -> str:
    """SHA-256 of what a graph computes: its nodes, their names and all constants, but no notes."""
    model, weights = with_weights_as_inputs(graph)
    digest = hashlib.sha256()
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        digest.update(node.SerializeToString(deterministic=True))
    constants = {tensor.name: tensor for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant)}
    for name in sorted(constants):
        values = np.ascontiguousarray(weights[name] if name in weights else constants[name].values)
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class _Model(NamedTuple):
    """What completes a batch; see exporter/inputs.py."""

    inputs: Sequence[TensorSpec]
    max_tokens: int
    pad_token_id: int


def read_texts(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        UserError: If there is no such file, it is not UTF-8, or every line is blank.
    """
    if not path.is_file():
        raise UserError(f"There is no file at {path}. {HOW_TO}")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.start} cannot be decoded. Save it as UTF-8, one text per line."
        ) from error
    texts = [line.strip() for line in content.split("\n") if line.strip()]
    if not texts:
        raise UserError(f"{path} holds no text: every line is blank. {HOW_TO}")
    return texts


def batches_of_texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    inputs: Sequence[TensorSpec],
    max_tokens: int,
    batch_size: int = 16,
) -> Iterator[Arrays]:
    """Texts as batches that the graph takes, one at a time; longer texts are cut to ``max_tokens``.

    Caches are empty, and of several choices there is one.

    Args:
        tokenizer: Of the model.
        texts: At least one.
        inputs: Of the model, as the task table says.
        max_tokens: How many tokens its positions hold, or fewer.
        batch_size: How many texts are padded to one length.

    Raises:
        UserError: If there are no texts, the model reads something that is no text, or the tokenizer gives ids that the
            model does not know.
    """
    if not texts:
        raise UserError(f"There is no text to calibrate on. {HOW_TO}")
    specs = {spec.name: spec for spec in inputs}
    if "encoder_hidden_states" in specs:
        raise UserError("This model reads an encoder's states, which texts do not give: calibrate on batches of both.")
    for start in range(0, len(texts), batch_size):
        encoded = tokenizer(texts[start : start + batch_size], max_length=max_tokens, truncation=True)
        tokens = {name: getattr(encoded, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
        given = {name: array for name, array in tokens.items() if name in specs}
        if "choices" in specs["input_ids"].axes:
            given = {name: array[:, None] for name, array in given.items()}
        yield complete_inputs(_Model(inputs, max_tokens, tokenizer.pad_token_id), given)
