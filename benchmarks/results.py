"""Writing down what was measured, on what machine, with which versions."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from exporter.manifest import installed_versions
from exporter.processor import find_processor

__all__ = ["record"]

RESULTS = Path(__file__).parent / "results"


def record(name: str, result: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json``: the result, the machine and the versions."""
    processor = find_processor()
    machine = {
        "processor": processor.name,
        "int8_instructions": processor.int8,
        "cpus": os.cpu_count(),
        "system": platform.system(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"machine": machine, "versions": installed_versions(), **result}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
