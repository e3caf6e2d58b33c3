"""The native form: standard ops alone, packed where that can be, computing the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graph_passes.lower_to_native import by_halves
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_standard_ops_are_left(masked_lm: Traced, precision: Any) -> None:
    model, _ = on_models.change_precision(masked_lm.fused, precision)
    lowered, (report,) = on_models.lower(model, "native")
    assert not lowered.functions
    assert {node.domain for node in lowered.graph.node} == {""}
    assert report.count == sum(node.domain == "rotary_press" for node in model.graph.node) > 0


# fp16: a sum that is carried on is rounded once more, to 2^-11 of values up to 5, in each layer.
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp16", 2e-2)])
def test_it_computes_the_same(
    traced: Traced, run: Run, make_feeds: Callable[..., Feeds], precision: Any, atol: float
) -> None:
    model, _ = on_models.change_precision(traced.fused, precision)
    lowered, _ = on_models.lower(model, "native")
    for seed, (batch, sequence) in enumerate([(1, 1), (3, 17)]):
        feeds = make_feeds(model, seed=seed, batch=batch, sequence=sequence)
        expected, found = run(model, feeds), run(lowered, feeds)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=atol, atol=atol, err_msg=name)


def test_an_encoder_layer_has_four_products_with_weights(masked_lm: Traced) -> None:
    """Packed q, k and v, the attention's output, and the two of the feed-forward; and its head has two."""
    lowered, _ = on_models.lower(masked_lm.fused, "native")
    weights = {tensor.name: tuple(tensor.dims) for tensor in lowered.graph.initializer}
    shapes = Counter(
        weights[node.input[1]] for node in lowered.graph.node if node.op_type == "MatMul" and node.input[1] in weights
    )
    assert shapes == {(24, 72): 2, (24, 24): 2 + 1, (24, 40): 2, (40, 24): 2, (24, 41): 1}
    assert sum(node.op_type == "Softmax" for node in lowered.graph.node) == 2


def test_scores_are_float32_and_everything_else_that_is_large_is_not(masked_lm: Traced) -> None:
    model, _ = on_models.change_precision(masked_lm.fused, "fp16")
    lowered, _ = on_models.lower(model, "native")
    made = {output: node for node in lowered.graph.node for output in node.output}
    for node in lowered.graph.node:
        if node.op_type == "Softmax":
            added = made[node.input[0]]
            assert added.op_type == "Add"
            cast = made[added.input[0]]
            assert helper.get_attribute_value(cast.attribute[0]) == TensorProto.FLOAT
            assert made[cast.input[0]].op_type == "MatMul"
        if node.op_type == "MatMul" and (weight := find(lowered, node.input[1])) is not None:
            assert weight.data_type == TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("name", "sums"),
    [
        # of embeddings, then none before the first block, then those that are carried on, and none in the head
        ("roberta-prelayernorm-fill-mask", ["wide", "none", *["rounded"] * 4, "none"]),
        # the last reads one that is carried on; the first token, for the pooler, has a norm of its own
        ("roberta-prelayernorm-feature-extraction", ["wide", "none", "rounded", "rounded", "rounded"]),
        ("roformer-fill-mask", [*["wide"] * 5, "none"]),
        # the result of the last is a result of the graph
        ("roformer-feature-extraction", ["wide", "wide", "rounded"]),
    ],
)
def test_a_sum_is_rounded_where_the_compiler_would_store_it_in_float32(
    get_traced: Callable[[str], Traced], name: str, sums: list[str]
) -> None:
    model, _ = on_models.change_precision(get_traced(name).fused, "fp16")
    lowered, _ = on_models.lower(model, "native")
    made = {output: node for node in lowered.graph.node for output in node.output}
    found = []
    for norm in (node for node in lowered.graph.node if node.op_type == "LayerNormalization"):
        before = made[norm.input[0]]
        source = made[before.input[0]].op_type
        found.append("wide" if before.op_type != "Cast" else "none" if source == "Cast" else "rounded")
    assert found == sums


def test_biases_are_added_in_half_precision(masked_lm: Traced) -> None:
    """In the product that they follow, then: a GELU's reads half the bytes, and no sum is stored in float32."""
    model, _ = on_models.change_precision(masked_lm.fused, "fp16")
    lowered, _ = on_models.lower(model, "native")
    made = {output: node for node in lowered.graph.node for output in node.output}
    vectors = {tensor.name: tensor.data_type for tensor in lowered.graph.initializer if len(tensor.dims) == 1}
    added = [
        vectors[name]
        for node in lowered.graph.node
        if node.op_type == "Add" and node.input[0] in made and made[node.input[0]].op_type == "MatMul"
        for name in node.input
        if name in vectors
    ]
    assert added.count(TensorProto.FLOAT16) == len(added) >= 2 * 4
    assert not any(made[node.input[0]].op_type == "MatMul" for node in lowered.graph.node if node.op_type == "Gelu")


def test_a_bias_that_half_precision_does_not_hold_stays(rewrite: Callable[..., ModelProto], run: Run) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    layer (float[batch, sequence, 2] x) => (float[batch, sequence, 2] y) <float[2] bias = {-70000.0, 1.0}>
    { total = Add (x, bias)  y = Gelu (total) }
    """
    fused, reports = on_models.fuse(rewrite(text))
    assert {report.name: report.count for report in reports}["fuse_bias_gelu"] == 1
    lowered, _ = on_models.lower(on_models.change_precision(fused, "fp16")[0], "native")
    found = run(lowered, {"x": np.array([[[71000.0 / 2, 0.0]]], np.float32)})["y"]
    np.testing.assert_allclose(found, [[[0.0, 0.8413]]], atol=1e-3)
    assert [tensor.data_type for tensor in lowered.graph.initializer] == [TensorProto.FLOAT]


def test_the_token_that_a_pooler_reads_is_normalised_apart(get_traced: Callable[[str], Traced]) -> None:
    """And what nothing else reads is not normalised at all."""
    for name, norms in (
        ("roberta-prelayernorm-feature-extraction", 2),
        ("roberta-prelayernorm-text-classification", 1),
    ):
        fused = get_traced(name).fused
        lowered, _ = on_models.lower(fused, "native")
        last = [node for node in lowered.graph.node if node.op_type == "LayerNormalization"][-norms:]
        made = {output: node.op_type for node in lowered.graph.node for output in node.output}
        before = ["Gather", "Unsqueeze"] if norms == 2 else ["Gather"]
        assert sorted(made[norm.input[0]] for norm in last) == before
        assert len({norm.input[1] for norm in last}) == 1
        assert not any(
            node.op_type == "Gather" and "norm" in made[node.input[0]]
            for node in lowered.graph.node
            if node.input[0] in made
        )


def find(model: ModelProto, name: str) -> TensorProto | None:
    return next((tensor for tensor in model.graph.initializer if tensor.name == name), None)


def test_columns_by_halves() -> None:
    assert by_halves(2, 6).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


LAYER = """
<ir_version: 10, opset_import: ["" : 20]>
layer (float[batch, sequence, 8] x, float[batch, sequence, 8] other, float[batch, 1, 1, sequence] mask)
    => (float[batch, sequence, 8] result)
<int64[4] heads = {0, 0, 2, 4}, int64[3] flat = {0, 0, 8}>
{
    q_product = MatMul (x, q_weight)  q_sum = Add (q_product, q_bias)  q_heads = Reshape (q_sum, heads)
    q = Transpose <perm: ints = [0, 2, 1, 3]> (q_heads)
    k_product = MatMul (x, k_weight)  k_sum = Add (k_bias, k_product)  k_heads = Reshape (k_sum, heads)
    k = Transpose <perm: ints = [0, 2, 1, 3]> (k_heads)
    v_product = MatMul (x, v_weight)  v_sum = Add (v_product, v_bias)  v_heads = Reshape (v_sum, heads)
    v = Transpose <perm: ints = [0, 2, 1, 3]> (v_heads)
    columns = Transpose <perm: ints = [0, 1, 3, 2]> (k)
    product = MatMul (q, columns)
    scores = Add (product, mask)
    weights = Softmax (scores)
    context = MatMul (weights, v)
    moved = Transpose <perm: ints = [0, 2, 1, 3]> (context)
    result = Reshape (moved, flat)
}
"""


def layer(rewrite: Callable[..., ModelProto], *replacements: tuple[str, str]) -> ModelProto:
    model = rewrite(LAYER, *replacements)
    random = np.random.default_rng(0)
    for name, shape in (("weight", (8, 8)), ("bias", (8,))):
        for part in "qkv":
            values = random.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, f"{part}_{name}"))
    return model


@pytest.mark.parametrize(
    ("replacements", "products"),
    [
        ((), 3),
        ((("k_product = MatMul (x,", "k_product = MatMul (other,"),), 5),  # cross-attention
        ((("float[batch, sequence, 8] result)", "float[batch, sequence, 8] result, float[B, H, S, D] k)"),), 5),
        ((("v_sum = Add (v_product, v_bias)", "v_sum = Identity (v_product)"),), 5),
        ((("v_sum = Add (v_product, v_bias)", ""), ("Reshape (v_sum", "Reshape (v_product")), 5),
        (
            (
                ("heads = {0, 0, 2, 4}", "heads = {1, -1, 2, 4}"),
                ("Add (product, mask)", "Identity (product)"),
                ("float[batch, sequence, 8] result)", "float[N, M, 8] result)"),
            ),
            5,
        ),
    ],
    ids=["packed", "another source", "a cache", "an Identity", "no bias", "rows put together"],
)
def test_only_three_plain_products_of_one_tensor_are_packed(
    rewrite: Callable[..., ModelProto],
    run: Run,
    make_feeds: Callable[..., Feeds],
    replacements: tuple[tuple[str, str], ...],
    products: int,
) -> None:
    plain = layer(rewrite, *replacements)
    fused, reports = on_models.fuse(plain)
    assert {report.name: report.count for report in reports}["fuse_attention"] == 1
    lowered, _ = on_models.lower(fused, "native")
    assert sum(node.op_type == "MatMul" for node in lowered.graph.node) == products
    for sizes in ({"batch": 1, "sequence": 1}, {"batch": 2, "sequence": 9}):
        feeds = make_feeds(plain, **sizes)
        expected, found = run(plain, feeds), run(lowered, feeds)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
