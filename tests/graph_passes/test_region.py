"""Regions of a graph: what lies between two tensors, and what flows into it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, parser

from graph_passes.graph_tools import import_model
from graph_passes.region import DEPTH, boundary, first_untold, region_between, sources_of

Rewrite = Callable[..., ModelProto]

# x ─┬─► a ──► b ─┬─► y        t ──► u ─► (b)        y ──► z
#    └────────────┘                                  side ──► e, beside it all
TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
small (float[n, 4] x, float[n, 4] t, float[n, 4] side) => (float[n, 4] z, float[n, 4] e)
<float[4] w = {1, 2, 3, 4}>
{
    c = Constant <value: tensor = float[1] {2}> ()
    a = Mul (x, w)
    u = Mul (t, c)
    b = Add (a, u)
    y = Sub (b, x)
    z = Neg (y)
    e = Neg (side)
}
"""


@pytest.fixture
def graph(rewrite: Rewrite) -> gs.Graph:
    return import_model(rewrite(TEXT))


def made_by(nodes: list[gs.Node]) -> list[str]:
    return sorted(node.outputs[0].name for node in nodes)


def between(graph: gs.Graph, source: str, sink: str) -> list[str]:
    return made_by(region_between(graph.tensors()[source], graph.tensors()[sink]))


def sources(graph: gs.Graph, sink: str) -> list[str]:
    return [tensor.name for tensor in sources_of(graph.tensors()[sink])]


def test_sources_come_nearest_first_each_once_and_without_constants(graph: gs.Graph) -> None:
    assert sources(graph, "y") == ["b", "x", "a", "u", "t"]
    assert sources(graph, "x") == []


def test_a_region_holds_every_node_on_every_way(graph: gs.Graph) -> None:
    assert between(graph, "x", "y") == ["a", "b", "y"]
    assert between(graph, "t", "z") == ["b", "u", "y", "z"]
    assert between(graph, "a", "b") == ["b"]


@pytest.mark.parametrize(("source", "sink"), [("y", "x"), ("side", "y"), ("x", "u"), ("x", "x"), ("x", "e")])
def test_where_there_is_no_way_there_is_no_region(graph: gs.Graph, source: str, sink: str) -> None:
    assert between(graph, source, sink) == []


def test_what_is_read_elsewhere_belongs_to_the_region_its_reader_does_not(rewrite: Rewrite) -> None:
    graph = import_model(rewrite(TEXT, ("e = Neg (side)", "e = Add (side, a)")))
    assert between(graph, "x", "y") == ["a", "b", "y"]
    assert between(graph, "x", "e") == ["a", "e"]


@pytest.mark.parametrize("barrier", ["MatMul", "Gemm"])
def test_no_region_reaches_across_a_barrier(rewrite: Rewrite, barrier: str) -> None:
    """Nor does it where another way leads round it: all that is between must be replaced together."""
    graph = import_model(rewrite(TEXT, ("a = Mul (x, w)", f"a = {barrier} (x, t)")))
    assert between(graph, "x", "a") == []
    assert between(graph, "x", "z") == []
    assert sources(graph, "a") == []
    assert sources(graph, "y") == ["b", "x", "a", "u", "t"], "the result of a barrier is a source"


def test_barriers_can_be_named(rewrite: Rewrite) -> None:
    graph = import_model(rewrite(TEXT))
    tensors = graph.tensors()
    assert region_between(tensors["t"], tensors["y"], barriers={"Add"}) == []
    assert [tensor.name for tensor in sources_of(tensors["y"], barriers={"Add"})] == ["b", "x"]


def test_a_walk_ends_somewhere(rewrite: Rewrite) -> None:
    steps = "\n".join(f"    s{index + 1} = Neg (s{index})" for index in range(DEPTH + 2))
    graph = import_model(rewrite(TEXT, ("    e = Neg (side)", f"    s0 = Neg (side)\n{steps}\n    e = Neg (s1)")))
    found = sources(graph, f"s{DEPTH + 1}")
    assert found[-1] == "s1"
    assert len(found) == DEPTH
    assert len(between(graph, "s1", f"s{DEPTH + 1}")) == DEPTH
    assert between(graph, "s0", f"s{DEPTH + 2}") == []


def test_a_boundary_is_what_flows_in_once_and_no_constant(graph: gs.Graph) -> None:
    tensors = graph.tensors()
    nodes = region_between(tensors["x"], tensors["y"])
    in_order = sorted(nodes, key=graph.nodes.index)
    assert [tensor.name for tensor in boundary(in_order)] == ["x", "u"]
    assert {tensor.name for tensor in boundary(nodes[::-1])} == {"x", "u"}
    assert boundary([]) == []


def test_an_input_that_is_left_out_flows_in_nowhere(rewrite: Rewrite) -> None:
    graph = import_model(rewrite(TEXT, ("z = Neg (y)", "z = Clip (y, , c)")))
    tensors = graph.tensors()
    assert [tensor.name for tensor in boundary(region_between(tensors["y"], tensors["z"]))] == ["y"]
    assert sources(graph, "z")[:2] == ["y", "b"]


@pytest.mark.parametrize(
    ("op", "told"),
    [
        ("Neg (y)", True),
        ("Slice (y, c, far)", True),
        ("Slice (y, c, c)", False),  # to a length that probes of that length do not tell
        ("Clip (y)", False),
        ("Relu (y)", False),
        ("theirs.Neg (y)", False),
    ],
)
def test_what_random_numbers_cannot_tell_about(op: str, told: bool) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20, "theirs" : 1]>
    region (float[batch, 4] y) => (float[rows, 4] z)
    <int64[1] c = {{0}}, int64[1] far = {{9223372036854775807}}>
    {{ z = {op} }}
    """
    graph = import_model(parser.parse_model(text))
    graph.nodes[0].inputs[0].shape = ("batch", 4)
    assert (first_untold(graph.nodes) is None) == told


@pytest.mark.parametrize(
    ("op", "also", "untold"),
    [
        ("Clip (y)", set(), "Clip"),
        ("Clip (y)", {"Clip"}, None),
        ("Clip (y)", {"Relu"}, "Clip"),
        ("Neg (y)", set(), None),  # what is told of by itself stays so
        ("theirs.Clip (y)", {"Clip"}, "Clip"),  # of which nothing is known
    ],
)
def test_other_ops_may_be_told_of_where_they_stand(op: str, also: set[str], untold: str | None) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20, "theirs" : 1]>
    region (float[batch, 4] y) => (float[batch, 4] z)
    {{ z = {op} }}
    """
    graph = import_model(parser.parse_model(text))
    asked: list[str] = []

    def is_told(node: gs.Node) -> bool:
        asked.append(node.op)
        return node.op in also

    found = first_untold(graph.nodes, also=is_told)
    assert (found and found.op) == untold
    assert asked == (["Clip"] if op == "Clip (y)" else []), "it is asked of standard ops that are not told of yet"


def test_what_reads_a_shape_alone_is_made_from_nothing(rewrite: Rewrite) -> None:
    graph = import_model(rewrite(TEXT, ("a = Mul (x, w)", "a = Shape (x)")))
    assert "x" not in sources(graph, "a")
    assert between(graph, "x", "a") == []
