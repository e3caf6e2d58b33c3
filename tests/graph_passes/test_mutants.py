"""Mutants of real subgraphs and whole graphs: whatever a graph has become, fusion does not change what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, parser

from graph_passes import fuse_attention, fuse_rotary, prepare
from graph_passes.errors import PassError
from graph_passes.graph_pass import Mismatch
from graph_passes.graph_tools import export_model, import_model
from graph_passes.observation import CANNOT_RUN, observe
from graph_passes.region import boundary
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]


def cut_out(graph: gs.Graph, nodes: list[gs.Node], outputs: list[gs.Tensor]) -> ModelProto:
    """Some nodes of a graph as a model. Shapes that are computed elsewhere become that of the first input."""
    flowing = boundary(nodes)
    inputs = [tensor for tensor in flowing if np.issubdtype(tensor.dtype, np.floating)]
    extra: list[gs.Node] = []
    for tensor in flowing:
        tensor.inputs.clear()
        if tensor not in inputs:
            extra.append(gs.Node("Shape", tensor.name, inputs=[inputs[0]], outputs=[tensor]))
    return export_model(gs.Graph([*extra, *nodes], inputs, outputs, opset=graph.opset).cleanup().toposort())


def rotation_of(model: ModelProto) -> ModelProto:
    """The last rotation of a traced model, cut out."""
    graph = prepare.run(import_model(model)).graph
    observation = observe(graph)
    for node in reversed(graph.nodes):
        for x, source, nodes in (
            fuse_rotary.candidates(node.outputs[0]) if fuse_rotary.may_be_rotated(node.outputs[0]) else ()
        ):
            try:
                site = fuse_rotary.match(node, x, source, node.outputs[0], nodes, observation)
            except Mismatch:
                continue
            return cut_out(graph, site.nodes, [site.y])
    raise AssertionError("no rotation")


def norm_of(model: ModelProto) -> ModelProto:
    """The last sum and norm but one of a traced model, cut out; the sum is an output where it is carried on."""
    graph = prepare.run(import_model(model)).graph
    norms = [n for n in graph.nodes if n.op == "LayerNormalization" and n.inputs[0].inputs[0].op == "Add"]
    norm, total = norms[-2], norms[-2].inputs[0]
    carried = [total] if len(total.outputs) > 1 else []
    return cut_out(graph, [total.inputs[0], norm], [norm.outputs[0], *carried])


def spelled_norm_of(model: ModelProto) -> ModelProto:
    """The same, with the norm in simple ops."""
    graph = import_model(norm_of(model))
    norm = next(node for node in graph.nodes if node.op == "LayerNormalization")
    (x, gamma, beta), (y,) = norm.inputs, norm.outputs
    norm.outputs.clear()

    def add(op: str, *inputs: gs.Tensor, output: gs.Tensor | None = None) -> gs.Tensor:
        made = output or gs.Variable(f"{op}_{len(graph.nodes)}", np.float32)
        graph.nodes.append(gs.Node(op, made.name, inputs=list(inputs), outputs=[made]))
        return made

    last, two, epsilon = (
        gs.Constant(name, np.array(value))
        for name, value in (("last", [-1]), ("two", np.float32(2)), ("epsilon", np.float32(1e-5)))
    )
    rest = add("Sub", x, add("ReduceMean", x, last))
    variance = add("ReduceMean", add("Pow", rest, two), last)
    normal = add("Div", rest, add("Sqrt", add("Add", variance, epsilon)))
    add("Add", add("Mul", normal, gamma), beta, output=y)
    return export_model(graph.cleanup().toposort())


def attention_of(model: ModelProto) -> ModelProto:
    """The last attention of a traced model, cut out."""
    graph = prepare.run(import_model(model)).graph
    softmax = [node for node in graph.nodes if fuse_attention.may_weigh(node)][-1]
    site = fuse_attention.match(graph, softmax, observe(graph))
    return cut_out(graph, site.nodes, [site.y])


def guarded_attention(_model: ModelProto) -> ModelProto:
    """As torch's own attention is exported: a boolean mask, and zeros for rows that may attend to nothing."""
    return parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        attention (
            float[batch, 3, sequence, 8] q, float[batch, 3, sequence, 8] k, float[batch, 3, sequence, 8] v,
            bool[batch, 1, 1, sequence] is_seen
        ) => (float[batch, 3, sequence, 8] y)
        <float root = {0.5946035}, float zero = {0.0}, float lost = {-inf}>
        {
            scaled = Mul (q, root)
            columns = Transpose <perm: ints = [0, 1, 3, 2]> (k)
            scaled_columns = Mul (columns, root)
            product = MatMul (scaled, scaled_columns)
            mask = Where (is_seen, zero, lost)
            scores = Add (product, mask)
            weights = Softmax <axis: int = -1> (scores)
            is_nothing = IsNaN (weights)
            safe = Where (is_nothing, zero, weights)
            y = MatMul (safe, v)
        }
        """
    )


def spelled_gelu(_model: ModelProto) -> ModelProto:
    """As exporters spell it before opset 20."""
    return parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        gelu (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
        <float[4] bias = {1, -1, 0.5, 0}, float root = {1.41421356}, float one = {1}, float half = {0.5}>
        {
            t = Add (x, bias)
            scaled = Div (t, root)
            odd = Erf (scaled)
            shifted = Add (odd, one)
            weighted = Mul (t, shifted)
            y = Mul (weighted, half)
        }
        """
    )


def whole(model: ModelProto) -> ModelProto:
    """All of it."""
    return model


def insert(graph: gs.Graph, node: gs.Node, slot: int, random: Random) -> None:
    """Puts one more node before an input: a sign, a scale, a shift, a limit or a cut."""
    before = node.inputs[slot]
    after = gs.Variable(f"inserted_{random.random()}", before.dtype)
    op = random.choice(["Neg", "Mul", "Add", "Min", "Max", "Identity", "Slice"])
    values: list[NDArray[Any]] = {
        "Mul": [np.array(random.choice([0.5, 1.001, 1.0]), np.float32)],
        "Add": [np.array(random.choice([0.1, 1e-3, 0.0]), np.float32)],
        "Min": [np.array(100, np.float32)],
        "Max": [np.array(-100, np.float32)],
        "Slice": [np.array([value]) for value in (0, 30, random.choice([-2, 1, 2]))],
    }.get(op, [])
    constants = [gs.Constant(f"value_{random.random()}", value) for value in values]
    graph.nodes.append(gs.Node(op, after.name, inputs=[before, *constants], outputs=[after]))
    node.inputs[slot] = after


def change_constant(node: gs.Node, slot: int, random: Random) -> None:
    """Another value: all elements, or one of them."""
    values = node.inputs[slot].values.copy()
    if values.dtype == np.float32:
        place = random.choice([..., -1]) if values.ndim else ...
        values[place] = random.choice(
            [values[place] + 1, values[place] * 0.9, np.zeros_like(values[place]), np.full_like(values[place], 1e-3)]
        )
    else:
        values = np.full_like(values, random.choice([-1, 0, 1, 2, 3, 1 << 40]))
    node.inputs[slot] = gs.Constant(f"constant_{random.random()}", values)


def mutate(model: ModelProto, random: Random) -> ModelProto:
    """The model with one to three changes of an op, an attribute, a constant, an edge, an input or an output."""
    graph = import_model(model).toposort()
    for _ in range(random.choice([1, 1, 2, 3])):
        index = random.randrange(len(graph.nodes))
        node = graph.nodes[index]
        slot = random.randrange(len(node.inputs))
        tensor, made = node.inputs[slot], node.outputs[0]
        is_float = tensor.dtype == np.float32
        edit = random.choice(
            [
                "op",
                "attribute",
                "constant",
                "constant",
                "swap",
                "edge",
                "output",
                "reader",
                "insert",
                "drop",
                "given",
                "one",
            ]
        )
        if edit == "op" and node.op in ("Add", "Sub", "Mul", "Div"):
            node.op = random.choice(["Add", "Sub", "Mul", "Div"])
        elif edit == "attribute" and "axis" in node.attrs:
            node.attrs["axis"] = random.choice([-2, -1, 1, 2, 3, 4])
        elif edit == "attribute" and "epsilon" in node.attrs:
            node.attrs["epsilon"] = random.choice([1e-12, 1e-5, 0.1])
        elif edit == "constant" and isinstance(tensor, gs.Constant):
            change_constant(node, slot, random)
        elif edit == "swap":
            node.inputs = [*node.inputs[:2][::-1], *node.inputs[2:]]
        elif edit == "edge":
            earlier = [*graph.inputs, *(tensor for before in graph.nodes[:index] for tensor in before.outputs)]
            node.inputs[slot] = random.choice(earlier)
        elif edit == "output" and made not in graph.outputs:
            graph.outputs.append(made)
        elif edit == "reader" and made.dtype == np.float32:
            graph.outputs.append(gs.Variable(f"read_{random.random()}", made.dtype))
            graph.nodes.append(gs.Node("Abs", graph.outputs[-1].name, inputs=[made], outputs=[graph.outputs[-1]]))
        elif edit == "insert" and is_float:
            insert(graph, node, slot, random)
        elif edit == "drop" and is_float and made not in graph.outputs:
            for reader in list(made.outputs):
                reader.inputs = [tensor if read is made else read for read in reader.inputs]
        elif edit == "given" and is_float and isinstance(tensor, gs.Constant):
            node.inputs[slot] = gs.Variable(f"given_{random.random()}", tensor.dtype, tensor.shape)
            graph.inputs.append(node.inputs[slot])
        elif edit == "one" and (shaped := [given for given in graph.inputs if given.shape]):
            given = random.choice(shaped)
            axis = random.randrange(len(given.shape))
            given.shape = [1 if place == axis else size for place, size in enumerate(given.shape)]
    for node in graph.nodes:
        for tensor in node.outputs:
            tensor.shape = None  # what it was before the change
    return export_model(graph.cleanup(remove_unused_graph_inputs=True).toposort())


class Subject(NamedTuple):
    """What is cut out of which model, how many mutants, the most positions it has, and the scale of large inputs."""

    model: str
    cut: Callable[[ModelProto], ModelProto]
    number: int
    longest: int = 41
    # Scores grow with the square of it, and with them what the order of a sum changes in their exponentials.
    scale: float = 300


SUBJECTS = {
    "rotation": Subject("roformer-fill-mask", rotation_of, 400),
    "post-norm": Subject("roformer-fill-mask", norm_of, 150),
    "pre-norm": Subject("roberta-prelayernorm-fill-mask", norm_of, 150),
    "norm in simple ops": Subject("roformer-fill-mask", spelled_norm_of, 150),
    "carried sum in simple ops": Subject("roberta-prelayernorm-fill-mask", spelled_norm_of, 150),
    "attention": Subject("roformer-fill-mask", attention_of, 250, scale=10),
    "attention with transposed keys": Subject("roberta-prelayernorm-fill-mask", attention_of, 150, scale=10),
    "attention with a boolean mask": Subject("roformer-fill-mask", guarded_attention, 300, scale=10),
    "bias and GELU in simple ops": Subject("roformer-fill-mask", spelled_gelu, 200),
    "RoFormer": Subject("roformer-token-classification", whole, 20, 22),
    "RoBERTa-PreLayerNorm": Subject("roberta-prelayernorm-token-classification", whole, 20, 20),
}


def test_there_are_a_thousand_mutants() -> None:
    assert sum(subject.number for subject in SUBJECTS.values()) >= 1000


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_fusion_never_changes_what_a_mutant_computes(
    subject: Subject,
    get_traced: Callable[[str], Traced],
    run: Callable[[ModelProto, Feeds], Feeds],
    make_feeds: Callable[..., Feeds],
) -> None:
    """At sizes that no pass observes, longer ones among them, and at a scale that no probe has."""
    original = subject.cut(get_traced(subject.model).plain)
    outcomes: Counter[str] = Counter()
    for seed in range(subject.number):
        mutant = mutate(original, Random(seed))
        problems = [
            make_feeds(mutant, seed=seed, batch=4, sequence=subject.longest),
            make_feeds(mutant, seed=seed, batch=2, sequence=6, scale=subject.scale),
            make_feeds(mutant, seed=seed, batch=3, sequence=1),
        ]
        for feeds in problems:  # every other key is hidden, and of one token everything
            for name in [name for name, array in feeds.items() if array.dtype == bool]:
                feeds[name] = np.indices(feeds[name].shape).sum(0) % 2 == 1
        try:
            expected = [run(mutant, feeds) for feeds in problems]
        except CANNOT_RUN:
            outcomes["no model"] += 1
            continue
        try:
            fused, reports = on_models.fuse(mutant)
        except PassError as error:  # it runs at these sizes, but not at those that are observed
            outcomes[f"seed {seed}: {error}" if "mistake" in str(error) else "refused"] += 1
            continue
        outcomes["fused" if any(report.count for report in reports[1:]) else "left alone"] += 1
        for feeds, outputs in zip(problems, expected, strict=True):
            found = run(fused, feeds)
            for output, array in outputs.items():
                # A sum in another order, divided by a small deviation at worst: 1e-4 of the largest number.
                largest = np.abs(array[np.isfinite(array)]).max(initial=1.0)
                np.testing.assert_allclose(
                    found[output], array, rtol=1e-4, atol=1e-4 * largest, err_msg=f"{output}, seed {seed}"
                )
    number = subject.number
    assert outcomes.keys() <= {"no model", "refused", "fused", "left alone"}, outcomes
    assert outcomes["fused"] >= number // 10, outcomes
    assert outcomes["left alone"] >= (number // 10 if subject.cut is not whole else 0), outcomes
    assert outcomes["no model"] + outcomes["refused"] <= number * 2 // 3, outcomes
