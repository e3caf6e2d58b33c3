"""Static int8: which products, what numbers, what half precision and the lowerings make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from exporter.parity.metrics import measure
from graph_passes import pipeline
from graph_passes.errors import PassError
from graph_passes.graph_tools import import_model
from graph_passes.insert_qdq import PASS, held_by_half, insert_qdq
from graph_passes.quantization import pair_sums
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Rewrite = Callable[..., ModelProto]
MakeFeeds = Callable[..., Feeds]
Run = Callable[[ModelProto, Feeds], Feeds]
Compile = Callable[..., tuple[ModelProto, ModelProto, Any]]


def quantize(model: ModelProto) -> tuple[ModelProto, Any]:
    """A fused model with static int8 products, everything else in float32, and the report."""
    changed, (report,) = on_models.run_passes(model, [insert_qdq(on_models.ranges_of(model))])
    return changed, report


def static(model: ModelProto) -> ModelProto:
    """A fused model in static int8, everything else in half precision."""
    return on_models.change_precision(model, "int8", ranges=on_models.ranges_of(model))[0]


def nodes(model: ModelProto, op: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def constants(model: ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def int8_products(model: ModelProto) -> list[NodeProto]:
    """The products of two tensors that were in int8."""
    floats = {node.output[0] for node in nodes(model, "DequantizeLinear")}
    return [node for node in nodes(model, "MatMul") if {*node.input} <= floats]


# Which.


def test_it_quantises_what_dynamic_int8_quantises(traced: Traced) -> None:
    model, report = quantize(traced.fused)
    _, (other,) = on_models.change_precision(traced.fused, "int8")
    assert report.count == len(int8_products(model)) == other.count > 0
    assert report.near_misses == other.near_misses


def test_a_layer_has_six_products_of_four_tensors(masked_lm: Traced) -> None:
    model, report = quantize(masked_lm.fused)
    layers = masked_lm.config.num_hidden_layers
    assert report.count == 6 * layers
    readers = Counter(node.input[0] for node in int8_products(model))
    assert sorted(readers.values()) == [1] * (3 * layers) + [3] * layers
    assert len(nodes(model, "QuantizeLinear")) == 4 * layers
    assert len(nodes(model, "DequantizeLinear")) == (4 + 6) * layers
    others = Counter(node.op_type for node in masked_lm.fused.graph.node)
    assert others == Counter(node.op_type for node in model.graph.node) - Counter(
        {"QuantizeLinear": 4 * layers, "DequantizeLinear": 10 * layers}
    )


def test_weights_are_stored_in_int8_alone(masked_lm: Traced) -> None:
    model, _ = quantize(masked_lm.fused)
    known = constants(model)
    makers = {node.output[0]: node for node in model.graph.node}
    for product in int8_products(model):
        node = makers[product.input[1]]
        weight, scale = (known[name] for name in node.input)
        assert [(each.name, each.i) for each in node.attribute] == [("axis", 1)]
        assert (weight.dtype.name, scale.dtype.name) == ("int8", "float32")
        assert scale.shape == weight.shape[1:]
        is_full = (np.abs(weight.astype(int)).max(axis=0) >= 126) | (pair_sums(weight.astype(int)) >= 126)
        assert is_full.all(), "every column has its own scale"
        assert weight.min() >= -127, "-128 has no opposite"
    floats = {value.shape for value in known.values() if value.dtype == np.float32 and value.ndim == 2}
    assert floats.isdisjoint({(24, 40), (40, 24)})


def test_the_interface_is_that_of_float32(
    traced: Traced, interface_of: Callable[[ModelProto], dict[str, list[Any]]]
) -> None:
    assert interface_of(static(traced.fused)) == interface_of(traced.plain)


# How close.


@pytest.mark.parametrize("make", [lambda model: quantize(model)[0], static], ids=["float32", "float16"])
def test_the_result_is_close_to_float32(
    traced: Traced, run: Run, make_feeds: MakeFeeds, make: Callable[[ModelProto], ModelProto]
) -> None:
    model = make(traced.fused)
    feeds = make_feeds(traced.fused, batch=3, sequence=11)
    expected, found = run(traced.fused, feeds), run(model, feeds)
    for name, array in expected.items():
        metrics = measure([(array, found[name])], is_scores=False, clear_margin=0.0)
        assert metrics.sqnr_db is not None, "equal to the last bit: nothing was quantised"
        assert metrics.sqnr_db > 20


# Numbers.

BLOCK = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16] gamma, float[16] beta, float[16, 16] w, float[16, 16] v, float[16, 8] down, float[8, 16] up>
{
    product = MatMul (x, w)
    total = Add (product, x)
    y = LayerNormalization <epsilon: float = 1e-12> (total, gamma, beta)
}
"""


def block(rewrite: Rewrite, *replacements: tuple[str, str], scale: float = 1.0) -> ModelProto:
    """The fused block with random weights."""
    model = rewrite(BLOCK, *replacements)
    random = np.random.default_rng(0)
    for value in list(model.graph.value_info):  # declared without a value: fill it in
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        array = (scale * random.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    return on_models.fuse(model)[0]


def test_numbers_are_those_of_quantising_by_hand(rewrite: Rewrite, run: Run, make_feeds: MakeFeeds) -> None:
    shown = (("sequence, 16] y)", "sequence, 16] y, float[batch, sequence, 16] product)"),)
    fused = block(rewrite, *shown)
    model, _ = on_models.run_passes(fused, [insert_qdq({"x": 2.0})])
    feeds = make_feeds(fused)
    x, w = feeds["x"], constants(fused)["w"]
    assert np.abs(x).max() > 2.0, "some of it must saturate"
    step = held_by_half(np.asarray(2.0 / 127))
    neighbours = [np.maximum(sign * w[0::2], 0) + np.maximum(sign * w[1::2], 0) for sign in (1, -1)]
    together = np.concatenate(neighbours).max(axis=0)
    steps = held_by_half(np.maximum(np.abs(w).max(axis=0) / 127, together / 128))
    rounded = np.clip(np.rint(x / step), -128, 127) * step
    expected = rounded @ (np.rint(w / steps) * steps)
    np.testing.assert_allclose(run(model, feeds)["product"], expected, rtol=1e-5, atol=1e-5)


def test_what_is_beyond_the_range_saturates(rewrite: Rewrite, run: Run) -> None:
    fused = block(rewrite, ("sequence, 16] y)", "sequence, 16] y, float[batch, sequence, 16] product)"))
    model, _ = on_models.run_passes(fused, [insert_qdq({"x": 1.0})])
    feeds: list[Feeds] = [{"x": np.full((1, 1, 16), value, np.float32)} for value in (1.0, 100.0)]
    at, beyond = (run(model, of)["product"] for of in feeds)
    np.testing.assert_array_equal(at, beyond)


def test_a_weight_of_two_products_is_stored_once(rewrite: Rewrite) -> None:
    fused = block(
        rewrite, ("MatMul (x, w)", "MatMul (x, w)  again = MatMul (product, w)"), ("(product, x)", "(again, x)")
    )
    model, report = quantize(fused)
    assert report.count == 2
    assert [value.dtype.name for value in constants(model).values()].count("int8") == 1 + 2  # and the zero points


def test_a_weight_that_is_read_elsewhere_stays_there(rewrite: Rewrite, run: Run, make_feeds: MakeFeeds) -> None:
    fused = block(
        rewrite,
        ("(product, x)", "(product, moved)"),
        ("total =", "moved = Add (x, w)  total ="),
        ("batch, sequence, 16]", "batch, 16, 16]"),
    )
    model, report = quantize(fused)
    assert report.count == 1
    feeds = make_feeds(fused)
    metrics = measure([(run(fused, feeds)["y"], run(model, feeds)["y"])], is_scores=False, clear_margin=0.0)
    assert metrics.sqnr_db is not None
    assert metrics.sqnr_db > 20


def test_a_column_of_zeros_stays_one(rewrite: Rewrite, run: Run) -> None:
    fused = block(rewrite, ("sequence, 16] y)", "sequence, 16] y, float[batch, sequence, 16] product)"))
    [tensor] = [tensor for tensor in fused.graph.initializer if tensor.name == "w"]
    w = numpy_helper.to_array(tensor).copy()
    w[:, 3] = 0
    tensor.CopyFrom(numpy_helper.from_array(w, "w"))
    for model in (quantize(fused)[0], static(fused), on_models.lower(static(fused), "native")[0]):
        found = run(model, {"x": np.ones((1, 2, 16), np.float32)})["product"]
        assert found[..., 3].tolist() == [[0, 0]]
        # Half a step of up to 1/40 in each of 16 weights, and one in a hundred of the sum by the step of x.
        np.testing.assert_allclose(found, np.broadcast_to(w.sum(axis=0), found.shape), rtol=0.01, atol=0.2)


def test_what_is_left_alone_says_why(rewrite: Rewrite) -> None:
    _, report = quantize(
        block(rewrite, ("product = MatMul (x, w)", "low = MatMul (x, down)\n product = MatMul (low, up)"))
    )
    assert report.count == 0
    assert [miss.reason for miss in report.near_misses] == [
        "its weight of shape (16, 8) is too small to gain from int8",
        "its weight of shape (8, 16) is too small to gain from int8",
    ]


@given(st.floats(2.0**-30, 2.0**17, width=32))
def test_a_scale_is_rounded_up_to_half_precision(scale: float) -> None:
    found = held_by_half(np.asarray(scale, np.float32))
    assert found.dtype == np.float32
    if scale > 65504:
        assert found == np.float32(scale)
        return
    assert found == np.float16(found), "half precision holds it"
    assert np.float32(scale) <= found <= max(scale * (1 + 2.0**-10), scale + 2.0**-24, 2.0**-24)


# Ranges.


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_a_range_that_cannot_be_divided_is_refused(rewrite: Rewrite, value: float) -> None:
    with pytest.raises(PassError, match=r"The range of the tensor 'x' must be above zero and finite; got "):
        on_models.run_passes(block(rewrite), [insert_qdq({"x": value})])


@pytest.mark.parametrize(
    ("ranges", "known"),
    [({}, "none were given"), ({"other": 1.0, "y": 2.0}, "those given are of 2 other tensors")],
)
def test_a_tensor_without_a_range_is_named(rewrite: Rewrite, ranges: dict[str, float], known: str) -> None:
    with pytest.raises(PassError, match=rf"no range of the tensor 'x'; {known}\. Static int8 needs calibration data"):
        on_models.change_precision(block(rewrite), "int8", ranges=ranges)


def test_the_pass_of_the_pipeline_has_no_ranges(rewrite: Rewrite) -> None:
    assert PASS in pipeline.PIPELINE
    with pytest.raises(PassError, match="no range of the tensor 'x'; none were given"):
        on_models.run_passes(block(rewrite), [PASS])


def test_ranges_of_tensors_that_are_not_quantised_are_ignored(rewrite: Rewrite) -> None:
    fused = block(rewrite)
    with_others = on_models.run_passes(fused, [insert_qdq({"x": 1.0, "total": np.nan})])[0]
    assert with_others == on_models.run_passes(fused, [insert_qdq({"x": 1.0})])[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ranges_are_of_int8_alone(rewrite: Rewrite, precision: pipeline.Precision) -> None:
    with pytest.raises(PassError, match=f"Ranges are of int8 alone; got some for {precision}"):
        on_models.change_precision(block(rewrite), precision, ranges={"x": 1.0})


# Order.


def test_the_graph_that_comes_in_is_not_changed(rewrite: Rewrite) -> None:
    graph = import_model(block(rewrite))
    before = [(node.op, [tensor.name for tensor in node.inputs]) for node in graph.nodes]
    pipeline.change_precision(graph, "int8", ranges={"x": 1.0})
    assert [(node.op, [tensor.name for tensor in node.inputs]) for node in graph.nodes] == before


def test_it_comes_once_before_half_precision_and_instead_of_dynamic_int8(rewrite: Rewrite) -> None:
    fused = block(rewrite)
    step = insert_qdq({"x": 1.0})
    once, _ = on_models.run_passes(fused, [step])
    assert pipeline.passes_run_on(once)[-1] == "insert_qdq"
    narrow, _ = on_models.change_precision(fused, "fp16")
    dynamic, _ = on_models.change_precision(fused, "int8")
    lowered, _ = on_models.lower(fused, "native")
    for model, last in (
        (once, "insert_qdq"),
        (narrow, "cast_fp16"),
        (dynamic, "quantize_dynamic"),
        (lowered, "lower_to_native"),
    ):
        with pytest.raises(PassError, match=rf"insert_qdq cannot run here.*must not come after \['{last}'\]"):
            on_models.run_passes(model, [step])
    with pytest.raises(PassError, match=r"quantize_dynamic cannot run here.*must not come after \['insert_qdq'\]"):
        on_models.change_precision(once, "int8")
    with pytest.raises(PassError, match=r"fuse_rotary cannot run here.*must not come after \['insert_qdq'\]"):
        on_models.fuse(once)


def test_both_passes_are_remembered_and_reported(rewrite: Rewrite) -> None:
    model, reports = on_models.change_precision(block(rewrite), "int8", ranges={"x": 1.0})
    assert [report.name for report in reports] == pipeline.passes_run_on(model)[-2:] == ["insert_qdq", "cast_fp16"]
    assert reports[0].count == 1


# Half precision, and targets.


def test_half_precision_changes_no_scale_and_no_weight(masked_lm: Traced) -> None:
    wide, narrow = quantize(masked_lm.fused)[0], static(masked_lm.fused)
    before, after = constants(wide), constants(narrow)
    wide_norms = {node.output[0] for node in nodes(narrow, "LayerNormalization")}  # those without a sum
    for op in ("QuantizeLinear", "DequantizeLinear"):
        for first, second in zip(nodes(wide, op), nodes(narrow, op), strict=True):
            old, new = before[first.input[1]], after[second.input[1]]
            assert old.dtype == np.float32
            assert new.dtype == (np.float32 if second.input[0] in wide_norms else np.float16)
            np.testing.assert_array_equal(new, old)
    for first, second in zip(int8_products(wide), int8_products(narrow), strict=True):
        assert first.output == second.output


@pytest.mark.parametrize("target", ["onnxruntime", "native", "plugin"])
@pytest.mark.parametrize("rest", ["float32", "float16"])
def test_every_target_takes_it(masked_lm: Traced, run: Run, make_feeds: MakeFeeds, target: str, rest: str) -> None:
    model = static(masked_lm.fused) if rest == "float16" else quantize(masked_lm.fused)[0]
    lowered, _ = on_models.lower(model, target)  # it compares the two
    is_packed = target == "native" or (target == "plugin" and masked_lm.config.model_type == "roformer")
    assert len(int8_products(lowered)) == (4 if is_packed else 6) * masked_lm.config.num_hidden_layers
    if target == "plugin":
        return  # which the runtime has not
    feeds = make_feeds(model, batch=3, sequence=9)
    expected, found = run(masked_lm.fused, feeds)["logits"], run(lowered, feeds)["logits"]
    metrics = measure([(expected, found)], is_scores=False, clear_margin=0.0)
    assert metrics.sqnr_db is not None
    assert metrics.sqnr_db > 20


def test_plugins_quantise_norms_where_they_are_made(masked_lm: Traced) -> None:
    """Of a RoFormer, the norm of the embeddings and all but the last; RoBERTa's first one has no sum."""
    lowered, reports = on_models.lower(static(masked_lm.fused), "plugin")
    layers = masked_lm.config.num_hidden_layers
    is_roformer = masked_lm.config.model_type == "roformer"
    counts = {report.name: report.count for report in reports}
    assert counts["fuse_quantized_norm"] == (2 * layers if is_roformer else 2 * layers - 1)
    assert counts["fuse_qkv_rotary"] == (layers if is_roformer else 0)
    fused = [node for node in lowered.graph.node if node.op_type.startswith("QuantizedResidualLayerNorm")]
    assert len(fused) == counts["fuse_quantized_norm"]
    assert len(nodes(lowered, "QuantizeLinear")) == 4 * layers - len(fused)


def test_native_products_of_half_precision_have_one_scale_and_what_is_left_comes_after(masked_lm: Traced) -> None:
    lowered, _ = on_models.lower(static(masked_lm.fused), "native")
    known = constants(lowered)
    makers = {node.output[0]: node for node in lowered.graph.node}
    for product in int8_products(lowered):
        weight, scale = (known[name] for name in makers[product.input[1]].input)
        assert (weight.dtype.name, weight.ndim, scale.dtype.name, scale.shape) == ("int8", 2, "float16", ())
        assert np.log2(scale) % 1 == 0
        [reader] = [node for node in lowered.graph.node if product.output[0] in node.input]
        assert reader.op_type == "Mul"
        rest = known[reader.input[1]]
        assert (rest.dtype.name, rest.shape) == ("float16", weight.shape[1:])
        assert 0.5 < rest.max() <= 1
    wide, _ = on_models.lower(quantize(masked_lm.fused)[0], "native")
    axes = {
        helper.get_attribute_value(attribute)
        for node in nodes(wide, "DequantizeLinear")
        for attribute in node.attribute
    }
    assert axes == {1}, "float32 holds every sum: its scales stay"
