"""Schedules read from the logs of real builds: what was counted by hand is what is read, and nothing is guessed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter.engines import BuildOptions
from exporter.engines.schedule import Schedule, compare, estimate, read_schedule
from exporter.engines.tensorrt_base import read_record
from exporter.engines.tensorrt_rtx import TensorRTRTX
from exporter.errors import CompileError
from tests.traced_models import trace_model

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for Linux x86_64 and Windows", exc_type=ImportError)

BATCH, SEQUENCE = 2, 128
SIZES = {"batch": BATCH, "sequence": SEQUENCE}
HIDDEN, HEADS, INNER, VOCABULARY = 64, 4, 128, 100
FAMILIES = ["roformer", "roberta-prelayernorm"]
PRECISIONS = ["fp32", "fp16"]


class Log(trt.ILogger):  # type: ignore[misc, name-defined]  # the bindings have no types
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        self.lines.append(message)


def build(
    model: bytes,
    *,
    sm: int = 89,
    sizes: dict[str, int] = SIZES,
    is_fixed: bool = False,
    verbosity: str = "DETAILED",
) -> list[str]:
    """The log of a build, on no GPU. An axis that varies is between 1 and its size at the optimum, or fixed at that."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        most = [sizes[name] if size < 0 else size for name, size in zip(names, tensor.shape, strict=True)]
        least = most if is_fixed else [1 if size < 0 else size for size in tensor.shape]
        profile.set_shape(tensor.name, least, most, most)
    config.add_optimization_profile(profile)
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, verbosity)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.max_aux_streams = 0
    assert builder.build_serialized_network(network, config) is not None
    return log.lines


@functools.cache
def lowered(family: str, precision: str) -> bytes:
    """Two layers, lowered as for TensorRT. The sizes are such that the compiler need not pad."""
    return dict(graphs(family))[precision]


def traced(family: str, task: Any) -> onnx.ModelProto:
    from exporter import models
    from exporter.tasks import FAMILY_PREFIX, TASKS
    from exporter.trace import Interface, trace

    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": 140,
        "is_decoder": TASKS[task].has_cache,
    }
    config = (models.RoFormerConfig if family == "roformer" else models.RobertaPreLayerNormConfig)(**options)
    model = getattr(models, FAMILY_PREFIX[config.model_type] + TASKS[task].suffix)(config)
    return trace(Interface(model.eval(), TASKS[task]))


@functools.cache
def graphs(family: str) -> tuple[tuple[str, bytes], ...]:
    from graph_passes import pipeline
    from graph_passes.graph_tools import export_model, import_model

    plain = traced(family, "feature-extraction")
    fused, _ = pipeline.fuse(import_model(plain))
    found = [("plain", plain.SerializeToString())]
    for precision in pipeline.PRECISIONS[:2]:
        cast, _ = pipeline.change_precision(fused, precision)
        found.append((precision, export_model(pipeline.lower(cast, "native")[0]).SerializeToString()))
    return tuple(found)


@functools.cache
def schedule_of(family: str, precision: str, sm: int = 89) -> Schedule:
    return read_schedule(build(lowered(family, precision), sm=sm), sizes=SIZES)


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[Any, ...]],
    weights: dict[str, NDArray[Any]],
) -> bytes:
    """A graph in half precision; names that begin with ``ids`` are integers."""

    def described(tensors: dict[str, tuple[Any, ...]]) -> list[onnx.ValueInfoProto]:
        kinds = {name: TensorProto.INT64 if name.startswith("ids") else TensorProto.FLOAT16 for name in tensors}
        return [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in tensors.items()]

    stored = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "graph", described(inputs), described(outputs), stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def half(*shape: int) -> NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


@functools.cache
def one_product(rows: int | str = 64) -> tuple[str, ...]:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    return tuple(build(graph_of([node], {"x": (rows, 256)}, {"y": (rows, 128)}, {"w": half(256, 128)})))


def without_numbers(schedule: Schedule) -> int:
    """Bytes that are moved, but for the numbers that a compiler passes to its products."""
    return sum(
        tensor.bytes
        for kernel in schedule.kernels
        for tensor in (*kernel.inputs, *kernel.constants, *kernel.outputs)
        if tensor.shape != [1]
    )


@pytest.mark.parametrize("rows", [64, "batch"])
def test_one_product_is_counted_exactly(rows: int | str) -> None:
    schedule = read_schedule(one_product(rows), sizes=SIZES)
    size = 64 if rows == 64 else BATCH
    [kernel] = schedule.kernels
    [product] = schedule.products
    numbers = [tensor for tensor in kernel.constants if tensor.shape == [1]]
    assert (product.batch, product.rows, product.columns, product.depth) == (1, size, 128, 256)
    assert (product.node, product.kernel, product.dtype) == ("product", kernel.name, "float16")
    assert schedule.operations == kernel.operations == 2 * size * 128 * 256
    assert schedule.bytes_read == 2 * (size * 256 + 256 * 128) + sum(tensor.bytes for tensor in numbers)
    assert schedule.bytes_written == 2 * size * 128
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in kernel.inputs] == [("x", "float16", [size, 256])]
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in kernel.outputs] == [("y", "float16", [size, 128])]
    assert kernel.type == "gemm"
    assert schedule.unsized == schedule.uncounted == []


def test_two_products_pass_on_what_is_between_them() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "down"], ["y"], "second"),
    ]
    axes = ("batch", "sequence", 64)
    model = graph_of(nodes, {"x": axes}, {"y": axes}, {"up": half(64, 96), "down": half(96, 64)})
    schedule = read_schedule(build(model), sizes=SIZES)
    tokens = BATCH * SEQUENCE
    assert [product.node for product in schedule.products] == ["first", "second"]
    assert schedule.operations == 2 * (2 * tokens * 64 * 96)
    assert without_numbers(schedule) == 2 * (2 * tokens * 64 + 2 * tokens * 96 + 2 * 64 * 96)


def test_of_a_table_only_the_rows_that_are_taken_are_read() -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], "lookup")
    model = graph_of([node], {"ids": ("batch", 5)}, {"y": ("batch", 5, 64)}, {"table": half(1000, 64)})
    schedule = read_schedule(build(model), sizes=SIZES)
    assert schedule.bytes_read == BATCH * 5 * 8 + BATCH * 5 * 64 * 2
    assert schedule.bytes_written == BATCH * 5 * 64 * 2
    assert schedule.operations == 0


def attention(op: bool) -> bytes:
    axes = ("batch", 12, "sequence", 64)
    nodes = [
        helper.make_node("Transpose", ["k"], ["t"], "transpose", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "t"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], "softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"], "values"),
    ]
    if not op:
        return graph_of(nodes, dict.fromkeys("qkv", axes), {"y": axes}, {})
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], "attention")
    model = onnx.load_from_string(graph_of([node], dict.fromkeys("qkv", axes), {"y": axes}, {}))
    model.opset_import[0].version = 23
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("op", [False, True], ids=["MatMul and Softmax", "the op Attention"])
def test_an_attention_is_two_products_in_one_kernel(op: bool) -> None:
    schedule = read_schedule(build(attention(op)), sizes=SIZES)
    [kernel] = [kernel for kernel in schedule.kernels if kernel.products]
    assert schedule.operations == 4 * BATCH * 12 * SEQUENCE * SEQUENCE * 64
    assert {product.dtype for product in schedule.products} == {"float16"}
    tokens = BATCH * 12 * SEQUENCE * 64
    assert (kernel.bytes_read, kernel.bytes_written) == (3 * 2 * tokens, 2 * tokens)
    assert schedule.unsized == schedule.uncounted == []


@pytest.mark.parametrize("is_true", [True, False], ids=["both operands", "only the weight"])
def test_a_true_product_of_integers_is_told_from_int8_weights(is_true: bool) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "s"], ["xd"], "dq"),
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"], "dqw", axis=1),
        helper.make_node("MatMul", ["xd" if is_true else "x", "wd"], ["y"], "product"),
    ]
    weights = {"wq": np.ones((256, 128), np.int8), "ws": half(128) ** 2 + np.float16(0.01)}
    scale = {"s": np.array(0.1, np.float16)} if is_true else {}
    axes = {"x": ("batch", 256)}, {"y": ("batch", 128)}
    schedule = read_schedule(build(graph_of(nodes[0 if is_true else 2 :], *axes, weights | scale)), sizes=SIZES)
    assert [(product.node, product.dtype) for product in schedule.products] == [
        ("product", "int8" if is_true else "float16")
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_and_tensor_of_a_model_is_counted(family: str, precision: str) -> None:
    schedule = schedule_of(family, precision)
    tokens = BATCH * SEQUENCE
    layer = 2 * tokens * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) + 4 * tokens * SEQUENCE * HIDDEN
    pooler = 2 * BATCH * HIDDEN * HIDDEN if family == "roberta-prelayernorm" else 0
    assert schedule.operations == 2 * layer + pooler
    assert {product.dtype for product in schedule.products} == {{"fp32": "float32", "fp16": "float16"}[precision]}
    assert schedule.unsized == schedule.uncounted == []
    assert all(tensor.shape is not None for kernel in schedule.kernels for tensor in kernel.outputs)
    width = {"fp32": 4, "fp16": 2}[precision]
    weights = [tensor for kernel in schedule.kernels if kernel.products for tensor in kernel.constants]
    assert sum(tensor.bytes for tensor in weights if tensor.shape and min(tensor.shape) > 1) == width * (
        2 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) + (HIDDEN * HIDDEN if pooler else 0)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_that_vary_are_what_a_build_at_fixed_sizes_says(family: str) -> None:
    varying, fixed = schedule_of(family, "fp16"), read_schedule(build(lowered(family, "fp16"), is_fixed=True))
    assert not fixed.steps
    assert not fixed.unsized
    assert [kernel.type for kernel in varying.kernels] == [kernel.type for kernel in fixed.kernels]
    for row in compare(varying, fixed).rows:
        assert row.kernels[0] == row.kernels[1]
        assert row.operations[0] == row.operations[1]
        # RoFormer's angles are computed before at fixed sizes; where they vary, the first layer does it.
        is_equal = family == "roberta-prelayernorm" or row.part == "layer 1 feed-forward"
        assert row.bytes[0] == pytest.approx(row.bytes[1], rel=0 if is_equal else 0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_of_our_graphs_has_a_part(family: str, precision: str) -> None:
    schedule = schedule_of(family, precision)
    layers = [f"layer {layer} {part}" for layer in (0, 1) for part in ("attention", "feed-forward")]
    assert list(schedule.parts) == ["embeddings", *layers, *(["head"] if family == "roberta-prelayernorm" else [])]
    for layer in layers:
        products = [product for product in schedule.products if product.part == layer]
        assert len(products) == (2 if layer.endswith("feed-forward") else 4)  # q, k and v are one


@pytest.mark.parametrize("sm", [86, 89, 120])
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_kernels_to_a_layer_in_half_precision(family: str, sm: int) -> None:
    schedule = schedule_of(family, "fp16", sm)
    last = {"roformer": 8, "roberta-prelayernorm": 9}[family]  # the token for the pooler is normalised apart
    assert schedule.kernels_per_layer == {0: 8, 1: last}
    assert [step.type for step in schedule.steps] == ["shape_call"]
    assert schedule.waits == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_attends_in_one_kernel_in_the_prompt_and_in_each_step(family: str, tmp_path: Path) -> None:
    from exporter.onnx_files import save_onnx
    from graph_passes import pipeline
    from graph_passes.graph_tools import import_model

    fused, _ = pipeline.fuse(import_model(traced(family, "text-generation")))
    narrow, _ = pipeline.change_precision(fused, "fp16")
    save_onnx(pipeline.lower(narrow, "native")[0], tmp_path / "m.onnx")
    TensorRTRTX().build(tmp_path / "m.onnx", tmp_path / "m.engine", BuildOptions(sms=(89,), max_tokens=140))
    prompt, step = read_record(tmp_path / "m.engine").schedules
    for schedule, kernel in ((prompt, "gemm_mha"), (step, "gemv_mha")):
        found = {part: [of.name for of in kernels if "mha" in of.name] for part, kernels in schedule.parts.items()}
        for part, names in found.items():
            assert len(names) == part.endswith("attention"), part
            assert all(kernel in name for name in names)
        assert set(schedule.kernels_per_layer.values()) <= {9, 10}
        assert all("_myl" in name for name in schedule.unsized), "caches are sized"


@pytest.mark.parametrize(
    ("family", "kernels"), [("roformer", {0: 14, 1: 14}), ("roberta-prelayernorm", {0: 14, 1: 16})]
)
def test_kernels_to_a_layer_in_single_precision(family: str, kernels: dict[int, int]) -> None:
    assert schedule_of(family, "fp32").kernels_per_layer == kernels


@pytest.mark.parametrize("family", FAMILIES)
def test_our_graphs_take_fewer_kernels_that_move_fewer_bytes(family: str) -> None:
    plain, ours = schedule_of(family, "plain"), schedule_of(family, "fp32")
    assert len(ours.kernels) < len(plain.kernels)
    assert ours.bytes_read + ours.bytes_written < plain.bytes_read + plain.bytes_written


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_are_those_of_kernels_and_parts(family: str) -> None:
    schedule = schedule_of(family, "fp16")
    assert sum(len(kernels) for kernels in schedule.parts.values()) == len(schedule.kernels)
    assert schedule.bytes_read == sum(kernel.bytes_read for kernels in schedule.parts.values() for kernel in kernels)
    assert schedule.operations == sum(product.operations for product in schedule.products)
    assert len({kernel.name for kernel in schedule.kernels}) == len(schedule.kernels)
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule


def test_two_schedules_side_by_side() -> None:
    first, second = schedule_of("roformer", "fp16"), schedule_of("roformer", "plain")
    found = compare(first, second)
    *parts, total = found.rows
    assert [row.part for row in parts] == list(first.parts)
    assert total.part == "total"
    assert total.kernels == (len(first.kernels), len(second.kernels))
    assert total.bytes == tuple(schedule.bytes_read + schedule.bytes_written for schedule in (first, second))
    for field in ("kernels", "bytes", "operations"):
        assert tuple(map(sum, zip(*(getattr(row, field) for row in parts), strict=True))) == getattr(total, field)
    assert total.operations[0] == total.operations[1]
    assert total.kernels[0] < total.kernels[1]
    assert found.waits == (0, 0)


def test_a_part_that_one_schedule_lacks_is_empty_there() -> None:
    found = compare(schedule_of("roformer", "fp16"), read_schedule(one_product()))
    assert [row.part for row in found.rows][-2:] == ["", "total"]
    assert found.rows[0].kernels[1] == 0
    assert found.rows[-2].kernels == (0, 1)


def test_parts_of_other_graphs_are_not_guessed() -> None:
    assert {kernel.part for kernel in read_schedule(one_product()).kernels} == {""}
    assert {kernel.part for kernel in read_schedule(build(attention(op=False)), sizes=SIZES).kernels} == {""}


def test_a_decoder_with_a_cache_and_two_attentions_to_a_layer() -> None:
    model = trace_model("roformer-with-cross-attention").plain.SerializeToString()
    sizes = {"batch": 2, "sequence": 6, "past": 5, "encoder_sequence": 7}
    log = build(model, sizes=sizes | {"past + sequence": 11})
    schedule = read_schedule(log, sizes=sizes)
    assert read_schedule(log, sizes={"past + sequence": 11} | sizes) == schedule
    assert list(schedule.parts) == ["embeddings", "layer 0 attention", "layer 0 feed-forward", "head"]
    assert schedule.unsized == schedule.uncounted == []
    shapes = {tensor.name: tensor.shape for kernel in schedule.kernels for tensor in kernel.outputs}
    assert shapes["logits"] == [2 * 6, 41]
    assert shapes["present.0.key"] == shapes["present.0.value"] == [2, 4, 11, 6]
    depths = sorted(product.depth for product in schedule.products if product.batch == 2 * 4)
    assert depths == [6, 6, 7, 11]  # heads of size 6, over what is encoded, and over past and sequence


@pytest.mark.parametrize("bound", ["bandwidth", "operations"])
def test_the_estimate_is_the_longer_of_moving_and_computing(bound: str) -> None:
    schedule = read_schedule(one_product())
    device = {"bandwidth": 1e3, "fp16_peak": 1e3, "fp32_peak": 1e-9, "int8_peak": 1e-9}
    device["fp16_peak" if bound == "bandwidth" else "bandwidth"] = 1e30
    found = estimate(schedule, **device)
    expected = schedule.bytes_read + schedule.bytes_written if bound == "bandwidth" else schedule.operations
    assert found.estimated_seconds == pytest.approx(expected / 1e3)
    assert [kernel.bound for kernel in found.kernels] == [bound]


def test_the_estimate_is_the_sum_of_its_kernels() -> None:
    schedule = schedule_of("roformer", "fp16")
    found = estimate(schedule, bandwidth=1e12, fp16_peak=1e14, fp32_peak=5e13, int8_peak=2e14)
    assert found.estimated_seconds == pytest.approx(sum(kernel.estimated_seconds for kernel in found.kernels))
    assert [kernel.name for kernel in found.kernels] == [kernel.name for kernel in schedule.kernels]
    slower = estimate(schedule, bandwidth=1e12, fp16_peak=1e14, fp32_peak=5e13, int8_peak=2e14, launch_seconds=1e-3)
    assert slower.estimated_seconds - found.estimated_seconds == pytest.approx(len(schedule.kernels) * 1e-3)


def edited(change: Callable[[str], str]) -> list[str]:
    """The log of one product, its list of layers changed."""
    return [change(line) if line.startswith("Layers:") else line for line in one_product()]


def test_an_unknown_type_of_kernel_is_kept() -> None:
    schedule = read_schedule(edited(lambda text: text.replace("LayerType: gemm", "LayerType: spin_glass")))
    assert [kernel.type for kernel in schedule.kernels] == ["spin_glass"]
    assert schedule.operations == 2 * 64 * 128 * 256


def test_an_unknown_dtype_is_kept_and_its_bytes_are_said_to_be_missing() -> None:
    schedule = read_schedule(edited(lambda text: text.replace("Datatype: Half", "Datatype: Qubit")))
    assert {tensor.dtype for tensor in schedule.kernels[0].inputs} == {"Qubit"}
    assert {"x", "y"} <= set(schedule.unsized)


@pytest.mark.parametrize("kind", ["wait", "signal", "ShapeHostToDevice", "shape_call", "allocate", "deallocate"])
def test_what_is_no_kernel_is_listed_apart(kind: str) -> None:
    line = f"Name: between, LayerType: {kind}, Inputs: [], Outputs: [], TacticName: , StreamId: 1, Metadata: "
    schedule = read_schedule(edited(lambda text: text.replace("Layers:\n", f"Layers:\n{line}\n")))
    assert [(step.name, step.type, step.stream) for step in schedule.steps] == [("between", kind, 1)]
    assert len(schedule.kernels) == 1
    assert schedule.waits == (kind == "wait")


def test_a_product_that_no_kernel_names_is_said_to_be_uncounted() -> None:
    schedule = read_schedule(edited(lambda text: text.replace("[ONNX Layer: product]", "")))
    assert (schedule.operations, schedule.uncounted) == (0, ["product"])


def test_a_build_without_detailed_verbosity() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    log = build(graph_of([node], {"x": (4,)}, {"y": (4,)}, {}), verbosity="LAYER_NAMES_ONLY")
    with pytest.raises(CompileError, match=r"no detailed list of kernels: expected .* 'Layers:' .*DETAILED"):
        read_schedule(log)


@pytest.mark.parametrize("log", [[], ["Layers:\n"], ["Layers:\ngemm\nkgen"], ["no such thing"]])
def test_a_log_without_the_list(log: list[str]) -> None:
    with pytest.raises(CompileError, match="no detailed list of kernels"):
        read_schedule(log)


@pytest.mark.parametrize("lost", ["StreamId: ", "Name: "])
def test_a_list_of_another_form(lost: str) -> None:
    with pytest.raises(CompileError, match=r"a layer of another form: .*; expected 'Name: …, LayerType: …"):
        read_schedule(edited(lambda text: text.replace(lost, "")))


@pytest.mark.parametrize("sizes", [None, {"sequence": 128}])
def test_a_size_that_was_not_given(sizes: dict[str, int] | None) -> None:
    with pytest.raises(CompileError, match=r"an axis 'batch', which varies; its size is not among .*Give the optimum"):
        read_schedule(one_product("batch"), sizes=sizes)


def test_of_several_builds_the_last_is_read() -> None:
    schedule = read_schedule([*one_product("batch"), *one_product(64)], sizes=SIZES)
    assert [product.rows for product in schedule.products] == [64]
