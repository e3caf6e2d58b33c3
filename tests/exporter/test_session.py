"""Running an export. The engines here look ids up in a table, so every answer can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporter import Session, load_model, load_tokenizer
from exporter.engines import Arrays, Runner
from exporter.engines.onnxruntime import OnnxRuntime
from exporter.errors import BundleError, InputError, UserError
from exporter.files import sha256
from exporter.generation import Sampling
from exporter.manifest import FILE_NAME, Manifest
from exporter.models import RoFormerConfig
from exporter.tasks import TASKS, TaskName, TensorSpec

WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "今天", "好"]
WIDTHS = {"text-classification": 3, "token-classification": 3, "fill-mask": len(WORDS), "feature-extraction": 4}
LONGEST = 6
MakeExport = Callable[..., Path]


def table(width: int) -> NDArray[np.float32]:
    """(ids, width): a row for each id, its largest entry at the id modulo the width."""
    ids = np.arange(len(WORDS))[:, None]
    rows: NDArray[np.float32] = (-((np.arange(width) - ids) % width) + 0.1 * ids).astype(np.float32)
    return rows


def lookup(task: str, *, types: bool = True, sign: int = 1) -> onnx.ModelProto:
    """Rows of the table by id, zero where masked, plus one for each token of the second type.

    A negative sign negates the table. text-classification adds the rows of all tokens; feature-extraction gives the
    first row as ``pooler_output``.
    """
    width = WIDTHS[task]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "float_mask"], ["masked"]),
    ]
    each = "masked"
    if types:
        nodes += [
            helper.make_node("Unsqueeze", ["token_type_ids", "last"], ["types"]),
            helper.make_node("Cast", ["types"], ["float_types"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["masked", "float_types"], ["typed"]),
        ]
        each = "typed"
    shape: tuple[str | int, ...] = ("batch", "sequence", width)
    outputs = {"logits": shape}
    if task == "text-classification":
        nodes.append(helper.make_node("ReduceSum", [each, "one"], ["logits"], keepdims=0))
        outputs = {"logits": ("batch", width)}
    elif task == "feature-extraction":
        nodes += [
            helper.make_node("Identity", [each], ["last_hidden_state"]),
            helper.make_node("Gather", [each, "zero"], ["pooler_output"], axis=1),
        ]
        outputs = {"last_hidden_state": shape, "pooler_output": ("batch", width)}
    else:
        nodes.append(helper.make_node("Identity", [each], ["logits"]))
    constants = {"table": sign * table(width), "last": np.array([-1]), "one": np.array([1]), "zero": np.array(0)}
    names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if types else 2]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", "sequence")) for name in names],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name, axes in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def make_export(tmp_path: Path) -> MakeExport:
    """``make_export(task, ...)``: an exported folder whose engine is ``lookup``, at int8 with the opposite sign."""

    def make(task: str, /, *, tokenizer: bool = True, types: bool = True, **values: Any) -> Path:
        folder = tmp_path / "out"
        (folder / "tokenizer").mkdir(parents=True)
        (folder / "tokenizer" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
        model = lookup(task, types=types)
        files = {}
        for precision in ("fp32", "int8"):
            name = f"onnxruntime-{precision}.onnx"
            onnx.save(lookup(task, types=types, sign=-1 if precision == "int8" else 1), folder / name)
            files[name] = sha256(folder / name)
        fields: dict[str, Any] = {
            "name": "lookup",
            "family": "roformer",
            "task": task,
            "inputs": [
                TensorSpec(name=value.name, axes=("batch", "sequence"), dtype="int64", limit=limit)
                for value, limit in zip(model.graph.input, (len(WORDS), 2, 2), strict=False)
            ],
            "outputs": [TensorSpec(name=value.name, axes=("batch",)) for value in model.graph.output],
            "pad_token_id": 1,
            "eos_token_ids": [],
            "max_tokens": LONGEST,
            "labels": ["zero", "one", "two"],
            "problem_type": None,
            "has_tokenizer": tokenizer,
            "seed": 0,
            "passes": [],
            "engines": [
                {"target": "onnxruntime", "precision": name[12:16], "file": name, "size_bytes": 1} for name in files
            ],
            "source_files": {},
            "files": files,
            "versions": {},
        }
        (folder / FILE_NAME).write_text(Manifest(**fields | values).model_dump_json())
        return folder

    return make


@pytest.fixture
def session(make_export: MakeExport) -> Session:
    return Session(make_export("token-classification"))


def softmax(row: Any) -> list[float]:
    scores = np.exp(np.asarray(row, np.float64))
    return (scores / scores.sum()).tolist()  # type: ignore[no-any-return]  # floats


# which engine


def test_the_first_precision_unless_one_is_asked_for(make_export: MakeExport) -> None:
    folder = make_export("fill-mask")
    assert Session(folder).precision == "fp32"
    assert Session(str(folder), precision="int8").precision == "int8"
    ids = np.array([[5, 6]])
    np.testing.assert_allclose(Session(folder).run(ids)["logits"], table(len(WORDS))[ids])
    np.testing.assert_allclose(Session(folder, precision="int8").run(ids)["logits"], -table(len(WORDS))[ids])


@pytest.mark.parametrize("threads", [None, 3])
def test_the_engine_gets_the_number_of_threads(
    make_export: MakeExport, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    asked: list[int | None] = []
    load = OnnxRuntime.load

    def spy(engine: OnnxRuntime, path: Path, *, threads: int | None = None) -> Runner:
        asked.append(threads)
        return load(engine, path, threads=threads)

    monkeypatch.setattr(OnnxRuntime, "load", spy)
    Session(make_export("fill-mask"), threads=threads)
    assert asked == [threads]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"precision": "fp16"}, "onnxruntime fp16"),
        ({"precision": "fp8"}, "onnxruntime fp8"),
        ({"target": "tpu"}, "tpu"),
        ({"target": "tpu", "precision": "fp32"}, "tpu fp32"),
    ],
)
def test_an_engine_that_is_not_there(make_export: MakeExport, options: dict[str, str], asked: str) -> None:
    with pytest.raises(UserError, match=f"no engine for {asked} ?; it has onnxruntime fp32, onnxruntime int8"):
        Session(make_export("fill-mask"), **options)  # type: ignore[arg-type]  # only texts


def test_a_folder_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected a folder written by rotary-press export"):
        Session(tmp_path)


def test_a_missing_engine(make_export: MakeExport) -> None:
    folder = make_export("fill-mask")
    (folder / "onnxruntime-int8.onnx").unlink()
    with pytest.raises(BundleError, match=r"onnxruntime-int8\.onnx is missing"):
        Session(folder)


# ids


def test_ids_alone_are_all_tokens_of_the_first_type(session: Session) -> None:
    ids = np.array([[5, 6, 9], [0, 3, 3]])
    found = session.run(ids)
    assert list(found) == ["logits"]
    assert found["logits"].dtype == np.float32
    np.testing.assert_allclose(found["logits"], table(3)[ids])


def test_mask_and_types_reach_the_engine(session: Session) -> None:
    ids, mask, types = np.array([[5, 6, 1]]), np.array([[1, 1, 0]]), np.array([[0, 1, 0]])
    expected = table(3)[ids] * mask[..., None] + types[..., None]
    np.testing.assert_allclose(session.run(ids, mask, types)["logits"], expected)
    np.testing.assert_allclose(session.run(ids, attention_mask=mask)["logits"], expected - types[..., None])


def test_types_are_checked_and_dropped_where_the_model_has_one(make_export: MakeExport) -> None:
    session = Session(make_export("token-classification", types=False))
    ids = np.array([[5, 6]])
    np.testing.assert_allclose(session.run(ids, token_type_ids=np.zeros_like(ids))["logits"], table(3)[ids])
    with pytest.raises(InputError, match="token_type_ids must be 0: this model has one type"):
        session.run(ids, token_type_ids=np.ones_like(ids))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.bool_])
def test_every_integer_dtype(session: Session, dtype: Any) -> None:
    np.testing.assert_allclose(session.run(np.array([[1, 0, 1]], dtype))["logits"], table(3)[[[1, 0, 1]]])


def test_the_longest_input(session: Session) -> None:
    assert session.run(np.full((2, LONGEST), 5))["logits"].shape == (2, LONGEST, 3)
    with pytest.raises(InputError, match="The input has 7 tokens; the model's positions hold 6: shorten or split"):
        session.run(np.full((2, LONGEST + 1), 5))


IDS = np.array([[5, 6], [7, 8]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[[5, 10]]], "input_ids must be from 0 to 9; got 10"),
        ([[[5, -1]]], "input_ids must be from 0 to 9; got -1"),
        ([np.array([[2**63]], np.uint64)], "input_ids must be from 0 to 9; got 9223372036854775808"),
        ([[5, 6]], r"input_ids must have the axes \(batch, sequence\); got the shape \(2,\)"),
        ([[[[5]]]], r"input_ids must have the axes .* got the shape \(1, 1, 1\)"),
        ([5], r"input_ids must have the axes .* got the shape \(\)"),
        ([[]], r"input_ids must have the axes .* got the shape \(0,\)"),
        ([np.zeros((0, 3), int)], r"input_ids must not be empty; got the shape \(0, 3\)"),
        ([np.zeros((3, 0), int)], r"input_ids must not be empty; got the shape \(3, 0\)"),
        ([[[5.0, 6.0]]], "input_ids must hold integers; got float64"),
        ([[["5"]]], "input_ids must hold integers; got <U1"),
        ([[[None]]], "input_ids must hold integers; got object"),
        ([IDS, [[1, 1]]], r"attention_mask must have the shape \(2, 2\) \(batch, sequence\); got \(1, 2\)"),
        ([IDS, [1, 1]], r"attention_mask must have the shape \(2, 2\) .* got \(2,\)"),
        ([IDS, IDS * 0.0], "attention_mask must hold integers; got float64"),
        ([IDS, IDS], "attention_mask must be from 0 to 1; got 8"),
        ([IDS, -(IDS // IDS)], "attention_mask must be from 0 to 1; got -1"),
        ([IDS, None, IDS], "token_type_ids must be from 0 to 1; got 8"),
        ([IDS, None, IDS[:1] * 0], r"token_type_ids must have the shape \(2, 2\) .* got \(1, 2\)"),
        ([IDS, None, IDS * 0.0], "token_type_ids must hold integers"),
    ],
)
def test_ids_that_do_not_fit(session: Session, inputs: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.run(*inputs)


# texts


def test_text_classification(make_export: MakeExport) -> None:
    first, second = Session(make_export("text-classification")).predict(["a a", "今天 b c"])
    logits = table(3)[[2, 5, 5, 3]].sum(axis=0)  # [CLS] a a [SEP], whatever padding the longer text brings
    assert first["text"] == "a a"
    assert first["scores"] == pytest.approx(dict(zip(["zero", "one", "two"], softmax(logits), strict=True)), rel=1e-5)
    assert first["label"] == "two"
    assert first["score"] == first["scores"]["two"] == max(first["scores"].values())
    assert second["scores"] == pytest.approx(
        dict(zip(["zero", "one", "two"], softmax(table(3)[[2, 8, 6, 7, 3]].sum(axis=0)), strict=True)), rel=1e-5
    )
    json.dumps([first, second])


def test_several_labels_are_scored_each_alone(make_export: MakeExport) -> None:
    folder = make_export("text-classification", problem_type="multi_label_classification")
    [prediction] = Session(folder).predict(["a a"])
    logits = table(3)[[2, 5, 5, 3]].sum(axis=0)
    assert list(prediction["scores"].values()) == pytest.approx((1 / (1 + np.exp(-logits))).tolist(), rel=1e-5)
    assert prediction["label"] == "two"


def test_a_regression_has_values_and_no_label(make_export: MakeExport) -> None:
    [prediction] = Session(make_export("text-classification", problem_type="regression")).predict(["a"])
    assert prediction.keys() == {"text", "values"}
    assert list(prediction["values"].values()) == pytest.approx(table(3)[[2, 5, 3]].sum(axis=0).tolist())
    json.dumps(prediction)


def test_a_single_label_is_a_regression(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WIDTHS, "text-classification", 1)
    [prediction] = Session(make_export("text-classification", labels=["grade"])).predict(["a"])
    assert prediction == {"text": "a", "values": {"grade": pytest.approx(0.1 * (2 + 5 + 3))}}


def test_token_classification(session: Session) -> None:
    short, long = session.predict(["b", "今天好 a"])
    assert [token["text"] for token in short["tokens"]] == ["b"], "neither special tokens nor padding"
    assert [(token["text"], token["start"], token["end"], token["label"]) for token in long["tokens"]] == [
        ("今天", 0, 2, "two"),  # id 8
        ("好", 2, 3, "zero"),  # id 9
        ("a", 4, 5, "two"),  # id 5
    ]
    assert [token["score"] for token in long["tokens"]] == pytest.approx(
        [max(softmax(table(3)[index])) for index in (8, 9, 5)], rel=1e-5
    )
    json.dumps([short, long])


def test_fill_mask(make_export: MakeExport) -> None:
    filled, plain = Session(make_export("fill-mask")).predict(["a [MASK] [MASK]", "b"])
    assert [mask["position"] for mask in filled["masks"]] == [2, 3]
    words = filled["masks"][0]["words"]
    # The row of [MASK], id 4, is largest at 4 and falls from there on, around the end.
    assert [word["word"] for word in words] == ["", "a", "b", "c", "今天"], "special tokens decode to nothing"
    scores = softmax(table(len(WORDS))[4])
    assert [word["score"] for word in words] == pytest.approx([scores[index] for index in (4, 5, 6, 7, 8)], rel=1e-5)
    assert plain["masks"] == []
    json.dumps([filled, plain])


def test_feature_extraction(make_export: MakeExport) -> None:
    short, long = Session(make_export("feature-extraction")).predict(["a", "a b c"])
    rows = table(4)[[2, 5, 3]]
    np.testing.assert_allclose(short["last_hidden_state"], rows)  # without the padding
    np.testing.assert_allclose(short["pooler_output"], rows[0])
    assert len(long["last_hidden_state"]) == 5
    json.dumps([short, long])


def test_features_of_a_model_without_a_pooler(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(make_export("feature-extraction"))
    run = session.run
    monkeypatch.setattr(session, "run", lambda *ids: {"last_hidden_state": run(*ids)["last_hidden_state"]})
    assert session.predict(["a"])[0].keys() == {"text", "last_hidden_state"}


@pytest.mark.parametrize("task", WIDTHS)
def test_a_text_that_is_too_long(make_export: MakeExport, task: str) -> None:
    session = Session(make_export(task))
    assert len(session.predict(["a a a a"])) == 1
    with pytest.raises(InputError, match="Text 1 has 7 tokens, special ones included; the limit is 6"):
        session.predict(["a", "a a a a a"])


@pytest.mark.parametrize("texts", [[], (), "a b", [b"a"]])
def test_no_texts(session: Session, texts: Any) -> None:
    with pytest.raises(InputError):
        session.predict(texts)


def test_without_a_tokenizer_only_ids_can_be_run(make_export: MakeExport) -> None:
    session = Session(make_export("token-classification", tokenizer=False))
    with pytest.raises(UserError, match=r"exported without tokenizer files: give ids to Session\.run"):
        session.predict(["a"])
    assert session.run(np.array([[5]]))["logits"].shape == (1, 1, 3)


class Stand(Runner):
    """Answers with ``answer(inputs)`` and remembers what it was asked."""

    def __init__(self, answer: Callable[[Mapping[str, NDArray[Any]]], Arrays]) -> None:
        self.answer = answer
        self.asked: list[dict[str, NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        self.asked.append(dict(inputs))
        return self.answer(inputs)


def stand_in(
    make_export: MakeExport,
    monkeypatch: pytest.MonkeyPatch,
    task: TaskName,
    answer: Callable[[Mapping[str, NDArray[Any]]], Arrays],
    **values: Any,
) -> tuple[Session, Stand]:
    """A session of ``task`` whose engine is ``answer``; the config is RoFormer's, with one layer of one head."""
    runner = Stand(answer)
    monkeypatch.setattr(OnnxRuntime, "load", lambda *_, **__: runner)
    config = RoFormerConfig(
        vocab_size=len(WORDS), hidden_size=4, num_hidden_layers=1, num_attention_heads=1, is_decoder=True
    )
    specs = {"inputs": TASKS[task].input_specs(config), "outputs": TASKS[task].output_specs(config)}
    return Session(make_export("fill-mask", **{**specs, "task": task, "max_tokens": 12, **values})), runner


# questions


def marks(*wanted: int) -> Callable[[Mapping[str, NDArray[Any]]], Arrays]:
    """An engine that knows where the answer is: from the first wanted id to the second."""

    def answer(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        ids = inputs["input_ids"]
        return {
            name: np.where(ids == id_, 9.0, 0.0).astype(np.float32)
            for name, id_ in zip(("start_logits", "end_logits"), wanted, strict=True)
        }

    return answer


def test_question_answering(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    session, runner = stand_in(make_export, monkeypatch, "question-answering", marks(6, 8))
    first, second = session.predict(["b 今天", "c"], contexts=["a b c 今天 好", "a"])
    assert (first["answer"], first["start"], first["end"]) == ("b c 今天", 2, 8), "in the context, not in the question"
    among_five = np.exp(9) / (np.exp(9) + 4)
    assert first["score"] == pytest.approx(among_five**2)
    assert (second["answer"], second["score"]) == ("a", 1.0)  # nothing else to say
    assert runner.asked[0]["token_type_ids"].tolist() == [[0] * 4 + [1] * 6]
    json.dumps([first, second])


def test_an_answer_may_lie_in_any_window_of_a_long_context(
    make_export: MakeExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, runner = stand_in(make_export, monkeypatch, "question-answering", marks(6, 8))
    context = "a " * 40 + "b 今天" + " c" * 10
    [prediction] = session.predict(["c"], contexts=[context])
    assert prediction["answer"] == context[prediction["start"] : prediction["end"]] == "b 今天"
    windows = runner.asked[0]["input_ids"]
    assert windows.shape[0] > 5
    assert windows.shape[1] == 12


def test_an_answer_does_not_end_before_it_starts(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = stand_in(make_export, monkeypatch, "question-answering", marks(8, 6))
    [prediction] = session.predict(["c"], contexts=["b a 今天"])
    assert prediction["start"] < prediction["end"]
    assert prediction["score"] < 0.01


# choices


def test_multiple_choice(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    def count_of_c(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        return {"logits": (inputs["input_ids"] == 7).sum(axis=-1).astype(np.float32)}

    session, runner = stand_in(make_export, monkeypatch, "multiple-choice", count_of_c)
    first, second = session.predict(["a", "b"], choices=[["b", "c c 今天", "c"], ["c"]])
    assert (first["choice"], first["index"]) == ("c c 今天", 1)
    assert [entry["score"] for entry in first["choices"]] == pytest.approx(softmax([0, 2, 1]))
    assert second["score"] == 1.0
    assert runner.asked[0]["input_ids"].tolist() == [
        [[2, 5, 3, 6, 3, 1, 1], [2, 5, 3, 7, 7, 8, 3], [2, 5, 3, 7, 3, 1, 1]]
    ]
    json.dumps([first, second])


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("question-answering", {}, "question-answering needs contexts, one for each text; got 0"),
        ("question-answering", {"contexts": ["a", "b"]}, "needs contexts, one for each text; got 2"),
        ("multiple-choice", {}, "multiple-choice needs choices"),
        ("multiple-choice", {"choices": [["a"]], "contexts": ["a"]}, "multiple-choice takes texts alone, no contexts"),
        ("multiple-choice", {"choices": [[]]}, "at least one choice"),
        ("fill-mask", {"choices": [["a"]]}, "fill-mask takes texts alone, no choices"),
    ],
)
def test_second_texts_that_do_not_fit_the_task(
    make_export: MakeExport, monkeypatch: pytest.MonkeyPatch, task: TaskName, more: dict[str, Any], message: str
) -> None:
    session, _ = stand_in(make_export, monkeypatch, task, lambda _: {})
    with pytest.raises(UserError, match=message):
        session.predict(["a"], **more)


# generation


def next_word(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Best is the id after the last one; the cache remembers the ids."""
    ids = inputs["input_ids"]
    logits = -np.abs(np.arange(len(WORDS)) - ids[..., None] - 1).astype(np.float32)
    states = np.repeat(ids[:, None, :, None], 4, axis=-1).astype(np.float32)
    return {"logits": logits} | {
        f"present.0.{kind}": np.concatenate((inputs[f"past_key_values.0.{kind}"], states), axis=2)
        for kind in ("key", "value")
    }


def test_generation_from_texts(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    session, runner = stand_in(make_export, monkeypatch, "text-generation", next_word, eos_token_ids=[8])
    first, second, third = session.generate(["a", "a b", ""], sampling=Sampling(max_new_tokens=4))
    assert first == {"text": "a", "continuation": "b c 今天", "ids": [6, 7, 8], "finish_reason": "eos"}
    assert (second["ids"], second["finish_reason"]) == ([7, 8], "eos")
    assert (third["ids"], third["finish_reason"]) == ([3, 4, 5, 6], "length")  # [CLS] is 2
    prompt, step = runner.asked[:2]
    assert prompt["input_ids"].tolist() == [[1, 2, 5], [2, 5, 6], [1, 1, 2]], (
        "a begin token, padding on the left, no end"
    )
    assert prompt["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert prompt["past_key_values.0.key"].shape == (3, 1, 0, 4)
    assert step["input_ids"].tolist() == [[6], [7], [3]]
    assert step["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert step["past_key_values.0.key"][..., 0].tolist() == [[row] for row in prompt["input_ids"].tolist()]
    assert step["token_type_ids"].shape == (3, 1)
    assert session.predict(["b"])[0]["finish_reason"] == "eos"


@pytest.mark.parametrize("texts", ["a b", [], ""])
def test_one_text_is_no_list_of_texts(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch, texts: Any) -> None:
    """A str is a sequence of its characters, which nobody means."""
    session, runner = stand_in(make_export, monkeypatch, "text-generation", next_word)
    for call in (session.predict, session.generate):
        with pytest.raises(InputError, match="texts must be a list of at least one text"):
            call(texts)
    assert not runner.asked


def test_generation_ends_where_positions_end(make_export: MakeExport, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = stand_in(make_export, monkeypatch, "text-generation", next_word, max_tokens=4)
    [prediction] = session.generate(["a"])
    assert (prediction["ids"], prediction["finish_reason"]) == ([6, 7], "positions")
    with pytest.raises(InputError, match="The longest prompt has 4 tokens, and the model's positions hold 4"):
        session.generate(["a a a"])


def test_only_text_generation_generates(session: Session) -> None:
    with pytest.raises(UserError, match="was exported for token-classification; generating needs text-generation"):
        session.generate(["a"])


# a real export


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-2), ("int8", 0.3)])
@pytest.mark.parametrize("threads", [None, 1])
def test_an_export_predicts_what_the_checkpoint_predicts(
    exported: Path, checkpoint: Path, precision: str, tolerance: float, threads: int | None
) -> None:
    texts = ["今天 天气 非常好", "a", "b z 好 [UNK]"]
    batch = load_tokenizer(checkpoint)(texts)
    with torch.no_grad():
        logits = load_model(checkpoint)(
            *(torch.from_numpy(ids) for ids in (batch.input_ids, batch.attention_mask, batch.token_type_ids))
        ).logits
    session = Session(exported, precision=precision, threads=threads)
    assert session.precision == precision
    for prediction, expected in zip(session.predict(texts), logits.softmax(-1).tolist(), strict=True):
        assert prediction["scores"] == pytest.approx(
            dict(zip(["bad", "fair", "good"], expected, strict=True)), abs=tolerance
        )
