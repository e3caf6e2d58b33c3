"""The custom ops: one folder per op, one contract per op, every implementation tested against it.

``plugins.ops`` is the table of all ops. Nothing here imports ``exporter`` or ``graph_passes``.
"""
