"""What a kernel is, and how it is launched: like TensorRT launches it, so that nothing else has to be believed.

A kernel's parameters are the contract's inputs, then extra int32 arguments, then the outputs. Grid and arguments are
formulas of the tensors' sizes: with ints they give numbers, with TensorRT's shape expressions they are evaluated for
every shape at run time, with :class:`Formula` they give text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from plugins.contract import PluginContract

__all__ = ["Formula", "Kernel", "Launch", "Request", "Tactic", "heads_tile", "launch_over_heads", "power_of_two"]


@dataclass(frozen=True)
class Tactic:
    """One way to cut the work. TensorRT times them all and keeps the fastest.

    Args:
        elements: About how many elements of an output one program computes.
        num_warps: Of one program; a warp is 32 threads.
    """

    elements: int
    num_warps: int


@dataclass(frozen=True)
class Request:
    """What is to be launched.

    Args:
        sizes: By the letters of the contract: ints for those that are compiled in, for others ints or expressions.
        attributes: Of the node.
        outputs: The names of those that the node has.
        tactic: How to cut the work.
    """

    sizes: Mapping[str, Any]
    attributes: Mapping[str, Any]
    outputs: Collection[str]
    tactic: Tactic


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Args:
        constants: The function's compile-time parameters.
        arguments: The extra int32 arguments, in the function's order; ints or shape expressions.
        grid: The number of programs along x, y and z; ints or shape expressions.
        num_warps: Of one program.
    """

    constants: dict[str, Any]
    arguments: dict[str, Any]
    grid: tuple[Any, Any, Any]
    num_warps: int


@dataclass(frozen=True)
class Kernel:
    """The Triton kernel of one op.

    Args:
        contract: Of the op.
        function: Made by ``triton.jit``. Parameters: inputs, arguments, outputs, constants.
        arguments: The names of the extra int32 arguments.
        launch: How to launch it.
        fixed: The letters whose sizes are compiled in.
        tactics: The first is the one to take where nothing is measured.
    """

    contract: PluginContract
    function: Any
    arguments: tuple[str, ...]
    launch: Callable[[Request], Launch]
    fixed: tuple[str, ...]
    tactics: tuple[Tactic, ...]


def power_of_two(size: int) -> int:
    """The smallest power of two that is no less; Triton's blocks have such sizes."""
    return 1 << max(size - 1, 0).bit_length()


def heads_tile(heads: int, size: int, tactic: Tactic) -> dict[str, int]:
    """How a program shares its elements among rows and heads of that size, by the names of the kernels' constants."""
    block = power_of_two(size)
    of_heads = min(power_of_two(heads), 4)  # enough for the angles, which all heads share, to be read for little
    return {"ROWS": max(tactic.elements // (block * of_heads), 1), "HEADS": of_heads, "BLOCK_D": block}


def launch_over_heads(request: Request, constants: Mapping[str, Any]) -> Launch:
    """Programs that share out the B * S positions along x and the heads along y.

    Args:
        request: Of an op with the sizes B, S, H, D and P.
        constants: What the kernel has beyond ``H``, ``D`` and the tile.

    Returns:
        The launch of a kernel with the arguments ``rows``, ``length`` and ``angle_stride``, the number of rows in a
        table of angles: 0 where one table serves the whole batch.
    """
    batch, length, heads, size, tables = (request.sizes[letter] for letter in "BSHDP")
    tile = heads_tile(heads, size, request.tactic)
    return Launch(
        constants={"H": heads, "D": size, **constants, **tile},
        arguments={
            "rows": batch * length,
            "length": length,
            "angle_stride": length - length * (tables < 2),
        },
        grid=((batch * length + (tile["ROWS"] - 1)) // tile["ROWS"], -(-heads // tile["HEADS"]), 1),
        num_warps=request.tactic.num_warps,
    )


class Formula:
    """A size that is not known yet, as text: what formulas give when they are computed with it is text again."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def _with(self, operator: str, other: object) -> Formula:
        return Formula(f"({self} {operator} {other})")

    def __add__(self, other: object) -> Formula:
        return self._with("+", other)

    def __sub__(self, other: object) -> Formula:
        return self._with("-", other)

    def __mul__(self, other: object) -> Formula:
        return self._with("*", other)

    def __floordiv__(self, other: object) -> Formula:
        return self._with("//", other)

    def __lt__(self, other: object) -> Formula:
        return self._with("<", other)
