"""Bring a traced graph into one form: constants folded, every tensor with a dtype and a shape.

Shape -> Gather -> Concat -> Reshape      ->      Reshape with what can be known now known
tensors without value_info                ->      tensors with symbolic shapes
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from polygraphy.backend.onnx import fold_constants
from polygraphy.logger import G_LOGGER

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import export_model, import_model
from graph_passes.observation import observe

__all__ = ["PASS"]


def run(graph: gs.Graph) -> PassResult:
    """Folds constants and observes shapes; the count is the number of nodes that folding removed.

    Raises:
        PassError: If the graph cannot be run: every later pass depends on what is observed.
    """
    before = len(graph.nodes)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        prepared = import_model(fold_constants(export_model(graph), do_shape_inference=False))
    observation = observe(prepared)
    for node in prepared.nodes:
        for tensor in node.outputs:
            if tensor.name in observation.runs[0].values:  # no optional output that is left out, and a tensor
                tensor.dtype = observation.runs[0].values[tensor.name].dtype
                tensor.shape = observation.shape(tensor.name)
    return PassResult(prepared, before - len(prepared.nodes))


PASS = GraphPass("prepare", run)
