"""What a pass is and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

__all__ = ["GraphPass", "Mismatch", "NearMiss", "PassReport", "PassResult"]


class Mismatch(Exception):  # noqa: N818  # it is no error: nothing went wrong
    """Raised by a matcher where a candidate stops looking like the op; the runner never sees it.

    Args:
        node: The node where it stops.
        reason: What was expected and what was found.
    """

    def __init__(self, node: gs.Node, reason: str) -> None:
        super().__init__(reason)
        self.near_miss = NearMiss(node.name or node.outputs[0].name, reason)


@dataclass(frozen=True)
class NearMiss:
    """A place that nearly was the op, and why it was left alone."""

    node: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What one pass did: how many places it changed, which it nearly changed, and the largest measured difference."""

    name: str
    count: int
    near_misses: tuple[NearMiss, ...] = ()
    max_abs_difference: float | None = None


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass (the same object where it was edited in place) and the report, less the pass's name."""

    graph: gs.Graph
    count: int
    near_misses: tuple[NearMiss, ...] = ()
    max_abs_difference: float | None = None


@dataclass(frozen=True)
class GraphPass:
    """A step of the pipeline.

    Args:
        name: The name of its file.
        run: A function of the graph, without state.
        requires: Names of passes that must have run before, on this or on an earlier call: the model remembers.
        forbids: Names of passes that must not have run before.
    """

    name: str
    run: Callable[[gs.Graph], PassResult]
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
