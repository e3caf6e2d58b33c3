"""The kernels that a model's plugins need, compiled to PTX: an export or a graph to a folder, on any machine.

TensorRT compiles them by itself while it builds an engine. This is for whoever launches them otherwise, and for whoever
wants to know, without a GPU, what will run on one. Needs the extras ``export`` and ``plugins``.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import BaseModel

from exporter.engines import Progress, silent
from exporter.errors import CompileError, UnavailableError, UserError
from exporter.files import new_folder
from exporter.fusing import bring_to
from exporter.manifest import load_manifest
from exporter.onnx_files import load_onnx
from graph_passes.lower_to_plugin import plugins_of
from plugins.compile import TARGETS, CompiledKernel, KernelError, compile_kernel, kernels, version_for, why_not

__all__ = ["FILE_NAME", "KernelEntry", "KernelReport", "write_kernels"]

FILE_NAME = "kernels.json"


class Parameter(BaseModel):
    """A parameter of a kernel: an input, an extra argument or an output."""

    name: str
    type: str


class KernelEntry(BaseModel):
    """One kernel for one architecture.

    Attributes:
        file: The PTX, beside this document.
        plugin: The plugin's name in TensorRT.
        dtype: Of the tensors whose dtype may be chosen.
        sizes: What is compiled in, by the contract's letters.
        attributes: Of the nodes, compiled in.
        tactic: Which way of cutting the work, from 0; the first is the default.
        sm: The architecture. The code runs on it and on all later ones.
        entry: The name to launch.
        parameters: In order.
        arguments: The formulas of the extra arguments, by name.
        grid: The formulas of the number of blocks along x, y and z.
        block: Threads of a block along x, y and z.
        shared_memory: Dynamic, in bytes.
        registers: Of a thread.
        spilled: Bytes of registers that did not fit and are stored and loaded again.
        cuda, driver: The oldest CUDA release and the oldest Linux driver that load it for sure.
        nodes: How many nodes of each graph call it.
    """

    file: str
    sha256: str
    plugin: str
    dtype: str
    sizes: dict[str, int]
    attributes: dict[str, float | int | str]
    tactic: int
    sm: int
    entry: str
    parameters: list[Parameter]
    arguments: dict[str, str]
    grid: list[str]
    block: list[int]
    shared_memory: int
    registers: int
    spilled: int
    ptx_version: str
    cuda: str
    driver: str
    nodes: dict[str, int]


class KernelReport(BaseModel):
    """The content of ``kernels.json``.

    Attributes:
        source: What was read.
        letters: What the formulas are made of.
        kernels: All that were compiled.
        left_out: Graphs without plugins, with the reason.
    """

    source: str
    letters: str = "B batch, S sequence, P rows of the angles (1 or B); // is the division of integers"
    kernels: list[KernelEntry]
    left_out: dict[str, str]


class Wanted(NamedTuple):
    """What some nodes of a graph ask for."""

    op_type: str
    outputs: tuple[str, ...]
    dtype: str
    sizes: tuple[tuple[str, int], ...]
    attributes: tuple[tuple[str, Any], ...]


def write_kernels(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    sms: Sequence[int] | None = None,
    ptx_version: str | None = None,
    progress: Progress | None = None,
) -> KernelReport:
    """Compiles every kernel that the plugins of an export, or of one graph, need, and writes them with what they need.

    Args:
        source: A folder written by :func:`exporter.export`, or an ONNX file, fused or not.
        out: The folder to write; ``plugins`` inside an export by default. One that holds ``kernels.json`` is replaced.
        sms: The architectures; all of :data:`plugins.compile.TARGETS` by default.
        ptx_version: Such as ``"8.5"``, for a device whose driver is older than what is chosen by default.
        progress: Called at the start of each stage, see :class:`exporter.engines.Progress`; ``None`` is silent.

    Raises:
        UserError: If the source or an option is not usable, or nothing in it is a plugin.
        UnavailableError: If Triton is not installed.
        CompileError: If a kernel does not compile to what TensorRT would launch.
    """
    if reason := why_not():
        raise UnavailableError(reason)
    progress = progress or silent
    path = Path(source)
    sms = list(dict.fromkeys(sms or TARGETS))
    try:
        versions = {sm: version_for(sm, _version(ptx_version)) for sm in sms}
    except KernelError as error:
        raise UserError(str(error)) from error
    if out is None and not path.is_dir():
        raise UserError("Say where the kernels of a graph go: --output FOLDER.")
    wanted, left_out = _wanted(path, progress)
    if not wanted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"Nothing in {path} is a plugin, so there is no kernel to compile ({reasons or 'no graphs'}).")
    with new_folder(Path(out) if out is not None else path / "plugins", replaces=FILE_NAME) as folder:
        entries = []
        for (sm, version), (want, nodes) in product(versions.items(), wanted.items()):
            progress(f"compiling {want.op_type} ({want.dtype}) for sm_{sm}")
            entries += list(_compiled(folder, want, nodes, sm, version))
        report = KernelReport(source=path.name, kernels=entries, left_out=left_out)
        (folder / FILE_NAME).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return report


def _version(text: str | None) -> int | None:
    """``"8.5"`` as 85."""
    if text is None:
        return None
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal() and len(minor) == 1):
        raise UserError(f"{text!r} is no PTX version; expected one such as 8.5.")
    return int(major) * 10 + int(minor)


def _wanted(path: Path, progress: Progress) -> tuple[dict[Wanted, Counter[str]], dict[str, str]]:
    """What the plugins of each graph ask for, how many nodes of which graphs ask for it, and what has no plugins."""
    if path.is_dir():
        manifest = load_manifest(path, check_files=True)
        names = [name for name in manifest.files if name.startswith("model/") and name.endswith(".onnx")]
        graphs = {name: path / name for name in names}
    else:
        graphs = {path.name: path}
    wanted: dict[Wanted, Counter[str]] = {}
    left_out = {}
    for name, file in graphs.items():
        progress(f"looking for plugins in {name}")
        graph = load_onnx(file)
        try:
            lowered = bring_to(graph, "plugin", file)
        except UserError as error:
            left_out[name] = str(error)
            continue
        for want in _asked(lowered, name):
            wanted.setdefault(want, Counter())[name] += 1
        if not any(name in nodes for nodes in wanted.values()):
            left_out[name] = "none of our ops that have kernels is in it"
    return wanted, left_out


def _asked(graph: gs.Graph, name: str) -> Iterator[Wanted]:
    """What each plugin of a graph asks for.

    Raises:
        UserError: If a size that a kernel is compiled for is not in the graph.
    """
    table = kernels()
    for node, contract, outputs in plugins_of(graph):
        shapes = {
            spec.name: [size if isinstance(size, int) else None for size in tensor.shape]
            for spec, tensor in zip(contract.inputs, node.inputs, strict=True)
        }
        attributes = {
            # A file holds float32: what has not been in one yet must give the same kernel.
            spec.name: float(np.float32(value)) if isinstance(value := node.attrs[spec.name], float) else value
            for spec in contract.attributes
        }
        sizes = contract.sizes(shapes, attributes)
        if unknown := [letter for letter in table[contract.op_type].fixed if letter not in sizes]:
            raise UserError(
                f"{name}: a kernel for {node.name} must be compiled for its sizes {unknown}, which the graph leaves "
                f"open (shapes {shapes}). Export it with fixed hidden sizes."
            )
        fixed = {letter: sizes[letter] for letter in table[contract.op_type].fixed}
        first = next(tensor for spec, tensor in zip(contract.inputs, node.inputs, strict=True) if len(spec.dtypes) > 1)
        dtype = np.dtype(first.dtype).name
        yield Wanted(contract.op_type, outputs, dtype, tuple(fixed.items()), tuple(attributes.items()))


def _compiled(folder: Path, want: Wanted, nodes: Counter[str], sm: int, ptx_version: int) -> Iterator[KernelEntry]:
    """Compiles and writes a kernel by each of its tactics."""
    kernel = kernels()[want.op_type]
    for tactic in range(len(kernel.tactics)):
        try:
            code = compile_kernel(
                want.op_type,
                dtype=want.dtype,
                fixed=dict(want.sizes),
                attributes=dict(want.attributes),
                sm=sm,
                outputs=want.outputs,
                tactic=tactic,
                ptx_version=ptx_version,
            )
        except KernelError as error:
            raise CompileError(str(error)) from error
        entry = _entry(code, want, nodes, tactic)
        (folder / entry.file).write_text(code.ptx, encoding="utf-8")
        yield entry


def _entry(code: CompiledKernel, want: Wanted, nodes: Counter[str], tactic: int) -> KernelEntry:
    plugin = kernels()[want.op_type].contract.plugin_name(want.outputs)
    digest = hashlib.sha256(code.ptx.encode()).hexdigest()
    sizes = "".join(f"{letter}{size}" for letter, size in want.sizes)
    return KernelEntry(
        file=f"{plugin}-{want.dtype}-{sizes}-sm_{code.sm}-{tactic}-{digest[:8]}.ptx",  # attributes are in the digest
        sha256=digest,
        plugin=plugin,
        dtype=want.dtype,
        sizes=dict(want.sizes),
        attributes=dict(want.attributes),
        tactic=tactic,
        sm=code.sm,
        entry=code.name,
        parameters=[Parameter(name=name, type=of) for name, of in code.parameters],
        arguments=code.arguments,
        grid=list(code.grid),
        block=list(code.block),
        shared_memory=code.shared_memory,
        registers=code.registers,
        spilled=code.spilled,
        ptx_version=f"{code.ptx_version // 10}.{code.ptx_version % 10}",
        cuda=code.cuda,
        driver=code.driver,
        nodes=dict(nodes),
    )
