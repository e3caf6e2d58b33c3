"""The runner: order, promises, history, and what happens when a pass breaks a graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from graph_passes import fuse_rotary, pipeline, prepare
from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, Mismatch, PassResult
from graph_passes.graph_tools import export_model, import_model
from graph_passes.observation import CANNOT_RUN, observe
from graph_passes.region import boundary

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Rewrite = Callable[..., ModelProto]

GOLDEN = Path(__file__).parents[1] / "golden"
FUSED = ["prepare", "fuse_rotary", "fuse_residual_layer_norm"]
BY_NAME = {step.name: step for step in pipeline.PIPELINE}
TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
sum (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
<float[4] gamma = {1, 2, 3, 4}, float[4] beta = {-1, 0, 1, 2}>
{
    total = Mul (x, x)
    y = LayerNormalization (total, gamma, beta)
}
"""


# Order.


def test_every_pass_is_listed_once_and_names_passes_that_exist() -> None:
    assert list(BY_NAME) == [*FUSED, "cast_fp16", "quantize_dynamic", "lower_to_onnxruntime"]
    assert len(BY_NAME) == len(pipeline.PIPELINE)
    for step in pipeline.PIPELINE:
        assert {*step.requires, *step.forbids} <= BY_NAME.keys()


def test_the_listed_order_satisfies_every_requirement() -> None:
    earlier: set[str] = set()
    for step in pipeline.PIPELINE:
        assert set(step.requires) <= earlier
        earlier.add(step.name)


@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].requires])
def test_a_pass_that_comes_too_early_is_refused(rewrite: Rewrite, name: str) -> None:
    with pytest.raises(PassError) as caught:
        pipeline.run_passes(rewrite(TEXT), [BY_NAME[name]])
    assert str(caught.value).startswith(f"{name} cannot run here: it needs {list(BY_NAME[name].requires)} before it")
    assert str(caught.value).endswith("Passes so far: none.")


@pytest.mark.parametrize("later", ["fp16", "int8", "lowered"])
@pytest.mark.parametrize("name", ["cast_fp16", "quantize_dynamic"])
def test_a_precision_is_chosen_once_and_before_lowering(rewrite: Rewrite, name: str, later: str) -> None:
    model, _ = pipeline.fuse(rewrite(TEXT))
    if later == "lowered":
        model, _ = pipeline.lower(model, "onnxruntime")
    else:
        model, _ = pipeline.change_precision(model, "fp16" if later == "fp16" else "int8")
    last = pipeline.passes_run_on(model)[-1]
    with pytest.raises(PassError, match=rf"{name} cannot run here.*must not come after \['{last}'\].*{last}'\]\."):
        pipeline.run_passes(model, [BY_NAME[name]])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fusion_after_a_change_of_precision_is_refused(rewrite: Rewrite, precision: pipeline.Precision) -> None:
    model, _ = pipeline.change_precision(pipeline.fuse(rewrite(TEXT))[0], precision)
    with pytest.raises(PassError, match="fuse_rotary cannot run here: it needs nothing more before it"):
        pipeline.fuse(model)


# History.


def test_a_model_remembers_its_passes_on_disk(rewrite: Rewrite, tmp_path: Path) -> None:
    plain = rewrite(TEXT)
    assert pipeline.passes_run_on(plain) == []
    fused, _ = pipeline.fuse(plain)
    onnx.save(fused, tmp_path / "model.onnx")
    loaded = onnx.load(tmp_path / "model.onnx")
    assert pipeline.passes_run_on(loaded) == FUSED
    narrow, _ = pipeline.change_precision(loaded, "fp16")
    lowered, _ = pipeline.lower(narrow, "onnxruntime")
    assert pipeline.passes_run_on(lowered) == [*FUSED, "cast_fp16", "lower_to_onnxruntime"]
    assert len(lowered.metadata_props) == 1


def test_a_model_that_comes_in_is_not_changed(rewrite: Rewrite) -> None:
    plain = rewrite(TEXT)
    before = plain.SerializeToString()
    fused, _ = pipeline.fuse(plain)
    assert plain.SerializeToString() == before
    before = fused.SerializeToString()
    for precision in pipeline.PRECISIONS:
        pipeline.lower(pipeline.change_precision(fused, precision)[0], "onnxruntime")
    assert fused.SerializeToString() == before


def test_float32_and_portable_are_the_model_itself(rewrite: Rewrite) -> None:
    fused, _ = pipeline.fuse(rewrite(TEXT))
    same, reports = pipeline.change_precision(fused, "fp32")
    assert same is fused
    assert reports == []
    assert pipeline.lower(fused, "portable") == (fused, [])


# Promises.


def test_an_expected_fusion_that_does_not_happen_is_an_error_with_the_nearest_misses(rewrite: Rewrite) -> None:
    with pytest.raises(PassError) as caught:
        pipeline.fuse(rewrite(TEXT), expected={"fuse_rotary": 0, "fuse_residual_layer_norm": 1})
    assert str(caught.value) == (
        "fuse_residual_layer_norm applied 0 times, expected 1. "
        "Nearest misses: y: its input is no sum: it comes from Mul."
    )


def test_where_nothing_looked_like_it_the_error_says_so(rewrite: Rewrite) -> None:
    with pytest.raises(PassError, match=r"fuse_rotary applied 0 times, expected 2\. .*none, nothing looked like it"):
        pipeline.fuse(rewrite(TEXT), expected={"fuse_rotary": 2})


def test_a_fusion_too_many_is_an_error(rewrite: Rewrite) -> None:
    with pytest.raises(PassError, match="fuse_residual_layer_norm applied 1 times, expected 0"):
        pipeline.fuse(rewrite(TEXT, ("Mul (x, x)", "Add (x, x)")), expected={"fuse_residual_layer_norm": 0})


def test_without_a_promise_any_count_will_do(rewrite: Rewrite) -> None:
    _, reports = pipeline.fuse(rewrite(TEXT))
    assert [(report.name, report.count) for report in reports][1:] == [
        ("fuse_rotary", 0),
        ("fuse_residual_layer_norm", 0),
    ]


def test_an_unknown_target_is_refused(rewrite: Rewrite) -> None:
    with pytest.raises(PassError, match="no lowering to 'abacus'; expected one of portable, onnxruntime"):
        pipeline.lower(pipeline.fuse(rewrite(TEXT))[0], "abacus")


# Passes that break a graph.


def wrong_dtype(graph: gs.Graph) -> PassResult:
    graph.outputs[0].dtype = np.dtype(np.int64)
    return PassResult(graph, 1)


def wrong_op(graph: gs.Graph) -> PassResult:
    graph.nodes[0].op = "NoSuchOp"
    return PassResult(graph, 1)


def too_few_inputs(graph: gs.Graph) -> PassResult:
    del graph.nodes[0].inputs[1]
    return PassResult(graph, 1)


@pytest.mark.parametrize("change", [wrong_dtype, wrong_op, too_few_inputs])
def test_a_pass_that_leaves_an_invalid_graph_is_named(
    rewrite: Rewrite, change: Callable[[gs.Graph], PassResult]
) -> None:
    with pytest.raises(PassError, match=r"^clumsy left an invalid graph \(passes before it: \['prepare'\]\): "):
        pipeline.run_passes(rewrite(TEXT), [BY_NAME["prepare"], GraphPass("clumsy", change)])


def test_what_a_pass_leaves_dangling_is_removed(rewrite: Rewrite) -> None:
    def cut(graph: gs.Graph) -> PassResult:
        graph.nodes[1].inputs[0] = graph.inputs[0]
        graph.nodes.reverse()
        return PassResult(graph, 1)

    model, _ = pipeline.run_passes(rewrite(TEXT), [GraphPass("cut", cut)])
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization"]


def test_local_functions_of_others_are_refused(rewrite: Rewrite) -> None:
    model = rewrite(TEXT)
    model.functions.append(
        onnx.parser.parse_function('<domain: "elsewhere", opset_import: ["" : 20]> Twice (x) => (y) { y = Add (x, x) }')
    )
    with pytest.raises(PassError, match=r"local functions \['elsewhere::Twice'\]: inline them first"):
        pipeline.fuse(model)


def test_a_model_that_is_too_old_is_refused(rewrite: Rewrite) -> None:
    model = rewrite(TEXT)
    model.opset_import[0].version = 16
    with pytest.raises(PassError, match=r"The model is of opset 16: bring it to 17 or later"):
        pipeline.fuse(model)


# Mutants: whatever a graph has become, fusion does not change what it computes.


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
            [values[place] + 1, values[place] * 0.9, 0 * values[place], 1e-3 + 0 * values[place]]
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
        elif edit == "one":
            given = random.choice(graph.inputs)
            axis = random.randrange(len(given.shape))
            given.shape = [1 if place == axis else size for place, size in enumerate(given.shape)]
    for node in graph.nodes:
        for tensor in node.outputs:
            tensor.shape = None  # what it was before the change
    return export_model(graph.cleanup(remove_unused_graph_inputs=True).toposort())


# The model, what is cut out of it, how many mutants, and the most positions it has.
SUBJECTS: dict[str, tuple[str, Callable[[ModelProto], ModelProto], int, int]] = {
    "rotation": ("roformer-fill-mask", rotation_of, 500, 41),
    "post-norm": ("roformer-fill-mask", norm_of, 200, 41),
    "pre-norm": ("roberta-prelayernorm-fill-mask", norm_of, 200, 41),
    "norm in simple ops": ("roformer-fill-mask", spelled_norm_of, 200, 41),
    "carried sum in simple ops": ("roberta-prelayernorm-fill-mask", spelled_norm_of, 200, 41),
    "RoFormer": ("roformer-token-classification", whole, 20, 22),
    "RoBERTa-PreLayerNorm": ("roberta-prelayernorm-token-classification", whole, 20, 20),
}


def test_there_are_a_thousand_mutants() -> None:
    assert sum(number for _, _, number, _ in SUBJECTS.values()) >= 1000


@pytest.mark.parametrize("subject", SUBJECTS)
def test_fusion_never_changes_what_a_mutant_computes(
    subject: str,
    get_traced: Callable[[str], Traced],
    run: Callable[[ModelProto, Feeds], Feeds],
    make_feeds: Callable[..., Feeds],
) -> None:
    """At sizes that no pass observes, longer ones among them, and at a scale that no probe has."""
    name, cut, number, longest = SUBJECTS[subject]
    original = cut(get_traced(name).plain)
    outcomes: Counter[str] = Counter()
    for seed in range(number):
        mutant = mutate(original, Random(seed))
        problems = [
            make_feeds(mutant, seed=seed, batch=4, sequence=longest),
            make_feeds(mutant, seed=seed, batch=2, sequence=6, scale=300),
            make_feeds(mutant, seed=seed, batch=1, sequence=1),
        ]
        try:
            expected = [run(mutant, feeds) for feeds in problems]
        except CANNOT_RUN:
            outcomes["no model"] += 1
            continue
        try:
            fused, reports = pipeline.fuse(mutant)
        except PassError:  # it runs at these sizes, but not at those that are observed
            outcomes["refused"] += 1
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
    assert outcomes["fused"] >= number // 10, outcomes
    assert outcomes["left alone"] >= (number // 10 if cut is not whole else 0), outcomes
    assert outcomes["no model"] + outcomes["refused"] <= number * 2 // 3, outcomes


# The graphs of real models, as they are meant to be.


def test_fused_graphs_are_as_recorded(
    traced: Traced, interface_of: Callable[[ModelProto], dict[str, list[Any]]], pytestconfig: pytest.Config
) -> None:
    """``pytest --update-golden`` records them anew; look at the difference before it is committed."""
    found = interface_of(traced.fused) | {
        "fusions": traced.expected,
        "ops": dict(sorted(Counter(node.op_type for node in traced.fused.graph.node).items())),
        "functions": sorted(function.name for function in traced.fused.functions),
    }
    path = GOLDEN / f"{traced.name}.json"
    if pytestconfig.getoption("update_golden"):
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert found == recorded, f"the graph differs from {path.name}: if that is meant, run pytest --update-golden"
