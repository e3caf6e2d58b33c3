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

from graph_passes import fuse_residual_layer_norm, fuse_rotary, pipeline, prepare
from graph_passes.equivalence import CANNOT_RUN
from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import export_model, import_model

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


# Mutants: whatever a graph has become, fusion does not change what it computes.


def rotation_of(model: ModelProto) -> ModelProto:
    """The first rotation of a traced model, cut out."""
    graph = prepare.run(import_model(model)).graph
    site = next(site for node in graph.nodes if (site := fuse_rotary.match(node)) is not None)
    target = gs.Variable("target", np.int64, (4,))
    reshape = next(node for node in site.nodes if node.op == "Reshape")
    reshape.inputs[1] = target  # in the model, it is computed from the shape of the inputs
    nodes = [gs.Node("Shape", inputs=[site.x], outputs=[target]), *site.nodes]
    inputs = [site.x, site.cos, site.sin]
    for tensor in inputs:
        tensor.inputs.clear()
    return export_model(gs.Graph(nodes, inputs, [site.y], opset=20).toposort())


def norm_of(model: ModelProto) -> ModelProto:
    """The first sum and norm of a traced model's last layer, cut out."""
    graph = prepare.run(import_model(model)).graph
    norms = [n for n in graph.nodes if n.op == "LayerNormalization" and n.inputs[0].inputs[0].op == "Add"]
    add = fuse_residual_layer_norm.match(norms[-1])
    return export_model(gs.Graph([add, norms[-1]], list(add.inputs), list(norms[-1].outputs), opset=20))


def mutate(model: ModelProto, random: Random) -> ModelProto:
    """The model with one or two changes of an op, an attribute, a constant or an edge."""
    graph = import_model(model).toposort()
    for _ in range(random.choice([1, 2, 3])):
        index = random.randrange(len(graph.nodes))
        node = graph.nodes[index]
        slot = random.randrange(len(node.inputs))
        edit = random.choice(["op", "attribute", "constant", "swap", "edge", "output"])
        if edit == "op" and node.op in ("Add", "Sub", "Mul"):
            node.op = random.choice(["Add", "Sub", "Mul", "Div"])
        elif edit == "attribute" and "axis" in node.attrs:
            node.attrs["axis"] = random.choice([-2, -1, 1, 2, 3, 4])
        elif edit == "constant" and isinstance(node.inputs[slot], gs.Constant):
            values = node.inputs[slot].values
            values = values + 1 if values.dtype == np.float32 else np.full_like(values, random.choice([-1, 0, 1, 2, 3]))
            node.inputs[slot] = gs.Constant(f"constant_{random.random()}", values)
        elif edit == "swap":
            node.inputs = [*node.inputs[:2][::-1], *node.inputs[2:]]
        elif edit == "edge":
            earlier = [*graph.inputs, *(tensor for before in graph.nodes[:index] for tensor in before.outputs)]
            node.inputs[slot] = random.choice(earlier)
        elif edit == "output" and node.outputs[0] not in graph.outputs:
            graph.outputs.append(node.outputs[0])
        if "epsilon" in node.attrs:
            node.attrs["epsilon"] = random.choice([1e-12, 1e-5, 0.1])
    for node in graph.nodes:
        for tensor in node.outputs:
            tensor.shape = None  # what it was before the change
    return export_model(graph.cleanup())


@pytest.mark.parametrize(("cut", "number"), [(rotation_of, 80), (norm_of, 160)])
def test_fusion_never_changes_what_a_mutant_computes(
    cut: Callable[[ModelProto], ModelProto],
    number: int,
    get_traced: Callable[[str], Traced],
    run: Callable[[ModelProto, Feeds], Feeds],
    make_feeds: Callable[..., Feeds],
) -> None:
    original = cut(get_traced("roformer-fill-mask").plain)
    outcomes: Counter[str] = Counter()
    for seed in range(number):
        mutant = mutate(original, Random(seed))
        problems = [make_feeds(mutant, seed=seed, batch=batch, sequence=batch) for batch in (5, 1)]
        try:
            expected = [run(mutant, feeds) for feeds in problems]
        except CANNOT_RUN:
            outcomes["no model"] += 1
            continue
        try:
            fused, reports = pipeline.fuse(mutant)
        except PassError:  # a shape that nobody can know
            outcomes["refused"] += 1
            continue
        outcomes["fused" if any(report.count for report in reports[1:]) else "left alone"] += 1
        for feeds, outputs in zip(problems, expected, strict=True):
            found = run(fused, feeds)
            for name, array in outputs.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4, err_msg=f"{name}, seed {seed}")
    assert outcomes["fused"] >= 10, outcomes
    assert outcomes["left alone"] >= 10, outcomes


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
