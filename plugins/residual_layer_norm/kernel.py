"""``ResidualLayerNorm`` and its quantised sister as one Triton kernel. Importing this needs Triton."""

from __future__ import annotations

from collections.abc import Callable, Collection

import triton
import triton.language as tl

from plugins.kernel import Kernel, Launch, Request, Tactic, power_of_two
from plugins.residual_layer_norm.contract import CONTRACT

__all__ = ["KERNEL", "launch_of", "residual_layer_norm"]


@triton.jit
def residual_layer_norm(
    x,
    residual,
    bias,
    gamma,
    beta,
    scale,
    rows,
    quantized,
    y,
    s,
    E: tl.constexpr,
    EPSILON: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One program: whole rows, kept in registers, so that mean and variance need no second pass over memory.

    What a node does not have (scale, quantized, y, s) is None, and no parameter of the compiled kernel.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_E)
    is_column = column < E
    is_inside = (row < rows)[:, None] & is_column[None, :]
    # In 64 bits: a tensor may have more than 2^31 elements.
    at = row.to(tl.int64)[:, None] * E + column[None, :]
    total = tl.load(x + at, mask=is_inside, other=0.0).to(tl.float32)
    total += tl.load(bias + column, mask=is_column, other=0.0)[None, :]
    total += tl.load(residual + at, mask=is_inside, other=0.0).to(tl.float32)
    if s is not None:
        tl.store(s + at, total.to(s.dtype.element_ty), mask=is_inside)

    mean = tl.sum(total, axis=1) / E
    centred = tl.where(is_column[None, :], total - mean[:, None], 0.0)
    # The mean is rounded. Of a row of one value that leaves 2^-24 of it in every element, which an epsilon of 1e-12
    # makes as large as gamma; what is left has a mean again.
    rest = tl.sum(centred, axis=1) / E
    centred = tl.where(is_column[None, :], centred - rest[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / E
    inverse = 1.0 / tl.sqrt(variance + EPSILON)
    g = tl.load(gamma + column, mask=is_column, other=0.0)[None, :]
    b = tl.load(beta + column, mask=is_column, other=0.0)[None, :]
    norm = centred * inverse[:, None] * g + b
    if y is not None:
        tl.store(y + at, norm.to(y.dtype.element_ty), mask=is_inside)
    if quantized is not None:
        steps = tl.clamp(norm / tl.load(scale), -128.0, 127.0)
        # 1.5 * 2^23: from there on float32 has no digits behind the point, so a sum is rounded, halves to even.
        steps = (steps + 12582912.0) - 12582912.0
        tl.store(quantized + at, steps.to(tl.int8), mask=is_inside)


def launch_of(optional: Collection[str]) -> Callable[[Request], Launch]:
    """How the kernel is launched, given which of its parameters a node of the op may lack.

    See :class:`plugins.kernel.Kernel`.
    """

    def launch(request: Request) -> Launch:
        batch, length, features = (request.sizes[letter] for letter in "BSE")
        block = power_of_two(features)
        rows = max(request.tactic.elements // block, 1)
        return Launch(
            constants={
                "E": features,
                "EPSILON": float(request.attributes["epsilon"]),
                "ROWS": rows,
                "BLOCK_E": block,
                **{name: None for name in optional if name not in request.outputs},
            },
            arguments={"rows": batch * length},
            grid=((batch * length + (rows - 1)) // rows, 1, 1),
            # Rows that are longer than a tactic's share get more threads, not more registers. With 32 warps, exchanging
            # elements between them would take more shared memory than a plugin may have.
            num_warps=min(request.tactic.num_warps * max(block // request.tactic.elements, 1), 16),
        )

    return launch


TACTICS = (Tactic(4096, 4), Tactic(1024, 4), Tactic(1024, 1))
KERNEL = Kernel(
    CONTRACT, residual_layer_norm, ("rows",), launch_of(("scale", "quantized", "s")), fixed=("E",), tactics=TACTICS
)
