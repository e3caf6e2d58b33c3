"""The form that the fusions rely on: constants folded, every tensor with a dtype and a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper, numpy_helper

from graph_passes import prepare
from graph_passes.errors import PassError
from graph_passes.graph_tools import constant_value, import_model, tensor_shape
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Rewrite = Callable[..., ModelProto]
AssertEqual = Callable[[ModelProto, ModelProto], None]

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
shapes (float[batch, sequence, 6] x, int64[batch, sequence] ids) => (float[batch, sequence, 2, 3] y)
{
    two = Constant <value_ints: ints = [2]> ()
    three = Constant <value_ints: ints = [3]> ()
    tail = Concat <axis: int = 0> (two, three)
    head = Shape <end: int = 2> (ids)
    target = Concat <axis: int = 0> (head, tail)
    doubled = Add (x, x)
    y = Reshape (doubled, target)
}
"""


def test_constants_are_folded_and_counted(rewrite: Rewrite, assert_equal: AssertEqual) -> None:
    plain = rewrite(TEXT)
    prepared, (report,) = on_models.run_passes(plain, [prepare.PASS])
    assert [node.op_type for node in prepared.graph.node] == ["Shape", "Add", "Concat", "Reshape"]
    assert report.count == 3
    assert_equal(plain, prepared)


def test_every_tensor_gets_a_dtype_and_a_shape(rewrite: Rewrite) -> None:
    tensors = prepare.run(import_model(rewrite(TEXT))).graph.tensors()
    assert {name: (tensors[name].dtype, tensor_shape(tensors[name])) for name in ("doubled", "target", "y")} == {
        "doubled": (np.float32, ("batch", "sequence", 6)),
        "target": (np.int64, (4,)),
        "y": (np.float32, ("batch", "sequence", 2, 3)),
    }


def test_real_models_are_known_throughout(traced: Traced) -> None:
    graph = prepare.run(import_model(traced.plain)).graph
    axes = {axis for tensor in graph.inputs for axis in tensor.shape if isinstance(axis, str)}
    axes |= {"batch * choices", *(f"2 * {axis}" for axis in axes)}
    for tensor in graph.tensors().values():
        assert tensor.dtype is not None
        shape = tensor_shape(tensor)
        assert shape is not None, tensor.name
        assert {axis for axis in shape if isinstance(axis, str)} <= axes, tensor.name


def test_inputs_and_outputs_stay_as_they_were_promised(
    traced: Traced, interface_of: Callable[[ModelProto], dict[str, list[Any]]]
) -> None:
    prepared, _ = on_models.run_passes(traced.plain, [prepare.PASS])
    assert interface_of(prepared) == interface_of(traced.plain)


def test_a_tensor_whose_shape_has_no_name_gets_none(rewrite: Rewrite) -> None:
    """No fusion touches it; the rest is known all the same."""
    model = rewrite(
        TEXT,
        ("3] y)", "3] y, float[n] z)\n<int64[1] minus = {-1}>"),
        ("y =", "flat = Reshape (x, minus)\n z = Neg (flat)\n y ="),
    )
    tensors = prepare.run(import_model(model)).graph.tensors()
    assert (tensors["flat"].dtype, tensors["flat"].shape) == (np.float32, None)
    assert tensor_shape(tensors["doubled"]) == ("batch", "sequence", 6)


def test_what_the_graph_says_of_its_shapes_need_not_be_right(rewrite: Rewrite) -> None:
    """As after a conversion that keeps the notes of the graph that it was given."""
    model = rewrite(TEXT)
    model.graph.value_info.append(helper.make_tensor_value_info("doubled", onnx.TensorProto.FLOAT, ["who", "knows", 6]))
    assert tensor_shape(prepare.run(import_model(model)).graph.tensors()["doubled"]) == ("batch", "sequence", 6)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        pytest.param(("batch, sequence, 6] x", "?, sequence, 6] x"), "every axis needs a size or a name", id="no name"),
        pytest.param(
            ("batch, sequence] ids", "rows, sequence] ids"), "one name in all of them", id="two names of one axis"
        ),
        pytest.param(("= Add (x, x)", "= Unheard (x, x)"), "cannot load the graph", id="an op that nobody knows"),
    ],
)
def test_a_graph_that_cannot_be_observed_is_an_error(
    rewrite: Rewrite, replacement: tuple[str, str], message: str
) -> None:
    with pytest.raises(PassError, match=message):
        on_models.run_passes(rewrite(TEXT, replacement), [prepare.PASS])


WEIGHTS = """
<ir_version: 10, opset_import: ["" : 20]>
weights (float[batch, 40] x) => (float[batch, 60] y)
<float[1] scale = {0.1}, int8[1] zero = {0}>
{
    turned = Transpose <perm: ints = [1, 0]> (weight)
    doubled = Add (turned, turned)
    size = Shape <start: int = 0, end: int = 1> (weight)
    row = ReduceSum (weight)
    stored = QuantizeLinear (weight, scale, zero)
    read = DequantizeLinear (stored, scale, zero)
    back = Transpose (read)
    first = MatMul (x, doubled)
    second = MatMul (x, back)
    sum = Add (first, second)
    more = Add (sum, row)
    factor = Cast <to: int = 1> (size)
    y = Mul (more, factor)
}
"""


@pytest.fixture
def weighty(rewrite: Rewrite) -> ModelProto:
    model = rewrite(WEIGHTS)
    weight = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    return model


def test_what_follows_from_weights_alone_is_folded(weighty: ModelProto, assert_equal: AssertEqual) -> None:
    """But what somebody quantised stays so."""
    prepared, _ = on_models.run_passes(weighty, [prepare.PASS])
    ops = "Add Add DequantizeLinear MatMul MatMul Mul QuantizeLinear Transpose"
    assert sorted(node.op_type for node in prepared.graph.node) == ops.split()
    assert_equal(weighty, prepared)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("target = Shape (w)", [6, 4, 2]),
        ("target = Shape <start: int = 1> (w)", [4, 2]),
        ("target = Shape <start: int = -2, end: int = -1> (w)", [4]),
        ("s = Shape (x)  target = Gather (s, last)", [6]),
        ("s = Shape <start: int = 1> (w)  target = Gather (s, first)", [4]),
        ("s = Shape <start: int = 1> (w)  t = Gather (s, scalar)  target = Unsqueeze (t, first)", [4]),
        ("s = Shape (w)  target = Slice (s, one, end)", [4, 2]),
        ("s = Shape <start: int = 1> (x)  target = Slice (s, one, end, first, one)", [6]),
        ("s = Shape (x)  target = Slice (s, one, end)", None),
        ("s = Shape (x)  target = Gather (s, first)", None),
        ("s = Shape <start: int = 2> (w)  target = Gather (s, one)", None),  # there is no such axis
        ("s = Shape (w)  target = Slice (s, end, first, first, last)", [2, 4]),
    ],
)
def test_what_is_known_of_a_shape_is_folded(rewrite: Rewrite, nodes: str, expected: list[int] | None) -> None:
    model = rewrite(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        shapes (float[batch, sequence, 6] x, float[6, 4, 2] w) => (int64[n] target, float[batch, sequence, 6] y)
        <int64[1] first = {0}, int64[1] one = {1}, int64[1] last = {-1}, int64 scalar = {0}, int64[1] end = {9}>
        {
            NODES
            y = Neg (x)
        }
        """,
        ("NODES", nodes),
    )
    graph = import_model(model)
    prepare.fold_constants(graph)
    value = constant_value(graph.outputs[0])
    assert (None if value is None else value.tolist()) == expected


def test_no_session_holds_the_weights(weighty: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are given to it beside the model."""
    sizes = []
    session = ort.InferenceSession

    def record(model: bytes, *args: Any, **kwargs: Any) -> ort.InferenceSession:
        sizes.append(len(model))
        return session(model, *args, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", record)
    graph = import_model(weighty)
    prepare.run(graph)
    assert sizes
    assert max(sizes) < 60 * 40 * 4


def test_a_fused_model_may_be_prepared_and_fused_again(masked_lm: Traced) -> None:
    """Its norms leave an output out, which has neither a dtype nor a shape."""
    again, reports = on_models.fuse(masked_lm.fused)
    assert not any(report.count for report in reports)
    assert again.graph == masked_lm.fused.graph


def test_a_second_run_changes_nothing(rewrite: Rewrite) -> None:
    prepared, _ = on_models.run_passes(rewrite(TEXT), [prepare.PASS])
    again, (report,) = on_models.run_passes(prepared, [prepare.PASS])
    assert report.count == 0
    assert again.graph == prepared.graph
