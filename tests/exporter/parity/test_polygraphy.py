"""The files for polygraphy, judged by polygraphy itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import load_json, save_json

from exporter import parity
from exporter.errors import BundleError
from exporter.validation import REFERENCE

RUN = "import sys; from polygraphy.tools import main; sys.exit(main())"


@pytest.fixture
def written(exported: Path, tmp_path: Path) -> Path:
    parity.save_for_polygraphy(parity.load_reference(exported / REFERENCE), tmp_path / "new" / "data")
    return tmp_path / "new" / "data"


def test_polygraphy_reads_every_case_under_the_names_of_each_engine(exported: Path, written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["inputs.json", "reference.json"]
    inputs, [(runner, outputs)] = load_json(str(written / "inputs.json")), RunResults.load(written / "reference.json")
    assert runner == "float32 PyTorch"
    reference = parity.load_reference(exported / REFERENCE)
    assert len(inputs) == len(outputs) == len(reference) == 7
    for fed, found, (case, truth) in zip(inputs, outputs, reference, strict=True):
        for read, expected in ((dict(fed), case.inputs), (dict(found.items()), truth)):
            assert read.keys() == expected.keys()
            assert all(read[name].dtype == expected[name].dtype for name in read)
            assert all(np.array_equal(read[name], expected[name]) for name in read)
    for engine in (exported / "engines").iterdir():
        session = onnxruntime.InferenceSession(engine)
        assert {entry.name for entry in session.get_inputs()} == set(inputs[0])
        assert {entry.name for entry in session.get_outputs()} == set(outputs[0])


def test_polygraphy_compares_an_engine_with_the_reference(exported: Path, written: Path) -> None:
    """Its tool does not fail where it compared nothing, so what it compared is looked at."""

    def run() -> tuple[int, str]:
        engine = exported / "engines" / "onnxruntime-fp32.onnx"
        data = ["--load-inputs", str(written / "inputs.json"), "--load-outputs", str(written / "reference.json")]
        options = ["--onnxrt", *data, "--atol", "1e-5", "--rtol", "1e-5"]
        command = [sys.executable, "-c", RUN, "run", str(engine), *options]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
        return finished.returncode, finished.stdout + finished.stderr

    code, said = run()
    assert code == 0, said
    assert said.count("PASSED | Output: 'logits'") == 7, said
    assert "vs. float32 PyTorch | Passed: 7/7 iterations" in said
    results = RunResults.load(written / "reference.json")
    [iterations] = results.values()
    iterations[3]["logits"] = iterations[3]["logits"] + np.float32(1e-3)
    save_json(results, str(written / "reference.json"))
    code, said = run()
    assert code == 1, said
    assert said.count("FAILED | Output: 'logits'") == 1, said
    assert "vs. float32 PyTorch | Passed: 6/7 iterations" in said


def test_a_folder_that_cannot_be_written(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(BundleError, match="Cannot write"):
        parity.save_for_polygraphy(parity.load_reference(exported / REFERENCE), tmp_path / "taken" / "data")


def test_without_polygraphy_all_else_works(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'polygraphy': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from exporter import validate\n"
        "assert validate(sys.argv[1]).passed\n"
        "try: validate(sys.argv[1], report_dir=sys.argv[2], polygraphy_dir=sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code, str(bundle), str(tmp_path / "data")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == (
        "UnavailableError Writing files for polygraphy needs polygraphy, which is not installed: pip install "
        "'rotary-press[export]'."
    )
    assert not (tmp_path / "data").exists()
