"""Questions about a graph, edits of it, and the way in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from graph_passes import graph_tools
from graph_passes.graph_tools import (
    LARGE,
    copy_graph,
    detach,
    export_model,
    forget_names,
    import_model,
    notes_of,
    replace,
    skeleton,
    unique_name,
    weight_bytes,
    with_weights_as_inputs,
    without_weights,
)

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Rewrite = Callable[..., ModelProto]

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
small (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] z)
<float[4] w = {1, 2, 3, 4}>
{
    c = Constant <value: tensor = float[1] {2}> ()
    m = Mul (x, w)
    y = Add (m, c)
    z = Sub (y, m)
}
"""


def large(rewrite: Rewrite) -> gs.Graph:
    """With a weight of 300 rows."""
    model = rewrite(TEXT)
    values = np.arange(1200, dtype=np.float32).reshape(300, 4)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    return import_model(model)


@pytest.fixture
def graph(rewrite: Rewrite) -> gs.Graph:
    return import_model(rewrite(TEXT))


def test_a_custom_op_brings_its_body_and_no_other(masked_lm: Traced) -> None:
    graph = import_model(masked_lm.fused)
    used = {node.op for node in graph.nodes if node.domain == "rotary_press"}
    exported = export_model(graph)
    assert sorted(function.name for function in exported.functions) == sorted(used)
    assert {opset.domain for opset in exported.opset_import} == {"", "rotary_press"}
    assert exported.ir_version == 10
    checker.check_model(exported, full_check=True)


def test_the_way_in_and_out_changes_nothing(masked_lm: Traced) -> None:
    assert export_model(import_model(masked_lm.fused)).graph == masked_lm.fused.graph


def test_a_skeleton_has_no_weights_but_their_names_and_shapes(masked_lm: Traced) -> None:
    graph = import_model(masked_lm.fused)
    graph.nodes[0].inputs[0] = gs.Constant("large", np.zeros((50, 40), dtype=np.float32))
    before = export_model(graph)
    bare = skeleton(graph)
    weights = {weight.name: weight for weight in before.graph.initializer}
    kept = {weight.name for weight in bare.graph.initializer}
    assert max(int(np.prod(numpy_helper.to_array(w).shape)) for w in bare.graph.initializer) <= 1024
    added = {value.name: value.type.tensor_type for value in bare.graph.input[len(before.graph.input) :]}
    assert added.keys() == weights.keys() - kept
    assert "large" in added
    for name, kind in added.items():
        assert [axis.dim_value for axis in kind.shape.dim] == list(weights[name].dims)
        assert kind.elem_type == weights[name].data_type
    assert [list(node.input) for node in bare.graph.node] == [list(node.input) for node in before.graph.node]
    assert export_model(graph) == before, "the graph itself stays whole"


def test_the_bytes_of_weights_are_counted(masked_lm: Traced) -> None:
    arrays = [numpy_helper.to_array(tensor) for tensor in masked_lm.fused.graph.initializer]
    assert weight_bytes(import_model(masked_lm.fused)) == sum(array.nbytes for array in arrays if array.size > LARGE)


def test_copies_and_skeletons_share_the_weights(rewrite: Rewrite) -> None:
    graph = large(rewrite)
    weight = graph.tensors()["w"].values
    assert copy_graph(graph).tensors()["w"].values is weight
    skeleton(graph)
    assert graph.tensors()["w"].values is weight


def test_a_copy_is_edited_on_its_own(rewrite: Rewrite) -> None:
    graph = import_model(noted(rewrite))
    before = export_model(graph)
    copy = copy_graph(graph)
    assert export_model(copy) == before
    notes_of(copy).metadata_props[0].value = "changed"
    copy.nodes[1].name = "changed"
    copy.nodes[0].inputs[0] = copy.inputs[0]
    copy.nodes[0].domain = "elsewhere"
    assert {entry.domain for entry in export_model(copy).opset_import} == {"", "elsewhere"}
    assert export_model(graph) == before


def test_weights_beside_their_inputs(rewrite: Rewrite) -> None:
    graph = large(rewrite)
    model, weights = with_weights_as_inputs(graph)
    assert [value.name for value in model.graph.input] == ["x", "w"]
    assert not model.graph.initializer
    assert weights.keys() == {"w"}
    np.testing.assert_array_equal(weights["w"], np.arange(1200, dtype=np.float32).reshape(300, 4))
    assert np.shares_memory(weights["w"], graph.tensors()["w"].values)


def test_weights_leave_the_model(rewrite: Rewrite) -> None:
    model = rewrite(TEXT)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((300, 4), np.float32), "w"))
    brain = np.ones(1200, np.float32).astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    model.graph.initializer.append(numpy_helper.from_array(brain, "brain"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "small"))
    for name in ("w", "small"):  # as models of old declare them
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    before = model.SerializeToString()
    bare, weights = without_weights(model)
    assert model.SerializeToString() == before
    assert weights.keys() == {"w"}
    np.testing.assert_array_equal(weights["w"], np.ones((300, 4), np.float32))
    assert [value.name for value in bare.graph.input] == ["x", "w"]
    assert [tensor.name for tensor in bare.graph.initializer] == ["brain", "small"], "numpy has no such dtype"
    assert [value.name for value in export_model(import_model(bare, weights)).graph.input] == ["x"]


NOTED = """
<ir_version: 10, opset_import: ["" : 20]>
noted (bool p, float[batch, 4] x) => (float[batch, 4] y)
{
    [first] m = Neg (x)
    [second] y = If (p) <
        then_branch = yes () => (float[batch, 4] a) { [inner] a = Abs (m) },
        else_branch = no () => (float[batch, 4] b) { b = Relu (m) }
    >
}
"""


def noted(rewrite: Rewrite) -> ModelProto:
    """With all that one can say besides what is computed."""
    model = rewrite(NOTED)
    inner = model.graph.node[1].attribute[0].g
    for number, part in enumerate((model, model.graph, *model.graph.node, *inner.node)):
        part.doc_string = f"documents {number}"
        part.metadata_props.add(key="part", value=str(number))
    model.producer_name, model.producer_version, model.domain, model.model_version = "somebody", "1.2", "theirs", 3
    return model


def test_what_the_model_says_of_itself_and_its_nodes_stays(rewrite: Rewrite) -> None:
    model = noted(rewrite)
    assert export_model(import_model(model)) == model


def test_a_new_node_has_no_notes(rewrite: Rewrite) -> None:
    model = noted(rewrite)
    graph = import_model(model)
    new = gs.Node("Abs", "new", inputs=[graph.inputs[1]], outputs=[gs.Variable("n", np.float32)])
    graph.nodes.insert(0, new)
    added, *others = export_model(graph).graph.node
    assert not added.HasField("doc_string")
    assert not added.metadata_props
    assert others == list(model.graph.node)


def test_bodies_are_written_for_the_opset_of_the_graph(masked_lm: Traced) -> None:
    graph = import_model(masked_lm.fused)
    graph.opset, graph.import_domains = 23, None  # as that of a graph made here
    exported = export_model(graph)
    assert exported.functions
    assert {entry.version for body in exported.functions for entry in body.opset_import if not entry.domain} == {23}
    checker.check_model(exported, full_check=True)


def test_detached_nodes_leave_nothing_behind(graph: gs.Graph) -> None:
    tensors = graph.tensors()
    made = [tensors["y"].inputs[0], tensors["z"].inputs[0]]
    detach(iter(made))
    assert [node.op for node in tensors["m"].inputs] == ["Mul"]
    assert list(tensors["m"].outputs) == list(tensors["y"].inputs) == list(tensors["z"].inputs) == []
    assert all(not node.inputs and not node.outputs for node in made)


def test_a_weight_that_is_read_twice_is_one_input(rewrite: Rewrite) -> None:
    graph = import_model(rewrite(TEXT, ("Sub (y, m)", "Sub (y, w)")))
    graph.tensors()["w"].values = np.zeros((300, 4), dtype=np.float32)
    assert [value.name for value in skeleton(graph).graph.input] == ["x", "w"]


def test_who_makes_a_tensor(graph: gs.Graph) -> None:
    tensors = graph.tensors()
    made = graph_tools.producer(tensors["y"])
    assert made is not None
    assert made.op == "Add"
    assert graph_tools.producer(tensors["y"], "Sub", "Add") is made
    assert graph_tools.producer(tensors["y"], "Sub") is None
    assert graph_tools.producer(tensors["x"]) is None


def test_an_op_of_that_name_in_another_domain_is_another_op(graph: gs.Graph) -> None:
    y = graph.tensors()["y"]
    (made,) = y.inputs
    made.domain = "elsewhere"
    assert graph_tools.producer(y, "Add") is None
    assert graph_tools.producer(y) is made


def test_the_value_of_a_constant(graph: gs.Graph) -> None:
    values = {name: graph_tools.constant_value(tensor) for name, tensor in graph.tensors().items()}
    found = {name: value.tolist() for name, value in values.items() if value is not None}
    assert found == {"w": [1, 2, 3, 4], "c": [2]}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(["batch", 4], ("batch", 4)), ([], ()), (None, None), (["batch", None], None), (["", 4], None)],
)
def test_a_shape_is_known_whole_or_not_at_all(shape: list[object] | None, expected: tuple[object, ...] | None) -> None:
    assert graph_tools.tensor_shape(gs.Variable("t", np.float32, shape)) == expected


def test_a_new_name_is_taken_by_neither_tensor_nor_node(graph: gs.Graph) -> None:
    assert unique_name(graph, "m") == "m_0"
    graph.nodes[0].name = "m_0"
    assert unique_name(graph, "m") == "m_1"
    graph.nodes[1].outputs[0].name = "m_1"
    assert unique_name(graph, "m") == "m_2"


def test_a_new_name_is_given_once(graph: gs.Graph) -> None:
    assert [unique_name(graph, stem) for stem in ("m", "m", "n")] == ["m_0", "m_1", "n_0"]
    graph.nodes[0].name = "n_1"
    forget_names(graph)
    assert [unique_name(graph, stem) for stem in ("m", "n", "n")] == ["m_0", "n_0", "n_2"]


def test_whoever_read_the_old_tensor_reads_the_new_one(graph: gs.Graph) -> None:
    tensors = graph.tensors()
    new = gs.Variable("new", np.float32, ["batch", 4])
    graph.nodes.append(gs.Node("Neg", inputs=[tensors["x"]], outputs=[new]))
    replace(graph, tensors["m"], new)
    model = export_model(graph.cleanup().toposort())
    assert {node.op_type: (*node.input, *node.output) for node in model.graph.node if node.op_type != "Constant"} == {
        "Neg": ("x", "m"),
        "Add": ("m", "c", "y"),
        "Sub": ("y", "m", "z"),
    }


def test_an_output_that_is_replaced_keeps_its_name(graph: gs.Graph) -> None:
    old = graph.tensors()["y"]
    new = gs.Variable("new", np.float32, ["batch", 4])
    graph.nodes.append(gs.Node("Neg", inputs=[graph.inputs[0]], outputs=[new]))
    replace(graph, old, new)
    model = export_model(graph.cleanup().toposort())
    assert [output.name for output in model.graph.output] == ["y", "z"]
    assert {node.op_type: (list(node.input), list(node.output)) for node in model.graph.node} == {
        "Neg": (["x"], ["y"]),
        "Mul": (["x", "w"], ["m"]),
        "Sub": (["y", "m"], ["z"]),
    }
