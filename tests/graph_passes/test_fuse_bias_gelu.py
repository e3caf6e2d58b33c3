"""Which graphs become ``FusedBiasGelu``, which do not and why, and that neither changes a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from graph_passes import fuse_bias_gelu
from graph_passes.graph_pass import PassReport
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Rewrite = Callable[..., ModelProto]
Feeds = dict[str, NDArray[Any]]
AssertEqual = Callable[[ModelProto, ModelProto], None]
Replacement = tuple[str, str]

BIAS = [0.5, -1.0, 0.25, 2.0, -0.125, 0.75]
GELU = """
<ir_version: 10, opset_import: ["" : 20]>
gelu (float[batch, sequence, 6] x) => (float[batch, sequence, 6] y)
<
    float[6] bias = {0.5, -1, 0.25, 2, -0.125, 0.75}, float half = {0.5}, float one = {1}, float two = {2},
    float three = {3}, float root = {1.4142135}, float inverse = {0.70710677}, float slope = {0.7978846},
    float double_slope = {1.5957691}, float cubic = {0.044715}, float quick = {1.702}, float bound = {-3},
    float[4] other = {1, 2, 3, 4}, float third = {0.3333}
>
{
    t = Add (x, bias)
    y = Gelu (t)
}
"""
OP = "    y = Gelu (t)\n"
ERF = """
    scaled = Div (t, root)
    error = Erf (scaled)
    more = Add (error, one)
    part = Mul (t, half)
    y = Mul (part, more)
"""
TANH = """
    cube = Pow (t, three)
    small = Mul (cube, cubic)
    inner = Add (t, small)
    scaled = Mul (inner, slope)
    tangent = Tanh (scaled)
    more = Add (tangent, one)
    part = Mul (t, half)
    y = Mul (part, more)
"""
BY_ERF, BY_TANH = (OP, ERF), (OP, TANH)


def fuse(model: ModelProto) -> tuple[ModelProto, PassReport]:
    fused, reports = on_models.fuse(model)
    return fused, next(report for report in reports if report.name == "fuse_bias_gelu")


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def test_it_becomes_one_node(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(GELU)
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    (bias,) = fused.graph.initializer
    assert (node.domain, node.op_type) == ("rotary_press", "FusedBiasGelu")
    assert (list(node.input), list(node.output)) == (["x", bias.name], ["y"])
    assert numpy_helper.to_array(bias).tolist() == BIAS
    assert [(a.name, a.s) for a in node.attribute] == [("approximate", b"none")]
    assert (report.count, report.near_misses) == (1, ())
    assert report.max_abs_difference is not None
    assert 0 <= report.max_abs_difference <= 4e-6
    assert_equal(plain, fused)


@pytest.mark.parametrize(
    ("replacements", "approximate"),
    [
        pytest.param([("Gelu", 'Gelu <approximate: string = "tanh">')], "tanh", id="op"),
        pytest.param([BY_ERF], "none", id="erf"),
        pytest.param([BY_ERF, ("Div (t, root)", "Mul (t, inverse)")], "none", id="erf of a product"),
        pytest.param([BY_ERF, ("Add (error, one)", "Add (one, error)")], "none", id="one commuted"),
        pytest.param([BY_ERF, ("Mul (t, half)", "Mul (half, t)")], "none", id="half commuted"),
        pytest.param([BY_ERF, ("Mul (t, half)", "Div (t, two)")], "none", id="half by Div"),
        pytest.param([BY_ERF, ("Mul (part, more)", "Mul (more, part)")], "none", id="last commuted"),
        pytest.param(
            [BY_ERF, ("part = Mul (t, half)", "part = Mul (more, half)"), ("Mul (part, more)", "Mul (t, part)")],
            "none",
            id="x last",
        ),
        pytest.param(
            [BY_ERF, ("part = Mul (t, half)", "part = Mul (t, more)"), ("Mul (part, more)", "Mul (part, half)")],
            "none",
            id="half last",
        ),
        pytest.param([BY_TANH], "tanh", id="tanh"),
        pytest.param(
            [BY_TANH, ("cube = Pow (t, three)", "square = Mul (t, t)\n    cube = Mul (square, t)")],
            "tanh",
            id="cube by Mul",
        ),
        pytest.param(
            [BY_TANH, ("cube = Pow (t, three)", "square = Mul (t, t)\n    cube = Mul (t, square)")],
            "tanh",
            id="cube by Mul, commuted",
        ),
        pytest.param(
            [
                BY_TANH,
                (
                    "cube = Pow (t, three)\n    small = Mul (cube, cubic)\n    inner = Add (t, small)",
                    """square = Pow (t, two)
    small = Mul (square, cubic)
    rest = Add (small, one)
    inner = Mul (t, rest)""",
                ),
            ],
            "tanh",
            id="factored",
        ),
        pytest.param([BY_TANH, ("Add (t, small)", "Add (small, t)")], "tanh", id="cube first"),
        pytest.param(
            [BY_TANH, ("part = Mul (t, half)", "part = Mul (more, half)"), ("(part, more)", "(t, part)")],
            "tanh",
            id="tanh, x last",
        ),
        pytest.param(
            [
                BY_TANH,
                ("(inner, slope)", "(inner, double_slope)"),
                ("tangent = Tanh (scaled)", "probability = Sigmoid (scaled)"),
                ("    more = Add (tangent, one)\n    part = Mul (t, half)\n", ""),
                ("Mul (part, more)", "Mul (t, probability)"),
            ],
            "tanh",
            id="tanh as a sigmoid",
        ),
    ],
)
@pytest.mark.parametrize("commuted", [(), (("Add (x, bias)", "Add (bias, x)"),)], ids=["x first", "bias first"])
def test_it_may_be_written_in_another_way(
    rewrite: Rewrite,
    assert_equal: AssertEqual,
    replacements: list[Replacement],
    approximate: str,
    commuted: tuple[Replacement, ...],
) -> None:
    plain = rewrite(GELU, *replacements, *commuted)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses, operators(fused)) == (1, (), {"FusedBiasGelu": 1})
    assert fused.graph.node[0].attribute[0].s == approximate.encode()
    assert fused.graph.node[0].input[0] == "x"
    assert_equal(plain, fused)


@pytest.mark.parametrize("spelling", [(), (BY_ERF,), (BY_TANH,)], ids=["op", "erf", "tanh"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("float[6] bias", "float[1, 6] bias", id="bias of two axes"),
        pytest.param("float[6] bias", "float[1, 1, 6] bias", id="bias of three axes"),
        pytest.param("Add (x, bias)", "Add (less, bias)", id="x is computed"),
        pytest.param("[batch, sequence, 6]", "[2, sequence, 6]", id="fixed batch"),
    ],
)
def test_its_terms_may_come_in_another_form(
    rewrite: Rewrite, assert_equal: AssertEqual, spelling: tuple[Replacement, ...], old: str, new: str
) -> None:
    computed = [("    t =", "    less = Neg (x)\n    t =")] if "less" in new else []
    plain = rewrite(GELU, *spelling, (old, new), *computed)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    weights = {weight.name: numpy_helper.to_array(weight) for weight in fused.graph.initializer}
    assert weights[fused.graph.node[-1].input[1]].tolist() == BIAS
    assert_equal(plain, fused)


DIFFERS = "looks like FusedBiasGelu but differs by"
READ = "the sum, t, is read elsewhere"
TERMS = "the terms of its input must be a tensor and a constant with one number per feature"
UNTOLD = "in between may do something else for numbers or sizes that no probe tries"
QUICK = "\n    scaled = Mul (t, quick)\n    probability = Sigmoid (scaled)\n    y = Mul (t, probability)\n"
SILU = "\n    probability = Sigmoid (t)\n    y = Mul (t, probability)\n"
MORE = ("6] y)", "6] y, float[batch, sequence, 6] z)")


@pytest.mark.parametrize(
    ("replacements", "reason"),
    [
        pytest.param(((OP, QUICK),), "it is the quick GELU, t sigmoid(1.702 t)", id="quick GELU"),
        pytest.param(((OP, SILU),), "it is SiLU, t sigmoid(t)", id="SiLU"),
        pytest.param(
            (BY_ERF, ("Erf (scaled)", "Erf (few)"), ("    error", "    few = Clip (scaled, bound)\n    error")),
            f"the Clip {UNTOLD}",
            id="limited",
        ),
        pytest.param(
            (BY_TANH, ("Tanh (scaled)", "Tanh (few)"), ("    tangent", "    few = Max (scaled, bound)\n    tangent")),
            f"the Max {UNTOLD}",
            id="tanh, limited",
        ),
        pytest.param((BY_TANH, ("{0.044715}", "{0.044}")), DIFFERS, id="another cubic term"),
        pytest.param((BY_TANH, ("{0.7978846}", "{0.8}")), DIFFERS, id="another slope"),
        pytest.param((BY_ERF, ("{1.4142135}", "{1.414}")), DIFFERS, id="another width"),
        pytest.param((BY_ERF, ("{0.5}", "{0.50001}")), DIFFERS, id="another half"),
        pytest.param((("Add (x, bias)", "Identity (x)"),), "its input is no sum: it comes from", id="no bias"),
        pytest.param((("Add (x, bias)", "Mul (x, bias)"),), "its input is no sum: it comes from Mul", id="a product"),
        pytest.param((("6] x)", "6] x, float[6] given)"), ("(x, bias)", "(x, given)")), TERMS, id="computed bias"),
        pytest.param((("(x, bias)", "(x, x)"),), TERMS, id="sum of two tensors"),
        pytest.param((("(x, bias)", "(x, third)"),), TERMS, id="one number for all"),
        pytest.param(
            (
                ("sequence, 6]", "6, 4]"),
                ("(x, bias)", "(x, column)"),
                ("float third", "float[6, 1] column = {1, 2, 3, 4, 5, 6}, float third"),
            ),
            TERMS,
            id="one number per place",
        ),
        pytest.param((("sequence, 6]", "6, 6]"), ("float[6] bias", "float[6, 1] bias")), "", id="as many places"),
        pytest.param((("6] x", "1] x"),), TERMS, id="x broadcasts"),
        pytest.param(
            (("[batch, sequence, 6]", "[sequence, 6]"),), "must have three axes, (B, S, E); got (", id="two axes"
        ),
        pytest.param((("[batch, sequence, 6]", "[batch, 3, sequence, 6]"),), "must have three axes", id="four axes"),
        pytest.param((MORE, ("    y =", "    z = Neg (t)\n    y =")), READ, id="sum read elsewhere"),
        pytest.param((BY_ERF, MORE, ("    y =", "    z = Neg (t)\n    y =")), READ, id="erf, sum read elsewhere"),
        pytest.param((BY_TANH, ("6] y)", "6] y, float[batch, sequence, 6] t)")), READ, id="tanh, sum is an output"),
    ],
)
def test_what_is_nearly_a_biased_gelu_is_left_alone(
    rewrite: Rewrite, assert_equal: AssertEqual, replacements: tuple[Replacement, ...], reason: str
) -> None:
    plain = rewrite(GELU, *replacements)
    fused, report = fuse(plain)
    assert report.count == 0
    assert len(report.near_misses) == 1
    assert reason in report.near_misses[0].reason
    assert report.near_misses[0].node
    assert operators(fused) == operators(plain)
    assert_equal(plain, fused)


@pytest.mark.parametrize(
    "replacements",
    [
        pytest.param([("Gelu (t)", "Tanh (t)")], id="tanh alone"),
        pytest.param([("Gelu (t)", "Relu (t)")], id="ReLU"),
        pytest.param([BY_ERF, ("(error, one)", "(error, two)")], id="two for one"),
        pytest.param([BY_ERF, ("= Mul (part, more)", "= Add (part, more)")], id="sum for product"),
        pytest.param([BY_ERF, ("Div (t, root)", "Identity (t)")], id="not scaled"),
        pytest.param([BY_TANH, ("Mul (inner, slope)", "Mul (inner, root)")], id="far steeper"),
        pytest.param([BY_TANH, ("float", "double")], id="float64"),
    ],
)
def test_what_does_not_look_like_a_gelu_is_not_mentioned(
    rewrite: Rewrite, assert_equal: AssertEqual, replacements: list[Replacement]
) -> None:
    plain = rewrite(GELU, *replacements)
    fused, report = fuse(plain)
    assert report == PassReport("fuse_bias_gelu", 0)
    assert operators(fused) == operators(plain)
    assert_equal(plain, fused)


@pytest.mark.parametrize("difference", [5e-6, float("nan"), float("inf")])
def test_what_measures_different_is_left_alone(
    rewrite: Rewrite, assert_equal: AssertEqual, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(fuse_bias_gelu, "largest_difference", lambda *args, **kwargs: difference)
    plain = rewrite(GELU, BY_ERF)
    fused, report = fuse(plain)
    assert report.count == 0
    assert report.near_misses[0].reason == f"{DIFFERS} {difference:.3g} on probe inputs"
    assert operators(fused) == operators(plain)
    assert_equal(plain, fused)


@pytest.mark.parametrize("name", ["scaled", "error", "more", "part"])
def test_an_intermediate_that_is_read_elsewhere_stays_or_keeps_it(
    rewrite: Rewrite, assert_equal: AssertEqual, name: str
) -> None:
    plain = rewrite(GELU, BY_ERF, MORE, ("    y =", f"    z = Neg ({name})\n    y ="))
    fused, _ = fuse(plain)
    assert_equal(plain, fused)


@pytest.mark.parametrize("outputs", ["y", "y, z", "z, y", "z"])
@pytest.mark.parametrize("spelling", [(), (BY_ERF,)], ids=["op", "erf"])
def test_outputs_keep_their_names(
    rewrite: Rewrite, assert_equal: AssertEqual, outputs: str, spelling: tuple[Replacement, ...]
) -> None:
    shaped = ", ".join(f"float[batch, sequence, 6] {name}" for name in outputs.split(", "))
    plain = rewrite(GELU, *spelling, ("float[batch, sequence, 6] y", shaped), ("\n}", "\n    z = Neg (y)\n}"))
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert_equal(plain, fused)


@pytest.mark.parametrize("name", ["y_activated_0", "y_activated_0_bias"])
def test_a_new_name_is_one_that_nothing_else_has(rewrite: Rewrite, assert_equal: AssertEqual, name: str) -> None:
    both = f"6] z, float[batch, sequence, 6] {name})"
    plain = rewrite(GELU, ("6] y)", both), ("\n}", f"\n    z = Neg (y)\n    {name} = Abs (x)\n}}"))
    fused, report = fuse(plain)
    assert report.count == 1
    assert_equal(plain, fused)


@pytest.mark.parametrize("second", [OP, ERF, TANH], ids=["op", "erf", "tanh"])
@pytest.mark.parametrize("first", [OP, ERF, TANH], ids=["op", "erf", "tanh"])
def test_one_that_feeds_another_fuses_as_well(
    rewrite: Rewrite, assert_equal: AssertEqual, first: str, second: str
) -> None:
    before = first.replace("    y =", "    middle =")
    for name in ("scaled", "error", "more", "part", "cube", "small", "inner", "tangent"):
        before = before.replace(name, f"first_{name}")
    again = second.replace("(t)", "(again)").replace("(t,", "(again,").replace(" t)", " again)")
    plain = rewrite(GELU, (OP, f"{before}    again = Add (middle, bias)\n{again}"))
    fused, report = fuse(plain)
    assert (report.count, report.near_misses, operators(fused)) == (2, (), {"FusedBiasGelu": 2})
    forms = ["tanh" if spelling == TANH else "none" for spelling in (first, second)]
    assert [node.attribute[0].s.decode() for node in fused.graph.node] == forms
    assert_equal(plain, fused)


def test_a_scaled_gelu_is_a_gelu_and_no_near_miss(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(
        GELU, BY_ERF, ("    y = Mul (part, more)", "    whole = Mul (part, more)\n    y = Mul (whole, two)")
    )
    fused, report = fuse(plain)
    assert (report.count, report.near_misses, operators(fused)) == (1, (), {"FusedBiasGelu": 1, "Mul": 1})
    assert_equal(plain, fused)


@pytest.mark.parametrize(
    ("spelling", "approximate"), [((), "none"), ((BY_ERF,), "none"), ((BY_TANH,), "tanh")], ids=["op", "erf", "tanh"]
)
def test_in_half_precision_it_keeps_its_form(
    rewrite: Rewrite,
    run: Callable[..., Feeds],
    make_feeds: Callable[..., Feeds],
    spelling: tuple[Replacement, ...],
    approximate: str,
) -> None:
    """Whose constants are rounded there, by almost as much as the two forms differ."""
    constants = ("bias", "half", "one", "three", "root", "slope", "cubic")
    casts = "\n".join(f"    {name} = Cast <to: int = 10> (wide_{name})" for name in constants)
    plain = rewrite(
        GELU,
        *(
            (
                f"float{'[6]' if name == 'bias' else ''} {name} =",
                f"float{'[6]' if name == 'bias' else ''} wide_{name} =",
            )
            for name in constants
        ),
        ("float[batch", "float16[batch"),
        ("    t =", f"{casts}\n    t ="),
        *spelling,
    )
    fused, report = fuse(plain)
    assert (report.count, report.near_misses, operators(fused)) == (1, (), {"FusedBiasGelu": 1})
    assert fused.graph.node[0].attribute[0].s == approximate.encode()
    feeds = make_feeds(plain)
    np.testing.assert_allclose(run(fused, feeds)["y"], run(plain, feeds)["y"], rtol=0, atol=5e-3)


def test_a_second_run_changes_nothing(rewrite: Rewrite) -> None:
    fused, _ = fuse(rewrite(GELU, BY_ERF))
    again, (report,) = on_models.run_passes(fused, [fuse_bias_gelu.PASS])
    assert report == PassReport("fuse_bias_gelu", 0)
    assert again.graph == fused.graph


def test_real_models_fuse_as_often_as_promised(masked_lm: Traced) -> None:
    """The tests of the other fusions count these in every model."""
    report = masked_lm.reports["fuse_bias_gelu"]
    found = operators(masked_lm.fused)
    assert report.near_misses == ()
    assert report.count == found["FusedBiasGelu"] == masked_lm.expected["fuse_bias_gelu"]
    assert report.count == masked_lm.config.num_hidden_layers + 1
    assert not found.keys() & {"Gelu", "Erf", "Tanh"}
