"""The plugins' kernels on a GPU: PTX loaded by the CUDA driver and launched as TensorRT launches it.

    python -m benchmarks.plugin_kernels

First correctness: every PTX that the GPU can load (its own architecture's and all older ones'), every dtype and
tactic, at several shapes, against the contracts' float64 references. Then bandwidth: bytes that must move over the time
it took, as a fraction of a device-to-device copy of as many bytes, for tensors of 16 MB to 1 GB, beside eager PyTorch,
torch.compile and, where it is installed, Liger (pip install liger-kernel). All take turns, medians are compared.

Needs a GPU, a torch that can use it, Triton and cuda-bindings. ``--interpreter`` runs the correctness part, at small
shapes, in Triton's interpreter instead, on any machine: what the tests do.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch.nn.functional import layer_norm

from benchmarks.launchers import KernelCall, Run, checked, in_interpreter, on_cuda
from benchmarks.results import record
from plugins.compile import TARGETS, kernels
from plugins.ops import OPS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MEGABYTES = (16, 64, 256, 1024)
HEADS, HEAD_SIZE, EPSILON, TOKENS = 12, 64, 1e-12, 512
ROUNDS, WARM_UP = 30, 5
NORM = {"epsilon": EPSILON}
QKV = {"num_heads": HEADS, "scale": HEAD_SIZE**-0.5, "rotary_value": 0}


def main() -> None:
    """Checks, measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpreter", action="store_true", help="check at small shapes on the CPU; measure nothing")
    if parser.parse_args().interpreter:
        os.environ["TRITON_INTERPRET"] = "1"
        print(f"{check(in_interpreter, 'cpu', small=True)} calls are right")
        return
    if not torch.cuda.is_available():
        raise SystemExit("No GPU that torch can use: --interpreter checks the kernels without one.")
    own = int("".join(map(str, torch.cuda.get_device_capability())))
    checks = {sm: check(on_cuda(sm), "cuda", small=False) for sm in TARGETS if sm <= own}
    for sm, count in checks.items():
        print(f"sm_{sm}: {count} calls are right")
    sm = max(checks)
    rows = [row for megabytes in MEGABYTES for dtype in DTYPES[:2] for row in measure(on_cuda(sm), megabytes, dtype)]
    print(f"{'op':<28}{'dtype':<10}{'MB':>6}  fraction of a copy's bandwidth")
    for row in rows:
        fractions = "  ".join(f"{name} {fraction:.2f}" for name, fraction in row["fractions"].items())
        print(f"{row['op']:<28}{row['dtype']:<10}{row['megabytes']:>6}  {fractions}")
    versions = {name: version(name) for name in ("torch", "triton", "liger-kernel")}
    result = {"device": torch.cuda.get_device_name(), "sm": sm, "versions": versions, "checked": checks, "rows": rows}
    record("plugin_kernels", result)


def version(distribution: str) -> str | None:
    """Of an installed distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def calls(
    device: str, dtype: torch.dtype, shapes: Sequence[tuple[int, int, int, int]], *, seed: int
) -> Iterator[KernelCall]:
    """Every op, variant and tactic at shapes (batch, sequence, heads, head size)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(of).to(device)

    for batch, length, heads, size in shapes:
        features = heads * size
        for tables in {1, batch}:
            angles = random(tables, length, size // 2), random(tables, length, size // 2)
            x = random(batch, heads, length, size, of=dtype)
            qkv, bias = random(batch, length, 3 * features, of=dtype), random(3 * features)
            for tactic in range(len(kernels()["InterleavedRotary"].tactics)):
                yield KernelCall("InterleavedRotary", [x, *angles], {}, tactic=tactic)
            for tactic in range(len(kernels()["QKVRotary"].tactics)):
                attributes = {"num_heads": heads, "scale": size**-0.5, "rotary_value": tactic % 2}
                yield KernelCall("QKVRotary", [qkv, bias, *angles], attributes, tactic=tactic)
        rows = [random(batch, length, features, of=dtype) for _ in range(2)]
        of_features = [random(features) for _ in range(3)]
        for name, more in (
            ("ResidualLayerNorm", []),
            ("QuantizedResidualLayerNorm", [torch.tensor(0.03, device=device)]),
        ):
            for tactic in range(len(kernels()[name].tactics)):
                for outputs in OPS[name].contract.variants:
                    yield KernelCall(name, [*rows, *of_features, *more], NORM, outputs, tactic)


def check(run: Run, device: str, *, small: bool) -> int:
    """Judges every call against the float64 reference; how many there were.

    Raises:
        AssertionError: If one is off by more than twice the rounding of its dtype and the contract's tolerance.
        LaunchError: See :func:`benchmarks.launchers.checked`.
    """
    shapes = [(1, 1, 1, 2), (2, 5, 3, 6), (3, 7, 2, 10)]
    if not small:
        shapes += [(1, 128, 12, 64), (4, 333, 12, 64), (2, 64, 16, 48), (64, 1, 12, 64), (1, 2048, 32, 128)]
    count = 0
    for seed, dtype in enumerate(DTYPES):
        for call in calls(device, dtype, shapes, seed=seed):
            judge(call, checked(run, call), truncates=run is in_interpreter and dtype == torch.bfloat16)
            count += 1
    return count


def judge(call: KernelCall, outputs: Sequence[torch.Tensor], *, truncates: bool = False) -> None:
    """Compares the outputs of one call with the reference's.

    Args:
        call: What was launched.
        outputs: What came of it.
        truncates: Whether the last digit may be off by one, as Triton's interpreter does not round to bfloat16.
    """
    op = OPS[call.op_type]
    truth = op.reference(*(tensor.double().cpu().numpy() for tensor in call.inputs), **call.attributes)
    names = [spec.name for spec in op.contract.outputs]
    truths = dict(zip(names, truth if isinstance(truth, tuple) else (truth,), strict=True))
    # For values of about one; random normal ones reach five.
    atol = 5 * op.contract.float32_tolerance
    for name, output in zip(call.written, outputs, strict=True):
        if output.dtype == torch.int8:
            # A step, and only where the quotient lies so near to a half that float32 may round it the other way.
            quotient = truths["y"] / float(call.inputs[-1])
            is_near_half = np.abs(np.abs(quotient - np.floor(quotient)) - 0.5) < 1e-2
            off = np.abs(output.cpu().numpy().astype(np.int64) - truths[name])
            assert (off <= is_near_half).all(), f"{call.op_type} {name}: off by {off.max()} steps"
            continue
        rounded = torch.from_numpy(truths[name]).to(output.dtype).double().numpy()
        allowed = 2.0**-7 * np.abs(truths[name]) if truncates else 2 * np.abs(rounded - truths[name])
        excess = np.abs(output.double().cpu().numpy() - truths[name]) - allowed - atol
        assert (excess <= 0).all(), f"{call.op_type} {name} {output.dtype}: off by {excess.max():.3g} too much"


def measure(run: Run, megabytes: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """The fraction of a copy's bandwidth of each op's ways, where its largest tensor has that size."""
    features = HEADS * HEAD_SIZE
    rows = max(megabytes * 2**20 // (features * dtype.itemsize) // TOKENS, 1)
    cos, sin = (torch.randn(1, TOKENS, HEAD_SIZE // 2, device="cuda") for _ in range(2))
    x = torch.randn(rows, TOKENS, features, device="cuda").to(dtype)
    residual = torch.randn_like(x)
    bias, gamma, beta = (torch.randn(features, device="cuda") for _ in range(3))
    heads = x.view(rows, HEADS, TOKENS, HEAD_SIZE)
    scale = torch.tensor(0.03, device="cuda")
    qkv = torch.randn(max(rows // 3, 1), TOKENS, 3 * features, device="cuda").to(dtype)
    cases: list[tuple[KernelCall, Callable[..., Any]]] = [
        (KernelCall("InterleavedRotary", [heads, cos, sin], {}), eager_rotary),
        (KernelCall("QKVRotary", [qkv, bias.repeat(3), cos, sin], QKV), eager_qkv),
        (KernelCall("ResidualLayerNorm", [x, residual, bias, gamma, beta], NORM), eager_norm),
        (
            KernelCall("QuantizedResidualLayerNorm", [x, residual, bias, gamma, beta, scale], NORM, ("quantized", "s")),
            eager_quantized_norm,
        ),
    ]
    for call, eager in cases:
        moved = sum(tensor.nbytes for tensor in call.inputs)
        outputs = [torch.empty(shape, dtype=of, device="cuda") for shape, of in call.results()]
        moved += sum(tensor.nbytes for tensor in outputs)
        source, target = (torch.empty(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2))
        runners: dict[str, Callable[[], object]] = {
            "copy": partial(target.copy_, source),
            "eager": partial(eager, *call.inputs),
            "torch.compile": partial(torch.compile(eager), *call.inputs),
        }
        for tactic in range(len(kernels()[call.op_type].tactics)):
            with_tactic = KernelCall(call.op_type, call.inputs, call.attributes, call.outputs, tactic)
            runners[f"ours ({tactic})"] = partial(run, with_tactic, outputs)
        if version("liger-kernel"):
            runners |= liger(call)
        seconds = medians_on_gpu(runners)
        fractions = {name: seconds["copy"] / taken for name, taken in seconds.items()}
        yield {
            "op": call.op_type,
            "dtype": str(dtype).removeprefix("torch."),
            "megabytes": megabytes,
            "bytes_moved": moved,
            "copy_bytes_per_second": moved / seconds["copy"],
            "fractions": fractions,
        }
        del source, target, outputs


def medians_on_gpu(runners: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, by the device's own clock; they take turns, and the cache is cleared before each."""
    clear = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(WARM_UP + ROUNDS):
        for name, run in runners.items():
            clear.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if round_ >= WARM_UP:
                seconds[name].append(start.elapsed_time(end) / 1000)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def eager_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """InterleavedRotary as one writes it in PyTorch."""
    wide = x.float().contiguous().view(*x.shape[:-1], -1, 2)
    even, odd = wide.unbind(-1)
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack((even * c - odd * s, odd * c + even * s), dim=-1).flatten(-2).to(x.dtype)


def eager_qkv(qkv: torch.Tensor, bias: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """QKVRotary as one writes it in PyTorch."""
    total = (qkv + bias.to(qkv.dtype)).view(*qkv.shape[:2], 3, HEADS, HEAD_SIZE)
    q, k, v = (part.transpose(1, 2) for part in total.unbind(2))
    q = eager_rotary(q, cos, sin) * (HEAD_SIZE**-0.5)
    return q.contiguous(), eager_rotary(k, cos, sin).contiguous(), v.contiguous()


def eager_norm(
    x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor
) -> Any:
    """ResidualLayerNorm as one writes it in PyTorch."""
    total = x + bias.to(x.dtype) + residual
    return layer_norm(total, total.shape[-1:], gamma.to(x.dtype), beta.to(x.dtype), EPSILON), total


def eager_quantized_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    bias: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    scale: torch.Tensor,
) -> Any:
    """QuantizedResidualLayerNorm as one writes it in PyTorch."""
    norm, total = eager_norm(x, residual, bias, gamma, beta)
    return torch.clamp(torch.round(norm.float() / scale), -128, 127).to(torch.int8), total


def liger(call: KernelCall) -> dict[str, Callable[[], object]]:
    """Liger's kernel that comes nearest to an op, if there is one.

    Its rotary turns halves, of q and k at once; its norm has no residual, so the sum before it is PyTorch's.
    """
    if call.op_type == "InterleavedRotary":
        from liger_kernel.ops.rope import LigerRopeFunction

        x, cos, sin = call.inputs
        q, k = x.chunk(2, dim=1)
        full = [torch.cat((angle, angle), dim=-1) for angle in (cos, sin)]
        return {"Liger": partial(LigerRopeFunction.apply, q.contiguous(), k.contiguous(), *full)}
    if call.op_type == "ResidualLayerNorm":
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        x, residual, bias, gamma, beta = call.inputs
        weights = gamma.to(x.dtype), beta.to(x.dtype), EPSILON
        return {"Liger": lambda: LigerLayerNormFunction.apply(x + bias.to(x.dtype) + residual, *weights)}
    return {}


if __name__ == "__main__":
    main()
