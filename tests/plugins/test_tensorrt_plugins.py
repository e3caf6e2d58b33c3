"""The plugins' definitions in TensorRT's own hands: its validators, its registry, its ONNX parser's fields.

TensorRT's library cannot be installed everywhere. Its bindings can, and load over the library of TensorRT-RTX, whose
registry is the same, and whose parser finds these plugins too; no part of it builds engines with them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from plugins import compile as compile_module
from plugins.compile import KernelError, kernels
from plugins.contract import FLOATS, TensorSpec
from plugins.kernel import Request
from plugins.ops import OPS
from plugins.tensorrt_plugins import register
from tests.with_tensorrt import run_with_tensorrt

ROOT = Path(__file__).parents[2]
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8"}
VARIANTS = {
    f"rotary_press::{op.contract.plugin_name(outputs)}": (op.contract, outputs)
    for op in OPS.values()
    if op.has_kernel
    for outputs in op.contract.variants
}
each = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``inside_tensorrt.py`` found."""
    folder = tmp_path_factory.mktemp("tensorrt")
    run_with_tensorrt(folder, "-m", "tests.plugins.inside_tensorrt", folder / "report.json")
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def outputs_of(name: str) -> list[TensorSpec]:
    contract, outputs = VARIANTS[name]
    return [spec for spec in contract.outputs if spec.name in outputs]


def types_of(specs: list[TensorSpec], dtype: str) -> list[str]:
    return [TYPES[dtype if len(spec.dtypes) > 1 else spec.dtypes[0]] for spec in specs]


def kernels_of(report: dict[str, Any], name: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Each dtype and tactic, counted from 0, and its kernel."""
    for dtype, asked in report["plugins"][name]["by_dtype"].items():
        for tactic, kernel in asked["tactics"].items():
            yield dtype, int(tactic) - 1, kernel


def test_every_variant_of_every_op_with_a_kernel_is_registered(report: dict[str, Any]) -> None:
    assert set(report["names"]) == set(VARIANTS)


@each
def test_the_registry_has_it_under_the_name_that_the_lowering_writes(report: dict[str, Any], name: str) -> None:
    contract, outputs = VARIANTS[name]
    found = report["plugins"][name]
    assert found["creator"] == [contract.plugin_name(outputs), "1", contract.domain]


@each
def test_the_schema_is_that_of_the_contract(report: dict[str, Any], name: str) -> None:
    contract, outputs = VARIANTS[name]
    found = report["plugins"][name]
    assert found["inputs"] == [spec.name for spec in contract.inputs]
    assert found["outputs"] == len(outputs)
    assert list(found["attributes"].items()) == [(spec.name, spec.kind) for spec in contract.attributes]


@each
def test_the_onnx_parser_takes_a_lowered_node_for_the_plugin(report: dict[str, Any], name: str) -> None:
    contract, outputs = VARIANTS[name]
    expected = f"Found registered plugin: {contract.plugin_name(outputs)}."
    assert any(expected in message for message in report["plugins"][name]["messages"])


@each
def test_the_attributes_of_a_lowered_node_arrive_in_the_order_of_the_contract(
    report: dict[str, Any], name: str
) -> None:
    expected = {
        spec.name: float(np.float32(report["attributes"][spec.name]))
        if spec.kind == "float"
        else report["attributes"][spec.name]
        for spec in VARIANTS[name][0].attributes
    }
    assert list(report["plugins"][name]["values"].items()) == list(expected.items())


@each
def test_outputs_have_the_shapes_and_dtypes_of_the_contract(report: dict[str, Any], name: str) -> None:
    for dtype, asked in report["plugins"][name]["by_dtype"].items():
        assert asked["output_types"] == types_of(outputs_of(name), dtype)
        for sizes, shapes in zip(report["sizes"], asked["shapes"], strict=True):
            known = report["fixed"] | sizes
            assert shapes == [[known[letter] for letter in spec.shape] for spec in outputs_of(name)]


@each
def test_the_builder_may_choose_among_all_dtypes_and_tactics(report: dict[str, Any], name: str) -> None:
    contract, _ = VARIANTS[name]
    specs = [*contract.inputs, *outputs_of(name)]
    tactics = len(kernels()[contract.op_type].tactics)
    for asked in report["plugins"][name]["by_dtype"].values():
        assert asked["types"] == [types_of(specs, dtype) for dtype in FLOATS]
        assert asked["formats"] == ["LINEAR"]
        assert sorted(asked["tactics"]) == [str(tactic + 1) for tactic in range(tactics)]


@each
def test_each_dtype_and_each_tactic_has_a_kernel_of_its_own(report: dict[str, Any], name: str) -> None:
    codes = [kernel["ptx"] for _, _, kernel in kernels_of(report, name)]
    assert len(set(codes)) == len(codes)
    halves = {"float32": set(), "float16": {"f16"}, "bfloat16": {"bf16"}}
    for dtype, _, kernel in kernels_of(report, name):
        assert set(re.findall(r"\.(b?f16)", kernel["ptx"])) == halves[dtype]


@each
def test_a_launch_is_that_of_the_kernel_at_every_size(report: dict[str, Any], name: str) -> None:
    contract, outputs = VARIANTS[name]
    kernel = kernels()[contract.op_type]
    for _, tactic, found in kernels_of(report, name):
        launches = [
            kernel.launch(Request(report["fixed"] | sizes, report["attributes"], outputs, kernel.tactics[tactic]))
            for sizes in report["sizes"]
        ]
        assert found["grids"] == [list(launch.grid) for launch in launches]
        assert found["blocks"] == [[32 * launch.num_warps, 1, 1] for launch in launches]
        assert found["arguments"] == [list(launch.arguments.values()) for launch in launches]
        assert set(found["argument_types"]) == {"INT32"}


@each
def test_the_code_takes_inputs_then_arguments_then_outputs(report: dict[str, Any], name: str) -> None:
    contract, _ = VARIANTS[name]
    inputs, outputs = len(contract.inputs), len(outputs_of(name))
    arguments = len(kernels()[contract.op_type].arguments)
    for _, _, kernel in kernels_of(report, name):
        entry = re.search(r"\.visible \.entry (\w+)\((.*?)\)\s*\.reqntid (\d+)", kernel["ptx"], re.DOTALL)
        assert entry is not None
        assert entry[1] == kernel["name"]
        assert re.findall(r"\.param \.(\w+)", entry[2]) == ["u64"] * inputs + ["u32"] * arguments + ["u64"] * outputs
        assert int(entry[3]) == kernel["blocks"][0][0]
        assert (kernel["shared_memory"] == [0]) == ("global_smem" not in kernel["ptx"])


@each
def test_a_size_that_is_compiled_in_must_not_be_dynamic(report: dict[str, Any], name: str) -> None:
    contract, _ = VARIANTS[name]
    given = {spec.size for spec in contract.attributes}
    missing = [letter for letter in kernels()[contract.op_type].fixed if letter not in given]
    assert f"{contract.op_type} needs a fixed size for {missing}" in report["plugins"][name]["with_nothing_fixed"]


def test_to_register_them_again_changes_nothing(report: dict[str, Any]) -> None:
    assert report["again"] == report["names"]


def test_a_process_is_for_one_target(report: dict[str, Any]) -> None:
    assert "registered for sm_89 as PTX 8.0 already: use a process for each target" in report["other_target"]


def pretend_tensorrt(monkeypatch: pytest.MonkeyPatch, release: str, **members: Any) -> None:
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.__dict__.update(members, __version__=release)
    monkeypatch.setitem(sys.modules, "tensorrt", module)


def test_without_tensorrt_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(KernelError, match=r"pip install 'rotary-press\[tensorrt\]'"):
        register(89)


def test_tensorrt_without_kernels_that_are_compiled_ahead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_tensorrt(monkeypatch, "10.8.0.43")
    with pytest.raises(KernelError, match=r"TensorRT 10\.8\.0\.43 .* 10\.9 is the first"):
        register(89)


@pytest.mark.parametrize("release", ["10.9.0.34", "10.16.1.11", "11.1.0.106"])
def test_tensorrt_that_cannot_read_attributes_with_this_numpy_is_refused(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    pretend_tensorrt(monkeypatch, release, QuickPluginCreationRequest=None)
    monkeypatch.setattr(np, "__version__", "2.4.0")
    with pytest.raises(KernelError, match=r"TensorRT 11\.2 or later, or: pip install 'numpy<2\.4'"):
        register(89)


@pytest.mark.parametrize(("release", "numpy"), [("10.9.0.34", "2.3.5"), ("11.2.1.2", "2.4.0"), ("12.0.0.1", "3.0.0")])
def test_without_triton_they_are_not_registered(monkeypatch: pytest.MonkeyPatch, release: str, numpy: str) -> None:
    pretend_tensorrt(monkeypatch, release, QuickPluginCreationRequest=None)
    monkeypatch.setattr(np, "__version__", numpy)
    monkeypatch.setattr(compile_module, "find_spec", lambda _: None)
    with pytest.raises(KernelError, match="Triton is not installed"):
        register(89)
