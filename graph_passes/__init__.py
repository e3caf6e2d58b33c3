"""The compiler's core: passes over ONNX graphs. ``graph_passes.pipeline`` lists them in order and runs them."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as exporter/__init__.py has it, which need not be imported
