"""The judge of the fusions: what it lets pass, and what it must not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, numpy_helper

from graph_passes import prepare
from graph_passes.equivalence import difference_of_results, largest_difference, observe_more, tolerance_of
from graph_passes.graph_tools import export_model, import_model
from graph_passes.observation import observe
from plugins.contract import DOMAIN
from plugins.ops import INTERLEAVED_ROTARY, RESIDUAL_LAYER_NORM

Rewrite = Callable[..., ModelProto]

NORM_TOLERANCE = RESIDUAL_LAYER_NORM.contract.float32_tolerance
ROTARY_TOLERANCE = INTERLEAVED_ROTARY.contract.float32_tolerance

NORM = """
<ir_version: 10, opset_import: ["" : 20]>
norm (
    float[batch, sequence, 6] x, float[batch, sequence, 6] residual
) => (float[batch, sequence, 6] y, float[batch, sequence, 6] s)
<
    float half = {0.5}, float zero = {0}, int64[2] flat = {-1, 6}, float[6] bias = {0, 0, 0, 0, 0, 0},
    float[6] gamma = {1.5, -0.5, 2, 0.75, 1, 3}, float[6] beta = {0.5, 1, -2, 0.25, -1, 0.1}
>
{
    s = Add (x, residual)
    y = LayerNormalization <axis: int = -1, epsilon: float = 1e-12> (s, gamma, beta)
}
"""
ROTARY = """
<ir_version: 10, opset_import: ["" : 20]>
rotary (
    float[batch, 3, sequence, 8] x, float[1, sequence, 4] cos, float[1, sequence, 4] sin
) => (float[batch, 3, sequence, 8] y)
<int64[1] one = {1}, int64[1] last = {-1}, int64[2] pair_shape = {4, 2}>
{
    batch_and_heads = Shape <end: int = 2> (x)
    length = Shape <start: int = 2, end: int = 3> (x)
    paired = Concat <axis: int = 0> (batch_and_heads, length, pair_shape)
    shape = Shape (x)
    split = Reshape (x, paired)
    even_column, odd_column = Split <axis: int = -1, num_outputs: int = 2> (split)
    even = Squeeze (even_column, last)
    odd = Squeeze (odd_column, last)
    c = Unsqueeze (cos, one)
    s = Unsqueeze (sin, one)
    even_cos = Mul (even, c)
    odd_sin = Mul (odd, s)
    odd_cos = Mul (odd, c)
    even_sin = Mul (even, s)
    first = Sub (even_cos, odd_sin)
    second = Add (odd_cos, even_sin)
    first_of_pair = Unsqueeze (first, last)
    second_of_pair = Unsqueeze (second, last)
    together = Concat <axis: int = -1> (first_of_pair, second_of_pair)
    y = Reshape (together, shape)
}
"""


def judge(
    model: ModelProto,
    op: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    *,
    probes: tuple[str, ...],
    without: tuple[str, ...] = (),
    seed: int = 0,
    **attributes: Any,
) -> float:
    """The verdict on our op in place of all nodes of a model, less those that make the tensors ``without``."""
    weights = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    graph = prepare.run(import_model(model)).graph
    observation = observe(graph)
    tensors = graph.tensors()
    read = [gs.Constant(f"new_{name}", weights[name]) if name in weights else tensors[name] for name in inputs]
    new = [gs.Variable(f"new_{name}", np.float32, tensors[name].shape) for name in outputs]
    left_out = [gs.Variable.empty()] if op == RESIDUAL_LAYER_NORM.contract.op_type and len(outputs) == 1 else []
    nodes = [node for node in graph.nodes if node.outputs[0].name not in without]
    node = gs.Node(op, "new", attributes, read, [*new, *left_out], domain=DOMAIN)
    return largest_difference(
        nodes,
        [node],
        list(zip([tensors[name] for name in outputs], new, strict=True)),
        probes=[tensors[name] for name in probes],
        observation=observation,
        opset=graph.opset,
        seed=seed,
    )


def judge_norm(
    model: ModelProto,
    *,
    inputs: tuple[str, ...] = ("x", "residual", "bias", "gamma", "beta"),
    outputs: tuple[str, ...] = ("y",),
    probes: tuple[str, ...] = ("x", "residual"),
    epsilon: float = 1e-12,
    **options: Any,
) -> float:
    op = RESIDUAL_LAYER_NORM.contract.op_type
    return judge(model, op, inputs, outputs, probes=probes, epsilon=epsilon, **options)


def judge_rotary(model: ModelProto, *, probes: tuple[str, ...] = ("x", "cos", "sin"), **options: Any) -> float:
    return judge(model, INTERLEAVED_ROTARY.contract.op_type, ("x", "cos", "sin"), ("y",), probes=probes, **options)


@pytest.mark.parametrize("outputs", [("y",), ("y", "s")])
def test_the_norm_itself_differs_by_rounding_at_most(rewrite: Rewrite, outputs: tuple[str, ...]) -> None:
    assert 0 <= judge_norm(rewrite(NORM), outputs=outputs) <= NORM_TOLERANCE


def test_another_way_to_write_the_rotation_differs_by_rounding_at_most(rewrite: Rewrite) -> None:
    assert 0 <= judge_rotary(rewrite(ROTARY)) <= ROTARY_TOLERANCE


# The smallest are within the tolerance of a norm whose input has unit variance: the small probes tell them.
@pytest.mark.parametrize("epsilon", [1e-6, 1e-5, 1e-4, 1e-2, 1.0])
def test_a_wrong_epsilon_shows(rewrite: Rewrite, epsilon: float) -> None:
    assert judge_norm(rewrite(NORM), epsilon=epsilon) > 10 * NORM_TOLERANCE


@pytest.mark.parametrize(
    "replacements",
    [
        pytest.param((("Add (x, residual)", "Sub (x, residual)"),), id="difference"),
        pytest.param((("Add (x, residual)", "Identity (x)"),), id="residual forgotten"),
        pytest.param((("(s, gamma, beta)", "(s, beta, gamma)"),), id="gamma and beta swapped"),
        pytest.param((("(s, gamma, beta)", "(s, gamma)"),), id="beta forgotten"),
        pytest.param((("y = Layer", "y = Mul (s, half)\n unused = Layer"),), id="not normalised"),
        pytest.param(
            (("y = Layer", "normal = Layer"), ("gamma, beta)\n", "gamma, beta)\n y = Mul (normal, half)\n")),
            id="scaled",
        ),
    ],
)
def test_wrong_arithmetic_shows(rewrite: Rewrite, replacements: tuple[tuple[str, str], ...]) -> None:
    assert judge_norm(rewrite(NORM, *replacements)) > 0.1


@pytest.mark.parametrize("weight", ["gamma", "beta"])
def test_one_wrong_element_shows(rewrite: Rewrite, weight: str) -> None:
    model = rewrite(NORM, ("half = {0.5}", "half = {0.5}, float[6] other = {0, 0, 0, 0.1, 0, 0}"))
    values = {known.name: numpy_helper.to_array(known) for known in model.graph.initializer}
    other = next(known for known in model.graph.initializer if known.name == "other")
    other.CopyFrom(numpy_helper.from_array(values[weight] + values["other"], "other"))
    inputs = tuple("other" if name == weight else name for name in ("x", "residual", "bias", "gamma", "beta"))
    assert judge_norm(model, inputs=inputs) > 0.001


def test_each_output_is_judged(rewrite: Rewrite) -> None:
    """A sum that is wrong by a factor has the right norm."""
    model = rewrite(NORM, ("s = Add (x, residual)", "sum = Add (x, residual)\n s = Add (sum, sum)"))
    assert judge_norm(model) <= NORM_TOLERANCE
    assert judge_norm(model, outputs=("y", "s")) > 0.1


def test_a_difference_is_relative_to_large_results(rewrite: Rewrite) -> None:
    """Rounding grows with the numbers, and a weight may be a thousand."""
    model = rewrite(NORM, ("gamma = {1.5, -0.5, 2", "gamma = {15000, -0.5, 2"))
    assert judge_norm(model) <= NORM_TOLERANCE
    assert judge_norm(model, epsilon=1e-2) > 10 * NORM_TOLERANCE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("Sub (even_cos, odd_sin)", "Add (even_cos, odd_sin)", id="sign"),
        pytest.param("(first_of_pair, second_of_pair)", "(second_of_pair, first_of_pair)", id="order"),
        pytest.param("odd_cos = Mul (odd, c)", "odd_cos = Mul (odd, s)", id="angle"),
        pytest.param("even = Squeeze (even_column, last)", "even = Squeeze (odd_column, last)", id="element"),
    ],
)
def test_a_wrong_rotation_shows(rewrite: Rewrite, old: str, new: str) -> None:
    assert judge_rotary(rewrite(ROTARY, (old, new))) > 0.1


def test_what_is_no_probe_holds_what_was_observed(rewrite: Rewrite) -> None:
    """An angle that differs only where it is random is told by probing it."""
    model = rewrite(
        ROTARY,
        ("float[1, sequence, 4] sin\n", "int64[1, sequence, 4] whole\n"),
        ("c = Unsqueeze (cos, one)", "sin = Cast <to: int = 1> (whole)\n c = Unsqueeze (cos, one)"),
        ("s = Unsqueeze (sin, one)", "rounded = Round (sin)\n s = Unsqueeze (rounded, one)"),
    )
    assert judge_rotary(model, probes=("x", "cos"), without=("sin",)) <= ROTARY_TOLERANCE
    assert judge_rotary(model, without=("sin",)) > 0.1


@pytest.mark.parametrize(
    "replacements",
    [
        pytest.param((("s = Add (x, residual)", "sum = Add (x, residual)\n s = Sqrt (sum)"),), id="NaN"),
        pytest.param((("s = Add (x, residual)", "sum = Add (x, residual)\n s = Div (sum, zero)"),), id="infinity"),
        pytest.param(
            (
                ("y = Layer", "normal = Layer"),
                ("gamma, beta)\n", "gamma, beta)\n y = Reshape (normal, flat)\n"),
                ("sequence, 6] y", "6] y"),
            ),
            id="another shape",
        ),
    ],
)
def test_what_cannot_be_compared_is_infinitely_different(
    rewrite: Rewrite, replacements: tuple[tuple[str, str], ...]
) -> None:
    assert judge_norm(rewrite(NORM, *replacements)) == math.inf


@pytest.mark.parametrize("op", ["Unheard", "Reshape"])
def test_what_cannot_be_loaded_or_run_is_infinitely_different(rewrite: Rewrite, op: str) -> None:
    graph = prepare.run(import_model(rewrite(NORM))).graph
    tensors = graph.tensors()
    y = gs.Variable("new_y", np.float32, tensors["y"].shape)
    gs_op = gs.Node(op, "new", {}, [tensors["s"], gs.Constant("sixty", np.array([10, 6]))], [y])
    for before, after in ((graph.nodes, [gs_op]), ([*graph.nodes, gs_op], graph.nodes)):
        pair = (tensors["y"], y) if after == [gs_op] else (y, tensors["y"])
        verdict = largest_difference(
            before, after, [pair], probes=[], observation=observe(graph), opset=graph.opset, seed=0
        )
        assert verdict == math.inf


def test_an_op_of_another_dtype_is_infinitely_different(rewrite: Rewrite) -> None:
    model = rewrite(NORM, ("float[batch", "double[batch"), ("float[6]", "double[6]"), ("float zero", "double zero"))
    assert judge_norm(model) == math.inf


def test_what_needs_a_tensor_that_was_not_observed_is_infinitely_different(rewrite: Rewrite) -> None:
    """As after another rewrite of the same graph, whose tensors are new."""
    graph = prepare.run(import_model(rewrite(NORM))).graph
    observation = observe(graph)
    tensors = graph.tensors()
    y = gs.Variable("new_y", np.float32, tensors["y"].shape)
    copy = gs.Node("Identity", "copy", {}, [gs.Variable("unseen", np.float32, y.shape)], [y])
    for probes in ([], [copy.inputs[0]]):
        verdict = largest_difference(
            graph.nodes, [copy], [(tensors["y"], y)], probes=probes, observation=observation, opset=20, seed=0
        )
        assert verdict == math.inf


@pytest.mark.parametrize("order", [1, -1])
def test_nodes_may_come_in_any_order_and_need_not_be_all(rewrite: Rewrite, order: int) -> None:
    """What the others make is observed: shapes, say."""
    graph = prepare.run(import_model(rewrite(ROTARY))).graph
    observation = observe(graph)
    tensors = graph.tensors()
    nodes = [node for node in graph.nodes if node.outputs[0].name not in ("paired", "shape", "even", "odd")]
    y = gs.Variable("new_y", np.float32, tensors["y"].shape)
    copies = [gs.Node("Identity", "copy", {}, [tensors["y"]], [y])]
    verdict = largest_difference(
        nodes[::order],
        [*copies, *nodes][::order],
        [(tensors["y"], y)],
        probes=[tensors["even"], tensors["odd"]],
        observation=observation,
        opset=graph.opset,
        seed=0,
    )
    assert verdict == 0


def test_one_tensor_may_be_read_twice(rewrite: Rewrite) -> None:
    model = rewrite(NORM, ("Add (x, residual)", "Add (x, x)"))
    assert judge_norm(model, inputs=("x", "x", "bias", "gamma", "beta"), probes=("x",)) <= NORM_TOLERANCE
    assert judge_norm(model, inputs=("x", "residual", "bias", "gamma", "beta")) > 0.1
    model = rewrite(NORM, ("(s, gamma, beta)", "(s, gamma, gamma)"))
    assert judge_norm(model, inputs=("x", "residual", "bias", "gamma", "gamma")) <= NORM_TOLERANCE


def test_large_weights_are_judged_too(rewrite: Rewrite) -> None:
    """They are inputs of the little models, not part of them."""
    model = rewrite(NORM, ("sequence, 6]", "sequence, 1500]"))
    random = np.random.default_rng(0)
    for weight in model.graph.initializer:
        if weight.name in ("bias", "gamma", "beta"):
            number = random.standard_normal(1500) * (weight.name != "bias")
            weight.CopyFrom(numpy_helper.from_array(number.astype(np.float32), weight.name))
    assert judge_norm(model) <= NORM_TOLERANCE
    assert judge_norm(model, inputs=("x", "residual", "bias", "gamma", "gamma")) > 0.1


def test_a_verdict_can_be_repeated(rewrite: Rewrite) -> None:
    verdicts = [judge_norm(rewrite(NORM), epsilon=0.01, seed=seed) for seed in (0, 0, 1)]
    assert verdicts[0] == verdicts[1] != verdicts[2]


def test_judging_changes_nothing(rewrite: Rewrite) -> None:
    graph = prepare.run(import_model(rewrite(NORM))).graph
    observation = observe(graph)
    before = export_model(graph).graph
    tensors = graph.tensors()
    copy = gs.Variable("copy", np.float32, tensors["y"].shape)
    node = gs.Node("Identity", "copy", {}, [tensors["s"]], [copy])
    pair = (tensors["y"], copy)
    largest_difference(
        graph.nodes, [node], [pair], probes=[tensors["s"]], observation=observation, opset=graph.opset, seed=0
    )
    after = export_model(graph).graph
    assert after.node == before.node
    assert (after.input, after.output, after.value_info) == (before.input, before.output, before.value_info)
    for one, two in zip(after.initializer, before.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(two))
    assert tensors["s"].outputs[-1] is node
    assert [tensor.name for tensor in node.inputs] == ["s"]


# Masks at the ends of their values.

ATTENTION = """
<ir_version: 10, opset_import: ["" : 20]>
attention (
    float[batch, 3, sequence, 6] q, float[batch, 3, sequence, 6] v, bool[batch, 1, 1, sequence] mask
) => (float[batch, 3, sequence, 6] y)
<float fill = {-3.4028234663852886e38}, float nothing = {0}>
{
    columns = Transpose <perm: ints = [0, 1, 3, 2]> (q)
    product = MatMul (q, columns)
    scores = Where (mask, product, fill)
    weights = Softmax <axis: int = -1> (scores)
    y = MatMul (weights, v)
}
"""
ADDED = """
<ir_version: 10, opset_import: ["" : 20]>
added (
    float[batch, 3, sequence, 6] q, float[batch, 3, sequence, 6] v, float[batch, 1, 1, sequence] mask
) => (float[batch, 3, sequence, 6] y)
<float nothing = {0}>
{
    columns = Transpose <perm: ints = [0, 1, 3, 2]> (q)
    product = MatMul (q, columns)
    scores = Add (product, mask)
    weights = Softmax <axis: int = -1> (scores)
    y = MatMul (weights, v)
}
"""
GUARDED = (
    ("weights = ", "bare = "),
    ("    y =", "    is_nan = IsNaN (bare)\n    weights = Where (is_nan, nothing, bare)\n    y ="),
)


def with_infinity(model: ModelProto) -> ModelProto:
    """The parser knows no infinite initializer."""
    for weight in model.graph.initializer:
        if weight.name == "fill":
            weight.CopyFrom(numpy_helper.from_array(np.array(-np.inf, np.float32), "fill"))
    return model


def judge_pair(before: ModelProto, after: ModelProto, *, extremes: tuple[str, ...] = ("mask",)) -> float:
    """The verdict on the nodes of one model in place of those of another with the same inputs."""
    graph, other = (prepare.run(import_model(model)).graph for model in (before, after))
    tensors = graph.tensors()
    for node in other.nodes:
        node.inputs = [tensors[t.name] if any(t is known for known in other.inputs) else t for t in node.inputs]
    return largest_difference(
        graph.nodes,
        other.nodes,
        [(graph.outputs[0], other.outputs[0])],
        probes=[tensors["q"], tensors["v"]],
        extremes=[tensors[name] for name in extremes],
        observation=observe(graph),
        opset=graph.opset,
        seed=0,
    )


@pytest.mark.parametrize("replacements", [(), GUARDED], ids=["NaN at the same places", "no NaN"])
@pytest.mark.parametrize("text", [ATTENTION, ADDED], ids=["boolean", "float"])
def test_the_same_at_both_ends_of_a_mask_is_the_same(
    rewrite: Rewrite, text: str, replacements: tuple[tuple[str, str], ...]
) -> None:
    models = [with_infinity(rewrite(text, *replacements)) for _ in range(2)]
    assert judge_pair(*models) <= 1e-6


@pytest.mark.parametrize("text", [ATTENTION, ADDED], ids=["boolean", "float"])
def test_what_a_row_without_scores_gives_shows_at_the_end_of_a_mask_alone(rewrite: Rewrite, text: str) -> None:
    bare, guarded = (with_infinity(rewrite(text, *replacements)) for replacements in ((), GUARDED))
    assert judge_pair(bare, guarded) == judge_pair(guarded, bare) == math.inf
    assert judge_pair(bare, guarded, extremes=()) <= 1e-6


def test_how_far_a_mask_hides_shows_at_its_end(rewrite: Rewrite) -> None:
    """In a row that is hidden whole, -1e9 in place of the scores makes all the same; added to them it does not."""
    lowest = rewrite(ATTENTION)
    instead = rewrite(ATTENTION, ("{-3.4028234663852886e38}", "{-1e9}"))
    added = rewrite(
        ATTENTION,
        ("{-3.4028234663852886e38}", "{-1e9}"),
        ("scores = Where (mask, product, fill)", "far = Where (mask, nothing, fill)\n    scores = Add (product, far)"),
    )
    assert judge_pair(lowest, instead) <= 1e-6
    assert judge_pair(instead, added, extremes=()) <= 1e-6
    assert judge_pair(instead, added) > 1e-3


def test_what_a_mask_that_hides_nothing_gives_shows_at_its_other_end(rewrite: Rewrite) -> None:
    """More than two keys were never all seen in what was observed."""
    least = "least = ReduceMin <keepdims: int = 1> (wide)\n    all = Cast <to: int = 1> (least)"
    changed = rewrite(
        ATTENTION,
        ("    scores", f"    wide = Cast <to: int = 6> (mask)\n    {least}\n    scores"),
        ("    y = MatMul (weights, v)", "    context = MatMul (weights, v)\n    y = Add (context, all)"),
    )
    assert judge_pair(rewrite(ATTENTION), changed, extremes=()) <= 1e-6
    assert judge_pair(rewrite(ATTENTION), changed) > 0.05


def test_nan_is_a_difference_where_no_mask_is_at_its_end(rewrite: Rewrite) -> None:
    root = rewrite(ADDED, ("product = MatMul", "all = MatMul"), ("    scores", "    product = Sqrt (all)\n    scores"))
    assert judge_pair(root, root, extremes=()) == math.inf
    assert judge_pair(root, root) == math.inf, "the other rounds are as they were"


# What is not in the graph yet.


def test_new_nodes_are_observed_as_well(rewrite: Rewrite) -> None:
    graph = prepare.run(import_model(rewrite(NORM))).graph
    observation = observe(graph)
    tensors = graph.tensors()
    middle, end = gs.Variable("middle", np.float32), gs.Variable("end", np.float32)
    nodes = [gs.Node("Neg", "one", {}, [tensors["s"]], [middle]), gs.Node("Exp", "two", {}, [middle], [end])]
    more = observe_more(observation, nodes, [end], opset=graph.opset)
    assert more.shape("end") == ("batch", "sequence", 6)
    for before, after in zip(observation.runs, more.runs, strict=True):
        assert after.sizes == before.sizes
        assert after.values.keys() - before.values.keys() == {"end"}
        np.testing.assert_allclose(after.values["end"], np.exp(-before.values["s"]), rtol=1e-5)
    assert "end" not in observation.runs[0].values, "the old one stays as it was"


@pytest.mark.parametrize("case", ["no nodes", "an unknown op", "an unseen tensor", "shapes that do not fit"])
def test_what_cannot_be_made_is_not_observed(rewrite: Rewrite, case: str) -> None:
    graph = prepare.run(import_model(rewrite(NORM))).graph
    observation = observe(graph)
    end = gs.Variable("end", np.float32)
    given = gs.Variable("unseen", np.float32) if case == "an unseen tensor" else graph.tensors()["s"]
    other = [gs.Constant("five", np.zeros(5, np.float32))] if case == "shapes that do not fit" else []
    op = {"an unknown op": "Unheard", "shapes that do not fit": "Add"}.get(case, "Neg")
    nodes = [] if case == "no nodes" else [gs.Node(op, "one", {}, [given, *other], [end])]
    assert observe_more(observation, nodes, [end], opset=graph.opset) is observation


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, NORM_TOLERANCE), (np.float64, NORM_TOLERANCE), (np.float16, 2.0**-11)]
)
def test_constants_in_half_precision_are_given_their_rounding(dtype: type, tolerance: float) -> None:
    x, left_out, y = gs.Variable("x", np.float16), gs.Variable.empty(), gs.Variable("y", np.float16)
    nodes = [gs.Node("Clip", "first", {}, [x, left_out], [y]), gs.Node("Mul", "second", {}, [y], [x])]
    assert tolerance_of(RESIDUAL_LAYER_NORM.contract, nodes) == NORM_TOLERANCE, "what flows in is no constant"
    nodes[1].inputs.append(gs.Constant("gamma", np.ones(3, dtype)))
    assert tolerance_of(RESIDUAL_LAYER_NORM.contract, nodes) == tolerance


TEXTS = """
<ir_version: 10, opset_import: ["" : 20]>
words (float[batch] x) => (string[batch] y, bool[batch] z, int64[batch] n)
<float zero = {0}, string yes = {"yes"}, string no = {"no"}>
{ z = Greater (x, zero)  y = Where (z, yes, no)  n = Cast <to: int = 7> (x) }
"""


def test_results_that_are_no_floats_are_compared(rewrite: Callable[..., ModelProto]) -> None:
    same, other = (import_model(rewrite(TEXTS, ("Greater", op))) for op in ("Greater", "GreaterOrEqual"))
    assert difference_of_results(same, other) == 0.0, "no number is zero"
    different = import_model(rewrite(TEXTS, ("Greater", "Less")))
    assert difference_of_results(same, different) == float("inf")


def test_results_may_be_the_same_infinity(rewrite: Callable[..., ModelProto]) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    quotient (float[batch, 3] x) => (float[batch, 3] y) <float zero = {0}> { y = Div (x, zero) }
    """
    same, negative = import_model(rewrite(text)), import_model(rewrite(text, ("zero = {0}", "zero = {-0.0}")))
    assert difference_of_results(same, same) == 0.0
    assert difference_of_results(same, negative) == float("inf")
