"""Writing down what was measured, on what machine, with which versions."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from exporter.manifest import installed_versions

__all__ = ["record"]

RESULTS = Path(__file__).parent / "results"


def record(name: str, result: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json``: the result, the machine and the versions."""
    machine = {"processor": _processor(), "cpus": os.cpu_count(), "system": platform.system()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"machine": machine, "versions": installed_versions(), **result}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    """The processor's name and the instruction sets that decide about int8, as Linux tells them."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm")
    present = [flag for flag in wanted if flag in (fields.get("flags") or fields.get("Features", "")).split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(present)})"
