"""The judge of the fusions: what it lets pass, and what it must not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from graph_passes.equivalence import largest_difference
from graph_passes.graph_tools import import_model
from plugins.contract import PluginContract
from plugins.ops import INTERLEAVED_ROTARY, RESIDUAL_LAYER_NORM

Rewrite = Callable[..., ModelProto]

NORM = """
<ir_version: 10, opset_import: ["" : 20]>
norm (
    float[batch, sequence, 6] x, float[batch, sequence, 6] residual, float[6] gamma, float[6] beta, int64[3] target
) => (float[batch, sequence, 6] y, float[batch, sequence, 6] s)
<float half = {0.5}, float zero = {0}, int64[3] fixed = {4, 7, 6}, int64[3] flat = {0, -1, 3}>
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
    inputs: list[str],
    outputs: list[str],
    contract: PluginContract,
    *,
    without: tuple[str, ...] = (),
    seed: int = 0,
    **attributes: Any,
) -> float:
    """The verdict on all nodes of a model, less those that make the tensors ``without``."""
    graph = import_model(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    tensors = graph.tensors()
    nodes = [node for node in graph.nodes if node.outputs[0].name not in without]
    return largest_difference(
        nodes,
        [tensors[name] for name in inputs],
        [tensors[name] for name in outputs],
        contract=contract,
        attributes=attributes,
        seed=seed,
    )


def judge_norm(
    model: ModelProto, *, outputs: tuple[str, ...] = ("y",), epsilon: float = 1e-12, **options: Any
) -> float:
    inputs = ["x", "residual", "gamma", "beta"]
    return judge(model, inputs, list(outputs), RESIDUAL_LAYER_NORM.contract, epsilon=epsilon, **options)


def judge_rotary(model: ModelProto, **options: Any) -> float:
    return judge(model, ["x", "cos", "sin"], ["y"], INTERLEAVED_ROTARY.contract, **options)


@pytest.mark.parametrize("outputs", [("y",), ("y", "s")])
def test_the_norm_itself_differs_by_rounding_at_most(rewrite: Rewrite, outputs: tuple[str, ...]) -> None:
    assert 0 <= judge_norm(rewrite(NORM), outputs=outputs) <= RESIDUAL_LAYER_NORM.contract.float32_tolerance


def test_another_way_to_write_the_rotation_differs_by_rounding_at_most(rewrite: Rewrite) -> None:
    """By values alone: no pattern knows this form, whose pairs are split by reshaping."""
    assert 0 <= judge_rotary(rewrite(ROTARY)) <= INTERLEAVED_ROTARY.contract.float32_tolerance


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
def test_a_wrong_epsilon_shows(rewrite: Rewrite, epsilon: float) -> None:
    assert judge_norm(rewrite(NORM), epsilon=epsilon) > 10 * RESIDUAL_LAYER_NORM.contract.float32_tolerance


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


def test_each_output_is_judged(rewrite: Rewrite) -> None:
    """A sum that is wrong by a factor has the right norm."""
    model = rewrite(NORM, ("s = Add (x, residual)", "sum = Add (x, residual)\n s = Add (sum, sum)"))
    assert judge_norm(model) <= RESIDUAL_LAYER_NORM.contract.float32_tolerance
    assert judge_norm(model, outputs=("y", "s")) > 1


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


@pytest.mark.parametrize(
    "replacements",
    [
        pytest.param((("s = Add (x, residual)", "sum = Add (x, residual)\n s = Sqrt (sum)"),), id="NaN"),
        pytest.param((("s = Add (x, residual)", "sum = Add (x, residual)\n s = Div (sum, zero)"),), id="infinity"),
        pytest.param((("s = Add (x, residual)", "s = Reshape (x, fixed)"),), id="nodes that cannot run"),
        pytest.param(
            (
                ("y = Layer", "normal = Layer"),
                ("gamma, beta)\n", "gamma, beta)\n y = Reshape (normal, flat)\n"),
                ("sequence, 6] y", "rows, 3] y"),
            ),
            id="another shape",
        ),
    ],
)
def test_what_cannot_be_compared_is_infinitely_different(
    rewrite: Rewrite, replacements: tuple[tuple[str, str], ...]
) -> None:
    assert judge_norm(rewrite(NORM, *replacements)) == math.inf


def test_an_op_that_cannot_run_is_infinitely_different(rewrite: Rewrite) -> None:
    assert judge_norm(rewrite(NORM, ("float[", "double["))) == math.inf


def test_nodes_that_need_more_than_their_inputs_are_infinitely_different(rewrite: Rewrite) -> None:
    assert judge_rotary(rewrite(ROTARY), without=("even", "odd")) == math.inf
    assert judge_norm(rewrite(NORM), without=("s",)) == math.inf


def test_a_shape_that_is_computed_elsewhere_is_known(rewrite: Rewrite) -> None:
    """As in a model, where it depends on its inputs: the shape that inference found takes its place."""
    assert judge_rotary(rewrite(ROTARY), without=("shape",)) <= INTERLEAVED_ROTARY.contract.float32_tolerance


def test_a_shape_of_unknown_length_is_infinitely_different(rewrite: Rewrite) -> None:
    model = rewrite(
        NORM, ("s = Add (x, residual)", "sum = Add (x, residual)\n t = Reshape (sum, target)\n s = Identity (t)")
    )
    assert judge_norm(model) == math.inf


@pytest.mark.parametrize("old", ["gamma, beta)\n}", "Add (x, residual)"])
def test_one_tensor_may_be_read_twice(rewrite: Rewrite, old: str) -> None:
    twice = {"gamma, beta)\n}": "gamma, gamma)\n}", "Add (x, residual)": "Add (x, x)"}[old]
    inputs = ["x", "residual", "gamma", "gamma"] if "gamma" in old else ["x", "x", "gamma", "beta"]
    model = rewrite(NORM, (old, twice))
    contract = RESIDUAL_LAYER_NORM.contract
    assert judge(model, inputs, ["y"], contract, epsilon=1e-12) <= contract.float32_tolerance


def test_a_verdict_can_be_repeated(rewrite: Rewrite) -> None:
    verdicts = [judge_norm(rewrite(NORM), epsilon=0.01, seed=seed) for seed in (0, 0, 1)]
    assert verdicts[0] == verdicts[1] != verdicts[2]
