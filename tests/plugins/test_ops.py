"""Each op's implementations against its contract, and its name against the names that runtimes know."""

from __future__ import annotations

import inspect

import onnx.defs
import pytest
from onnx import checker, helper
from onnxruntime.capi import onnxruntime_pybind11_state

from plugins.contract import DOMAIN
from plugins.ops import (
    FUSED_BIAS_GELU,
    INTERLEAVED_ROTARY,
    OPS,
    RESIDUAL_LAYER_NORM,
    SCALED_DOT_PRODUCT_ATTENTION,
    Op,
)

each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def test_the_table_holds_every_op_by_its_type() -> None:
    assert OPS == {
        "InterleavedRotary": INTERLEAVED_ROTARY,
        "ResidualLayerNorm": RESIDUAL_LAYER_NORM,
        "ScaledDotProductAttention": SCALED_DOT_PRODUCT_ATTENTION,
        "FusedBiasGelu": FUSED_BIAS_GELU,
    }


def test_a_plugin_is_for_what_compilers_have_no_kernel_for() -> None:
    assert [name for name, op in OPS.items() if op.contract.has_plugin] == ["InterleavedRotary", "ResidualLayerNorm"]


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
def test_only_trailing_outputs_may_be_left_out(op: Op) -> None:
    assert not any(spec.optional for spec in op.contract.inputs)
    optional = [spec.optional for spec in op.contract.outputs]
    assert not optional[0]
    assert optional == sorted(optional)


@each_op
def test_shapes_and_dtypes_are_of_the_known_vocabulary(op: Op) -> None:
    letters = {"B", "S", "K", "H", "D", "D/2", "E", "P", "B|1", "H|1", "S|1", "K|1"}
    for spec in (*op.contract.inputs, *op.contract.outputs):
        assert set(spec.shape) <= letters
        assert spec.dtypes in [("float32",), ("float32", "float16", "bfloat16")]
    assert 0 < op.contract.float32_tolerance < 1e-4


@each_op
def test_attributes_are_of_the_known_kinds_and_told(op: Op) -> None:
    for spec in op.contract.attributes:
        assert spec.kind in ("float", "int", "string")
        assert spec.meaning
    assert op.contract.summary
    assert op.contract.tolerance_reason


def test_attributes_have_the_kind_that_their_use_needs() -> None:
    kinds = {name: {spec.name: spec.kind for spec in op.contract.attributes} for name, op in OPS.items()}
    assert kinds == {
        "InterleavedRotary": {},
        "ResidualLayerNorm": {"epsilon": "float"},
        "ScaledDotProductAttention": {"scale": "float", "zero_masked_rows": "int"},
        "FusedBiasGelu": {"approximate": "string"},
    }


@each_op
def test_no_runtime_knows_an_op_of_that_name(op: Op) -> None:
    """A parser that ignores the domain would take ours for its own."""
    schemas = [*onnx.defs.get_all_schemas_with_history(), *onnxruntime_pybind11_state.get_all_operator_schema()]
    known = {schema.name for schema in schemas}
    assert {"LayerNormalization", "RotaryEmbedding", "SkipLayerNormalization"} <= known
    assert op.contract.op_type not in known


@each_op
def test_a_body_may_be_parsed_again_and_again(op: Op) -> None:
    changed = op.function_body()
    changed.node.append(helper.make_node("Identity", ["x"], ["z"]))
    assert len(op.function_body().node) == len(changed.node) - 1
