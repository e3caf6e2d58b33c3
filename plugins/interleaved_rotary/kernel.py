"""``InterleavedRotary`` as a Triton kernel. Importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from plugins.interleaved_rotary.contract import CONTRACT
from plugins.kernel import Kernel, Launch, Request, Tactic, launch_over_heads

__all__ = ["KERNEL", "load_angles", "rotate"]


@triton.jit
def rotate(x, cos, sin, ROWS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr):
    """Turns x (ROWS, HEADS, D), cos, sin (ROWS, D/2), all float32 -> (ROWS, HEADS, D)."""
    even, odd = tl.split(tl.reshape(x, (ROWS, HEADS, D // 2, 2)))
    c, s = cos[:, None, :], sin[:, None, :]
    return tl.reshape(tl.join(even * c - odd * s, odd * c + even * s), (ROWS, HEADS, D))


@triton.jit
def load_angles(angles, row, is_inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The rows of (P S, D/2) float32 -> (ROWS, BLOCK_D/2)."""
    column = tl.arange(0, BLOCK_D // 2)[None, :]
    return tl.load(angles + row[:, None] * (D // 2) + column, mask=is_inside[:, None] & (column < D // 2), other=0.0)


@triton.jit
def interleaved_rotary(
    x,
    cos,
    sin,
    rows,
    length,
    angle_stride,
    y,
    H: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: ROWS of the B * S positions, HEADS of the heads, so that angles are read once for several heads."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :, None]
    column = tl.arange(0, BLOCK_D)[None, None, :]
    batch, position = (row // length).to(tl.int64), row % length
    is_row = row < rows
    is_inside = is_row[:, None, None] & (head < H) & (column < D)
    # In 64 bits: a tensor may have more than 2^31 elements.
    at = ((batch[:, None, None] * H + head) * length + position[:, None, None]) * D + column
    wide = tl.load(x + at, mask=is_inside, other=0.0).to(tl.float32)
    angle = batch * angle_stride + position
    c = load_angles(cos, angle, is_row, D, BLOCK_D)
    s = load_angles(sin, angle, is_row, D, BLOCK_D)
    turned = rotate(wide, c, s, ROWS, HEADS, BLOCK_D)
    tl.store(y + at, turned.to(y.dtype.element_ty), mask=is_inside)


def launch(request: Request) -> Launch:
    """How the kernel is launched; see :class:`plugins.kernel.Kernel`."""
    return launch_over_heads(request, {})


KERNEL = Kernel(
    CONTRACT,
    interleaved_rotary,
    ("rows", "length", "angle_stride"),
    launch,
    fixed=("H", "D"),
    tactics=(Tactic(4096, 4), Tactic(2048, 4)),
)
