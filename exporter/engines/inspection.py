"""The layers of an engine, and of the network that a target's parser makes of a graph, as polygraphy lists them.

polygraphy takes ``tensorrt`` or ``tensorrt_rtx`` once for each process, and parts of it take ``tensorrt`` whatever was
chosen. So it works in a process of its own, in which the name ``tensorrt`` stands for the module of the target.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from exporter import errors
from exporter.engines import ENGINES
from exporter.engines.tensorrt_base import TensorRTBase, parse, read_record
from exporter.engines.tensorrt_rtx import TensorRTRTX
from exporter.errors import CompileError, RotaryPressError, UnavailableError, UserError

__all__ = ["answer", "list_layers"]

# Modules come from where they came from here: with -c and -m, those in the current folder would come first.
CHILD = (
    "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
    "from exporter.engines.inspection import answer; answer()"
)


def list_layers(path: Path, target: str | None = None) -> str:
    """Every layer with its tensors and attributes: of an engine as its inspector tells them, of a graph as parsed.

    Args:
        path: An engine with its record beside it, which needs a GPU that can run it; or an ONNX file.
        target: Of a graph, whose parser is to read it. The target of an engine stands in its record.

    Raises:
        UserError: If there is no such file or no such target, or the parser refuses the graph.
        BundleError: If the engine is not what was built, or is damaged.
        UnavailableError: If the target or polygraphy is not usable here.
        RotaryPressError: If polygraphy fails.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: --layers lists one engine or graph, such as OUT/engines/tensorrt-rtx-fp16.engine."
        )
    is_engine = path.with_name(f"{path.name}.json").is_file()
    if is_engine:
        built_for = read_record(path).target
        if target not in (None, built_for):
            raise UserError(f"{path} was built for {built_for}, not for {target}: leave --target out.")
        target = built_for
    takes = [name for name, engine in ENGINES.items() if isinstance(engine, TensorRTBase)]
    if target not in takes:
        raise UserError(
            f"Whose parser is to read {path}? Expected --target {' or '.join(takes)}; got {target or 'none'}. An "
            f"engine is known by {path.name}.json beside it."
        )
    if find_spec("polygraphy") is None:
        raise UnavailableError(
            "Listing layers needs polygraphy, which is not installed: pip install 'rotary-press[export]'."
        )
    mode = {"POLYGRAPHY_USE_TENSORRT_RTX": str(int(target == TensorRTRTX.target))}
    finished = subprocess.run(  # noqa: S603  # our own code; the file is an argument to it
        [sys.executable, "-c", CHILD, os.pathsep.join(sys.path), "engine" if is_engine else "graph", target, str(path)],
        env=os.environ | mode,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if finished.returncode:
        said = finished.stderr.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), f"exit code {finished.returncode}")
        raise RotaryPressError(f"polygraphy came to an end while it listed the layers of {path}: {last}")
    found = json.loads(finished.stdout)
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return str(found["layers"])


def answer() -> None:
    """What the process does that polygraphy has to itself: it writes the layers, or the error, as JSON."""
    what, target, file = sys.argv[1:]
    engine, path = ENGINES[target], Path(file)
    assert isinstance(engine, TensorRTBase)
    told = os.dup(1)
    os.dup2(2, 1)  # polygraphy and TensorRT's libraries write to what they take for the terminal
    try:
        sys.modules["tensorrt"] = engine.trt
        found = {"layers": _of_engine(engine, path) if what == "engine" else _of_graph(engine, path)}
    except RotaryPressError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    with os.fdopen(told, "w", encoding="ascii") as stream:
        json.dump(found, stream)


def _of_engine(engine: TensorRTBase, path: Path) -> str:
    from polygraphy.backend.trt.util import str_from_engine

    runner = engine.load(path)  # polygraphy would let any engine bring code for the CPU
    with runner, runner.opened() as (loaded, context):
        try:
            listed = str(str_from_engine(loaded, context, show_layers=True, show_attrs=True))
        except Exception as error:  # of polygraphy, of pybind11, of a key that a release does not write
            raise RotaryPressError(f"polygraphy cannot list the layers of {path}: {error}") from error
        return f"{listed.rstrip()}\n\nThe engine counts {loaded.num_layers} layers, those of all profiles together"


def _of_graph(engine: TensorRTBase, path: Path) -> str:
    from polygraphy.backend.trt.util import get_trt_logger, str_from_network

    from exporter.onnx_files import check_data, read_onnx

    check_data(read_onnx(path), path)  # the parser would read whatever file the graph names
    trt, log = engine.trt, get_trt_logger()
    builder = trt.Builder(log)
    network = builder.create_network(engine.network_flags(trt))
    try:
        parse(trt, network, path, log)
    except CompileError as error:  # the graph need not be one of ours
        raise UserError(f"{error} rotary-press fuse writes either.") from error
    try:
        return str(str_from_network(network, show_layers=True, show_attrs=True)).rstrip()
    except Exception as error:  # as above
        raise RotaryPressError(f"polygraphy cannot list the layers of {path}: {error}") from error
