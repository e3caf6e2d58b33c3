"""Packed q, k and v: where they are three plain products of one tensor and rotated, and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graph_passes.errors import PassError
from graph_passes.fuse_qkv_rotary import PASS
from graph_passes.graph_pass import PassReport
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]
MakeFeeds = Callable[..., Feeds]
Rewrite = Callable[..., ModelProto]
AssertEqual = Callable[[ModelProto, ModelProto], None]

LAYER = """
<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1]>
layer (
    float[batch, sequence, 8] x, float[batch, sequence, 8] other, float[1, 1, 1, 1] mask,
    float[1, sequence, 2] cos, float[1, sequence, 2] sin, float[1, sequence, 2] others
) => (float[batch, 2, sequence, 4] y)
<int64[4] heads = {0, 0, 2, 4}>
{
    q_product = MatMul (x, q_weight)  q_sum = Add (q_product, q_bias)  q_rows = Reshape (q_sum, heads)
    q_heads = Transpose <perm: ints = [0, 2, 1, 3]> (q_rows)
    k_product = MatMul (x, k_weight)  k_sum = Add (k_product, k_bias)  k_rows = Reshape (k_sum, heads)
    k_heads = Transpose <perm: ints = [0, 2, 1, 3]> (k_rows)
    v_product = MatMul (x, v_weight)  v_sum = Add (v_product, v_bias)  v_rows = Reshape (v_sum, heads)
    v = Transpose <perm: ints = [0, 2, 1, 3]> (v_rows)
    q = rotary_press.InterleavedRotary (q_heads, cos, sin)
    k = rotary_press.InterleavedRotary (k_heads, cos, sin)
    y = rotary_press.ScaledDotProductAttention <scale: float = 0.5, zero_masked_rows: int = 0> (q, k, v, mask)
}
"""
SHAPES = {f"{part}_{name}": shape for part in "qkv" for name, shape in (("weight", (8, 8)), ("bias", (8,)))}
ROTATED_V = (
    ("v = Transpose", "v_heads = Transpose"),
    ("k = rotary_press", "v = rotary_press.InterleavedRotary (v_heads, cos, sin)\n    k = rotary_press"),
)
CACHE = (
    (
        "float[1, 1, 1, 1] mask",
        "float[1, 1, 1, 1] mask, float[batch, 2, past, 4] old_k, float[batch, 2, past, 4] old_v",
    ),
    (
        "y = rotary",
        "new_k = Concat <axis: int = 2> (old_k, k)  new_v = Concat <axis: int = -2> (old_v, v)\n    y = rotary",
    ),
    ("(q, k, v, mask)", "(q, new_k, new_v, mask)"),
    ("4] y)", "4] y, float[batch, 2, total, 4] new_k, float[batch, 2, total, 4] new_v)"),
)


def layer(rewrite: Rewrite, *replacements: tuple[str, str], **shapes: tuple[int, ...]) -> ModelProto:
    """The model that the text describes after the replacements, through the fusions, with weights of these shapes."""
    model = rewrite(LAYER, *replacements)
    random = np.random.default_rng(0)
    inputs = {value.name for value in model.graph.input}
    for name, shape in (SHAPES | shapes).items():
        if name not in inputs:
            values = random.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    return on_models.fuse(model)[0]


def fuse(model: ModelProto) -> tuple[ModelProto, PassReport]:
    fused, (report,) = on_models.run_passes(model, [PASS])
    return fused, report


def nodes(model: ModelProto, op: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp16", 2e-2)])  # fp16: 2^-11 of 5, in each layer
def test_each_self_attention_of_a_roformer_is_packed(
    traced: Traced, run: Run, make_feeds: MakeFeeds, precision: Any, atol: float
) -> None:
    config = traced.config
    layers = config.num_hidden_layers if config.model_type == "roformer" else 0
    model, _ = on_models.change_precision(traced.fused, precision)
    packed, report = fuse(model)
    before, after = (Counter(node.op_type for node in graph.graph.node) for graph in (model, packed))
    assert report.count == after["QKVRotary"] == layers
    assert report.near_misses == ()
    assert after["InterleavedRotary"] == 0
    assert after["MatMul"] == before["MatMul"] - 2 * layers
    weights = {tensor.name: tensor for tensor in packed.graph.initializer}
    for node in nodes(packed, "QKVRotary"):
        assert attributes(node) == {
            "num_heads": config.num_attention_heads,
            "scale": pytest.approx((config.hidden_size // config.num_attention_heads) ** -0.5),
            "rotary_value": int(config.rotary_value),
        }
        assert weights[node.input[1]].data_type == TensorProto.FLOAT
    scales = [
        Counter(attributes(node)["scale"] for node in nodes(graph, "ScaledDotProductAttention"))
        for graph in (model, packed)
    ]
    assert scales[1][1.0] == scales[0][1.0] + layers
    for seed, (batch, sequence) in enumerate([(1, 1), (3, 9)]):
        feeds = make_feeds(model, seed=seed, batch=batch, sequence=sequence)
        expected, found = run(model, feeds), run(packed, feeds)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=atol, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    "replacements",
    [
        (),
        (("Add (k_product, k_bias)", "Add (k_bias, k_product)"),),
        (("q_sum = Add (q_product, q_bias)", ""), ("Reshape (q_sum", "Reshape (q_product")),
        ROTATED_V,
        CACHE,
        (*ROTATED_V, *CACHE),
        (("4] y)", "4] y, float[batch, 2, sequence, 4] k, float[batch, 2, sequence, 4] v)"),),
    ],
    ids=["plain", "commuted", "no bias of q", "v rotated", "a cache", "both", "a cache that was empty"],
)
def test_three_products_become_one(
    rewrite: Rewrite, assert_equal: AssertEqual, replacements: tuple[tuple[str, str], ...]
) -> None:
    model = layer(rewrite, *replacements)
    packed, report = fuse(model)
    assert (report.count, report.near_misses) == (1, ())
    operators = Counter(node.op_type for node in packed.graph.node)
    expected = {"MatMul": 1, "QKVRotary": 1, "ScaledDotProductAttention": 1}
    assert operators == expected | ({"Concat": 2} if CACHE[0] in replacements else {})
    [node], [attention] = nodes(packed, "QKVRotary"), nodes(packed, "ScaledDotProductAttention")
    is_rotated = ROTATED_V[0] in replacements
    assert attributes(node) == {"num_heads": 2, "scale": 0.5, "rotary_value": int(is_rotated)}
    assert attributes(attention)["scale"] == 1.0
    assert_equal(model, packed)


def test_twice_changes_nothing(rewrite: Rewrite) -> None:
    packed, _ = fuse(layer(rewrite))
    again, report = fuse(packed)
    assert (report.count, report.near_misses) == (0, ())
    assert again == packed


OUTPUT = "float[batch, 2, sequence, 4] y)"
MISSES: dict[str, tuple[tuple[tuple[str, str], ...], dict[str, tuple[int, ...]], str]] = {
    "another source": (
        (("q_product = MatMul (x,", "q_product = MatMul (other,"),),
        {},
        "its q, k and v are made of other, x and x",
    ),
    "a product that is read elsewhere": (
        ((OUTPUT, f"float[batch, sequence, 8] q_product, {OUTPUT}"),),
        {},
        "q_product, of which q is made, is read elsewhere",
    ),
    "a sum that is read elsewhere": (
        ((OUTPUT, f"float[batch, sequence, 8] k_sum, {OUTPUT}"),),
        {},
        "k_sum, of which k is made, is read elsewhere",
    ),
    "heads that are read before they are rotated": (
        ((OUTPUT, f"float[batch, 2, sequence, 4] k_heads, {OUTPUT}"),),
        {},
        "k_heads, of which k is made, is read elsewhere",
    ),
    "a q that is read elsewhere": (
        ((OUTPUT, f"float[batch, 2, sequence, 4] q, {OUTPUT}"),),
        {},
        "its q, q, is read elsewhere",
    ),
    "other angles of k": (
        (("(k_heads, cos, sin)", "(k_heads, cos, others)"),),
        {},
        "its q and k are not rotated by the same angles",
    ),
    "no angles of k": (
        (("k = rotary_press.InterleavedRotary (k_heads, cos, sin)", ""), ("(q, k, v", "(q, k_heads, v")),
        {},
        "its q and k are not rotated by the same angles",
    ),
    "other angles of v": (
        (ROTATED_V[0], (ROTATED_V[1][0], ROTATED_V[1][1].replace("cos, sin", "cos, others"))),
        {},
        "its v is rotated by other angles than its q",
    ),
    "other heads of v": (
        (
            ("4}>", "4}, int64[4] wider = {0, 0, 2, 6}>"),
            ("Reshape (v_sum, heads)", "Reshape (v_sum, wider)"),
            (OUTPUT, "float[batch, 2, sequence, 6] y)"),
        ),
        {"v_weight": (8, 12), "v_bias": (12,)},
        "its q, k and v must have heads of one number and size; got [(2, 4), (2, 4), (2, 6)]",
    ),
    "k as v": ((("(q, k, v,", "(q, k, k,"),), {}, "its k and v are one tensor, k"),
    "rows put together": (
        (
            ("{0, 0, 2, 4}", "{1, -1, 2, 4}"),
            (OUTPUT, "float[N, 2, M, 4] y)"),
            ("float[1, sequence, 2]", "float[1, 1, 2]"),
        ),
        {},
        "q must be (B, S, HD) as (B, H, S, D)",
    ),
    "a weight that is computed": (
        (("float[1, 1, 1, 1] mask", "float[1, 1, 1, 1] mask, float[8, 8] k_weight"),),
        {},
        "k must be a product with a constant weight",
    ),
    "a bias that is computed": (
        (("Add (v_product, v_bias)", "Add (v_product, other)"),),
        {},
        "v must come from a MatMul; got Add (v_sum)",
    ),
    "heads that come in": (
        (
            ("float[1, 1, 1, 1] mask", "float[1, 1, 1, 1] mask, float[batch, 2, sequence, 4] given"),
            ("(q, k, v", "(q, k, given"),
        ),
        {},
        "given must come from a Transpose; got no node (given)",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_what_cannot_be_packed_is_left_alone_with_the_reason(rewrite: Rewrite, name: str) -> None:
    replacements, shapes, reason = MISSES[name]
    model = layer(rewrite, *replacements, **shapes)
    left, report = fuse(model)
    assert report.count == 0
    [miss] = report.near_misses
    assert miss.reason.startswith(reason)
    assert left.graph.node == model.graph.node


def test_an_attention_without_a_rotation_is_no_near_miss(rewrite: Rewrite) -> None:
    plain = [(f"{part} = rotary_press.InterleavedRotary ({part}_heads, cos, sin)", "") for part in "qk"]
    _, report = fuse(layer(rewrite, *plain, ("(q, k, v", "(q_heads, k_heads, v")))
    assert (report.count, report.near_misses) == (0, ())


def test_it_comes_after_the_fusions_and_before_the_lowerings(masked_lm: Traced) -> None:
    with pytest.raises(PassError, match=r"it needs \['fuse_rotary', 'fuse_attention'\] before it"):
        fuse(masked_lm.plain)
    for target in ("onnxruntime", "native", "plugin"):
        lowered, _ = on_models.lower(masked_lm.fused, target)
        with pytest.raises(PassError, match=f"must not come after \\['lower_to_{target}'\\]"):
            fuse(lowered)
