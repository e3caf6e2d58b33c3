"""Models of ``transformers`` itself, spelled by torch's two exporters at several opsets and by Optimum: all fuse.

And again after other tools have rewritten them: constant folding, ONNX Runtime's optimizer, onnxslim, half precision.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, version_converter
from onnxruntime.transformers.float16 import convert_float_to_float16
from polygraphy.backend.onnx import fold_constants
from polygraphy.logger import G_LOGGER
from torch.jit._trace import TracerWarning

from tests import on_models
from tests.traced_models import TINY

GOLDEN = Path(__file__).parents[1] / "golden"
Feeds = dict[str, NDArray[Any]]
Run = Callable[[ModelProto, Feeds], Feeds]

# Sizes that the passes do not observe (graph_passes/observation.py), one token and nearly the last position among them.
SIZES = tuple(
    {"batch": batch, "batch_size": batch, "sequence": sequence, "sequence_length": sequence}
    for batch, sequence in ((4, 9), (1, 1), (2, 19))
)
# The rounding of float32 in two layers, whose results are of magnitude one; a fused op adds none of its own to it.
TOLERANCE = 1e-5
# What an export says that is no finding about its graph.
EXPECTED_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r"You are using the legacy TorchScript-based ONNX export.*", DeprecationWarning),  # the older exporter is meant
    (r"The feature will be removed.*", DeprecationWarning),  # as above
    (r".*", TracerWarning),  # sizes taken for constants: whether that matters is what these tests find out
    (r"Exporting aten::index operator of advanced indexing.*", UserWarning),  # no index is negative
    (r".*shares the same shape constraints with another axis.*", UserWarning),  # one axis name serves both inputs
    (r".*isinstance\(treespec, LeafSpec\).*", FutureWarning),  # torch, of its own code
)


class Case(NamedTuple):
    """A model and how it is exported."""

    family: str
    head: str
    attention: str
    dynamo: bool
    opset: int
    config: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        exporter = "dynamo" if self.dynamo else "torchscript"
        return "-".join([self.family, self.head, self.attention, *self.config, exporter, str(self.opset)])

    @property
    def expected(self) -> dict[str, int]:
        layers = self.config.get("num_hidden_layers", TINY["num_hidden_layers"])
        rotations = 0 if self.family != "RoFormer" else 3 if "rotary_value" in self.config else 2
        return expected(layers, rotations, has_vocabulary=self.head in ("ForMaskedLM", "ForCausalLM"))


class Recorded(NamedTuple):
    """A graph of two layers in tests/golden, which says how it was made."""

    name: str
    rotations: int
    has_vocabulary: bool = False

    @property
    def expected(self) -> dict[str, int]:
        return expected(2, self.rotations, has_vocabulary=self.has_vocabulary)


def expected(layers: int, rotations: int, *, has_vocabulary: bool) -> dict[str, int]:
    """Some rotations, two norms, an attention and a GELU per layer; the norm of the embeddings, the GELU of a head."""
    return {
        "fuse_rotary": rotations * layers,
        "fuse_residual_layer_norm": 2 * layers + 1,
        "fuse_attention": layers,
        "fuse_bias_gelu": layers + has_vocabulary,
    }


ONE_LAYER = {"num_hidden_layers": 1}
DECODER = {"is_decoder": True, "use_cache": False, "num_hidden_layers": 1}
CASES = (
    Case("RoFormer", "Model", "eager", False, 14),
    Case("RoFormer", "Model", "eager", True, 18, {"rotary_value": True, "num_hidden_layers": 1}),
    Case("RoFormer", "Model", "eager", True, 23),
    Case("RoFormer", "ForMaskedLM", "eager", False, 17, ONE_LAYER),
    Case("RoFormer", "ForCausalLM", "eager", False, 20, DECODER),
    Case("RobertaPreLayerNorm", "Model", "eager", False, 14),
    Case("RobertaPreLayerNorm", "Model", "sdpa", False, 20),
    Case("RobertaPreLayerNorm", "Model", "sdpa", True, 18, ONE_LAYER),
    Case("RobertaPreLayerNorm", "ForCausalLM", "sdpa", True, 23, DECODER),  # the standard's own Attention
    Case("RobertaPreLayerNorm", "ForCausalLM", "sdpa", False, 18, DECODER),
    Recorded("optimum-roformer-feature-extraction", 2),
    Recorded("optimum-roformer-fill-mask-slim", 2, has_vocabulary=True),
    Recorded("optimum-roberta-prelayernorm-feature-extraction", 0),
    Recorded("optimum-roberta-prelayernorm-text-classification-slim", 0),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class FirstResult(torch.nn.Module):
    """A model as a function of two tensors that gives one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(input_ids, attention_mask=attention_mask, return_dict=False)[0]
        return result


@pytest.fixture(scope="module")
def export(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case | Recorded], ModelProto]:
    """``export(case)``: its graph, at opset 20 at least. The graphs are shared: copy one before changing it."""

    @functools.cache
    def exported(name: str) -> ModelProto:
        case = next(known for known in CASES if known.name == name)
        if isinstance(case, Recorded):
            return version_converter.convert_version(onnx.load(GOLDEN / f"{name}.onnx"), 20)
        torch.manual_seed(0)
        config = getattr(transformers, f"{case.family}Config")(**TINY | dict(case.config))
        config._attn_implementation = case.attention
        inner = getattr(transformers, case.family + case.head)(config)
        with torch.no_grad():
            for parameter in inner.parameters():
                if parameter.requires_grad:  # the table of sinusoids is computed, not learnt
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model = FirstResult(inner).eval()
        with warnings.catch_warnings():
            for message, category in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            if case.dynamo:
                graph = by_dynamo(model, case.opset)
            else:
                graph = by_torchscript(model, case.opset, tmp_path_factory.mktemp("export") / "model.onnx")
            return graph if case.opset >= 20 else version_converter.convert_version(graph, 20)

    return lambda case: exported(case.name)


@pytest.fixture(scope="module")
def fuse(export: Callable[[Case | Recorded], ModelProto]) -> Callable[[Case | Recorded], ModelProto]:
    """``fuse(case)``: its graph, with everything fused that is to be. Shared, too."""

    @functools.cache
    def fused(name: str) -> ModelProto:
        case = next(known for known in CASES if known.name == name)
        return on_models.fuse(export(case), expected=case.expected)[0]

    return lambda case: fused(case.name)


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(14).reshape(2, 7) + 2, torch.ones(2, 7, dtype=torch.int64)


def by_dynamo(model: torch.nn.Module, opset: int) -> ModelProto:
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=20)}
    program = torch.onnx.export(
        model,
        samples(),
        input_names=["input_ids", "attention_mask"],
        output_names=["result"],
        dynamic_shapes=(axes, axes),
        dynamo=True,
        opset_version=opset,
        verbose=False,
    )
    assert program is not None
    graph: ModelProto = program.model_proto
    return graph


def by_torchscript(model: torch.nn.Module, opset: int, path: Path) -> ModelProto:
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        model,
        samples(),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["result"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes},
        dynamo=False,
        opset_version=opset,
    )
    return onnx.load(path)


@pytest.fixture
def assert_same(run: Run, make_feeds: Callable[..., Feeds]) -> Callable[..., None]:
    """``assert_same(before, after)``: the same result at sizes that the passes have not seen."""

    def check(before: ModelProto, after: ModelProto, tolerance: float = TOLERANCE) -> None:
        for seed, sizes in enumerate(SIZES):
            feeds = make_feeds(before, seed=seed, **sizes)
            (wanted,), (found,) = run(before, feeds).values(), run(after, feeds).values()
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)

    return check


@every_case
def test_everything_is_fused_and_computes_the_same(
    case: Case | Recorded,
    export: Callable[[Case | Recorded], ModelProto],
    fuse: Callable[[Case | Recorded], ModelProto],
    assert_same: Callable[..., None],
) -> None:
    plain, fused = export(case), fuse(case)
    assert_same(plain, fused)
    for lowering in ("onnxruntime", "native"):
        lowered, _ = on_models.lower(fused, lowering)
        assert_same(plain, lowered)


@every_case
def test_it_loads_and_runs_at_every_precision(
    case: Case | Recorded, fuse: Callable[[Case | Recorded], ModelProto], run: Run, make_feeds: Callable[..., Feeds]
) -> None:
    fused = fuse(case)
    for precision in ("fp16", "int8"):
        at_precision, _ = on_models.change_precision(fused, precision)
        (result,) = run(on_models.lower(at_precision, "onnxruntime")[0], make_feeds(fused, **SIZES[0])).values()
        assert np.isfinite(result).all()


@every_case
@pytest.mark.parametrize("rewrite", ["folded", "optimised", "slim"])
def test_what_another_tool_has_rewritten_is_fused_as_well(
    case: Case | Recorded,
    rewrite: str,
    export: Callable[[Case | Recorded], ModelProto],
    assert_same: Callable[..., None],
    tmp_path: Path,
) -> None:
    plain = export(case)
    rewritten = {"folded": folded, "optimised": optimised, "slim": slim}[rewrite](plain, tmp_path)
    assert {node.domain for node in rewritten.graph.node} <= {"", "ai.onnx"}
    fused, _ = on_models.fuse(rewritten, expected=case.expected)
    assert_same(plain, fused)


# Ops that a converter may leave in float32, with casts around them. It leaves dynamo's graphs out of order then.
SENSITIVE = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt")
HALVED = [pytest.param(case, (), id=f"all-{case.name}") for case in CASES] + [
    pytest.param(case, SENSITIVE, id=f"most-{case.name}") for case in CASES if not getattr(case, "dynamo", False)
]


@pytest.mark.parametrize(("case", "kept"), HALVED)
def test_what_was_converted_to_half_precision_is_fused_as_well(
    case: Case | Recorded,
    kept: tuple[str, ...],
    export: Callable[[Case | Recorded], ModelProto],
    assert_same: Callable[..., None],
) -> None:
    plain = export(case)
    fused, _ = on_models.fuse(halved(plain, kept), expected=case.expected)
    assert_same(plain, fused, tolerance=2e-2)  # 2^-11 of values up to 5, a few times over


def folded(model: ModelProto, _folder: Path) -> ModelProto:
    """As polygraphy folds constants, shapes included."""
    copy = ModelProto()
    copy.CopyFrom(model)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        result: ModelProto = fold_constants(copy, partitioning="basic")
    return result


def optimised(model: ModelProto, folder: Path) -> ModelProto:
    """As ONNX Runtime writes what it makes of a graph before it looks for ops of its own.

    It also moves the transposition of the keys behind one product of their rotation: half of it then works on
    (B, S, H, D).
    """
    path = folder / "optimised.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def slim(model: ModelProto, _folder: Path) -> ModelProto:
    """As onnxslim writes it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    result: ModelProto = onnxslim.slim(copy)
    return result


def halved(model: ModelProto, kept: tuple[str, ...]) -> ModelProto:
    """As ONNX Runtime's converter writes it, which keeps inputs and outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    result: ModelProto = convert_float_to_float16(copy, keep_io_types=True, op_block_list=list(kept))
    return result
