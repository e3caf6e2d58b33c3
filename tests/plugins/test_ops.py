"""Each op's implementations against its contract, and its name against the names that runtimes know."""

from __future__ import annotations

import inspect
import re
from typing import Any

import onnx.defs
import pytest
from onnx import checker, helper
from onnxruntime.capi import onnxruntime_pybind11_state

from plugins.compile import kernels
from plugins.contract import DOMAIN
from plugins.kernel import Formula
from plugins.ops import (
    FUSED_BIAS_GELU,
    INTERLEAVED_ROTARY,
    OPS,
    QKV_ROTARY,
    QUANTIZED_RESIDUAL_LAYER_NORM,
    RESIDUAL_LAYER_NORM,
    SCALED_DOT_PRODUCT_ATTENTION,
    Op,
)

each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def test_the_table_holds_every_op_by_its_type() -> None:
    assert OPS == {
        "InterleavedRotary": INTERLEAVED_ROTARY,
        "QKVRotary": QKV_ROTARY,
        "ResidualLayerNorm": RESIDUAL_LAYER_NORM,
        "QuantizedResidualLayerNorm": QUANTIZED_RESIDUAL_LAYER_NORM,
        "ScaledDotProductAttention": SCALED_DOT_PRODUCT_ATTENTION,
        "FusedBiasGelu": FUSED_BIAS_GELU,
    }


def test_a_kernel_is_for_what_compilers_have_none_for() -> None:
    expected = ["InterleavedRotary", "QKVRotary", "ResidualLayerNorm", "QuantizedResidualLayerNorm"]
    assert [name for name, op in OPS.items() if op.has_kernel] == expected
    assert sorted(kernels()) == sorted(expected)
    for name, kernel in kernels().items():
        assert kernel.contract is OPS[name].contract


@each_op
def test_the_body_has_the_contracts_names_in_its_order(op: Op) -> None:
    body, contract = op.function_body(), op.contract
    assert (body.domain, body.name) == (contract.domain, contract.op_type) == (DOMAIN, contract.op_type)
    assert list(body.input) == [spec.name for spec in contract.inputs]
    assert list(body.output) == [spec.name for spec in contract.outputs]
    assert list(body.attribute) == [spec.name for spec in contract.attributes]
    assert not body.attribute_proto, "an attribute with a default could be forgotten"


@each_op
def test_the_body_is_valid_and_uses_standard_ops_alone(op: Op) -> None:
    body = op.function_body()
    context = checker.C.CheckerContext()
    context.ir_version = 10
    context.opset_imports = {"": 20}
    checker.check_function(body, context)
    assert [(opset.domain, opset.version) for opset in body.opset_import] == [("", 20)]
    assert {node.domain for node in body.node} == {""}


@each_op
def test_the_reference_takes_the_contracts_inputs_and_attributes(op: Op) -> None:
    parameters = inspect.signature(op.reference).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == [spec.name for spec in op.contract.inputs]
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == [spec.name for spec in op.contract.attributes]


@each_op
def test_any_output_but_the_first_may_be_left_out(op: Op) -> None:
    assert not any(spec.optional for spec in op.contract.inputs)
    assert not op.contract.outputs[0].optional


@each_op
def test_shapes_and_dtypes_are_of_the_known_vocabulary(op: Op) -> None:
    letters = {"B", "S", "K", "H", "D", "D/2", "3HD", "E", "P", "B|1", "H|1", "S|1", "K|1"}
    for spec in (*op.contract.inputs, *op.contract.outputs):
        assert set(spec.shape) <= letters
        assert spec.dtypes in [("float32",), ("int8",), ("float32", "float16", "bfloat16")]
    assert 0 < op.contract.float32_tolerance < 1e-4


@each_op
def test_attributes_are_of_the_known_kinds_and_told(op: Op) -> None:
    for spec in op.contract.attributes:
        assert spec.kind in ("float", "int", "string")
        assert spec.meaning
        assert spec.size in ("", "H")
    assert op.contract.summary
    assert op.contract.tolerance_reason


def test_attributes_have_the_kind_that_their_use_needs() -> None:
    kinds = {name: {spec.name: spec.kind for spec in op.contract.attributes} for name, op in OPS.items()}
    assert kinds == {
        "InterleavedRotary": {},
        "QKVRotary": {"num_heads": "int", "scale": "float", "rotary_value": "int"},
        "ResidualLayerNorm": {"epsilon": "float"},
        "QuantizedResidualLayerNorm": {"epsilon": "float"},
        "ScaledDotProductAttention": {"scale": "float", "zero_masked_rows": "int"},
        "FusedBiasGelu": {"approximate": "string"},
    }


def test_variants_are_what_may_be_left_out_of_everything() -> None:
    assert {name: list(op.contract.variants) for name, op in OPS.items()} == {
        "InterleavedRotary": [("y",)],
        "QKVRotary": [("q", "k", "v")],
        "ResidualLayerNorm": [("y", "s"), ("y",)],
        "QuantizedResidualLayerNorm": [
            ("quantized", "y", "s"),
            ("quantized", "y"),
            ("quantized", "s"),
            ("quantized",),
        ],
        "ScaledDotProductAttention": [("y",)],
        "FusedBiasGelu": [("y",)],
    }


def test_each_variant_has_a_name_of_its_own() -> None:
    """TensorRT finds a plugin by its name alone, and a name has no other signs than a symbol of C has."""
    names = [op.contract.plugin_name(outputs) for op in OPS.values() for outputs in op.contract.variants]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in names)
    assert {"ResidualLayerNorm", "ResidualLayerNorm_y", "QuantizedResidualLayerNorm_quantized_s"} <= set(names)


@each_op
def test_a_node_with_all_outputs_is_called_like_the_op(op: Op) -> None:
    assert op.contract.plugin_name([spec.name for spec in op.contract.outputs]) == op.contract.op_type


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "expected"),
    [
        (
            INTERLEAVED_ROTARY,
            {"x": (2, 3, 5, 6), "cos": (1, 5, 3), "sin": (1, 5, 3)},
            {},
            {"B": 2, "H": 3, "S": 5, "D": 6, "P": 1},
        ),
        (
            # The heads are an attribute's, their size is that of the angles, twice.
            QKV_ROTARY,
            {"qkv": (2, 5, 54), "bias": (54,), "cos": (2, 5, 3), "sin": (2, 5, 3)},
            {"num_heads": 3, "scale": 0.5, "rotary_value": 0},
            {"B": 2, "H": 3, "S": 5, "D": 6, "P": 2},
        ),
        (
            QUANTIZED_RESIDUAL_LAYER_NORM,
            {"x": (2, 3, 7), "residual": (2, 3, 7), "bias": (7,), "gamma": (7,), "beta": (7,), "scale": ()},
            {"epsilon": 1e-5},
            {"B": 2, "S": 3, "E": 7},
        ),
        (
            # What may be one of something says nothing of it.
            SCALED_DOT_PRODUCT_ATTENTION,
            {"q": (2, 3, 5, 6), "k": (2, 3, 7, 6), "v": (2, 3, 7, 6), "mask": (1, 1, 1, 7)},
            {"scale": 0.5, "zero_masked_rows": 0},
            {"B": 2, "H": 3, "S": 5, "K": 7, "D": 6},
        ),
    ],
    ids=["InterleavedRotary", "QKVRotary", "QuantizedResidualLayerNorm", "ScaledDotProductAttention"],
)
def test_sizes_are_those_of_the_inputs_and_attributes(
    op: Op, shapes: dict[str, tuple[int, ...]], attributes: dict[str, Any], expected: dict[str, int]
) -> None:
    assert op.contract.sizes(shapes, attributes) == expected


def test_the_first_input_that_has_a_letter_decides() -> None:
    shapes = {"x": (2, 3, 5, 6), "cos": (1, 50, 30), "sin": (7, 500, 300)}
    assert INTERLEAVED_ROTARY.contract.sizes(shapes, {}) == {"B": 2, "H": 3, "S": 5, "D": 6, "P": 1}


def test_sizes_may_be_expressions() -> None:
    shapes: dict[str, tuple[Any, ...]] = {"qkv": (Formula("b"), Formula("s"), Formula("f")), "bias": (Formula("f"),)}
    shapes |= {"cos": (1, Formula("s"), Formula("half")), "sin": (1, Formula("s"), Formula("half"))}
    sizes = QKV_ROTARY.contract.sizes(shapes, {"num_heads": 3, "scale": 0.5, "rotary_value": 0})
    assert {letter: str(size) for letter, size in sizes.items()} == {
        "B": "b",
        "H": "3",
        "S": "s",
        "D": "(half * 2)",
        "P": "1",
    }


def test_inputs_that_are_not_those_of_the_contract_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        INTERLEAVED_ROTARY.contract.sizes({"x": (2, 3, 5), "cos": (1, 5, 3), "sin": (1, 5, 3)}, {})


@each_op
def test_every_size_of_an_output_is_known_from_the_inputs(op: Op) -> None:
    contract = op.contract
    shapes = {spec.name: tuple(range(2, 2 + len(spec.shape))) for spec in contract.inputs}
    sizes = contract.sizes(shapes, {spec.name: 9 for spec in contract.attributes})
    assert {letter for spec in contract.outputs for letter in spec.shape} <= sizes.keys()


@each_op
def test_no_runtime_knows_an_op_of_that_name(op: Op) -> None:
    """A parser that ignores the domain would take ours for its own."""
    schemas = [*onnx.defs.get_all_schemas_with_history(), *onnxruntime_pybind11_state.get_all_operator_schema()]
    known = {schema.name for schema in schemas}
    assert {"LayerNormalization", "RotaryEmbedding", "SkipLayerNormalization"} <= known
    assert known.isdisjoint(op.contract.plugin_name(outputs) for outputs in op.contract.variants)


@each_op
def test_a_body_may_be_parsed_again_and_again(op: Op) -> None:
    changed = op.function_body()
    changed.node.append(helper.make_node("Identity", ["x"], ["z"]))
    assert len(op.function_body().node) == len(changed.node) - 1
