"""Which ops ONNX Runtime's CPU runs our two custom ops best in: the ground of ``lower_to_onnxruntime``.

    python -m benchmarks.onnxruntime_ops

Each form of an op is repeated many times in one graph, so that its own time is what is measured; base size, one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, inliner, parser

from benchmarks.results import record
from exporter.bench import interleaved_medians
from plugins.ops import OPS

REPEATS = 24
ROUNDS, WARM_UP = 60, 10
CONTRIB = "com.microsoft"

ROTARY_INPUTS = "float[1,12,128,64] x, float[1,128,32] cos, float[1,128,32] sin"
NORM_INPUTS = "float[1,128,768] x, float[1,128,768] residual, float[768] gamma, float[768] beta"
# One step of each form: {x} is the running value, {y} the next.
FORMS = {
    "InterleavedRotary": (
        ROTARY_INPUTS,
        {
            "inlined body": "{y} = rotary_press.InterleavedRotary ({x}, cos, sin)",
            "contrib RotaryEmbedding": (
                "{y}_c = Squeeze (cos, zero)  {y}_s = Squeeze (sin, zero)"
                "  {y} = com.microsoft.RotaryEmbedding <interleaved: int = 1> ({x}, zero, {y}_c, {y}_s)"
            ),
        },
    ),
    "ResidualLayerNorm": (
        NORM_INPUTS,
        {
            "inlined body": (
                "{y}, {y}_s = rotary_press.ResidualLayerNorm <epsilon = 1e-12> ({x}, residual, gamma, beta)"
            ),
            "contrib SkipLayerNormalization": (
                "{y} = com.microsoft.SkipLayerNormalization <epsilon = 1e-12> ({x}, residual, gamma, beta)"
            ),
        },
    ),
}


def main() -> None:
    """Measures every form, prints microseconds per op and the ratio to the inlined body, and records them."""
    results = {}
    for op, (inputs, forms) in FORMS.items():
        runners = {form: runner(op, inputs, step) for form, step in forms.items()}
        seconds = interleaved_medians(runners, rounds=ROUNDS, warm_up=WARM_UP)
        results[op] = {
            form: {
                "microseconds_per_op": round(1e6 * value / REPEATS, 1),
                "ratio_to_inlined_body": round(value / seconds["inlined body"], 2),
            }
            for form, value in seconds.items()
        }
        for form, result in results[op].items():
            print(f"{op:18} {form:32} {result['microseconds_per_op']:8.1f} µs  {result['ratio_to_inlined_body']:.2f}")
    print(f"recorded in {record('onnxruntime_ops', {'what': 'base size, 1 x 128 tokens, 1 thread', 'ops': results})}")


def runner(op: str, inputs: str, step: str) -> Callable[[], object]:
    """A session of ``REPEATS`` steps in a row."""
    steps = "\n".join(step.format(x=f"v{index}" if index else "x", y=f"v{index + 1}") for index in range(REPEATS))
    steps = steps.replace(f"v{REPEATS} =", "result =").replace(f"v{REPEATS},", "result,")
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1, "{CONTRIB}" : 1]>'
        f"g ({inputs}) => (float[N,M,K] result) <int64[1] zero = {{0}}> {{ {steps} }}"
        if op == "ResidualLayerNorm"
        else f'<ir_version: 10, opset_import: ["" : 20, "rotary_press" : 1, "{CONTRIB}" : 1]>'
        f"g ({inputs}) => (float[N,H,M,K] result) <int64[1] zero = {{0}}> {{ {steps} }}"
    )
    model.functions.append(OPS[op].function_body())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        inliner.inline_local_functions(model).SerializeToString(),
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
    return partial(session.run, None, feeds)


if __name__ == "__main__":
    main()
