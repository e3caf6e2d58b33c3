"""The demo, the README's commands, and the example checkpoints as a new user meets them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.processor import find_processor

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HANGS = 1800  # seconds: longer than any of these takes on a slow and busy machine
EXAMPLES = {"roformer": "roformer_passage_origin", "roberta-prelayernorm": "roberta_prelayernorm_token_classes"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that ``make demo`` ran in, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "examples.demo"]
    result = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


def test_demo_passes_for_every_precision_of_both_examples(demo: tuple[Path, str]) -> None:
    rows = re.findall(
        r"│ (fp32|fp16|int8) +│ +([\d.]+) MB │ +(\S+) │ +([\d.]+)% │ +([\d.]+)% │ +([\d.]+) │ (PASS|FAIL)", demo[1]
    )
    assert [row[0] for row in rows] == ["fp32", "fp16", "int8"] * 2
    assert {row[-1] for row in rows} == {"PASS"}
    labels = [int(number.replace(",", "")) for number in re.findall(r"accuracy on ([\d,]+) held-out labels", demo[1])]
    assert len(labels) == 2
    assert min(labels) >= 1000
    # With weights at the largest scale and exact sums, int8 was off by 0.13 and 0.33; a fifth more at most.
    for (fp32, fp16, int8), most in ((rows[:3], 1.2 * 0.13), (rows[3:], 1.2 * 0.33)):
        assert float(int8[2]) <= most
        assert float(fp32[3]) == 100.0
        assert float(fp16[3]) >= 99.9
        assert float(fp32[4]) >= 90.0, "an accuracy worth losing"
        assert float(fp32[4]) - float(int8[4]) <= 0.5
        assert float(fp32[1]) > float(fp16[1])
    assert f"ONNX Runtime multiplied int8 with {find_processor().int8}." in demo[1]


@pytest.mark.parametrize("name", EXAMPLES.values())
def test_example_checkpoints_are_small(name: str) -> None:
    assert sum(path.stat().st_size for path in (ROOT / "examples" / name).iterdir()) <= 4_000_000


def test_readme_commands_work(tmp_path: Path) -> None:
    """Runs every line of the README's shell blocks, in order, in one folder."""
    for folder in ("examples", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert {shlex.split(command)[1] for command in commands if command.startswith("rotary-press ")} == {
        "export",
        "fuse",
        "plugins",
        "build",
        "validate",
        "run",
        "inspect",
        "doctor",
    }
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        result = subprocess.run(
            [str(Path(sys.executable).with_name(program)), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGS,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        assert result.stdout


def test_readme_python_works(tmp_path: Path) -> None:
    """Runs the README's Python blocks as one script."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    assert script
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANGS
    )
    assert result.returncode == 0, result.stderr


def test_readme_output_is_real(demo: tuple[Path, str]) -> None:
    """The table in the README has the rows of today's demo; figures that depend on the machine may differ."""
    printed = re.findall(r"│ (fp32|fp16|int8) +│ +([\d.]+ MB)", demo[1])
    quoted = re.findall(r"│ (fp32|fp16|int8) +│ +([\d.]+ MB)", README)
    assert quoted == printed


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *ROOT.glob("*/README.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
            if not link.startswith("https://"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"
