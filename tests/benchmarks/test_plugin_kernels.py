"""The part of the GPU benchmark that needs no GPU: what it checks, and that its peers compute the same ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import plugin_kernels
from benchmarks.launchers import in_interpreter
from benchmarks.plugin_kernels import HEAD_SIZE, HEADS, NORM, QKV, calls, check, judge
from plugins.compile import kernels
from plugins.ops import OPS


def test_every_op_tactic_and_variant_is_checked_and_right() -> None:
    found = list(calls("cpu", torch.float32, [(2, 5, 3, 6)], seed=0))
    assert {(call.op_type, call.tactic, call.written) for call in found} == {
        (name, tactic, outputs)
        for name, kernel in kernels().items()
        for tactic in range(len(kernel.tactics))
        for outputs in OPS[name].contract.variants
    }
    assert check(in_interpreter, "cpu", small=True) > 3 * len(found)


@pytest.mark.parametrize("name", ["InterleavedRotary", "QKVRotary", "ResidualLayerNorm", "QuantizedResidualLayerNorm"])
def test_a_wrong_result_is_found(name: str) -> None:
    call = next(call for call in calls("cpu", torch.float32, [(2, 5, 3, 6)], seed=0) if call.op_type == name)
    outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in call.results()]
    in_interpreter(call, outputs)
    judge(call, outputs)
    for output in outputs:
        right = output.clone()
        output.view(-1)[3] += 2 if output.dtype == torch.int8 else 1e-3
        with pytest.raises(AssertionError, match=name):
            judge(call, outputs)
        output.copy_(right)


PEERS: list[tuple[str, dict[str, Any], Callable[..., Any]]] = [
    ("InterleavedRotary", {}, plugin_kernels.eager_rotary),
    ("QKVRotary", QKV, plugin_kernels.eager_qkv),
    ("ResidualLayerNorm", NORM, plugin_kernels.eager_norm),
    ("QuantizedResidualLayerNorm", NORM, plugin_kernels.eager_quantized_norm),
]


@pytest.mark.parametrize(("name", "attributes", "eager"), PEERS, ids=[name for name, *_ in PEERS])
def test_peers_compute_the_same(name: str, attributes: dict[str, Any], eager: Callable[..., Any]) -> None:
    """Otherwise their times would say nothing."""
    found = calls("cpu", torch.float32, [(1, 3, HEADS, HEAD_SIZE)], seed=1)
    call = next(call for call in found if call.op_type == name)
    results = eager(*call.inputs)
    truth = OPS[name].reference(*(tensor.numpy() for tensor in call.inputs), **attributes)
    names = [spec.name for spec in call.contract.outputs]
    wanted = ["quantized", "s"] if name.startswith("Quantized") else names
    truths = dict(zip(names, truth if isinstance(truth, tuple) else (truth,), strict=True))
    results = results if isinstance(results, tuple) else (results,)
    for key, result in zip(wanted, results, strict=True):
        # Near a half, float32 may round the other way; elsewhere sums in another order cost 1e-6 each.
        atol = 1 if key == "quantized" else 1e-4
        np.testing.assert_allclose(result.numpy().astype(np.float64), truths[key], rtol=0, atol=atol)
