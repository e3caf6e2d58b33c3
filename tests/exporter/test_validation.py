"""Judging an export again: on this machine, from its own files alone, and never fooled by a changed engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from exporter import validate
from exporter.cli import app
from exporter.errors import BundleError, UserError
from exporter.files import sha256
from exporter.manifest import FILE_NAME
from exporter.parity import ParityReport
from exporter.processor import find_processor
from exporter.validation import REFERENCE

ENGINE = "engines/onnxruntime-fp16.onnx"


def sign_again(folder: Path, *names: str) -> None:
    """Writes the hashes of changed files into the manifest, as whoever changed them on purpose would."""
    manifest = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    manifest["files"] |= {name: sha256(folder / name) for name in names}
    (folder / FILE_NAME).write_text(json.dumps(manifest), encoding="utf-8")


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def other_weights(bundle: Path) -> Path:
    """An export whose fp16 engine has the same interface but another classifier, hash included."""
    model = onnx.load(bundle / ENGINE)
    [bias] = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [3]]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[::-1] + np.float16(1), bias.name))
    onnx.save(model, bundle / ENGINE)
    sign_again(bundle, ENGINE)
    return bundle


def test_an_export_passes_and_nothing_but_the_report_changes(bundle: Path) -> None:
    before = tree(bundle)
    shutil.rmtree(bundle / "report")
    stages: list[str] = []
    report = validate(str(bundle), progress=lambda stage, _done=None: stages.append(stage))
    assert report.passed
    assert stages == [f"checking onnxruntime {precision}" for precision in ("fp32", "fp16", "int8")]
    assert [(result.precision, result.output) for result in report.results] == [
        (precision, "logits") for precision in ("fp32", "fp16", "int8")
    ]
    assert (report.model, report.task, report.seed) == ("tiny", "text-classification", 0)
    assert len(report.cases) == 7
    assert {result.metrics.top1_agreement for result in report.results} == {1.0}
    assert "onnxruntime" in report.versions
    assert report.processor == find_processor()
    assert tree(bundle) == before, "the same engines on the same inputs give the same report"


def test_the_report_can_go_elsewhere(bundle: Path, tmp_path: Path) -> None:
    before = tree(bundle)
    report = validate(bundle, report_dir=tmp_path / "new" / "reports")
    assert ParityReport.model_validate_json((tmp_path / "new" / "reports" / "parity.json").read_bytes()) == report
    assert "PASS" in (tmp_path / "new" / "reports" / "parity.md").read_text(encoding="utf-8")
    assert tree(bundle) == before


def test_a_report_that_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(BundleError, match="Cannot write"):
        validate(bundle, report_dir=tmp_path / "taken" / "reports")


@pytest.mark.parametrize("name", [ENGINE, REFERENCE, "model/fp32.onnx", "tokenizer/tokenizer.json"])
def test_an_altered_file(bundle: Path, name: str) -> None:
    with (bundle / name).open("r+b") as stream:
        byte = stream.read(1)
        stream.seek(0)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} was altered"):
        validate(bundle)


@pytest.mark.parametrize("name", [ENGINE, REFERENCE, FILE_NAME])
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"{Path(name).name}( is missing|: expected a folder)"):
        validate(bundle)


def test_a_damaged_engine_with_its_hash(bundle: Path) -> None:
    (bundle / ENGINE).write_bytes((bundle / ENGINE).read_bytes()[:1000])
    sign_again(bundle, ENGINE)
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        validate(bundle)


def test_an_engine_of_another_model_with_its_hash_fails(other_weights: Path) -> None:
    report = validate(other_weights)
    assert not report.passed
    assert {result.precision: result.passed for result in report.results} == {
        "fp32": True,
        "fp16": False,
        "int8": True,
    }
    assert not ParityReport.model_validate_json((other_weights / "report" / "parity.json").read_bytes()).passed
    assert ": FAIL" in (other_weights / "report" / "parity.md").read_text(encoding="utf-8")


def test_the_command_line_exits_with_1_where_parity_fails(other_weights: Path) -> None:
    finished = CliRunner().invoke(app, ["validate", str(other_weights)])
    assert finished.exit_code == 1
    assert "FAIL onnxruntime fp16 logits: " in finished.stdout
    assert finished.stdout.splitlines()[-1].endswith("report: FAIL")
    finished = CliRunner().invoke(app, ["validate", str(other_weights), "--json"])
    assert finished.exit_code == 1
    assert json.loads(finished.stdout)["passed"] is False
    assert finished.stderr == ""


def test_an_engine_with_another_output_fails(bundle: Path) -> None:
    model = onnx.load(bundle / ENGINE)
    [last] = [node for node in model.graph.node if "logits" in node.output]
    last.output[0] = model.graph.output[0].name = "scores"
    onnx.save(model, bundle / ENGINE)
    sign_again(bundle, ENGINE)
    failures = [failure for result in validate(bundle).results for failure in result.failures]
    assert len(failures) == 7
    assert all(failure.endswith("got no such output") for failure in failures)


def test_an_engine_with_other_inputs_is_no_engine_of_this_model(bundle: Path) -> None:
    model = onnx.load(bundle / ENGINE)
    extra = model.graph.input.add()
    extra.CopyFrom(model.graph.input[0])
    extra.name = "position_ids"
    onnx.save(model, bundle / ENGINE)
    sign_again(bundle, ENGINE)
    with pytest.raises(BundleError, match=r"fp16\.onnx cannot run on .*position_ids"):
        validate(bundle)


def test_an_engine_for_a_target_that_this_version_does_not_know(bundle: Path) -> None:
    manifest = json.loads((bundle / FILE_NAME).read_text(encoding="utf-8"))
    manifest["engines"][0]["target"] = "tpu"
    (bundle / FILE_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="Unknown target 'tpu'"):
        validate(bundle)


def test_no_engines_have_not_passed(bundle: Path) -> None:
    manifest = json.loads((bundle / FILE_NAME).read_text(encoding="utf-8"))
    (bundle / FILE_NAME).write_text(json.dumps(manifest | {"engines": []}), encoding="utf-8")
    assert not validate(bundle).passed


def test_a_device_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'onnx', 'transformers', 'onnx_graphsurgeon']); "
        "from exporter import Session, validate; "
        "assert validate(sys.argv[1]).passed; print(Session(sys.argv[1]).predict(['今天 a'])[0]['label'])"
    )
    finished = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() in ("bad", "fair", "good")
