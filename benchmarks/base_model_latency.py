"""A base-size encoder (12 x 768) at batch 1 x 128 tokens: our engines and the usual peer, relative to eager PyTorch.

    python -m benchmarks.base_model_latency roformer
    python -m benchmarks.base_model_latency roberta-prelayernorm

Same threads for all, interleaved, medians. Weights are random: latency does not depend on them. The peer is what one
gets without Rotary Press: the plain traced graph, and that graph through ONNX Runtime's own dynamic quantisation.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.models import base_model, random_inputs
from benchmarks.results import record
from exporter.bench import interleaved_medians
from exporter.engines import get_engine
from exporter.onnx_files import save_onnx
from exporter.processor import find_processor
from exporter.tasks import TASKS
from exporter.trace import Interface, trace
from graph_passes import pipeline
from graph_passes.graph_tools import import_model

BATCH, TOKENS = 1, 128
ROUNDS, WARM_UP = 60, 10


def main(family: str) -> None:
    """Measures one family, prints the ratios and records them."""
    model = base_model(family)
    interface = Interface(model, TASKS["feature-extraction"])
    threads = torch.get_num_threads()
    inputs = random_inputs(interface, BATCH, TOKENS, model.config.vocab_size)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}

    def eager() -> object:
        with torch.no_grad():
            return model(**tensors)

    runners: dict[str, Callable[[], object]] = {"eager PyTorch fp32": eager}
    engine = get_engine("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:

        def add(name: str, path: Path) -> None:
            runners[name] = partial(engine.load(path, threads=threads).run, inputs)

        plain = import_model(trace(interface))
        fused, _ = pipeline.fuse(plain)
        for precision in pipeline.PRECISIONS:
            lowered, _ = pipeline.lower(pipeline.change_precision(fused, precision)[0], "onnxruntime")
            save_onnx(lowered, Path(folder) / f"{precision}.onnx")
            add(f"rotary-press {precision}", Path(folder) / f"{precision}.onnx")
        save_onnx(plain, Path(folder) / "plain.onnx")
        add("plain graph fp32", Path(folder) / "plain.onnx")
        quantize_dynamic(
            Path(folder) / "plain.onnx", Path(folder) / "peer.onnx", weight_type=QuantType.QInt8, per_channel=True
        )
        add("plain graph, quantize_dynamic", Path(folder) / "peer.onnx")
        seconds = interleaved_medians(runners, rounds=ROUNDS, warm_up=WARM_UP)

    base = seconds["eager PyTorch fp32"]
    ratios = {name: round(value / base, 3) for name, value in seconds.items()}
    for name, ratio in ratios.items():
        print(f"{ratio:6.2f}  {1000 * seconds[name]:7.1f} ms  {name}")
    instructions = find_processor().int8.lower().replace(" ", "-")  # int8 is another matter with others
    path = record(
        f"base_model_latency_{family}_{instructions}",
        {
            "what": f"{family}, 12 x 768, batch {BATCH} x {TOKENS} tokens, {threads} threads, medians of {ROUNDS}",
            "ratio_to_eager_pytorch": ratios,
            "milliseconds": {name: round(1000 * value, 2) for name, value in seconds.items()},
        },
    )
    print(f"recorded in {path}")


if __name__ == "__main__":
    main(sys.argv[1])
