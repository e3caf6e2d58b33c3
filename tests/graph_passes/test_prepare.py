"""The form that the fusions rely on: constants folded, every tensor with a dtype and a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from graph_passes import pipeline, prepare
from graph_passes.errors import PassError
from graph_passes.graph_tools import import_model, tensor_shape

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
    prepared, (report,) = pipeline.run_passes(plain, [prepare.PASS])
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
    prepared, _ = pipeline.run_passes(traced.plain, [prepare.PASS])
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
        pipeline.run_passes(rewrite(TEXT, replacement), [prepare.PASS])


def test_a_fused_model_may_be_prepared_and_fused_again(masked_lm: Traced) -> None:
    """Its norms leave an output out, which has neither a dtype nor a shape."""
    again, reports = pipeline.fuse(masked_lm.fused)
    assert [report.count for report in reports] == [0, 0, 0]
    assert again.graph == masked_lm.fused.graph


def test_a_second_run_changes_nothing(rewrite: Rewrite) -> None:
    prepared, _ = pipeline.run_passes(rewrite(TEXT), [prepare.PASS])
    again, (report,) = pipeline.run_passes(prepared, [prepare.PASS])
    assert report.count == 0
    assert again.graph == prepared.graph
