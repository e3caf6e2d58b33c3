"""The labels of the example data, and that nothing held out is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from examples import data
from exporter.tokenization import load_tokenizer

SOURCE = '''\
"""Doc
string."""
import os.path as path  # why

class Thing(Base):
    def run(self, x=1.5):
        """One line."""
        match = {x: f"a{self.y!r:>{x}}b" "c"}
        return self.size + self.grow(f'{f"{x}"}')
'''


def spans(name: str) -> list[str]:
    marked = data._character_classes(SOURCE) == data.TOKEN_CLASSES.index(name)
    kept = "".join(character if mark else "\0" for character, mark in zip(SOURCE, marked, strict=True))
    return [part for part in kept.split("\0") if part]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docstring", ['"""Doc\nstring."""', '"""One line."""']),
        ("comment", ["# why"]),
        ("keyword", ["import", "as", "class", "def", "return"]),
        ("definition", ["Thing", "run"]),
        ("call", ["grow"]),
        ("attribute", ["path", "size"]),
        ("literal", ["1.5", 'f"a{self.y!r:>{x}}b"', '"c"', "f'{f\"{x}\"}'"]),
        ("name", ["os", "path", "Base", "self", "x", "match", "x", "self", "self"]),
    ],
)
def test_classes_of_characters(name: str, expected: list[str]) -> None:
    assert spans(name) == expected


def test_characters_without_a_class_are_white_space() -> None:
    unmarked = data._character_classes(SOURCE) == data.IGNORED
    assert "".join(np.array(list(SOURCE))[unmarked]).isspace()


def test_passages_are_not_in_both_splits() -> None:
    trained, kept = ({item.text for item in data.passage_texts(split)} for split in ("train", "held-out"))
    assert len(kept) >= 1000
    assert not trained & kept
    lines = {line for text in trained for line in text.splitlines() if len(line.strip()) > 40}
    seen = [line in lines for text in kept for line in text.splitlines() if len(line.strip()) > 40]
    assert np.mean(seen) < 0.1  # lines that occur more than once, such as those of licences


@pytest.mark.parametrize("name", list(data.TASKS))
def test_held_out_batches(name: str) -> None:
    tokenizer = load_tokenizer(data.folder(name))
    evaluation = data.held_out(name, tokenizer)
    assert evaluation.count >= 1000
    assert name == "roformer" or sum(len(batch.labels) for batch in evaluation.batches) == 256
    first = evaluation.batches[0]
    assert first.input_ids.shape[0] == data.BATCH_SIZE
    assert first.input_ids.shape[1] <= data.TASKS[name].max_tokens
    assert first.attention_mask.min() == 0  # lengths vary
    assert ((first.input_ids == tokenizer.pad_token_id) == (first.attention_mask == 0)).all()
    assert {array.dtype.name for array in first} == {"int64"}
    assert first.labels.max() < len(evaluation.label_names)
    (again,) = data.held_out(name, tokenizer, limit=1).batches
    assert all(map(np.array_equal, first, again))


def test_a_token_has_the_class_of_its_first_character() -> None:
    tokenizer = load_tokenizer(data.folder("roberta-prelayernorm"))
    (example,) = data.encode(tokenizer, [data.LabelledText(SOURCE, data._character_classes(SOURCE))], 128)
    spelled: dict[int, str] = {}
    for token, label in zip(tokenizer.tokens(example.input_ids), example.labels.tolist(), strict=True):
        spelled[label] = spelled.get(label, "") + token.replace("Ġ", "")
    assert spelled[data.TOKEN_CLASSES.index("keyword")] == "importasclassdefreturn"
    assert spelled[data.TOKEN_CLASSES.index("definition")] == "Thingrun"
    assert {"<s>", "</s>"} <= set(tokenizer.tokens(example.input_ids[example.labels == data.IGNORED]))
