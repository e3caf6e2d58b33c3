"""Fusing files: what is written, what is reported, and what is refused with nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from exporter import fuse
from exporter.errors import PassError, UserError
from exporter.fusing import FusionReport

PLAIN = """
<ir_version: 10, opset_import: ["" : 20]>
plain (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y) { y = Relu (x) }
"""
FUSED = {"fuse_rotary": 4, "fuse_residual_layer_norm": 5, "fuse_attention": 2, "fuse_bias_gelu": 2}
UNNAMED = PLAIN.replace("[batch, sequence, 4] x", "[] x")
UNKNOWN = PLAIN.replace('"" : 20', '"" : 20, "theirs" : 1').replace("Relu", "theirs.Unknown")


def outputs(path: Path) -> NDArray[Any]:
    random = np.random.default_rng(0)
    session = ort.InferenceSession(path)
    feeds: dict[str, Any] = {tensor.name: random.integers(0, 2, (2, 9)) for tensor in session.get_inputs()}
    return np.asarray(session.run(None, feeds)[0])


@pytest.fixture
def plain(traced: onnx.ModelProto, tmp_path: Path) -> Path:
    """The plain graph of a RoFormer with two layers."""
    onnx.save(traced, tmp_path / "plain.onnx")
    return tmp_path / "plain.onnx"


@pytest.mark.parametrize(
    ("lowering", "ops"),
    [
        (
            "portable",
            {
                "InterleavedRotary": 4,
                "ResidualLayerNorm": 5,
                "ScaledDotProductAttention": 2,
                "FusedBiasGelu": FUSED["fuse_bias_gelu"],
            },
        ),
        ("onnxruntime", {"RotaryEmbedding": 4, "Softmax": 2}),
        ("native", {"Softmax": 2}),
    ],
)
def test_a_graph_is_fused_and_lowered(plain: Path, tmp_path: Path, lowering: str, ops: dict[str, int]) -> None:
    stages: list[str] = []
    report = fuse(
        plain,
        str(tmp_path / "new" / "out.onnx"),
        lowering=lowering,
        progress=lambda stage, _done=None: stages.append(stage),
    )
    assert {entry.name: entry.count for entry in report.passes} == FUSED
    assert all(entry.max_abs_difference is not None for entry in report.passes)
    assert report.count == sum(FUSED.values())
    for entry in report.passes:
        assert len({place.node for place in entry.places}) == entry.count
        assert max(place.difference for place in entry.places) == entry.max_abs_difference
    written = onnx.load(tmp_path / "new" / "out.onnx")
    found = [node.op_type for node in written.graph.node]
    assert {op: found.count(op) for op in ops} == ops
    # only the order of sums differs
    np.testing.assert_allclose(outputs(tmp_path / "new" / "out.onnx"), outputs(plain), rtol=0, atol=1e-5)
    assert stages == ["reading and fusing the graph", f"lowering to {lowering}"]
    assert FusionReport.model_validate_json(report.model_dump_json()) == report


def test_fusing_twice_changes_nothing(plain: Path, tmp_path: Path) -> None:
    fuse(plain, tmp_path / "once.onnx")
    report = fuse(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert report.count == 0
    assert (tmp_path / "twice.onnx").read_bytes() == (tmp_path / "once.onnx").read_bytes()


def test_a_graph_in_which_nothing_fuses(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(PLAIN), tmp_path / "plain.onnx")
    report = fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")
    assert [(entry.count, entry.max_abs_difference) for entry in report.passes] == [(0, None)] * 4
    with pytest.raises(PassError, match=r"fused\. Nearest misses: none, nothing looked like it"):
        fuse(tmp_path / "plain.onnx", tmp_path / "required.onnx", require_fused=True)
    assert not (tmp_path / "required.onnx").exists()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            PLAIN,
            {"lowering": "metal"},
            "Unknown lowering 'metal'; expected one of portable, onnxruntime, native, plugin",
        ),
        (UNKNOWN, {}, "cannot be fused: ONNX Runtime cannot load the graph, so nothing is known about it"),
        (UNNAMED, {}, "cannot be fused: "),
    ],
)
def test_what_cannot_be_fused_leaves_nothing(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    onnx.save(onnx.parser.parse_model(text), tmp_path / "plain.onnx")
    with pytest.raises(UserError, match=message):
        fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx", **options)  # type: ignore[arg-type]  # only texts
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]
