"""One tiny text classifier, traced and exported once per run: tracing is what an export spends its time on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.shared import made_once

# As many as the tiny checkpoints have ids, with the padding where they expect it.
WORDS = [
    "[UNK]",
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *"今天气非常好。，",
    "今天",
    "天气",
]


@pytest.fixture(scope="session")
def checkpoint(save_checkpoint: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, seed: int) -> Path:
    """A RoFormer text classifier with a tokenizer, in the Hugging Face layout. Copy it to change it."""
    import torch

    folder = tmp_path_factory.mktemp("source") / "tiny"
    torch.manual_seed(seed)
    save_checkpoint(folder, "roformer", "ForSequenceClassification", id2label={0: "bad", 1: "fair", 2: "good"})
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def traced(checkpoint: Path) -> onnx.ModelProto:
    """The plain graph of ``checkpoint``."""
    from exporter import load_model
    from exporter.tasks import TASKS
    from exporter.trace import Interface, trace

    interface = Interface(load_model(checkpoint), TASKS["text-classification"])
    return onnx.load(made_once("tiny-classifier.onnx", lambda path: onnx.save(trace(interface), path)))


@pytest.fixture(scope="session")
def trace_again(traced: onnx.ModelProto) -> Callable[[pytest.MonkeyPatch], None]:
    """``trace_again(monkeypatch)``: exports of ``checkpoint`` take a copy of ``traced``, which saves them seconds."""
    from exporter import exporting

    def stand_in(interface: Any) -> onnx.ModelProto:
        assert type(interface.model).__name__ == "RoFormerForSequenceClassification"
        copy = onnx.ModelProto()
        copy.CopyFrom(traced)
        return copy

    return lambda patch: patch.setattr(exporting, "trace", stand_in)


@pytest.fixture
def quick_trace(trace_again: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test, exports of ``checkpoint`` are quick."""
    trace_again(monkeypatch)


@pytest.fixture(scope="session")
def exported(checkpoint: Path, trace_again: Callable[[pytest.MonkeyPatch], None]) -> Path:
    """``checkpoint``, exported at every precision. Read it only; ``bundle`` is a copy to change."""
    from exporter import export

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            trace_again(patch)
            assert export(checkpoint, folder).passed

    return made_once("tiny-classifier", make)


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of ``exported``."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))
