"""What fp16 costs when every rounding is done: the examples' fp16 graphs in ONNX's own reference evaluator.

    make demo && python -m benchmarks.strict_fp16

ONNX Runtime's CPU computes half-precision products in float32 and leaves roundings out, so its figures flatter fp16.
The reference evaluator works in NumPy's float16, node by node; it is slow, hence a part of the held-out texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import inliner
from onnx.reference import ReferenceEvaluator

from benchmarks.results import record
from examples.data import IGNORED, held_out
from examples.demo import EXAMPLES
from exporter import load_model, load_tokenizer
from exporter.parity import measure

BATCHES = {"roformer": 8, "roberta-prelayernorm": 4}  # of 16 texts


def main() -> None:
    """Compares both examples with float32 PyTorch, prints and records the distances."""
    results = {}
    for family, checkpoint in EXAMPLES.items():
        model_path = Path("build") / "demo" / checkpoint.name / "model" / "fp16.onnx"
        inlined = inliner.inline_local_functions(onnx.load(model_path))
        evaluator = ReferenceEvaluator(onnx.shape_inference.infer_shapes(inlined))  # it expands Gelu by its dtypes
        model = load_model(checkpoint)
        truth, found = [], []
        for batch in held_out(family, load_tokenizer(checkpoint), limit=BATCHES[family]).batches:
            counted = batch.labels != IGNORED
            inputs = dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch[:3], strict=True))
            outputs: Any = evaluator.run(None, {name: inputs[name] for name in evaluator.input_names})
            with torch.no_grad():
                truth.append(model(*map(torch.from_numpy, batch[:3])).logits.numpy()[counted])
            found.append(outputs[0][counted])
        metrics = measure(list(zip(truth, found, strict=True)), is_scores=True, clear_margin=0.0)
        results[family] = {"labels": sum(map(len, truth)), **metrics.model_dump()}
        print(family, results[family])
    print(f"recorded in {record('strict_fp16', {'what': 'fp16 graphs, every rounding done', 'examples': results})}")


if __name__ == "__main__":
    main()
