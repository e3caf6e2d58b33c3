"""Write a fused graph, at any precision, in the ops that ONNX Runtime's CPU runs best.

    InterleavedRotary, ResidualLayerNorm      ->      their bodies, in standard ops

Measured (benchmarks/onnxruntime_ops.py), the runtime's own contrib ops gain nothing here: ``RotaryEmbedding`` is as
fast as the inlined body, and ``SkipLayerNormalization`` is slower than the sum and the norm that it replaces (the
engine keeps the runtime from bringing it back).
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import inliner

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import export_model, import_model
from plugins.contract import DOMAIN

__all__ = ["PASS"]


def run(graph: gs.Graph) -> PassResult:
    """Inlines every custom op; counts them."""
    count = sum(node.domain == DOMAIN for node in graph.nodes)
    return PassResult(import_model(inliner.inline_local_functions(export_model(graph))), count)


PASS = GraphPass("lower_to_onnxruntime", run, requires=("fuse_rotary", "fuse_residual_layer_norm"))
