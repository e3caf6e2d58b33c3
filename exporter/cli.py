"""The command line: verbs, exit codes, and the only place that prints.

Exit codes: 0 done and within tolerance; 1 parity failed, or a compiler stage broke its promise; 2 the user's mistake.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.progress import Progress as Display
from rich.progress import ProgressColumn, SpinnerColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from exporter.errors import CompileError, RotaryPressError, UnavailableError, UserError

if TYPE_CHECKING:
    from exporter.engines import Progress
    from exporter.engines.schedule import Comparison, Schedule
    from exporter.fusing import FusionReport

__all__ = ["app", "main"]

P = ParamSpec("P")
app = typer.Typer(
    name="rotary-press",
    help="Compiles RoFormer and RoBERTa-PreLayerNorm checkpoints into engines that are proved to compute the same.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Into a file or a pipe, tables are as wide as they need to be; on a terminal they fit it.
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Precision = Annotated[
    list[str] | None, typer.Option("--precision", help="fp32, fp16 or int8; repeat for several (default: all).")
]
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="A folder written by rotary-press export.")]


def main() -> None:
    """The console script."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries tell their developers is not for our users
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without Chinese still shows the rest
    app()


def reported(verb: Callable[P, int]) -> Callable[P, None]:
    """Turns a verb's errors into one message and an exit code, and its result into the exit code."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = verb(*args, **kwargs)
        except (RotaryPressError, OSError, MemoryError) as error:  # a full disk is the user's to mend, too
            code = 1 if isinstance(error, CompileError) else 2
            message = str(error)
            if isinstance(error, MemoryError):
                message = f"There is too little memory ({message or 'none is left'}): free some, or use a larger one."
            if kwargs.get("json_output"):
                print_json({"error": {"type": type(error).__name__, "message": message}})
            else:
                err.print(f"error: {message}")
                if isinstance(error, CompileError):
                    err.print("Please report this with the output of rotary-press doctor.")
        raise typer.Exit(code)

    return run


@app.command("export")
@reported
def export_verb(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint folder in the Hugging Face layout.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    task: Annotated[
        str | None, typer.Option(help="Overrides the task that the checkpoint's config.json names.")
    ] = None,
    max_position_embeddings: Annotated[
        int | None,
        typer.Option(metavar="N", help="Extend RoFormer's computed positions to N; by default the config's are used."),
    ] = None,
    position_ids: Annotated[
        bool, typer.Option("--position-ids", help="Make learnt positions an input instead of counting them.")
    ] = False,
    precision: Precision = None,
    target: Annotated[
        list[str] | None, typer.Option(help="What engines are built for; repeat for several (default: onnxruntime).")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts, one per line, for int8 of TensorRT; or a calibration.json."),
    ] = None,
    sm: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Of TensorRT-RTX: an architecture, such as 89; repeat.")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=MIN:OPT:MAX,...", help="Of TensorRT: how large axes may be, as for build."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the inputs that parity is judged on.")] = 0,
    json_output: Json = False,
) -> int:
    """Export a checkpoint to a folder of verified engines."""
    from exporter import export

    options: dict[str, Any] = {"max_position_embeddings": max_position_embeddings, "position_ids": position_ids}
    if precision:
        options["precisions"] = precision
    if target:
        options["targets"] = target
    if sm or profile:
        from exporter.building import make_options

        options["options"] = make_options(profiles=profile or (), sms=sm or ())
    if calibration:
        options["calibration"] = calibration
    with stages(quiet=json_output) as progress:
        report = export(source, destination, task=task, seed=seed, progress=progress, **options)
    return print_report(report, json_output, f"Wrote {destination}")


@app.command("fuse")
@reported
def fuse_verb(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", help="A graph in float32 or half precision, from any exporter.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    lowering: Annotated[
        str,
        typer.Option(
            help="portable (custom ops with function bodies), onnxruntime, native (standard ops, as TensorRT schedules "
            "them best) or plugin (TensorRT with our plugins)."
        ),
    ] = "portable",
    require_fused: Annotated[
        bool, typer.Option("--require-fused", help="Fail, and write nothing, if nothing fuses.")
    ] = False,
    json_output: Json = False,
) -> int:
    """Fuse what a graph holds, each rewrite proved on the graph itself, and say what fused and what nearly did."""
    from exporter import fuse

    with stages(quiet=json_output) as progress:
        report = fuse(source, destination, lowering=lowering, require_fused=require_fused, progress=progress)
    if json_output:
        print_json(report.model_dump())
        return 0
    print_fusions(report)
    out.print(f"Wrote {destination}")
    return 0


@app.command("plugins")
@reported
def plugins_verb(
    source: Annotated[Path, typer.Argument(metavar="OUT|MODEL.onnx", help="An exported folder, or a graph.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the kernels go (default: OUT/plugins).")
    ] = None,
    sm: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="An architecture, such as 89; repeat for several (default: all)."),
    ] = None,
    ptx_version: Annotated[
        str | None, typer.Option(metavar="X.Y", help="For drivers older than the default version asks for.")
    ] = None,
    json_output: Json = False,
) -> int:
    """Compile the kernels of the TensorRT plugins that a model needs to PTX, and say how each is launched."""
    from exporter import write_kernels

    with stages(quiet=json_output) as progress:
        report = write_kernels(source, output, sms=sm, ptx_version=ptx_version, progress=progress)
    if json_output:
        print_json(report.model_dump())
        return 0
    table = Table(title=f"Kernels of {report.source}, first of the tactics")
    for heading in ("plugin", "dtype", "sizes", "nodes", "sm"):
        table.add_column(heading)
    for heading in ("registers", "spilled", "shared", "PTX", "driver"):
        table.add_column(heading, justify="right")
    for entry in report.kernels:
        if entry.tactic == 0:
            table.add_row(
                entry.plugin,
                entry.dtype,
                " ".join(f"{letter}={size}" for letter, size in entry.sizes.items()),
                str(sum(entry.nodes.values())),
                str(entry.sm),
                str(entry.registers),
                str(entry.spilled),
                str(entry.shared_memory),
                entry.ptx_version,
                entry.driver,
            )
    out.print(table)
    for name, reason in report.left_out.items():
        out.print(f"left out {name}: {reason}")
    out.print(f"Wrote {len(report.kernels)} kernels to {output or source / 'plugins'}")
    return 0


@app.command("build")
@reported
def build_verb(
    source: Annotated[
        Path,
        typer.Argument(metavar="MODEL.onnx", help="A graph from any exporter, fused or not; it has the precision."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="OUT.engine", help="The file to write.")],
    target: Annotated[str, typer.Option(help="onnxruntime, tensorrt-rtx or tensorrt.")],
    lowering: Annotated[
        str | None, typer.Option(help="The form to build from, as for fuse (default: the target's usual one).")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the engine is for, such as rtx-4090; an unknown name lists all."),
    ] = None,
    sm: Annotated[
        list[int] | None, typer.Option(metavar="N", help="An architecture, such as 89; repeat for several.")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=MIN:OPT:MAX,...",
            help="How large axes may be, such as batch=1:1:8,sequence=1:128:512; repeat for another profile.",
        ),
    ] = None,
    profile_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='The same as JSON, {"sequence": [1, 128, 512]} or a list of such.'),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(metavar="0-5", help="How long the builder may search.")
    ] = None,
    workspace_mb: Annotated[int | None, typer.Option(metavar="MB", help="The most scratch memory of a kernel.")] = None,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out, to be put back on the device.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Run on later releases of the same major version, too.")
    ] = False,
    hardware_compatible: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="ampere-plus or same-compute-capability.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measured kernels, read and written.")
    ] = None,
    json_output: Json = False,
) -> int:
    """Build an engine from a graph, on this machine, and write down how."""
    from exporter import build
    from exporter.building import make_options

    options = make_options(
        profiles=profile or (),
        profile_file=profile_file,
        sms=sm or (),
        optimization_level=optimization_level,
        workspace_mb=workspace_mb,
        strip_weights=strip_weights,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        timing_cache=timing_cache,
    )
    with stages(quiet=json_output) as progress:
        report = build(
            source, destination, target=target, device=device, lowering=lowering, options=options, progress=progress
        )
    if json_output:
        print_json(report.model_dump())
        return 0
    kernels = f", {' and '.join(map(str, report.kernels))} kernels" if report.kernels else ""
    out.print(f"{report.target} {report.precision}: {report.size_bytes / 1e6:.2f} MB{kernels}")
    out.print(f"built from {report.lowering}: {report.reason}")
    out.print(f"Wrote {destination}")
    return 0


@app.command("validate")
@reported
def validate_verb(
    folder: Folder,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the report goes (default: OUT/report).")
    ] = None,
    polygraphy: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write inputs.json and reference.json there, for polygraphy's --load-inputs and --load-outputs.",
        ),
    ] = None,
    json_output: Json = False,
) -> int:
    """Judge every engine of an export, on this machine, against float32 PyTorch."""
    from exporter import validate

    with stages(quiet=json_output) as progress:
        result = validate(folder, report_dir=report, polygraphy_dir=polygraphy, progress=progress)
    written = [report or folder / "report", *([polygraphy] if polygraphy else [])]
    return print_report(result, json_output, f"Wrote {' and '.join(map(str, written))}")


@app.command("run")
@reported
def run_verb(
    folder: Folder,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="One or more texts (question-answering: questions).")
    ],
    context: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="question-answering: where the answer is; one for all or one for each."),
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="multiple-choice: an ending; repeat for each.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="text-generation: how many at most (default: 64).")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="text-generation: above 0 draws tokens (default: 0, the best one).")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="text-generation: draw from the best K (default: all).")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="text-generation: draw from the best with this probability (default: 1).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="text-generation: of the draws (default: 0).")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8 (default: the first exported).")] = None,
    target: Annotated[str, typer.Option(help="Which engine.")] = "onnxruntime",
    json_output: Json = False,
) -> int:
    """Run an exported model on text."""
    from exporter import Session
    from exporter.generation import Sampling

    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    session = Session(folder, precision=precision, target=target)
    if given:
        predictions = session.generate(texts, sampling=Sampling(**given))
    else:
        contexts = None if context is None else context * len(texts) if len(context) == 1 else context
        predictions = session.predict(texts, contexts=contexts, choices=choice and [choice] * len(texts))
    if json_output:
        print_json(predictions)
    else:
        for prediction in predictions:
            print_prediction(prediction)
    return 0


@app.command("inspect")
@reported
def inspect_verb(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="OUT|MODEL.onnx|ENGINE", help="An exported folder, a graph, or an engine built from one."
        ),
    ],
    nodes: Annotated[bool, typer.Option("--nodes", help="Of a graph, list the nodes as well.")] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", help="List the layers as well: of an engine (on a GPU), or of the network made of a graph."
        ),
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Of a graph, whose network --layers lists: tensorrt-rtx or tensorrt.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="ENGINE", help="Of an engine, set its kernels beside another's.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of an engine, what its times are estimated for, such as rtx-4090."),
    ] = None,
    json_output: Json = False,
) -> int:
    """Show what a folder, a graph or an engine holds; of a graph what would fuse, of an engine its kernels."""
    if target is not None and not layers:
        raise UserError("--target says whose network --layers lists: give both, or neither.")
    if path.with_name(f"{path.name}.json").is_file():
        return inspect_engine(path, compare, device, list_layers(path, target) if layers else None, json_output)
    if compare is not None or device is not None:
        raise UserError(f"--compare and --device are for engines with a record beside them; {path} has none.")
    facts = inspect_folder(path) if path.is_dir() else inspect_graph(path)
    network = list_layers(path, target) if layers else None
    fusions = None if path.is_dir() else inspect_fusions(path, facts)
    listing = list_nodes(path) if nodes and not path.is_dir() else None
    if json_output:
        if fusions is not None:
            facts["fusions"] = fusions if isinstance(fusions, str) else fusions.model_dump()
        lists = {"nodes": listing, "layers": network}
        print_json(facts | {name: text.splitlines() for name, text in lists.items() if text})
        return 0
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {entry}" for name, entry in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        out.print(f"{key:>10}  {value}")
    if isinstance(fusions, str):
        out.print(f"{'fusions':>10}  {fusions}")
    elif fusions is not None:
        out.print(f"{'fusions':>10}")
        print_fusions(fusions)
    for text in filter(None, (listing, network)):
        out.print(text)
    return 0


@app.command("doctor")
@reported
def doctor_verb(json_output: Json = False) -> int:
    """Show what is installed here and which targets can be used."""
    from exporter.doctor import diagnose

    diagnosis = diagnose()
    if json_output:
        print_json(diagnosis.model_dump())
        return 0
    out.print(f"rotary-press {diagnosis.rotary_press}, Python {diagnosis.python}, {diagnosis.cpus} CPUs")
    out.print(f"{diagnosis.system}, {diagnosis.processor.name}")
    out.print(f"{'int8':>12}  ONNX Runtime multiplies with {diagnosis.processor.int8}")
    for extra in diagnosis.extras:
        packages = ", ".join(f"{name} {version or 'MISSING'}" for name, version in extra.packages.items())
        out.print(f"{extra.name:>12}  {extra.purpose}: {packages}")
        if extra.missing and extra.name != "base":
            out.print(f"{'':>12}  to install: pip install 'rotary-press[{extra.name}]'")
    for gpu in diagnosis.gpus or ["none that nvidia-smi lists"]:
        out.print(f"{'GPU':>12}  {gpu}")
    for target, reason in diagnosis.targets.items():
        unable = diagnosis.runs[target]
        state = "usable" if unable is None else f"builds engines, cannot run them: {unable}"
        out.print(f"{target:>12}  {state if reason is None else f'not usable: {reason}'}")
    return 0


def list_layers(path: Path, target: str | None) -> str:
    """The layers of an engine, or of the network that the target's parser makes of a graph."""
    from exporter.engines import inspection

    return inspection.list_layers(path, target)


def inspect_engine(path: Path, other: Path | None, device: str | None, layers: str | None, json_output: bool) -> int:
    """Shows how an engine was made, its kernels by part, and what they should take on a device."""
    from exporter.engines import devices
    from exporter.engines.schedule import compare
    from exporter.engines.tensorrt_base import read_record

    record = read_record(path)
    named = device or record.device
    place = devices.find_device(named) if named else None
    seconds = []
    if place is not None:
        seconds = [devices.estimate_on(place, schedule).estimated_seconds for schedule in record.schedules]
    comparisons = []
    if other is not None:
        beside = read_record(other)
        if not record.schedules or not beside.schedules:
            raise UserError(f"{other if record.schedules else path} was built by what does not tell its kernels.")
        if len(record.schedules) != len(beside.schedules):
            raise UserError(
                f"{path} has {len(record.profiles)} profiles and {other} has {len(beside.profiles)}: build both with "
                f"the same ones (--profile) to compare them."
            )
        comparisons = [compare(*both) for both in zip(record.schedules, beside.schedules, strict=True)]
    if json_output:
        print_json(
            record.model_dump(mode="json")
            | {"estimated_seconds": seconds, "estimated_for": place and place.name}
            | {"comparisons": [comparison.model_dump(mode="json") for comparison in comparisons]}
            | ({"layers": layers.splitlines()} if layers else {})
        )
        return 0
    out.print(f"{record.target} {record.version}, {record.size_bytes / 1e6:.2f} MB, built in {record.seconds:.1f} s")
    out.print(f"from {record.lowering}: {record.reason}")
    for ranges in record.profiles:
        out.print(f"takes {', '.join(f'{axis} {of}' for axis, of in ranges.items())}")
    at = [", ".join(f"{axis} {of.split(':')[1]}" for axis, of in ranges.items()) for ranges in record.profiles]
    if comparisons:
        for comparison, sizes in zip(comparisons, at, strict=True):
            print_comparison(comparison, f"{path.name} | {other.name if other else ''} at {sizes}")
    else:
        for schedule, sizes in zip(record.schedules, at, strict=False):
            print_schedule(schedule, f"Kernels of {path.name} at {sizes}")
    if not record.schedules:
        out.print("its kernels are not known: the builder did not tell them; --layers lists its layers, on the GPU")
    if place is not None and seconds:
        least = " and ".join(f"{1e6 * each:.0f} us" for each in seconds)
        out.print(f"estimated for {place.title} from its datasheet, not measured: at least {least}")
    if layers:
        out.print(layers)
    return 0


def print_schedule(schedule: Schedule, title: str) -> None:
    """Prints the kernels of one profile in order."""
    table = Table(title=title)
    for heading in ("part", "kernel", "type"):
        table.add_column(heading)
    for heading in ("MB read", "MB written", "GFLOP"):
        table.add_column(heading, justify="right")
    for kernel in schedule.kernels:
        numbers = kernel.bytes_read / 1e6, kernel.bytes_written / 1e6, kernel.operations / 1e9
        table.add_row(kernel.part, kernel.name[:60], kernel.type, *(f"{number:.3f}" for number in numbers))
    out.print(table)
    out.print(summary(schedule))


def print_comparison(comparison: Comparison, title: str) -> None:
    """Prints two schedules part by part."""
    table = Table(title=title)
    table.add_column("part")
    for heading in ("kernels", "MB moved", "GFLOP"):
        table.add_column(heading, justify="right")
    for row in comparison.rows:
        table.add_row(
            row.part or "(not known)",
            " | ".join(map(str, row.kernels)),
            " | ".join(f"{moved / 1e6:.2f}" for moved in row.bytes),
            " | ".join(f"{count / 1e9:.3f}" for count in row.operations),
        )
    out.print(table)
    out.print(f"waits for other streams: {comparison.waits[0]} | {comparison.waits[1]}")


def summary(schedule: Schedule) -> str:
    """A schedule in a line."""
    layers = schedule.kernels_per_layer.values()
    per_layer = f" ({sum(layers) / len(layers):.1f} per layer)" if layers else ""
    moved = (schedule.bytes_read + schedule.bytes_written) / 1e6
    return f"{len(schedule.kernels)} kernels{per_layer}, {moved:.2f} MB moved, {schedule.waits} waits for other streams"


def inspect_folder(folder: Path) -> dict[str, Any]:
    """The facts of an exported folder."""
    from exporter.engines.tensorrt_base import read_record
    from exporter.files import inside
    from exporter.manifest import load_manifest

    manifest = load_manifest(folder, check_files=True)
    parity = folder / "report" / "parity.json"
    verdicts = {}
    if parity.is_file():
        from pydantic import ValidationError

        from exporter.parity import ParityReport

        try:
            report = ParityReport.model_validate_json(parity.read_bytes())
        except ValidationError as error:
            raise UserError(f"{parity} is damaged: run rotary-press validate {folder}.") from error
        for result in report.results:
            verdict = "PASS" if result.passed else f"FAIL ({'; '.join(result.failures)})"
            verdicts[f"{result.target} {result.precision} {result.output}"] = verdict
    kernels = {}
    for entry in manifest.engines:
        engine = inside(folder, entry.file)
        if engine.with_name(f"{engine.name}.json").is_file():
            told = " and ".join(summary(schedule) for schedule in read_record(engine).schedules)
            kernels[f"{entry.target} {entry.precision}"] = told or "not told by the builder"
    return {
        "model": manifest.name,
        "family": manifest.family,
        "task": manifest.task,
        "inputs": {spec.name: list(spec.axes) for spec in manifest.inputs},
        "outputs": {spec.name: list(spec.axes) for spec in manifest.outputs},
        "positions": manifest.max_tokens,
        "labels": manifest.labels,
        "passes": {entry.name: entry.count for entry in manifest.passes},
        "engines": {f"{entry.target} {entry.precision}": entry.size_bytes for entry in manifest.engines},
        **({"kernels": kernels} if kernels else {}),
        "parity": verdicts,
        "source": manifest.source_files,
        "versions": manifest.versions,
    }


def inspect_graph(path: Path) -> dict[str, Any]:
    """The facts of an ONNX file: interface, passes it went through, custom ops, and how often each op occurs."""
    try:
        from exporter.onnx_files import read_onnx
        from graph_passes.pipeline import passes_run_on
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"Inspecting a graph needs {error.name}, which is not installed: pip install 'rotary-press[export]'."
        ) from error
    model = read_onnx(path)

    def interface(values: Any) -> dict[str, list[Any]]:
        return {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in values
        }

    ops = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return {
        "opsets": {entry.domain or "onnx": entry.version for entry in model.opset_import},
        "inputs": interface(model.graph.input),
        "outputs": interface(model.graph.output),
        "passes": passes_run_on(model),
        "functions": [f"{function.domain}::{function.name}" for function in model.functions],
        "ops": dict(ops.most_common()),
    }


def list_nodes(path: Path) -> str:
    """The nodes of a graph with their tensors, shapes and attributes, as polygraphy writes them."""
    from polygraphy.backend.onnx.util import str_from_onnx

    from exporter.onnx_files import read_onnx

    return str(str_from_onnx(read_onnx(path), show_layers=True, show_attrs=True))


def inspect_fusions(path: Path, facts: dict[str, Any]) -> FusionReport | str:
    """What fuses in a graph, or why that cannot be told."""
    from exporter.fusing import find_fusions

    if last := next((name for name in facts["passes"] if not name.startswith(("prepare", "fuse_"))), None):
        return f"not looked for: the graph went through {last}, after which nothing is fused"
    try:
        return find_fusions(path)
    except UserError as error:
        return str(error)


def print_fusions(report: FusionReport) -> None:
    """Prints how often each fusion applied, where first, and what nearly fused."""
    for entry in report.passes:
        measured = "" if entry.max_abs_difference is None else f"  (largest difference {entry.max_abs_difference:.1e})"
        out.print(f"{entry.count:>6}  {entry.name}{measured}")
        if entry.places:
            more = f", and {len(entry.places) - 2} more" if len(entry.places) > 2 else ""
            out.print(f"{'at':>6}  {', '.join(place.node for place in entry.places[:2])}{more}")
        for miss in entry.near_misses:
            out.print(f"{'left':>6}  {miss.node}: {miss.reason}")


def print_report(report: Any, json_output: bool, written: str) -> int:
    """Prints a parity report; the exit code says whether it passed."""
    if json_output:
        print_json(report.model_dump() | {"passed": report.passed})
        return 0 if report.passed else 1
    table = Table(title=f"{report.model} ({report.task}) against float32 PyTorch")
    for heading in ("engine", "output"):
        table.add_column(heading)
    for heading in ("max abs", "cosine", "SQNR dB", "top-1"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for result in report.results:
        metrics = result.metrics
        table.add_row(
            f"{result.target} {result.precision}",
            result.output,
            f"{metrics.max_abs:.2e}",
            f"{metrics.cosine:.6f}",
            "exact" if metrics.sqnr_db is None else f"{metrics.sqnr_db:.1f}",
            "" if metrics.top1_agreement is None else f"{metrics.top1_agreement:.2%}",
            "PASS" if result.passed else "FAIL",
        )
    out.print(table)
    for result in report.results:
        for failure in result.failures:
            out.print(
                f"FAIL {result.target} {result.precision} {result.output}: {failure} (worst: {result.worst_case})"
            )
    for engine, reason in report.not_run.items():
        out.print(f"NOT RUN {engine}: {reason}. Run rotary-press validate where it can.")
    out.print(f"Judged on {report.processor.name}; ONNX Runtime multiplied int8 with {report.processor.int8}.")
    out.print(f"{written}: {'PASS' if report.passed else 'FAIL'}")
    return 0 if report.passed else 1


def print_prediction(prediction: dict[str, Any]) -> None:
    """Prints one prediction of a session, as its task means it."""
    out.print(prediction["text"])
    if "scores" in prediction:
        for label, score in sorted(prediction["scores"].items(), key=lambda item: -item[1]):
            out.print(f"  {score:7.2%}  {label}")
    elif "values" in prediction:
        for label, value in prediction["values"].items():
            out.print(f"  {value:.6g}  {label}")
    elif "tokens" in prediction:
        for token in prediction["tokens"]:
            out.print(f"  {token['score']:7.2%}  {token['label']:<16} {token['text']!r}")
    elif "answer" in prediction:
        out.print(f"  {prediction['score']:7.2%}  {prediction['answer']}")
    elif "choices" in prediction:
        for entry in sorted(prediction["choices"], key=lambda entry: -entry["score"]):
            out.print(f"  {entry['score']:7.2%}  {entry['choice']}")
    elif "continuation" in prediction:
        out.print(f"  {prediction['continuation']}")
    elif "masks" in prediction:
        for mask in prediction["masks"]:
            for word in mask["words"]:
                out.print(f"  {word['score']:7.2%}  {word['word']}")
        if not prediction["masks"]:
            out.print("  no mask token in the text: nothing to predict")
    else:
        rows = prediction["last_hidden_state"]
        out.print(f"  last_hidden_state ({len(rows)}, {len(rows[0])}); use --json for the numbers")


def print_json(document: Any) -> None:
    """Prints one JSON document, in ASCII, which every terminal and pipe takes."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


class ShareBar(ProgressColumn):
    """A bar where the share that is done is known, else nothing."""

    def render(self, task: Task) -> ProgressBar | str:
        """See rich."""
        return "" if task.total is None else ProgressBar(task.total, task.completed, width=30)


@contextmanager
def stages(*, quiet: bool) -> Iterator[Progress]:
    """Shows the current stage: on a terminal with a bar and the time, elsewhere a line each, nothing if ``quiet``."""
    from exporter.engines import silent

    if quiet:
        yield silent
    elif err.is_terminal:
        name = TextColumn("{task.description}", markup=False)
        columns = SpinnerColumn(), name, ShareBar(), TaskProgressColumn(), TimeElapsedColumn()
        with Display(*columns, console=err, transient=True) as display:
            display.add_task("starting", total=None)
            task = display.tasks[0]

            def draw(stage: str, done: float | None = None) -> None:
                task.description = stage
                task.completed = done or 0.0
                task.total = None if done is None else 1.0  # no method of rich's takes a total away

            yield draw
    else:
        told = ""

        def tell(stage: str, _done: float | None = None) -> None:
            nonlocal told
            if stage != told:
                err.print(stage)
                told = stage

        yield tell


if __name__ == "__main__":
    main()
