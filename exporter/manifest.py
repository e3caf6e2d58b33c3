"""``manifest.json``: what an exported folder holds, what it was made from, and with what."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from exporter.errors import BundleError
from exporter.files import inside, sha256
from exporter.tasks import TaskName, TensorSpec

__all__ = ["FILE_NAME", "EngineEntry", "FusionEntry", "Manifest", "installed_versions", "load_manifest"]

FILE_NAME = "manifest.json"
RECORDED = ("rotary-press", "torch", "onnx", "onnxruntime", "onnx-graphsurgeon", "onnxscript", "polygraphy", "numpy")


class EngineEntry(BaseModel):
    """One engine file."""

    model_config = ConfigDict(extra="forbid")

    target: str
    precision: Literal["fp32", "fp16", "int8"]
    file: str
    size_bytes: int


class FusionEntry(BaseModel):
    """What one graph pass did: how often it applied, and the largest difference measured while it did."""

    model_config = ConfigDict(extra="forbid")

    name: str
    count: int
    max_abs_difference: float | None = None


class Manifest(BaseModel):
    """The content of ``manifest.json``.

    Attributes:
        files: SHA-256 of every file of the folder but the manifest and the reports, by path inside the folder.
        source_files: SHA-256 of the checkpoint's files that went into the engines.
        inputs, outputs: What the engines take and give, in order.
        max_tokens: How many tokens the positions hold, cached ones included.
        eos_token_ids: Tokens that end a text.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    name: str
    family: Literal["roformer", "roberta-prelayernorm"]
    task: TaskName
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    pad_token_id: NonNegativeInt
    eos_token_ids: list[NonNegativeInt]
    max_tokens: PositiveInt
    labels: list[str]
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None
    has_tokenizer: bool
    seed: int
    passes: list[FusionEntry]
    engines: list[EngineEntry]
    source_files: dict[str, str]
    files: dict[str, str]
    versions: dict[str, str]

    @property
    def score_outputs(self) -> list[str]:
        """Outputs whose largest entry is the prediction."""
        return [spec.name for spec in self.outputs if spec.is_scores]


def installed_versions() -> dict[str, str]:
    """The versions that decide about an export, by distribution name, and Python's."""
    versions = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def load_manifest(folder: Path, *, check_files: bool) -> Manifest:
    """Reads the manifest of an exported folder.

    Args:
        folder: Written by ``rotary-press export``.
        check_files: Whether to hash every file and compare. Missing files are always an error.

    Raises:
        BundleError: If the folder is no export, is incomplete, or was altered.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise BundleError(f"{folder} has no {FILE_NAME}: expected a folder written by rotary-press export.")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise BundleError(f"{path} is not a manifest of this version: {where}: {problem['msg']}.") from error
    for name, digest in manifest.files.items():
        file = inside(folder, name)
        if not file.is_file():
            raise BundleError(f"{file} is missing: the export is incomplete. Export again.")
        if check_files and sha256(file) != digest:
            raise BundleError(f"{file} was altered since the export (its SHA-256 differs): export again.")
    for engine in manifest.engines:
        if engine.file not in manifest.files:
            raise BundleError(f"{path} names the engine {engine.file!r} without a hash: export again.")
    return manifest
