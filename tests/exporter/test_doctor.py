"""What is installed here: the truth, and the whole of what the project declares."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import pytest

from exporter.doctor import Diagnosis, Extra, diagnose
from exporter.engines import ENGINES
from exporter.engines.onnxruntime import OnnxRuntime
from exporter.processor import find_processor

DISTRIBUTION = "rotary-press"


def test_it_tells_what_is_here() -> None:
    diagnosis = diagnose()
    assert diagnosis.python == platform.python_version()
    assert diagnosis.rotary_press == metadata.version(DISTRIBUTION)
    assert diagnosis.cpus >= 1
    assert diagnosis.processor == find_processor()
    base = next(extra for extra in diagnosis.extras if extra.name == "base")
    assert base.missing == []
    assert base.packages["onnxruntime"] == metadata.version("onnxruntime")
    assert list(diagnosis.targets) == list(diagnosis.runs) == list(ENGINES)
    assert diagnosis.targets["onnxruntime"] is diagnosis.runs["onnxruntime"] is None
    assert "pip install 'rotary-press[tensorrt]'" in str(diagnosis.targets["tensorrt"])


def test_every_dependency_that_the_project_declares_is_looked_for() -> None:
    declared: dict[str, set[str]] = {}
    for requirement in metadata.requires(DISTRIBUTION) or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)", requirement)
        assert name is not None
        declared.setdefault(extra[1] if extra else "base", set()).add(name[0])
    del declared["dev"]
    assert {extra.name: set(extra.packages) for extra in diagnose().extras} == declared


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name in ("onnx", DISTRIBUTION):
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    diagnosis = diagnose()
    assert diagnosis.rotary_press == "not installed"
    assert {extra.name: extra.missing for extra in diagnosis.extras if extra.name in ("base", "export")} == {
        "base": [],
        "export": ["onnx"],
    }


def test_a_target_that_is_not_usable_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "is_available", lambda _self: "the library is broken")
    assert diagnose().targets["onnxruntime"] == "the library is broken"


SMI = """#!/bin/sh
echo "NVIDIA H200, 143771 MiB, 9.0, 580.159.03"
echo "NVIDIA L4, 23034 MiB, 8.9, 580.159.03"
exit {code}
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, ["NVIDIA H200, 143771 MiB, SM 90, driver 580.159.03", "NVIDIA L4, 23034 MiB, SM 89, driver 580.159.03"]),
        (9, []),
    ],
)
def test_gpus_are_what_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: list[str]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI.format(code=code), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert diagnose().gpus == expected


def test_missing_packages_keep_their_order() -> None:
    extra = Extra(name="x", purpose="tests", packages={"b": None, "a": "1.0", "c": None})
    assert extra.missing == ["b", "c"]


def test_a_diagnosis_survives_json() -> None:
    diagnosis = diagnose()
    assert Diagnosis.model_validate_json(diagnosis.model_dump_json()) == diagnosis
