"""Fuse a residual sum with the norm that follows it.

    s = x + residual;  y = LayerNormalization(s, gamma, beta)      ->      y, s = ResidualLayerNorm(x, residual, …)

x, residual: (B, S, E), equal shapes: a sum that broadcasts is left alone. s is an output of the fused node only where
something else reads it: pre-norm encoders carry the sum on, post-norm encoders drop it. The sum of embeddings is such a
sum too; the norm inside the first block of RoBERTa-PreLayerNorm has no sum before it and stays as it is.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graph_passes.equivalence import largest_difference
from graph_passes.graph_pass import GraphPass, Mismatch, NearMiss, PassResult
from graph_passes.graph_tools import producer, replace, tensor_shape, unique_name
from plugins.ops import RESIDUAL_LAYER_NORM

__all__ = ["PASS"]

CONTRACT = RESIDUAL_LAYER_NORM.contract


def run(graph: gs.Graph) -> PassResult:
    """Replaces every sum and norm by one node, each verified on probes first."""
    worst, count, near_misses = 0.0, 0, []
    for norm in list(graph.nodes):
        if norm.op != "LayerNormalization" or norm.domain:
            continue
        try:
            add = match(norm)
            attributes = {"epsilon": float(norm.attrs.get("epsilon", 1e-5))}
            total, y = add.outputs[0], norm.outputs[0]
            carries_sum = len(total.outputs) > 1 or any(output is total for output in graph.outputs)
            outputs = (y, total) if carries_sum else (y,)
            worst = max(worst, verify(norm, add, outputs, attributes, seed=count))
        except Mismatch as mismatch:
            near_misses.append(mismatch.near_miss)
            continue
        inputs = [*add.inputs, *norm.inputs[1:]]
        norm.outputs.clear()  # before the sum is redirected, so that the old norm is no reader of it
        norm.inputs.clear()
        results = [
            gs.Variable(unique_name(graph, f"{output.name}_fused"), output.dtype, output.shape) for output in outputs
        ]
        for old, new in zip(outputs, results, strict=True):
            replace(graph, old, new)
        if not carries_sum:
            # An output that is left out is named "": ONNX Runtime refuses a node with fewer outputs than its body.
            results.append(gs.Variable.empty())
        graph.nodes.append(
            gs.Node(CONTRACT.op_type, results[0].name, attributes, inputs, results, domain=CONTRACT.domain)
        )
        count += 1
    return PassResult(graph, count, tuple[NearMiss, ...](near_misses), worst)


def match(norm: gs.Node) -> gs.Node:
    """The Add before a LayerNormalization.

    Raises:
        Mismatch: If there is none, or it broadcasts, or the norm is not over the last axis with gamma and beta.
    """
    add = producer(norm.inputs[0], "Add")
    if add is None:
        source = producer(norm.inputs[0])
        raise Mismatch(norm, f"its input is no sum: it comes from {source.op if source else 'outside of the graph'}")
    shapes = [tensor_shape(tensor) for tensor in add.inputs]
    if shapes[0] is None or shapes[0] != shapes[1]:
        raise Mismatch(norm, f"both terms of the sum must have one shape; got {shapes[0]} and {shapes[1]}")
    if any(isinstance(tensor, gs.Constant) for tensor in add.inputs):
        raise Mismatch(norm, "a constant is no residual")
    axis = norm.attrs.get("axis", -1)
    if axis not in (-1, len(shapes[0]) - 1) or len(shapes[0]) != 3:
        raise Mismatch(norm, f"it must be over the last of three axes; got axis {axis} of {shapes[0]}")
    if len(norm.inputs) != 3 or len(norm.outputs) != 1:
        raise Mismatch(norm, "it must have gamma and beta, and give no statistics")
    if any(tensor_shape(tensor) != shapes[0][-1:] for tensor in norm.inputs[1:]):
        raise Mismatch(norm, "gamma and beta must have one number per feature")
    return add


def verify(
    norm: gs.Node, add: gs.Node, outputs: tuple[gs.Tensor, ...], attributes: dict[str, float], *, seed: int
) -> float:
    """The measured difference between the two nodes and the op.

    Raises:
        Mismatch: If it is beyond the contract's tolerance.
    """
    boundary = (*add.inputs, *norm.inputs[1:])
    difference = largest_difference((add, norm), boundary, outputs, contract=CONTRACT, attributes=attributes, seed=seed)
    if not difference <= CONTRACT.float32_tolerance:
        raise Mismatch(norm, f"looks like {CONTRACT.op_type} but differs by {difference:.3g} on probe inputs")
    return difference


PASS = GraphPass("fuse_residual_layer_norm", run, requires=("prepare",), forbids=("cast_fp16", "quantize_dynamic"))
