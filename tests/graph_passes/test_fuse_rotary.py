"""Which graphs become ``InterleavedRotary``, which do not and why, and that neither changes a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from onnx import ModelProto

from graph_passes import fuse_rotary, pipeline
from graph_passes.graph_pass import PassReport

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Rewrite = Callable[..., ModelProto]
AssertEqual = Callable[[ModelProto, ModelProto], None]

# As the exporter writes it. H = 3, D = 8.
ROTARY = """
<ir_version: 10, opset_import: ["" : 20]>
rotary (
    float[batch, 3, sequence, 8] x, float[1, sequence, 4] cos, float[1, sequence, 4] sin
) => (float[batch, 3, sequence, 8] y)
<
    int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4},
    int64[1] seven = {7}, int64[1] last = {-1}, int64[1] end = {9223372036854775807}, int64[5] split = {0, 0, 0, 2, 4}
>
{
    c = Unsqueeze (cos, one)
    s = Unsqueeze (sin, one)
    even = Slice (x, zero, end, three, two)
    odd = Slice (x, one, end, three, two)
    even_cos = Mul (even, c)
    odd_sin = Mul (odd, s)
    odd_cos = Mul (odd, c)
    even_sin = Mul (even, s)
    first = Sub (even_cos, odd_sin)
    second = Add (odd_cos, even_sin)
    first_of_pair = Unsqueeze (first, last)
    second_of_pair = Unsqueeze (second, last)
    pairs = Concat <axis: int = -1> (first_of_pair, second_of_pair)
    shape = Shape (x)
    y = Reshape (pairs, shape)
}
"""


def fuse(model: ModelProto) -> tuple[ModelProto, PassReport]:
    fused, reports = pipeline.fuse(model)
    return fused, next(report for report in reports if report.name == "fuse_rotary")


def test_it_becomes_one_node(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(ROTARY)
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    assert (node.domain, node.op_type, node.input, node.output) == (
        "rotary_press",
        "InterleavedRotary",
        ["x", "cos", "sin"],
        ["y"],
    )
    assert (report.count, report.near_misses) == (1, ())
    assert report.max_abs_difference is not None
    assert 0 <= report.max_abs_difference <= 2e-6
    assert not fused.graph.initializer
    assert_equal(plain, fused)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("Mul (even, c)", "Mul (c, even)", id="first product commuted"),
        pytest.param("Mul (odd, s)", "Mul (s, odd)", id="second product commuted"),
        pytest.param("Mul (odd, c)", "Mul (c, odd)", id="third product commuted"),
        pytest.param("Mul (even, s)", "Mul (s, even)", id="fourth product commuted"),
        pytest.param("Add (odd_cos, even_sin)", "Add (even_sin, odd_cos)", id="sum commuted"),
        pytest.param("end, three, two", "end, last, two", id="last axis as -1"),
        pytest.param("Unsqueeze (first, last)", "Unsqueeze (first, four)", id="new axis as 4"),
        pytest.param("<axis: int = -1>", "<axis: int = 4>", id="joined axis as 4"),
        pytest.param("[1, sequence, 4]", "[batch, sequence, 4]", id="own angles per row"),
    ],
)
def test_it_may_be_written_in_another_way(rewrite: Rewrite, assert_equal: AssertEqual, old: str, new: str) -> None:
    plain = rewrite(ROTARY, (old, new))
    fused, report = fuse(plain)
    assert (report.count, [node.op_type for node in fused.graph.node]) == (1, ["InterleavedRotary"])
    assert_equal(plain, fused)


HALF_SPLIT = (
    ("Slice (x, zero, end, three, two)", "Slice (x, zero, four, three, one)"),
    ("Slice (x, one, end, three, two)", "Slice (x, four, end, three, one)"),
)
ALONG_HEADS = (("[batch, 3, sequence, 8]", "[batch, 8, sequence, 4]"), ("end, three, two", "end, one, two"))
SPLIT_RESULT = (
    ("=> (float[batch, 3, sequence, 8] y)", "=> (float[batch, 3, sequence, 2, 4] y)"),
    ("Reshape (pairs, shape)", "Reshape (pairs, split)"),
)
SECOND_X = (
    ("float[1, sequence, 4] sin", "float[1, sequence, 4] sin, float[batch, 3, sequence, 8] other"),
    ("Slice (x, one", "Slice (other, one"),
)


@pytest.mark.parametrize(
    ("replacements", "reason"),
    [
        pytest.param(
            (("even = Slice (x, zero", "even = Slice (x, one"), ("odd = Slice (x, one", "odd = Slice (x, zero")),
            "even and odd elements must enter as 0, 1, 1, 0; got [1, 0, 1, 0]",
            id="slices swapped",
        ),
        pytest.param((("odd = Slice (x, one", "odd = Slice (x, zero"),), "got [0, 0, 0, 0]", id="no odd elements"),
        pytest.param(
            (("first = Sub", "first = Add"),), "a difference and a sum, in this order; got Add, Add", id="no minus"
        ),
        pytest.param((("second = Add", "second = Sub"),), "got Sub, Sub", id="two minuses"),
        pytest.param(
            (("Sub (even_cos, odd_sin)", "Sub (odd_sin, even_cos)"),), "got [1, 0, 1, 0]", id="difference reversed"
        ),
        pytest.param(
            (("(first_of_pair, second_of_pair)", "(second_of_pair, first_of_pair)"),),
            "got Add, Sub",
            id="pair reversed",
        ),
        pytest.param(HALF_SPLIT, "must take every second element; got step 1 (half-split has step 1)", id="half-split"),
        pytest.param(ALONG_HEADS, "the slices must be on the last axis; got axis 1", id="heads instead of features"),
        pytest.param(
            (("even_cos = Mul (even, c)", "even_cos = Mul (even, s)"),),
            "both elements of a pair must turn by the same angle",
            id="sin for one cos",
        ),
        pytest.param(
            (("odd_cos = Mul (odd, c)", "odd_cos = Mul (odd, s)"),),
            "both elements of a pair must turn by the same angle",
            id="sin for the other cos",
        ),
        pytest.param((("Unsqueeze (sin, one)", "Unsqueeze (cos, one)"),), "the same angle", id="cos is sin"),
        pytest.param(SECOND_X, "the four products must read one tensor", id="two tensors"),
        pytest.param(
            (("[1, sequence, 4]", "[1, 1, 4]"),), "the angles must be (P, S, D/2) for x", id="one angle for all"
        ),
        pytest.param((("[1, sequence, 4]", "[1, sequence, 1]"),), "got (1, 'sequence', 1)", id="one angle per token"),
        pytest.param(
            (("[1, sequence, 4] sin", "[batch, sequence, 4] sin"),),
            "shared by the batch or one per row",
            id="sin per row",
        ),
        pytest.param(
            (("Unsqueeze (cos, one)", "Unsqueeze (cos, zero)"),), "over the heads, axis 1; got [0]", id="angle axis"
        ),
        pytest.param(
            (
                ("Unsqueeze (first, last)", "Unsqueeze (first, three)"),
                ("Unsqueeze (second, last)", "Unsqueeze (second, three)"),
            ),
            "must be joined on a new last axis; got axis [3]",
            id="joined as halves",
        ),
        pytest.param(SPLIT_RESULT, "the result must have the shape of x", id="another shape"),
        pytest.param((("even_cos = Mul", "even_cos = Div"),), "must be a product of a slice", id="quotient"),
        pytest.param((("Mul (even, c)", "Mul (even, even)"),), "a slice and an unsqueezed angle", id="square"),
        pytest.param(
            (("x, zero, end, three, two", "x, zero, four, three"), ("x, one, end, three, two", "x, four, end, three")),
            "a slice must have constant start, end, axis and step",
            id="slices without a step",
        ),
        pytest.param(
            (("x, zero, end,", "x, zero, seven,"),),
            "must start at 0 or 1 and reach the end; got 0:7 of 8",
            id="slice that ends early",
        ),
    ],
)
def test_what_is_nearly_a_rotation_is_left_alone(
    rewrite: Rewrite, assert_equal: AssertEqual, replacements: tuple[tuple[str, str], ...], reason: str
) -> None:
    plain = rewrite(ROTARY, *replacements)
    fused, report = fuse(plain)
    assert report.count == 0
    assert len(report.near_misses) == 1
    assert reason in report.near_misses[0].reason
    assert report.near_misses[0].node
    assert_equal(plain, fused)


def test_the_angles_of_some_rows_are_not_those_of_the_batch(rewrite: Rewrite) -> None:
    """Such a graph only runs on two rows, so there is nothing to compare."""
    _, report = fuse(rewrite(ROTARY, ("[1, sequence, 4]", "[2, sequence, 4]")))
    assert report.count == 0
    assert "shared by the batch or one per row; got (2, 'sequence', 4)" in report.near_misses[0].reason


def test_the_head_size_must_be_known(rewrite: Rewrite) -> None:
    """With the shapes in between given: inference alone cannot know the length of such a slice."""
    halves = ("even", "odd", "even_cos", "odd_sin", "odd_cos", "even_sin", "first", "second")
    plain = rewrite(
        ROTARY,
        ("[batch, 3, sequence, 8]", "[batch, 3, sequence, width]"),
        ("[1, sequence, 4]", "[1, sequence, half]"),
        (
            "int64[1] zero = {0}",
            ", ".join(["int64[1] zero = {0}", *(f"float[batch, 3, sequence, half] {n}" for n in halves)]),
        ),
    )
    fused, report = fuse(plain)
    assert report.count == 0
    assert "of width" in report.near_misses[0].reason
    assert len(fused.graph.node) == len(plain.graph.node)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("<axis: int = -1>", "<axis: int = 3>", id="other axis"),
        pytest.param("first = Sub (even_cos, odd_sin)", "first = Neg (even_cos)", id="neither sum nor difference"),
        pytest.param("y = Reshape (pairs, shape)", "y = Expand (x, shape)", id="no reshape"),
    ],
)
def test_what_does_not_look_like_a_rotation_is_not_mentioned(rewrite: Rewrite, old: str, new: str) -> None:
    assert fuse(rewrite(ROTARY, (old, new)))[1] == PassReport("fuse_rotary", 0, (), 0.0)


@pytest.mark.parametrize("difference", [3e-6, float("nan"), float("inf")])
def test_what_measures_different_is_left_alone(
    rewrite: Rewrite, assert_equal: AssertEqual, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(fuse_rotary, "largest_difference", lambda *args, **kwargs: difference)
    plain = rewrite(ROTARY)
    fused, report = fuse(plain)
    assert report.count == 0
    assert (
        report.near_misses[0].reason == f"looks like InterleavedRotary but differs by {difference:.3g} on probe inputs"
    )
    assert_equal(plain, fused)


@pytest.mark.parametrize("name", ["even", "odd_sin", "first", "second_of_pair", "pairs"])
def test_a_tensor_that_something_else_reads_stays(rewrite: Rewrite, assert_equal: AssertEqual, name: str) -> None:
    plain = rewrite(
        ROTARY,
        ("8] y)", "8] y, float extra)"),
        ("y = Reshape", f"extra = ReduceMax <keepdims: int = 0> ({name})\n y = Reshape"),
    )
    fused, report = fuse(plain)
    operators = Counter(node.op_type for node in fused.graph.node)
    assert (report.count, operators["InterleavedRotary"], operators["Reshape"]) == (1, 1, 0)
    assert_equal(plain, fused)


@pytest.mark.parametrize("name", ["even_cos", "second"])
def test_an_intermediate_tensor_may_be_an_output(rewrite: Rewrite, assert_equal: AssertEqual, name: str) -> None:
    plain = rewrite(ROTARY, ("8] y)", f"8] y, float[batch, 3, sequence, 4] {name})"))
    fused, report = fuse(plain)
    assert report.count == 1
    assert_equal(plain, fused)


@pytest.mark.parametrize("outputs", ["y", "y, z", "z, y", "z"])
def test_outputs_keep_their_names(rewrite: Rewrite, assert_equal: AssertEqual, outputs: str) -> None:
    """The rotated tensor may be an output, be read further, or both."""
    shaped = ", ".join(f"float[batch, 3, sequence, 8] {name}" for name in outputs.split(", "))
    plain = rewrite(
        ROTARY, ("float[batch, 3, sequence, 8] y", shaped), ("(pairs, shape)", "(pairs, shape)\n z = Neg (y)")
    )
    fused, report = fuse(plain)
    assert report.count == 1
    assert_equal(plain, fused)


def test_a_new_name_is_one_that_nothing_else_has(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(
        ROTARY,
        ("8] y)", "8] z, float[batch, 3, sequence, 8] y_rotary)"),
        ("(pairs, shape)", "(pairs, shape)\n z = Neg (y)\n y_rotary = Abs (x)"),
    )
    fused, report = fuse(plain)
    assert report.count == 1
    assert_equal(plain, fused)


def test_one_that_feeds_another_fuses_as_well(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    """Both turn by the same angles, as query and key do; the second by more."""
    body = ROTARY[ROTARY.index("    even =") : ROTARY.index("    y =")]
    again = body.replace("x,", "turned,").replace("(x)", "(turned)")
    for name in ("even", "odd", "first", "second", "pairs", "shape"):
        again = again.replace(name, f"again_{name}")
    plain = rewrite(
        ROTARY,
        (
            "y = Reshape (pairs, shape)",
            f"turned = Reshape (pairs, shape)\n{again} y = Reshape (again_pairs, again_shape)",
        ),
    )
    fused, report = fuse(plain)
    assert (report.count, [node.op_type for node in fused.graph.node]) == (2, ["InterleavedRotary"] * 2)
    assert_equal(plain, fused)


def test_a_second_run_changes_nothing(rewrite: Rewrite) -> None:
    fused, _ = fuse(rewrite(ROTARY))
    again, (report,) = pipeline.run_passes(fused, [fuse_rotary.PASS])
    assert report == PassReport("fuse_rotary", 0, (), 0.0)
    assert again.graph == fused.graph


def test_real_models_fuse_as_often_as_promised(traced: Traced, assert_equal: AssertEqual) -> None:
    report = traced.reports["fuse_rotary"]
    expected = traced.expected["fuse_rotary"]
    fused = [node for node in traced.fused.graph.node if node.op_type == "InterleavedRotary"]
    assert report.count == len(fused) == expected
    assert report.near_misses == ()
    assert (
        expected
        == traced.config.num_hidden_layers * {True: 3, False: 2, None: 0}[getattr(traced.config, "rotary_value", None)]
    )
    assert len({(node.input[1], node.input[2]) for node in fused}) <= 1, "all share their angles"
    assert_equal(traced.plain, traced.fused)
