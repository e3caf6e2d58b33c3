"""The compiler's core: passes over ONNX graphs. ``graph_passes.pipeline`` lists them in order and runs them."""
