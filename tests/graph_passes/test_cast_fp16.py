"""Half precision: what is narrowed, what must not be, and how close the result is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, inliner, numpy_helper

from exporter.parity.metrics import measure
from graph_passes.errors import PassError
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]
MakeFeeds = Callable[..., Feeds]
Rewrite = Callable[..., ModelProto]
DtypesOf = Callable[[ModelProto], Mapping[str, int]]

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def narrow(model: ModelProto) -> ModelProto:
    """A fused model in half precision."""
    return on_models.change_precision(model, "fp16")[0]


def weights_of(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def floats_read_by(model: ModelProto, op: str, dtypes: Mapping[str, int]) -> list[list[int]]:
    """For each node of a type, the element types of its floating-point inputs."""
    return [
        [dtypes[name] for name in node.input if dtypes[name] in (HALF, FLOAT)]
        for node in model.graph.node
        if node.op_type == op
    ]


def test_the_interface_is_that_of_float32(
    traced: Traced, interface_of: Callable[[ModelProto], dict[str, list[Any]]]
) -> None:
    assert interface_of(narrow(traced.fused)) == interface_of(traced.plain)


def test_every_matrix_product_is_narrow(traced: Traced, dtypes_of: DtypesOf) -> None:
    model = narrow(traced.fused)
    dtypes = dtypes_of(model)
    products = floats_read_by(model, "MatMul", dtypes) + floats_read_by(model, "Gemm", dtypes)
    assert len(products) >= 6 * traced.config.num_hidden_layers
    assert {dtype for product in products for dtype in product} == {HALF}


def test_softmax_norms_and_the_mask_are_wide(masked_lm: Traced, dtypes_of: DtypesOf) -> None:
    model = inliner.inline_local_functions(narrow(masked_lm.fused))
    dtypes = dtypes_of(model)
    softmaxes = floats_read_by(model, "Softmax", dtypes)
    assert softmaxes == [[FLOAT]] * masked_lm.config.num_hidden_layers
    assert {tuple(norm) for norm in floats_read_by(model, "LayerNormalization", dtypes)} == {(FLOAT,) * 3}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            mask_add = makers[node.input[0]]
            assert mask_add.op_type == "Add"
            assert {dtypes[name] for name in mask_add.input} == {FLOAT}
            assert "Cast" in [makers[name].op_type for name in mask_add.input], "the scores are widened before the mask"


def test_constants_that_half_precision_cannot_hold_stay(masked_lm: Traced) -> None:
    weights = weights_of(narrow(masked_lm.fused))
    assert all(np.isfinite(weight).all() for weight in weights.values())
    lowest = np.finfo(np.float32).min
    assert [w.dtype for w in weights.values() if w.dtype != np.int64 and w.min(initial=0) == lowest] == [np.float32]


def test_weights_are_narrow_and_what_contracts_keep_is_wide(masked_lm: Traced, dtypes_of: DtypesOf) -> None:
    model = narrow(masked_lm.fused)
    dtypes = dtypes_of(model)
    tables = [w for w in weights_of(model).values() if w.ndim == 2]
    assert len(tables) >= 6 * masked_lm.config.num_hidden_layers
    assert {table.dtype for table in tables} == {np.dtype(np.float16)}
    for node in model.graph.node:
        if node.op_type == "ResidualLayerNorm":
            assert [dtypes[name] for name in node.input] == [HALF, HALF, FLOAT, FLOAT, FLOAT]
            assert [a.f for a in node.attribute] == [np.float32(1e-12)]
        if node.op_type == "InterleavedRotary":
            assert [dtypes[name] for name in node.input] == [HALF, FLOAT, FLOAT]
        if node.op_type == "ScaledDotProductAttention":
            assert [dtypes[name] for name in node.input] == [HALF, HALF, HALF, FLOAT]
        if node.op_type == "FusedBiasGelu":
            assert [dtypes[name] for name in node.input] == [HALF, FLOAT]


def test_angles_are_wide_from_their_table_on(get_traced: Callable[[str], Traced], dtypes_of: DtypesOf) -> None:
    """Half precision would cost them as much as a rounding of all that is rotated."""
    model = narrow(get_traced("roformer-fill-mask").fused)
    made = {output: node for node in model.graph.node for output in node.output}
    dtypes, tables = dtypes_of(model), 0
    for node in model.graph.node:
        if node.op_type == "InterleavedRotary":
            pending = list(node.input[1:])
            while pending:
                name = pending.pop()
                assert dtypes[name] in (FLOAT, TensorProto.INT64)
                tables += dtypes[name] == FLOAT and name not in made
                pending += made[name].input if name in made else []
    assert tables


def test_angles_that_are_computed_are_computed_in_float32(rewrite: Rewrite, run_strictly: Run, run: Run) -> None:
    """As exporters do that have no table: of an angle of 1433.6, half precision knows the nearest whole number."""
    plain = rewrite(COMPUTED_ANGLES)
    fused, reports = on_models.fuse(plain)
    assert {report.name: report.count for report in reports}["fuse_rotary"] == 1
    random = np.random.default_rng(0)
    feeds: Feeds = {
        "x": random.standard_normal((2, 3, 3, 4)).astype(np.float32),
        "position": np.array([[2048, 1501, 7]], np.int64),
    }
    found = run_strictly(inliner.inline_local_functions(narrow(fused)), feeds)["y"]
    np.testing.assert_allclose(found, run(plain, feeds)["y"], atol=4 * 2**-11)  # x and y are rounded, no more


COMPUTED_ANGLES = """
<ir_version: 10, opset_import: ["" : 20]>
rotated (float[batch, heads, sequence, 4] x, int64[1, sequence] position) => (float[batch, heads, sequence, 4] y)
<int64[2] axes = {1, 3}, float[2] frequency = {1.0, 0.7}, int64[1] three = {3}, int64[1] last = {-1},
 int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {9}, int64[4] shape = {0, 0, -1, 4}>
{
    place = Cast <to: int = 1> (position)
    column = Unsqueeze (place, axes)
    angle = Mul (column, frequency)
    cos = Cos (angle)
    sin = Sin (angle)
    even = Slice (x, zero, end, three, two)
    odd = Slice (x, one, end, three, two)
    even_cos = Mul (even, cos)  odd_sin = Mul (odd, sin)  first = Sub (even_cos, odd_sin)
    odd_cos = Mul (odd, cos)  even_sin = Mul (even, sin)  second = Add (odd_cos, even_sin)
    first_column = Unsqueeze (first, last)  second_column = Unsqueeze (second, last)
    pairs = Concat <axis: int = -1> (first_column, second_column)
    y = Reshape (pairs, shape)
}
"""


def test_the_result_is_close_to_float32(traced: Traced, run: Run, make_feeds: MakeFeeds) -> None:
    model = narrow(traced.fused)
    problems = [
        make_feeds(traced.fused, seed=seed, batch=3, sequence=sequence) for seed, sequence in enumerate((1, 7, 18))
    ]
    expected, found = ([run(graph, feeds) for feeds in problems] for graph in (traced.fused, model))
    for name in expected[0]:
        pairs = [(truth[name], outputs[name]) for truth, outputs in zip(expected, found, strict=True)]
        metrics = measure(pairs, is_scores=False, clear_margin=0.0)
        assert metrics.sqnr_db is not None, "equal to the last bit: nothing was narrowed"
        assert metrics.sqnr_db > 50


def test_rows_that_are_all_padding_are_finite(
    masked_lm: Traced, run: Run, run_strictly: Run, make_feeds: MakeFeeds
) -> None:
    feeds = make_feeds(masked_lm.fused, batch=3, sequence=9)
    feeds["attention_mask"][1] = 0
    expected, found = run(masked_lm.fused, feeds), run_strictly(narrow(masked_lm.fused), feeds)
    for name, array in expected.items():
        assert np.isfinite(found[name]).all()
        np.testing.assert_allclose(found[name], array, rtol=0, atol=0.02 * float(np.abs(array).max()))


def test_the_result_is_as_close_in_strict_half_precision(
    masked_lm: Traced, run: Run, run_strictly: Run, make_feeds: MakeFeeds
) -> None:
    feeds = make_feeds(masked_lm.fused)
    expected, found = run(masked_lm.fused, feeds), run_strictly(narrow(masked_lm.fused), feeds)
    metrics = measure([(expected["logits"], found["logits"])], is_scores=False, clear_margin=0.0)
    assert metrics.sqnr_db is not None
    assert metrics.sqnr_db > 50


def test_every_target_runs_it_alike(masked_lm: Traced, run: Run, make_feeds: MakeFeeds) -> None:
    model = narrow(masked_lm.fused)
    lowered, _ = on_models.lower(model, "onnxruntime")
    feeds = make_feeds(model)
    for name, array in run(model, feeds).items():
        metrics = measure([(array, run(lowered, feeds)[name])], is_scores=False, clear_margin=0.0)
        assert metrics.sqnr_db is None or metrics.sqnr_db > 60


def test_casts_are_shared(masked_lm: Traced) -> None:
    casts = [(n.input[0], n.attribute[0].i) for n in narrow(masked_lm.fused).graph.node if n.op_type == "Cast"]
    assert len(casts) == len(set(casts))


# Graphs in which one thing happens.

PRODUCT = """
<ir_version: 10, opset_import: ["" : 20]>
product (float[batch, sequence, 4] x) => (float[batch, sequence, 2] y)
<float[4, 2] w = {1, -2, 3, 4, 5, 0, 0.5, 0.25}, float small = {1e-9}, float one = {1}, float zero = {0}>
{
    y = MatMul (x, w)
}
"""
NORM = """
<ir_version: 10, opset_import: ["" : 20]>
norm (float[batch, sequence, 4] x, float[batch, sequence, 4] residual) => (float[batch, sequence, 4] y)
<float[4] gamma = {1, 2, 3, 4}, float[4] beta = {-1, 0, 1, 2}>
{
    total = Add (x, residual)
    y = LayerNormalization <epsilon: float = 1e-12> (total, gamma, beta)
}
"""
ATTENTION = """
<ir_version: 10, opset_import: ["" : 20]>
attention (float[batch, sequence, 4] q, float[batch, 4, sequence] k) => (float[batch, sequence, sequence] y)
{
    scores = MatMul (q, k)
    y = Softmax <axis: int = -1> (scores)
}
"""


def compile_text(rewrite: Rewrite, text: str, *replacements: tuple[str, str]) -> tuple[ModelProto, ModelProto]:
    """The fused model and the narrow one."""
    fused, _ = on_models.fuse(rewrite(text, *replacements))
    return fused, narrow(fused)


def test_a_weight_that_does_not_fit_keeps_its_product_wide(
    rewrite: Rewrite, run: Run, make_feeds: MakeFeeds, dtypes_of: DtypesOf
) -> None:
    fused, model = compile_text(rewrite, PRODUCT, ("{1, -2,", "{100000, -2,"))
    assert weights_of(model)["w"].dtype == np.float32
    assert floats_read_by(model, "MatMul", dtypes_of(model)) == [[FLOAT, FLOAT]]
    feeds = make_feeds(fused)
    np.testing.assert_array_equal(run(model, feeds)["y"], run(fused, feeds)["y"])


def test_a_weight_that_fits_is_narrow(rewrite: Rewrite, dtypes_of: DtypesOf) -> None:
    _, model = compile_text(rewrite, PRODUCT, ("{1, -2,", "{65504, -2,"))
    assert floats_read_by(model, "MatMul", dtypes_of(model)) == [[HALF, HALF]]


@pytest.mark.parametrize(("scale", "dtype"), [("small", FLOAT), ("one", HALF), ("zero", HALF)])
def test_a_lone_number_that_would_be_lost_stays(
    rewrite: Rewrite, run: Run, make_feeds: MakeFeeds, dtypes_of: DtypesOf, scale: str, dtype: int
) -> None:
    fused, model = compile_text(
        rewrite, PRODUCT, ("y = MatMul (x, w)", f"product = MatMul (x, w)\n y = Mul (product, {scale})")
    )
    assert floats_read_by(model, "Mul", dtypes_of(model)) == [[dtype, dtype]]
    feeds = make_feeds(fused)
    np.testing.assert_allclose(run(model, feeds)["y"], run(fused, feeds)["y"], rtol=0.01, atol=1e-11)


def test_a_weight_that_two_products_share_is_stored_once(rewrite: Rewrite) -> None:
    _, model = compile_text(
        rewrite, PRODUCT, ("y = MatMul (x, w)", "a = MatMul (x, w)\n b = MatMul (x, w)\n y = Add (a, b)")
    )
    assert len(model.graph.initializer) == 1


def test_a_sum_of_products_is_widened_for_the_norm_that_reads_it(rewrite: Rewrite, dtypes_of: DtypesOf) -> None:
    square = "float[4, 4] w = {1, 0, 2, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1}, float[4] beta"
    _, model = compile_text(
        rewrite,
        NORM,
        ("float[4] beta", square),
        ("total = Add (x, residual)", "p = MatMul (x, w)\n total = Add (p, beta)"),
    )
    dtypes = dtypes_of(model)
    assert floats_read_by(model, "MatMul", dtypes) == [[HALF, HALF]]
    assert floats_read_by(model, "Add", dtypes) == [[FLOAT, FLOAT]]


def test_what_follows_a_softmax_stays_wide_until_a_product(rewrite: Rewrite, dtypes_of: DtypesOf) -> None:
    _, model = compile_text(
        rewrite,
        ATTENTION,
        ("y = Softmax <axis: int = -1> (scores)", "p = Softmax (scores)\n n = Neg (p)\n y = MatMul (n, n)"),
    )
    dtypes = dtypes_of(model)
    assert floats_read_by(model, "Softmax", dtypes) == floats_read_by(model, "Neg", dtypes) == [[FLOAT]]
    assert floats_read_by(model, "MatMul", dtypes) == [[HALF, HALF]] * 2


def test_an_intermediate_name_may_look_like_a_new_one(rewrite: Rewrite, run: Run, make_feeds: MakeFeeds) -> None:
    fused, model = compile_text(
        rewrite, PRODUCT, ("2] y)", "2] y, float[batch, sequence, 4] y_fp16)"), ("(x, w)", "(x, w)\n y_fp16 = Neg (x)")
    )
    feeds = make_feeds(fused)
    found, expected = run(model, feeds), run(fused, feeds)
    for name in ("y", "y_fp16"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=0.02)


def test_a_cast_to_float_becomes_one_to_half(rewrite: Rewrite, run: Run, make_feeds: MakeFeeds) -> None:
    fused, model = compile_text(
        rewrite,
        PRODUCT,
        ("float[batch, sequence, 4] x", "int64[batch, sequence, 4] n"),
        ("y =", "x = Cast <to: int = 1> (n)\n y ="),
    )
    assert [n.attribute[0].i for n in model.graph.node if n.op_type == "Cast"] == [HALF, FLOAT]
    feeds = make_feeds(fused)
    np.testing.assert_allclose(run(model, feeds)["y"], run(fused, feeds)["y"], rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.5, 300.0])
def test_rows_of_one_value_need_an_epsilon_that_half_precision_has_not(
    rewrite: Rewrite, run: Run, value: float
) -> None:
    """1e-12 is zero in half precision, where such a row would be 0 / 0."""
    _, model = compile_text(rewrite, NORM)
    feeds: Feeds = {name: np.full((1, 3, 4), value, dtype=np.float32) for name in ("x", "residual")}
    assert run(model, feeds)["y"].tolist() == [[[-1, 0, 1, 2]] * 3]


def test_rows_that_hardly_vary_are_normalised_as_in_float32(rewrite: Rewrite, run: Run) -> None:
    """A variance of 6e-10 is zero in half precision."""
    fused, model = compile_text(rewrite, NORM)
    row = np.array([1, 2, 3, 4], dtype=np.float32) * 2**-15
    feeds = {"x": np.tile(row, (1, 2, 1)), "residual": np.zeros((1, 2, 4), dtype=np.float32)}
    np.testing.assert_allclose(run(model, feeds)["y"], run(fused, feeds)["y"], rtol=0, atol=0.01)


def test_scores_beyond_half_precision_are_not_clamped(rewrite: Rewrite, run: Run, run_strictly: Run) -> None:
    """Scores are products in half precision: beyond 65504 they are infinite, and the softmax is NaN.

    That shows in the parity report of a target that computes in half precision. ONNX Runtime's CPU does not: it widens
    the product, and is right by accident.
    """
    fused, model = compile_text(rewrite, ATTENTION)
    feeds: Feeds = {"q": np.full((1, 2, 4), 300, dtype=np.float32), "k": np.full((1, 4, 2), 300, dtype=np.float32)}
    assert run(fused, feeds)["y"].tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    assert np.isnan(run_strictly(model, feeds)["y"]).all()
    assert run(model, feeds)["y"].tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    within = {name: value / 4 for name, value in feeds.items()}
    assert run_strictly(model, within)["y"].tolist() == [[[0.5, 0.5], [0.5, 0.5]]]


def test_around_static_int8_steps_are_half_precision_where_it_holds_them(
    masked_lm: Traced, dtypes_of: DtypesOf
) -> None:
    model, _ = on_models.change_precision(masked_lm.fused, "int8", ranges=on_models.ranges_of(masked_lm.fused))
    dtypes = dtypes_of(model)
    layers = masked_lm.config.num_hidden_layers
    products = floats_read_by(model, "DequantizeLinear", dtypes)
    assert products == [[HALF]] * (10 * layers)
    is_roberta = masked_lm.config.model_type == "roberta-prelayernorm"  # its first norm has no sum: it stays wide
    assert sorted(floats_read_by(model, "QuantizeLinear", dtypes)) == sorted(
        [[FLOAT, FLOAT]] * is_roberta + [[HALF, HALF]] * (4 * layers - is_roberta)
    )
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert dtypes[node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]] == TensorProto.INT8


def test_a_step_that_half_precision_would_lose_stays(
    masked_lm: Traced, dtypes_of: DtypesOf, run: Run, make_feeds: MakeFeeds
) -> None:
    ranges = on_models.ranges_of(masked_lm.fused)
    name = next(iter(ranges))
    model, _ = on_models.change_precision(masked_lm.fused, "int8", ranges=ranges | {name: 1e-3})
    dtypes = dtypes_of(model)
    steps = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and len(node.input) == 3]
    assert [dtypes[node.input[1]] for node in steps].count(FLOAT) == 1
    assert {tuple(pair) for pair in floats_read_by(model, "MatMul", dtypes) if len(pair) == 2} == {(HALF, HALF)}
    assert np.isfinite(run(model, make_feeds(model))["logits"]).all()


def test_it_runs_once(masked_lm: Traced) -> None:
    with pytest.raises(PassError, match=r"cast_fp16 cannot run here.* must not come after \['cast_fp16'\]"):
        narrow(narrow(masked_lm.fused))


def test_the_count_is_of_nodes_in_half_precision(masked_lm: Traced, dtypes_of: DtypesOf) -> None:
    model, (report,) = on_models.change_precision(masked_lm.fused, "fp16")
    dtypes = dtypes_of(model)
    made_half = [n for n in model.graph.node if any(dtypes[name] == HALF for name in n.output if name)]
    added = [n for n in made_half if n.op_type == "Cast"]
    assert report.count == len(made_half) - len(added)
