"""What a custom op promises. The only place where an op's names, shapes, dtypes and tolerances are written.

Shape letters: B batch, S sequence, K keys, H heads, D head size, E features, P one or B. "S|1" is either, "3HD"
a product and "D/2" a half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

__all__ = ["DOMAIN", "FLOATS", "AttributeSpec", "PluginContract", "TensorSpec"]

DOMAIN = "rotary_press"
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output.

    Args:
        name: Its name in the op's documentation and in its function body.
        shape: One letter (or a product such as ``"D/2"``) per axis.
        dtypes: Those allowed. Specs that allow the same several dtypes share one choice, as ONNX's ``T`` does.
        optional: Whether a node may leave the tensor out (only outputs, never the first).
    """

    name: str
    shape: tuple[str, ...]
    dtypes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class AttributeSpec:
    """An attribute of the node, baked into the kernel as a constant.

    Args:
        name: Of the attribute.
        kind: Of its value.
        meaning: What it is for.
        size: The shape letter whose size it gives, where the shapes of the inputs do not.
    """

    name: str
    kind: Literal["float", "int", "string"]
    meaning: str
    size: str = ""


@dataclass(frozen=True)
class PluginContract:
    """The promise of one op.

    Args:
        op_type: Never a name that an ONNX parser knows: TensorRT looks an op type up among its built-in importers
            first and ignores the domain.
        summary: The formula.
        inputs, outputs: In the node's order.
        attributes: In the node's order.
        float32_tolerance: Largest absolute difference, for inputs of unit variance, between any two float32
            implementations of the op.
        tolerance_reason: Why that much.
    """

    op_type: str
    summary: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[AttributeSpec, ...]
    float32_tolerance: float
    tolerance_reason: str
    domain: str = DOMAIN

    @property
    def variants(self) -> Iterator[tuple[str, ...]]:
        """The names of the outputs that a node may have: all, then with fewer and fewer of the optional ones."""
        optional = [spec.name for spec in self.outputs if spec.optional]
        for count in range(len(optional), -1, -1):
            for kept in combinations(optional, count):
                yield tuple(spec.name for spec in self.outputs if not spec.optional or spec.name in kept)

    def plugin_name(self, outputs: Sequence[str]) -> str:
        """What the op is called in TensorRT, where a plugin has one number of outputs: each variant is a plugin.

        Args:
            outputs: The names of those that the node has.
        """
        everything = len(outputs) == len(self.outputs)
        return self.op_type if everything else "_".join((self.op_type, *outputs))

    def sizes(self, shapes: Mapping[str, Sequence[Any]], attributes: Mapping[str, Any]) -> dict[str, Any]:
        """What each letter stands for.

        Args:
            shapes: Of the inputs, by name. An element is an int or anything that can be multiplied by one, or ``None``
                where it is not known.
            attributes: Of the node.

        Returns:
            Elements of the shapes, or their doubles, and attributes, by letter. The first that is known decides.
        """
        sizes = {spec.size: attributes[spec.name] for spec in self.attributes if spec.size}
        for spec in self.inputs:
            for letter, size in zip(spec.shape, shapes[spec.name], strict=True):
                if size is None:
                    continue
                if letter.endswith("/2"):
                    sizes.setdefault(letter[:-2], size * 2)
                elif len(letter) == 1:
                    sizes.setdefault(letter, size)
        return sizes
