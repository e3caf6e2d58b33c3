"""Write a fused graph, at any precision, in the ops that ONNX Runtime's CPU runs best.

    InterleavedRotary      ->      com.microsoft.RotaryEmbedding, where the whole batch shares its angles
    everything else        ->      standard ops

Chosen by measurement (benchmarks/onnxruntime_ops.py; the figures are in benchmarks/results): the runtime's
``RotaryEmbedding`` takes less than a fifth of the time of standard ops, its ``SkipLayerNormalization`` more than five
times as long as the sum and the norm that it replaces. The engine keeps the runtime from bringing the latter back. Its
``BiasGelu`` is no faster than a sum and a Gelu. The standard's ``Attention`` would save 6%, but here it takes no mask
that broadcasts over the queries, and gives zeros for rows that are hidden altogether, whatever the graph gave.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import is_fused, tensor_shape, unique_name
from graph_passes.standard_ops import Shared, custom_ops, write_out
from plugins.ops import INTERLEAVED_ROTARY

__all__ = ["PASS"]

CONTRIB = "com.microsoft"


def run(graph: gs.Graph) -> PassResult:
    """Replaces every custom op; counts them."""
    custom = custom_ops(graph)
    tables: dict[int, gs.Tensor] = {}
    shared: Shared = {}
    first_position = gs.Constant(unique_name(graph, "first_position"), np.zeros(1, dtype=np.int64))
    for node in custom:
        if is_fused(node, INTERLEAVED_ROTARY.contract.op_type) and (tensor_shape(node.inputs[1]) or [0])[0] == 1:
            use_contrib_rotary(graph, node, first_position, tables)
        else:
            write_out(graph, node, shared)
    return PassResult(graph, len(custom))


def use_contrib_rotary(
    graph: gs.Graph, node: gs.Node, first_position: gs.Constant, tables: dict[int, gs.Tensor]
) -> None:
    """Turns one InterleavedRotary into the runtime's own op, which wants angles of one dtype with x, by position."""
    x, cos, sin = node.inputs
    y = node.outputs[0]
    for angle in (cos, sin):
        if id(angle) not in tables:
            name = unique_name(graph, f"{angle.name}_table")
            axis = gs.Constant(f"{name}_axis", np.zeros(1, dtype=np.int64))
            tables[id(angle)] = gs.Variable(name, angle.dtype, angle.shape[1:])
            graph.nodes.append(gs.Node("Squeeze", name, {}, [angle, axis], [tables[id(angle)]]))
    wide_x, wide_y = x, y
    if x.dtype != np.float32:  # the angles are float32, and so is the arithmetic
        wide_x = gs.Variable(unique_name(graph, f"{x.name}_wide"), np.float32, x.shape)
        graph.nodes.append(gs.Node("Cast", wide_x.name, {"to": np.float32}, [x], [wide_x]))
        wide_y = gs.Variable(unique_name(graph, f"{y.name}_wide"), np.float32, y.shape)
        graph.nodes.append(gs.Node("Cast", wide_y.name, {"to": y.dtype.type}, [wide_y], [y]))
    node.op, node.domain, node.attrs = "RotaryEmbedding", CONTRIB, {"interleaved": 1}
    node.inputs = [wide_x, first_position, tables[id(cos)], tables[id(sin)]]
    node.outputs = [wide_y]


PASS = GraphPass("lower_to_onnxruntime", run, requires=("prepare",))
