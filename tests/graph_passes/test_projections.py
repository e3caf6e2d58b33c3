"""Packed weights in int8: columns and their scales stay together, in both packings; what is no such weight is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from graph_passes import fuse_qkv_rotary, lower_to_native
from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.insert_qdq import stored_in_int8
from graph_passes.projections import Weight, constant_weight
from tests import on_models

Feeds = dict[str, NDArray[Any]]
Rewrite = Callable[..., ModelProto]

LAYER = """
<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1]>
layer (
    float[batch, sequence, 8] x, float[1, 1, 1, 1] mask, float[1, sequence, 2] cos, float[1, sequence, 2] sin
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
PLAIN = tuple((f"{part} = rotary_press.InterleavedRotary ({part}_heads, cos, sin)", "") for part in "qk")
PLAIN = (*PLAIN, ("(q, k, v", "(q_heads, k_heads, v"))
PASSES = {"native": lower_to_native.PASS, "plugin": fuse_qkv_rotary.PASS}


def layer(rewrite: Rewrite, *replacements: tuple[str, str], parts: str = "qkv") -> ModelProto:
    """The fused layer with the weights of ``parts`` in int8; no two columns are of one magnitude."""
    model = rewrite(LAYER, *replacements)
    random = np.random.default_rng(0)
    for name, shape in (("weight", (8, 8)), ("bias", (8,))):
        for part in "qkv":
            values = random.standard_normal(shape) * np.geomspace(0.1, 2, 8)[::-1]
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{part}_{name}"))

    def in_int8(graph: gs.Graph) -> PassResult:
        for node in list(graph.nodes):
            if node.op == "MatMul" and node.inputs[1].name[0] in parts:
                node.inputs[1] = stored_in_int8(graph, node.inputs[1], node.inputs[1].values)
        return PassResult(graph, len(parts))

    fused, _ = on_models.fuse(model)
    return on_models.run_passes(fused, [GraphPass("in_int8", in_int8)])[0]


@pytest.mark.parametrize(
    ("target", "replacements"),
    [("native", ()), ("native", PLAIN), ("plugin", ())],
    ids=["native, rotated", "native, plain", "plugin"],
)
def test_columns_and_scales_are_packed_together(
    rewrite: Rewrite,
    assert_equal: Callable[[ModelProto, ModelProto], None],
    target: str,
    replacements: tuple[tuple[str, str], ...],
) -> None:
    model = layer(rewrite, *replacements)
    packed, _ = on_models.run_passes(model, [PASSES[target]])
    operators = Counter(node.op_type for node in packed.graph.node)
    assert operators["DequantizeLinear"] == 1
    assert operators["MatMul"] == (3 if target == "native" else 1)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in packed.graph.initializer}
    [node] = [node for node in packed.graph.node if node.op_type == "DequantizeLinear"]
    values, scale = (known[name] for name in node.input)
    assert (values.dtype.name, values.shape, scale.dtype.name, scale.shape) == ("int8", (8, 24), "float32", (24,))
    assert_equal(model, packed)


@pytest.mark.parametrize("target", PASSES)
@pytest.mark.parametrize("parts", ["q", "kv"])
def test_weights_of_several_precisions_are_not_packed(rewrite: Rewrite, target: str, parts: str) -> None:
    model = layer(rewrite, parts=parts)
    left, (report,) = on_models.run_passes(model, [PASSES[target]])
    assert sum(node.op_type == "DequantizeLinear" for node in left.graph.node) == len(parts)
    if target == "plugin":
        [miss] = report.near_misses
        assert miss.reason == "its q, k and v have weights of several precisions"


def dequantised(values: NDArray[Any], scale: NDArray[Any], *zero_points: NDArray[Any], **attrs: int) -> gs.Tensor:
    made = gs.Variable("made", np.float32, values.shape)
    constants = [gs.Constant(f"c{index}", array) for index, array in enumerate((values, scale, *zero_points))]
    gs.Node("DequantizeLinear", "node", attrs, constants, [made])
    return made


VALUES = np.arange(-3, 3, dtype=np.int8).reshape(2, 3)
SCALE = np.array([1, 2, 4], np.float32)


@pytest.mark.parametrize(
    ("tensor", "is_weight"),
    [
        (dequantised(VALUES, SCALE, axis=1), True),
        (dequantised(VALUES, SCALE), True),
        (dequantised(VALUES, SCALE, axis=-1), True),
        (dequantised(VALUES, SCALE, np.zeros(3, np.int8), axis=1), True),
        (dequantised(VALUES, SCALE, np.array([0, 0, 1], np.int8), axis=1), False),
        (dequantised(VALUES, SCALE[:2], axis=0), False),
        (dequantised(VALUES, SCALE, axis=1, block_size=1), False),
        (dequantised(VALUES, np.array(1, np.float32)), False),
        (dequantised(VALUES.astype(np.uint8), SCALE, axis=1), False),
        (dequantised(VALUES[None], SCALE, axis=1), False),
        (gs.Variable("computed", np.float32, (2, 3)), False),
    ],
)
def test_only_int8_with_a_scale_per_column_is_such_a_weight(tensor: gs.Tensor, is_weight: bool) -> None:
    found = constant_weight(tensor)
    assert (found is not None) == is_weight
    if found is not None:
        assert found.scale is not None
        np.testing.assert_array_equal(found.values, VALUES)
        np.testing.assert_array_equal(found.scale, SCALE)


def test_reordering_moves_columns_with_their_scales() -> None:
    order = np.array([2, 0, 1])
    moved, scale = Weight(VALUES, SCALE).columns(order)
    np.testing.assert_array_equal(moved, VALUES[:, order])
    np.testing.assert_array_equal(scale, SCALE[order])
    assert Weight(VALUES).columns(order).scale is None
