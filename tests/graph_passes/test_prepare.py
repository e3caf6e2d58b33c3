"""The form that the matchers rely on: constants folded, every tensor with a dtype and a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import ModelProto

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


def test_real_models_are_known_throughout(masked_lm: Traced) -> None:
    graph = prepare.run(import_model(masked_lm.plain)).graph
    for tensor in graph.tensors().values():
        assert tensor.dtype is not None
        shape = tensor_shape(tensor)
        assert shape is not None
        assert {axis for axis in shape if isinstance(axis, str)} <= {"batch", "sequence"}


def test_a_tensor_whose_shape_cannot_be_known_is_an_error(rewrite: Rewrite) -> None:
    model = rewrite(
        TEXT,
        ("6] x,", "6] x, int64[rank] runtime,"),
        ("3] y)", "3] y, float z)"),
        ("y =", "kept = Reshape (x, runtime)\n z = ReduceSum <keepdims: int = 0> (kept)\n y ="),
    )
    with pytest.raises(PassError, match=r"left 'kept' \(from Reshape .*give the graph's inputs symbolic shapes"):
        pipeline.run_passes(model, [prepare.PASS])


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
