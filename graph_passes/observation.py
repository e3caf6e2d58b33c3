"""What every tensor of a graph is, told by running it: shapes with named axes, and values to compare.

Exporters spell one computation in many ways, and shape inference loses itself in their arithmetic on shapes. Running
the graph on made-up inputs at a few sizes tells both: an axis that was always 4 is 4, one that was as long as the
input's ``sequence`` is ``sequence``, and a tensor whose numbers are those of a rotation in every run may be one. What
follows from it is proved afterwards, on the nodes themselves (equivalence.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from graph_passes.errors import PassError
from graph_passes.graph_tools import open_session, tensor_shape, with_weights_as_inputs

__all__ = ["CANNOT_RUN", "Arrays", "Observation", "Run", "Shape", "evaluator", "observe"]

Shape = tuple[int | str, ...]
Arrays = dict[str, NDArray[Any]]
# Sizes for the first, second, … symbolic axis, a row per run: primes, so that no axis can be mistaken for another; a
# one, where broadcasting mistakes show; small, because every tensor of the graph is kept.
SIZES = ((2, 5, 11, 17, 3), (3, 7, 13, 19, 5), (1, 4, 3, 7, 9))
# Where those do not run, because a model has a few positions only: a prompt of one or two, a cache of one or none.
FEW = ((2, 1, 1, 4, 5), (3, 2, 0, 5, 4), (1, 1, 0, 3, 2))
# What the runtime raises on a model that it cannot load or run; its types share no base of their own.
CANNOT_RUN = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,  # a result in a dtype that numpy does not have
)


@dataclass(frozen=True)
class Run:
    """One run: the size of each symbolic axis, and every tensor that is no constant, by name."""

    sizes: Mapping[str, int]
    values: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Observation:
    """A few runs of one graph."""

    runs: tuple[Run, ...]

    def shape(self, name: str) -> Shape | None:
        """A tensor's axes: numbers, symbols, or multiples, sums or products of them. ``None`` if one is neither.

        ``None``, too, for what is no tensor: a sequence of some.
        """
        if name not in self.runs[0].values:
            return None
        shapes = [run.values[name].shape for run in self.runs]
        if len({len(shape) for shape in shapes}) > 1:
            return None
        axes = [self._axis(sizes) for sizes in zip(*shapes, strict=True)]
        return None if None in axes else tuple(axis for axis in axes if axis is not None)

    def _axis(self, sizes: tuple[int, ...]) -> int | str | None:
        if len(set(sizes)) == 1:
            return sizes[0]
        symbols = {name: tuple(run.sizes[name] for run in self.runs) for name in self.runs[0].sizes}
        for name, values in symbols.items():
            if values == sizes:
                return name
        for (first, a), (second, b) in itertools.combinations(symbols.items(), 2):
            if tuple(x * y for x, y in zip(a, b, strict=True)) == sizes:
                return f"{first} * {second}"
            if tuple(x + y for x, y in zip(a, b, strict=True)) == sizes:
                return f"{first} + {second}"
        for name, values in symbols.items():
            factor = sizes[0] // max(1, values[0])
            if tuple(factor * value for value in values) == sizes:
                return f"{factor} * {name}"
        return None


def observe(graph: gs.Graph, *, seed: int = 0, tensors: Sequence[gs.Tensor] | None = None) -> Observation:
    """Runs a graph a few times and keeps every tensor, or those that are named.

    Raises:
        PassError: If the graph cannot be run on made-up inputs. The message says what the runtime says.
    """
    symbols = _symbols(graph)
    if tensors is None:
        tensors = [tensor for node in graph.nodes for tensor in node.outputs if not tensor.is_empty()]
    evaluate = evaluator(graph, tensors)
    problem: PassError | None = None
    for table in (SIZES, FEW):
        runs = []
        try:
            for row in table:
                size = {name: _nth(row, index) for index, name in enumerate(symbols)}
                named = size | {axis: _size(axis, size) for axis in _axes(graph) if isinstance(axis, str)}  # sums, too
                runs.append(Run(named, evaluate(size, seed)))
        except PassError as error:
            problem = problem or error
        else:
            return Observation(tuple(runs))
    assert problem is not None  # a table either runs or has one
    raise problem


def evaluator(graph: gs.Graph, tensors: Sequence[gs.Tensor]) -> Callable[[Mapping[str, int], int], Arrays]:
    """A function of sizes and a seed that gives these tensors and the inputs by name, run on made-up inputs.

    What is in half precision is computed, and given, in float32.

    Whole numbers are 0 or 1 at random, which every table of two rows holds and every mask understands; where that
    fails, one input is all 0 (a table of one row) or all 1 (tokens that are padding take no position), or every input
    is all 0. Other inputs are normally distributed. What is no tensor, a sequence of some, is left out. Both raise a
    PassError if the graph cannot be run so, which says what the runtime says.
    """
    needed = gs.Graph(_ancestors(graph, tensors), list(graph.inputs), list(tensors), opset=graph.opset)
    needed.import_domains = graph.import_domains
    model, weights = with_weights_as_inputs(needed, widen=True)
    try:
        session = open_session(model)
    except CANNOT_RUN as error:
        raise PassError(f"ONNX Runtime cannot load the graph, so nothing is known about it: {error}") from error
    names = [output.name for output in session.get_outputs()]

    whole = [tensor.name for tensor in graph.inputs if not np.issubdtype(tensor.dtype, np.floating)]
    fixed: list[dict[str, int]] = [{}, *({name: value} for value in (0, 1) for name in whole), dict.fromkeys(whole, 0)]

    def evaluate(sizes: Mapping[str, int], seed: int) -> Arrays:
        problem: BaseException | None = None
        for numbers in fixed:
            feeds = _made_up(graph, sizes, numbers, np.random.default_rng(seed))
            try:
                results = dict(zip(names, session.run(names, feeds | weights), strict=True))
            except CANNOT_RUN as error:
                problem = problem or error
                continue
            return {name: value for name, value in results.items() if isinstance(value, np.ndarray)} | feeds
        raise PassError(
            f"The graph does not run on made-up inputs, so nothing is known about it. If inputs must agree in an axis, "
            f"give it one name in all of them. ONNX Runtime says: {problem}"
        )

    return evaluate


def _ancestors(graph: gs.Graph, tensors: Sequence[gs.Tensor]) -> list[gs.Node]:
    wanted: set[int] = set()
    pending = [node for tensor in tensors for node in tensor.inputs]
    while pending:
        node = pending.pop()
        if id(node) not in wanted:
            wanted.add(id(node))
            pending += [before for tensor in _read_by(node) for before in tensor.inputs]
    return [node for node in graph.nodes if id(node) in wanted]


def _read_by(node: gs.Node) -> Iterator[gs.Tensor]:
    """What a node reads, and what the branches of an If and the bodies of loops read."""
    yield from node.inputs
    for inner in node.subgraphs():
        yield from inner.outputs
        for nested in inner.nodes:
            yield from _read_by(nested)


def _axes(graph: gs.Graph) -> list[int | str]:
    """All axes of all inputs."""
    axes: list[int | str] = []
    for tensor in graph.inputs:
        shape = tensor_shape(tensor)
        if shape is None:
            raise PassError(
                f"The input {tensor.name!r} has the shape {tensor.shape}: every axis needs a size or a name. "
                f"Export the model again with named dynamic axes."
            )
        if isinstance(tensor.dtype, int) or np.dtype(tensor.dtype).kind not in "biuf":
            raise PassError(f"The input {tensor.name!r} is neither numbers nor booleans: expected a float32 model.")
        axes += shape
    return axes


def _symbols(graph: gs.Graph) -> list[str]:
    """The names of axes that have a size of their own: those that are not the sum of two others."""
    return list(dict.fromkeys(axis for axis in _axes(graph) if isinstance(axis, str) and " + " not in axis))


def _made_up(
    graph: gs.Graph, sizes: Mapping[str, int], numbers: Mapping[str, int], random: np.random.Generator
) -> Arrays:
    """The inputs; those named in ``numbers`` are that number throughout."""
    feeds: Arrays = {}
    for tensor in graph.inputs:
        axes = [_size(axis, sizes) for axis in tensor_shape(tensor) or ()]
        if np.issubdtype(tensor.dtype, np.floating):
            dtype = np.float32 if tensor.dtype == np.float16 else tensor.dtype
            feeds[tensor.name] = random.standard_normal(axes).astype(dtype)
        elif tensor.name in numbers:
            feeds[tensor.name] = np.full(axes, numbers[tensor.name], tensor.dtype)
        else:
            feeds[tensor.name] = random.integers(0, 2, axes).astype(tensor.dtype)
            if axes:
                feeds[tensor.name][..., :1] = 1  # a mask that hides everything makes NaN of a softmax
    return feeds


def _size(axis: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    parts = axis.split(" + ")
    if unknown := [part for part in parts if part not in sizes and not part.isdecimal()]:
        raise PassError(f"An input has an axis {axis!r}, but none has an axis {unknown[0]!r}.")
    return sum(sizes[part] if part in sizes else int(part) for part in parts)


def _nth(row: Sequence[int], index: int) -> int:
    """The size of an axis; past the end of the row larger ones follow, that no two may be the same."""
    return row[index % len(row)] + 20 * (index // len(row))
