"""Write a fused graph for TensorRT with our plugins.

    a custom op with a plugin       ->      the same node without a function body, told where its plugin is registered
    any other custom op             ->      standard ops

TensorRT's parser finds a plugin by the op type and three attributes: ``plugin_namespace``, ``plugin_version`` and
``aot``, which asks for the kernel that is compiled ahead of time and stored in the engine (https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/pluginGuide.html).
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import PLUGIN, copy_graph
from graph_passes.standard_ops import Shared, custom_ops, write_out
from plugins.ops import OPS

__all__ = ["PASS", "without_plugins"]


def run(graph: gs.Graph) -> PassResult:
    """Rewrites every custom op; counts them."""
    custom = custom_ops(graph)
    shared: Shared = {}
    for node in custom:
        contract = OPS[node.op].contract
        if contract.has_plugin:
            node.attrs |= {PLUGIN: contract.domain, "plugin_version": str(contract.version), "aot": 1}
        else:
            write_out(graph, node, shared)
    return PassResult(graph, len(custom))


def without_plugins(graph: gs.Graph) -> gs.Graph:
    """A copy in which the plugins are custom ops with function bodies again, so that any runtime can run it."""
    graph = copy_graph(graph)
    for node in custom_ops(graph):
        for name in (PLUGIN, "plugin_version", "aot"):
            node.attrs.pop(name, None)
    return graph


PASS = GraphPass("lower_to_plugin", run, requires=("prepare",), forbids=("quantize_dynamic",))
