"""The table of targets."""

from __future__ import annotations

import inspect

import pytest

from exporter.engines import ENGINES, BuildOptions, Engine, Runner, get_engine
from exporter.errors import UserError
from graph_passes.pipeline import LOWERINGS


@pytest.mark.parametrize("target", ENGINES)
def test_every_target_is_found_by_its_name(target: str) -> None:
    engine = get_engine(target)
    assert engine is ENGINES[target]
    assert engine.target == target
    assert engine.lowering in LOWERINGS
    assert engine.suffix.startswith(".")


@pytest.mark.parametrize("target", ["", "tpu", "ONNXRuntime", "onnxruntime "])
def test_an_unknown_target(target: str) -> None:
    with pytest.raises(UserError, match=f"Unknown target {target!r}; expected one of {', '.join(ENGINES)}"):
        get_engine(target)


@pytest.mark.parametrize(
    ("interface", "methods"), [(Engine, {"is_available", "build", "load"}), (Runner, {"run"})], ids=["Engine", "Runner"]
)
def test_a_target_must_implement_everything(interface: type, methods: set[str]) -> None:
    assert inspect.isabstract(interface)
    assert {name for name, value in vars(interface).items() if getattr(value, "__isabstractmethod__", False)} == methods


def test_what_the_model_and_the_device_have_is_not_asked_of_a_builder() -> None:
    assert BuildOptions(max_tokens=8, memory_bytes=2**30).asked() == []
    assert BuildOptions(memory_bytes=2**30, workspace_mb=64, sms=(89,)).asked() == ["sms", "workspace_mb"]
