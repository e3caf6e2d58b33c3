"""Evaluating a custom op by its ONNX function body, in two independent runtimes, and what to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, inliner, shape_inference
from onnx.reference import ReferenceEvaluator

from plugins.contract import DOMAIN
from plugins.ops import Op


def evaluate_in_onnxruntime(model: ModelProto, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(None, feeds)
    return results


def evaluate_in_reference(model: ModelProto, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Of ops such as Gelu it knows the standard's definition alone, which is one for each dtype that goes in."""
    typed = shape_inference.infer_shapes(inliner.inline_local_functions(model))
    results: list[NDArray[Any]] = ReferenceEvaluator(typed).run(None, feeds)  # type: ignore[assignment]
    return results


EVALUATORS = {"onnxruntime": evaluate_in_onnxruntime, "onnx.reference": evaluate_in_reference}


@pytest.fixture(params=EVALUATORS)
def evaluate_body(request: pytest.FixtureRequest) -> Callable[..., list[NDArray[Any]]]:
    """``evaluate_body(op, arrays, keep=…, **attributes)``: the outputs of one node of the op, in each of the runtimes.

    ``keep`` says how many outputs the node has, or which by their names; the others are left out.
    """
    evaluator = EVALUATORS[request.param]

    def evaluate(
        op: Op,
        arrays: Sequence[NDArray[Any]],
        *,
        keep: int | Collection[str] | None = None,
        **attributes: float | str,
    ) -> list[NDArray[Any]]:
        contract = op.contract
        feeds = {spec.name: array for spec, array in zip(contract.inputs, arrays, strict=True)}
        names = [spec.name for spec in contract.outputs]
        kept = names[:keep] if keep is None or isinstance(keep, int) else keep
        outputs = [spec for spec in contract.outputs if spec.name in kept]
        node = helper.make_node(
            contract.op_type, list(feeds), [name if name in kept else "" for name in names], domain=DOMAIN
        )
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        graph = helper.make_graph(
            [node],
            "one_node",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in feeds.items()
            ],
            [
                helper.make_tensor_value_info(
                    spec.name,
                    helper.np_dtype_to_tensor_dtype(
                        arrays[0].dtype if len(spec.dtypes) > 1 else np.dtype(spec.dtypes[0])
                    ),
                    None,
                )
                for spec in outputs
            ],
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, functions=[op.function_body()], opset_imports=opsets, ir_version=10)
        return evaluator(model, feeds)

    return evaluate


@pytest.fixture(scope="session")
def assert_rounds_once() -> Callable[..., None]:
    """``assert_rounds_once(found, truth, atol)``: a result is as good as its dtype lets it be.

    Its error is at most twice that of the float64 truth rounded to that dtype, and ``atol`` for the way there.
    """

    def check(found: NDArray[Any], truth: NDArray[np.float64], atol: float) -> None:
        assert found.shape == truth.shape
        rounding = np.abs(truth.astype(found.dtype).astype(np.float64) - truth)
        excess = np.abs(found.astype(np.float64) - truth) - (2 * rounding + atol)
        assert np.all(excess <= 0), f"{np.count_nonzero(excess > 0)} elements are off, by up to {excess.max():.3g}"

    return check


@pytest.fixture(scope="session")
def assert_quantises() -> Callable[..., None]:
    """``assert_quantises(found, truth, scale, atol)``: int8 is what the truth, in float64, is quantised to.

    Where the truth is within ``atol`` of a half step, it may be the step on the other side; few are.
    """

    def check(found: NDArray[Any], truth: NDArray[np.float64], scale: float, atol: float) -> None:
        assert found.dtype == np.int8
        assert found.shape == truth.shape
        steps = truth / scale
        expected = np.clip(np.rint(steps), -128, 127)
        off = np.abs(found - expected)
        # The quotient itself is rounded too, to 2 units of 2^-24 on a GPU.
        near = np.abs(np.abs(steps - np.rint(steps)) - 0.5) <= atol / scale + np.abs(steps) * 2.0**-22
        assert not np.any(off[~near]), f"{np.count_nonzero(off[~near])} elements are off, by up to {off[~near].max()}"
        assert np.all(off <= 1)
        assert np.mean(near) < 0.05, "next to nothing is compared"

    return check
