"""Fuse RoFormer's rotation of adjacent pairs.

    even = x[..., 0::2];  odd = x[..., 1::2]
    Reshape(Concat(Unsqueeze(even * cos - odd * sin), Unsqueeze(odd * cos + even * sin)))
        ->  InterleavedRotary(x, cos, sin)

x: (B, H, S, D) with D static and even. cos, sin: (P, S, D/2), unsqueezed to (P, 1, S, D/2) and shared by q, k and all
layers: they stay inputs. The half-split convention (first and second half of the head instead of even and odd) does
not match: its slices have step 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graph_passes.equivalence import largest_difference
from graph_passes.graph_pass import GraphPass, Mismatch, NearMiss, PassResult
from graph_passes.graph_tools import constant_value, producer, replace, tensor_shape, unique_name
from plugins.ops import INTERLEAVED_ROTARY

__all__ = ["PASS"]

CONTRACT = INTERLEAVED_ROTARY.contract


@dataclass(frozen=True)
class Site:
    """A place where the op is spelt out: the nodes and the boundary."""

    nodes: tuple[gs.Node, ...]
    x: gs.Tensor
    cos: gs.Tensor
    sin: gs.Tensor
    y: gs.Tensor


@dataclass(frozen=True)
class Product:
    """slice(x, start::2) * Unsqueeze(angle, axis 1)."""

    nodes: tuple[gs.Node, ...]
    x: gs.Tensor
    start: int
    angle: gs.Tensor


def run(graph: gs.Graph) -> PassResult:
    """Replaces every rotation by one node, each verified on probes first."""
    worst, count, near_misses = 0.0, 0, []
    for node in list(graph.nodes):
        try:
            site = match(node)
            if site is None:
                continue
            worst = max(worst, verify(node, site, seed=count))
        except Mismatch as mismatch:
            near_misses.append(mismatch.near_miss)
            continue
        y = gs.Variable(unique_name(graph, f"{site.y.name}_rotary"), site.y.dtype, site.y.shape)
        fused = gs.Node(CONTRACT.op_type, y.name, {}, [site.x, site.cos, site.sin], [y])
        fused.domain = CONTRACT.domain
        graph.nodes.append(fused)
        replace(graph, site.y, y)
        count += 1
    return PassResult(graph, count, tuple[NearMiss, ...](near_misses), worst)


def match(reshape: gs.Node) -> Site | None:
    """Reads the rotation that ends in ``reshape``; ``None`` where it does not even begin to look like one.

    Raises:
        Mismatch: If it looks like one but is not.
    """
    concat = producer(reshape.inputs[0], "Concat") if reshape.op == "Reshape" else None
    if concat is None or len(concat.inputs) != 2 or concat.attrs["axis"] not in (-1, 4):
        return None
    unsqueezes = [node for tensor in concat.inputs if (node := producer(tensor, "Unsqueeze")) is not None]
    ends = [node for pair in unsqueezes if (node := producer(pair.inputs[0], "Add", "Sub")) is not None]
    if len(ends) != 2:
        return None
    first, second = ends
    if (first.op, second.op) != ("Sub", "Add"):
        raise Mismatch(concat, f"the pair must be a difference and a sum, in this order; got {first.op}, {second.op}")
    for unsqueeze in unsqueezes:
        axis = constant_value(unsqueeze.inputs[1])
        if axis is None or axis.tolist() not in ([-1], [4]):
            raise Mismatch(concat, f"the pair must be joined on a new last axis; got axis {axis}")

    even_cos, odd_sin = (read_product(tensor, first) for tensor in first.inputs)
    sums = [read_product(tensor, second) for tensor in second.inputs]
    if sums[0].start == 0:  # addition commutes
        sums.reverse()
    odd_cos, even_sin = sums
    starts = [product.start for product in (even_cos, odd_sin, odd_cos, even_sin)]
    if starts != [0, 1, 1, 0]:
        raise Mismatch(first, f"even and odd elements must enter as 0, 1, 1, 0; got {starts}")
    x, cos, sin = even_cos.x, even_cos.angle, odd_sin.angle
    if any(product.x is not x for product in (odd_sin, odd_cos, even_sin)):
        raise Mismatch(first, "the four products must read one tensor")
    if odd_cos.angle is not cos or even_sin.angle is not sin or cos is sin:
        raise Mismatch(first, "both elements of a pair must turn by the same angle")

    shape, angle_shape = tensor_shape(x), tensor_shape(cos)
    if shape is None or len(shape) != 4 or not isinstance(shape[-1], int) or shape[-1] % 2:
        raise Mismatch(first, f"x must be (B, H, S, D) with D static and even; got {shape}")
    if angle_shape is None or len(angle_shape) != 3 or angle_shape[1:] != (shape[2], shape[-1] // 2):
        raise Mismatch(first, f"the angles must be (P, S, D/2) for x {shape}; got {angle_shape}")
    if angle_shape[0] not in (1, shape[0]) or tensor_shape(sin) != angle_shape:
        raise Mismatch(first, f"the angles must be shared by the batch or one per row; got {angle_shape}")
    if tensor_shape(reshape.outputs[0]) != shape:
        raise Mismatch(reshape, f"the result must have the shape of x, {shape}; got {reshape.outputs[0].shape}")

    products = (even_cos, odd_sin, odd_cos, even_sin)
    nodes = (reshape, concat, *unsqueezes, first, second, *(node for product in products for node in product.nodes))
    return Site(tuple({id(node): node for node in nodes}.values()), x, cos, sin, reshape.outputs[0])


def read_product(tensor: gs.Tensor, consumer: gs.Node) -> Product:
    """Reads slice(x, start::2) * Unsqueeze(angle, 1), in either order.

    Raises:
        Mismatch: If it is anything else.
    """
    product = producer(tensor, "Mul")
    if product is None:
        raise Mismatch(consumer, f"{tensor.name} must be a product of a slice and an angle")
    for x_side, angle_side in (product.inputs, product.inputs[::-1]):
        slice_, unsqueeze = producer(x_side, "Slice"), producer(angle_side, "Unsqueeze")
        if slice_ is not None and unsqueeze is not None:
            break
    else:
        raise Mismatch(product, "a product must be of a slice and an unsqueezed angle")
    axis = constant_value(unsqueeze.inputs[1])
    if axis is None or axis.tolist() != [1]:
        raise Mismatch(unsqueeze, f"the angles must be spread over the heads, axis 1; got {axis}")
    bounds = [constant_value(bound) for bound in slice_.inputs[1:]]
    if len(bounds) != 4 or any(bound is None or bound.size != 1 for bound in bounds):
        raise Mismatch(slice_, "a slice must have constant start, end, axis and step")
    start, end, axis_number, step = (int(bound.item()) for bound in bounds if bound is not None)
    shape = tensor_shape(slice_.inputs[0])
    if step != 2:
        raise Mismatch(slice_, f"the slices must take every second element; got step {step} (half-split has step 1)")
    if shape is None or axis_number not in (-1, len(shape) - 1):
        raise Mismatch(slice_, f"the slices must be on the last axis; got axis {axis_number} of shape {shape}")
    if start not in (0, 1) or not isinstance(shape[-1], int) or end < shape[-1]:
        raise Mismatch(slice_, f"the slices must start at 0 or 1 and reach the end; got {start}:{end} of {shape[-1]}")
    return Product((product, slice_, unsqueeze), slice_.inputs[0], start, unsqueeze.inputs[0])


def verify(node: gs.Node, site: Site, *, seed: int) -> float:
    """The measured difference between the spelt-out form and the op.

    Raises:
        Mismatch: If it is beyond the contract's tolerance.
    """
    difference = largest_difference(
        site.nodes, (site.x, site.cos, site.sin), (site.y,), contract=CONTRACT, attributes={}, seed=seed
    )
    if not difference <= CONTRACT.float32_tolerance:
        raise Mismatch(node, f"looks like {CONTRACT.op_type} but differs by {difference:.3g} on probe inputs")
    return difference


PASS = GraphPass("fuse_rotary", run, requires=("prepare",), forbids=("cast_fp16", "quantize_dynamic"))
