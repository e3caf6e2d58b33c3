"""The ONNX Runtime form: no custom op is left, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from graph_passes import pipeline
from tests import on_models

if TYPE_CHECKING:
    from tests.graph_passes.conftest import Traced

Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]
RUNS_HERE = {"", "com.microsoft"}


@pytest.mark.parametrize("precision", pipeline.PRECISIONS)
def test_no_custom_op_is_left(masked_lm: Traced, precision: pipeline.Precision) -> None:
    model, _ = on_models.change_precision(masked_lm.fused, precision)
    lowered, (report,) = on_models.lower(model, "onnxruntime")
    assert not lowered.functions
    assert {node.domain for node in lowered.graph.node} <= RUNS_HERE
    assert {opset.domain for opset in lowered.opset_import if opset.domain} <= {*RUNS_HERE, "rotary_press"}
    assert report.count == sum(node.domain == "rotary_press" for node in model.graph.node)
    assert report.count > 0


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("int8", 1e-5)])
def test_it_computes_what_the_portable_model_does(
    traced: Traced, run: Run, make_feeds: Callable[..., Feeds], precision: pipeline.Precision, atol: float
) -> None:
    model, _ = on_models.change_precision(traced.fused, precision)
    lowered, _ = on_models.lower(model, "onnxruntime")
    for seed, (batch, sequence) in enumerate([(1, 1), (3, 17)]):
        feeds = make_feeds(model, seed=seed, batch=batch, sequence=sequence)
        expected, found = run(model, feeds), run(lowered, feeds)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("precision", pipeline.PRECISIONS)
def test_the_interface_stays(
    masked_lm: Traced, interface_of: Callable[[ModelProto], dict[str, list[Any]]], precision: pipeline.Precision
) -> None:
    model, _ = on_models.change_precision(masked_lm.fused, precision)
    assert interface_of(on_models.lower(model, "onnxruntime")[0]) == interface_of(masked_lm.plain)


ROTATIONS = """
<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1]>
rotations (
    DTYPE[batch, 3, sequence, 8] x, float[ROWS, sequence, 4] cos, float[ROWS, sequence, 4] sin
) => (DTYPE[batch, 3, sequence, 8] y)
{
    turned = rotary_press.InterleavedRotary (x, cos, sin)
    y = rotary_press.InterleavedRotary (turned, cos, sin)
}
"""


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("rows", ["1", "batch"])
def test_a_rotation_is_lowered_whoever_shares_its_angles(
    rewrite: Callable[..., ModelProto], run: Run, make_feeds: Callable[..., Feeds], rows: str, dtype: str
) -> None:
    fused, _ = on_models.fuse(rewrite(ROTATIONS, ("ROWS", rows), ("DTYPE", dtype)))
    lowered, (report,) = on_models.lower(fused, "onnxruntime")
    assert report.count == 2
    assert {node.domain for node in lowered.graph.node} <= RUNS_HERE
    for batch, sequence in [(1, 1), (2, 5)]:
        feeds = make_feeds(fused, batch=batch, sequence=sequence)
        expected, found = run(fused, feeds)["y"], run(lowered, feeds)["y"]
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-5)


def test_the_sum_of_a_norm_survives(
    rewrite: Callable[..., ModelProto], run: Run, make_feeds: Callable[..., Feeds]
) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1]>
    norms (
        float[batch, sequence, 4] x, float[batch, sequence, 4] residual, float[4] bias, float[4] gamma, float[4] beta
    ) => (float[batch, sequence, 4] y, float[batch, sequence, 4] s)
    {
        y, s = rotary_press.ResidualLayerNorm <epsilon: float = 0.1> (x, residual, bias, gamma, beta)
    }
    """
    fused, _ = on_models.fuse(rewrite(text))
    lowered, _ = on_models.lower(fused, "onnxruntime")
    assert not [node for node in lowered.graph.node if node.domain == "rotary_press"]
    feeds = make_feeds(fused, scale=0.1)
    expected, found = run(fused, feeds), run(lowered, feeds)
    for name in ("y", "s"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)
