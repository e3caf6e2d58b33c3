"""The ops as TensorRT plugins: what the engine builder asks, answered from the contracts.

A plugin is three functions in Python that run while an engine is built. ``register`` tells the outputs' shapes and
dtypes, ``autotune`` the dtypes and tactics that there are, ``aot_impl`` gives the PTX and how to launch it, which the
engine keeps: running it needs neither Python nor a library of ours
(https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/tensorrt.plugin/index.html).

TensorRT reads the functions' signatures, so one definition for all ops builds them from the contracts. Attributes are
not kept in an engine; they are compiled into the kernel. Launch formulas are TensorRT's shape expressions, so batch and
sequence stay dynamic.

Importing this needs no TensorRT; calling :func:`register` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, Signature
from typing import Any

import numpy as np

from plugins.compile import KernelError, compile_kernel, kernels, version_for, why_not
from plugins.contract import PluginContract
from plugins.kernel import Request
from plugins.ops import OPS, Op

__all__ = ["register"]

KINDS: dict[str, type] = {"float": float, "int": int, "string": str}
# By the contracts' names: in an AutoTuneCombination, and in tensorrt.DataType.
DTYPES = {
    "float32": ("FP32", "FLOAT"),
    "float16": ("FP16", "HALF"),
    "bfloat16": ("BF16", "BF16"),
    "int8": ("INT8", "INT8"),
}
_REGISTERED: dict[str, tuple[int, int]] = {}


def register(sm: int, *, ptx_version: int | None = None) -> tuple[str, ...]:
    """Makes all our plugins known to TensorRT's registry, under the names that the ``plugin`` lowering writes.

    Args:
        sm: The architecture that their kernels are compiled for; engines run on it and, where TensorRT builds them for
            later ones too, on those. See :data:`plugins.compile.TARGETS`.
        ptx_version: See :func:`plugins.compile.version_for`.

    Returns:
        The plugins' names, namespace included.

    Raises:
        KernelError: If TensorRT or Triton is missing or too old, there is no such architecture or version, or they are
            registered for something else already: a registry keeps what it has.
    """
    trt = _load_tensorrt()
    version = version_for(sm, ptx_version)
    for op in OPS.values():
        for outputs in op.contract.variants if op.has_kernel else ():
            name = f"{op.contract.domain}::{op.contract.plugin_name(outputs)}"
            if name not in _REGISTERED:
                _define(trt, name, op, outputs, sm, version)
                _REGISTERED[name] = (sm, version)
            elif _REGISTERED[name] != (sm, version):
                first, of_version = _REGISTERED[name]
                target = f"sm_{first} as PTX {of_version / 10}"
                raise KernelError(f"{name} is registered for {target} already: use a process for each target.")
    return tuple(_REGISTERED)


def _load_tensorrt() -> Any:
    """The module.

    Raises:
        KernelError: If it or something that its plugins need is missing or too old.
    """
    if find_spec("tensorrt") is None:
        raise KernelError("TensorRT is not installed. Install it with: pip install 'rotary-press[tensorrt]'.")
    trt = import_module("tensorrt")
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise KernelError(f"TensorRT {trt.__version__} has no plugins with kernels compiled ahead; 10.9 is the first.")
    if _release(trt) < (11, 2) and _release(np) >= (2, 4):
        raise KernelError(
            f"TensorRT {trt.__version__} reads a plugin's attributes in a way that NumPy {np.__version__} refuses. "
            "Install TensorRT 11.2 or later, or: pip install 'numpy<2.4'."
        )
    if reason := why_not():
        raise KernelError(reason)
    return trt


def _release(module: Any) -> tuple[int, ...]:
    return tuple(map(int, module.__version__.split(".")[:2]))


def _define(trt: Any, name: str, op: Op, outputs: tuple[str, ...], sm: int, ptx_version: int) -> None:
    """Registers one variant of one op."""
    trtp = import_module("tensorrt.plugin")
    contract, kernel = op.contract, kernels()[op.contract.op_type]
    written = [spec for spec in contract.outputs if spec.name in outputs]

    def describe(*descs: Any, **attributes: Any) -> tuple[Any, ...]:
        """The outputs' shapes and dtypes; the inputs' shapes are expressions, some of which stand for nothing yet."""
        shapes = {spec.name: list(desc.shape_expr) for spec, desc in zip(contract.inputs, descs, strict=True)}
        sizes = contract.sizes(shapes, attributes)
        chosen = descs[_first_of_choice(contract)].dtype
        return tuple(
            trtp.from_shape_expr(
                tuple(sizes[letter] for letter in spec.shape),
                chosen if len(spec.dtypes) > 1 else getattr(trt.DataType, DTYPES[spec.dtypes[0]][1]),
            )
            for spec in written
        )

    def combine(*_descs: Any) -> list[Any]:
        """The dtypes, all of one choice together, and the tactics, which TensorRT counts from 1."""
        dtypes = ["|".join(DTYPES[dtype][0] for dtype in spec.dtypes) for spec in (*contract.inputs, *written)]
        tactics = list(range(1, len(kernel.tactics) + 1))
        return [trtp.AutoTuneCombination(", ".join(dtypes), "LINEAR", tactics)]

    def implement(*arguments: Any) -> tuple[Any, ...]:
        """The kernel for the dtypes and the tactic at hand, and its launch."""
        *given, _outputs, tactic = arguments
        descs, values = given[: len(contract.inputs)], given[len(contract.inputs) :]
        attributes = {spec.name: value for spec, value in zip(contract.attributes, values, strict=True)}
        # What is compiled in must be a number (-1 is none); all else stays an expression, which multiplies its like.
        exact = {
            spec.name: [size if size >= 0 else None for size in desc.shape]
            for spec, desc in zip(contract.inputs, descs, strict=True)
        }
        shapes = {spec.name: list(desc.shape_expr) for spec, desc in zip(contract.inputs, descs, strict=True)}
        known = contract.sizes(exact, attributes)
        fixed = {letter: int(known[letter]) for letter in kernel.fixed if letter in known}
        compiled = compile_kernel(
            contract.op_type,
            dtype=_dtype_name(trt, descs[_first_of_choice(contract)].dtype),
            fixed=fixed,
            attributes=attributes,
            sm=sm,
            outputs=outputs,
            tactic=tactic - 1,
            ptx_version=ptx_version,
        )
        sizes = contract.sizes(shapes, attributes) | fixed
        launch = kernel.launch(Request(sizes, attributes, outputs, kernel.tactics[tactic - 1]))
        params = trtp.KernelLaunchParams(*launch.grid, *compiled.block, compiled.shared_memory)
        extra = trtp.SymIntExprs.from_tuple(tuple(trtp.SymInt32(value) for value in launch.arguments.values()))
        return compiled.name, compiled.ptx, params, extra

    tensors = [(spec.name, trtp.TensorDesc) for spec in contract.inputs]
    attributes = [(spec.name, KINDS[spec.kind]) for spec in contract.attributes]
    results = ("outputs", _tuple_of(trtp.TensorDesc))
    code = _tuple_of(str, str, trtp.KernelLaunchParams, trtp.SymIntExprs)
    trtp.register(name)(_signed(describe, [*tensors, *attributes], _tuple_of(*[trtp.TensorDesc] * len(written))))
    trtp.autotune(name)(_signed(combine, [*tensors, results], list.__class_getitem__(trtp.AutoTuneCombination)))
    trtp.aot_impl(name)(_signed(implement, [*tensors, *attributes, results, ("tactic", int)], code))


def _signed(function: Callable[..., Any], parameters: Sequence[tuple[str, Any]], result: Any) -> Callable[..., Any]:
    """The function with the signature that TensorRT is to read."""
    signature = Signature(
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation) for name, annotation in parameters],
        return_annotation=result,
    )
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _tuple_of(*types: Any) -> Any:
    return tuple.__class_getitem__(types)


def _first_of_choice(contract: PluginContract) -> int:
    """The index of the first input whose dtype may be chosen; it decides that of all the others."""
    return next(index for index, spec in enumerate(contract.inputs) if len(spec.dtypes) > 1)


def _dtype_name(trt: Any, dtype: Any) -> str:
    return next(name for name, (_, member) in DTYPES.items() if dtype == getattr(trt.DataType, member))
