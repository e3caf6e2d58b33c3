"""What fusing costs: seconds and peak memory of ``rotary-press fuse`` on RoFormers of base width and growing depth.

    python -m benchmarks.fusion_cost

Each run is a process of its own, from the ONNX file to the ONNX file; medians of three. The peak counts the interpreter
and the libraries (what they hold before the first byte of the graph is recorded beside it). Weights are random: the
proofs of the fusions do not depend on what they are.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.results import RESULTS, record

LAYERS = (2, 4, 8, 12, 24)
ROUNDS = 3
MIB = 1 << 20
Points = Sequence[tuple[float, float]]
P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    """Measures every depth and lowering, prints and records them, and draws ``results/fusion_cost.svg``."""
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in apart(lowerings)}
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            source = Path(folder) / f"{layers}.onnx"
            weights = apart(make, layers, source)
            for lowering, found in results.items():
                runs = [apart(measure, source, lowering) for _ in range(ROUNDS)]
                seconds, peak, libraries = (statistics.median(values) for values in zip(*runs, strict=True))
                found[layers] = {
                    "seconds": round(seconds, 2),
                    "weights_mib": round(weights / MIB),
                    "peak_mib": round(peak / MIB),
                    "libraries_mib": round(libraries / MIB),
                    "peak_to_weights": round(peak / weights, 2),
                }
                print(f"{layers:2} layers, {lowering:12}", found[layers])
            source.unlink()
    growth = {lowering: growth_of(found) for lowering, found in results.items()}
    path = record(
        "fusion_cost",
        {
            "what": f"RoFormer text classification, float32, 768 wide, by layers; medians of {ROUNDS} processes",
            "seconds_per_layer_in_the_deeper_half_to_the_shallower": growth,
            "lowerings": results,
        },
    )
    charts = {
        "seconds": {name: [(n, row["seconds"]) for n, row in found.items()] for name, found in results.items()},
        "peak memory / weights": {
            name: [(n, row["peak_to_weights"]) for n, row in found.items()] for name, found in results.items()
        },
    }
    (RESULTS / "fusion_cost.svg").write_text(draw(charts, "layers"), encoding="utf-8")
    print(f"growth {growth} (1 is linear); recorded in {path}")


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls a function in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def lowerings() -> list[str]:
    """Names of all lowerings."""
    from graph_passes import pipeline

    return list(pipeline.LOWERINGS)


def make(layers: int, path: Path) -> int:
    """Writes the plain graph of a text classifier, and tells how many bytes its weights have."""
    import onnx
    import torch

    from exporter import RoFormerConfig
    from exporter.models import RoFormerForSequenceClassification
    from exporter.tasks import TASKS
    from exporter.trace import Interface, trace

    torch.manual_seed(0)
    model = RoFormerForSequenceClassification(RoFormerConfig(num_hidden_layers=layers)).eval()
    onnx.save(trace(Interface(model, TASKS["text-classification"])), path)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def measure(source: Path, lowering: str) -> tuple[float, int, int]:
    """Seconds, the peak of the process's memory, and what the libraries hold of it, in bytes."""
    from exporter import fusing

    libraries = peak_memory()
    start = time.perf_counter()
    fusing.fuse(source, source.with_name("fused.onnx"), lowering=lowering, require_fused=True)
    return time.perf_counter() - start, peak_memory(), libraries


def peak_memory() -> int:
    """The most bytes of this process that were in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth_of(found: Mapping[int, Mapping[str, float]]) -> float:
    """What a layer adds from the middle depth to the last, over what it adds from the first to the middle."""
    first, middle, last = (LAYERS[0], LAYERS[-2], LAYERS[-1])
    seconds = {layers: row["seconds"] for layers, row in found.items()}
    later = (seconds[last] - seconds[middle]) / (last - middle)
    return round(later / ((seconds[middle] - seconds[first]) / (middle - first)), 2)


def draw(charts: Mapping[str, Mapping[str, Points]], along: str) -> str:
    """Line charts side by side as SVG, both axes from zero."""
    wide, high, margin = 360, 240, 50
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
    parts = []
    for number, (title, lines) in enumerate(charts.items()):
        points = [point for line in lines.values() for point in line]
        right, top = max(x for x, _ in points), max(y for _, y in points) * 1.1
        left = number * (wide + 2 * margin) + margin
        parts.append(f'<path d="M{left} {margin}v{high}h{wide}" fill="none" stroke="black"/>')
        parts.append(f'<text x="{left}" y="{margin - 20}">{title}</text>')
        parts.append(f'<text x="{left + wide}" y="{margin + high + 40}" text-anchor="end">{along}</text>')
        for x in sorted({x for x, _ in points}):
            parts.append(f'<text x="{left + x / right * wide:.0f}" y="{margin + high + 18}">{x:g}</text>')
        for y in (top / 4, top / 2, top):
            at = margin + high - y / top * high
            parts.append(f'<text x="{left - 6}" y="{at:.0f}" text-anchor="end">{y:.3g}</text>')
        for index, (name, line) in enumerate(lines.items()):
            colour = colours[index % len(colours)]
            path = " ".join(f"{left + x / right * wide:.1f},{margin + high - y / top * high:.1f}" for x, y in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="{left + 20}" y="{margin + 16 * (index + 1)}" fill="{colour}">{name}</text>')
    size = f'width="{len(charts) * (wide + 2 * margin)}" height="{high + 2 * margin}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    main()
