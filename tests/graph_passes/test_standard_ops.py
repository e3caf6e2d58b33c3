"""Each custom op written out in standard ones: it computes what its body does, and no node is there without need."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from graph_passes.graph_tools import export_model, import_model
from graph_passes.standard_ops import Shared, custom_ops, write_out
from plugins.ops import OPS

Rewrite = Callable[..., ModelProto]
Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]
MakeFeeds = Callable[..., Feeds]

HEADER = '<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1]>'
ROTARY = f"""
{HEADER}
model (
    FLOAT[batch, 3, sequence, 8] x, float[ROWS, sequence, 4] cos, float[ROWS, sequence, 4] sin
) => (FLOAT[batch, 3, sequence, 8] y)
{{
    y = rotary_press.InterleavedRotary (x, cos, sin)
}}
"""
NORM = f"""
{HEADER}
model (
    FLOAT[batch, sequence, 6] x, FLOAT[batch, sequence, 6] residual
) => (FLOAT[batch, sequence, 6] y, FLOAT[batch, sequence, 6] s)
<
    float[6] bias = {{0.5, 1, -2, 0.25, 0, 4}}, float[6] gamma = {{1.5, -0.5, 0.25, 2, 1, 0.75}},
    float[6] beta = {{0.5, 0, -1, 0.25, 3, -0.125}}
>
{{
    y, s = rotary_press.ResidualLayerNorm <epsilon: float = 0.1> (x, residual, bias, gamma, beta)
}}
"""
QKV = f"""
{HEADER}
model (
    FLOAT[batch, sequence, 72] qkv, float[ROWS, sequence, 4] cos, float[ROWS, sequence, 4] sin
) => (FLOAT[batch, 3, sequence, 8] q, FLOAT[batch, 3, sequence, 8] k, FLOAT[batch, 3, sequence, 8] v)
<float[72] bias = {{{", ".join(str(number / 16) for number in range(-36, 36))}}}>
{{
    q, k, v = rotary_press.QKVRotary <num_heads: int = 3, scale: float = 0.4, rotary_value: int = 0>
        (qkv, bias, cos, sin)
}}
"""
QUANTIZED = f"""
{HEADER}
model (
    FLOAT[batch, sequence, 6] x, FLOAT[batch, sequence, 6] residual
) => (int8[batch, sequence, 6] quantized, FLOAT[batch, sequence, 6] y, FLOAT[batch, sequence, 6] s)
<
    float[6] bias = {{0.5, 1, -2, 0.25, 0, 4}}, float[6] gamma = {{1.5, -0.5, 0.25, 2, 1, 0.75}},
    float[6] beta = {{0.5, 0, -1, 0.25, 3, -0.125}}, float step = {{0.01}}
>
{{
    quantized, y, s = rotary_press.QuantizedResidualLayerNorm <epsilon: float = 0.1>
        (x, residual, bias, gamma, beta, step)
}}
"""
ATTENTION = f"""
{HEADER}
model (
    FLOAT[batch, 3, sequence, 6] q, FLOAT[batch, 3, encoder_sequence, 6] k, FLOAT[batch, 3, encoder_sequence, 6] v,
    float[batch, 1, 1, encoder_sequence] mask
) => (FLOAT[batch, 3, sequence, 6] y)
<float[1, 1, 1, 1] no_mask = {{0}}>
{{
    y = rotary_press.ScaledDotProductAttention <scale: float = 0.4, zero_masked_rows: int = 0> (q, k, v, mask)
}}
"""
GELU = f"""
{HEADER}
model (FLOAT[batch, sequence, 6] x) => (FLOAT[batch, sequence, 6] y)
<float[6] bias = {{0.5, 1, -2, 0.25, 0, 4}}>
{{
    y = rotary_press.FusedBiasGelu <approximate: string = "none"> (x, bias)
}}
"""
NO_BIAS = ("{0.5, 1, -2, 0.25, 0, 4}", "{0, 0, 0, 0, 0, 0}")
NO_SUM = ("y, FLOAT[batch, sequence, 6] s)", "y)")
NO_MASK = ("(q, k, v, mask)", "(q, k, v, no_mask)")
ZEROS = ("zero_masked_rows: int = 0", "zero_masked_rows: int = 1")
DTYPES = ["float", "float16"]


def write(model: ModelProto) -> ModelProto:
    """The model with every custom op written out."""
    graph = import_model(model)
    shared: Shared = {}
    for node in custom_ops(graph):
        write_out(graph, node, shared)
    return export_model(graph.cleanup().toposort())


def parse(rewrite: Rewrite, text: str, dtype: str, *replacements: tuple[str, str]) -> ModelProto:
    """The model with the bodies of its ops, as a fused one is stored."""
    model = rewrite(text, *replacements, ("FLOAT", dtype))
    read = {value.name for value in model.graph.output} | {name for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        node.output[:] = [name if name in read else "" for name in node.output]  # the parser knows no empty name
    graph = import_model(model)
    dtypes = {"float": np.float32, "float16": np.float16}
    for node in graph.nodes:
        for tensor in node.outputs:
            tensor.dtype = np.dtype(np.int8 if tensor.name == "quantized" else dtypes[dtype])
    return export_model(graph)


def operators(model: ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node))


@pytest.fixture
def assert_written(run: Run, make_feeds: MakeFeeds) -> Callable[..., None]:
    """``assert_written(before, after, hidden)``: standard ops alone, each name once, and the same outputs.

    The mask holds ``hidden`` throughout its last row, if that is given.
    One rounding of half precision may fall the other way: the runtime may skip one in the body.
    """

    def check(before: ModelProto, after: ModelProto, hidden: float | None = None) -> None:
        assert not after.functions
        assert {node.domain for node in after.graph.node} <= {"", "ai.onnx"}
        names = [node.name for node in after.graph.node]
        made = [name for node in after.graph.node for name in node.output]
        weights = [weight.name for weight in after.graph.initializer]
        assert len({*made, *weights, *(value.name for value in after.graph.input)}) == (
            len(made) + len(weights) + len(after.graph.input)
        )
        assert len(set(names)) == len(names)
        for seed, (batch, sequence) in enumerate([(1, 1), (2, 5)]):
            feeds = make_feeds(before, seed=seed, batch=batch, sequence=sequence)
            if hidden is not None:
                feeds["mask"][-1:] = hidden
            expected, found = run(before, feeds), run(after, feeds)
            assert list(found) == list(expected)
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                half = array.dtype == np.float16
                np.testing.assert_allclose(found[name], array, rtol=2e-3 if half else 1e-5, atol=2e-3 if half else 2e-6)

    return check


def test_every_op_can_be_written_out() -> None:
    from graph_passes.standard_ops import WRITERS

    assert WRITERS.keys() == OPS.keys()


@pytest.mark.parametrize("rows", ["1", "batch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rotation(rewrite: Rewrite, assert_written: Callable[..., None], dtype: str, rows: str) -> None:
    fused = parse(rewrite, ROTARY, dtype, ("ROWS", rows))
    written = write(fused)
    assert_written(fused, written)
    assert operators(written).get("Cast", 0) == (2 if dtype == "float16" else 0)


def test_rotations_share_what_is_made_of_their_angles(rewrite: Rewrite, assert_written: Callable[..., None]) -> None:
    second = ("(x, cos, sin)", "(x, cos, sin)\n    z = rotary_press.InterleavedRotary (y, cos, sin)")
    fused = parse(rewrite, ROTARY, "float", ("ROWS", "1"), ("8] y)", "8] z)"), second)
    written = write(fused)
    assert_written(fused, written)
    assert operators(written)["Unsqueeze"] == 2 + 2 * 2, "of the angles, and of both halves of each result"


@pytest.mark.parametrize("rows", ["1", "batch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary_value", [0, 1])
def test_packed_heads(
    rewrite: Rewrite, assert_written: Callable[..., None], dtype: str, rows: str, rotary_value: int
) -> None:
    fused = parse(rewrite, QKV, dtype, ("ROWS", rows), ("value: int = 0", f"value: int = {rotary_value}"))
    written = write(fused)
    assert_written(fused, written)
    found = operators(written)
    assert found.get("Cast", 0) == (4 if dtype == "float16" else 0)
    assert (found["Slice"], found["Split"], found["Mul"]) == (2, 1 if rotary_value else 2, 4 + 1)


def test_packed_heads_without_bias_and_scale(rewrite: Rewrite, assert_written: Callable[..., None]) -> None:
    fused = parse(rewrite, QKV, "float", ("ROWS", "1"), ("scale: float = 0.4", "scale: float = 1.0"))
    [bias] = fused.graph.initializer
    bias.CopyFrom(numpy_helper.from_array(np.zeros(72, np.float32), "bias"))
    written = write(fused)
    assert_written(fused, written)
    assert (operators(written)["Add"], operators(written)["Mul"]) == (1, 4), "those of the rotation"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("outputs", ["", "y", "s", "ys"])
def test_a_norm_that_quantises(
    rewrite: Rewrite, assert_written: Callable[..., None], dtype: str, bias: bool, outputs: str
) -> None:
    left_out = [(f", FLOAT[batch, sequence, 6] {name}", "") for name in "ys" if name not in outputs]
    fused = parse(rewrite, QUANTIZED, dtype, *([] if bias else [NO_BIAS]), *left_out)
    written = write(fused)
    assert_written(fused, written)
    casts = {"Cast": 2 + len(outputs)} if dtype == "float16" else {}
    assert operators(written) == {"Add": 1 + bias, "LayerNormalization": 1, "QuantizeLinear": 1} | casts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("carried", [True, False], ids=["sum carried", "sum dropped"])
def test_a_residual_norm(
    rewrite: Rewrite, assert_written: Callable[..., None], dtype: str, bias: bool, carried: bool
) -> None:
    fused = parse(rewrite, NORM, dtype, *([] if bias else [NO_BIAS]), *([] if carried else [NO_SUM]))
    written = write(fused)
    assert_written(fused, written)
    casts = {"Cast": 3 + carried} if dtype == "float16" else {}
    assert operators(written) == {"Add": 1 + bias, "LayerNormalization": 1} | casts


def test_a_bias_that_is_computed_is_added(rewrite: Rewrite, assert_written: Callable[..., None]) -> None:
    fused = parse(
        rewrite, NORM, "float", ("6] residual", "6] residual, float[6] given"), ("residual, bias", "residual, given")
    )
    written = write(fused)
    assert_written(fused, written)
    assert operators(written) == {"Add": 2, "LayerNormalization": 1}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("scale", ["0.4", "1.0"])
def test_an_attention(
    rewrite: Rewrite, assert_written: Callable[..., None], dtype: str, masked: bool, scale: str
) -> None:
    fused = parse(rewrite, ATTENTION, dtype, ("0.4", scale), *([] if masked else [NO_MASK]))
    written = write(fused)
    assert_written(fused, written)
    expected = {"Transpose": 1, "MatMul": 2, "Softmax": 1, "Mul": scale != "1.0", "Add": masked}
    expected["Cast"] = 2 if dtype == "float16" else 0
    assert operators(written) == {name: count for name, count in expected.items() if count}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", [-np.inf, np.finfo(np.float32).min, 0.0])
@pytest.mark.parametrize("zeros", [True, False])
def test_rows_of_an_attention_that_are_hidden(
    rewrite: Rewrite, assert_written: Callable[..., None], dtype: str, fill: float, zeros: bool
) -> None:
    fused = parse(rewrite, ATTENTION, dtype, *([ZEROS] if zeros else []))
    written = write(fused)
    assert_written(fused, written, fill)
    assert ("Where" in operators(written)) == zeros


@pytest.mark.parametrize("ones", list(itertools.product([False, True], repeat=4)))
def test_rows_are_hidden_by_a_mask_of_any_shape(
    rewrite: Rewrite, assert_written: Callable[..., None], ones: tuple[bool, ...]
) -> None:
    names = ("batch", "3", "sequence", "encoder_sequence")
    axes = ", ".join("1" if one else name for one, name in zip(ones, names, strict=True))
    fused = parse(rewrite, ATTENTION, "float", ZEROS, ("[batch, 1, 1, encoder_sequence]", f"[{axes}]"))
    written = write(fused)
    assert_written(fused, written)
    assert_written(fused, written, -np.inf)


def test_what_is_no_mask_hides_no_rows(rewrite: Rewrite, assert_written: Callable[..., None]) -> None:
    fused = parse(rewrite, ATTENTION, "float", ZEROS, NO_MASK, ("0.4", "1.0"))
    written = write(fused)
    assert_written(fused, written)
    assert operators(written) == {"Transpose": 1, "MatMul": 2, "Softmax": 1}


def test_attentions_share_what_is_made_of_their_mask(rewrite: Rewrite, assert_written: Callable[..., None]) -> None:
    again = "rotary_press.ScaledDotProductAttention <scale: float = 0.5, zero_masked_rows: int = 1> (y, k, v, mask)"
    fused = parse(
        rewrite, ATTENTION, "float", ZEROS, ("6] y)", "6] z)"), ("(q, k, v, mask)", f"(q, k, v, mask)\n    z = {again}")
    )
    written = write(fused)
    assert_written(fused, written)
    assert_written(fused, written, -np.inf)
    assert (operators(written)["Where"], operators(written)["ReduceMax"]) == (2, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_biased_gelu(rewrite: Rewrite, assert_written: Callable[..., None], dtype: str, approximate: str) -> None:
    fused = parse(rewrite, GELU, dtype, ('"none"', f'"{approximate}"'))
    written = write(fused)
    assert_written(fused, written)
    assert operators(written) == {"Add": 1, "Gelu": 1} | ({"Cast": 2} if dtype == "float16" else {})


def test_nodes_without_a_name_get_some(rewrite: Rewrite, assert_written: Callable[..., None]) -> None:
    again = 'z = rotary_press.FusedBiasGelu <approximate: string = "tanh"> (y, bias)'
    fused = parse(rewrite, GELU, "float", ("6] y)", "6] z)"), ("(x, bias)", f"(x, bias)\n    {again}"))
    assert not any(node.name for node in fused.graph.node)
    assert_written(fused, write(fused))


@pytest.mark.parametrize("name", ["gelu_0_add_1", "gelu_0_gelu_3"])
def test_a_new_name_is_one_that_nothing_else_has(
    rewrite: Rewrite, assert_written: Callable[..., None], name: str
) -> None:
    both = ("6] y)", f"6] y, FLOAT[batch, sequence, 6] {name})"), ("(x, bias)", f"(x, bias)\n    {name} = Abs (x)")
    fused = parse(rewrite, GELU, "float", *both)
    fused.graph.node[0].name = "gelu"
    assert_written(fused, write(fused))


def test_other_nodes_are_left_alone(rewrite: Rewrite) -> None:
    model = rewrite(GELU, ("FLOAT", "float"), ('rotary_press.FusedBiasGelu <approximate: string = "none">', "Add"))
    assert custom_ops(import_model(model)) == []
