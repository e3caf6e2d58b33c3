"""Write half precision into a fused graph, so that a strongly typed engine needs no flags and no luck.

    weights, matrix products, activations              ->  float16
    softmax, norms, and the sums that feed them         ->  float32, with a Cast at the border
    constants that float16 cannot hold (mask -3.4e38)   ->  float32, and with them the nodes that read them
    angles, gamma, beta, epsilon of the fused ops       ->  float32, as their contracts say, and what makes them
    graph inputs and outputs                            ->  unchanged, so every precision has one interface

Why the mask stays in float32: its constant would become -inf, and a row that is all padding would be NaN.
Why not only the softmax: the scores are cast up before the mask is added, so nothing saturates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import unique_name
from plugins.contract import DOMAIN
from plugins.ops import OPS

__all__ = ["PASS"]

# Always computed in float32: each sums many terms, or exponentiates.
WIDE = frozenset(
    {"Softmax", "LogSoftmax", "LayerNormalization", "ReduceMean", "ReduceSum", "Exp", "Log", "Pow", "Sqrt", "Erf"}
)
# Computed in float16, whatever comes in, where the weight allows it: matrix products, where the time goes.
NARROW = frozenset({"MatMul", "Gemm"})
LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).tiny)


def run(graph: gs.Graph) -> PassResult:
    """Chooses a dtype per node, converts the weights and inserts the casts; counts the nodes in float16."""
    graph.toposort()
    wide = read_in_float32(graph)
    narrow_constants: dict[int, gs.Constant] = {}
    casts: dict[tuple[int, str], gs.Tensor] = {}
    count = 0
    for node in list(graph.nodes):
        if not any(tensor.dtype in (np.float32, np.float16) for tensor in (*node.inputs, *node.outputs)):
            continue
        dtype = np.dtype(np.float32) if id(node) in wide else choose(node)
        count += dtype == np.float16
        for slot, tensor in enumerate(node.inputs):
            wanted = dtype if slot not in float32_slots(node) else np.dtype(np.float32)
            if tensor.dtype not in (np.float32, np.float16) or tensor.dtype == wanted:
                continue
            if isinstance(tensor, gs.Constant):
                if id(tensor) not in narrow_constants:
                    narrow_constants[id(tensor)] = gs.Constant(
                        unique_name(graph, f"{tensor.name}_fp16"), tensor.values.astype(np.float16)
                    )
                node.inputs[slot] = narrow_constants[id(tensor)]
            else:
                node.inputs[slot] = cast(graph, tensor, wanted, casts)
        if node.op == "Cast" and node.outputs[0].dtype == np.float32:
            node.attrs["to"] = dtype.type
        for tensor in node.outputs:
            if tensor.dtype == np.float32:
                tensor.dtype = dtype
    for index, output in enumerate(graph.outputs):
        if output.dtype == np.float16:
            name, output.name = output.name, unique_name(graph, f"{output.name}_fp16")
            wide = cast(graph, output, np.dtype(np.float32), {})
            wide.name = name
            graph.outputs[index] = wide
    return PassResult(graph, count)


def choose(node: gs.Node) -> np.dtype[Any]:
    """The dtype that a node computes in."""
    if node.domain == DOMAIN:
        return np.dtype(np.float16)
    if node.op in WIDE or any(isinstance(tensor, gs.Constant) and not fits(tensor) for tensor in node.inputs):
        return np.dtype(np.float32)
    if node.op in NARROW:
        return np.dtype(np.float16)
    computed = [t for t in node.inputs if not isinstance(t, gs.Constant) and t.dtype in (np.float32, np.float16)]
    # Anything else follows its inputs: float32 spreads from the mask to the scores, and ends at the next product.
    # A sum that feeds a softmax or a norm is done in the precision of its reader, before anything is rounded.
    if node.op == "Add" and all(reader.op in WIDE for reader in node.outputs[0].outputs) and node.outputs[0].outputs:
        return np.dtype(np.float32)
    if any(tensor.dtype == np.float32 for tensor in computed):
        return np.dtype(np.float32)
    return np.dtype(np.float16)


def read_in_float32(graph: gs.Graph) -> set[int]:
    """The ids of nodes that make what custom ops read in float32 alone, angles above all; products are left out."""
    given = {id(tensor) for tensor in graph.outputs}
    found: set[int] = set()
    for node in reversed(graph.nodes):
        uses = [
            id(reader) in found or all(slot in float32_slots(reader) for slot in slots_of(reader, tensor))
            for tensor in node.outputs
            for reader in tensor.outputs
        ]
        is_ours = node.domain == DOMAIN or node.op in NARROW or any(id(tensor) in given for tensor in node.outputs)
        if uses and all(uses) and not is_ours:
            found.add(id(node))
    return found


def slots_of(node: gs.Node, tensor: gs.Tensor) -> list[int]:
    """Where a node reads a tensor."""
    return [slot for slot, read in enumerate(node.inputs) if read is tensor]


def fits(tensor: gs.Constant) -> bool:
    """Whether float16 holds the constant: no overflow, and no number other than zero lost to underflow.

    Weights are let off the second condition: among millions of them a few tiny ones do not matter, but a lone scale or
    epsilon does.
    """
    if tensor.dtype != np.float32:
        return True
    magnitude = np.abs(tensor.values)
    if not magnitude.size or magnitude.max() > LARGEST:
        return not magnitude.size
    return bool(magnitude.size > 1 or magnitude.max() == 0 or magnitude.max() >= SMALLEST)


def float32_slots(node: gs.Node) -> tuple[int, ...]:
    """The inputs of a custom op that its contract keeps in float32."""
    if node.domain != DOMAIN:
        return ()
    specs = OPS[node.op].contract.inputs
    return tuple(slot for slot, spec in enumerate(specs) if spec.dtypes == ("float32",))


def cast(
    graph: gs.Graph, tensor: gs.Tensor, dtype: np.dtype[Any], casts: dict[tuple[int, str], gs.Tensor]
) -> gs.Tensor:
    """``tensor`` as ``dtype``; one Cast serves all its readers."""
    key = (id(tensor), dtype.name)
    if key not in casts:
        name = unique_name(graph, f"{tensor.name}_{dtype.name}")
        casts[key] = gs.Variable(name, dtype, tensor.shape)
        graph.nodes.append(gs.Node("Cast", name, {"to": dtype.type}, [tensor], [casts[key]]))
    return casts[key]


PASS = GraphPass(
    "cast_fp16",
    run,
    requires=("fuse_rotary", "fuse_residual_layer_norm", "fuse_attention", "fuse_bias_gelu"),
    forbids=("cast_fp16", "quantize_dynamic", "lower_to_onnxruntime", "lower_to_native", "lower_to_plugin"),
)
