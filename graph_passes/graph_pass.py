"""What a pass is and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

__all__ = ["GraphPass", "Mismatch", "NearMiss", "PassReport", "PassResult", "Place", "name_of"]


class Mismatch(Exception):  # noqa: N818  # it is no error: nothing went wrong
    """Raised by a matcher where a candidate stops looking like the op; the runner never sees it.

    Args:
        node: The node where it stops.
        reason: What was expected and what was found.
    """

    def __init__(self, node: gs.Node, reason: str) -> None:
        super().__init__(reason)
        self.near_miss = NearMiss(name_of(node), reason)


def name_of(node: gs.Node) -> str:
    """What reports call a node: its name, or that of its first result."""
    return str(node.name or node.outputs[0].name)


@dataclass(frozen=True)
class NearMiss:
    """A place that nearly was the op, and why it was left alone."""

    node: str
    reason: str


@dataclass(frozen=True)
class Place:
    """A place that was fused: the node whose result the op makes now, and the largest difference on probe inputs."""

    node: str
    difference: float


@dataclass(frozen=True)
class PassReport:
    """What one pass did: how many places it changed; for a fusion, which, and which it nearly fused."""

    name: str
    count: int
    places: tuple[Place, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()

    @property
    def max_abs_difference(self) -> float | None:
        """The largest difference at any place; ``None`` where nothing was measured."""
        return max((place.difference for place in self.places), default=None)


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass (the same object where it was edited in place) and the report, less the pass's name."""

    graph: gs.Graph
    count: int
    places: tuple[Place, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()


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
