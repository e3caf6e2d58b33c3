"""The main job: what an export holds, and that a failure leaves the disk as it was."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exporter import Session, export, exporting, load_model, onnx_files, parity, validate
from exporter.cli import inspect_folder
from exporter.engines import BuildOptions, get_engine
from exporter.engines.onnxruntime import OnnxRuntime
from exporter.engines.tensorrt_base import read_record
from exporter.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    PassError,
    TokenizerError,
    UnavailableError,
    UserError,
)
from exporter.files import sha256
from exporter.manifest import FILE_NAME, Manifest, load_manifest
from exporter.models import RoFormerForSequenceClassification, RoFormerModel
from exporter.parity import ParityReport
from exporter.trace import Interface
from graph_passes import pipeline
from tests.traced_models import MODELS, VARIANTS, TracedModel, make_model, trace_model

PRECISIONS = ["fp32", "fp16", "int8"]
quick_trace = pytest.mark.usefixtures("quick_trace")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, with the content of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def labelled(source: Path, **values: Any) -> Path:
    """Changes ``config.json`` of a checkpoint."""
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(content | values), encoding="utf-8")
    return source


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "in" / "tiny"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder to export into."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


# what an export holds


def test_the_files_of_an_export(exported: Path) -> None:
    assert {name for name, content in tree(exported).items() if content is not None} == {
        "manifest.json",
        *(f"engines/onnxruntime-{precision}.onnx" for precision in PRECISIONS),
        *(f"model/{precision}.onnx" for precision in PRECISIONS),
        "model/reference.safetensors",
        "report/parity.json",
        "report/parity.md",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


def test_the_manifest_says_what_is_there(exported: Path, checkpoint: Path) -> None:
    manifest = load_manifest(exported, check_files=True)
    hashed = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert manifest.files == {
        name: sha256(exported / name) for name in hashed if name != FILE_NAME and not name.startswith("report/")
    }
    assert manifest.source_files == {name: sha256(checkpoint / name) for name in ("config.json", "model.safetensors")}
    assert [engine.model_dump() for engine in manifest.engines] == [
        {
            "target": "onnxruntime",
            "precision": precision,
            "file": f"engines/onnxruntime-{precision}.onnx",
            "size_bytes": (exported / f"engines/onnxruntime-{precision}.onnx").stat().st_size,
        }
        for precision in PRECISIONS
    ]
    passes = {entry.name: entry.count for entry in manifest.passes}
    fusions = {"fuse_rotary": 4, "fuse_residual_layer_norm": 5, "fuse_attention": 2, "fuse_bias_gelu": 2}
    assert list(passes) == ["prepare", *fusions, "cast_fp16", "quantize_dynamic"]
    assert {name: passes[name] for name in fusions} == fusions
    content = manifest.model_dump(include=set(Manifest.model_fields) - {"files", "source_files", "engines", "passes"})
    assert content.pop("versions").keys() >= {"python", "torch", "onnxruntime"}
    assert content == {
        "format": 1,
        "name": "tiny",
        "family": "roformer",
        "task": "text-classification",
        "inputs": [
            {"name": name, "axes": ("batch", "sequence"), "dtype": "int64", "limit": limit, "is_scores": False}
            for name, limit in (("input_ids", 41), ("attention_mask", 2), ("token_type_ids", 2))
        ],
        "outputs": [{"name": "logits", "axes": ("batch", 3), "dtype": "float32", "limit": None, "is_scores": True}],
        "pad_token_id": 1,
        "eos_token_ids": [],
        "max_tokens": 20,
        "labels": ["bad", "fair", "good"],
        "problem_type": None,
        "has_tokenizer": True,
        "seed": 0,
    }


def test_each_model_is_portable_and_at_its_precision(exported: Path) -> None:
    for precision, expected in zip(PRECISIONS, ([], ["cast_fp16"], ["quantize_dynamic"]), strict=True):
        portable = onnx.load(exported / "model" / f"{precision}.onnx")
        lowered = onnx.load(exported / "engines" / f"onnxruntime-{precision}.onnx")
        assert pipeline.passes_run_on(portable)[len(pipeline.FUSIONS) :] == expected
        assert {node.domain for node in portable.graph.node} <= {"", "rotary_press"}
        assert "rotary_press" not in {node.domain for node in lowered.graph.node}
        assert pipeline.passes_run_on(lowered)[len(pipeline.FUSIONS) :] == [*expected, "lower_to_onnxruntime"]


# every kind of task, tiny and random

ALL_KINDS = [
    "roformer-multiple-choice",
    "roberta-prelayernorm-question-answering",
    "roberta-prelayernorm-text-generation",
    "roformer-with-cross-attention",
    "roberta-prelayernorm-with-cross-attention",
    "roberta-prelayernorm-with-relative-positions",
    "roberta-prelayernorm-with-position-ids",
    "roformer-with-few-positions",
]


@pytest.fixture(scope="module", params=ALL_KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TracedModel, Path]:
    """A traced model, and the export of its checkpoint, which takes that trace for its own."""
    traced = trace_model(request.param)
    recipe = (MODELS | VARIANTS)[traced.name]
    place = tmp_path_factory.mktemp("kinds")
    make_model(traced.name).save_pretrained(place / "in")

    def stand_in(interface: Interface) -> onnx.ModelProto:
        assert (interface.inputs, interface.outputs) == (traced.interface.inputs, traced.interface.outputs)
        return traced.plain

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace", stand_in)
        export(place / "in", place / "out", position_ids=recipe.position_ids)
    return traced, place / "out"


def test_every_kind_passes_at_every_precision(kind: tuple[TracedModel, Path]) -> None:
    traced, folder = kind
    report = validate(folder)
    assert report.passed, [failure for result in report.results for failure in result.failures]
    outputs = dict.fromkeys(spec.name.partition(".")[0] for spec in traced.interface.outputs)
    assert sorted((result.precision, result.output) for result in report.results) == sorted(
        product(PRECISIONS, outputs)
    )
    has_cache = (MODELS | VARIANTS)[traced.name].task == "text-generation"
    assert any(" after " in case for case in report.cases) == has_cache


def test_the_manifest_of_every_kind_says_what_goes_in_and_comes_out(kind: tuple[TracedModel, Path]) -> None:
    traced, folder = kind
    manifest = load_manifest(folder, check_files=True)
    assert manifest.task == (MODELS | VARIANTS)[traced.name].task
    assert tuple(manifest.inputs) == traced.interface.inputs
    assert tuple(manifest.outputs) == traced.interface.outputs
    assert manifest.score_outputs == {
        "question-answering": ["start_logits", "end_logits"],
        "feature-extraction": [],
    }.get(manifest.task, ["logits"])
    assert manifest.max_tokens == traced.config.max_tokens
    assert manifest.eos_token_ids == ([2] if manifest.family == "roberta-prelayernorm" else [])
    for precision in PRECISIONS:
        graph = onnx.load(folder / "engines" / f"onnxruntime-{precision}.onnx").graph
        for values, specs in ((graph.input, manifest.inputs), (graph.output, manifest.outputs)):
            assert [value.name for value in values] == [spec.name for spec in specs]


@pytest.mark.parametrize(("given", "kept"), [(None, []), (5, [5]), ([5, 0], [5, 0])])
@quick_trace
def test_every_token_that_ends_a_text_is_kept(source: Path, place: Path, given: Any, kept: list[int]) -> None:
    export(labelled(source, eos_token_id=given), place / "out", precisions=["fp32"])
    assert load_manifest(place / "out", check_files=False).eos_token_ids == kept


def test_computed_positions_are_extended(checkpoint: Path, exported: Path, place: Path) -> None:
    assert export(checkpoint, place / "out", max_position_embeddings=33, precisions=["fp32", "int8"]).passed
    assert load_manifest(place / "out", check_files=True).max_tokens == 33
    longest = {case.name: case for case, _ in parity.load_reference(place / "out" / "model" / "reference.safetensors")}
    assert longest["the longest input"].inputs["input_ids"].shape == (1, 33)
    session, before = Session(place / "out"), Session(exported)
    ids = np.random.default_rng(0).integers(2, 41, (2, 33))
    model = load_model(checkpoint, max_position_embeddings=33)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    # float32 twice, where only the order of sums differs.
    np.testing.assert_allclose(session.run(ids)["logits"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        session.run(ids[:, :20])["logits"], before.run(ids[:, :20])["logits"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("roberta-prelayernorm-token-classification", {"max_position_embeddings": 50}, "positions .* are learnt"),
        ("roformer-token-classification", {"max_position_embeddings": 21}, "extended from 22 upwards; got 21"),
        ("roformer-token-classification", {"position_ids": True}, "no table of learnt positions"),
        (
            "roberta-prelayernorm-with-relative-keys",
            {"position_ids": True},
            "this roberta-prelayernorm model has no table of learnt positions",
        ),
        ("roberta-prelayernorm-fill-mask", {"task": "text-generation"}, "needs a decoder, but .* is_decoder=false"),
    ],
)
def test_what_does_not_fit_the_model_leaves_nothing(
    place: Path, tmp_path: Path, name: str, options: Any, message: str
) -> None:
    make_model(name).save_pretrained(tmp_path / "in")
    with pytest.raises(ConfigError, match=message):
        export(tmp_path / "in", place / "new" / "out", **options)
    assert tree(place) == {}


# more of what an export holds


@quick_trace
def test_the_result_is_the_report_that_is_written(source: Path, place: Path) -> None:
    stages: list[str] = []
    report = export(source, place / "out", precisions=["fp32"], progress=lambda stage, _done=None: stages.append(stage))
    assert report.passed
    assert ParityReport.model_validate_json((place / "out/report/parity.json").read_bytes()) == report
    assert stages == [
        "loading the checkpoint",
        "tracing to ONNX",
        "computing the reference",
        "fusing",
        "building fp32",
        "checking parity",
        "checking onnxruntime fp32",
    ]


@quick_trace
@pytest.mark.parametrize("precisions", [("int8", "int8"), ["fp16", "fp32"]])
def test_some_precisions(source: Path, place: Path, precisions: list[str]) -> None:
    report = export(source, place / "out", precisions=precisions, targets=["onnxruntime", "onnxruntime"])
    wanted = [precision for precision in PRECISIONS if precision in precisions]
    assert [result.precision for result in report.results] == wanted
    manifest = load_manifest(place / "out", check_files=True)
    assert [engine.precision for engine in manifest.engines] == wanted
    assert sorted(path.name for path in (place / "out" / "engines").iterdir()) == sorted(
        f"onnxruntime-{precision}.onnx" for precision in wanted
    )


@quick_trace
def test_the_seed_decides_about_the_reference_and_is_kept(checkpoint: Path, exported: Path, place: Path) -> None:
    found = [(exported / "model" / "reference.safetensors").read_bytes()]  # of seed 0
    for name in ("a", "b"):
        assert export(checkpoint, place / name, precisions=["fp32"], seed=5).seed == 5
        assert load_manifest(place / name, check_files=False).seed == 5
        found.append((place / name / "model" / "reference.safetensors").read_bytes())
    assert found[0] != found[1] == found[2]


@quick_trace
def test_what_the_checkpoint_lacks_and_how_it_names_its_labels_is_kept(source: Path, place: Path) -> None:
    (source / "vocab.txt").unlink()
    labelled(source, problem_type="multi_label_classification", id2label={"0": "x", "2": "z", "1": "y"})
    export(source, place / "out", precisions=["fp32"])
    manifest = load_manifest(place / "out", check_files=True)
    assert (manifest.problem_type, manifest.labels) == ("multi_label_classification", ["x", "y", "z"])
    assert not manifest.has_tokenizer
    assert not (place / "out" / "tokenizer").exists()


@quick_trace
def test_large_models_keep_their_weights_beside_them(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_ABOVE", 0)
    assert export(source, place / "out").passed
    manifest = load_manifest(place / "out", check_files=True)
    for engine in manifest.engines:
        files = [place / "out" / engine.file, place / "out" / f"{engine.file}.data"]
        assert engine.size_bytes == sum(path.stat().st_size for path in files)
        assert {f"{engine.file}.data", f"model/{engine.precision}.onnx.data"} <= manifest.files.keys()
        assert onnx.load(place / "out" / "model" / f"{engine.precision}.onnx").graph.initializer
    assert not (place / "out" / "lowered").exists()
    moved = (place / "out").rename(place / "moved")
    assert Session(moved).predict(["今天"])[0]["label"] in ("bad", "fair", "good")


@quick_trace
def test_a_folder_is_written_even_where_parity_fails(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = parity.compute_reference

    def shifted(*arguments: Any) -> parity.Reference:
        return [(case, {name: array + 1 for name, array in truth.items()}) for case, truth in honest(*arguments)]

    monkeypatch.setattr(parity, "compute_reference", shifted)
    report = export(source, place / "out", precisions=["fp32"])
    assert not report.passed
    assert "FAIL" in (place / "out" / "report" / "parity.md").read_text(encoding="utf-8")


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": ["fp32", "fp8"]}, "Unknown precision 'fp8'; expected one of fp32, fp16, int8"),
        ({"precisions": "fp32"}, "Unknown precision 'f'"),
        ({"precisions": []}, "give a precision and a target"),
        ({"targets": []}, "give a precision and a target"),
        ({"targets": ["onnxruntime", "tpu"]}, "Unknown target 'tpu'; expected one of onnxruntime"),
        ({"task": "translation"}, "Unknown task 'translation'; expected one of feature-extraction"),
        ({"seed": -1}, "seed must not be negative; got -1"),
    ],
)
def test_unknown_options(checkpoint: Path, place: Path, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(checkpoint, place / "new" / "out", **options)
    assert tree(place) == {}


def test_a_target_that_is_not_usable_here(checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "is_available", lambda _self: "no driver")
    with pytest.raises(UserError, match="target onnxruntime is not usable here: no driver"):
        export(checkpoint, place / "out")
    assert tree(place) == {}


def damage(name: str, content: str | None) -> Callable[[Path], object]:
    return lambda folder: (
        (folder / name).unlink() if content is None else (folder / name).write_text(content, encoding="utf-8")
    )


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (damage("model.safetensors", None), CheckpointError),
        (damage("model.safetensors", "short"), CheckpointError),
        (damage("config.json", None), CheckpointError),
        (damage("config.json", "{"), CheckpointError),
        (lambda folder: labelled(folder, model_type="bert"), ConfigError),
        (lambda folder: labelled(folder, architectures=["RoFormerForPreTraining"]), ConfigError),
        (lambda folder: labelled(folder, num_hidden_layers=3), CheckpointError),
        (damage("vocab.txt", "[UNK]\n"), TokenizerError),
        (shutil.rmtree, CheckpointError),
    ],
)
def test_a_source_that_is_not_usable(
    source: Path, place: Path, harm: Callable[[Path], object], error: type[Exception]
) -> None:
    harm(source)
    with pytest.raises(error):
        export(source, place / "new" / "out")
    assert tree(place) == {}


def test_a_folder_of_somebody_else_is_refused_and_untouched(checkpoint: Path, place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("years of work", encoding="utf-8")
    before = tree(place)
    with pytest.raises(BundleError, match=r"Will not replace .*out: it is not empty and has no manifest\.json"):
        export(checkpoint, place / "out")
    assert tree(place) == before


def test_the_source_itself_is_refused(source: Path) -> None:
    before = tree(source)
    with pytest.raises(BundleError, match="Will not replace"):
        export(source, source)
    assert tree(source) == before


@quick_trace
@pytest.mark.parametrize("before", ["an earlier export", "an empty folder"])
def test_what_is_ours_is_replaced(checkpoint: Path, exported: Path, place: Path, before: str) -> None:
    if before == "an earlier export":
        shutil.copytree(exported, place / "out")
        (place / "out" / "engines" / "stale.onnx").touch()
    else:
        (place / "out").mkdir()
    export(checkpoint, place / "out", precisions=["int8"])
    assert sorted(path.name for path in (place / "out" / "engines").iterdir()) == ["onnxruntime-int8.onnx"]
    assert [path.name for path in place.iterdir()] == ["out"]


# failures on the way

STAGES: list[tuple[Any, str]] = [
    (exporting, "_load"),
    (exporting, "_copy_tokenizer"),
    (exporting, "trace"),
    (parity, "make_cases"),
    (parity, "save_reference"),
    (pipeline, "fuse"),
    (pipeline, "change_precision"),
    (pipeline, "lower"),
    (OnnxRuntime, "build"),
    (exporting, "sha256"),
    (exporting, "validate"),
]


@quick_trace
@pytest.mark.parametrize(("home", "stage"), STAGES, ids=[stage for _, stage in STAGES])
def test_a_failure_leaves_nothing(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch, home: Any, stage: str
) -> None:
    def interrupt(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt("half-way")  # what is least likely to be cleaned up after

    monkeypatch.setattr(home, stage, interrupt)
    with pytest.raises(KeyboardInterrupt, match="half-way"):
        export(checkpoint, place / "new" / "deep" / "out", precisions=["fp32"])
    assert tree(place) == {}


@quick_trace
@pytest.mark.parametrize("stage", ["trace", "validate"])
def test_a_failure_keeps_the_earlier_export(
    checkpoint: Path, exported: Path, place: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    shutil.copytree(exported, place / "out")
    before = tree(place)
    monkeypatch.setattr(exporting, stage, lambda *_arguments, **_options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        export(checkpoint, place / "out", precisions=["fp32"])
    assert tree(place) == before


@quick_trace
def test_a_fusion_that_did_not_happen_is_an_error(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "expected_fusions", lambda _config, _task: {"fuse_rotary": 5})
    with pytest.raises(PassError, match="fuse_rotary applied 4 times, expected 5"):
        export(checkpoint, place / "out")
    assert tree(place) == {}


# TensorRT-RTX, which is built here and cannot run here


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("今天 天气 好\na b c d\n非常 好\n", encoding="utf-8")
    return path


@quick_trace
@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="it is installed there alone"
)
def test_engines_that_cannot_run_here_are_built_and_told(checkpoint: Path, place: Path, texts: Path) -> None:
    targets = ["onnxruntime", "tensorrt-rtx"]
    told: dict[str, float | None] = {}
    report = export(
        checkpoint,
        place / "out",
        targets=targets,
        calibration=texts,
        options=BuildOptions(sms=(89,)),
        progress=lambda stage, done=None: told.update({stage: done}),
    )
    assert report.passed
    assert {stage: done for stage, done in told.items() if done is not None} == {
        f"tensorrt-rtx {precision}: building engine": 1 for precision in PRECISIONS
    }
    assert {(result.target, result.precision) for result in report.results} == {
        ("onnxruntime", precision) for precision in PRECISIONS
    }
    if get_engine("tensorrt-rtx").cannot_run() is None:
        pytest.skip("here is a GPU")
    assert set(report.not_run) == {f"tensorrt-rtx {precision}" for precision in PRECISIONS}
    assert "## Not run here" in (place / "out" / "report" / "parity.md").read_text(encoding="utf-8")
    manifest = load_manifest(place / "out", check_files=True)
    assert {(entry.target, entry.precision) for entry in manifest.engines} == set(product(targets, PRECISIONS))
    for precision in PRECISIONS:
        record = read_record(place / "out" / "engines" / f"tensorrt-rtx-{precision}.engine")
        assert (record.lowering, record.options.max_tokens, record.options.sms) == ("native", 20, (89,))
        [entry] = [e for e in manifest.engines if (e.target, e.precision) == ("tensorrt-rtx", precision)]
        assert entry.size_bytes == record.size_bytes
        [schedule] = record.schedules
        [line] = [line for line in inspect_folder(place / "out")["kernels"].items() if precision in line[0]]
        assert line[0] == f"tensorrt-rtx {precision}"
        assert re.fullmatch(rf"{len(schedule.kernels)} kernels.*, [\d.]+ MB moved, 0 waits for other streams", line[1])
    static = onnx.load(place / "out" / "model" / "int8-static.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in static.graph.node) == 2 * 4
    assert "calibration.json" in {path.name for path in (place / "out" / "model").iterdir()}
    with pytest.raises(UnavailableError, match="The target tensorrt-rtx cannot run here"):
        Session(place / "out", target="tensorrt-rtx")
    kept = place / "out" / "model" / "calibration.json"
    again = export(checkpoint, place / "again", targets=["tensorrt-rtx"], calibration=kept, precisions=["int8"])
    assert not again.passed, "nothing was judged"
    assert (place / "again" / "model" / "calibration.json").read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("precisions", [["int8"], ["fp32", "int8"]])
def test_static_int8_asks_for_calibration_before_anything_is_done(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch, precisions: list[str]
) -> None:
    monkeypatch.setattr("exporter.engines.TensorRTRTX.is_available", lambda _self: None)
    with pytest.raises(UserError, match=r"int8 for tensorrt-rtx needs ranges beforehand: give --calibration FILE"):
        export(checkpoint, place / "out", targets=["tensorrt-rtx"], precisions=precisions)
    assert tree(place) == {}


@quick_trace
def test_ranges_of_another_model_are_refused(checkpoint: Path, place: Path, texts: Path, tmp_path: Path) -> None:
    export(checkpoint, place / "out", precisions=["fp32"], calibration=texts)
    kept = place / "out" / "model" / "calibration.json"
    other = json.loads(kept.read_text(encoding="utf-8")) | {"model": "0" * 64}
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(UserError, match="These ranges are of another model"):
        export(checkpoint, place / "again", precisions=["fp32"], calibration=tmp_path / "other.json")
    assert not (place / "again").exists()


# load_model


def test_a_model_is_loaded_as_the_class_of_its_task(checkpoint: Path) -> None:
    assert isinstance(load_model(str(checkpoint)), RoFormerForSequenceClassification)
    assert isinstance(load_model(checkpoint, "feature-extraction"), RoFormerModel)
    with pytest.raises(UserError, match="Unknown task"):
        load_model(checkpoint, "translation")
    with pytest.raises(CheckpointError, match="No checkpoint folder at"):
        load_model(checkpoint / "absent")
