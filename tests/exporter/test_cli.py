"""The command line: every verb, its exit codes, one JSON document or one clear message, and nothing left behind."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

import exporter
from exporter import cli, exporting, parity
from exporter.cli import app
from exporter.engines import BuildOptions, inspection
from exporter.engines.tensorrt_base import BuildRecord
from exporter.errors import PassError, TraceError
from exporter.generation import Sampling
from exporter.manifest import FILE_NAME
from exporter.parity import ParityReport

ROOT = Path(__file__).parents[2]
quick_trace = pytest.mark.usefixtures("quick_trace")
in_both_forms = pytest.mark.parametrize("form", ["text", "json"])


NORM = """
<ir_version: 10, opset_import: ["" : 20]>
plain (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
<float[4] scale = {1.0, 2.0, 3.0, 4.0}>
{ [norm] y = LayerNormalization (x, scale) }
"""


def press(*arguments: object) -> Result:
    """Runs the command line in this process. Only a verb's own exit may end it: anything else is a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result


def press_alone(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "exporter", *map(str, arguments)]
    env = {"PATH": "/usr/bin:/bin"} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=1800)


def document(result: Result | subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document that was printed, and nothing beside it."""
    assert result.stderr == ""
    return json.loads(result.stdout)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, with the content of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "in"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where to write, with a file and somebody's folder already in it."""
    place = tmp_path / "place"
    (place / "theirs").mkdir(parents=True)
    (place / "theirs" / "thesis.txt").write_text("years of work", encoding="utf-8")
    (place / "taken").write_text("a file", encoding="utf-8")
    return place


# export and validate


@quick_trace
def test_export(checkpoint: Path, place: Path) -> None:
    result = press("export", checkpoint, place / "out", "--precision", "int8", "--precision", "fp32", "--seed", 3)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "loading the checkpoint",
        "tracing to ONNX",
        "computing the reference",
        "fusing",
        "building fp32",
        "building int8",
        "checking parity",
        "checking onnxruntime fp32",
        "checking onnxruntime int8",
    ]
    assert "tiny (text-classification) against float32 PyTorch" in result.stdout
    assert [line.split()[-2] for line in result.stdout.splitlines() if "onnxruntime" in line] == ["PASS", "PASS"]
    assert result.stdout.splitlines()[-1] == f"Wrote {place / 'out'}: PASS"
    assert json.loads((place / "out" / FILE_NAME).read_text(encoding="utf-8"))["seed"] == 3


@quick_trace
def test_export_with_every_option_as_json(checkpoint: Path, place: Path) -> None:
    result = press(
        *("export", checkpoint, place / "out", "--task", "text-classification", "--precision", "fp16"),
        *("--target", "onnxruntime", "--seed", "4", "--json"),
    )
    assert result.exit_code == 0
    report = document(result)
    assert report.pop("passed") is True
    assert report["seed"] == 4
    assert [entry["precision"] for entry in report["results"]] == ["fp16"]
    written = (place / "out" / "report" / "parity.json").read_bytes()
    assert ParityReport.model_validate(report) == ParityReport.model_validate_json(written)


def test_a_whole_export_in_a_process_of_its_own(checkpoint: Path, place: Path) -> None:
    """Nothing is faked here, and no library may say a word on either stream."""
    finished = press_alone("export", checkpoint, place / "out", "--json")
    assert finished.returncode == 0
    assert document(finished)["passed"] is True
    assert sorted(path.name for path in place.iterdir()) == ["out", "taken", "theirs"]


@in_both_forms
def test_validate(bundle: Path, place: Path, form: str) -> None:
    shutil.rmtree(bundle / "report")
    result = press("validate", bundle, "--report", place / "reports", *(["--json"] if form == "json" else []))
    assert result.exit_code == 0
    assert not (bundle / "report").exists()
    assert sorted(path.name for path in (place / "reports").iterdir()) == ["parity.json", "parity.md"]
    if form == "json":
        assert document(result)["passed"] is True
    else:
        assert result.stdout.splitlines()[-1] == f"Wrote {place / 'reports'}: PASS"
        assert result.stderr.splitlines() == [f"checking onnxruntime {name}" for name in ("fp32", "fp16", "int8")]


@in_both_forms
def test_validate_writes_for_polygraphy(exported: Path, place: Path, form: str) -> None:
    options = ["--report", place / "reports", "--polygraphy", place / "data", *(["--json"] if form == "json" else [])]
    result = press("validate", exported, *options)
    assert result.exit_code == 0
    assert sorted(path.name for path in (place / "data").iterdir()) == ["inputs.json", "reference.json"]
    if form == "json":
        assert document(result)["passed"] is True
    else:
        assert result.stdout.splitlines()[-1] == f"Wrote {place / 'reports'} and {place / 'data'}: PASS"


@quick_trace
@in_both_forms
def test_a_failed_parity_exits_with_1(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    honest = parity.compute_reference

    def shifted(*arguments: Any) -> Any:
        return [(case, {name: array + 1 for name, array in truth.items()}) for case, truth in honest(*arguments)]

    monkeypatch.setattr(parity, "compute_reference", shifted)
    options = ["--precision", "fp32", *(["--json"] if form == "json" else [])]
    result = press("export", checkpoint, place / "out", *options)
    assert result.exit_code == 1
    assert (place / "out" / FILE_NAME).is_file()
    if form == "json":
        assert document(result)["passed"] is False
    else:
        assert "FAIL onnxruntime fp32 logits: scaled max abs " in result.stdout
        assert "(worst: " in result.stdout
        assert result.stdout.splitlines()[-1] == f"Wrote {place / 'out'}: FAIL"


@in_both_forms
@pytest.mark.parametrize("error", [TraceError, PassError])
def test_a_broken_promise_exits_with_1_and_asks_for_a_report(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], form: str
) -> None:
    def fail(*_arguments: Any) -> None:
        raise error("the graph drifted.")

    monkeypatch.setattr(exporting, "trace", fail)
    before = tree(place)
    result = press("export", checkpoint, place / "new" / "out", *(["--json"] if form == "json" else []))
    assert result.exit_code == 1
    if form == "json":
        assert document(result) == {"error": {"type": error.__name__, "message": "the graph drifted."}}
    else:
        assert result.stdout == ""
        assert result.stderr.splitlines()[-2:] == [
            "error: the graph drifted.",
            "Please report this with the output of rotary-press doctor.",
        ]
    assert tree(place) == before


# the user's mistakes


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def reshape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["classifier.out_proj.weight"] = np.zeros((3, 5), np.float32)
    save_file(state, folder / "model.safetensors")


def configure(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(content | values), encoding="utf-8")

    return change


def nothing(_folder: Path) -> None:
    """Leaves the checkpoint as it is."""


MISTAKES: dict[str, tuple[Callable[[Path], object], str, list[str], str, str]] = {
    # what is done to the checkpoint, OUT, options, the error's type, what its message says
    "missing weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "new/out",
        [],
        "CheckpointError",
        "has no model.safetensors",
    ),
    "truncated weights": (truncate, "new/out", [], "CheckpointError", "cannot be read"),
    "another architecture": (
        configure(model_type="bert"),
        "new/out",
        [],
        "ConfigError",
        "model_type is 'bert', expected one of 'roformer', 'roberta-prelayernorm'",
    ),
    "a tensor of the wrong shape": (
        reshape,
        "new/out",
        [],
        "CheckpointError",
        "tensor classifier.out_proj.weight has shape (3, 5); config.json asks for (3, 16)",
    ),
    "no task": (configure(architectures=None), "out", [], "ConfigError", "Choose one with --task"),
    "no checkpoint": (shutil.rmtree, "out", [], "CheckpointError", "No checkpoint folder at"),
    "a file in the way": (nothing, "taken", [], "BundleError", "a file of that name is there. Choose another OUT"),
    "a path below a file": (nothing, "taken/new/out", [], "BundleError", "Cannot write"),
    "a folder of somebody else": (nothing, "theirs", [], "BundleError", "Will not replace"),
    "unknown task": (nothing, "new/out", ["--task", "translation"], "UserError", "Unknown task 'translation'"),
    "unknown precision": (
        nothing,
        "new/out",
        ["--precision", "fp32", "--precision", "fp8"],
        "UserError",
        "Unknown precision 'fp8'; expected one of fp32, fp16, int8.",
    ),
    "unknown target": (nothing, "new/out", ["--target", "tpu"], "UserError", "Unknown target 'tpu'"),
    "no decoder": (nothing, "new/out", ["--task", "text-generation"], "ConfigError", "needs a decoder"),
    "fewer positions": (
        nothing,
        "new/out",
        ["--max-position-embeddings", "19"],
        "ConfigError",
        "max_position_embeddings can be extended from 20 upwards; got 19",
    ),
    "no learnt positions": (nothing, "new/out", ["--position-ids"], "ConfigError", "no table of learnt positions"),
    "negative seed": (nothing, "new/out", ["--seed", "-1"], "UserError", "The seed must not be negative; got -1."),
}


def check_message(result: Result, form: str, error: str, message: str) -> None:
    """The exit code of a user's mistake, and one clear message in the form that was asked for."""
    assert result.exit_code == 2
    if form == "json":
        content = document(result)
        assert content.keys() == {"error"}
        assert content["error"]["type"] == error
        assert message in content["error"]["message"]
    else:
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert lines[-1].startswith("error: ")
        assert message in lines[-1]
        stages = ("loading the checkpoint", "checking onnxruntime ", "reading and fusing")
        assert all(line.startswith(stages) for line in lines[:-1]), "one message, after the stages that were reached"


@in_both_forms
@pytest.mark.parametrize(("harm", "out", "options", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_an_export_that_cannot_be(
    source: Path,
    place: Path,
    harm: Callable[[Path], object],
    out: str,
    options: list[str],
    error: str,
    message: str,
    form: str,
) -> None:
    harm(source)
    before = tree(place)
    result = press("export", source, place / out, *options, *(["--json"] if form == "json" else []))
    check_message(result, form, error, message)
    assert tree(place) == before


@in_both_forms
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["run", "OUT", "a " * 19], "InputError", "Text 0 has 21 tokens, special ones included; the limit is 20"),
        (["run", "OUT", "a", "--precision", "fp8"], "UserError", "has no engine for onnxruntime fp8"),
        (["run", "OUT", "a", "--target", "tpu"], "UserError", "has no engine for tpu"),
        (["run", "PLACE", "a"], "BundleError", "has no manifest.json"),
        (["run", "OUT", "a", "--context", "b"], "UserError", "text-classification takes texts alone, no contexts"),
        (["run", "OUT", "a", "--top-k", "3"], "UserError", "temperature 0 draws nothing: give a temperature"),
        (["run", "OUT", "a", "--max-new-tokens", "3"], "UserError", "generating needs text-generation"),
        (["validate", "PLACE"], "BundleError", "has no manifest.json"),
        (["validate", "OUT", "--report", "PLACE/taken/below"], "BundleError", "Cannot write"),
        (["fuse", "PLACE/taken", "PLACE/fused.onnx"], "UserError", "taken is not an ONNX model: it cannot be decoded"),
        (["fuse", "PLACE/absent", "PLACE/fused.onnx"], "UserError", "There is neither a folder nor a file at"),
        (["inspect", "PLACE"], "BundleError", "has no manifest.json"),
        (["inspect", "PLACE/absent"], "UserError", "There is neither a folder nor a file at"),
        (["inspect", "PLACE/taken"], "UserError", "taken is not an ONNX model: it cannot be decoded"),
        (["inspect", "PLACE/empty.onnx"], "UserError", "empty.onnx is not an ONNX model: it names no opset"),
        (["inspect", "OUT/manifest.json"], "UserError", "manifest.json is not an ONNX model: it cannot be decoded"),
        (["inspect", "OUT", "--layers"], "UserError", "is a folder: --layers lists one engine or graph"),
        (["inspect", "OUT/model/fp32.onnx", "--layers"], "UserError", "Expected --target tensorrt-rtx or tensorrt;"),
        (["inspect", "OUT/model/fp32.onnx", "--target", "tensorrt"], "UserError", "give both, or neither"),
        (["validate", "OUT", "--polygraphy", "PLACE/taken/below"], "BundleError", "Cannot write"),
    ],
)
def test_other_mistakes(
    exported: Path, place: Path, arguments: list[str], error: str, message: str, form: str, tmp_path: Path
) -> None:
    (place / "empty.onnx").touch()
    before = tree(tmp_path), tree(exported)
    given = [argument.replace("OUT", str(exported)).replace("PLACE", str(place)) for argument in arguments]
    result = press(*given, *(["--json"] if form == "json" else []))
    check_message(result, form, error, message)
    assert (tree(tmp_path), tree(exported)) == before


@pytest.mark.parametrize(
    "arguments",
    [["press"], ["export"], ["export", "only-one"], ["run", "out"], ["validate"], ["export", "a", "b", "--seed", "x"]],
)
def test_usage_errors(arguments: list[str]) -> None:
    result = press(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@in_both_forms
def test_fuse(traced: onnx.ModelProto, place: Path, form: str) -> None:
    onnx.save(traced, place / "plain.onnx")
    options = ["--lowering", "onnxruntime", "--require-fused", *(["--json"] if form == "json" else [])]
    result = press("fuse", place / "plain.onnx", place / "fused.onnx", *options)
    assert result.exit_code == 0
    assert (place / "fused.onnx").is_file()
    if form == "json":
        report = document(result)
        assert [(entry["name"], entry["count"]) for entry in report["passes"]] == [
            ("fuse_rotary", 4),
            ("fuse_residual_layer_norm", 5),
            ("fuse_attention", 2),
            ("fuse_bias_gelu", 2),
        ]
        assert [len(entry["places"]) for entry in report["passes"]] == [4, 5, 2, 2]
        return
    assert result.stderr.splitlines() == ["reading and fusing the graph", "lowering to onnxruntime"]
    rotary, where, norm, _, attention, *_, written = result.stdout.splitlines()
    assert rotary.startswith("     4  fuse_rotary  (largest difference ")
    assert re.fullmatch(r"    at  \S+, \S+, and 2 more", where)
    assert norm.startswith("     5  fuse_residual_layer_norm  (largest difference ")
    assert attention.startswith("     2  fuse_attention  (largest difference ")
    assert written == f"Wrote {place / 'fused.onnx'}"


def test_fuse_shows_what_nearly_fused(place: Path) -> None:
    onnx.save(onnx.parser.parse_model(NORM), place / "plain.onnx")
    result = press("fuse", place / "plain.onnx", place / "fused.onnx")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:3] == [
        "     0  fuse_rotary",
        "     0  fuse_residual_layer_norm",
        "  left  norm: its input is no sum: it comes from outside of the graph",
    ]


def test_nothing_fused_where_it_was_required(place: Path) -> None:
    onnx.save(onnx.parser.parse_model(NORM), place / "plain.onnx")
    before = tree(place)
    result = press("fuse", place / "plain.onnx", place / "fused.onnx", "--require-fused")
    assert result.exit_code == 1
    assert "Nothing in" in result.stderr
    assert "norm: its input is no sum" in result.stderr
    assert tree(place) == before


@pytest.mark.parametrize("verb", ["export", "fuse", "plugins", "build", "validate", "run", "inspect", "doctor"])
def test_help(verb: str) -> None:
    overview, details = press("--help"), press(verb, "--help")
    assert overview.exit_code == details.exit_code == 0
    assert verb in overview.stdout
    assert "--json" in details.stdout


# run


@in_both_forms
def test_run(exported: Path, form: str) -> None:
    texts = ["今天 天气 好", "a b"]
    result = press("run", exported, *texts, "--precision", "int8", *(["--json"] if form == "json" else []))
    assert result.exit_code == 0
    expected = exporter.Session(exported, precision="int8").predict(texts)
    if form == "json":
        assert document(result) == expected
        return
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [lines[0], lines[4]] == texts
    best = max(expected[0]["scores"].items(), key=lambda item: item[1])
    assert lines[1] == f"  {best[1]:7.2%}  {best[0]}"
    assert len(lines) == 8


PREDICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"values": {"grade": 1.5}}, ["  1.5  grade"]),
    (
        {"tokens": [{"text": "Ada", "label": "PER", "score": 0.5, "start": 0, "end": 3}]},
        ["   50.00%  PER              'Ada'"],
    ),
    (
        {"masks": [{"position": 1, "words": [{"word": "x", "score": 1.0}, {"word": "y", "score": 0.0}]}]},
        ["  100.00%  x", "    0.00%  y"],
    ),
    ({"masks": []}, ["  no mask token in the text: nothing to predict"]),
    ({"last_hidden_state": [[1.0, 2.0, 3.0]]}, ["  last_hidden_state (1, 3); use --json for the numbers"]),
    ({"label": "b", "score": 0.75, "scores": {"a": 0.25, "b": 0.75}}, ["   75.00%  b", "   25.00%  a"]),
    ({"answer": "in [Rome]", "score": 0.5, "start": 3, "end": 12}, ["   50.00%  in [Rome]"]),
    (
        {"choices": [{"choice": "x", "score": 0.25}, {"choice": "y", "score": 0.75}], "choice": "y"},
        ["   75.00%  y", "   25.00%  x"],
    ),
    ({"continuation": "and so on", "ids": [1, 2], "finish_reason": "length"}, ["  and so on"]),
]


@pytest.mark.parametrize(("prediction", "lines"), PREDICTIONS)
@pytest.mark.parametrize("text", ["plain", ":smile: [bold]x[/bold] https://example.com 'quoted' " + "long " * 60])
def test_every_kind_of_prediction(
    monkeypatch: pytest.MonkeyPatch, prediction: dict[str, Any], lines: list[str], text: str
) -> None:
    """Texts are shown as they are: nothing in them is markup, and no line is broken."""

    class Stub:
        def __init__(self, folder: Path, *, precision: str | None, target: str) -> None:
            assert (folder, precision, target) == (Path("out"), None, "onnxruntime")

        def predict(self, texts: list[str], *, contexts: None, choices: None) -> list[dict[str, Any]]:
            assert contexts is choices is None
            return [{"text": text, **prediction} for text in texts]

    monkeypatch.setattr(exporter, "Session", Stub)
    result = press("run", "out", text)
    assert result.stdout.splitlines() == [text, *lines]


class Recorder:
    """Stands in for a session and remembers what it was asked for."""

    asked: ClassVar[list[Any]] = []

    def __init__(self, _folder: Path, **_options: Any) -> None:
        self.asked.clear()

    def predict(self, texts: list[str], **more: Any) -> list[dict[str, Any]]:
        self.asked.append((texts, more))
        return []

    def generate(self, texts: list[str], *, sampling: Sampling) -> list[dict[str, Any]]:
        self.asked.append((texts, sampling))
        return []


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], (["a", "b"], {"contexts": None, "choices": None})),
        (["--context", "x"], (["a", "b"], {"contexts": ["x", "x"], "choices": None})),
        (["--context", "x", "--context", "y"], (["a", "b"], {"contexts": ["x", "y"], "choices": None})),
        (["--choice", "x", "--choice", "y"], (["a", "b"], {"contexts": None, "choices": [["x", "y"]] * 2})),
        (["--max-new-tokens", "9"], (["a", "b"], Sampling(max_new_tokens=9))),
        (
            ["--temperature", "0.5", "--top-k", "4", "--top-p", "0.9", "--seed", "7"],
            (["a", "b"], Sampling(temperature=0.5, top_k=4, top_p=0.9, seed=7)),
        ),
    ],
)
def test_run_passes_on_what_the_task_needs(
    monkeypatch: pytest.MonkeyPatch, options: list[str], asked: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(exporter, "Session", Recorder)
    assert press("run", "out", "a", "b", *options).exit_code == 0
    assert Recorder.asked == [asked]


def test_a_terminal_that_lacks_the_characters(exported: Path) -> None:
    finished = press_alone("run", exported, "今天", PYTHONIOENCODING="ascii")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines()[0] == r"\u4eca\u5929"


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-W", "default"], True)])
def test_warnings_of_libraries_are_shown_only_to_who_asks(options: list[str], shown: bool) -> None:
    code = "import warnings; from exporter import cli; cli.app = lambda: warnings.warn('outdated'); cli.main()"
    command = [sys.executable, *options, "-c", code]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("outdated" in finished.stderr) == shown


def test_json_is_json_whatever_the_terminal_and_the_names(place: Path) -> None:
    finished = press_alone("validate", place / "caf\udce9 今天 😀", "--json", PYTHONIOENCODING="ascii")
    assert finished.returncode == 2
    assert "caf\udce9 今天 😀 has no manifest.json" in document(finished)["error"]["message"]


# inspect and doctor


@in_both_forms
def test_inspect_a_folder(exported: Path, form: str) -> None:
    result = press("inspect", exported, *(["--json"] if form == "json" else []))
    assert (result.exit_code, result.stderr) == (0, "")
    manifest = json.loads((exported / FILE_NAME).read_text(encoding="utf-8"))
    if form == "text":
        facts = {line[:10].strip(): line[12:] for line in result.stdout.splitlines()}
        assert facts["labels"] == "bad, fair, good"
        assert facts["positions"] == "20"
        assert facts["parity"] == (
            "onnxruntime fp32 logits PASS, onnxruntime fp16 logits PASS, onnxruntime int8 logits PASS"
        )
        return
    facts = document(result)
    assert facts == {
        "model": "tiny",
        "family": "roformer",
        "task": "text-classification",
        "inputs": {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")},
        "outputs": {"logits": ["batch", 3]},
        "positions": 20,
        "labels": ["bad", "fair", "good"],
        "passes": {entry["name"]: entry["count"] for entry in manifest["passes"]},
        "engines": {f"onnxruntime {entry['precision']}": entry["size_bytes"] for entry in manifest["engines"]},
        "parity": {f"onnxruntime {entry['precision']} logits": "PASS" for entry in manifest["engines"]},
        "source": manifest["source_files"],
        "versions": manifest["versions"],
    }


def test_inspect_tells_what_failed_and_what_was_not_judged(bundle: Path) -> None:
    path = bundle / "report" / "parity.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report["results"][1]["failures"] = ["cosine 0.5 < 0.9", "SQNR 1.0 dB < 40 dB"]
    path.write_text(json.dumps(report), encoding="utf-8")
    assert document(press("inspect", bundle, "--json"))["parity"] == {
        "onnxruntime fp32 logits": "PASS",
        "onnxruntime fp16 logits": "FAIL (cosine 0.5 < 0.9; SQNR 1.0 dB < 40 dB)",
        "onnxruntime int8 logits": "PASS",
    }
    path.unlink()
    assert document(press("inspect", bundle, "--json"))["parity"] == {}
    path.write_text("{", encoding="utf-8")
    check_message(press("inspect", bundle), "text", "UserError", "parity.json is damaged: run rotary-press validate")
    (bundle / "model" / "fp32.onnx").write_text("altered", encoding="utf-8")
    check_message(press("inspect", bundle), "text", "BundleError", "fp32.onnx was altered")


@in_both_forms
def test_inspect_a_graph(exported: Path, form: str) -> None:
    result = press("inspect", exported / "model" / "fp16.onnx", *(["--json"] if form == "json" else []))
    assert (result.exit_code, result.stderr) == (0, "")
    if form == "text":
        assert "inputs  input_ids ['batch', 'sequence'], attention_mask " in result.stdout
        assert "passes  prepare, fuse_rotary, fuse_residual_layer_norm, fuse_attention, fuse_bias_gelu, cast_fp16" in (
            result.stdout
        )
        assert "fusions  not looked for: the graph went through cast_fp16" in result.stdout
        return
    facts = document(result)
    assert facts["opsets"] == {"onnx": 20, "rotary_press": 1}
    assert facts["inputs"] == {
        name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert facts["outputs"] == {"logits": ["batch", 3]}
    fusions = ["fuse_rotary", "fuse_residual_layer_norm", "fuse_attention", "fuse_bias_gelu"]
    assert facts["passes"] == ["prepare", *fusions, "cast_fp16"]
    assert set(facts["functions"]) == {
        f"rotary_press::{name}"
        for name in ("InterleavedRotary", "ResidualLayerNorm", "ScaledDotProductAttention", "FusedBiasGelu")
    }
    assert facts["fusions"].startswith("not looked for: the graph went through cast_fp16")
    assert facts["ops"]["rotary_press::InterleavedRotary"] == 4
    assert facts["ops"]["rotary_press::ResidualLayerNorm"] == 5
    assert list(facts["ops"].values()) == sorted(facts["ops"].values(), reverse=True)


@in_both_forms
def test_inspect_tells_what_would_fuse(traced: onnx.ModelProto, place: Path, form: str) -> None:
    onnx.save(traced, place / "plain.onnx")
    result = press("inspect", place / "plain.onnx", *(["--json"] if form == "json" else []))
    assert (result.exit_code, result.stderr) == (0, "")
    if form == "text":
        assert "     2  fuse_attention  (largest difference " in result.stdout
        return
    passes = document(result)["fusions"]["passes"]
    assert {entry["name"]: entry["count"] for entry in passes}["fuse_attention"] == 2


@in_both_forms
def test_inspect_lists_the_nodes(place: Path, form: str) -> None:
    onnx.save(onnx.parser.parse_model(NORM), place / "plain.onnx")
    result = press("inspect", place / "plain.onnx", "--nodes", *(["--json"] if form == "json" else []))
    assert (result.exit_code, result.stderr) == (0, "")
    listed = "\n".join(document(result)["nodes"]) if form == "json" else result.stdout
    assert re.search(r"Node 0 +\| norm \[Op: LayerNormalization\]", listed)


@in_both_forms
def test_inspect_lists_the_layers_of_a_graphs_network(place: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(onnx.parser.parse_model(NORM), place / "plain.onnx")
    monkeypatch.setattr(inspection, "list_layers", lambda path, target: f"Layer 0 of {path.name}\nby {target}")
    options = ["--nodes", "--layers", "--target", "tensorrt-rtx", *(["--json"] if form == "json" else [])]
    result = press("inspect", place / "plain.onnx", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    if form == "text":
        assert result.stdout.splitlines()[-2:] == ["Layer 0 of plain.onnx", "by tensorrt-rtx"]
        assert "[Op: LayerNormalization]" in result.stdout
        return
    facts = document(result)
    assert facts["layers"] == ["Layer 0 of plain.onnx", "by tensorrt-rtx"]
    assert "[Op: LayerNormalization]" in "\n".join(facts["nodes"])


@in_both_forms
def test_inspect_lists_the_layers_of_an_engine(place: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = place / "out.engine"
    record = BuildRecord(
        target="tensorrt",
        version="11.4",
        sha256="0",
        size_bytes=1,
        options=BuildOptions(),
        profiles=[],
        seconds=1.0,
        warnings=[],
    )
    engine.with_name("out.engine.json").write_text(record.model_dump_json(), encoding="utf-8")
    json_option = ["--json"] if form == "json" else []
    result = press("inspect", engine, *json_option)
    assert result.exit_code == 0
    assert "--layers lists its layers" in result.stdout if form == "text" else "layers" not in document(result)
    monkeypatch.setattr(inspection, "list_layers", lambda path, target: f"Layer 0 of {path.name}\nby {target}")
    result = press("inspect", engine, "--layers", *json_option)
    assert (result.exit_code, result.stderr) == (0, "")
    if form == "text":
        assert result.stdout.splitlines()[-2:] == ["Layer 0 of out.engine", "by None"]
    else:
        assert document(result)["layers"] == ["Layer 0 of out.engine", "by None"]
        assert document(result)["target"] == "tensorrt"


def test_inspect_tells_why_nothing_can_be_told(place: Path) -> None:
    text = NORM.replace("LayerNormalization", "theirs.Unknown").replace('"" : 20', '"" : 20, "theirs" : 1')
    onnx.save(onnx.parser.parse_model(text), place / "foreign.onnx")
    result = press("inspect", place / "foreign.onnx")
    assert result.exit_code == 0
    assert "foreign.onnx cannot be fused: ONNX Runtime cannot load the graph" in result.stdout


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.doctor import diagnose

    diagnosis = diagnose()
    assert document(press("doctor", "--json")) == diagnosis.model_dump()
    monkeypatch.setattr("exporter.doctor._version", lambda name: None if name == "onnx" else "1.0")
    monkeypatch.setattr("exporter.engines.OnnxRuntime.is_available", lambda _self: "no driver")
    result = press("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == f"rotary-press 1.0, Python {diagnosis.python}, {diagnosis.cpus} CPUs"
    assert lines[2] == f"int8  ONNX Runtime multiplies with {diagnosis.processor.int8}"
    assert any(line.startswith("export  compile a checkpoint: torch 1.0, onnx MISSING, ") for line in lines)
    assert [line for line in lines if line.startswith("to install")] == [
        "to install: pip install 'rotary-press[export]'"
    ]
    assert "onnxruntime  not usable: no driver" in lines


def test_doctor_says_what_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.engines.TensorRTRTX.is_available", lambda _self: None)
    monkeypatch.setattr("exporter.engines.TensorRTRTX.cannot_run", lambda _self: "no GPU")
    lines = [line.strip() for line in press("doctor").stdout.splitlines()]
    assert "onnxruntime  usable" in lines
    assert "tensorrt-rtx  builds engines, cannot run them: no GPU" in lines
    assert "tensorrt  not usable: tensorrt is not installed: pip install 'rotary-press[tensorrt]'" in lines


@pytest.mark.parametrize("verb", ["export", "inspect"])
def test_without_the_export_extra_a_verb_says_what_to_install(verb: str, exported: Path, place: Path) -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'onnx']); sys.argv[0] = 'rotary-press'; "
        "from exporter.cli import main; main()"
    )
    given = {"export": ["in", str(place / "out")], "inspect": [str(exported / "model" / "fp32.onnx")]}[verb]
    command = [sys.executable, "-c", code, verb, *given]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (2, "")
    [line] = finished.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("needs onnx, which is not installed: pip install 'rotary-press[export]'.")


STEPS: list[tuple[str, float | None]] = [("reading", None), ("building", 0.0), ("building", 0.5), ("writing", None)]


def display(monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, float | None]], *, terminal: bool) -> str:
    """What is shown of steps."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, markup=False, highlight=False)
    monkeypatch.setattr(cli, "err", console)
    with cli.stages(quiet=False) as progress:
        for stage, done in steps:
            progress(stage, done)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("count", "shown"), [(1, None), (2, "0%"), (3, "50%"), (4, None)])
def test_a_terminal_shows_the_share_where_it_is_known(
    monkeypatch: pytest.MonkeyPatch, count: int, shown: str | None
) -> None:
    text = display(monkeypatch, STEPS[:count], terminal=True)
    last = text[text.rindex(STEPS[count - 1][0]) :]
    assert "0:00:00" in last
    assert re.findall(r"\d+%", last) == ([] if shown is None else [shown])
    assert ("\u2501" in last) == (shown is not None)


def test_a_pipe_gets_a_line_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert display(monkeypatch, STEPS, terminal=False).splitlines() == ["reading", "building", "writing"]


def test_nothing_is_shown_beside_json(capsys: pytest.CaptureFixture[str]) -> None:
    with cli.stages(quiet=True) as progress:
        for stage, done in STEPS:
            progress(stage, done)
    assert capsys.readouterr() == ("", "")


@in_both_forms
def test_too_little_memory_is_one_message(monkeypatch: pytest.MonkeyPatch, place: Path, form: str) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("exporter.validation.validate", fail)
    monkeypatch.setattr(exporter, "validate", fail, raising=False)
    result = press("validate", place, *(["--json"] if form == "json" else []))
    check_message(result, form, "MemoryError", "There is too little memory (none is left): free some")
