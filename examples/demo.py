"""The main job on the bundled checkpoints: export, verify, and measure on text that no training has seen.

For each precision: the engine's size, how far it is from float32 PyTorch, what that costs on the task, and its latency
as a ratio to eager PyTorch, one thread each. ``make demo`` runs this; the exports stay in ``build/demo``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from examples.data import IGNORED, EvaluationSet, held_out
from exporter import Session, export, load_model, load_tokenizer
from exporter.bench import interleaved_medians
from exporter.processor import find_processor

__all__ = ["EXAMPLES", "Row", "main", "measure_example"]

HERE = Path(__file__).parent
EXAMPLES = {
    "roformer": HERE / "roformer_passage_origin",
    "roberta-prelayernorm": HERE / "roberta_prelayernorm_token_classes",
}
THREADS = 1  # models this small lose time to a second one, in PyTorch and in the engines
ROUNDS = 40  # of interleaved latency measurements
WARM_UP = 5


@dataclass(frozen=True)
class Bounds:
    """What an engine may lose on a task, and why that much."""

    top1_agreement: float
    accuracy_loss: float
    reason: str


BOUNDS = {
    "fp32": Bounds(1.0, 0.0, "the same numbers but for the order of sums: no prediction may change"),
    "fp16": Bounds(0.999, 0.001, "only near ties may change sides"),
    "int8": Bounds(0.0, 0.005, "half a point: predictions may change, as long as about as many get better as worse"),
}


@dataclass(frozen=True)
class Row:
    """One engine's line of the table. Latency is relative to eager PyTorch: below one is faster."""

    precision: str
    size_bytes: int
    max_abs: float
    top1_agreement: float
    accuracy: float
    labels: int
    latency_ratio: float
    passed: bool


def main() -> int:
    """Prints one table per example; the exit code is 0 if everything passed."""
    warnings.simplefilter("ignore")  # what libraries tell their developers is not for our users
    torch.set_num_threads(THREADS)
    console = Console(width=None if sys.stdout.isatty() else 120)
    passed = True
    for family, checkpoint in EXAMPLES.items():
        destination = Path("build") / "demo" / checkpoint.name
        start = time.perf_counter()
        rows = measure_example(family, checkpoint, destination)
        table = Table(title=f"{checkpoint.name}: accuracy on {rows[0].labels:,} held-out labels")
        for heading in ("engine", "size", "max abs", "top-1 as PyTorch", "accuracy", "latency / eager PyTorch", ""):
            table.add_column(heading, justify="right" if heading not in ("engine", "") else "left")
        for row in rows:
            table.add_row(
                row.precision,
                f"{row.size_bytes / 1e6:.2f} MB",
                f"{row.max_abs:.1e}",
                f"{row.top1_agreement:.2%}",
                f"{row.accuracy:.2%}",
                f"{row.latency_ratio:.2f}",
                "PASS" if row.passed else "FAIL",
            )
        console.print(table)
        console.print(f"Exported, verified and measured in {time.perf_counter() - start:.0f} s: {destination}\n")
        passed = passed and all(row.passed for row in rows)
    processor = find_processor()
    console.print(f"Measured on {processor.name}; ONNX Runtime multiplied int8 with {processor.int8}.\n")
    console.print("PASS" if passed else "FAIL")
    return 0 if passed else 1


def measure_example(family: str, checkpoint: Path, destination: Path) -> list[Row]:
    """Exports a checkpoint and measures PyTorch and every engine on the held-out texts.

    Returns:
        A row per engine.
    """
    report = export(checkpoint, destination)
    model = load_model(checkpoint)
    evaluation = held_out(family, load_tokenizer(checkpoint))

    def eager(ids: NDArray[np.int64], mask: NDArray[np.int64], types: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits = model(*map(torch.from_numpy, (ids, mask, types))).logits
        return np.asarray(logits.numpy())

    sessions = {
        result.precision: Session(destination, precision=result.precision, threads=THREADS) for result in report.results
    }
    runners: dict[str, Callable[..., NDArray[np.float32]]] = {"eager": eager}
    for precision, session in sessions.items():
        runners[precision] = lambda *arrays, session=session: session.run(*arrays)["logits"]

    logits = {name: [run(*batch[:3]) for batch in evaluation.batches] for name, run in runners.items()}
    latency = time_one_text(runners, evaluation)
    truth = predictions(logits["eager"], evaluation)
    labels = np.concatenate([batch.labels[batch.labels != IGNORED] for batch in evaluation.batches])
    rows = []
    for entry in sessions["fp32"].manifest.engines:
        found = predictions(logits[entry.precision], evaluation)
        agreement, accuracy = float((found == truth).mean()), float((found == labels).mean())
        loss = float((truth == labels).mean()) - accuracy
        bounds = BOUNDS[entry.precision]
        judged = [result.passed for result in report.results if result.precision == entry.precision]
        rows.append(
            Row(
                precision=entry.precision,
                size_bytes=entry.size_bytes,
                max_abs=max(
                    float(np.abs(ours - theirs).max())
                    for ours, theirs in zip(logits[entry.precision], logits["eager"], strict=True)
                ),
                top1_agreement=agreement,
                accuracy=accuracy,
                labels=labels.size,
                latency_ratio=latency[entry.precision] / latency["eager"],
                passed=all(judged) and agreement >= bounds.top1_agreement and loss <= bounds.accuracy_loss,
            )
        )
    return rows


def predictions(logits: list[NDArray[np.float32]], evaluation: EvaluationSet) -> NDArray[np.int64]:
    """The best class wherever a label counts, over all batches: (labels,)."""
    return np.concatenate(
        [
            batch_logits.argmax(axis=-1)[batch.labels != IGNORED]
            for batch_logits, batch in zip(logits, evaluation.batches, strict=True)
        ]
    )


def time_one_text(
    runners: dict[str, Callable[..., NDArray[np.float32]]], evaluation: EvaluationSet
) -> dict[str, float]:
    """Median seconds that each runner takes for the longest text of the first batch, alone and without padding."""
    batch = evaluation.batches[0]
    row = int(batch.attention_mask.sum(axis=1).argmax())
    length = int(batch.attention_mask[row].sum())
    arrays = [array[row : row + 1, :length].copy() for array in batch[:3]]
    timed = {name: partial(run, *arrays) for name, run in runners.items()}
    return interleaved_medians(timed, rounds=ROUNDS, warm_up=WARM_UP)


if __name__ == "__main__":
    sys.exit(main())
