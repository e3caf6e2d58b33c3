"""What ``import exporter`` offers, with everything installed and without."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import exporter

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import exporter
from exporter.errors import UnavailableError

for name in exporter.__all__:
    try:
        getattr(exporter, name)
        print(name, "works")
    except UnavailableError as error:
        print(name, error)
    except ModuleNotFoundError as error:
        print(name, "crashes:", error)
"""
BASE_INSTALL = {
    "RoFormerTokenizer",
    "RoFormerTokenizerFast",
    "RobertaTokenizer",
    "Sampling",
    "Session",
    "load_tokenizer",
    "validate",
}


def outcomes_without(*blocked: str) -> dict[str, str]:
    """What comes of each public name in a process that cannot import these modules."""
    code = WITHOUT.replace("BLOCKED", repr(blocked))
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stderr == ""
    return dict(line.split(" ", 1) for line in finished.stdout.splitlines())


@pytest.mark.parametrize("name", exporter.__all__)
def test_every_public_name_can_be_imported_and_is_kept(name: str) -> None:
    value = getattr(exporter, name)
    assert value.__name__ == name
    assert vars(exporter)[name] is value


def test_all_is_all_that_there_is() -> None:
    namespace: dict[str, object] = {}
    exec("from exporter import *", namespace)
    assert set(exporter.__all__) == namespace.keys() - {"__builtins__"}
    assert len(set(exporter.__all__)) == len(exporter.__all__)
    [typed] = [
        node for node in ast.parse(Path(exporter.__file__).read_text(encoding="utf-8")).body if isinstance(node, ast.If)
    ]
    seen_by_type_checkers = {
        alias.name for node in ast.walk(typed) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen_by_type_checkers == set(exporter.__all__)


@pytest.mark.parametrize("name", ["Exporter", "torch", "__version__", "_anything"])
def test_an_unknown_attribute(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'exporter' has no attribute '{name}'"):
        getattr(exporter, name)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, exporter; print({'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic'} & sys.modules.keys())"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"


@pytest.mark.parametrize("blocked", [("torch",), ("torch", "onnx", "onnx_graphsurgeon", "onnxscript", "polygraphy")])
def test_without_the_export_extra_a_name_says_what_to_install(blocked: tuple[str, ...]) -> None:
    outcomes = outcomes_without(*blocked)
    assert outcomes.keys() == set(exporter.__all__)
    for name, outcome in outcomes.items():
        of_graphs = name in ("build", "fuse", "write_kernels")  # which need no torch
        if name in BASE_INSTALL or (of_graphs and blocked == ("torch",)):
            assert outcome == "works"
        else:
            missing = outcome.split()[2].rstrip(",")
            assert missing in blocked
            assert outcome == f"{name} needs {missing}, which is not installed: pip install 'rotary-press[export]'."


def test_a_missing_base_package_is_no_missing_extra() -> None:
    outcomes = outcomes_without("onnxruntime", "tokenizers")
    assert outcomes["Session"].startswith("crashes: No module named 'tokenizers'")
    assert outcomes["RoFormerModel"] == "works"
