"""The main job: checkpoint -> torch -> ONNX -> fused -> fp32 / fp16 / int8 -> engines -> parity report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from exporter import models, parity
from exporter.calibration import Ranges, batches_of_texts, calibrate, read_texts
from exporter.engines import BuildOptions, Engine, Progress, get_engine, silent
from exporter.engines.tensorrt_base import TensorRTBase
from exporter.errors import UserError
from exporter.files import new_folder, sha256
from exporter.manifest import FILE_NAME, EngineEntry, FusionEntry, Manifest, installed_versions
from exporter.models.checkpoint import PreTrainedModel, weights_file
from exporter.onnx_files import MAX_TOKENS, save_onnx
from exporter.parity import ParityReport
from exporter.tasks import FAMILY_PREFIX, Task, TensorSpec, expected_fusions, find_task
from exporter.tokenization import load_tokenizer
from exporter.trace import Interface, trace
from exporter.validation import REFERENCE, validate
from graph_passes import pipeline
from graph_passes.graph_pass import PassReport
from graph_passes.graph_tools import import_model, notes_of

__all__ = ["export", "load_model"]


def load_model(
    source: str | os.PathLike[str], task: str | None = None, *, max_position_embeddings: int | None = None
) -> PreTrainedModel[Any]:
    """Loads a checkpoint as the PyTorch class of its task.

    Args:
        source: A folder in the Hugging Face layout.
        task: Overrides the task that ``config.architectures`` names.
        max_position_embeddings: Extends RoFormer's computed positions beyond the config's.

    Raises:
        CheckpointError, ConfigError: If the folder does not hold such a model.
        UserError: If the task is unknown.
    """
    folder = Path(source)
    config = models.load_config(folder)
    return _load(folder, find_task(config, task), config, max_position_embeddings)


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    max_position_embeddings: int | None = None,
    position_ids: bool = False,
    precisions: Sequence[str] = pipeline.PRECISIONS,
    targets: Sequence[str] = ("onnxruntime",),
    calibration: str | os.PathLike[str] | None = None,
    options: BuildOptions | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ParityReport:
    """Exports a checkpoint to a folder of verified engines.

    The folder appears whole or not at all. It is written even where parity fails, so that the report can be read: look
    at ``passed`` of the result.

    Args:
        source: A folder in the Hugging Face layout.
        out: The folder to write. An earlier export there is replaced; anything else is refused.
        task: Overrides the task that ``config.architectures`` names.
        max_position_embeddings: Extends RoFormer's computed positions beyond the config's.
        position_ids: Make learnt positions an input of the engines; by default they count them.
        precisions: Of ``"fp32"``, ``"fp16"``, ``"int8"``.
        targets: Of ``exporter.engines.ENGINES``.
        calibration: For int8 of targets that need ranges beforehand: a text file with one text per line, like those
            that the model will read, or a ``calibration.json`` of the same model.
        options: What is asked of the builders of TensorRT's engines.
        seed: Of the parity inputs.
        progress: Called at the start of each stage, see :class:`exporter.engines.Progress`; ``None`` is silent.

    Returns:
        The parity report, as it is written to ``out/report``.

    Raises:
        UserError: If the source, the task, a precision, a target or ``out`` is not usable.
        CompileError: If a stage breaks its promise, an expected fusion that did not happen included.
    """
    progress = progress or silent
    for precision in precisions:
        if precision not in pipeline.PRECISIONS:
            raise UserError(f"Unknown precision {precision!r}; expected one of {', '.join(pipeline.PRECISIONS)}.")
    if not precisions or not targets:
        raise UserError("Nothing to export: give a precision and a target.")
    if seed < 0:
        raise UserError(f"The seed must not be negative; got {seed}.")
    engines = [get_engine(target) for target in dict.fromkeys(targets)]
    for engine in engines:
        if reason := engine.is_available():
            raise UserError(f"The target {engine.target} is not usable here: {reason}")
        if "int8" in precisions and engine.quantization == "static" and calibration is None:
            raise UserError(
                f"int8 for {engine.target} needs ranges beforehand: give --calibration FILE, a text file with one text "
                f"per line like those that the model will read; or leave int8 out with --precision."
            )

    folder = Path(source)
    config = models.load_config(folder)
    chosen = find_task(config, task)
    chosen.input_specs(config, position_ids=position_ids)  # what does not fit the task fails before weights are read
    with new_folder(Path(out), replaces=FILE_NAME) as staging:
        progress("loading the checkpoint")
        model = _load(folder, chosen, config, max_position_embeddings)
        config = model.config
        interface = Interface(model, chosen, position_ids=position_ids)
        for name in ("model", "engines", "report"):
            (staging / name).mkdir()
        has_tokenizer = _copy_tokenizer(folder, config.model_type, staging / "tokenizer")

        progress("tracing to ONNX")
        plain = import_model(trace(interface))
        notes_of(plain).metadata_props.add(key=MAX_TOKENS, value=str(config.max_tokens))

        progress("computing the reference")
        cases = parity.make_cases(
            interface.inputs,
            pad_token_id=config.pad_token_id or 0,
            max_tokens=config.max_tokens,
            output_width=max((axis for spec in interface.outputs if isinstance(axis := spec.axes[-1], int)), default=1),
            seed=seed,
        )
        parity.save_reference(parity.compute_reference(interface, cases), staging / REFERENCE)
        inputs, outputs = interface.inputs, interface.outputs
        del model, interface

        progress("fusing")
        fused, fusions = pipeline.fuse(plain, expected=expected_fusions(config, chosen))
        del plain
        passes = list(fusions)
        entries: list[EngineEntry] = []
        ranges = None
        if calibration is not None:
            progress("calibrating")
            ranges = _calibrated(fused, Path(calibration), staging, inputs, config)
        options = (options or BuildOptions()).model_copy(update={"max_tokens": config.max_tokens})
        for precision in pipeline.PRECISIONS:
            if precision in precisions:
                progress(f"building {precision}")
                passes += _build(fused, precision, ranges, engines, options, staging, entries, progress)
        del fused

        manifest = Manifest(
            name=folder.resolve().name,
            family=config.model_type,
            task=chosen.name,
            inputs=list(inputs),
            outputs=list(outputs),
            pad_token_id=config.pad_token_id or 0,
            eos_token_ids=_as_list(config.eos_token_id),
            max_tokens=config.max_tokens,
            labels=[config.id2label.get(index, f"LABEL_{index}") for index in range(config.num_labels)],
            problem_type=config.problem_type,
            has_tokenizer=has_tokenizer,
            seed=seed,
            passes=[_fusion_entry(report) for report in passes],
            engines=entries,
            source_files={path.name: sha256(path) for path in (folder / "config.json", weights_file(folder))},
            files={
                path.relative_to(staging).as_posix(): sha256(path)
                for path in sorted(staging.rglob("*"))
                if path.is_file()
            },
            versions=installed_versions(),
        )
        (staging / FILE_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")

        progress("checking parity")
        return validate(staging, progress=progress)


def _load(folder: Path, task: Task, config: Any, max_position_embeddings: int | None) -> PreTrainedModel[Any]:
    model_class = getattr(models, FAMILY_PREFIX[config.model_type] + task.suffix)
    model: PreTrainedModel[Any] = model_class.from_pretrained(folder, max_position_embeddings=max_position_embeddings)
    return model


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else ids or []


def _calibrated(
    fused: gs.Graph, source: Path, staging: Path, inputs: Sequence[TensorSpec], config: Any
) -> dict[str, float]:
    """The ranges of activations, from a file of them or from texts; they are kept in the export.

    Raises:
        UserError: If they are of another model, or there is no tokenizer for the texts.
    """
    if source.suffix == ".json":
        ranges = Ranges.load(source)
    else:
        texts = read_texts(source)
        if not any((staging / "tokenizer").glob("*")):
            raise UserError(
                "The checkpoint has no tokenizer to read calibration texts with: put one beside its weights."
            )
        tokenizer = load_tokenizer(staging / "tokenizer", config.model_type)
        ranges = calibrate(fused, batches_of_texts(tokenizer, texts, inputs, config.max_tokens))
    found = ranges.of(fused)
    ranges.save(staging / "model" / "calibration.json")
    return found


def _build(
    fused: gs.Graph,
    precision: pipeline.Precision,
    ranges: dict[str, float] | None,
    engines: Sequence[Engine],
    options: BuildOptions,
    staging: Path,
    entries: list[EngineEntry],
    progress: Progress,
) -> list[PassReport]:
    """Writes the portable graph and every engine of one precision, and adds the engines to ``entries``.

    Of int8 there are two graphs: what ONNX Runtime's CPU runs finds ranges as it runs, TensorRT has them beforehand.
    """
    graphs: dict[str, list[Engine]] = {}
    for engine in engines:
        is_static = precision == "int8" and engine.quantization == "static"
        graphs.setdefault(f"{precision}-static" if is_static else precision, []).append(engine)
    reports: list[PassReport] = []
    for name, builders in graphs.items():
        changed, done = pipeline.change_precision(fused, precision, ranges=None if name == precision else ranges)
        reports += done
        save_onnx(changed, staging / "model" / f"{name}.onnx")
        entries += [_engine(engine, changed, precision, options, staging, progress) for engine in builders]
    return reports


def _engine(
    engine: Engine,
    graph: gs.Graph,
    precision: pipeline.Precision,
    options: BuildOptions,
    staging: Path,
    progress: Progress,
) -> EngineEntry:
    """Lowers a graph and builds an engine from it."""
    lowered, _ = pipeline.lower(graph, engine.lowering)
    destination = staging / "engines" / f"{engine.target}-{precision}{engine.suffix}"
    scratch = staging / "lowered"
    scratch.mkdir()
    save_onnx(lowered, scratch / f"{destination.stem}.onnx")
    del lowered
    asked = options if isinstance(engine, TensorRTBase) else None
    engine.build(
        scratch / f"{destination.stem}.onnx",
        destination,
        asked,
        lambda stage, done=None: progress(f"{engine.target} {precision}: {stage}", done),
    )
    shutil.rmtree(scratch)
    if isinstance(engine, TensorRTBase):
        engine.annotate(destination, lowering=engine.lowering, reason=f"the usual one of {engine.target}")
    return EngineEntry(
        target=engine.target,
        precision=precision,
        file=destination.relative_to(staging).as_posix(),
        size_bytes=sum(
            path.stat().st_size for path in destination.parent.glob(f"{destination.name}*") if path.suffix != ".json"
        ),
    )


def _copy_tokenizer(source: Path, family: str, destination: Path) -> bool:
    """Copies the tokenizer into the export; ``False`` where the checkpoint has none.

    Raises:
        TokenizerError: If it has one that cannot be loaded.
    """
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    if not any((source / name).is_file() for name in names):
        return False
    load_tokenizer(source, family).save_pretrained(destination)
    return True


def _fusion_entry(report: PassReport) -> FusionEntry:
    return FusionEntry(name=report.name, count=report.count, max_abs_difference=report.max_abs_difference)
