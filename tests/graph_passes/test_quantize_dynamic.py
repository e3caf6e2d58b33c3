"""Dynamic int8: which products, how well the weights are kept, and how close the result is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from exporter.parity.metrics import measure
from graph_passes.errors import PassError
from graph_passes.quantization import pair_sums
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Rewrite = Callable[..., ModelProto]
MakeFeeds = Callable[..., Feeds]
Run = Callable[[ModelProto, Feeds], Feeds]

PRODUCTS = ("MatMul", "Gemm")
AFTER = "it lies after the last norm of the encoder, where precision is worth more than time"


def weighted_products(model: ModelProto) -> list[str]:
    """The names of the products whose second factor is a constant."""
    weights = {weight.name for weight in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in weights]


def test_the_products_of_the_encoder_are_quantised_and_no_others(traced: Traced) -> None:
    model, (report,) = on_models.change_precision(traced.fused, "int8")
    config = traced.config
    projection = getattr(config, "embedding_size", None) not in (None, config.hidden_size)
    expected = (10 if config.add_cross_attention else 6) * config.num_hidden_layers + projection
    operators = Counter(node.op_type for node in model.graph.node)
    assert report.count == operators["MatMulInteger"] == expected
    # Of every product that is left, the report says why.
    assert [(miss.node, miss.reason) for miss in report.near_misses] == [
        (name, AFTER) for name in weighted_products(model)
    ]
    assert len(report.near_misses) == len(weighted_products(traced.fused)) - expected
    assert bool(report.near_misses) == (traced.name not in PLAIN_ENCODERS)


PLAIN_ENCODERS = ("roformer-feature-extraction", "roformer-with-rotary-value-and-projection")


def test_products_of_one_tensor_share_its_quantisation(masked_lm: Traced) -> None:
    model, _ = on_models.change_precision(masked_lm.fused, "int8")
    readers = Counter(node.input[0] for node in model.graph.node if node.op_type == "MatMulInteger")
    makers = [node for node in model.graph.node if node.op_type == "DynamicQuantizeLinear"]
    layers = masked_lm.config.num_hidden_layers
    assert sorted(readers[node.output[0]] for node in makers) == [1] * (3 * layers) + [3] * layers
    assert len({node.input[0] for node in makers}) == len(makers)


def test_weights_are_stored_in_int8_alone(masked_lm: Traced) -> None:
    model, _ = on_models.change_precision(masked_lm.fused, "int8")
    weights = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            weight, zero_point = weights[node.input[1]], weights[node.input[3]]
            assert weight.dtype == zero_point.dtype == np.int8
            assert zero_point.tolist() == 0
            is_full = (np.abs(weight.astype(int)).max(axis=0) == 127) | (pair_sums(weight.astype(int)) >= 127)
            assert is_full.all(), "one scale per column"
    in_float = {w.shape for w in weights.values() if w.dtype == np.float32 and w.ndim == 2}
    assert (24, 40) not in in_float
    assert (40, 24) not in in_float


def test_the_interface_is_that_of_float32(
    traced: Traced, interface_of: Callable[[ModelProto], dict[str, list[Any]]]
) -> None:
    assert interface_of(on_models.change_precision(traced.fused, "int8")[0]) == interface_of(traced.plain)


def test_the_result_is_close_to_float32(traced: Traced, run: Run, make_feeds: MakeFeeds) -> None:
    model, _ = on_models.change_precision(traced.fused, "int8")
    feeds = make_feeds(traced.fused, batch=3, sequence=11)
    expected, found = run(traced.fused, feeds), run(model, feeds)
    for name, array in expected.items():
        metrics = measure([(array, found[name])], is_scores=False, clear_margin=0.0)
        assert metrics.sqnr_db is not None, "equal to the last bit: nothing was quantised"
        assert metrics.sqnr_db > 20


def test_it_runs_on_a_fused_graph_in_float32_alone(masked_lm: Traced) -> None:
    for precision in ("int8", "fp16"):
        changed, _ = on_models.change_precision(masked_lm.fused, precision)
        with pytest.raises(PassError, match="quantize_dynamic cannot run here"):
            on_models.change_precision(changed, "int8")


# Graphs in which one thing happens.

BLOCK = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16] gamma, float[16] beta, float[16, 16] w, float[16, 8] down, float[8, 16] up>
{
    product = MatMul (x, w)
    total = Add (product, x)
    y = LayerNormalization <epsilon: float = 1e-12> (total, gamma, beta)
}
"""


@pytest.fixture
def compile_block(rewrite: Rewrite) -> Callable[..., tuple[ModelProto, ModelProto, Any]]:
    """``compile_block(*replacements)``: the fused block, with random weights, and what the int8 pass made of it."""

    def build(*replacements: tuple[str, str]) -> tuple[ModelProto, ModelProto, Any]:
        model = rewrite(BLOCK, *replacements)
        random = np.random.default_rng(0)
        for value in list(model.graph.value_info):  # declared without a value: fill it in
            shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            array = random.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        del model.graph.value_info[:]
        fused, _ = on_models.fuse(model)
        changed, (report,) = on_models.change_precision(fused, "int8")
        return fused, changed, report

    return build


def test_a_product_that_reaches_a_norm_is_quantised(
    compile_block: Callable[..., Any], run: Run, make_feeds: MakeFeeds
) -> None:
    fused, changed, report = compile_block()
    assert (report.count, report.near_misses) == (1, ())
    feeds = make_feeds(fused)
    metrics = measure([(run(fused, feeds)["y"], run(changed, feeds)["y"])], is_scores=False, clear_margin=0.0)
    assert metrics.sqnr_db is not None
    assert metrics.sqnr_db > 20


def test_small_weights_are_left_alone(compile_block: Callable[..., Any]) -> None:
    _, changed, report = compile_block(
        ("product = MatMul (x, w)", "low = MatMul (x, down)\n product = MatMul (low, up)")
    )
    assert report.count == 0
    assert [miss.reason for miss in report.near_misses] == [
        "its weight of shape (16, 8) is too small to gain from int8",
        "its weight of shape (8, 16) is too small to gain from int8",
    ]
    assert "MatMulInteger" not in [node.op_type for node in changed.graph.node]


def test_what_comes_after_the_last_norm_is_left_alone(compile_block: Callable[..., Any]) -> None:
    _, _, report = compile_block(
        ("16] y)", "16] z)"),
        ("product = MatMul (x, w)", "product = Neg (x)"),
        ("(total, gamma, beta)", "(total, gamma, beta)\n z = MatMul (y, w)"),
    )
    assert (report.count, [miss.reason for miss in report.near_misses]) == (0, [AFTER])


def test_a_product_without_a_weight_is_not_mentioned(compile_block: Callable[..., Any]) -> None:
    _, _, report = compile_block(
        (
            "MatMul (x, w)",
            "Transpose <perm = [0, 2, 1]> (x)\n scores = MatMul (x, product)\n mixed = MatMul (scores, x)",
        ),
        ("Add (product, x)", "Add (mixed, x)"),
    )
    assert (report.count, report.near_misses) == (0, ())
