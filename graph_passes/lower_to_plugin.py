"""Write a fused graph for TensorRT with our plugins.

    a custom op with a kernel       ->      the same node without a function body, told where its plugin is registered
    one with outputs left out       ->      as above, with the outputs that are read, named after them
    any other custom op             ->      standard ops

TensorRT's parser finds a plugin by the op type and three attributes: ``plugin_namespace``, ``plugin_version`` and
``aot``, which asks for the kernel that is compiled ahead of time and stored in the engine (https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/pluginGuide.html).
A plugin has one number of outputs, and none of them can be left out: each choice of outputs is a plugin of its own.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graph_passes.graph_pass import GraphPass, PassResult
from graph_passes.graph_tools import PLUGIN, copy_graph, is_read
from graph_passes.standard_ops import Shared, custom_ops, write_out
from plugins.contract import PluginContract
from plugins.ops import OPS

__all__ = ["PASS", "plugins_of", "without_plugins"]

# The contract, and the outputs there are, by the name of the plugin.
PLUGINS: dict[str, tuple[PluginContract, tuple[str, ...]]] = {
    op.contract.plugin_name(variant): (op.contract, variant)
    for op in OPS.values()
    if op.has_kernel
    for variant in op.contract.variants
}
VERSION = "1"  # of every plugin that is defined in Python: TensorRT registers them so, and asks for no other


def run(graph: gs.Graph) -> PassResult:
    """Rewrites every custom op; counts them."""
    custom = [node for node in custom_ops(graph) if PLUGIN not in node.attrs]
    shared: Shared = {}
    for node in custom:
        if OPS[node.op].has_kernel:
            use_plugin(graph, node)
        else:
            write_out(graph, node, shared)
    return PassResult(graph, len(custom))


def use_plugin(graph: gs.Graph, node: gs.Node) -> None:
    """Turns a custom op into the plugin that has the outputs which are read, and those that every variant has."""
    contract = OPS[node.op].contract
    pairs = zip(contract.outputs, node.outputs, strict=False)  # what is left out at the end may lack a name
    kept = {spec.name: tensor for spec, tensor in pairs if not spec.optional or is_read(graph, tensor)}
    node.op = contract.plugin_name(list(kept))
    node.outputs = list(kept.values())
    node.attrs |= {PLUGIN: contract.domain, "plugin_version": VERSION, "aot": 1}


def plugins_of(graph: gs.Graph) -> list[tuple[gs.Node, PluginContract, tuple[str, ...]]]:
    """Each plugin of a lowered graph, the contract of its op, and what its outputs are called there."""
    return [(node, *PLUGINS[node.op]) for node in custom_ops(graph) if PLUGIN in node.attrs]


def without_plugins(graph: gs.Graph) -> gs.Graph:
    """A copy in which the plugins are custom ops with function bodies again, so that any runtime can run it."""
    graph = copy_graph(graph)
    for node, contract, names in plugins_of(graph):
        tensors = dict(zip(names, node.outputs, strict=True))
        node.op = contract.op_type
        node.outputs = [tensors.get(spec.name, gs.Variable.empty()) for spec in contract.outputs]
        for name in (PLUGIN, "plugin_version", "aot"):
            del node.attrs[name]
    return graph


PASS = GraphPass("lower_to_plugin", run, requires=("prepare",), forbids=("quantize_dynamic",))
