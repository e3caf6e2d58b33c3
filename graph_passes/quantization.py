"""What both int8 passes share: which products they quantise, and how a weight is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graph_passes.graph_pass import NearMiss
from graph_passes.graph_tools import constant_value, is_fused
from plugins.ops import RESIDUAL_LAYER_NORM

__all__ = ["Product", "products_to_quantize", "quantize_weight", "tensors_to_quantize"]

SMALLEST_SIDE = 16  # a smaller product gains nothing and loses accuracy
PRODUCTS = ("MatMul", "Gemm")


class Product(NamedTuple):
    """A MatMul of a tensor (…, K) and a constant ``weight`` (K, N) float32."""

    node: gs.Node
    weight: NDArray[np.float32]


def products_to_quantize(graph: gs.Graph) -> tuple[list[Product], list[NearMiss]]:
    """The products with a constant weight whose result reaches a ResidualLayerNorm, in the order of the graph.

    Those are q, k, v, output, FC1 and FC2 of every layer, and what projects embeddings.

    Returns:
        The products, and of every other one with a constant weight why it is left alone.
    """
    encoder = upstream_of_norms(graph)
    chosen: list[Product] = []
    left_alone: list[NearMiss] = []
    for node in graph.nodes:
        weight = constant_value(node.inputs[1]) if node.op in PRODUCTS and not node.domain else None
        if weight is None:
            continue
        if reason := reason_to_leave(node, weight, encoder):
            left_alone.append(NearMiss(node.name, reason))
        else:
            chosen.append(Product(node, weight))
    return chosen, left_alone


def tensors_to_quantize(graph: gs.Graph) -> list[gs.Tensor]:
    """What those products read, each tensor once: the tensors of which a static quantisation must know the range."""
    products, _ = products_to_quantize(graph)
    return list({id(node.inputs[0]): node.inputs[0] for node, _ in products}.values())


def reason_to_leave(node: gs.Node, weight: NDArray[Any], encoder: set[int]) -> str | None:
    """Why a product stays in float32, or ``None`` where it is to be quantised."""
    if id(node) not in encoder:
        return "it lies after the last norm of the encoder, where precision is worth more than time"
    if node.op != "MatMul":
        return f"a {node.op} is no plain product"
    if weight.ndim != 2 or min(weight.shape) < SMALLEST_SIDE:
        return f"its weight of shape {weight.shape} is too small to gain from int8"
    return None


def upstream_of_norms(graph: gs.Graph) -> set[int]:
    """The ids of all nodes from which a ResidualLayerNorm can be reached."""
    pending = [node for node in graph.nodes if is_fused(node, RESIDUAL_LAYER_NORM.contract.op_type)]
    seen: set[int] = set()
    while pending:
        for tensor in pending.pop().inputs:
            for node in tensor.inputs:
                if id(node) not in seen:
                    seen.add(id(node))
                    pending.append(node)
    return seen


def quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(K, N) float32 -> (K, N) int8 and (N,) float32 with weight ≈ int8 * scale; -128 is not used."""
    # Not below the smallest normal number: a scale of zero, or with few bits left, would not give the weights back.
    scale = np.maximum(np.abs(weight).max(axis=0) / 127.0, np.finfo(np.float32).tiny).astype(np.float32)
    return round_weight(weight, scale), scale


def round_weight(weight: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """(K, N) float32 in steps of (N,) scales."""
    steps: NDArray[np.int8] = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return steps
