"""What a result says of the machine that it was measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import results
from exporter.processor import find_processor


def test_a_result_says_where_it_is_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    content = json.loads(results.record("speed", {"ratio": 0.5}).read_text(encoding="utf-8"))
    assert content["ratio"] == 0.5
    assert content["machine"]["processor"] == find_processor().name
    assert content["machine"]["int8_instructions"] == find_processor().int8
    assert "onnxruntime" in content["versions"]
