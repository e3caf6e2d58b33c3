"""The TensorRT plugin form, run by the contracts' references in place of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from graph_passes import lower_to_plugin
from graph_passes.errors import PassError
from graph_passes.graph_tools import export_model, import_model
from plugins.contract import DOMAIN
from plugins.ops import OPS, Op
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
PLUGINS = {name: op for name, op in OPS.items() if op.contract.has_plugin}


def evaluated_by_its_reference(op: Op) -> type[OpRun]:
    """The op for onnx.reference; what it computes in float64 is rounded to the dtype of its first input."""

    names = [spec.name for spec in op.contract.attributes]

    def run(_self: OpRun, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        results = op.reference(*inputs, **{name: attributes[name] for name in names})
        results = results if isinstance(results, tuple) else (results,)
        return tuple(result.astype(inputs[0].dtype) for result in results)

    return type(op.contract.op_type, (OpRun,), {"op_domain": DOMAIN, "_run": run})


@pytest.fixture(scope="module")
def run_with_references() -> Callable[[ModelProto, Feeds], Feeds]:
    def evaluate(model: ModelProto, feeds: Feeds) -> Feeds:
        with np.errstate(all="ignore"):
            evaluator = ReferenceEvaluator(model, new_ops=[evaluated_by_its_reference(op) for op in PLUGINS.values()])
            results = evaluator.run(None, feeds)
        return dict(zip((output.name for output in model.graph.output), map(np.asarray, results), strict=True))

    return evaluate


def test_the_nodes_are_what_the_parser_looks_for(masked_lm: Traced) -> None:
    lowered, (report,) = on_models.lower(masked_lm.fused, "plugin")
    assert not lowered.functions, "the parser would take a body before a plugin"
    custom = [node for node in lowered.graph.node if node.domain]
    kept = [node.op_type for node in masked_lm.fused.graph.node if node.op_type in PLUGINS]
    assert sorted(node.op_type for node in custom) == sorted(kept)
    assert report.count == sum(node.domain == DOMAIN for node in masked_lm.fused.graph.node) > len(custom) > 0
    for node in custom:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        contract = PLUGINS[node.op_type].contract
        assert attributes.pop("plugin_namespace") == contract.domain.encode()
        assert attributes.pop("plugin_version") == str(contract.version).encode()
        assert attributes.pop("aot") == 1
        assert list(attributes) == [spec.name for spec in contract.attributes]


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
    assert {function.name for function in runnable.functions} <= PLUGINS.keys()
    assert_equal(masked_lm.fused, runnable)
    assert export_model(graph) == lowered, "the graph itself is left as it is"


@pytest.mark.parametrize("target", ["plugin", "native"])
def test_dynamic_int8_is_refused(masked_lm: Traced, target: str) -> None:
    """TensorRT has no DynamicQuantizeLinear."""
    model, _ = on_models.change_precision(masked_lm.fused, "int8")
    with pytest.raises(PassError, match=rf"lower_to_{target} cannot run here.*after \['quantize_dynamic'\]"):
        on_models.lower(model, target)
