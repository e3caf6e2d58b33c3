"""Which graphs become ``ScaledDotProductAttention``, which do not and why, and that neither changes a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from graph_passes import fuse_attention
from graph_passes.graph_pass import PassReport
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Rewrite = Callable[..., ModelProto]
Feeds = dict[str, NDArray[Any]]
Replacement = tuple[str, str]
AssertSame = Callable[..., None]

# Cross-attention without a mask: H = 3, D = 6.
ATTENTION = """
<ir_version: 10, opset_import: ["" : 20]>
attention (
    float[batch, 3, sequence, 6] q, float[batch, 3, encoder_sequence, 6] k, float[batch, 3, encoder_sequence, 6] v
) => (float[batch, 3, sequence, 6] y)
<
    float scale = {0.40824829}, float size = {2.4494897}, float root = {0.63894310}, float less = {0.3},
    float nothing = {0}, float one = {1}, float two = {2}, float large = {-1e4}, float huge = {-1e9},
    float lowest = {-3.4028234663852886e38}, float factor = {0.125},
    float[6] vector = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, float[1, 3, 1, 1] by_head = {0.1, 0.2, 0.4},
    int64 first = {0}, int64 step = {1}, int64[1] last = {-1}, int64[1] zeroth = {0}, int64[1] second = {1},
    int64[1] third = {2}, int64[2] middle = {1, 2},
    int64[1] features = {6}, int64[2] heads_and_features = {3, 6}
>
{
    infinity = Constant <value: tensor = float {-inf}> ()
    columns = Transpose <perm: ints = [0, 1, 3, 2]> (k)
    scaled = Mul (q, scale)
    product = MatMul (scaled, columns)
    weights = Softmax <axis: int = -1> (product)
    y = MatMul (weights, v)
}
"""
SCALED = "scaled = Mul (q, scale)"
COLUMNS = "columns = Transpose <perm: ints = [0, 1, 3, 2]> (k)"
Y = "float[batch, 3, sequence, 6] y"
Q = "float[batch, 3, sequence, 6] q"
K = "float[batch, 3, encoder_sequence, 6] k"
V = "float[batch, 3, encoder_sequence, 6] v"
SELF = ("encoder_sequence", "sequence")
UNSCALED = ((SCALED, ""), ("(scaled, columns)", "(q, columns)"))
GUARD = (
    ("weights =", "unguarded ="),
    ("    y =", "    is_nan = IsNaN (unguarded)\n    weights = Where (is_nan, nothing, unguarded)\n    y ="),
)


def masked(nodes: str, *inputs: str) -> tuple[Replacement, ...]:
    """The softmax reads ``scores``, which these nodes make of ``product`` and of more inputs."""
    return (
        (V, ", ".join([V, *inputs])),
        ("(product)", "(scores)"),
        ("    weights =", f"{nodes}\n    weights ="),
    )


def fuse(model: ModelProto) -> tuple[ModelProto, PassReport]:
    fused, reports = on_models.fuse(model)
    return fused, next(report for report in reports if report.name == "fuse_attention")


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def attentions(model: ModelProto) -> list[dict[str, Any]]:
    """Inputs and attributes of every such node."""
    return [
        {"inputs": list(node.input)} | {attribute.name: attribute.f or attribute.i for attribute in node.attribute}
        for node in model.graph.node
        if node.op_type == "ScaledDotProductAttention"
    ]


@pytest.fixture
def assert_same(run: Callable[..., Feeds], make_feeds: Callable[..., Feeds]) -> AssertSame:
    """``assert_same(before, after, hidden)``: same outputs at sizes that no pass observes.

    Where ``hidden`` is given, once more with the first row of ``attention_mask`` filled with it.
    """
    sizes = (
        {"batch": 2, "sequence": 6, "encoder_sequence": 9, "past": 3},
        {"batch": 1, "sequence": 1, "encoder_sequence": 1, "past": 1},
        {"batch": 4, "sequence": 16, "encoder_sequence": 2, "past": 8},
    )

    def check(before: ModelProto, after: ModelProto, *hidden: float) -> None:
        for seed, known in enumerate(sizes):
            for value in (None, *hidden):
                feeds = make_feeds(before, seed=seed, scale=2.0, **known)
                if value is not None:
                    feeds["attention_mask"][:1] = value
                expected, found = run(before, feeds), run(after, feeds)
                assert list(found) == list(expected)
                for name, array in expected.items():
                    np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-5, err_msg=f"{name} {value}")

    return check


def test_it_becomes_one_node(rewrite: Rewrite, assert_same: AssertSame) -> None:
    plain = rewrite(ATTENTION)
    fused, report = fuse(plain)
    (node,) = fused.graph.node
    assert (node.domain, node.op_type, list(node.output)) == ("rotary_press", "ScaledDotProductAttention", ["y"])
    assert list(node.input[:3]) == ["q", "k", "v"]
    (mask,) = fused.graph.initializer
    assert (node.input[3], list(mask.dims)) == (mask.name, [1, 1, 1, 1])
    assert (report.count, report.near_misses) == (1, ())
    assert report.max_abs_difference is not None
    assert 0 <= report.max_abs_difference <= 2e-5
    assert_same(plain, fused)


@pytest.mark.parametrize(
    ("replacements", "scale"),
    [
        pytest.param([("Mul (q, scale)", "Mul (scale, q)")], 6**-0.5, id="of queries, commuted"),
        pytest.param([("Mul (q, scale)", "Div (q, size)")], 6**-0.5, id="queries divided"),
        pytest.param(
            [(SCALED, "scaled_columns = Mul (columns, scale)"), ("(scaled, columns)", "(q, scaled_columns)")],
            6**-0.5,
            id="of columns",
        ),
        pytest.param(
            [(SCALED, "keys = Mul (k, scale)"), ("(scaled,", "(q,"), ("2]> (k)", "2]> (keys)")], 6**-0.5, id="of keys"
        ),
        pytest.param([*UNSCALED, *masked("scores = Mul (product, scale)")], 6**-0.5, id="of scores"),
        pytest.param([*UNSCALED, *masked("scores = Mul (scale, product)")], 6**-0.5, id="of scores, commuted"),
        pytest.param([*UNSCALED, *masked("scores = Div (product, size)")], 6**-0.5, id="scores divided"),
        pytest.param(
            [
                (SCALED, "scaled = Mul (q, root)"),
                (
                    "product = MatMul (scaled, columns)",
                    "roots = Mul (columns, root)\n    product = MatMul (scaled, roots)",
                ),
            ],
            6**-0.5,
            id="its root of both",
        ),
        pytest.param(
            [
                (SCALED, "widest = Sqrt (size)\n    scaled = Div (q, widest)"),
                (
                    "product = MatMul (scaled, columns)",
                    "roots = Div (columns, widest)\n    product = MatMul (scaled, roots)",
                ),
            ],
            6**-0.5,
            id="both divided by its root",
        ),
        pytest.param([*masked("scores = Mul (product, two)")], 2 * 6**-0.5, id="of queries and scores"),
        pytest.param(UNSCALED, 1.0, id="none"),
        pytest.param([("(q, scale)", "(q, less)")], 0.3, id="another"),
        pytest.param([("(q, scale)", "(q, less)"), ("{0.3}", "{-0.3}")], -0.3, id="negative"),
        pytest.param([("float scale", "float[1, 1, 1, 1] scale")], 6**-0.5, id="of four axes"),
    ],
)
def test_the_scale_may_stand_anywhere(
    rewrite: Rewrite, assert_same: AssertSame, replacements: list[Replacement], scale: float
) -> None:
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    (found,) = attentions(fused)
    assert (len(fused.graph.node), found["inputs"][:3]) == (1, ["q", "k", "v"])
    assert found["scale"] == pytest.approx(scale, rel=1e-6)
    assert_same(plain, fused)


@pytest.mark.parametrize("size", [1, 64])
def test_a_scale_that_is_meant_is_exact(rewrite: Rewrite, size: int) -> None:
    """What was measured of float32 numbers is off in the seventh digit."""
    fused, _ = fuse(rewrite(ATTENTION, (", 6]", f", {size}]"), ("{0.40824829}", f"{{{size**-0.5}}}")))
    assert [node["scale"] for node in attentions(fused)] == [size**-0.5]


SPLIT_HEADS = (
    (Q, Q.replace("3, sequence", "sequence, 3")),
    (K, K.replace("3, encoder_sequence", "encoder_sequence, 3")),
    (V, V.replace("3, encoder_sequence", "encoder_sequence, 3")),
    (
        f"    {COLUMNS}",
        """    heads = Transpose <perm: ints = [0, 2, 1, 3]> (q)
    values = Transpose <perm: ints = [0, 2, 1, 3]> (v)
    columns = Transpose <perm: ints = [0, 2, 3, 1]> (k)""",
    ),
    ("(q, scale)", "(heads, scale)"),
    ("(weights, v)", "(weights, values)"),
)


@pytest.mark.parametrize(
    ("replacements", "others"),
    [
        pytest.param(SPLIT_HEADS, {"Transpose": 3}, id="places before heads, keys by one transposition"),
        pytest.param(
            (
                *SPLIT_HEADS[:3],
                SPLIT_HEADS[3],
                *SPLIT_HEADS[4:],
                ("[0, 2, 3, 1]> (k)", "[0, 2, 1, 3]> (k)"),
                ("columns = T", "rows = T"),
                (
                    SCALED.replace("q,", "heads,"),
                    f"columns = Transpose <perm: ints = [0, 1, 3, 2]> (rows)\n    {SCALED.replace('q,', 'heads,')}",
                ),
            ),
            {"Transpose": 3},
            id="places before heads, keys by two transpositions",
        ),
        pytest.param(
            (
                (
                    COLUMNS,
                    """length = Shape <start: int = 2, end: int = 3> (k)
    flat_rows = Concat <axis: int = 0> (last, length, features)
    flat = Reshape (k, flat_rows)
    flat_columns = Transpose <perm: ints = [0, 2, 1]> (flat)
    flat_heads = Concat <axis: int = 0> (last, heads_and_features, length)
    columns = Reshape (flat_columns, flat_heads)""",
                ),
            ),
            {},
            id="keys transposed flat",
        ),
        pytest.param(
            ((K, "float[batch, 3, 6, encoder_sequence] k"), (COLUMNS, ""), ("(scaled, columns)", "(scaled, k)")),
            {"Transpose": 1},
            id="columns flow in",
        ),
        pytest.param((SELF,), {}, id="self-attention"),
        pytest.param(
            (
                (K, K.replace("encoder_", "") + ", float[batch, 3, past, 6] past_k, float[batch, 3, past, 6] past_v"),
                (V, V.replace("encoder_", "")),
                (
                    COLUMNS,
                    """all_k = Concat <axis: int = 2> (past_k, k)
    all_v = Concat <axis: int = -2> (past_v, v)
    columns = Transpose <perm: ints = [0, 1, 3, 2]> (all_k)""",
                ),
                ("(weights, v)", "(weights, all_v)"),
            ),
            {"Concat": 2},
            id="cached keys",
        ),
        pytest.param(
            (
                (K, K.replace("encoder_", "") + ", float[batch, 3, past, 6] past_k, float[batch, 3, past, 6] past_v"),
                (V, V.replace("encoder_", "")),
                (
                    COLUMNS,
                    """all_k = Concat <axis: int = 2> (past_k, k)
    all_v = Concat <axis: int = 2> (past_v, v)
    columns = Transpose <perm: ints = [0, 1, 3, 2]> (all_k)""",
                ),
                ("(weights, v)", "(weights, all_v)"),
                (Y, f"{Y}, float[batch, 3, all, 6] all_k, float[batch, 3, all, 6] all_v"),
            ),
            {"Concat": 2},
            id="cached keys that are an output",
        ),
        pytest.param((("axis: int = -1", "axis: int = 3"),), {}, id="last axis as 3"),
        pytest.param(
            (("weights =", "certain ="), ("    y =", "    weights = Dropout (certain)\n    y =")),
            {},
            id="dropout that does nothing",
        ),
        pytest.param((("batch, 3", "2, 3"),), {}, id="fixed batch"),
        pytest.param(((", 6]", ", 1]"),), {}, id="one feature"),
        pytest.param((("batch, 3", "batch, 1"),), {}, id="one head"),
    ],
)
def test_operands_may_come_in_any_layout(
    rewrite: Rewrite, assert_same: AssertSame, replacements: tuple[Replacement, ...], others: dict[str, int]
) -> None:
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert operators(fused) == {"ScaledDotProductAttention": 1} | others
    assert_same(plain, fused)


@pytest.mark.parametrize("reader", ["k", "columns", "scaled"])
def test_an_operand_may_be_read_elsewhere(rewrite: Rewrite, assert_same: AssertSame, reader: str) -> None:
    plain = rewrite(
        ATTENTION,
        (Y, f"{Y}, float more"),
        ("    y =", f"    more = ReduceMax <keepdims: int = 0> ({reader})\n    y ="),
    )
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert_same(plain, fused)


B11K = "[batch, 1, 1, encoder_sequence] attention_mask"
LENGTH = """
    s = Shape <start: int = 2, end: int = 3> (q)
    n = Shape <start: int = 2, end: int = 3> (k)
    rows = Squeeze (s, zeroth)
    number = Squeeze (n, zeroth)
    row = Range (first, rows, step)
    column = Range (first, number, step)
    row_column = Unsqueeze (row, second)
    allowed = LessOrEqual (column, row_column)"""
INF = float("-inf")
LOWEST = float(np.finfo(np.float32).min)
# What each kind writes between product and softmax, the mask that flows in, and a mask that hides everything.
MASKS: dict[str, tuple[tuple[Replacement, ...], tuple[float, ...]]] = {
    "added": (masked("scores = Add (product, attention_mask)", f"float{B11K}"), (INF, LOWEST, -1e4)),
    "added, commuted": (masked("scores = Add (attention_mask, product)", f"float{B11K}"), (INF, LOWEST)),
    "added, less": (
        masked("scores = Sub (product, attention_mask)", f"float{B11K}"),
        (-LOWEST,),
    ),
    "added, per place": (
        masked("scores = Add (product, attention_mask)", "float[batch, 1, sequence, encoder_sequence] attention_mask"),
        (INF, LOWEST),
    ),
    "added, per head": (
        masked("scores = Add (product, attention_mask)", "float[1, 3, sequence, encoder_sequence] attention_mask"),
        (INF, LOWEST),
    ),
    "added, per row of heads": (
        masked("scores = Add (product, attention_mask)", "float[batch, 3, 1, 1] attention_mask"),
        (INF, LOWEST),
    ),
    "added, all": (
        masked("scores = Add (product, attention_mask)", "float[batch, 3, sequence, encoder_sequence] attention_mask"),
        (INF, LOWEST),
    ),
    "added, two axes": (
        masked("scores = Add (product, attention_mask)", "float[sequence, encoder_sequence] attention_mask"),
        (INF, LOWEST),
    ),
    "added, three axes": (
        masked("scores = Add (product, attention_mask)", "float[3, sequence, encoder_sequence] attention_mask"),
        (INF, LOWEST),
    ),
    "added twice": (
        masked(
            "some = Add (product, attention_mask)\n scores = Add (some, more)",
            f"float{B11K}",
            "float[1, 3, sequence, encoder_sequence] more",
        ),
        (INF, LOWEST),
    ),
    "added before the scale": (
        (*UNSCALED, *masked("some = Add (product, attention_mask)\n scores = Mul (some, scale)", f"float{B11K}")),
        (INF, LOWEST),
    ),
    "chosen, or -inf": (masked("scores = Where (attention_mask, product, infinity)", f"bool{B11K}"), (0,)),
    "chosen, or the lowest": (masked("scores = Where (attention_mask, product, lowest)", f"bool{B11K}"), (0,)),
    "-inf where chosen": (masked("scores = Where (attention_mask, infinity, product)", f"bool{B11K}"), (1,)),
    "the lowest where chosen": (masked("scores = Where (attention_mask, lowest, product)", f"bool{B11K}"), (1,)),
    "-inf where not chosen": (
        masked("hides = Not (attention_mask)\n scores = Where (hides, infinity, product)", f"bool{B11K}"),
        (0,),
    ),
    "chosen by two": (
        masked(
            "both = And (attention_mask, more)\n scores = Where (both, product, infinity)",
            f"bool{B11K}",
            "bool[1, 1, sequence, encoder_sequence] more",
        ),
        (0,),
    ),
    "chosen twice": (
        masked(
            "some = Where (attention_mask, product, lowest)\n scores = Where (more, some, lowest)",
            f"bool{B11K}",
            "bool[1, 1, sequence, encoder_sequence] more",
        ),
        (0,),
    ),
    "zero or -inf added": (
        masked("mask = Where (attention_mask, nothing, infinity)\n scores = Add (product, mask)", f"bool{B11K}"),
        (0,),
    ),
    "from whole numbers, times -1e4": (
        masked(
            """wide = Cast <to: int = 1> (attention_mask)
            hides = Sub (one, wide)
            mask = Mul (hides, large)
            scores = Add (product, mask)""",
            f"int64{B11K}",
        ),
        (0,),
    ),
    "from whole numbers, times the lowest": (
        masked(
            """wide = Cast <to: int = 1> (attention_mask)
            row = Unsqueeze (wide, middle)
            hides = Sub (one, row)
            mask = Mul (hides, lowest)
            scores = Add (product, mask)""",
            "int64[batch, encoder_sequence] attention_mask",
        ),
        (0,),
    ),
    "causal": (masked(f"{LENGTH}\n scores = Where (allowed, product, infinity)"), ()),
    "causal, added": (
        masked(f"{LENGTH}\n mask = Where (allowed, nothing, lowest)\n scores = Add (product, mask)"),
        (),
    ),
    "causal and padding": (
        masked(
            f"""{LENGTH}
            both = And (allowed, attention_mask)
            scores = Where (both, product, lowest)""",
            f"bool{B11K}",
        ),
        (0,),
    ),
    "relative positions": (
        masked(
            """near = Einsum <equation: string = "bhsd,skd->bhsk"> (scaled, distances)
            some = Add (product, near)
            scores = Add (some, attention_mask)""",
            "float[sequence, encoder_sequence, 6] distances",
            f"float{B11K}",
        ),
        (INF, LOWEST),
    ),
    "relative positions, scaled together": (
        (
            *UNSCALED,
            *masked(
                """near = Einsum <equation: string = "bhsd,skd->bhsk"> (q, distances)
                some = Add (product, near)
                near_scores = Div (some, size)
                scores = Add (near_scores, attention_mask)""",
                "float[sequence, encoder_sequence, 6] distances",
                f"float{B11K}",
            ),
        ),
        (INF, LOWEST),
    ),
}


@pytest.mark.parametrize("guard", [(), GUARD], ids=["bare", "guarded"])
@pytest.mark.parametrize("name", MASKS)
def test_any_mask_will_do(rewrite: Rewrite, assert_same: AssertSame, name: str, guard: tuple[Replacement, ...]) -> None:
    replacements, hidden = MASKS[name]
    plain = rewrite(ATTENTION, *replacements, *guard)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    (found,) = attentions(fused)
    assert found["scale"] == pytest.approx(1.0 if name == "relative positions" else 6**-0.5, rel=1e-6)
    assert not {"Softmax", "IsNaN"} & {node.op_type for node in fused.graph.node}
    assert_same(plain, fused, *hidden)


# What stands for a guard: zeros where a row of weights is NaN, or where the largest score of a row is -inf.
BY_LARGEST = (
    ("weights =", "unguarded ="),
    (
        "    y =",
        """    largest = ReduceMax <keepdims: int = 1> (scores, last)
    is_hidden = Equal (largest, infinity)
    weights = Where (is_hidden, nothing, unguarded)
    y =""",
    ),
)


@pytest.mark.parametrize("mask", ["added", "chosen, or -inf", "-inf where chosen", "zero or -inf added"])
@pytest.mark.parametrize(
    ("guard", "zero_masked_rows"),
    [
        pytest.param((), 0, id="bare"),
        pytest.param(GUARD, 1, id="guarded"),
        pytest.param(BY_LARGEST, 1, id="guarded by the largest"),
    ],
)
def test_rows_that_attend_to_nothing_keep_their_result(
    rewrite: Rewrite,
    run: Callable[..., Feeds],
    make_feeds: Callable[..., Feeds],
    mask: str,
    guard: tuple[Replacement, ...],
    zero_masked_rows: int,
) -> None:
    replacements, (hidden, *_) = MASKS[mask]
    plain = rewrite(ATTENTION, *replacements, *guard)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    assert [node["zero_masked_rows"] for node in attentions(fused)] == [zero_masked_rows]
    feeds = make_feeds(plain, batch=3, sequence=6)
    feeds["attention_mask"][:] = 0 if mask == "added" else 1 - hidden
    feeds["attention_mask"][1] = hidden
    expected, found = run(plain, feeds)["y"], run(fused, feeds)["y"]
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(found[1]).all() == (not zero_masked_rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_mask_that_hides_by_the_lowest_number_leaves_uniform_weights(
    rewrite: Rewrite, run: Callable[..., Feeds], make_feeds: Callable[..., Feeds]
) -> None:
    plain = rewrite(ATTENTION, *MASKS["chosen, or the lowest"][0])
    fused, _ = fuse(plain)
    feeds = make_feeds(plain)
    feeds["attention_mask"][:] = False
    uniform = np.broadcast_to(feeds["v"].mean(axis=2, keepdims=True), feeds["q"].shape)
    for model in (plain, fused):
        np.testing.assert_allclose(run(model, feeds)["y"], uniform, rtol=0, atol=1e-5)


INTERMEDIATE = "an intermediate result of it, scores or weights, is read elsewhere"
NO_PRODUCT = "its scores come from no product of queries (B, H, S, D) and keys (B, H, K, D)"
NO_SCALE = "its scores are not the product of its operands, scaled by one number, and a mask"
NO_WEIGHTS = "its weights must be the first factor of one product; there are"
SHAPES = "q must be (B, H, S, D), k and v (B, H, K, D); got"
DIFFERS = "looks like ScaledDotProductAttention but differs by"
UNTOLD = "in between may do something else for numbers or sizes that no probe tries"
SCORES_AXES = "float[batch, 3, sequence, encoder_sequence]"
ABOVE = f"bool{B11K}"


@pytest.mark.parametrize(
    ("replacements", "reason"),
    [
        pytest.param(
            ((Y, f"{Y}, {SCORES_AXES} z"), ("    y =", "    z = Neg (weights)\n    y =")),
            INTERMEDIATE,
            id="weights read elsewhere",
        ),
        pytest.param(((Y, f"{Y}, {SCORES_AXES} weights"),), INTERMEDIATE, id="weights are an output"),
        pytest.param(
            ((Y, f"{Y}, {SCORES_AXES} z"), ("    y =", "    z = Neg (product)\n    y =")),
            INTERMEDIATE,
            id="scores read elsewhere",
        ),
        pytest.param(((Y, f"{Y}, {SCORES_AXES} product"),), INTERMEDIATE, id="scores are an output"),
        pytest.param(
            (
                (V, f"{V}, {SCORES_AXES} kept"),
                ("weights =", "all ="),
                ("    y =", "    weights = Mul (all, kept)\n    y ="),
            ),
            "kept flows in as well, which is none of q, k, v and mask",
            id="weights dropped",
        ),
        pytest.param(
            (("weights =", "all ="), ("    y =", "    weights = Mul (all, less)\n    y =")),
            DIFFERS,
            id="weights scaled",
        ),
        pytest.param(
            masked("scores = Where (attention_mask, product, huge)", ABOVE), DIFFERS, id="-1e9 where not chosen"
        ),
        pytest.param(
            masked("scores = Where (attention_mask, product, large)", ABOVE), DIFFERS, id="-1e4 where not chosen"
        ),
        pytest.param(
            masked("scores = Where (attention_mask, product, nothing)", ABOVE), NO_SCALE, id="zero where not chosen"
        ),
        pytest.param(masked("scores = Clip (product, large)"), f"the Clip {UNTOLD}", id="limited"),
        pytest.param(masked("scores = Max (product, large)"), f"the Max {UNTOLD}", id="at least"),
        pytest.param(
            masked("small = Mul (product, less)\n flat = Tanh (small)\n scores = Div (flat, less)"),
            f"the Tanh {UNTOLD}",
            id="soft cap",
        ),
        pytest.param(
            masked("near = Greater (product, large)\n scores = Where (near, product, infinity)"),
            f"the Greater {UNTOLD}",
            id="chosen by the scores",
        ),
        pytest.param(masked("scores = Mul (product, attention_mask)", f"float{B11K}"), NO_SCALE, id="multiplied"),
        pytest.param(masked("scores = Mul (product, by_head)"), NO_SCALE, id="scale per head"),
        pytest.param(masked("scores = Mul (product, product)"), NO_SCALE, id="square"),
        pytest.param(
            masked("largest = ReduceMax <keepdims: int = 1> (product, last)\n scores = Sub (product, largest)"),
            NO_SCALE,
            id="less the largest",
        ),
        pytest.param(
            (
                *MASKS["added"][0],
                *GUARD,
                ("Where (is_nan, nothing, unguarded)", "Where (is_nan, one, unguarded)"),
            ),
            DIFFERS,
            id="guarded by ones",
        ),
        pytest.param(
            (
                *MASKS["chosen, or -inf"][0],
                *GUARD,
                ("Where (is_nan, nothing, unguarded)", "Where (is_nan, unguarded, nothing)"),
            ),
            DIFFERS,
            id="guarded the other way about",
        ),
        pytest.param(
            (
                (
                    "product = MatMul (scaled, columns)",
                    """batch_and_heads = Shape <start: int = 0, end: int = 2> (q)
    n = Shape <start: int = 2, end: int = 3> (k)
    s = Shape <start: int = 2, end: int = 3> (q)
    flat_q_shape = Concat <axis: int = 0> (last, s, features)
    flat_k_shape = Concat <axis: int = 0> (last, features, n)
    scores_shape = Concat <axis: int = 0> (batch_and_heads, s, n)
    flat_q = Reshape (scaled, flat_q_shape)
    flat_k = Reshape (columns, flat_k_shape)
    flat = MatMul (flat_q, flat_k)
    product = Reshape (flat, scores_shape)""",
                ),
            ),
            NO_PRODUCT,
            id="product of three axes",
        ),
        pytest.param(
            ((Y, f"{Y}, float[batch, 3, sequence, 6] z"), ("    y =", "    z = MatMul (weights, k)\n    y =")),
            f"{NO_WEIGHTS} 2",
            id="two products with the weights",
        ),
        pytest.param(
            (
                ("y = MatMul (weights, v)", "y = Identity (q)\n unused = Neg (weights)"),
                (Y, f"{Y}, {SCORES_AXES} unused"),
            ),
            f"{NO_WEIGHTS} 0",
            id="no product with the weights",
        ),
        pytest.param(
            (
                (V, "float[batch, 3, 6, sequence] v"),
                (Y, "float[batch, 3, 6, encoder_sequence] y"),
                ("(weights, v)", "(v, weights)"),
            ),
            NO_WEIGHTS,
            id="weights as second factor",
        ),
        pytest.param(
            (
                (Q, f"{SCORES_AXES} q"),
                (f"    {COLUMNS}\n", ""),
                ("product = MatMul (scaled, columns)", "product = Identity (scaled)"),
            ),
            NO_PRODUCT,
            id="scores flow in",
        ),
        pytest.param(
            ((V, V.replace(", 6]", ", 5]")), (Y, Y.replace(", 6]", ", 5]"))), SHAPES, id="values of another size"
        ),
        pytest.param(((K, K.replace("batch", "1")),), SHAPES, id="keys shared by the batch"),
        pytest.param(((K, K.replace("3", "1")), (V, V.replace("3", "1"))), SHAPES, id="keys shared by the heads"),
        pytest.param(((V, V.replace("3", "1")),), SHAPES, id="values shared by the heads"),
    ],
)
def test_what_is_nearly_attention_is_left_alone(
    rewrite: Rewrite, assert_same: AssertSame, replacements: tuple[Replacement, ...], reason: str
) -> None:
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert report.count == 0
    assert len(report.near_misses) == 1
    assert reason in report.near_misses[0].reason
    assert report.near_misses[0].node in ("weights", "all", "unguarded")
    assert operators(fused) == operators(plain)
    assert_same(plain, fused, *([0] if ABOVE in replacements[0][1] else []))


@pytest.mark.parametrize(
    ("replacements", "operand"),
    [
        pytest.param([("(q, scale)", "(q, by_head)")], 0, id="queries per head"),
        pytest.param([("(q, scale)", "(q, vector)")], 0, id="queries per feature"),
        pytest.param([("scaled = Mul (q, scale)", "scaled = Tanh (q)")], 0, id="queries, not linear"),
        pytest.param(
            [("(k)", "(sized)"), (f"    {COLUMNS[:7]}", f"    sized = Mul (k, vector)\n    {COLUMNS[:7]}")],
            1,
            id="keys per feature",
        ),
    ],
)
def test_what_is_not_scaled_by_one_number_is_an_operand(
    rewrite: Rewrite, assert_same: AssertSame, replacements: list[Replacement], operand: int
) -> None:
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    (found,) = attentions(fused)
    assert (found["inputs"][operand], found["scale"]) == (("scaled", 1.0) if not operand else ("sized", found["scale"]))
    assert_same(plain, fused)


@pytest.mark.parametrize(
    "replacements",
    [
        pytest.param([("axis: int = -1", "axis: int = 2")], id="softmax over the queries"),
        pytest.param([("axis: int = -1", "axis: int = 1")], id="softmax over the heads"),
        pytest.param([("Softmax", "LogSoftmax")], id="logarithms"),
        pytest.param(
            [(", 3, sequence", ", sequence"), (", 3, encoder", ", encoder"), ("[0, 1, 3, 2]", "[0, 2, 1]")],
            id="three axes",
        ),
        pytest.param(
            [("weights = Softmax <axis: int = -1> (product)", "weights = Identity (product)")], id="no softmax"
        ),
    ],
)
def test_what_does_not_look_like_attention_is_not_mentioned(
    rewrite: Rewrite, assert_same: AssertSame, replacements: list[Replacement]
) -> None:
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert report == PassReport("fuse_attention", 0)
    assert_same(plain, fused)


@pytest.mark.parametrize("mask", [None, "added", "chosen, or -inf"])
def test_double_precision_is_left_alone(rewrite: Rewrite, assert_same: AssertSame, mask: str | None) -> None:
    plain = rewrite(ATTENTION, *(MASKS[mask][0] if mask else ()), ("float", "double"))
    fused, report = fuse(plain)
    assert report.count == 0
    assert operators(fused) == operators(plain)
    assert_same(plain, fused)


HALF = (
    *((whole, whole.replace("float", "float16")) for whole in (Q, K, V, Y)),
    (SCALED, "half = Cast <to: int = 10> (scale)\n    scaled = Mul (q, half)"),
)


@pytest.mark.parametrize(
    "replacements",
    [
        pytest.param(HALF, id="no mask"),
        pytest.param((*masked("scores = Add (product, attention_mask)", f"float16{B11K}"), *HALF), id="mask"),
    ],
)
def test_half_precision_is_fused_with_its_mask_in_float32(
    rewrite: Rewrite, run: Callable[..., Feeds], make_feeds: Callable[..., Feeds], replacements: tuple[Replacement, ...]
) -> None:
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (1, ())
    (found,) = attentions(fused)
    assert found["scale"] == pytest.approx(6**-0.5, abs=2**-12)
    feeds = make_feeds(plain)
    np.testing.assert_allclose(run(fused, feeds)["y"], run(plain, feeds)["y"], rtol=0, atol=5e-3)


@pytest.mark.parametrize("difference", [3e-5, float("nan"), float("inf")])
def test_what_measures_different_is_left_alone(
    rewrite: Rewrite, assert_same: AssertSame, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(fuse_attention, "largest_difference", lambda *args, **kwargs: difference)
    plain = rewrite(ATTENTION, *MASKS["chosen, or -inf"][0], *SPLIT_HEADS)
    fused, report = fuse(plain)
    assert report.count == 0
    assert report.near_misses[0].reason == f"{DIFFERS} {difference:.3g} on probe inputs"
    assert operators(fused) == operators(plain), "nothing is left of what was tried"
    assert_same(plain, fused, 0)


# A second attention with the same mask and keys of its own.
TWICE = (
    (Y, f"{Y}, float[batch, 3, sequence, 6] z"),
    (
        "    y = MatMul (weights, v)",
        """    y = MatMul (weights, v)
    second_columns = Transpose <perm: ints = [0, 1, 3, 2]> (v)
    second_product = MatMul (q, second_columns)
    second_scores = Where (attention_mask, second_product, infinity)
    second_weights = Softmax <axis: int = -1> (second_scores)
    z = MatMul (second_weights, k)""",
    ),
)


def test_layers_share_what_is_made_of_their_mask(rewrite: Rewrite, assert_same: AssertSame) -> None:
    plain = rewrite(ATTENTION, *MASKS["chosen, or -inf"][0], *TWICE)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (2, ())
    first, second = attentions(fused)
    assert first["inputs"][3] == second["inputs"][3]
    assert operators(fused) == {"ScaledDotProductAttention": 2, "Where": 1}
    assert_same(plain, fused, 0)


def test_layers_with_masks_of_their_own_keep_them(rewrite: Rewrite, assert_same: AssertSame) -> None:
    replacements = [*MASKS["chosen, or -inf"][0], *TWICE, ("second_product, infinity", "second_product, lowest")]
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (2, ())
    first, second = attentions(fused)
    assert first["inputs"][3] != second["inputs"][3]
    assert_same(plain, fused, 0)


def test_a_mask_that_is_left_alone_leaves_nothing_behind(rewrite: Rewrite, assert_same: AssertSame) -> None:
    """The second, of another mask, is no attention; what its mask would have been made by goes."""
    replacements = [*MASKS["chosen, or -inf"][0], *TWICE, ("second_product, infinity", "second_product, huge")]
    plain = rewrite(ATTENTION, *replacements)
    fused, report = fuse(plain)
    assert (report.count, len(report.near_misses)) == (1, 1)
    assert operators(fused) == {"ScaledDotProductAttention": 1, "Transpose": 1, "MatMul": 2, "Softmax": 1, "Where": 2}
    assert_same(plain, fused, 0)


@pytest.mark.parametrize("reader", ["q", "k", "v"])
def test_one_that_feeds_another_fuses_as_well(rewrite: Rewrite, assert_same: AssertSame, reader: str) -> None:
    """Directly, as no layer does."""
    second = {"q": "q", "k": "k", "v": "k"} | {reader: "y"}
    plain = rewrite(
        ATTENTION,
        SELF,
        (Y, "float[batch, 3, sequence, 6] z"),
        (
            "    y = MatMul (weights, v)",
            f"""    y = MatMul (weights, v)
    second_columns = Transpose <perm: ints = [0, 1, 3, 2]> ({second["k"]})
    second_product = MatMul ({second["q"]}, second_columns)
    second_weights = Softmax <axis: int = -1> (second_product)
    z = MatMul (second_weights, {second["v"]})""",
        ),
    )
    fused, report = fuse(plain)
    assert (report.count, report.near_misses) == (2, ())
    assert_same(plain, fused)


def test_one_tensor_may_be_queries_keys_and_values(rewrite: Rewrite, assert_same: AssertSame) -> None:
    plain = rewrite(ATTENTION, SELF, ("(k)", "(q)"), ("(weights, v)", "(weights, q)"))
    fused, report = fuse(plain)
    assert (report.count, [node["inputs"][:3] for node in attentions(fused)]) == (1, [["q", "q", "q"]])
    assert_same(plain, fused)


@pytest.mark.parametrize("outputs", ["y", "y, z", "z, y", "z"])
def test_outputs_keep_their_names(rewrite: Rewrite, assert_same: AssertSame, outputs: str) -> None:
    shaped = ", ".join(f"float[batch, 3, sequence, 6] {name}" for name in outputs.split(", "))
    plain = rewrite(ATTENTION, (Y, shaped), ("(weights, v)", "(weights, v)\n    z = Neg (y)"))
    fused, report = fuse(plain)
    assert report.count == 1
    assert_same(plain, fused)


@pytest.mark.parametrize("name", ["y_attended_0", "attention_where_0_0", "attention_no_mask_0_0", "y_attended_0_q"])
def test_a_new_name_is_one_that_nothing_else_has(rewrite: Rewrite, assert_same: AssertSame, name: str) -> None:
    plain = rewrite(
        ATTENTION,
        *MASKS["chosen, or -inf"][0],
        (Y, f"float[batch, 3, sequence, 6] z, float[batch, 3, sequence, 6] {name}"),
        ("(weights, v)", f"(weights, v)\n    z = Neg (y)\n    {name} = Abs (q)"),
    )
    fused, report = fuse(plain)
    assert report.count == 1
    assert_same(plain, fused, 0)


@pytest.mark.parametrize("mask", [None, "chosen, or -inf", "relative positions"])
def test_a_second_run_changes_nothing(rewrite: Rewrite, mask: str | None) -> None:
    fused, _ = fuse(rewrite(ATTENTION, *(MASKS[mask][0] if mask else ())))
    again, (report,) = on_models.run_passes(fused, [fuse_attention.PASS])
    assert report == PassReport("fuse_attention", 0)
    assert again.graph == fused.graph


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("roformer-with-cross-attention", 6**-0.5),
        ("roberta-prelayernorm-with-relative-positions", 1.0),  # it scales what the distances are multiplied with
    ],
)
def test_real_models_fuse_as_often_as_promised(get_traced: Callable[[str], Traced], name: str, scale: float) -> None:
    """Those with the most to it; the tests of the other fusions count these in every model."""
    traced = get_traced(name)
    report, config, found = traced.reports["fuse_attention"], traced.config, attentions(traced.fused)
    assert report.near_misses == ()
    assert report.count == len(found) == traced.expected["fuse_attention"]
    assert report.count == config.num_hidden_layers * (2 if config.add_cross_attention else 1)
    assert "Softmax" not in operators(traced.fused)
    assert [node["scale"] for node in found] == pytest.approx([scale] * len(found), rel=1e-6)


@pytest.mark.parametrize("weighed", ["x", "table"])
def test_a_product_with_a_constant_is_no_attention(rewrite: Rewrite, assert_same: AssertSame, weighed: str) -> None:
    """A memory of four places: keys, or keys and values, are constants."""
    plain = rewrite(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        memory (float[batch, 2, sequence, 4] q, float[batch, 2, 4, 4] x) => (float[batch, 2, sequence, 4] y)
        <float[4, 4] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}>
        {
            scores = MatMul (q, table)
            weights = Softmax <axis: int = -1> (scores)
            y = MatMul (weights, x)
        }
        """,
        ("(weights, x)", f"(weights, {weighed})"),
    )
    fused, report = fuse(plain)
    assert report.count == 0
    assert_same(plain, fused)
