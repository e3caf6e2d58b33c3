"""What TensorRT's own Python code makes of the plugins: asks them what an engine builder asks, and writes JSON.

Run by ``test_tensorrt_plugins.py`` in a process that can import ``tensorrt``. The library under it builds no engines
with such plugins, so the builder's part is played here, above all by :class:`Expression`.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import tensorrt as trt
from onnx import helper
from tensorrt.plugin import _lib, _tensor

from graph_passes import lower_to_plugin
from plugins.compile import KernelError
from plugins.contract import FLOATS, PluginContract, TensorSpec
from plugins.ops import OPS
from plugins.tensorrt_plugins import DTYPES, register

FIXED = {"E": 48, "H": 3, "D": 20, "D/2": 10, "3HD": 180}
SIZES = [{"B": b, "S": s, "P": p} for b, s, p in [(1, 1, 1), (2, 5, 1), (2, 5, 2), (7, 130, 7), (64, 511, 1)]]
ATTRIBUTES = {"epsilon": 1e-12, "num_heads": FIXED["H"], "scale": 0.3, "rotary_value": 1}
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "SUM": operator.add,
    "SUB": operator.sub,
    "PROD": operator.mul,
    "FLOOR_DIV": operator.floordiv,
    "LESS": operator.lt,
}


class WithoutConstructor(type(trt.IDimensionExpr)):  # type: ignore[misc]
    """TensorRT alone makes expressions; their class has no constructor, so this goes past it."""

    def __call__(cls, at: Callable[[Mapping[str, int]], int]) -> Any:
        made: Any = cls.__new__(cls)
        made.at = at
        return made


class Expression(trt.IDimensionExpr, metaclass=WithoutConstructor):  # type: ignore[misc]
    """A size that tells its value where the letters' are known."""

    def is_constant(self) -> bool:
        return False


class ExpressionBuilder:
    """Stands in for ``trt.IExprBuilder``."""

    def constant(self, value: int) -> Any:
        return Expression(lambda _: value)

    def operation(self, operation: Any, first: Any, second: Any) -> Any:
        compute = OPERATIONS[operation.name]
        return Expression(lambda sizes: int(compute(first.at(sizes), second.at(sizes))))


class Arguments(dict[int, Any]):
    """Stands in for ``trt.ISymExprs``."""

    nbSymExprs = 0  # noqa: N815  # TensorRT's name


class Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, line: str) -> None:
        self.lines.append(line)


class Recorder(trt.IPluginCreatorV3One):  # type: ignore[misc]
    """Takes the attributes that the ONNX parser has read for a plugin, and makes none."""

    def __init__(self, name: str, fields: Any) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = name, "recorder", "1"
        self.field_names = fields
        self.fields: list[tuple[str, Any, Any]] = []

    def create_plugin(self, name: str, fields: Any, phase: Any) -> None:
        self.fields = [(field.name, np.array(field.data), field.type) for field in fields]


def lowered(contract: PluginContract, outputs: Sequence[str]) -> gs.Graph:
    """One node, as the ``plugin`` lowering writes it, with attributes in no order that the contract knows."""
    inputs = [
        gs.Variable(spec.name, np.float32, [FIXED.get(letter, letter) for letter in spec.shape])
        for spec in contract.inputs
    ]
    results = [gs.Variable(spec.name, np.float32) for spec in contract.outputs]
    attributes = {spec.name: ATTRIBUTES[spec.name] for spec in reversed(contract.attributes)}
    node = gs.Node(contract.op_type, attrs=attributes, inputs=inputs, outputs=results, domain=contract.domain)
    read = [tensor for tensor in results if tensor.name in outputs]
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(contract.domain, 1)]
    return lower_to_plugin.run(gs.Graph([node], inputs, read, opset=20, import_domains=domains)).graph


def parse(graph: gs.Graph) -> list[str]:
    """What the ONNX parser says. The one that is here finds plugins of every kind, and imports those of another."""
    log = Log()
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    trt.OnnxParser(network, log).parse(gs.export_onnx(graph, do_type_check=False).SerializeToString())
    return log.lines


def expression(letter: str) -> Any:
    return Expression(lambda sizes: {**FIXED, **sizes}[letter])


def prepare(plugin: Any, specs: Sequence[TensorSpec], count: int, dtype: str, fixed: Mapping[str, int]) -> list[Any]:
    """Asks for dtypes and shapes of the outputs, and describes the tensors with -1 for the sizes that are not fixed."""
    members = [DTYPES[dtype if len(spec.dtypes) > 1 else spec.dtypes[0]][1] for spec in specs]
    types = [getattr(trt.DataType, member) for member in members]
    plugin.get_output_data_types(types[:count], [len(spec.shape) for spec in specs[:count]])
    plugin.get_output_shapes([[expression(of) for of in spec.shape] for spec in specs[:count]], [], ExpressionBuilder())
    tensors = []
    for spec, of in zip(specs, types, strict=True):
        tensor = trt.DynamicPluginTensorDesc()
        tensor.desc.dims = tuple(fixed.get(letter, -1) for letter in spec.shape)
        tensor.desc.type, tensor.desc.format = of, trt.TensorFormat.LINEAR
        tensors.append(tensor)
    return tensors


def ask(plugin: Any, specs: Sequence[TensorSpec], count: int, dtype: str) -> dict[str, Any]:
    """Asks a plugin everything in the builder's order, with dynamic batch and length."""
    tensors = prepare(plugin, specs, count, dtype, FIXED)
    shapes = [[size._expr for size in desc.shape_expr] for desc in plugin.output_descs]
    supported = plugin.get_supported_format_combinations(tensors, count)
    plugin.configure_plugin(tensors[:count], tensors[count:])
    return {
        "output_types": [of.name for of in plugin.output_types],
        "shapes": [[[size.at(sizes) for size in shape] for shape in shapes] for sizes in SIZES],
        "types": [
            [of.type.name for of in supported[at : at + len(specs)]] for at in range(0, len(supported), len(specs))
        ],
        "formats": sorted({of.format.name for of in supported}),
        "tactics": {tactic: kernel(plugin, tensors, count, tactic) for tactic in plugin.get_valid_tactics()},
    }


def kernel(plugin: Any, tensors: Sequence[Any], count: int, tactic: int) -> dict[str, Any]:
    """The kernel of a tactic, and its launch at several sizes."""
    plugin.set_tactic(tactic)
    params, arguments = SimpleNamespace(), Arguments()
    plugin.get_launch_params([], tensors, count, params, arguments, ExpressionBuilder())
    name, ptx = plugin.get_kernel([of.desc for of in tensors[:count]], [of.desc for of in tensors[count:]])

    def at(sizes: Mapping[str, int], parts: str) -> list[int]:
        return [getattr(params, part).expr.at(sizes) for part in parts.split()]

    return {
        "name": name,
        "ptx": ptx.decode(),
        "grids": [at(sizes, "grid_x grid_y grid_z") for sizes in SIZES],
        "blocks": [at(sizes, "block_x block_y block_z") for sizes in SIZES],
        "shared_memory": at({}, "shared_mem"),
        "arguments": [[arguments[of].expr.at(sizes) for of in range(arguments.nbSymExprs)] for sizes in SIZES],
        "argument_types": [arguments[of].dtype.name for of in range(arguments.nbSymExprs)],
    }


def refusal(action: Callable[[], object]) -> str | None:
    try:
        action()
    except KernelError as error:
        return str(error)
    return None


def examine(contract: PluginContract, outputs: tuple[str, ...]) -> dict[str, Any]:
    """All about one plugin, found and made as the ONNX parser finds and makes it."""
    name, registry = contract.plugin_name(outputs), trt.get_plugin_registry()
    definition = _lib.QDP_REGISTRY[f"{contract.domain}::{name}"]
    creator = registry.get_creator(name, "1", contract.domain)
    graph = lowered(contract, outputs)
    messages = parse(graph)
    recorder = Recorder(name, creator.field_names)
    registry.register_creator(recorder, "recorder")
    graph.nodes[0].attrs["plugin_namespace"] = "recorder"
    parse(graph)
    fields = trt.PluginFieldCollection([trt.PluginField(*field) for field in recorder.fields])

    def make() -> Any:
        strict = trt.QuickPluginCreationRequest.STRICT_AOT
        return creator.create_plugin(name, contract.domain, fields, trt.TensorRTPhase.BUILD, strict)

    def with_nothing_fixed() -> None:
        plugin = make()
        kernel(plugin, prepare(plugin, specs, count, "float32", {}), count, 1)

    specs, count = (
        (*contract.inputs, *(spec for spec in contract.outputs if spec.name in outputs)),
        len(contract.inputs),
    )
    dtypes = FLOATS if len(outputs) == len(contract.outputs) else FLOATS[:1]  # compiling takes its time
    return {
        "creator": [creator.name, creator.plugin_version, creator.plugin_namespace],
        "inputs": definition.input_tensor_names,
        "attributes": {attribute: of.__name__ for attribute, of in definition.input_attrs.items()},
        "outputs": definition.num_outputs,
        "messages": messages,
        "values": make().attrs,
        "by_dtype": {dtype: ask(make(), specs, count, dtype) for dtype in dtypes},
        "with_nothing_fixed": refusal(with_nothing_fixed),
    }


def main(report: Path) -> None:
    _tensor.SymExprImpl.expr = _tensor.SymExprImpl.dtype = None  # TensorRT's own can be written and not read
    names = register(89)
    found: dict[str, Any] = {
        "fixed": FIXED,
        "sizes": SIZES,
        "attributes": ATTRIBUTES,
        "names": names,
        "again": register(89),
        "other_target": refusal(lambda: register(90)),
        "plugins": {
            f"{op.contract.domain}::{op.contract.plugin_name(outputs)}": examine(op.contract, outputs)
            for op in OPS.values()
            if op.has_kernel
            for outputs in op.contract.variants
        },
    }
    report.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
