"""Whole models with the plugins' kernels in the loop: nothing else stands in for them, from checkpoint to parity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from benchmarks.launchers import KernelCall, checked, in_interpreter
from exporter import export, parity
from exporter.engines import Runner
from exporter.manifest import load_manifest
from exporter.onnx_files import load_onnx
from exporter.validation import REFERENCE
from graph_passes import pipeline
from graph_passes.graph_tools import export_model
from plugins.contract import DOMAIN, PluginContract
from plugins.ops import OPS

# Of two layers and the embeddings: post-norm encoders carry the norm on, pre-norm ones the sum, except into the last.
EXPECTED = {
    "roformer": {"QKVRotary": 2, "ResidualLayerNorm_y": 5},
    "roformer with rotary_value": {"QKVRotary": 2, "ResidualLayerNorm_y": 5},
    "roberta-prelayernorm": {"ResidualLayerNorm": 3, "ResidualLayerNorm_y": 2},
}


class KernelRunner(Runner):
    """A graph with plugins: kernels in Triton's interpreter, the rest in onnx.reference, with every rounding."""

    def __init__(self, path: Path) -> None:
        lowered, _ = pipeline.lower(load_onnx(path), "plugin")
        self.launched: Counter[str] = Counter()
        model = export_model(lowered)
        self.names = [output.name for output in model.graph.output]
        ops = [
            self.op(op.contract, outputs) for op in OPS.values() if op.has_kernel for outputs in op.contract.variants
        ]
        self.evaluator = ReferenceEvaluator(model, new_ops=ops)

    def op(self, contract: PluginContract, outputs: tuple[str, ...]) -> type[OpRun]:
        name = contract.plugin_name(outputs)

        def run(_self: OpRun, *arrays: NDArray[Any], **attributes: Any) -> tuple[NDArray[Any], ...]:
            inputs = [torch.from_numpy(np.array(array, order="C")) for array in arrays]
            known = {spec.name: attributes[spec.name] for spec in contract.attributes}
            self.launched[name] += 1
            call = KernelCall(contract.op_type, inputs, known, outputs, tactic=self.launched[name] % 2)
            return tuple(tensor.numpy() for tensor in checked(in_interpreter, call))

        return type(name, (OpRun,), {"op_domain": DOMAIN, "_run": run})

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with np.errstate(all="ignore"):
            results = self.evaluator.run(None, dict(inputs))
        return {name: np.asarray(result) for name, result in zip(self.names, results, strict=True)}


@pytest.fixture(scope="module")
def exported(
    save_checkpoint: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> Callable[[str], Path]:
    """``exported(name)``: a tiny token classifier of the family, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("kernels")
            family, _, option = name.partition(" with ")
            torch.manual_seed(seed)
            save_checkpoint(folder / "source", family, "ForTokenClassification", **({option: True} if option else {}))
            export(folder / "source", folder / "out", precisions=("fp32", "fp16"))
            made[name] = folder / "out"
        return made[name]

    return make


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", EXPECTED)
def test_parity_with_the_kernels_in_the_loop(exported: Callable[[str], Path], name: str, precision: str) -> None:
    folder = exported(name)
    manifest = load_manifest(folder, check_files=True)
    reference = parity.load_reference(folder / REFERENCE)
    runner = KernelRunner(folder / "model" / f"{precision}.onnx")
    results = parity.compare(
        runner, reference, target="kernels", precision=precision, score_outputs=manifest.score_outputs
    )
    assert results
    assert not [failure for result in results for failure in result.failures]
    assert {name: count // len(reference) for name, count in runner.launched.items()} == EXPECTED[name]
