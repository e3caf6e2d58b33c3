"""Base-size encoders (12 x 768) built with TensorRT-RTX, without a GPU: ours beside the plain graph, same options.

    python -m benchmarks.tensorrt_rtx_builds

For each family, precision and architecture: seconds and peak memory of the build, each in a process of its own and in
turns (medians), the size of the engine, and its schedule as the builder tells it: kernels, kernels per layer, bytes
moved at 1 x 128 tokens, waits between streams, and the dtypes of the large products. The plain graph is what
torch.onnx.export gives; its half precision is ONNX Runtime's float16 converter with nothing kept in float32. int8 is
ours alone, with ranges of random ids: schedules do not depend on them.

Weights are random, those of norms and biases too. What an engine takes on a GPU is not measured here.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16

from benchmarks.models import base_model
from benchmarks.results import record
from exporter.calibration import calibrate
from exporter.engines import BuildOptions, get_engine
from exporter.engines.tensorrt_base import read_record
from exporter.onnx_files import save_onnx
from exporter.tasks import TASKS
from exporter.trace import Interface, trace
from graph_passes import pipeline
from graph_passes.graph_tools import import_model

ROUNDS = {86: 1, 89: 7, 120: 1}  # by architecture; the builds differ in nothing but it
LARGE = 256  # columns and depth of the products that int8 is for; those of attention are smaller at 128 tokens


def main() -> None:
    """Builds, prints and records."""
    rows = []
    for family in ("roformer", "roberta-prelayernorm"):
        with tempfile.TemporaryDirectory() as folder:
            models = graphs(family, Path(folder))
            for sm, rounds in ROUNDS.items():
                builds: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
                for round_ in range(rounds):
                    for name in sorted(models, reverse=bool(round_ % 2)):
                        builds[name].append(build_apart(models[name], Path(folder, f"{name}.engine"), sm))
                for name, found in builds.items():
                    rows.append(
                        {"family": family, "graph": name, "sm": sm} | summary(found, Path(folder, f"{name}.engine"))
                    )
                    print(json.dumps(rows[-1]), flush=True)
    record("tensorrt_rtx_builds", {"rounds": ROUNDS, "rows": rows})


def graphs(family: str, folder: Path) -> dict[str, Path]:
    """The plain and our graphs of a family, written."""
    model = base_model(family)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:  # new models have zeros and ones there, which a compiler leaves out
            torch.nn.init.normal_(weight, float(name.endswith("weight")), 0.1)
    plain = trace(Interface(model, TASKS["feature-extraction"]))
    paths = {
        name: folder / f"{name}.onnx" for name in ("plain fp32", "plain fp16", "ours fp32", "ours fp16", "ours int8")
    }
    onnx.save(plain, paths["plain fp32"])
    onnx.save(convert_float_to_float16(plain, keep_io_types=True), paths["plain fp16"])
    fused, _ = pipeline.fuse(import_model(plain))
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (2, 64))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    names = {tensor.name for tensor in fused.inputs}
    ranges = calibrate(fused, [{name: array for name, array in batch.items() if name in names}]).of(fused)
    for precision in pipeline.PRECISIONS:
        changed, _ = pipeline.change_precision(fused, precision, ranges=ranges if precision == "int8" else None)
        save_onnx(pipeline.lower(changed, "native")[0], paths[f"ours {precision}"])
    return paths


def build_apart(model: Path, engine: Path, sm: int) -> dict[str, Any]:
    """Seconds and peak memory of one build in a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.tensorrt_rtx_builds", str(model), str(engine), str(sm)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def build_here(model: Path, engine: Path, sm: int) -> None:
    """One build; prints what it took."""
    get_engine("tensorrt-rtx").build(model, engine, BuildOptions(sms=(sm,), max_tokens=512))
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": read_record(engine).seconds, "peak_bytes": peak}))


def summary(builds: list[dict[str, Any]], engine: Path) -> dict[str, Any]:
    """Medians, and what the schedule says."""
    made = read_record(engine)
    [schedule] = made.schedules
    large = [product for product in schedule.products if min(product.columns, product.depth) >= LARGE]
    layers = schedule.kernels_per_layer
    return {
        "seconds": statistics.median(build["seconds"] for build in builds),
        "peak_bytes": statistics.median(build["peak_bytes"] for build in builds),
        "engine_bytes": made.size_bytes,
        "kernels": len(schedule.kernels),
        "kernels_per_layer": statistics.mean(layers.values()) if layers else None,
        "bytes_moved": schedule.bytes_read + schedule.bytes_written,
        "waits": schedule.waits,
        "large_products": {
            dtype: sum(of.dtype == dtype for of in large) for dtype in sorted({of.dtype for of in large})
        },
    }


if __name__ == "__main__":
    if len(sys.argv) == 4:
        build_here(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
