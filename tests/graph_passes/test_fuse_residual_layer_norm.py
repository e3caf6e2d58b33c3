"""Which graphs become ``ResidualLayerNorm``, which do not and why, and that neither changes a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from graph_passes import fuse_residual_layer_norm
from graph_passes.graph_pass import PassReport
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Rewrite = Callable[..., ModelProto]
Feeds = dict[str, NDArray[Any]]
AssertEqual = Callable[[ModelProto, ModelProto], None]

NORM = """
<ir_version: 10, opset_import: ["" : 20]>
norm (
    float[batch, sequence, 6] x, float[batch, sequence, 6] residual
) => (float[batch, sequence, 6] y)
<float[6] gamma = {1.5, -0.5, 0.25, 2, 1, 0.75}, float[6] beta = {0.5, 0, -1, 0.25, 3, -0.125}>
{
    total = Add (x, residual)
    y = LayerNormalization <axis: int = -1, epsilon: float = 1e-12, stash_type: int = 1> (total, gamma, beta)
}
"""
LAYER_NORM = NORM[NORM.index("    y =") : NORM.rindex("}")]
# The same in simple ops, as exporters write it where there is no such op.
SPELLED = """
    mean = ReduceMean (total, last)
    rest = Sub (total, mean)
    square = Pow (rest, two)
    variance = ReduceMean (square, last)
    positive = Add (variance, epsilon)
    deviation = Sqrt (positive)
    normal = Div (rest, deviation)
    scaled = Mul (normal, gamma)
    y = Add (scaled, beta)
"""
SIMPLE = (
    (
        "<float[6] gamma",
        "<int64[1] last = {-1}, float two = {2}, float half = {-0.5}, float epsilon = {1e-5}, float[6] gamma",
    ),
    (LAYER_NORM, SPELLED),
)
# The same, where the sum is an output of the model.
CARRIED = ("6] y)", "6] y, float[batch, sequence, 6] total)")


def fuse(model: ModelProto) -> tuple[ModelProto, PassReport]:
    fused, reports = on_models.fuse(model)
    return fused, next(report for report in reports if report.name == "fuse_residual_layer_norm")


def weights_of(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def test_it_becomes_one_node_without_the_sum(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(NORM)
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    assert (node.domain, node.op_type) == ("rotary_press", "ResidualLayerNorm")
    assert (list(node.input), list(node.output)) == (
        ["x", "residual", "y_normalised_0_bias_0", "y_normalised_0_gamma_0", "y_normalised_0_beta_0"],
        ["y", ""],
    )
    assert [(a.name, a.f) for a in node.attribute] == [("epsilon", np.float32(1e-12))]
    assert not weights_of(fused)[node.input[2]].any(), "there is no bias"
    assert (report.count, report.near_misses) == (1, ())
    assert report.max_abs_difference is not None
    assert 0 <= report.max_abs_difference <= 2e-5
    assert_equal(plain, fused)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("Add (x, residual)", "Add (residual, x)", id="sum commuted"),
        pytest.param("axis: int = -1", "axis: int = 2", id="last axis as 2"),
        pytest.param("<axis: int = -1, epsilon: float = 1e-12, stash_type: int = 1>", "", id="all by default"),
        pytest.param("epsilon: float = 1e-12", "epsilon: float = 0.1", id="large epsilon"),
        pytest.param("Add (x, residual)", "Add (x, x)", id="one tensor twice"),
        pytest.param("(total, gamma, beta)", "(total, gamma, gamma)", id="gamma is beta"),
        pytest.param("[batch, sequence, 6]", "[2, sequence, 6]", id="fixed batch"),
    ],
)
def test_it_may_be_written_in_another_way(
    rewrite: Rewrite,
    run: Callable[..., Feeds],
    make_feeds: Callable[..., Feeds],
    old: str,
    new: str,
) -> None:
    plain = rewrite(NORM, (old, new))
    fused, report = fuse(plain)
    assert (report.count, [node.op_type for node in fused.graph.node]) == (1, ["ResidualLayerNorm"])
    feeds = make_feeds(plain, scale=0.1)  # small enough to see an epsilon
    np.testing.assert_allclose(run(fused, feeds)["y"], run(plain, feeds)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "replacements",
    [
        pytest.param((), id="as it is"),
        pytest.param((("Pow (rest, two)", "Mul (rest, rest)"),), id="square by Mul"),
        pytest.param(
            (("normal = Div (rest, deviation)", "factor = Reciprocal (deviation)\n normal = Mul (rest, factor)"),),
            id="Reciprocal",
        ),
        pytest.param(
            (
                ("deviation = Sqrt (positive)", "factor = Pow (positive, half)"),
                ("Div (rest, deviation)", "Mul (factor, rest)"),
            ),
            id="negative power",
        ),
        pytest.param((("Add (variance, epsilon)", "Add (epsilon, variance)"),), id="epsilon commuted"),
        pytest.param((("Mul (normal, gamma)", "Mul (gamma, normal)"),), id="gamma commuted"),
        pytest.param((("Add (scaled, beta)", "Add (beta, scaled)"),), id="beta commuted"),
        pytest.param((("last = {-1}", "last = {2}"),), id="last axis as 2"),
        pytest.param((("float[6] gamma", "float[1, 1, 6] gamma"),), id="gamma of three axes"),
        pytest.param(
            (
                ("rest = Sub (total, mean)", "rest = Sub (total, mean)\n rest_again = Sub (total, mean)"),
                ("Div (rest,", "Div (rest_again,"),
            ),
            id="difference taken twice",
        ),
    ],
)
@pytest.mark.parametrize("outputs", [(), CARRIED], ids=["one output", "two outputs"])
def test_it_may_be_spelled_in_simple_ops(
    rewrite: Rewrite,
    assert_equal: AssertEqual,
    replacements: tuple[tuple[str, str], ...],
    outputs: tuple[str, str] | tuple[()],
) -> None:
    plain = rewrite(NORM, *SIMPLE, *replacements, *([outputs] if outputs else []))
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    assert (report.count, report.near_misses, node.op_type) == (1, (), "ResidualLayerNorm")
    assert list(node.output) == (["y", "total"] if outputs else ["y", ""])
    assert node.attribute[0].f == np.float32(1e-5)
    assert_equal(plain, fused)


@pytest.mark.parametrize(
    ("replacements", "gamma", "beta"),
    [
        pytest.param([(", gamma, beta)", ", gamma)")], None, 0, id="op without beta"),
        pytest.param([*SIMPLE, ("y = Add (scaled, beta)", ""), ("scaled =", "y =")], None, 0, id="no beta"),
        pytest.param(
            [*SIMPLE, ("scaled = Mul (normal, gamma)\n", ""), ("(scaled, beta)", "(normal, beta)")],
            1,
            None,
            id="no gamma",
        ),
        pytest.param(
            [*SIMPLE, ("scaled = Mul (normal, gamma)\n    y = Add (scaled, beta)", ""), ("normal =", "y =")],
            1,
            0,
            id="neither",
        ),
    ],
)
def test_a_gamma_or_beta_that_is_left_out_is_written(
    rewrite: Rewrite,
    assert_equal: AssertEqual,
    replacements: list[tuple[str, str]],
    gamma: float | None,
    beta: float | None,
) -> None:
    plain = rewrite(NORM, *replacements)
    fused, report = fuse(plain)
    assert (report.count, [node.op_type for node in fused.graph.node]) == (1, ["ResidualLayerNorm"])
    weights = weights_of(fused)
    for name, value in zip(fused.graph.node[0].input[3:], (gamma, beta), strict=True):
        assert value is None or weights[name].tolist() == [value] * 6
    assert_equal(plain, fused)


@pytest.mark.parametrize("name", ["mean", "rest", "variance", "normal"])
@pytest.mark.parametrize("kind", ["read", "output"])
def test_an_intermediate_that_is_used_elsewhere_stays(
    rewrite: Rewrite, assert_equal: AssertEqual, name: str, kind: str
) -> None:
    width = 1 if name in ("mean", "variance") else 6
    plain = (
        rewrite(NORM, *SIMPLE, ("6] y)", f"6] y, float[batch, sequence, {width}] {name})"))
        if kind == "output"
        else rewrite(
            NORM,
            *SIMPLE,
            ("6] y)", f"6] y, float[batch, sequence, {width}] z)"),
            ("    y = Add", f"    z = Neg ({name})\n    y = Add"),
        )
    )
    fused, report = fuse(plain)
    assert report.count == 1
    assert_equal(plain, fused)


@pytest.mark.parametrize("epsilon", ["1e-12", "1e-05", "0.1"])
def test_it_keeps_its_epsilon(rewrite: Rewrite, epsilon: str) -> None:
    fused, _ = fuse(rewrite(NORM, ("epsilon: float = 1e-12", f"epsilon: float = {epsilon}")))
    assert fused.graph.node[0].attribute[0].f == np.float32(epsilon)


def test_an_epsilon_that_is_not_given_is_that_of_the_standard(rewrite: Rewrite) -> None:
    fused, _ = fuse(rewrite(NORM, ("epsilon: float = 1e-12, ", "")))
    assert fused.graph.node[0].attribute[0].f == np.float32(1e-5)


ONE_SUM = "[batch, sequence, 6] residual"
CONSTANT = (
    ("[batch, sequence, 6]", "[1, 1, 6]"),
    (", float[1, 1, 6] residual", ""),
    ("beta =", "beta = {0, 0, 0, 0, 0, 0}, float[1, 1, 6] residual ="),
)
OTHER_AXIS = (
    ("[batch, sequence, 6]", "[batch, 3, 2]"),
    ("axis: int = -1", "axis: int = 1"),
    ("float[6]", "float[3, 2]"),
)


COMPUTED_GAMMA = (("6] residual", "6] residual, float[6] given"), ("(total, gamma,", "(total, given,"))
HALF = (
    ("[batch, sequence, 6]", "[batch, 3, 2]"),
    ("float[", "float16["),
    (
        "float16[6] gamma = {1.5, -0.5, 0.25, 2, 1, 0.75}, float16[6] beta = {0.5, 0, -1, 0.25, 3, -0.125}",
        "float[3, 2] scale = {2, 1, 0.5, -1, 2, 1}",
    ),
    ("    y =", "    gamma = Cast <to: int = 10> (scale)\n    y ="),
    ("(total, gamma, beta)", "(total, gamma)"),
    ("axis: int = -1", "axis: int = 1"),
)
LIMITED = (
    *SIMPLE,
    ("positive = Add (variance, epsilon)", "few = Min (variance, high)\n positive = Add (few, epsilon)"),
    ("float two", "float high = {1000}, float two"),
)
RMS_NORM = (*SIMPLE, ("rest = Sub (total, mean)", "rest = Identity (total)"))
SAMPLE_VARIANCE = (
    *SIMPLE,
    (
        "variance = ReduceMean (square, last)",
        "all = ReduceSum (square, last)\n variance = Div (all, five)",
    ),
    ("float two", "float five = {5}, float two"),
)


@pytest.mark.parametrize(
    ("replacements", "reason"),
    [
        pytest.param(((ONE_SUM, "[6] residual"),), "one shape; got ('batch', 'sequence', 6) and (6,)", id="bias"),
        pytest.param(((ONE_SUM, "[1, sequence, 6] residual"),), "must have one shape", id="one row for all"),
        pytest.param(((ONE_SUM, "[batch, sequence, 1] residual"),), "must have one shape", id="one number per token"),
        pytest.param(CONSTANT, "a constant is no residual", id="constant"),
        pytest.param(OTHER_AXIS, "the last of three axes, known and in float32 or float16; got axis 1", id="two axes"),
        pytest.param((("[batch, sequence, 6]", "[batch, 6]"),), "of ('batch', 6)", id="two-dimensional"),
        pytest.param(
            (("[batch, sequence, 6]", "[batch, 2, sequence, 6]"),), "the last of three", id="four-dimensional"
        ),
        pytest.param((("float[", "double["),), "in float64", id="float64"),
        pytest.param(HALF, "in float16", id="float16"),
        pytest.param(COMPUTED_GAMMA, "gamma and beta must be constants; given is computed", id="computed gamma"),
        pytest.param((("= Add", "= Mul"),), "its input is no sum: it comes from Mul", id="product"),
        pytest.param((("(total, gamma", "(x, gamma"),), "it comes from outside of the graph", id="input"),
        pytest.param(RMS_NORM, "it does not subtract the mean (RMSNorm)", id="RMSNorm"),
        pytest.param(SAMPLE_VARIANCE, "divided by one less than the number of features", id="variance of a sample"),
        pytest.param(
            (*SIMPLE, ("last = {-1}", "last = {1}")),
            "it normalises over axis 1, not over the features",
            id="other axis",
        ),
        pytest.param(LIMITED, "the Min in between may do something else for numbers or sizes that", id="limited"),
    ],
)
def test_what_is_nearly_a_residual_norm_is_left_alone(
    rewrite: Rewrite, assert_equal: AssertEqual, replacements: tuple[tuple[str, str], ...], reason: str
) -> None:
    plain = rewrite(NORM, *replacements)
    fused, report = fuse(plain)
    assert report.count == 0
    assert len(report.near_misses) == 1
    assert reason in report.near_misses[0].reason
    assert report.near_misses[0].node == "y"
    assert "LayerNormalization" in [node.op_type for node in fused.graph.node] or SIMPLE[1] in replacements
    assert_equal(plain, fused)


@pytest.mark.parametrize("difference", [3e-5, float("nan"), float("inf")])
def test_what_measures_different_is_left_alone(
    rewrite: Rewrite, assert_equal: AssertEqual, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(fuse_residual_layer_norm, "largest_difference", lambda *args, **kwargs: difference)
    plain = rewrite(NORM)
    fused, report = fuse(plain)
    assert report.count == 0
    assert (
        report.near_misses[0].reason == f"looks like ResidualLayerNorm but differs by {difference:.3g} on probe inputs"
    )
    assert_equal(plain, fused)


@pytest.mark.parametrize("first", [True, False], ids=["reader before the norm", "reader after the norm"])
def test_the_sum_that_is_carried_on_becomes_the_second_output(
    rewrite: Rewrite, assert_equal: AssertEqual, first: bool
) -> None:
    reader = "z = Neg (total)"
    plain = rewrite(
        NORM,
        ("6] y)", "6] y, float[batch, sequence, 6] z)"),
        ("    y =", f"{reader}\n y =") if first else ("beta)", f"beta)\n {reader}"),
    )
    fused, report = fuse(plain)
    norm, negative = fused.graph.node
    assert (report.count, norm.op_type, negative.op_type) == (1, "ResidualLayerNorm", "Neg")
    assert list(negative.input) == norm.output[1:]
    assert_equal(plain, fused)


def test_a_sum_that_is_an_output_keeps_its_name(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(NORM, CARRIED)
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    assert (report.count, list(node.output)) == (1, ["y", "total"])
    assert_equal(plain, fused)


def test_a_norm_that_is_an_output_and_is_read_keeps_its_name(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(NORM, ("6] y)", "6] z, float[batch, sequence, 6] y)"), ("beta)", "beta)\n z = Neg (y)"))
    fused, report = fuse(plain)
    assert report.count == 1
    assert_equal(plain, fused)


def test_of_two_norms_of_one_sum_the_second_stays(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(
        NORM,
        ("6] y)", "6] y, float[batch, sequence, 6] z)"),
        ("gamma, beta)", "gamma, beta)\n z = LayerNormalization <epsilon: float = 0.1> (total, beta, gamma)"),
    )
    fused, report = fuse(plain)
    assert sorted(node.op_type for node in fused.graph.node) == ["LayerNormalization", "ResidualLayerNorm"]
    assert [miss.reason for miss in report.near_misses] == ["its input is no sum: it comes from ResidualLayerNorm"]
    assert_equal(plain, fused)


@pytest.mark.parametrize("carried", ["x", "y"], ids=["pre-norm", "post-norm"])
def test_a_chain_fuses_whole(rewrite: Rewrite, assert_equal: AssertEqual, carried: str) -> None:
    """Pre-norm adds to the sum, post-norm to the norm: only the former needs the sum as an output."""
    base = {"x": "total", "y": "middle"}[carried]
    plain = rewrite(
        NORM,
        ("    y = Layer", "    middle = Layer"),
        (
            "gamma, beta)",
            f"""gamma, beta)
            block = Tanh (middle)
            second = Add (block, {base})
            y = LayerNormalization <epsilon: float = 1e-5> (second, beta, gamma)""",
        ),
    )
    fused, report = fuse(plain)
    norms = [node for node in fused.graph.node if node.op_type == "ResidualLayerNorm"]
    assert (report.count, len(norms), len(fused.graph.node)) == (2, 2, 3)
    assert [bool(node.output[1]) for node in norms] == [carried == "x", False]
    assert [node.attribute[0].f for node in norms] == [np.float32(1e-12), np.float32(1e-5)]
    assert_equal(plain, fused)


def test_a_new_name_is_one_that_nothing_else_has(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(
        NORM,
        ("6] y)", "6] z, float[batch, sequence, 6] y_fused)"),
        ("beta)", "beta)\n z = Neg (y)\n y_fused = Abs (x)"),
    )
    fused, report = fuse(plain)
    assert report.count == 1
    assert_equal(plain, fused)


STATISTICS = (
    ("6] y)", "6] y, float[batch, sequence, 1] mean, float[batch, sequence, 1] scale)"),
    ("y = Layer", "y, mean, scale = Layer"),
)


def test_statistics_that_are_read_stay(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(NORM, *STATISTICS)
    fused, report = fuse(plain)
    operators = sorted(node.op_type for node in fused.graph.node)
    assert (report.count, operators) == (1, ["Add", "LayerNormalization", "ResidualLayerNorm"])
    assert_equal(plain, fused)


def test_a_norm_whose_gamma_is_computed_keeps_the_product(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    replacements = (("6] residual", "6] residual, float[batch, 1, 6] given"), ("(normal, gamma)", "(normal, given)"))
    plain = rewrite(NORM, *SIMPLE, *replacements)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert sorted(node.op_type for node in fused.graph.node) == ["Add", "Mul", "ResidualLayerNorm"]
    assert_equal(plain, fused)


def test_a_scaled_norm_is_a_norm_and_no_near_miss(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(
        NORM, *SIMPLE, ("    y = Add (scaled, beta)", "    whole = Add (scaled, beta)\n    y = Mul (whole, two)")
    )
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert sorted(node.op_type for node in fused.graph.node) == ["Mul", "ResidualLayerNorm"]
    assert_equal(plain, fused)


def test_a_second_run_changes_nothing(rewrite: Rewrite) -> None:
    fused, _ = fuse(rewrite(NORM, CARRIED))
    again, (report,) = on_models.run_passes(fused, [fuse_residual_layer_norm.PASS])
    assert report == PassReport("fuse_residual_layer_norm", 0)
    assert again.graph == fused.graph


SUM = "    total = Add (x, residual)"
NUMBERS = [0.5, -1.0, 2.0, 0.25, 4.0, -0.125]
WITH_BIAS = (
    ("<float[6] gamma", "<float[6] bias = {0.5, -1, 2, 0.25, 4, -0.125}, float[6] gamma"),
    (SUM, "    biased = Add (x, bias)\n    total = Add (biased, residual)"),
)


@pytest.mark.parametrize(
    ("replacements", "terms"),
    [
        pytest.param([], ["x", "residual"], id="of the first term"),
        pytest.param([("(x, bias)", "(bias, x)")], ["x", "residual"], id="of the first term, commuted"),
        pytest.param([("(biased, residual)", "(residual, biased)")], ["x", "residual"], id="of the second term"),
        pytest.param(
            [("(x, bias)", "(bias, x)"), ("(biased, residual)", "(residual, biased)")],
            ["x", "residual"],
            id="of the second term, commuted",
        ),
        pytest.param([("float[6] bias", "float[1, 1, 6] bias")], ["x", "residual"], id="of three axes"),
        pytest.param([("(biased, residual)", "(biased, x)")], ["x", "x"], id="of one tensor twice"),
    ],
)
@pytest.mark.parametrize("outputs", [(), CARRIED], ids=["one output", "two outputs"])
def test_a_bias_is_taken_along(
    rewrite: Rewrite,
    assert_equal: AssertEqual,
    replacements: list[tuple[str, str]],
    terms: list[str],
    outputs: tuple[str, str] | tuple[()],
) -> None:
    plain = rewrite(NORM, *WITH_BIAS, *replacements, *([outputs] if outputs else []))
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    assert (report.count, report.near_misses, list(node.input[:2])) == (1, (), terms)
    assert list(node.output) == (["y", "total"] if outputs else ["y", ""])
    assert weights_of(fused)[node.input[2]].tolist() == NUMBERS
    assert_equal(plain, fused)


@pytest.mark.parametrize(
    ("replacements", "left"),
    [
        pytest.param(
            [("6] y)", "6] y, float[batch, sequence, 6] z)"), ("    total", "    z = Neg (biased)\n    total")],
            ["Add", "Neg", "ResidualLayerNorm"],
            id="read elsewhere",
        ),
        pytest.param(
            [("6] y)", "6] y, float[batch, sequence, 6] biased)")], ["Add", "ResidualLayerNorm"], id="an output"
        ),
        pytest.param([("(biased, residual)", "(biased, biased)")], ["Add", "ResidualLayerNorm"], id="added twice"),
        pytest.param(
            [("float[6] bias = {0.5, -1, 2, 0.25, 4, -0.125}", "float bias = {0.5}")],
            ["Add", "ResidualLayerNorm"],
            id="one number",
        ),
        pytest.param(
            [("6] residual", "6] residual, float[6] given"), ("(x, bias)", "(x, given)")],
            ["Add", "ResidualLayerNorm"],
            id="computed",
        ),
        pytest.param(
            [("[batch, sequence, 6]", "[batch, 6, 6]"), ("float[6] bias", "float[6, 1] bias")],
            ["Add", "ResidualLayerNorm"],
            id="one number per place",
        ),
        pytest.param([("= Add (x, bias)", "= Mul (x, bias)")], ["Mul", "ResidualLayerNorm"], id="a factor"),
    ],
)
def test_what_is_no_bias_or_needed_elsewhere_stays(
    rewrite: Rewrite, assert_equal: AssertEqual, replacements: list[tuple[str, str]], left: list[str]
) -> None:
    plain = rewrite(NORM, *WITH_BIAS, *replacements)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert sorted(node.op_type for node in fused.graph.node) == left
    (norm,) = (node for node in fused.graph.node if node.op_type == "ResidualLayerNorm")
    assert not weights_of(fused)[norm.input[2]].any()
    assert_equal(plain, fused)


@pytest.mark.parametrize("first", ["biased", "other"])
def test_of_two_biases_one_is_taken(rewrite: Rewrite, assert_equal: AssertEqual, first: str) -> None:
    second = {"biased": "other", "other": "biased"}[first]
    sums = ("(biased, residual)", f"({first}, {second})"), ("    total", "    other = Add (beta, residual)\n    total")
    plain = rewrite(NORM, *WITH_BIAS, *sums)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert sorted(node.op_type for node in fused.graph.node) == ["Add", "ResidualLayerNorm"]
    norm = fused.graph.node[-1]
    beta = [0.5, 0, -1, 0.25, 3, -0.125]
    assert list(norm.input[:2]) == (["x", "other"] if first == "biased" else ["residual", "biased"])
    assert weights_of(fused)[norm.input[2]].tolist() == (NUMBERS if first == "biased" else beta)
    assert_equal(plain, fused)


@pytest.mark.parametrize("spelled", [False, True], ids=["op", "spelled"])
def test_half_precision_is_fused_with_its_weights_in_float32(
    rewrite: Rewrite, run: Callable[..., Feeds], make_feeds: Callable[..., Feeds], spelled: bool
) -> None:
    names = ["bias", "gamma", "beta", *(["two", "epsilon"] if spelled else [])]
    shapes = {name: "" if name in ("two", "epsilon") else "[6]" for name in names}
    plain = rewrite(
        NORM,
        ("float[batch", "float16[batch"),
        *(SIMPLE if spelled else ()),
        *((old.replace("<float[6] gamma", "float[6] gamma"), new.removeprefix("<")) for old, new in WITH_BIAS),
        *((f"float{shapes[name]} {name} =", f"float{shapes[name]} wide_{name} =") for name in names),
        ("    biased", "".join(f"    {name} = Cast <to: int = 10> (wide_{name})\n" for name in names) + "    biased"),
    )
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    weights = weights_of(fused)
    assert (report.count, report.near_misses) == (1, ())
    assert [weights[name].dtype for name in node.input[2:]] == [np.float32] * 3
    assert weights[node.input[2]].tolist() == NUMBERS
    feeds = make_feeds(plain)
    np.testing.assert_allclose(run(fused, feeds)["y"], run(plain, feeds)["y"], rtol=0, atol=0.02)


def test_real_models_fuse_as_often_as_promised(traced: Traced, assert_equal: AssertEqual) -> None:
    report = traced.reports["fuse_residual_layer_norm"]
    fused = [node for node in traced.fused.graph.node if node.op_type == "ResidualLayerNorm"]
    left = [node for node in traced.fused.graph.node if node.op_type == "LayerNormalization"]
    assert report.count == len(fused) == traced.expected["fuse_residual_layer_norm"]
    assert report.count == (3 if traced.config.add_cross_attention else 2) * traced.config.num_hidden_layers + 1
    assert len(left) == len(report.near_misses)
    # Each attention and feed-forward ends in a matrix product with a bias; the sum of embeddings has none.
    weights = weights_of(traced.fused)
    assert [bool(weights[node.input[2]].any()) for node in fused] == [False, *[True] * (report.count - 1)]
    # The embeddings' sum and the last one are dropped; in between, a pre-norm encoder carries the sum on.
    carried = [bool(node.output[1]) for node in fused]
    assert carried == [False, *["prelayernorm" in traced.name] * (report.count - 2), False]
    assert {node.attribute[0].f for node in fused} == {np.float32(1e-12)}
    assert_equal(traced.plain, traced.fused)


def test_the_norms_that_stay_are_those_without_a_sum(traced: Traced) -> None:
    reasons = [miss.reason for miss in traced.reports["fuse_residual_layer_norm"].near_misses]
    first_block = ["its input is no sum: it comes from LayerNormalization"] if "prelayernorm" in traced.name else []
    width = traced.plain.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    head = ["its input is no sum: it comes from Gelu"] if width == traced.config.vocab_size else []
    assert reasons == head + first_block, "the last first"
