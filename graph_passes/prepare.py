"""Bring a traced graph into one form: constants folded, every tensor with a dtype and a shape.

Shape -> Gather -> Concat -> Reshape      ->      Reshape with what can be known now known
tensors without value_info                ->      tensors with symbolic shapes
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from polygraphy.backend.onnx import fold_constants
from polygraphy.logger import G_LOGGER

from graph_passes.errors import PassError
from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import export_model, import_model, skeleton, tensor_shape

__all__ = ["PASS"]


def run(graph: gs.Graph) -> PassResult:
    """Folds constants and infers shapes; the count is the number of nodes that folding removed.

    Raises:
        PassError: If a floating-point tensor has no shape after inference: every later pass depends on it.
    """
    before = len(graph.nodes)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        prepared = import_model(fold_constants(export_model(graph), do_shape_inference=False))
    inferred = onnx.shape_inference.infer_shapes(skeleton(prepared), strict_mode=True, data_prop=True)
    types = {info.name: info.type.tensor_type for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in prepared.nodes:
        for tensor in node.outputs:
            if tensor.is_empty():  # an optional output that is left out
                continue
            if tensor.name in types:
                found = types[tensor.name]
                tensor.dtype = np.dtype(helper.tensor_dtype_to_np_dtype(found.elem_type))
                axes = [
                    axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in found.shape.dim
                ]
                tensor.shape = axes if found.HasField("shape") else None  # no axes: a scalar
            if tensor.dtype is None or tensor_shape(tensor) is None:
                raise PassError(
                    f"Shape inference left {tensor.name!r} (from {node.op} {node.name!r}) with dtype {tensor.dtype} "
                    f"and shape {tensor.shape}: give the graph's inputs symbolic shapes and export it again."
                )
    return PassResult(prepared, before - len(prepared.nodes))


PASS = GraphPass("prepare", run)
