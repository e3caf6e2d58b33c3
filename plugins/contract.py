"""What a custom op promises. The only place where an op's names, shapes, dtypes and tolerances are written.

Shape letters: B batch, S sequence, K keys, H heads, D head size, E features, P one or B; "S|1" is either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DOMAIN", "AttributeSpec", "PluginContract", "TensorSpec"]

DOMAIN = "rotary_press"
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output.

    Args:
        name: Its name in the op's documentation and in its function body.
        shape: One letter (or a product such as ``"D/2"``) per axis.
        dtypes: Those allowed. Specs that allow the same several dtypes share one choice, as ONNX's ``T`` does.
        optional: Whether a node may leave the tensor out (only trailing outputs).
    """

    name: str
    shape: tuple[str, ...]
    dtypes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class AttributeSpec:
    """An attribute of the node, baked into the kernel as a constant."""

    name: str
    kind: Literal["float", "int", "string"]
    meaning: str


@dataclass(frozen=True)
class PluginContract:
    """The promise of one op.

    Args:
        op_type: Never a name that an ONNX parser knows: TensorRT looks an op type up among its built-in importers
            first and ignores the domain.
        version: Of the contract; it changes when a graph made for an older one would no longer be right.
        summary: The formula.
        inputs, outputs: In the node's order.
        attributes: In the node's order.
        float32_tolerance: Largest absolute difference, for inputs of unit variance, between any two float32
            implementations of the op.
        tolerance_reason: Why that much.
        has_plugin: Whether TensorRT is to run a kernel of ours. Otherwise each lowering writes the op in standard ones:
            compilers have better kernels for it, and a plugin would stand in their way.
    """

    op_type: str
    version: int
    summary: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[AttributeSpec, ...]
    float32_tolerance: float
    tolerance_reason: str
    has_plugin: bool
    domain: str = DOMAIN
