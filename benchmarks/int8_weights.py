"""Which scales int8 weights should have so that no processor saturates: accuracy and latency of the ways to do it.

    python -m benchmarks.int8_weights

Accuracy: the examples on their held-out texts, tiny random masked language models, and a model with outliers, each
next to the float32 engine. Latency: a base-size encoder (12 x 768) at 1 x 128 tokens, interleaved. Where int8 runs on
instructions with sums of 32 bits (VNNI and later), nothing saturates and the runtime's remedy changes nothing: run it
on a processor without them.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from benchmarks.models import base_model, random_inputs
from benchmarks.results import record
from examples.data import IGNORED, held_out
from examples.demo import EXAMPLES, predictions
from exporter import (
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
    RoFormerModel,
    load_model,
    load_tokenizer,
)
from exporter.bench import interleaved_medians
from exporter.engines.onnxruntime import DISABLED_OPTIMIZERS
from exporter.onnx_files import save_onnx
from exporter.tasks import TASKS, TaskName
from exporter.trace import Interface, trace
from graph_passes import pipeline, quantize_dynamic
from graph_passes.graph_tools import import_model
from graph_passes.quantization import quantize_weight

Weight = NDArray[np.float32]
Quantized = tuple[NDArray[np.int8], NDArray[np.float32]]
Scheme = Callable[[Weight], Quantized]
Feeds = dict[str, NDArray[Any]]

ROUNDS, WARM_UP = 60, 10
OURS = "neighbours of one sign / 128"
BEFORE = "largest / 127"
REMEDY = "largest / 127, session.x64quantprecision"
EXAMPLE_TASKS: dict[str, TaskName] = {"roformer": "text-classification", "roberta-prelayernorm": "token-classification"}


def steps(weight: Weight, scale: NDArray[np.floating]) -> Quantized:
    """A weight (K, N) in steps of (N,) scales."""
    scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def largest(weight: Weight, bound: int) -> Quantized:
    """The largest magnitude of a column becomes ``bound``."""
    return steps(weight, np.abs(weight).max(axis=0) / bound)


def neighbours(weight: Weight) -> Quantized:
    """As ours, whatever the signs of two neighbours are."""
    magnitude = np.abs(weight)
    together = np.add.reduceat(magnitude, np.arange(0, len(weight), 2), axis=0).max(axis=0)
    return steps(weight, np.maximum(magnitude.max(axis=0) / 127, together / 128))


SCHEMES: dict[str, tuple[Scheme, bool]] = {
    BEFORE: (partial(largest, bound=127), False),
    REMEDY: (partial(largest, bound=127), True),
    "seven bits": (partial(largest, bound=64), False),
    "neighbours / 128": (neighbours, False),
    OURS: (quantize_weight, False),
}


def main() -> None:
    """Measures accuracy, then latency; prints and records both."""
    warnings.simplefilter("ignore")  # what libraries tell their developers is no result
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    for name, measured in accuracies():
        accuracy[name] = measured
        for scheme, values in measured.items():
            print(f"{name:<40} {scheme:<42} " + "  ".join(f"{key} {value:g}" for key, value in values.items()))
    latency = {}
    for family in EXAMPLES:
        seconds = latencies(family)
        latency[family] = {scheme: round(value / seconds[BEFORE], 3) for scheme, value in seconds.items()}
        for scheme, ratio in latency[family].items():
            print(f"{family:<40} {scheme:<42} {ratio:.3f}  {1000 * seconds[scheme]:.1f} ms")
    path = record(
        "int8_weights",
        {
            "what": f"int8 weights by scheme; latency at 12 x 768, 1 x 128 tokens, medians of {ROUNDS}, to {BEFORE}",
            "threads": torch.get_num_threads(),
            "accuracy": accuracy,
            "latency": latency,
        },
    )
    print(f"recorded in {path}")


def accuracies() -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Each subject, and what each scheme loses on it."""
    for family, checkpoint in EXAMPLES.items():
        evaluation = held_out(family, load_tokenizer(checkpoint))
        interface = Interface(load_model(checkpoint), TASKS[EXAMPLE_TASKS[family]])
        names = [spec.name for spec in interface.inputs]
        batches = [
            dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch[:3], strict=True))
            for batch in evaluation.batches
        ]
        feeds = [{name: batch[name] for name in names} for batch in batches]
        labels = np.concatenate([batch.labels[batch.labels != IGNORED] for batch in evaluation.batches])

        def share_right(logits: list[NDArray[np.float32]], evaluation: Any = evaluation, labels: Any = labels) -> float:
            return float((predictions(logits, evaluation) == labels).mean())

        yield checkpoint.name, losses(interface, feeds, share_right)
    for family in EXAMPLES:
        tiny = tiny_model(family)
        interface = Interface(tiny, TASKS["fill-mask"])
        feeds = [random_inputs(interface, 3, 17, tiny.config.vocab_size, seed) for seed in range(32)]
        yield f"tiny {family}", losses(interface, feeds)
    model = with_outliers()
    interface = Interface(model, TASKS["feature-extraction"])
    feeds = [random_inputs(interface, 3, 64, model.config.vocab_size, seed) for seed in range(8)]
    yield "a RoFormer of 4 x 256 with outliers", losses(interface, feeds)


def losses(
    interface: Interface,
    feeds: list[Feeds],
    share_right: Callable[[list[NDArray[np.float32]]], float] | None = None,
) -> dict[str, dict[str, float]]:
    """The largest difference, the SQNR in dB and, with labels, the accuracy: of float32 and of each scheme."""
    fused, _ = pipeline.fuse(import_model(trace(interface)))
    found: dict[str, dict[str, float]] = {}
    with engines(fused) as sessions:
        results = {name: [session.run(None, each)[0] for each in feeds] for name, session in sessions.items()}
    truth = results["fp32"]
    for name, result in results.items():
        apart = [np.abs(ours - theirs) for ours, theirs in zip(result, truth, strict=True)]
        found[name] = {}
        if name != "fp32":
            noise = sum(float(np.square(difference).sum()) for difference in apart)
            signal = sum(float(np.square(array).sum()) for array in truth)
            found[name] = {
                "max_abs": round(max(float(difference.max()) for difference in apart), 4),
                "sqnr_db": round(10 * float(np.log10(signal / noise)), 2),
            }
        if share_right is not None:
            found[name]["accuracy"] = round(share_right(result), 5)
    return found


@contextmanager
def engines(fused: gs.Graph) -> Iterator[Mapping[str, ort.InferenceSession]]:
    """The float32 engine of a fused graph, and an int8 engine of each scheme."""
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(pipeline.lower(fused, "onnxruntime")[0], path)
        sessions["fp32"] = open_engine(path, is_exact=False)
        for name, (scheme, is_exact) in SCHEMES.items():
            with mock.patch.object(quantize_dynamic, "quantize_weight", scheme):  # the product has one scheme alone
                save_onnx(pipeline.lower(pipeline.change_precision(fused, "int8")[0], "onnxruntime")[0], path)
            sessions[name] = open_engine(path, is_exact=is_exact)
        yield sessions


def open_engine(path: Path, *, is_exact: bool) -> ort.InferenceSession:
    """As the engine is loaded; ``is_exact``: with the runtime's own remedy."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.x64quantprecision", str(int(is_exact)))
    return ort.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
    )


def tiny_model(family: str) -> RoFormerForMaskedLM | RobertaPreLayerNormForMaskedLM:
    """A random model of two layers whose products have 24 and 40 rows: few roundings that could even out."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 40, "max_position_embeddings": 22}
    model: RoFormerForMaskedLM | RobertaPreLayerNormForMaskedLM
    if family == "roformer":
        model = RoFormerForMaskedLM(RoFormerConfig(**sizes)).eval()
    else:
        model = RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def with_outliers() -> RoFormerModel:
    """A random encoder whose norms give every 50th feature up to 10 times the others' range, as trained ones do."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "num_hidden_layers": 4}
    model = RoFormerModel(RoFormerConfig(vocab_size=1000, **sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
            if name.endswith("LayerNorm.weight"):
                parameter[::50] *= 1 + 9 * torch.rand(len(parameter[::50]))
    return model


def latencies(family: str) -> dict[str, float]:
    """Median seconds of each scheme for one text of 128 tokens, on a random base-size encoder."""
    model = base_model(family)
    interface = Interface(model, TASKS["feature-extraction"])
    feeds = random_inputs(interface, 1, 128, model.config.vocab_size)
    fused, _ = pipeline.fuse(import_model(trace(interface)))
    with engines(fused) as sessions:
        runners = {name: partial(session.run, None, feeds) for name, session in sessions.items()}
        return interleaved_medians(runners, rounds=ROUNDS, warm_up=WARM_UP)


if __name__ == "__main__":
    main()
