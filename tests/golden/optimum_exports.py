"""Graphs that Hugging Face Optimum exports, which needs an older ``transformers`` than this project is tested with.

Writes ``optimum-<case>.onnx`` beside this file: tiny random models, exported by Optimum's own function at its default
opset. Recorded with CPython 3.11.7 on x86-64, in an environment of its own:

    python -m venv old
    old/bin/pip install optimum-onnx==0.1.0 optimum==2.1.0 transformers==4.57.6 torch==2.13.0
    old/bin/pip install onnx==1.23.2 onnxruntime==1.31.1 onnxslim==0.1.98
    old/bin/python tests/golden/optimum_exports.py

With these versions,

- both families have eager attention alone: ``attn_implementation="sdpa"`` is refused by ``transformers``;
- Optimum has no configuration for RoBERTa-PreLayerNorm and asks for a custom one: that of RoBERTa, whose inputs are the
  same, fits it as it is;
- ``optimize="O1"`` and above are refused for both families: ORTOptimizer knows neither. ``slim=True``, which rewrites
  the graph with onnxslim, works.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

OUT = Path(__file__).resolve().parent
VERSIONS = {
    "optimum": "2.1.0",
    "optimum-onnx": "0.1.0",
    "transformers": "4.57.6",
    "onnx": "1.23.2",
    "onnxruntime": "1.31.1",
    "onnxslim": "0.1.98",
}
TINY: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 22,
    "pad_token_id": 1,
    "num_labels": 3,
}


class Case(NamedTuple):
    """A model, the task it is exported for, and whether Optimum has the graph rewritten by onnxslim."""

    family: str
    head: str
    task: str
    slim: bool = False


CASES = {
    "roformer-feature-extraction": Case("RoFormer", "Model", "feature-extraction"),
    "roformer-fill-mask-slim": Case("RoFormer", "ForMaskedLM", "fill-mask", slim=True),
    "roberta-prelayernorm-feature-extraction": Case("RobertaPreLayerNorm", "Model", "feature-extraction"),
    "roberta-prelayernorm-text-classification-slim": Case(
        "RobertaPreLayerNorm", "ForSequenceClassification", "text-classification", slim=True
    ),
}


def make_model(case: Case) -> Any:
    """No bias of it is zero and no gamma one."""
    torch.manual_seed(0)
    config = getattr(transformers, case.family + "Config")(**TINY)
    model = getattr(transformers, case.family + case.head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # the table of sinusoids is computed, not learnt
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def main() -> None:
    """Records every case."""
    from optimum.exporters.onnx import onnx_export_from_model  # type: ignore[import-not-found]
    from optimum.exporters.onnx.model_configs import RobertaOnnxConfig  # type: ignore[import-not-found]

    found = {package: version(package) for package in VERSIONS}
    assert found == VERSIONS, found
    assert torch.__version__.split("+")[0] == "2.13.0", torch.__version__
    for name, case in CASES.items():
        model = make_model(case)
        custom = None
        if case.family == "RobertaPreLayerNorm":
            custom = {"model": RobertaOnnxConfig(model.config, task=case.task)}
        with tempfile.TemporaryDirectory() as folder:
            onnx_export_from_model(model, folder, task=case.task, custom_onnx_configs=custom, slim=case.slim)
            shutil.copyfile(Path(folder, "model.onnx"), OUT / f"optimum-{name}.onnx")


if __name__ == "__main__":
    main()
