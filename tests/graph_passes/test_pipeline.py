"""The runner: order, promises, history, and what happens when a pass breaks a graph."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from graph_passes import pipeline
from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import export_model, import_model, weight_bytes
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Rewrite = Callable[..., ModelProto]

GOLDEN = Path(__file__).parents[1] / "golden"
FUSED = ["prepare", "fuse_rotary", "fuse_residual_layer_norm", "fuse_attention", "fuse_bias_gelu"]
LOWERED = ["lower_to_onnxruntime", "lower_to_native", "fuse_qkv_rotary", "fuse_quantized_norm", "lower_to_plugin"]
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
    assert list(BY_NAME) == [*FUSED, "insert_qdq", "cast_fp16", "quantize_dynamic", *LOWERED]
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
        on_models.run_passes(rewrite(TEXT), [BY_NAME[name]])
    assert str(caught.value).startswith(f"{name} cannot run here: it needs {list(BY_NAME[name].requires)} before it")
    assert str(caught.value).endswith("Passes so far: none.")


@pytest.mark.parametrize("later", ["fp16", "int8", "onnxruntime", "native", "plugin"])
@pytest.mark.parametrize("name", ["insert_qdq", "cast_fp16", "quantize_dynamic"])
def test_a_precision_is_chosen_once_and_before_lowering(rewrite: Rewrite, name: str, later: str) -> None:
    model, _ = on_models.fuse(rewrite(TEXT))
    if later in pipeline.LOWERINGS:
        model, _ = on_models.lower(model, later)
    else:
        model, _ = on_models.change_precision(model, "fp16" if later == "fp16" else "int8")
    last = pipeline.passes_run_on(model)[-1]
    with pytest.raises(PassError, match=rf"{name} cannot run here.*must not come after \['{last}'\].*{last}'\]\."):
        on_models.run_passes(model, [BY_NAME[name]])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fusion_after_a_change_of_precision_is_refused(rewrite: Rewrite, precision: pipeline.Precision) -> None:
    model, _ = on_models.change_precision(on_models.fuse(rewrite(TEXT))[0], precision)
    with pytest.raises(PassError, match="fuse_rotary cannot run here: it needs nothing more before it"):
        on_models.fuse(model)


# History.


def test_a_model_remembers_its_passes_on_disk(rewrite: Rewrite, tmp_path: Path) -> None:
    plain = rewrite(TEXT)
    assert pipeline.passes_run_on(plain) == []
    fused, _ = on_models.fuse(plain)
    onnx.save(fused, tmp_path / "model.onnx")
    loaded = onnx.load(tmp_path / "model.onnx")
    assert pipeline.passes_run_on(loaded) == FUSED
    narrow, _ = on_models.change_precision(loaded, "fp16")
    lowered, _ = on_models.lower(narrow, "onnxruntime")
    assert pipeline.passes_run_on(lowered) == [*FUSED, "cast_fp16", "lower_to_onnxruntime"]
    assert len(lowered.metadata_props) == 1


def test_a_graph_that_comes_in_is_not_changed(rewrite: Rewrite) -> None:
    plain = import_model(rewrite(TEXT))
    before = export_model(plain)
    fused, _ = pipeline.fuse(plain)
    assert export_model(plain) == before
    before = export_model(fused)
    for precision in pipeline.PRECISIONS:
        pipeline.lower(pipeline.change_precision(fused, precision)[0], "onnxruntime")
    assert export_model(fused) == before


def test_float32_and_portable_are_the_graph_itself(rewrite: Rewrite) -> None:
    fused, _ = pipeline.fuse(import_model(rewrite(TEXT)))
    same, reports = pipeline.change_precision(fused, "fp32")
    assert same is fused
    assert reports == []
    assert pipeline.lower(fused, "portable")[0] is fused


def test_weights_that_no_pass_changes_are_never_copied(rewrite: Rewrite) -> None:
    model = rewrite(TEXT, ("Mul (x, x)", "MatMul (wide, back)\n"), ("total =", "wide = MatMul (x, out) total ="))
    for name, shape in (("out", (4, 300)), ("back", (300, 4))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    plain = import_model(model)
    fused, _ = pipeline.fuse(plain)
    lowered, _ = pipeline.lower(fused, "portable")
    for name in ("out", "back"):
        assert lowered.tensors()[name].values is plain.tensors()[name].values


def test_names_and_notes_of_what_is_not_touched_stay(masked_lm: Traced) -> None:
    plain = ModelProto()
    plain.CopyFrom(masked_lm.plain)
    plain.metadata_props.add(key="theirs", value="kept")
    for number, node in enumerate(plain.graph.node):
        node.doc_string = f"the node {number}"
        node.metadata_props.add(key="number", value=str(number))
    before = {node.output[0]: node for node in plain.graph.node}
    fused, _ = on_models.fuse(plain)
    narrow, _ = on_models.change_precision(fused, "int8")
    for model in (fused, narrow):
        assert {"theirs", "rotary_press.passes"} == {prop.key for prop in model.metadata_props}
        kept = [node for node in model.graph.node if node.output[0] in before and node.op_type == "MatMul"]
        assert kept
        for node in kept:
            old = before[node.output[0]]
            assert (node.name, node.doc_string) == (old.name, old.doc_string)
            assert node.metadata_props == old.metadata_props


# Promises.


def test_an_expected_fusion_that_does_not_happen_is_an_error_with_the_nearest_misses(rewrite: Rewrite) -> None:
    with pytest.raises(PassError) as caught:
        on_models.fuse(rewrite(TEXT), expected={"fuse_rotary": 0, "fuse_residual_layer_norm": 1})
    assert str(caught.value) == (
        "fuse_residual_layer_norm applied 0 times, expected 1. "
        "Nearest misses: y: its input is no sum: it comes from Mul."
    )


def test_where_nothing_looked_like_it_the_error_says_so(rewrite: Rewrite) -> None:
    with pytest.raises(PassError, match=r"fuse_rotary applied 0 times, expected 2\. .*none, nothing looked like it"):
        on_models.fuse(rewrite(TEXT), expected={"fuse_rotary": 2})


def test_a_fusion_too_many_is_an_error(rewrite: Rewrite) -> None:
    with pytest.raises(PassError, match="fuse_residual_layer_norm applied 1 times, expected 0"):
        on_models.fuse(rewrite(TEXT, ("Mul (x, x)", "Add (x, x)")), expected={"fuse_residual_layer_norm": 0})


def test_without_a_promise_any_count_will_do(rewrite: Rewrite) -> None:
    _, reports = on_models.fuse(rewrite(TEXT))
    assert [(report.name, report.count) for report in reports][1:] == [
        ("fuse_rotary", 0),
        ("fuse_residual_layer_norm", 0),
        ("fuse_attention", 0),
        ("fuse_bias_gelu", 0),
    ]


def test_an_unknown_target_is_refused(rewrite: Rewrite) -> None:
    with pytest.raises(PassError, match="no lowering to 'abacus'; expected one of portable, onnxruntime"):
        on_models.lower(on_models.fuse(rewrite(TEXT))[0], "abacus")


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
        on_models.run_passes(rewrite(TEXT), [BY_NAME["prepare"], GraphPass("clumsy", change)])


def test_what_a_pass_leaves_dangling_is_removed(rewrite: Rewrite) -> None:
    def cut(graph: gs.Graph) -> PassResult:
        graph.nodes[1].inputs[0] = graph.inputs[0]
        graph.nodes.reverse()
        return PassResult(graph, 1)

    model, _ = on_models.run_passes(rewrite(TEXT), [GraphPass("cut", cut)])
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization"]


@pytest.mark.parametrize("steps", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("difference", [0.01, 0.1])
def test_a_step_of_eight_bits_may_differ(
    rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch, difference: float, steps: bool
) -> None:
    rounded = "rounded = QuantizeLinear (total, step, zero)  back = DequantizeLinear (rounded, step, zero)\n    y ="
    quantized = [
        ("y =", rounded),
        ("(total, gamma", "(back, gamma"),
        ("0, 1, 2}", "0, 1, 2}, float step = {0.1}, int8 zero = {0}"),
    ]
    plain = rewrite(TEXT, *(quantized if steps else []))
    monkeypatch.setattr(pipeline, "difference_of_results", lambda *_: difference)
    if steps and difference < 0.05:
        on_models.fuse(plain)
        return
    with pytest.raises(PassError, match=f"the results differ by {difference} of the largest"):
        on_models.fuse(plain)


def test_local_functions_of_others_are_refused(rewrite: Rewrite) -> None:
    model = rewrite(TEXT)
    model.functions.append(
        onnx.parser.parse_function('<domain: "elsewhere", opset_import: ["" : 20]> Twice (x) => (y) { y = Add (x, x) }')
    )
    with pytest.raises(PassError, match=r"local functions \['elsewhere::Twice'\]: inline them first"):
        on_models.fuse(model)


def test_a_model_that_is_too_old_is_refused(rewrite: Rewrite) -> None:
    model = rewrite(TEXT)
    model.opset_import[0].version = 16
    with pytest.raises(PassError, match=r"The model is of opset 16: bring it to 20 or later"):
        on_models.fuse(model)


BRANCHES = """
<ir_version: 10, opset_import: ["" : 20]>
branches (float[batch, sequence, 4] x, float[batch, sequence, 4] residual, bool first)
    => (float[batch, sequence, 4] y)
<float[4] gamma = {1, 2, 3, 4}, float[4] beta = {-1, 0, 1, 2}>
{
    total = Add (x, residual)
    norm = LayerNormalization (total, gamma, beta)
    y = If (first) <
        then_branch = yes () => (float[batch, sequence, 4] square) { square = Mul (norm, norm) },
        else_branch = no () => (float[batch, sequence, 4] sum) { sum = Add (total, norm) }
    >
}
"""


def test_what_branches_read_is_fused_around_them(
    rewrite: Rewrite, run: Callable[[ModelProto, Feeds], Feeds], make_feeds: Callable[..., Feeds]
) -> None:
    plain = rewrite(BRANCHES)
    fused, reports = on_models.fuse(plain)
    places = {report.name: report.places for report in reports}
    assert [place.node for place in places["fuse_residual_layer_norm"]] == ["norm"]
    for lowering in ("portable", "onnxruntime", "native"):
        lowered, _ = on_models.lower(fused, lowering)
        for first in (True, False):
            feeds = make_feeds(plain, batch=3, sequence=7) | {"first": np.array(first)}
            np.testing.assert_allclose(run(lowered, feeds)["y"], run(plain, feeds)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_large", [True, False])
def test_the_weights_of_a_large_graph_are_let_go_at_once(
    masked_lm: Traced, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """Garbage has references in circles here, and looking for it takes longer than a small graph is worth."""
    graph = import_model(masked_lm.fused)
    collected: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(None))
    monkeypatch.setattr(pipeline, "WORTH_COLLECTING", weight_bytes(graph) - is_large)
    pipeline.lower(graph, "onnxruntime")
    assert len(collected) == is_large


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
