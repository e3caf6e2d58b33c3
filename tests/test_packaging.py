"""The wheel, in a bare environment: what a device installs is enough to validate and run an export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("exporter", "graph_passes", "plugins")


def pip(python: Path | str, *arguments: str) -> None:
    result = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:  # a copy: setuptools leaves a build folder, whose stale files would come back
        shutil.copytree(ROOT / package, source / package)
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source))
    return next(folder.glob("rotary_press-*.whl"))


def test_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    typed = {f"{package}/py.typed" for package in PACKAGES}
    assert {name for name in names if ".dist-info" not in name} == sources | typed
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_base_install_validates_and_runs_an_export(
    wheel: Path, write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from exporter import export

    exported = tmp_path / "exported"
    assert export(write_checkpoint("roformer", "ForTokenClassification"), exported).passed
    venv.create(tmp_path / "device", with_pip=True)
    python = tmp_path / "device" / "bin" / "python"
    pip(python, "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel))

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, cwd=tmp_path)

    absent = run(str(python), "-c", "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'onnx')])")
    assert absent.stdout.strip() == "[None, None]"
    command = str(python.with_name("rotary-press"))
    validated = run(command, "validate", str(exported), "--json")
    assert validated.returncode == 0, validated.stderr
    assert json.loads(validated.stdout)["passed"]
    session = (
        "import numpy, exporter; print(exporter.Session('exported').run(numpy.array([[2, 3, 4]]))['logits'].shape)"
    )
    assert run(str(python), "-c", session).stdout.strip() == "(1, 3, 3)"
    refused = run(command, "export", "anything", "out")
    assert refused.returncode == 2
    assert "pip install 'rotary-press[export]'" in refused.stderr
    assert "Traceback" not in refused.stderr
    help_texts = [run(command, verb, "--help") for verb in ("export", "validate", "run", "inspect", "doctor")]
    assert all(result.returncode == 0 for result in help_texts)
