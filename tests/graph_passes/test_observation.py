"""What every tensor of a graph is, told by running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from graph_passes import prepare
from graph_passes.errors import PassError
from graph_passes.graph_tools import import_model, skeleton, with_weights_as_inputs
from graph_passes.observation import FEW, SIZES, evaluator, observe

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Rewrite = Callable[..., ModelProto]

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
sizes (float[batch, sequence, 6] x, float[batch, past, 6] cache) => (float[batch, sequence, 6] y)
<int64[1] minus = {-1}, int64[3] split = {0, -1, 3}, float zero = {0}, int64[3] twice = {2, 1, 1}>
{
    scalar = ReduceSum <keepdims: int = 0> (x)
    flat = Reshape (x, minus)
    halves = Reshape (x, split)
    all = Concat <axis: int = 1> (cache, x)
    stacked = Tile (x, twice)
    length = Shape (x)
    is_positive = Greater (x, zero)
    fixed = Identity (length)
    y = Add (x, x)
}
"""
INTEGERS = """
<ir_version: 10, opset_import: ["" : 20]>
lookup (int64[batch, sequence] ids, int64[batch, sequence] segments) => (float[batch, sequence, 2] y)
<float[2, 2] words = {1, 2, 3, 4}, float[2, 2] kinds = {5, 6, 7, 8}>
{
    word = Gather (words, ids)
    kind = Gather (kinds, segments)
    y = Add (word, kind)
}
"""


def shapes(model: ModelProto) -> dict[str, Any]:
    observation = observe(import_model(model))
    return {name: observation.shape(name) for name in observation.runs[0].values}


def test_axes_are_numbers_symbols_and_what_follows_from_them(rewrite: Rewrite) -> None:
    found = shapes(rewrite(TEXT))
    assert found == {
        "x": ("batch", "sequence", 6),
        "cache": ("batch", "past", 6),
        "scalar": (),
        "flat": None,  # batch times sequence times six: no axis that we name
        "halves": ("batch", "2 * sequence", 3),
        "all": ("batch", "sequence + past", 6),
        "stacked": ("2 * batch", "sequence", 6),
        "length": (3,),
        "is_positive": ("batch", "sequence", 6),
        "fixed": (3,),
        "y": ("batch", "sequence", 6),
    }


def test_a_product_of_two_axes_is_named(rewrite: Rewrite) -> None:
    model = rewrite(TEXT, ("split = {0, -1, 3}", "split = {-1, 1, 6}"))
    assert shapes(model)["halves"] == ("batch * sequence", 1, 6)


@pytest.mark.parametrize("name", ["past + sequence", "sequence + past", "sequence + 1", "3 + past + sequence"])
def test_a_sum_that_an_input_names_keeps_its_name(rewrite: Rewrite, name: str) -> None:
    model = rewrite(
        TEXT, ("6] cache)", f'6] cache, float["{name}", 2] mask)'), ("fixed = ", "copy = Neg (mask)\n fixed = ")
    )
    found = shapes(model)
    assert found["mask"] == found["copy"] == (name, 2)
    if name in ("past + sequence", "sequence + past"):
        assert found["all"] == ("batch", name, 6)


def test_more_axes_than_there_are_sizes_stay_apart(rewrite: Rewrite) -> None:
    axes = "abcdefgh"
    inputs = ", ".join(f"float[{axis}] in_{axis}" for axis in axes)
    nodes = "\n".join(f"    out_{axis} = Neg (in_{axis})" for axis in axes)
    found = shapes(rewrite(TEXT, ("6] cache)", f"6] cache, {inputs})"), ("    fixed =", f"{nodes}\n    fixed =")))
    assert [found[f"out_{axis}"] for axis in axes] == [(axis,) for axis in axes]


def test_a_tensor_without_a_fixed_rank_has_no_shape(rewrite: Rewrite) -> None:
    many = """
    count = Shape <start: int = 1, end: int = 2> (x)
    ones = Expand (one, count)
    many = Reshape (scalar, ones)"""
    model = rewrite(
        TEXT,
        ("int64[1] minus = {-1}", "int64[1] minus = {-1}, int64[1] one = {1}"),
        (
            "fixed =",
            f"{many}\n fixed =",
        ),
    )
    assert shapes(model)["many"] is None


@pytest.mark.parametrize(("rows", "segments"), [(2, 2), (2, 1), (1, 2), (1, 1)])
def test_whole_numbers_fit_small_tables(rewrite: Rewrite, rows: int, segments: int) -> None:
    """A model may have one kind of segment only; its words are nevertheless told apart."""
    model = rewrite(INTEGERS)
    tables = {"words": np.ones((rows, 2), np.float32), "kinds": np.ones((segments, 2), np.float32)}
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(tables[weight.name], weight.name))
    for run in observe(import_model(model)).runs:
        assert run.values["y"].shape == (run.sizes["batch"], run.sizes["sequence"], 2)
        assert run.values["ids"].max() == rows - 1
        assert run.values["segments"].max() == segments - 1


def test_no_mask_hides_everything(rewrite: Rewrite) -> None:
    for run in observe(import_model(rewrite(INTEGERS))).runs:
        assert (run.values["ids"].max(axis=-1) == 1).all()


def test_a_model_of_few_positions_is_seen_at_fewer(rewrite: Rewrite) -> None:
    """Two positions, for cache and prompt together."""
    places = """
    axes = Shape (all)
    total = Gather (axes, step)
    at = Range (first, total, step)
    places = Gather (table, at)"""
    model = rewrite(
        TEXT,
        ("twice = {2, 1, 1}>", "twice = {2, 1, 1}, float[2] table = {1, 2}, int64 first = {0}, int64 step = {1}>"),
        (
            "length = Shape (x)",
            f"length = Shape (x)\n{places}",
        ),
    )
    observation = observe(import_model(model))
    assert [tuple(run.sizes.values()) for run in observation.runs] == [row[:3] for row in FEW]
    assert observation.shape("places") == ("sequence + past",)
    assert observation.shape("x") == ("batch", "sequence", 6)


def test_sizes_tell_axes_apart() -> None:
    for table in (SIZES, FEW):
        assert len(table) > 1
        columns = list(zip(*table, strict=True))
        assert len(set(columns)) == len(columns)
        assert all(len(set(column)) > 1 for column in columns), "an axis that never changes looks like a number"


@pytest.mark.parametrize("axis", ["?", ""])
def test_an_axis_without_a_name_is_refused(rewrite: Rewrite, axis: str) -> None:
    model = rewrite(TEXT)
    dimension = model.graph.input[0].type.tensor_type.shape.dim[1]
    dimension.Clear()
    if not axis:
        dimension.dim_param = ""
    with pytest.raises(PassError, match=r"The input 'x' has the shape .*named dynamic axes"):
        observe(import_model(model))


@pytest.mark.parametrize("dtype", [onnx.TensorProto.STRING, onnx.TensorProto.BFLOAT16])
def test_an_input_that_cannot_be_made_up_is_refused(rewrite: Rewrite, dtype: int) -> None:
    model = rewrite(TEXT)
    model.graph.input[0].type.tensor_type.elem_type = dtype
    with pytest.raises(PassError, match=r"'x' is neither numbers nor booleans: expected a float32 model"):
        observe(import_model(model))


def test_a_sum_of_unknown_axes_is_refused(rewrite: Rewrite) -> None:
    model = rewrite(TEXT, ("6] cache)", '6] cache, float["past + other", 2] mask)'))
    with pytest.raises(PassError, match="axis 'past \\+ other', but none has an axis 'other'"):
        observe(import_model(model))


def test_a_graph_that_cannot_be_loaded_is_refused(rewrite: Rewrite) -> None:
    with pytest.raises(PassError, match=r"cannot load the graph.*Unheard"):
        observe(import_model(rewrite(TEXT, ("y = Add (x, x)", "y = Unheard (x, x)"))))


@pytest.mark.parametrize(
    "replacement",
    [
        pytest.param(("float[batch, past, 6] cache", "float[rows, past, 6] cache"), id="axes of two names that agree"),
        pytest.param(("y = Add (x, x)", "w = Cast <to: int = 16> (x)\n y = Add (x, x)"), id="bfloat16 inside"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(rewrite: Rewrite, replacement: tuple[str, str]) -> None:
    with pytest.raises(PassError, match=r"does not run on made-up inputs.*one name in all of them"):
        observe(import_model(rewrite(TEXT, replacement)))


def test_what_is_no_tensor_is_left_out(rewrite: Rewrite) -> None:
    parts = "parts = SplitToSequence <axis: int = 1> (x)\n last = SequenceAt (parts, at)\n fixed ="
    model = rewrite(TEXT, ("fixed =", parts))
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1), "at"))
    observation = observe(import_model(model))
    assert observation.shape("parts") is None
    assert observation.shape("last") == ("batch", 1, 6)


def large(rewrite: Rewrite) -> ModelProto:
    model = rewrite(TEXT, ("y = Add (x, x)", "wide = MatMul (x, weight)\n y = MatMul (wide, weight_too)"))
    random = np.random.default_rng(0)
    for name, shape in (("weight", (6, 200)), ("weight_too", (200, 6))):
        weight = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    return model


def test_weights_are_not_copied(rewrite: Rewrite) -> None:
    graph = import_model(large(rewrite))
    model, first = with_weights_as_inputs(graph)
    again, second = with_weights_as_inputs(graph.copy())
    assert first.keys() == second.keys() == {"weight", "weight_too"}
    assert model == again == skeleton(graph)
    for name, weight in first.items():
        assert np.shares_memory(weight, second[name])
        assert np.shares_memory(weight, graph.tensors()[name].values)


def test_what_is_observed_is_what_the_graph_computes(
    rewrite: Rewrite, run: Callable[[ModelProto, dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
) -> None:
    model = large(rewrite)
    for observed in observe(import_model(model)).runs:
        feeds = {name: np.asarray(observed.values[name]) for name in ("x", "cache")}
        np.testing.assert_array_equal(run(model, feeds)["y"], observed.values["y"])


def test_an_observation_can_be_repeated(rewrite: Rewrite) -> None:
    first, again, other = (observe(import_model(large(rewrite)), seed=seed) for seed in (0, 0, 1))
    for one, two, three in zip(first.runs, again.runs, other.runs, strict=True):
        assert one.sizes == two.sizes == three.sizes
        for name, value in one.values.items():
            np.testing.assert_array_equal(value, two.values[name])
        assert not np.array_equal(one.values["y"], three.values["y"])


def test_a_graph_can_be_evaluated_at_any_size(rewrite: Rewrite) -> None:
    """And only what is needed for what was asked runs."""
    graph = import_model(rewrite(TEXT))
    evaluate = evaluator(graph, [graph.tensors()["all"]])
    values = evaluate({"batch": 1, "sequence": 40, "past": 2}, 0)
    assert values.keys() == {"all", "x", "cache"}
    np.testing.assert_array_equal(values["all"], np.concatenate((values["cache"], values["x"]), axis=1))
    assert values["all"].shape == (1, 42, 6)


def test_a_graph_stays_as_it_is(rewrite: Rewrite) -> None:
    graph = import_model(large(rewrite))
    before = skeleton(graph)
    observe(graph)
    assert skeleton(graph) == before


def test_shapes_are_those_of_inference_where_that_knows_them(traced: Traced) -> None:
    graph = prepare.run(import_model(traced.plain)).graph
    observation = observe(graph)
    bare = skeleton(graph)
    for value in [*bare.graph.value_info, *bare.graph.output]:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    known = 0
    for value in (*inferred.value_info, *inferred.output):
        shape = observation.shape(value.name)
        assert shape is not None, value.name
        if not value.type.tensor_type.HasField("shape"):
            continue
        axes = value.type.tensor_type.shape.dim
        assert len(axes) == len(shape), value.name
        for axis, observed in zip(axes, shape, strict=True):
            symbol = axis.dim_param if axis.dim_param in observation.runs[0].sizes else ""
            if axis.HasField("dim_value") or symbol:
                known += 1
                assert observed == (symbol or axis.dim_value), value.name
    assert known > 100
