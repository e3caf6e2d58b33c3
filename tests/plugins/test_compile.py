"""The PTX of every kernel for every architecture: what ptxas says of it, and what a launcher and a driver rely on."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugins import compile as compile_module
from plugins.compile import DRIVERS, TARGETS, CompiledKernel, KernelError, compile_kernel, kernels, why_not
from plugins.contract import FLOATS
from plugins.ops import OPS

ROOT = Path(__file__).parents[2]
NORM = {"epsilon": 1e-12}
QKV = {"num_heads": 12, "scale": 0.125, "rotary_value": 0}
BASE: dict[str, dict[str, Any]] = {
    "InterleavedRotary": {"fixed": {"H": 12, "D": 64}, "attributes": {}},
    "QKVRotary": {"fixed": {"H": 12, "D": 64}, "attributes": QKV},
    "ResidualLayerNorm": {"fixed": {"E": 768}, "attributes": NORM},
    "QuantizedResidualLayerNorm": {"fixed": {"E": 768}, "attributes": NORM},
}
ODD: dict[str, dict[str, Any]] = {
    "InterleavedRotary": {"fixed": {"H": 5, "D": 6}, "attributes": {}},
    "QKVRotary": {"fixed": {"H": 3, "D": 10}, "attributes": {"num_heads": 3, "scale": 1.0, "rotary_value": 1}},
    "ResidualLayerNorm": {"fixed": {"E": 13}, "attributes": NORM},
    "QuantizedResidualLayerNorm": {"fixed": {"E": 1}, "attributes": NORM},
}
LONG = {name: {"fixed": {"E": 16384}, "attributes": NORM} for name in BASE if name.endswith("Norm")}
Request = tuple[str, str, int, tuple[str, ...] | None, int, str]  # op, dtype, sm, outputs, tactic, sizes


def requests() -> list[Request]:
    """Every op for every architecture; every dtype, variant and tactic for some."""
    sized = {"base": BASE, "odd": ODD, "long": LONG}
    found: list[Request] = [(op, "float16", sm, None, 0, "base") for op, sm in itertools.product(BASE, TARGETS)]
    found += [(op, dtype, sm, None, 0, "base") for op in BASE for dtype in FLOATS for sm in (75, 90, 120)]
    for op in BASE:
        tactics = range(len(kernels()[op].tactics))
        found += [(op, "float16", 89, outputs, 0, "base") for outputs in OPS[op].contract.variants]
        found += [(op, "float16", 89, None, tactic, size) for tactic in tactics for size in sized if op in sized[size]]
    return list(dict.fromkeys(found))


def request(op: str, dtype: str, sm: int, outputs: tuple[str, ...] | None, tactic: int, size: str) -> dict[str, Any]:
    sizes = {"base": BASE, "odd": ODD, "long": LONG}[size][op]
    return {"op_type": op, "dtype": dtype, "sm": sm, "outputs": outputs, "tactic": tactic, **sizes}


REQUESTS = requests()
each = pytest.mark.parametrize("of", REQUESTS, ids=lambda of: "-".join(map(str, of)))


def compile_apart(wanted: list[dict[str, Any]], cache: Path | None = None) -> list[dict[str, Any]]:
    """Kernels, compiled in another process; ``cache`` keeps what was compiled elsewhere out."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache)} if cache else {}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.plugins.compile_all"],
        input=json.dumps(wanted),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert not finished.returncode, finished.stderr
    results: list[dict[str, Any]] = json.loads(finished.stdout)
    return results


@pytest.fixture(scope="module")
def compiled() -> dict[Request, CompiledKernel]:
    results = compile_apart([request(*of) for of in REQUESTS])
    assert not [result["error"] for result in results if "error" in result]
    return {of: CompiledKernel(**result) for of, result in zip(REQUESTS, results, strict=True)}


def assembler() -> str:
    """NVIDIA's, of the newer of the two releases that come with Triton: it knows all our architectures."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], "backends/nvidia/bin/ptxas-blackwell"))


def test_every_op_is_compiled_for_every_architecture() -> None:
    assert {(op, sm) for op, _, sm, *_ in REQUESTS} == set(itertools.product(kernels(), TARGETS))


@each
def test_the_parameters_are_inputs_then_arguments_then_outputs(
    of: Request, compiled: dict[Request, CompiledKernel]
) -> None:
    code, contract = compiled[of], OPS[of[0]].contract
    outputs = [spec.name for spec in contract.outputs if of[3] is None or spec.name in of[3]]
    inputs, arguments = [spec.name for spec in contract.inputs], list(kernels()[of[0]].arguments)
    assert [name for name, _ in code.parameters] == [*inputs, *arguments, *outputs]
    [entry] = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", code.ptx, flags=re.DOTALL)
    assert entry[0] == code.name
    declared = re.findall(r"\.param \.(u64|u32)", entry[1])
    assert declared == [kind for _, kind in code.parameters]
    assert declared == ["u64"] * len(inputs) + ["u32"] * len(arguments) + ["u64"] * len(outputs)
    assert entry[1].count(".param") == len(declared)
    read = {int(index) for index in re.findall(r"ld\.param[.\w]*\s+\S+ \[\w+_param_(\d+)", code.ptx)}
    assert read <= set(range(len(declared)))


@each
def test_target_and_version_are_what_a_device_takes(of: Request, compiled: dict[Request, CompiledKernel]) -> None:
    code, sm = compiled[of], of[2]
    assert re.findall(r"^\.target (\S+)$", code.ptx, flags=re.MULTILINE) == [f"sm_{sm}"]
    version = max(TARGETS[sm].introduced, 80)
    assert re.findall(r"^\.version (\S+)$", code.ptx, flags=re.MULTILINE) == [f"{version // 10}.{version % 10}"]
    assert (code.ptx_version, (code.cuda, code.driver)) == (version, DRIVERS[version])


@each
def test_the_launch_fits_every_device(of: Request, compiled: dict[Request, CompiledKernel]) -> None:
    code = compiled[of]
    assert code.block[0] in (32, 64, 128, 256, 512, 1024)
    assert tuple(code.block[1:]) == (1, 1)
    assert f".reqntid {code.block[0]}" in code.ptx
    assert 0 <= code.shared_memory <= 48 * 1024
    assert ("global_smem" in code.ptx) == (code.shared_memory > 0)
    assert 16 <= code.registers <= 255
    assert code.registers * code.block[0] <= 65536
    assert not code.spilled or of[5] == "odd"


@each
def test_nothing_of_the_machine_is_in_the_code(of: Request, compiled: dict[Request, CompiledKernel]) -> None:
    assert not re.search(r"\.loc|\.file|debug|\.py|/home|/tmp", compiled[of].ptx)
    assert str(ROOT) not in compiled[of].ptx


@pytest.mark.parametrize("op", BASE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_memory_is_read_and_written_in_pieces_of_16_bytes(
    op: str, dtype: str, compiled: dict[Request, CompiledKernel]
) -> None:
    """The sizes of the base models allow it, and the alignment that TensorRT promises."""
    ptx = compiled[op, dtype, 90, None, 0, "base"].ptx
    stores = re.findall(r"st\.global\.(\S+)", ptx)
    assert set(stores) == {"v4.b32"}
    loads = re.findall(r"ld\.global\.(\S+)", ptx)
    narrow = [load for load in loads if load != "v4.b32"]
    assert len(narrow) <= len(loads) // 2  # the scale of a quantisation, and biases, of which there are few


@pytest.mark.parametrize("sm", TARGETS)
def test_code_for_an_architecture_also_assembles_for_all_later_ones(
    sm: int, compiled: dict[Request, CompiledKernel], tmp_path: Path
) -> None:
    """What the driver of a later device does with it. With a suffix, as sm_90a, it would not."""
    for op in BASE:
        code = compiled[op, "float16", sm, None, 0, "base"]
        source = tmp_path / f"{op}.ptx"
        source.write_text(code.ptx, encoding="utf-8")
        for later in (later for later in TARGETS if later >= sm):
            command = [assembler(), f"--gpu-name=sm_{later}", str(source), "-o", str(tmp_path / "kernel.cubin")]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            assert not finished.returncode, f"{op} of sm_{sm} for sm_{later}: {finished.stderr}"


def test_another_version_may_be_asked_for() -> None:
    wanted = [
        request("QKVRotary", "bfloat16", sm, None, 0, "base") | {"ptx_version": version}
        for sm in (75, 89)
        for version in DRIVERS
        if version <= 87
    ]
    for asked, result in zip(wanted, compile_apart(wanted), strict=True):
        version = asked["ptx_version"]
        assert f".version {version // 10}.{version % 10}\n" in result["ptx"]
        assert (result["cuda"], result["driver"]) == DRIVERS[version]


def test_equal_requests_give_equal_code(tmp_path: Path, compiled: dict[Request, CompiledKernel]) -> None:
    """In another process, without what the first one left behind."""
    of = REQUESTS[0]
    [again] = compile_apart([request(*of)], tmp_path)
    assert again["ptx"] == compiled[of].ptx


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"sm": 70}, r"No kernel can be compiled for SM 70; expected one of 75 \(Turing: T4, RTX 20\), 80"),
    "dtype": ({"dtype": "float64"}, r"InterleavedRotary cannot be compiled for float64; expected one of float32"),
    "outputs": ({"outputs": ["z"]}, r"no variant with the outputs \('z',\); it has \[\('y',\)\]"),
    "tactic": ({"tactic": 9}, r"no tactic 9; it has 2"),
    "version": ({"ptx_version": 79}, r"sm_89 cannot be of version 7.9; expected one of 7.8, 8.0"),
    "old version": ({"ptx_version": 80, "sm": 120}, r"sm_120 cannot be of version 8.0; expected one of 8.7, 8.8, 9.0"),
    "newer than Triton": (
        {"ptx_version": 90},
        r"Triton [\d.]+ cannot compile InterleavedRotary for sm_89 as PTX 9.0: .*9.0",
    ),
    "missing size": ({"fixed": {"H": 12}}, r"InterleavedRotary needs a fixed size for \['D'\]; got \{'H': 12\}"),
    "dynamic size": ({"fixed": {"H": 12, "D": -1}}, r"InterleavedRotary needs a fixed size for \['D'\]"),
}


@pytest.fixture(scope="module")
def bad_results() -> dict[str, dict[str, Any]]:
    good = request("InterleavedRotary", "float16", 89, None, 0, "base")
    results = compile_apart([good | change for change, _ in BAD.values()])
    return dict(zip(BAD, results, strict=True))


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compiled_is_told(name: str, bad_results: dict[str, dict[str, Any]]) -> None:
    assert re.search(BAD[name][1], bad_results[name]["error"])


def test_the_interpreter_compiles_nothing() -> None:
    """It runs these very tests."""
    assert "unset it" in str(why_not())
    with pytest.raises(KernelError, match="TRITON_INTERPRET is set"):
        compile_kernel(**request(*REQUESTS[0]))


def test_without_triton_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module, "find_spec", lambda _name: None)
    with pytest.raises(KernelError, match=r"pip install 'rotary-press\[plugins\]'"):
        compile_kernel(**request(*REQUESTS[0]))


HEAD = ".visible .entry f(\n\t.param .u64 .ptr .global .align 1 f_param_0,\n\t.param .u32 f_param_1"
ADDED = ",\n\t.param .u64 .ptr .global .align 1 f_param_2"
BODY = "\n)\n.reqntid 128\n{\n\tld.param.b64 \t%rd1, [f_param_0];\n}\n"


def test_what_triton_adds_is_taken_away() -> None:
    assert compile_module._with_parameters(HEAD + ADDED + BODY, ["u64", "u32"]) == HEAD + BODY
    assert compile_module._with_parameters(HEAD + BODY, ["u64", "u32"]) == HEAD + BODY


@pytest.mark.parametrize(
    ("ptx", "expected"),
    [
        (HEAD + ADDED + BODY.replace("f_param_0", "f_param_2"), ["u64", "u32"]),  # it is read
        (HEAD + BODY, ["u64", "u64"]),
        (HEAD + BODY, ["u64", "u32", "u64"]),
        (BODY, ["u64"]),
    ],
)
def test_other_parameters_than_the_contracts_are_refused(ptx: str, expected: list[str]) -> None:
    with pytest.raises(KernelError, match="the contract says"):
        compile_module._with_parameters(ptx, expected)


def test_code_for_another_architecture_is_refused() -> None:
    assert compile_module._forward_compatible(".target sm_90a\n", 90) == ".target sm_90\n"
    with pytest.raises(KernelError, match="no target sm_90"):
        compile_module._forward_compatible(".target sm_89\n", 90)


def test_more_shared_memory_than_a_plugin_may_have_is_refused() -> None:
    assert compile_module._shared_memory(49152, "a kernel") == 49152
    with pytest.raises(KernelError, match="a kernel needs 49153 bytes of shared memory; a plugin may have 49152"):
        compile_module._shared_memory(49153, "a kernel")


def test_every_version_has_its_driver_and_no_target_is_newer() -> None:
    assert all(max(target.introduced, 80) in DRIVERS for target in TARGETS.values())
    assert list(DRIVERS) == sorted(DRIVERS)
