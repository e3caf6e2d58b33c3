"""Tiny random models of every task, and their plain graphs, each traced once per run: tracing takes seconds."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from onnx import ModelProto, load, save

from exporter import models
from exporter.models.checkpoint import PreTrainedModel
from exporter.tasks import FAMILY_PREFIX, TASKS, TaskName, expected_fusions
from exporter.trace import Interface, trace
from graph_passes.graph_pass import NearMiss, PassReport, Place
from tests import on_models
from tests.shared import made_once

__all__ = ["MODELS", "VARIANTS", "Recipe", "TracedModel", "fuse_model", "make_model", "trace_model"]

# No size that is a power of two or equals another: head size 6, and widths that show a transposed weight.
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
# One layer where a second would show nothing new.
BY_TASK: dict[TaskName, dict[str, Any]] = {
    "fill-mask": {},
    "question-answering": {"num_hidden_layers": 1, "num_labels": 2},
    "text-generation": {"is_decoder": True},
}
CROSS: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": 1}


class Recipe(NamedTuple):
    """What one model is made of: ``options`` go into the config."""

    family: str
    task: TaskName
    options: dict[str, Any]
    position_ids: bool = False


# Every task of both families, and what changes a graph. tests/golden holds a graph of each.
MODELS: dict[str, Recipe] = {
    f"{family}-{task}": Recipe(family, task, BY_TASK.get(task, {"num_hidden_layers": 1}))
    for family in FAMILY_PREFIX
    for task in TASKS
} | {
    "roformer-with-rotary-value-and-projection": Recipe(
        "roformer", "feature-extraction", {"num_hidden_layers": 2, "rotary_value": True, "embedding_size": 20}
    ),
    "roformer-with-cross-attention": Recipe("roformer", "text-generation", CROSS),
    "roberta-prelayernorm-with-relative-positions": Recipe(
        "roberta-prelayernorm",
        "text-generation",
        {"is_decoder": True, "num_hidden_layers": 1, "position_embedding_type": "relative_key_query"},
    ),
}
# What changes the inputs, or a few nodes.
VARIANTS: dict[str, Recipe] = {
    "roformer-without-segments": Recipe(
        "roformer", "token-classification", {"num_hidden_layers": 1, "type_vocab_size": 1}
    ),
    "roberta-prelayernorm-with-cross-attention": Recipe("roberta-prelayernorm", "feature-extraction", CROSS),
    "roberta-prelayernorm-with-relative-keys": Recipe(
        "roberta-prelayernorm",
        "token-classification",
        {"num_hidden_layers": 1, "position_embedding_type": "relative_key"},
    ),
    "roberta-prelayernorm-with-position-ids": Recipe(
        "roberta-prelayernorm", "text-generation", {"is_decoder": True, "num_hidden_layers": 1}, position_ids=True
    ),
    # Two tokens for a decoder, one for an encoder: less than the samples that are traced.
    "roformer-with-few-positions": Recipe(
        "roformer", "text-generation", {"is_decoder": True, "num_hidden_layers": 1, "max_position_embeddings": 2}
    ),
    "roberta-prelayernorm-with-few-positions": Recipe(
        "roberta-prelayernorm", "text-classification", {"num_hidden_layers": 1, "max_position_embeddings": 3}
    ),
}


@dataclass(frozen=True)
class TracedModel:
    """A model and its graph. The graph is shared: copy it before changing it."""

    name: str
    config: Any
    interface: Interface
    plain: ModelProto


def make_model(name: str) -> PreTrainedModel[Any]:
    """A model in evaluation mode of which no bias is zero and no gamma one."""
    family, task, options, _ = (MODELS | VARIANTS)[name]
    torch.manual_seed(0)
    model_class = getattr(models, FAMILY_PREFIX[family] + TASKS[task].suffix)
    model: PreTrainedModel[Any] = model_class(model_class.config_class(**TINY | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@functools.cache
def trace_model(name: str) -> TracedModel:
    """Makes and traces a model, the first time that it is asked for."""
    recipe = (MODELS | VARIANTS)[name]
    model = make_model(name)
    interface = Interface(model, TASKS[recipe.task], position_ids=recipe.position_ids)
    plain = load(made_once(f"{name}.onnx", lambda path: save(trace(interface), path)))
    return TracedModel(name, model.config, interface, plain)


@functools.cache
def fuse_model(name: str) -> tuple[ModelProto, tuple[PassReport, ...]]:
    """The fused graph of a model and what the passes did, the first time that it is asked for."""
    traced = trace_model(name)

    def make() -> tuple[ModelProto, list[PassReport]]:
        expected = expected_fusions(traced.config, TASKS[(MODELS | VARIANTS)[name].task])
        return on_models.fuse(traced.plain, expected=expected)

    def write(folder: Path) -> None:
        fused, reports = make()
        folder.mkdir()
        save(fused, folder / "fused.onnx")
        (folder / "reports.json").write_text(json.dumps([asdict(report) for report in reports]), encoding="utf-8")

    folder = made_once(f"{name}.fused", write)
    stored = json.loads((folder / "reports.json").read_text(encoding="utf-8"))
    return load(folder / "fused.onnx"), tuple(_report(entry) for entry in stored)


def _report(entry: dict[str, Any]) -> PassReport:
    places = tuple(Place(**place) for place in entry.pop("places"))
    misses = tuple(NearMiss(**miss) for miss in entry.pop("near_misses"))
    return PassReport(**entry, places=places, near_misses=misses)
