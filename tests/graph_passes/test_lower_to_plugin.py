"""The TensorRT plugin form, run by the contracts' references in place of the kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from graph_passes import lower_to_plugin
from graph_passes.errors import PassError
from graph_passes.graph_tools import export_model, import_model
from plugins.contract import DOMAIN
from plugins.ops import OPS
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Rewrite = Callable[..., ModelProto]
# The op and the names of its outputs, by the name of the plugin.
PLUGINS = {
    op.contract.plugin_name(variant): (op, variant)
    for op in OPS.values()
    if op.has_kernel
    for variant in op.contract.variants
}
STEP = 0.0625  # of what is int8


def evaluated_by_its_reference(name: str) -> type[OpRun]:
    """The plugin for onnx.reference; what it computes in float64 is rounded to the dtype of its first input."""
    op, variant = PLUGINS[name]

    def run(_self: OpRun, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        results = op.reference(*inputs, **{spec.name: attributes[spec.name] for spec in op.contract.attributes})
        results = results if isinstance(results, tuple) else (results,)
        pairs = zip(op.contract.outputs, results, strict=True)
        made = {
            spec.name: result.astype("int8" if spec.dtypes == ("int8",) else inputs[0].dtype) for spec, result in pairs
        }
        return tuple(made[name] for name in variant)

    return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})


@pytest.fixture(scope="module")
def run_with_references() -> Callable[[ModelProto, Feeds], Feeds]:
    def evaluate(model: ModelProto, feeds: Feeds) -> Feeds:
        with np.errstate(all="ignore"):
            evaluator = ReferenceEvaluator(model, new_ops=[evaluated_by_its_reference(name) for name in PLUGINS])
            results = evaluator.run(None, feeds)
        return dict(zip((output.name for output in model.graph.output), map(np.asarray, results), strict=True))

    return evaluate


def test_the_nodes_are_what_the_parser_looks_for(traced: Traced) -> None:
    lowered, _ = on_models.lower(traced.fused, "plugin")
    assert not lowered.functions, "the parser would take a body before a plugin"
    custom = [node for node in lowered.graph.node if node.domain]
    for node in custom:
        op, variant = PLUGINS[node.op_type]
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes.pop("plugin_namespace") == op.contract.domain.encode()
        assert attributes.pop("plugin_version") == b"1"
        assert attributes.pop("aot") == 1
        assert list(attributes) == [spec.name for spec in op.contract.attributes]
        assert len(node.output) == len(variant)
        assert all(node.output)


def test_every_op_with_a_kernel_is_a_plugin_named_after_the_outputs_that_are_read(traced: Traced) -> None:
    lowered, reports = on_models.lower(traced.fused, "plugin")
    assert [report.name for report in reports] == ["fuse_qkv_rotary", "fuse_quantized_norm", "lower_to_plugin"]
    layers, expected = traced.config.num_hidden_layers, traced.expected
    norms = expected["fuse_residual_layer_norm"]
    found = Counter(node.op_type for node in lowered.graph.node if node.domain)
    if traced.config.model_type == "roformer":
        assert found == {"QKVRotary": layers, "ResidualLayerNorm_y": norms}
    else:  # two norms carry no sum: that of the embeddings, and the last
        assert found == {"ResidualLayerNorm": norms - 2, "ResidualLayerNorm_y": 2}
    assert reports[-1].count == sum(found.values()) + expected["fuse_attention"] + expected["fuse_bias_gelu"]


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp16", 2e-2)])  # fp16: 2^-11 of 5, in each layer
def test_with_the_contracts_references_it_computes_the_same(
    traced: Traced,
    run_with_references: Callable[[ModelProto, Feeds], Feeds],
    run: Callable[[ModelProto, Feeds], Feeds],
    make_feeds: Callable[..., Feeds],
    precision: Any,
    atol: float,
) -> None:
    model, _ = on_models.change_precision(traced.fused, precision)
    lowered, _ = on_models.lower(model, "plugin")
    for seed, (batch, sequence) in enumerate([(1, 1), (3, 9)]):
        feeds = make_feeds(model, seed=seed, batch=batch, sequence=sequence)
        expected, found = run(model, feeds), run_with_references(lowered, feeds)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=atol, atol=atol, err_msg=name)


def test_with_bodies_again_any_runtime_runs_it(
    masked_lm: Traced, assert_equal: Callable[[ModelProto, ModelProto], None]
) -> None:
    lowered, _ = on_models.lower(masked_lm.fused, "plugin")
    graph = import_model(lowered)
    runnable = export_model(lower_to_plugin.without_plugins(graph))
    assert {function.name for function in runnable.functions} <= OPS.keys()
    assert_equal(masked_lm.fused, runnable)
    assert export_model(graph) == lowered, "the graph itself is left as it is"


def test_plugins_are_told_with_their_contracts_and_outputs(masked_lm: Traced) -> None:
    lowered, _ = on_models.lower(masked_lm.fused, "plugin")
    told = lower_to_plugin.plugins_of(import_model(lowered))
    assert [node.name for node, _, _ in told] == [node.name for node in lowered.graph.node if node.domain]
    for node, contract, outputs in told:
        assert node.op == contract.plugin_name(outputs)
        assert len(node.outputs) == len(outputs)
        shapes = {spec.name: tensor.shape for spec, tensor in zip(contract.inputs, node.inputs, strict=True)}
        sizes = contract.sizes(shapes, node.attrs)
        known = {"E": 24} if "E" in sizes else {"H": 4, "D": 6}
        assert {letter: sizes[letter] for letter in known} == known, "kernels are compiled for them"


def test_without_plugins_the_nodes_are_what_they_were(masked_lm: Traced) -> None:
    lowered, _ = on_models.run_passes(masked_lm.fused, [lower_to_plugin.PASS])
    runnable = export_model(lower_to_plugin.without_plugins(import_model(lowered)))
    before = {node.name: node for node in masked_lm.fused.graph.node if node.domain and OPS[node.op_type].has_kernel}
    after = {node.name: node for node in runnable.graph.node if node.domain}
    assert after == before
    assert any("" in node.output for node in after.values())


def test_twice_changes_nothing(masked_lm: Traced) -> None:
    lowered, _ = on_models.lower(masked_lm.fused, "plugin")
    again, (report,) = on_models.run_passes(lowered, [lower_to_plugin.PASS])
    assert report.count == 0
    assert again == lowered


LAYER = """
<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1]>
layer (FLOAT[batch, sequence, 6] x, FLOAT[batch, sequence, 6] residual) => (FLOAT[batch, sequence, 6] z)
<
    float[6] bias = {0.5, 1, -2, 0.25, 0, 4}, float[6] gamma = {1.5, -0.5, 0.25, 2, 1, 0.75},
    float[6] beta = {0.5, 0, -1, 0.25, 3, -0.125}, int8 zero = {0}
>
{
    y, s = rotary_press.ResidualLayerNorm <epsilon: float = 0.1> (x, residual, bias, gamma, beta)
    int8_y = QuantizeLinear (y, step, zero)
    rounded_y = DequantizeLinear (int8_y, step, zero)
    rounded_weight = DequantizeLinear (weight, step, zero)
    product = MatMul (rounded_y, rounded_weight)
    z, sum = rotary_press.ResidualLayerNorm <epsilon: float = 0.1> (product, CARRIED, bias, gamma, beta)
}
"""


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    ("carried", "plugin"),
    [
        ("s", "QuantizedResidualLayerNorm_quantized_s"),
        ("y", "QuantizedResidualLayerNorm_quantized_y"),
        ("x", "QuantizedResidualLayerNorm_quantized"),
    ],
    ids=["pre-norm", "post-norm", "neither"],
)
def test_a_norm_before_an_int8_product_quantises(
    rewrite: Rewrite,
    run_strictly: Callable[[ModelProto, Feeds], Feeds],
    run_with_references: Callable[[ModelProto, Feeds], Feeds],
    make_feeds: Callable[..., Feeds],
    carried: str,
    plugin: str,
    dtype: str,
) -> None:
    model = rewrite(LAYER, ("CARRIED", carried), ("FLOAT", dtype))
    narrow = np.float16 if dtype == "float16" else np.float32
    weight = np.random.default_rng(0).integers(-20, 20, (6, 6), dtype=np.int8)
    for name, value in (("step", np.asarray(STEP, narrow)), ("weight", weight)):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    fused, _ = on_models.fuse(model)
    lowered, _ = on_models.lower(fused, "plugin")
    assert [node.op_type for node in lowered.graph.node if node.domain] == [plugin, "ResidualLayerNorm_y"]
    assert sum(node.op_type == "QuantizeLinear" for node in lowered.graph.node) == 0
    feeds = make_feeds(fused)
    # Not ONNX Runtime, whose norms in half precision lose digits up to 1.23.
    expected, found = run_strictly(fused, feeds)["z"], run_with_references(lowered, feeds)["z"]
    # fp16: some numbers are a step further, of some ten that are summed, in units of their deviation.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if dtype == "float" else STEP)


def test_an_output_that_every_variant_has_stays_though_nothing_reads_it(rewrite: Rewrite) -> None:
    model = rewrite(LAYER, ("CARRIED", "x"), ("FLOAT", "float"), ("(y, step", "(s, step"))
    for name, value in (("step", np.float32(STEP)), ("weight", np.ones((6, 6), np.int8))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    lowered, _ = on_models.lower(on_models.fuse(model)[0], "plugin")
    assert [node.op_type for node in lowered.graph.node if node.domain] == ["ResidualLayerNorm", "ResidualLayerNorm_y"]


@pytest.mark.parametrize("target", ["plugin", "native"])
def test_dynamic_int8_is_refused(masked_lm: Traced, target: str) -> None:
    """TensorRT has no DynamicQuantizeLinear."""
    model, _ = on_models.change_precision(masked_lm.fused, "int8")
    with pytest.raises(PassError, match=rf"lower_to_{target} cannot run here.*after \['quantize_dynamic'\]"):
        on_models.lower(model, target)
