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
from graph_passes.equivalence import largest_difference
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
    float half = {0.5}, float zero = {0}, int64[2] flat = {-1, 6},
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
    inputs: tuple[str, ...] = ("x", "residual", "gamma", "beta"),
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
    inputs = tuple("other" if name == weight else name for name in ("x", "residual", "gamma", "beta"))
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
    assert judge_norm(model, inputs=("x", "x", "gamma", "beta"), probes=("x",)) <= NORM_TOLERANCE
    assert judge_norm(model, inputs=("x", "residual", "gamma", "beta")) > 0.1
    model = rewrite(NORM, ("(s, gamma, beta)", "(s, gamma, gamma)"))
    assert judge_norm(model, inputs=("x", "residual", "gamma", "gamma")) <= NORM_TOLERANCE


def test_large_weights_are_judged_too(rewrite: Rewrite) -> None:
    """They are inputs of the little models, not part of them."""
    model = rewrite(NORM, ("sequence, 6]", "sequence, 1500]"))
    random = np.random.default_rng(0)
    for weight in model.graph.initializer:
        if weight.name in ("gamma", "beta"):
            weight.CopyFrom(numpy_helper.from_array(random.standard_normal(1500).astype(np.float32), weight.name))
    assert judge_norm(model) <= NORM_TOLERANCE
    assert judge_norm(model, inputs=("x", "residual", "gamma", "gamma")) > 0.1


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
