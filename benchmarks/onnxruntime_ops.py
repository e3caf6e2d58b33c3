"""Which ops ONNX Runtime's CPU runs our custom ops best in: the ground of ``lower_to_onnxruntime``.

    python -m benchmarks.onnxruntime_ops

Each form of an op is repeated many times in one graph, so that its own time is what is measured; base size, one thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, parser

from benchmarks.results import record
from exporter.bench import interleaved_medians
from graph_passes.graph_tools import export_model, import_model
from graph_passes.standard_ops import Shared, custom_ops, write_out

REPEATS = 24
ROUNDS, WARM_UP = 60, 10
CONTRIB = "com.microsoft"

HEADS = "float[1,12,128,64]"
# Per op: the inputs, and one step of each form: {x} is the running value, {y} the next. The first form is the standard
# ops that the lowerings share (graph_passes/standard_ops.py); a ratio to it above one is a form that is not worth it.
FORMS: dict[str, tuple[str, dict[str, str]]] = {
    "InterleavedRotary": (
        f"{HEADS} x, float[1,128,32] cos, float[1,128,32] sin",
        {
            "standard ops": "{y} = rotary_press.InterleavedRotary ({x}, cos, sin)",
            "contrib RotaryEmbedding": (
                "{y}_c = Squeeze (cos, zero)  {y}_s = Squeeze (sin, zero)"
                "  {y} = com.microsoft.RotaryEmbedding <interleaved: int = 1> ({x}, zero, {y}_c, {y}_s)"
            ),
            "RotaryEmbedding (opset 23)": "{y} = RotaryEmbedding <interleaved: int = 1> ({x}, cos, sin)",
        },
    ),
    "ResidualLayerNorm": (
        "float[1,128,768] x, float[1,128,768] residual, float[768] bias, float[768] gamma, float[768] beta",
        {
            "standard ops": (
                "{y} = rotary_press.ResidualLayerNorm <epsilon = 1e-12> ({x}, residual, bias, gamma, beta)"
            ),
            "contrib SkipLayerNormalization": (
                "{y} = com.microsoft.SkipLayerNormalization <epsilon = 1e-12> ({x}, residual, gamma, beta, bias)"
            ),
        },
    ),
    "ScaledDotProductAttention": (
        f"{HEADS} x, {HEADS} k, {HEADS} v, float[1,1,1,128] mask, float[1,1,128,128] wide_mask",
        {
            "standard ops": (
                "{y} = rotary_press.ScaledDotProductAttention <scale = 0.125, zero_masked_rows = 0> ({x}, k, v, mask)"
            ),
            "Attention (opset 23)": "{y} = Attention <scale = 0.125> ({x}, k, v, wide_mask)",
            # It wants queries with their heads side by side, which a rotation before it has no use for.
            "contrib MultiHeadAttention": (
                "{y}_t = Transpose <perm: ints = [0, 2, 1, 3]> ({x})  {y}_q = Reshape ({y}_t, flat)"
                "  {y}_r = com.microsoft.MultiHeadAttention <num_heads = 12, scale = 0.125>"
                " ({y}_q, k, v, , , wide_mask)"
                "  {y}_h = Reshape ({y}_r, heads)  {y} = Transpose <perm: ints = [0, 2, 1, 3]> ({y}_h)"
            ),
        },
    ),
    "FusedBiasGelu": (
        "float[1,128,3072] x, float[3072] bias",
        {
            "standard ops": '{y} = rotary_press.FusedBiasGelu <approximate = "none"> ({x}, bias)',
            "contrib BiasGelu": "{y} = com.microsoft.BiasGelu ({x}, bias)",
            "erf": (
                "{y}_t = Add ({x}, bias)  {y}_s = Div ({y}_t, root)  {y}_e = Erf ({y}_s)  {y}_o = Add ({y}_e, one)"
                "  {y}_w = Mul ({y}_t, {y}_o)  {y} = Mul ({y}_w, half)"
            ),
        },
    ),
}


def main() -> None:
    """Measures every form, prints microseconds per op and the ratio to standard ops, and records them."""
    results = {}
    for op, (inputs, forms) in FORMS.items():
        runners = {form: runner(inputs, step) for form, step in forms.items()}
        seconds = interleaved_medians(runners, rounds=ROUNDS, warm_up=WARM_UP)
        results[op] = {
            form: {
                "microseconds_per_op": round(1e6 * value / REPEATS, 1),
                "ratio_to_standard_ops": round(value / seconds["standard ops"], 2),
            }
            for form, value in seconds.items()
        }
        for form, result in results[op].items():
            print(f"{op:26} {form:32} {result['microseconds_per_op']:8.1f} µs  {result['ratio_to_standard_ops']:.2f}")
    print(f"recorded in {record('onnxruntime_ops', {'what': 'base size, 1 x 128 tokens, 1 thread', 'ops': results})}")


def runner(inputs: str, step: str) -> Callable[[], object]:
    """A session of ``REPEATS`` steps in a row."""
    steps = "\n".join(step.format(x=f"v{index}" if index else "x", y=f"v{index + 1}") for index in range(REPEATS))
    steps = re.sub(rf"\bv{REPEATS} =", "result =", steps)
    axes = "N,H,M,K" if inputs.startswith(HEADS) else "N,M,K"
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23, "rotary_press" : 1, "{CONTRIB}" : 1]>'
        f"g ({inputs}) => (float[{axes}] result) <int64[1] zero = {{0}}, int64[3] flat = {{0, 0, 768}},"
        f" int64[4] heads = {{0, 0, 12, 64}}, float root = {{1.41421356}}, float one = {{1}}, float half = {{0.5}}>"
        f" {{ {steps} }}"
    )
    graph = import_model(model)
    for tensor in graph.tensors().values():
        if tensor.dtype is None:
            tensor.dtype = np.float32
    shared: Shared = {}
    for node in custom_ops(graph):
        write_out(graph, node, shared)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        export_model(graph.cleanup().toposort()).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.standard_normal([axis.dim_value for axis in value.type.tensor_type.shape.dim]).astype(
            helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT)
        )
        for value in model.graph.input
    }
    return partial(session.run, None, {known.name: feeds[known.name] for known in session.get_inputs()})


if __name__ == "__main__":
    main()
