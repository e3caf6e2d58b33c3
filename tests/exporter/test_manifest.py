"""Reading a manifest: whatever is wrong with a folder is one clear error, and no name leads out of it."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import BundleError
from exporter.files import sha256
from exporter.manifest import FILE_NAME, RECORDED, Manifest, installed_versions, load_manifest
from exporter.tasks import TensorSpec

both_depths = pytest.mark.parametrize("check_files", [True, False])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest folder with a manifest: one engine, one tokenizer file, a report that nobody hashed."""
    folder = tmp_path / "out"
    for name, content in {"engines/a.onnx": "engine", "tokenizer/t.json": "{}", "report/parity.json": "{}"}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content, encoding="utf-8")
    files = {name: sha256(folder / name) for name in ("engines/a.onnx", "tokenizer/t.json")}
    manifest = Manifest(
        name="tiny",
        family="roformer",
        task="fill-mask",
        inputs=[TensorSpec(name="input_ids", axes=("batch", "sequence"), dtype="int64", limit=9)],
        outputs=[
            TensorSpec(name="hidden", axes=("batch", "sequence", 4)),
            TensorSpec(name="logits", axes=("batch", "sequence", 9), is_scores=True),
        ],
        pad_token_id=0,
        eos_token_ids=[2, 3],
        max_tokens=5,
        labels=["a"],
        problem_type=None,
        has_tokenizer=True,
        seed=0,
        passes=[],
        engines=[{"target": "onnxruntime", "precision": "fp32", "file": "engines/a.onnx", "size_bytes": 6}],
        source_files={},
        files=files,
        versions={},
    )
    (folder / FILE_NAME).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def change(folder: Path, **values: Any) -> None:
    path = folder / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values))


@both_depths
def test_a_whole_folder(folder: Path, check_files: bool) -> None:
    manifest = load_manifest(folder, check_files=check_files)
    assert manifest.model_dump(mode="json") == json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    assert manifest.engines[0].file == "engines/a.onnx"
    assert manifest.inputs[0].axes == ("batch", "sequence")
    assert manifest.score_outputs == ["logits"]


@both_depths
@pytest.mark.parametrize("name", [".", "absent", "engines", "engines/a.onnx"])
def test_no_export(folder: Path, name: str, check_files: bool) -> None:
    (folder / FILE_NAME).rename(folder / "elsewhere.json")
    with pytest.raises(BundleError, match=r"has no manifest\.json: expected a folder written by rotary-press export"):
        load_manifest(folder / name, check_files=check_files)


@both_depths
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b"{}", b'{"format": 1,}'])
def test_malformed(folder: Path, content: bytes, check_files: bool) -> None:
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json is not a manifest of this version: "):
        load_manifest(folder, check_files=check_files)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": 2}, "format"),
        ({"family": "bert"}, "family"),
        ({"task": "translation"}, "task"),
        ({"problem_type": "other"}, "problem_type"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"inputs": ["input_ids"]}, r"inputs\.0"),
        ({"inputs": [{"name": "x", "axes": ["batch"], "dtype": "int8"}]}, r"inputs\.0\.dtype"),
        ({"inputs": [{"name": "x", "axes": ["batch"], "limit": 0}]}, r"inputs\.0\.limit"),
        ({"inputs": [{"name": "x", "axes": [None]}]}, r"inputs\.0\.axes\.0"),
        ({"outputs": [{"name": "x", "axes": ["batch"], "x": 1}]}, r"outputs\.0\.x"),
        ({"outputs": [{"axes": ["batch"]}]}, r"outputs\.0\.name"),
        ({"vocab_size": 9}, "vocab_size"),  # of an earlier version
        ({"eos_token_ids": [-1]}, r"eos_token_ids\.0"),
        ({"eos_token_ids": None}, "eos_token_ids"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"labels": None}, "labels"),
        ({"files": ["engines/a.onnx"]}, "files"),
        (
            {"engines": [{"target": "onnxruntime", "precision": "fp64", "file": "a", "size_bytes": 1}]},
            r"engines\.0\.pre",
        ),
        ({"engines": [{"target": "t", "precision": "fp32", "file": "a", "size_bytes": 1, "x": 1}]}, r"engines\.0\.x"),
        ({"passes": [{"name": "fuse", "count": 1, "x": 1}]}, r"passes\.0\.x"),
    ],
)
def test_unknown_keys_and_wrong_values_are_named(folder: Path, values: dict[str, Any], where: str) -> None:
    change(folder, **values)
    with pytest.raises(BundleError, match=f"not a manifest of this version: {where}"):
        load_manifest(folder, check_files=False)


@pytest.mark.parametrize("field", sorted(set(Manifest.model_fields) - {"format"}))
def test_every_field_is_needed(folder: Path, field: str) -> None:
    content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    del content[field]
    (folder / FILE_NAME).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=f"{field}: Field required"):
        load_manifest(folder, check_files=False)


@both_depths
@pytest.mark.parametrize("name", ["engines/a.onnx", "tokenizer/t.json"])
def test_a_missing_file(folder: Path, name: str, check_files: bool) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing: the export is incomplete"):
        load_manifest(folder, check_files=check_files)


@pytest.mark.parametrize("name", ["engines/a.onnx", "tokenizer/t.json"])
def test_an_altered_file_is_found_where_files_are_checked(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit, the same size
    with pytest.raises(BundleError, match=f"{name} was altered since the export"):
        load_manifest(folder, check_files=True)
    load_manifest(folder, check_files=False)


def test_reports_may_change(folder: Path) -> None:
    (folder / "report" / "parity.json").write_text("validated again", encoding="utf-8")
    load_manifest(folder, check_files=True)


@both_depths
@pytest.mark.parametrize("name", ["../secret", "engines/../../secret", "link", "/etc/hostname", "engines/loop", "a\0b"])
def test_names_that_lead_out_are_never_followed(folder: Path, name: str, check_files: bool) -> None:
    secret = folder.parent / "secret"
    secret.write_text("not ours", encoding="utf-8")
    (folder / "link").symlink_to(secret)
    (folder / "engines" / "loop").symlink_to("loop")
    digest = sha256(secret)
    change(folder, files=json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))["files"] | {name: digest})
    with pytest.raises(BundleError, match=r"leads out of|cannot be a path|is missing"):
        load_manifest(folder, check_files=check_files)


def test_an_engine_must_have_a_hash(folder: Path) -> None:
    (folder / "other.onnx").write_text("engine", encoding="utf-8")
    entry = {"target": "onnxruntime", "precision": "fp16", "file": "other.onnx", "size_bytes": 6}
    change(folder, engines=[entry])
    with pytest.raises(BundleError, match=r"names the engine 'other\.onnx' without a hash"):
        load_manifest(folder, check_files=False)


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = installed_versions()
    assert versions["python"] == platform.python_version()
    assert versions["onnxruntime"] == metadata.version("onnxruntime")
    assert versions.keys() == {"python", *RECORDED}

    def only_numpy(name: str) -> str:
        if name != "numpy":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", only_numpy)
    assert installed_versions() == {"python": platform.python_version(), "numpy": "1.2.3"}
