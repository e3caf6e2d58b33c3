"""Ranges from texts: what counts, that they are those of the model, and what bad input says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from exporter.calibration import Magnitudes, Ranges, batches_of_texts, calibrate, fingerprint, read_texts
from exporter.errors import InputError, PassError, UserError
from exporter.models import RobertaPreLayerNormConfig
from exporter.onnx_files import load_onnx, save_onnx
from exporter.tasks import TASKS, TaskName, TensorSpec
from exporter.tokenization import Tokenizer, load_tokenizer
from graph_passes import pipeline
from graph_passes.graph_tools import copy_graph, import_model, open_session, with_weights_as_inputs
from graph_passes.quantization import tensors_to_quantize

TEXTS = ["今天天气非常好", "a b c", "今天", "天气好。x y z"]
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def fused(traced: onnx.ModelProto) -> gs.Graph:
    return pipeline.fuse(import_model(traced))[0]


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def specs(checkpoint: Path) -> tuple[TensorSpec, ...]:
    from exporter import models

    return TASKS["text-classification"].input_specs(models.load_config(checkpoint))


@pytest.fixture
def batches(tokenizer: Tokenizer, specs: tuple[TensorSpec, ...]) -> list[Arrays]:
    return list(batches_of_texts(tokenizer, TEXTS, specs, 12, batch_size=2))


def values_of(graph: gs.Graph, batch: Arrays) -> Arrays:
    """Every tensor that is to be quantised, on one batch."""
    names = [tensor.name for tensor in tensors_to_quantize(graph)]
    watched = copy_graph(graph)
    watched.outputs = [watched.tensors()[name] for name in names]
    model, weights = with_weights_as_inputs(watched)
    return dict(zip(names, open_session(model).run(names, batch | weights), strict=True))


# What is found.


def test_the_maximum_is_that_of_all_tokens_of_all_batches(fused: gs.Graph, batches: list[Arrays]) -> None:
    found = calibrate(fused, batches, method="max")
    expected: dict[str, float] = {}
    for batch in batches:
        is_token = batch["attention_mask"] == 1
        for name, array in values_of(fused, batch).items():
            expected[name] = max(expected.get(name, 0.0), float(np.abs(array[is_token]).max()))
    assert found.ranges == expected
    assert len(expected) == 4 * 2
    assert (found.method, found.percentile, found.samples) == ("max", None, 4)
    assert (
        found.tokens
        == sum(int(batch["attention_mask"].sum()) for batch in batches)
        < sum(batch["attention_mask"].size for batch in batches)
    )


def test_padding_does_not_count(fused: gs.Graph, batches: list[Arrays]) -> None:
    wide = {name: np.pad(array, ((0, 0), (0, 20 - array.shape[1]))) for name, array in batches[0].items()}
    assert wide["attention_mask"].sum() == batches[0]["attention_mask"].sum()
    plain, padded = (calibrate(fused, [batch], percentile=50) for batch in (batches[0], wide))
    assert padded.tokens == plain.tokens
    for name, value in plain.ranges.items():
        assert padded.ranges[name] == pytest.approx(value, rel=1e-2)
    everything = {**wide, "attention_mask": np.ones_like(wide["attention_mask"])}
    counted = calibrate(fused, [everything], percentile=50).ranges
    assert any(abs(counted[name] - value) > 0.05 * value for name, value in plain.ranges.items()), "it would show"


def test_neither_the_order_nor_the_size_of_batches_matters(
    fused: gs.Graph, batches: list[Arrays], tokenizer: Tokenizer, specs: tuple[TensorSpec, ...]
) -> None:
    forwards, backwards = (calibrate(fused, order) for order in (batches, batches[::-1]))
    assert forwards == backwards
    assert forwards.percentile == 99.99
    single = calibrate(fused, batches_of_texts(tokenizer, TEXTS, specs, 12, batch_size=1))
    assert single.samples == forwards.samples
    assert single.tokens == forwards.tokens
    for name, value in forwards.ranges.items():
        assert single.ranges[name] == pytest.approx(value, rel=1e-2)


def test_a_percentile_is_below_the_maximum(fused: gs.Graph, batches: list[Arrays]) -> None:
    largest, most = calibrate(fused, batches, method="max"), calibrate(fused, batches, percentile=80)
    assert all(most.ranges[name] < value for name, value in largest.ranges.items())
    assert calibrate(fused, batches, percentile=100).ranges == largest.ranges


def test_batches_are_taken_one_by_one(fused: gs.Graph, batches: list[Arrays]) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Arrays]:
        for number in range(3):
            taken.append(number)
            yield batches[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(fused, endless())
    assert taken == [0, 1, 2]


def test_ranges_make_static_int8(fused: gs.Graph, batches: list[Arrays]) -> None:
    ranges = calibrate(fused, batches).of(fused)
    changed, (quantised, _) = pipeline.change_precision(fused, "int8", ranges=ranges)
    assert quantised.count == 12
    assert sum(node.op == "QuantizeLinear" for node in changed.nodes) == len(ranges) == 8


numbers = st.floats(-(2.0**100), 2.0**100, width=32)


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=numbers), st.floats(0.01, 1.0))
def test_a_histogram_reaches_its_share_within_a_bin(values: NDArray[np.float32], share: float) -> None:
    histogram = Magnitudes()
    for part in np.array_split(values, 3):
        histogram.add(part)
    found = histogram.reaching(share)
    magnitudes = np.sort(np.abs(values))
    exact = float(magnitudes[int(np.ceil(share * values.size)) - 1])
    assert exact <= found <= max(exact * (1 + 2.0**-8), 2.0**-126)
    assert found <= float(magnitudes[-1])
    assert histogram.reaching(1.0) == float(magnitudes[-1])
    assert histogram.counts.sum() == values.size


# Whose they are.


def test_ranges_survive_a_file(fused: gs.Graph, batches: list[Arrays], tmp_path: Path) -> None:
    ranges = calibrate(fused, batches)
    ranges.save(tmp_path / "calibration.json")
    loaded = Ranges.load(tmp_path / "calibration.json")
    assert loaded == ranges
    assert loaded.of(fused) == ranges.ranges


def test_a_model_is_known_again_after_a_file(fused: gs.Graph, traced: onnx.ModelProto, tmp_path: Path) -> None:
    save_onnx(fused, tmp_path / "model.onnx")
    again, _ = pipeline.fuse(import_model(traced))
    assert fingerprint(load_onnx(tmp_path / "model.onnx")) == fingerprint(again) == fingerprint(fused)


@pytest.mark.parametrize("change", ["weight", "small constant", "name", "attribute"])
def test_ranges_of_another_model_are_refused(fused: gs.Graph, batches: list[Arrays], change: str) -> None:
    other = copy_graph(fused)
    constants = [tensor for tensor in other.tensors().values() if isinstance(tensor, gs.Constant)]
    if change == "name":
        tensors_to_quantize(other)[0].name += "_new"
    elif change == "attribute":
        next(node for node in other.nodes if node.op == "ResidualLayerNorm").attrs["epsilon"] = 1e-3
    else:
        size = max if change == "weight" else min
        chosen = size((c for c in constants if c.values.dtype == np.float32), key=lambda c: c.values.size)
        chosen.values = np.asarray(chosen.values + np.float32(1))
    ranges = calibrate(fused, batches)
    with pytest.raises(UserError, match=r"These ranges are of another model: .*Calibrate again\."):
        ranges.of(other)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda content: content["ranges"].update(x=-1.0), r"ranges\.x: "),
        (lambda content: content.pop("model"), "model: Field required"),
        (lambda content: content.update(format=2), "format: "),
        (lambda content: content.update(more=1), "more: Extra inputs"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], problem: str) -> None:
    path = tmp_path / "calibration.json"
    Ranges(method="max", samples=1, tokens=2, model="0", ranges={"x": 1.0}).save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=rf"calibration\.json holds no ranges: {problem}"):
        Ranges.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calibration.json").write_bytes(content)
    with pytest.raises(UserError, match="holds no ranges: the file: "):
        Ranges.load(tmp_path / "calibration.json")
    with pytest.raises(UserError, match=r"no file at .*Static int8 needs calibration data"):
        Ranges.load(tmp_path / "missing.json")


# Bad input.


def test_without_texts_nothing_is_made_up(fused: gs.Graph, batches: list[Arrays]) -> None:
    with pytest.raises(UserError, match=r"no text to calibrate on\. Static int8 needs calibration data: a text file"):
        calibrate(fused, [])
    padding = {**batches[0], "attention_mask": np.zeros_like(batches[0]["attention_mask"])}
    with pytest.raises(UserError, match="no text to calibrate on"):
        calibrate(fused, [padding])
    with pytest.raises(PassError, match="Static int8 needs calibration data"):
        pipeline.change_precision(fused, "int8", ranges={})


def test_options_are_checked(fused: gs.Graph, batches: list[Arrays]) -> None:
    with pytest.raises(UserError, match="Unknown calibration method 'guess'; expected one of max, percentile"):
        calibrate(fused, batches, method="guess")  # type: ignore[arg-type]
    for percentile in (0.0, 100.5, float("nan")):
        with pytest.raises(UserError, match="must be above 0 and at most 100"):
            calibrate(fused, batches, percentile=percentile)


def test_a_batch_must_fit_the_graph(fused: gs.Graph, batches: list[Arrays]) -> None:
    lacking = {name: array for name, array in batches[0].items() if name != "token_type_ids"}
    with pytest.raises(InputError, match="every input of the graph; token_type_ids are missing"):
        calibrate(fused, [lacking])
    with pytest.raises(InputError, match="does not run on this batch"):
        calibrate(fused, [{**batches[0], "input_ids": batches[0]["input_ids"] + 1000}])


def test_a_graph_that_is_not_fused_has_nothing_to_quantise(traced: onnx.ModelProto, batches: list[Arrays]) -> None:
    with pytest.raises(UserError, match="nothing to quantise in the graph: expected a fused one"):
        calibrate(import_model(traced), batches)


@pytest.mark.parametrize(("factor", "problem"), [(0.0, "is zero throughout"), (np.inf, "is not finite")])
def test_a_tensor_that_has_no_range_is_named(
    fused: gs.Graph, batches: list[Arrays], factor: float, problem: str
) -> None:
    broken = copy_graph(fused)
    last = tensors_to_quantize(broken)[-1]
    made = last.inputs[0]
    factors = gs.Constant("factor", np.array(factor, np.float32))
    inner = gs.Variable("inner", np.float32, last.shape)
    made.outputs = [inner]
    broken.nodes.append(gs.Node("Mul", "broken", {}, [inner, factors], [last]))
    with pytest.raises(UserError, match=f"The tensor '{last.name}' {problem}"):
        calibrate(broken.toposort(), batches)


# Texts.


def test_lines_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\n\n  two  \n\t\n三\u2028四\n".encode())
    assert read_texts(path) == ["one", "two", "三\u2028四"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no text: every line is blank"),
        (b" \n\n", "holds no text: every line is blank"),
        (b"good\n\xff\xfe", "is not UTF-8: byte 5 cannot be decoded"),
    ],
)
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_texts(path)
    with pytest.raises(UserError, match="no file at"):
        read_texts(tmp_path / "missing.txt")


def test_texts_become_batches(tokenizer: Tokenizer, specs: tuple[TensorSpec, ...]) -> None:
    first, second, third = batches_of_texts(tokenizer, [*TEXTS, "今天" * 30], specs, 12, batch_size=2)
    assert list(first) == [spec.name for spec in specs]
    expected = tokenizer(TEXTS[:2])
    np.testing.assert_array_equal(first["input_ids"], expected.input_ids)
    np.testing.assert_array_equal(first["attention_mask"], expected.attention_mask)
    assert (len(second["input_ids"]), third["input_ids"].shape) == (2, (1, 12)), "the long one is cut"


def roberta(task: TaskName, *, position_ids: bool = False, **options: Any) -> tuple[TensorSpec, ...]:
    config = RobertaPreLayerNormConfig(
        vocab_size=41, hidden_size=6, num_hidden_layers=1, num_attention_heads=3, pad_token_id=1, **options
    )
    return TASKS[task].input_specs(config, position_ids=position_ids)


def test_choices_caches_and_positions_are_filled_in(tokenizer: Tokenizer) -> None:
    [choices] = batches_of_texts(tokenizer, TEXTS, roberta("multiple-choice"), 12)
    assert choices["input_ids"].shape == choices["attention_mask"].shape
    assert choices["input_ids"].shape[:2] == (4, 1)
    [decoder] = batches_of_texts(tokenizer, TEXTS, roberta("text-generation", is_decoder=True, type_vocab_size=1), 12)
    assert decoder["past_key_values.0.key"].shape == (4, 3, 0, 2)
    assert "token_type_ids" not in decoder
    [counted] = batches_of_texts(tokenizer, TEXTS, roberta("fill-mask", position_ids=True), 12)
    np.testing.assert_array_equal(
        counted["position_ids"], counted["attention_mask"].cumsum(axis=1) * counted["attention_mask"] + 1
    )


def test_texts_that_the_model_cannot_read_are_refused(tokenizer: Tokenizer, specs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(UserError, match="no text to calibrate on"):
        list(batches_of_texts(tokenizer, [], specs, 12))
    decoder = roberta("fill-mask", is_decoder=True, add_cross_attention=True)
    with pytest.raises(UserError, match="reads an encoder's states, which texts do not give"):
        list(batches_of_texts(tokenizer, TEXTS, decoder, 12))
    small = [spec.model_copy(update={"limit": 7}) if spec.name == "input_ids" else spec for spec in specs]
    with pytest.raises(InputError, match="input_ids must be from 0 to 6"):
        list(batches_of_texts(tokenizer, TEXTS, small, 12))
