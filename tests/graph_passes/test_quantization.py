"""How a weight is kept in int8: closely, and so that no processor saturates on it, whatever it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, parser

from graph_passes.errors import PassError
from graph_passes.quantization import MOST_ROWS, pair_sums, quantize_weight, round_up, round_weight, smallest_scale
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Activations = NDArray[np.uint8]
Weights = NDArray[np.int8]

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
)
# Equal numbers, halves and their neighbours: where roundings decide.
close_weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.sampled_from([base + step for base in (0.0, 0.5, 1.0, -1.0, 127.0) for step in (0.0, 1e-7, 1e-3)]),
)


def multiply(a: Activations, w: Weights) -> NDArray[np.int64]:
    """(M, K) x (K, N) -> (M, N), exactly: what instructions with sums of 32 bits compute (VNNI, AMX, Arm)."""
    return a.astype(np.int64) @ w.astype(np.int64)


def multiply_in_16_bits(a: Activations, w: Weights) -> NDArray[np.int64]:
    """The same as VPMADDUBSW does it, which AVX2 and AVX-512 without VNNI have: pairs of rows saturate at 16 bits."""
    rows = -(-w.shape[0] // 2) * 2
    wide = np.zeros((a.shape[0], rows), np.int64), np.zeros((rows, w.shape[1]), np.int64)
    wide[0][:, : a.shape[1]], wide[1][: w.shape[0]] = a, w
    pairs = sum(wide[0][:, first::2, None] * wide[1][None, first::2] for first in (0, 1))
    saturated: NDArray[np.int64] = np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)
    return saturated


def extremes(w: Weights) -> Activations:
    """Activations (M, K) that take sums to their ends: all 255, every other one, and those of each column's signs."""
    rows = np.arange(w.shape[0])
    whole = [np.full(w.shape[0], True), rows % 2 == 0, rows % 2 == 1, rows % 4 < 2, rows % 4 >= 2]
    return np.where(np.stack([*whole, *(w > 0).T, *(w < 0).T]), 255, 0).astype(np.uint8)


def dynamic_product(w: Weights) -> ModelProto:
    """The integer product of quantize_dynamic: ``y`` (M, N) int32 of ``a`` (M, K) uint8 and a zero point ``z``."""
    rows, columns = w.shape
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        product (uint8[m, {rows}] a, uint8 z) => (int32[m, {columns}] y) {{ y = MatMulInteger (a, w, z) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return model


def static_product(w: Weights, scale: NDArray[np.float32]) -> ModelProto:
    """The product of insert_qdq: ``y`` (M, N) float32 of ``x`` (M, K) float32 in steps of one half."""
    rows, columns = w.shape
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        product (float[m, {rows}] x) => (float[m, {columns}] y) <float s = {{0.5}}, int8 z = {{0}}> {{
            quantized = QuantizeLinear (x, s, z)
            back = DequantizeLinear (quantized, s, z)
            weight = DequantizeLinear <axis = 1> (w, scale)
            y = MatMul (back, weight)
        }}"""
    )
    model.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(scale, "scale")])
    return model


def open_session(model: ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def some_weight(kind: str, rows: int, columns: int) -> NDArray[np.float32]:
    random = np.random.default_rng(rows + columns)
    drawn = random.standard_normal((rows, columns))
    made = {
        "gaussian": drawn,
        "ones": np.ones_like(drawn),
        "minus ones": -np.ones_like(drawn),
        "nearly ones": 1 + 0.01 * drawn,
        "outliers": drawn * (1 + 30 * (random.random((rows, 1)) < 0.02)),
        "one sign": np.abs(drawn),
    }
    return made[kind].astype(np.float32)


KINDS = ["gaussian", "ones", "minus ones", "nearly ones", "outliers", "one sign"]
# One row has kernels of its own, and so has what remains of 4 rows and 16 columns; 384 rows are one block.
SIZES = [(16, 16), (17, 19), (384, 32), (385, 48), (770, 33)]


# The arithmetic that it is about.


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_this_processor_multiplies_in_one_of_the_two_ways(size: tuple[int, int]) -> None:
    """Bit for bit, which pairs are added too: on weights that do saturate where pairs are added in 16 bits."""
    w = np.random.default_rng(1).integers(90, 128, size, dtype=np.int8)
    a = extremes(w)
    assert np.any(multiply_in_16_bits(a, w) != multiply(a, w))
    session = open_session(dynamic_product(w))
    zero = np.zeros((), np.uint8)
    for batch in (a, a[:1]):
        [found] = session.run(None, {"a": batch, "z": zero})
        assert any(np.array_equal(found, way(batch, w)) for way in (multiply, multiply_in_16_bits))


# By construction.


@given(st.one_of(weights, close_weights))
def test_no_activations_saturate_a_quantised_weight(weight: NDArray[np.float32]) -> None:
    w, _ = quantize_weight(weight)
    a = extremes(w)
    np.testing.assert_array_equal(multiply_in_16_bits(a, w), multiply(a, w))


@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.integers(-127, 127)))
def test_the_worst_case_is_that_of_all_activations(w: Weights) -> None:
    """The proof in integers agrees with multiplying: a weight passes exactly if nothing saturates on it."""
    a = extremes(w)
    saturates = np.any(multiply_in_16_bits(a, w) != multiply(a, w), axis=0)
    np.testing.assert_array_equal(pair_sums(w.astype(np.int32)) > 128, saturates)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_the_runtime_multiplies_dynamic_int8_exactly(kind: str, size: tuple[int, int], zero_point: int) -> None:
    w, _ = quantize_weight(some_weight(kind, *size))
    a = extremes(w)
    session = open_session(dynamic_product(w))
    expected = multiply(a, w) - zero_point * w.astype(np.int64).sum(axis=0)
    for rows in (slice(None), slice(0, 1)):
        [found] = session.run(None, {"a": a[rows], "z": np.asarray(zero_point, np.uint8)})
        np.testing.assert_array_equal(found, expected[rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_runtime_multiplies_static_int8_exactly(kind: str, size: tuple[int, int]) -> None:
    w, _ = quantize_weight(some_weight(kind, *size))
    scale = np.full(size[1], 0.25, np.float32)  # powers of two: the result shows the integer sum
    steps = extremes(w).astype(np.int64) - 128
    session = open_session(static_product(w, scale))
    for rows in (slice(None), slice(0, 1)):
        [found] = session.run(None, {"x": (steps[rows] * 0.5).astype(np.float32)})
        np.testing.assert_array_equal(found / (0.5 * 0.25), steps[rows] @ w.astype(np.int64))


@pytest.mark.parametrize(
    ("form", "target"),
    [
        ("dynamic", "portable"),
        ("dynamic", "onnxruntime"),
        ("static", "portable"),
        ("static", "onnxruntime"),
        ("static", "native"),
        ("static", "plugin"),
    ],
)
def test_no_weight_of_a_model_saturates(masked_lm: Traced, form: str, target: str) -> None:
    ranges = on_models.ranges_of(masked_lm.fused) if form == "static" else None
    model, reports = on_models.change_precision(masked_lm.fused, "int8", ranges=ranges)
    lowered, _ = on_models.lower(model, target)
    stored = [numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer]
    int8 = [array for array in stored if array.dtype == np.int8 and array.ndim == 2]
    assert len(int8) in (reports[0].count, reports[0].count * 4 // 6)  # q, k and v in one
    for w in int8:
        a = extremes(w)
        np.testing.assert_array_equal(multiply_in_16_bits(a, w), multiply(a, w))


def test_a_weight_in_steps_that_are_too_small_is_refused() -> None:
    weight = np.ones((2, 3), np.float32)
    scale = np.array([1 / 64, 1 / 64.4, 1 / 65], np.float32)
    assert round_weight(weight[:, :2], scale[:2]).tolist() == [[64, 64], [64, 64]]
    with pytest.raises(PassError, match=r"add up to 130, expected at most 128.*could saturate"):
        round_weight(weight, scale)


def test_a_product_that_32_bits_may_not_hold_is_left_alone(rewrite: Callable[..., ModelProto]) -> None:
    for rows, count in ((MOST_ROWS, 1), (MOST_ROWS + 1, 0)):
        model = rewrite(
            """<ir_version: 10, opset_import: ["" : 20]>
            block (float[batch, 1, ROWS] x, float[batch, 1, 16] r) => (float[batch, 1, 16] y)
            <float[16] gamma = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>
            {
                product = MatMul (x, w)
                total = Add (product, r)
                y = LayerNormalization (total, gamma)
            }""",
            ("ROWS", str(rows)),
        )
        model.graph.initializer.append(numpy_helper.from_array(np.full((rows, 16), 0.01, np.float32), "w"))
        _, (report,) = on_models.change_precision(on_models.fuse(model)[0], "int8")
        assert report.count == count
        assert [miss.reason for miss in report.near_misses] == [
            f"its weight of shape ({rows}, 16) has more than {MOST_ROWS} rows: 32 bits may not hold their sum"
        ] * (1 - count)


# Closely.


@given(st.one_of(weights, close_weights))
def test_a_weight_is_kept_within_half_a_step(weight: NDArray[np.float32]) -> None:
    quantised, scale = quantize_weight(weight)
    assert quantised.dtype == np.int8
    assert scale.dtype == np.float32
    assert (quantised.shape, scale.shape) == (weight.shape, weight.shape[1:])
    assert quantised.min() >= -127, "-128 has no opposite"
    assert np.all(scale > 0)
    error = np.abs(weight.astype(np.float64) - quantised * scale.astype(np.float64))
    assert np.all(error <= scale * 0.5 * (1 + 1e-9))


@given(weights)
def test_a_column_loses_one_bit_at_most(weight: NDArray[np.float32]) -> None:
    largest = np.abs(weight.astype(np.float64)).max(axis=0)
    scale = smallest_scale(weight)
    assert np.all(scale >= largest / 127)
    assert np.all(scale <= largest / 64)


def test_neighbours_of_one_sign_share_128_steps_and_others_have_127_each() -> None:
    weight = np.array(
        [[1.0, -8.0, 0.0, 1.0, -3.0, 1.0], [-1.0, 2.0, 0.0, 1.0, -1.0, 0.0], [0.5, -8.0, 0.0, 0.5, 3.0, 1.0]],
        dtype=np.float32,
    )
    quantised, scale = quantize_weight(weight)
    assert quantised.T.tolist() == [
        [127, -127, 63],  # opposite signs
        [-127, 32, -127],  # opposite signs, and the last row has no neighbour
        [0, 0, 0],
        [64, 64, 32],  # equal
        [-96, -32, 96],
        [127, 0, 127],  # rows 1 and 2 are not added
    ]
    tiny = float(np.finfo(np.float32).tiny)
    assert scale.tolist() == pytest.approx([1 / 127, 8 / 127, tiny, 1 / 64, 4 / 128, 1 / 127], rel=1e-6, abs=0)


@given(
    st.floats(0, float(np.finfo(np.float32).max)) | st.floats(0, 2.0**-120), st.sampled_from([np.float16, np.float32])
)
def test_a_number_is_rounded_up(value: float, dtype: type[np.floating[Any]]) -> None:
    found = round_up(np.asarray(value), dtype)
    assert found.dtype == dtype
    assert float(found) >= value
    if found > 0:
        assert float(np.nextafter(found, dtype(0))) < value or not np.isfinite(found)
