"""Norms whose results are quantised: which become one op, with which outputs, and what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from graph_passes.errors import PassError
from graph_passes.fuse_quantized_norm import PASS
from graph_passes.graph_pass import PassReport
from plugins.ops import QUANTIZED_RESIDUAL_LAYER_NORM
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]
MakeFeeds = Callable[..., Feeds]
Rewrite = Callable[..., ModelProto]
AssertEqual = Callable[..., None]
Cases = tuple[tuple[str, str], ...]

LAYER = """
<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1]>
layer (FLOAT[batch, sequence, 6] x, FLOAT[batch, sequence, 6] residual) => (FLOAT[batch, sequence, 6] z)
<
    float[6] bias = {0.5, 1, -2, 0.25, 0, 4}, float[6] gamma = {1.5, -0.5, 0.25, 2, 1, 0.75},
    float[6] beta = {0.5, 0, -1, 0.25, 3, -0.125}, int8 zero = {0}
>
{
    y, s = rotary_press.ResidualLayerNorm <epsilon: float = 0.1> (x, residual, bias, gamma, beta)
    quantized = QuantizeLinear (y, step, zero)
    back = DequantizeLinear (quantized, step, zero)
    product = MatMul (back, weight)
    z = Add (product, s)
}
"""
POST_NORM = ("Add (product, s)", "Add (product, y)")
SUM_ALONE = ("Add (product, s)", "Identity (product)")
AGAIN = "\n    again = QuantizeLinear (y, step, zero)  more = DequantizeLinear (again, step, zero)\n    z = Sum (more, "
STEP = 0.03125  # a half, and a power of two: float16 holds it


def layer(rewrite: Rewrite, *replacements: tuple[str, str], dtype: str = "float", **steps: Any) -> ModelProto:
    """The model that the text describes after the replacements, and the scales: ``step``, and others."""
    model = rewrite(LAYER, *replacements, ("FLOAT", dtype))
    narrow = np.float16 if dtype == "float16" else np.float32
    weight = np.random.default_rng(0).standard_normal((6, 6))
    inputs = {value.name for value in model.graph.input}
    for name, value in ({"weight": weight, "step": STEP} | steps).items():
        if name not in inputs:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, narrow), name))
    return on_models.fuse(model)[0]


def fuse(model: ModelProto) -> tuple[ModelProto, PassReport]:
    fused, (report,) = on_models.run_passes(model, [PASS])
    return fused, report


def norm_of(model: ModelProto) -> NodeProto:
    node: NodeProto
    [node] = [node for node in model.graph.node if node.domain]
    return node


@pytest.mark.parametrize(
    ("replacements", "outputs"),
    [
        ((), ["quantized", "", "s"]),
        ((POST_NORM,), ["quantized", "y", ""]),
        ((SUM_ALONE,), ["quantized", "", ""]),
        ((("Add (product, s)", "Sum (product, s, y)"),), ["quantized", "y", "s"]),
        ((SUM_ALONE, ("6] z)", "6] z, FLOAT[batch, sequence, 6] y)")), ["quantized", "y", ""]),
        ((SUM_ALONE, ("6] z)", "6] z, int8[batch, sequence, 6] quantized)")), ["quantized", "", ""]),
    ],
    ids=["pre-norm", "post-norm", "neither", "both", "y comes out", "the result comes out"],
)
def test_outputs_are_those_that_are_read(
    rewrite: Rewrite, assert_equal: AssertEqual, replacements: Cases, outputs: list[str]
) -> None:
    model = layer(rewrite, *replacements)
    fused, report = fuse(model)
    node = norm_of(fused)
    assert (report.count, report.near_misses) == (1, ())
    assert node.op_type == "QuantizedResidualLayerNorm"
    assert list(node.output) == outputs
    assert not any(other.op_type == "QuantizeLinear" for other in fused.graph.node)
    assert_equal(model, fused)


@pytest.mark.parametrize(
    ("replacements", "step"),
    [
        ((), [STEP]),
        ((("int8 zero = {0}", "int8[1] zero = {0}"),), [STEP]),
        (
            (
                ('"" : 20', '"" : 21'),
                ("QuantizeLinear (y, step, zero)", "QuantizeLinear <output_dtype: int = 3> (y, step)"),
            ),
            STEP,
        ),
    ],
    ids=["one scale", "one zero point", "no zero point"],
)
def test_spellings_of_one_scale(rewrite: Rewrite, assert_equal: AssertEqual, replacements: Cases, step: Any) -> None:
    model = layer(rewrite, *replacements, step=step)
    fused, report = fuse(model)
    assert report.count == 1
    [scale] = [tensor for tensor in fused.graph.initializer if tensor.name == norm_of(fused).input[5]]
    assert numpy_helper.to_array(scale) == np.float32(STEP)
    assert numpy_helper.to_array(scale).shape == ()
    assert_equal(model, fused)


def test_all_that_quantise_alike_share_the_result(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    model = layer(rewrite, ("z = Add (product, s)", f"{AGAIN}product, s)"))
    fused, report = fuse(model)
    operators = Counter(node.op_type for node in fused.graph.node)
    assert (report.count, report.near_misses) == (1, ())
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (0, 2)
    assert list(norm_of(fused).output) == ["quantized", "", "s"]
    assert_equal(model, fused)


def test_what_quantises_otherwise_goes_on_reading_the_norm(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    model = layer(rewrite, ("z = Add (product, s)", f"{AGAIN.replace('step', 'other')}product, s)"), other=0.5)
    fused, report = fuse(model)
    [miss] = report.near_misses
    assert report.count == 1
    assert (miss.node, miss.reason) == ("again", "its scale is 0.5, but the norm quantises by 0.03125")
    assert list(norm_of(fused).output) == ["quantized", "y", "s"]
    assert sum(node.op_type == "QuantizeLinear" for node in fused.graph.node) == 1
    assert_equal(model, fused)


def test_results_that_come_out_keep_their_names(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    outputs = "".join(f", int8[batch, sequence, 6] {name}" for name in ("again", "quantized"))
    model = layer(rewrite, ("z = Add (product, s)", f"{AGAIN}product, s)"), ("6] z)", f"6] z{outputs})"))
    fused, report = fuse(model)
    assert report.count == 1
    assert_equal(model, fused)


@pytest.mark.parametrize("target", ["portable", "onnxruntime", "native"])
def test_in_half_precision_it_is_the_exact_norm_that_is_quantised(
    rewrite: Rewrite, run: Run, make_feeds: MakeFeeds, target: str
) -> None:
    """And no longer the rounded one, which may be one step off: of 30,000 numbers, some are."""
    shown = ("6] z)", "6] z, int8[batch, sequence, 6] quantized)")
    model = layer(rewrite, shown, dtype="float16", step=2.0**-8)
    fused, report = fuse(model)
    assert report.count == 1
    lowered, _ = on_models.lower(fused, target)
    feeds = make_feeds(model, batch=50, sequence=100)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in fused.graph.initializer}
    given = [(feeds | constants)[name] for name in norm_of(fused).input]
    exact, *_ = QUANTIZED_RESIDUAL_LAYER_NORM.reference(*given, epsilon=0.1)
    found, before = run(lowered, feeds)["quantized"], run(model, feeds)["quantized"]
    assert np.count_nonzero(found != exact) <= 3, "float32 rounds, too"
    assert np.abs(before.astype(int) - found).max() == 1


MISSES: dict[str, tuple[Cases, dict[str, Any], str]] = {
    "uint8": ((("int8 zero", "uint8 zero"),), {}, "its zero point must be an int8 0; got uint8 [0]"),
    "uint8 by default": (
        (
            ("QuantizeLinear (y, step, zero)", "QuantizeLinear (y, step)"),
            ("(quantized, step, zero)", "(quantized, step)"),
        ),
        {},
        "it must quantise to int8; got uint8",
    ),
    "a zero point": ((("zero = {0}", "zero = {-3}"),), {}, "its zero point must be an int8 0; got int8 [-3]"),
    "a zero point that comes in": (
        ((", int8 zero = {0}", ""), ("6] residual)", "6] residual, int8 zero)")),
        {},
        "its zero point must be an int8 0; got one that is computed",
    ),
    "a scale for each feature": (
        (("int8 zero = {0}", "int8[6] zero = {0, 0, 0, 0, 0, 0}"), ("Linear (", "Linear <axis: int = 2> (")),
        {"step": [STEP] * 6},
        "its scale must be one constant; got (6,)",
    ),
    "a scale that comes in": (
        (("6] residual)", "6] residual, FLOAT step)"),),
        {},
        "its scale must be one constant; got a tensor",
    ),
    "a scale below zero": ((), {"step": -STEP}, "its scale must be above zero; got -0.03125"),
}


@pytest.mark.parametrize("name", MISSES)
def test_what_is_quantised_otherwise_is_left_alone_with_the_reason(rewrite: Rewrite, name: str) -> None:
    replacements, steps, reason = MISSES[name]
    model = layer(rewrite, *replacements, **steps)
    left, report = fuse(model)
    assert report.count == 0
    assert [(miss.node, miss.reason) for miss in report.near_misses] == [("quantized", reason)]
    assert left.graph.node == model.graph.node


@pytest.mark.parametrize(
    "replacement",
    [("(y, step, zero)", "(x, step, zero)"), ("(y, step, zero)", "(s, step, zero)")],
    ids=["of something else", "of the sum"],
)
def test_what_quantises_no_norm_is_no_near_miss(rewrite: Rewrite, replacement: tuple[str, str]) -> None:
    _, report = fuse(layer(rewrite, replacement))
    assert (report.count, report.near_misses) == (0, ())


def test_what_an_inner_graph_quantises_is_left_alone(rewrite: Rewrite, run: Run, make_feeds: MakeFeeds) -> None:
    branches = """inner = If (first) <
        then_branch = yes () => (int8[batch, sequence, 6] a) { a = QuantizeLinear (y, step, zero) },
        else_branch = no () => (int8[batch, sequence, 6] b) { b = QuantizeLinear (s, step, zero) }
    >
    more = DequantizeLinear (inner, step, zero)  z = Sum (more, product, s)"""
    model = layer(rewrite, ("z = Add (product, s)", branches), ("6] residual)", "6] residual, bool first)"))
    fused, report = fuse(model)
    assert report.count == 1
    assert list(norm_of(fused).output) == ["quantized", "y", "s"]
    for first in (True, False):
        feeds = make_feeds(model) | {"first": np.array(first)}
        np.testing.assert_allclose(run(fused, feeds)["z"], run(model, feeds)["z"], rtol=1e-5, atol=1e-5)


def test_twice_changes_nothing(rewrite: Rewrite) -> None:
    fused, _ = fuse(layer(rewrite))
    again, report = fuse(fused)
    assert (report.count, report.near_misses) == (0, ())
    assert again == fused


def test_it_comes_after_the_fusions_and_before_the_lowerings(masked_lm: Traced) -> None:
    with pytest.raises(PassError, match=r"it needs \['fuse_residual_layer_norm'\] before it"):
        fuse(masked_lm.plain)
    for target in ("onnxruntime", "native", "plugin"):
        lowered, _ = on_models.lower(masked_lm.fused, target)
        with pytest.raises(PassError, match=f"must not come after \\['lower_to_{target}'\\]"):
            fuse(lowered)
