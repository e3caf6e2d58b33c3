"""``QKVRotary`` as a Triton kernel. Importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from plugins.interleaved_rotary.kernel import load_angles, rotate
from plugins.kernel import Kernel, Launch, Request, Tactic, launch_over_heads
from plugins.qkv_rotary.contract import CONTRACT

__all__ = ["KERNEL"]


@triton.jit
def qkv_rotary(
    qkv,
    bias,
    cos,
    sin,
    rows,
    length,
    angle_stride,
    q,
    k,
    v,
    H: tl.constexpr,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    ROTARY_VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: ROWS of the B * S positions and HEADS of the heads, of q, k and v, so that angles are read once."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :, None]
    column = tl.arange(0, BLOCK_D)[None, None, :]
    batch, position = (row // length).to(tl.int64), row % length
    is_row = row < rows
    is_feature = (head < H) & (column < D)
    is_inside = is_row[:, None, None] & is_feature
    feature = head * D + column
    # In 64 bits: a tensor may have more than 2^31 elements.
    source = qkv + row.to(tl.int64)[:, None, None] * (3 * H * D) + feature
    target = ((batch[:, None, None] * H + head) * length + position[:, None, None]) * D + column

    wide_q = tl.load(source, mask=is_inside, other=0.0).to(tl.float32)
    wide_k = tl.load(source + H * D, mask=is_inside, other=0.0).to(tl.float32)
    wide_v = tl.load(source + 2 * H * D, mask=is_inside, other=0.0).to(tl.float32)
    wide_q += tl.load(bias + feature, mask=is_feature, other=0.0)
    wide_k += tl.load(bias + H * D + feature, mask=is_feature, other=0.0)
    wide_v += tl.load(bias + 2 * H * D + feature, mask=is_feature, other=0.0)

    angle = batch * angle_stride + position
    c = load_angles(cos, angle, is_row, D, BLOCK_D)
    s = load_angles(sin, angle, is_row, D, BLOCK_D)
    wide_q = rotate(wide_q, c, s, ROWS, HEADS, BLOCK_D) * SCALE
    wide_k = rotate(wide_k, c, s, ROWS, HEADS, BLOCK_D)
    if ROTARY_VALUE:
        wide_v = rotate(wide_v, c, s, ROWS, HEADS, BLOCK_D)

    tl.store(q + target, wide_q.to(q.dtype.element_ty), mask=is_inside)
    tl.store(k + target, wide_k.to(k.dtype.element_ty), mask=is_inside)
    tl.store(v + target, wide_v.to(v.dtype.element_ty), mask=is_inside)


def launch(request: Request) -> Launch:
    """How the kernel is launched; see :class:`plugins.kernel.Kernel`."""
    attributes = request.attributes
    constants = {"SCALE": float(attributes["scale"]), "ROTARY_VALUE": bool(attributes["rotary_value"])}
    return launch_over_heads(request, constants)


# Of each of the three outputs.
KERNEL = Kernel(
    CONTRACT,
    qkv_rotary,
    ("rows", "length", "angle_stride"),
    launch,
    fixed=("H", "D"),
    tactics=(Tactic(2048, 4), Tactic(1024, 4)),
)
