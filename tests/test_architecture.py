"""Which package may import which, and what a device without the ``export`` extra can import."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("exporter", "graph_passes", "plugins")
TEST_ONLY = {"transformers", "hypothesis", "pytest", "tests"}
EXPORT_EXTRA = {"torch", "onnx", "onnx_graphsurgeon", "polygraphy", "onnxscript"}
DEVICE_EXTRAS = {"tensorrt", "tensorrt_rtx", "triton"}

# What is described to a pass: the op, never the kernels that run it.
DESCRIPTIONS = re.compile(r"plugins\.(contract|ops|\w+\.(contract|function_body))")


def name_of(path: Path) -> str:
    """``exporter/models/config.py`` -> ``exporter.models.config``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
BASE_INSTALL = [
    name
    for name in SOURCES
    if re.fullmatch(
        r"exporter(\.(cli|session|manifest|errors|files|doctor|validation)|\.(engines|tokenization|parity)(\..+)?)?",
        name,
    )
]


def imports_of(source: str) -> Iterator[str]:
    """Every module that a source imports, wherever in it; submodules by their own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            module = node.module or ""
            submodules = {f"{module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            yield from submodules or {module}


def wrong_arrows(name: str, source: str) -> list[str]:
    """The imports that a module of that name may not have."""
    package = name.partition(".")[0]
    forbidden = {
        "plugins": {"exporter", "graph_passes"},
        "graph_passes": {"exporter", "torch"} | DEVICE_EXTRAS,
        "exporter": set(),
    }[package] | TEST_ONLY
    return [
        imported
        for imported in imports_of(source)
        if (top := imported.partition(".")[0]) in forbidden
        or (package == "graph_passes" and top == "plugins" and not DESCRIPTIONS.fullmatch(imported))
    ]


def test_there_is_something_to_check() -> None:
    assert {name.partition(".")[0] for name in SOURCES} == set(PACKAGES)
    assert {"exporter", "exporter.errors", "exporter.files", "exporter.tokenization.loading"} <= set(BASE_INSTALL)


@pytest.mark.parametrize("name", SOURCES)
def test_arrows_point_from_exporter_to_graph_passes_to_plugins(name: str) -> None:
    assert wrong_arrows(name, SOURCES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("plugins.new.reference", "import exporter.errors"),
        ("plugins.new.kernel", "def build():\n    from graph_passes import errors"),
        ("graph_passes.new", "from exporter.errors import UserError"),
        ("graph_passes.new", "import numpy, torch.nn"),
        ("graph_passes.new", "try:\n    import tensorrt\nexcept ImportError:\n    pass"),
        ("graph_passes.new", "from plugins.interleaved_rotary.reference import interleaved_rotary"),
        ("graph_passes.new", "from plugins.interleaved_rotary import reference as anything"),
        ("graph_passes.new", "from plugins import interleaved_rotary"),
        ("graph_passes.new", "import plugins"),
        ("exporter.new", "if TYPE_CHECKING:\n    import transformers"),
        ("exporter.new", "class A:\n    def f(self):\n        import pytest"),
    ],
)
def test_a_wrong_arrow_would_be_found(name: str, source: str) -> None:
    assert len(wrong_arrows(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("plugins.new.kernel", "import torch, triton, tensorrt"),
        ("graph_passes.new", "from plugins.interleaved_rotary import contract, function_body"),
        ("graph_passes.new", "from plugins.ops import OPS"),
        ("graph_passes.new", "from graph_passes import errors"),
        ("exporter.new", "import torch, plugins.interleaved_rotary.reference\nfrom graph_passes import pipeline"),
    ],
)
def test_a_right_arrow_is_left_alone(name: str, source: str) -> None:
    assert wrong_arrows(name, source) == []


IMPORT_EACH_ALONE = """
import importlib, json, sys

blocked, names = json.loads(sys.argv[1])
tried = []

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            tried.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
outcomes = {}
for name in names:
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] in ("exporter", "graph_passes", "plugins"):
            del sys.modules[loaded]
    tried.clear()
    try:
        importlib.import_module(name)
        outcomes[name] = list(tried)
    except ImportError as error:
        outcomes[name] = [*tried, str(error)]
json.dump(outcomes, sys.stdout)
"""


def import_outcomes(names: list[str]) -> dict[str, list[str]]:
    """For each module, which blocked modules its import asks for, in a process where none of them can be imported."""
    blocked = sorted(EXPORT_EXTRA | DEVICE_EXTRAS | {"transformers"})
    command = [sys.executable, "-c", IMPORT_EACH_ALONE, json.dumps([blocked, names])]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=1800)
    outcomes: dict[str, list[str]] = json.loads(finished.stdout)
    return outcomes


@pytest.fixture(scope="module")
def base_install() -> dict[str, list[str]]:
    return import_outcomes([*BASE_INSTALL, "exporter.models"])


@pytest.mark.parametrize("name", BASE_INSTALL)
def test_the_base_install_can_import(name: str, base_install: dict[str, list[str]]) -> None:
    """Asking for an absent module and doing without is no better: where it is installed, it costs seconds."""
    assert base_install[name] == []


def test_a_missing_extra_would_be_found(base_install: dict[str, list[str]]) -> None:
    assert base_install["exporter.models"][0] == "torch"
