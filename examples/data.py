"""Labelled texts from the source of Python's standard library, read where the interpreter has it.

Nothing is downloaded and no text is stored. What is held out depends on content and paths alone, so it stays held
out when lines move between Python versions.
"""

from __future__ import annotations

import io
import keyword
import sysconfig
import tokenize
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporter.tokenization import Tokenizer

__all__ = [
    "ORIGINS",
    "TASKS",
    "TOKEN_CLASSES",
    "EvaluationBatch",
    "EvaluationSet",
    "Example",
    "LabelledText",
    "Task",
    "encode",
    "folder",
    "held_out",
    "pad",
    "passage_examples",
    "passage_texts",
    "token_class_examples",
    "token_class_texts",
]

Ids = NDArray[np.int64]
Split = Literal["train", "held-out"]

IGNORED = -100  # the label of what does not count
TOKEN_CLASSES = ("name", "attribute", "call", "definition", "keyword", "literal", "docstring", "comment", "operator")
# The packages and modules of each class: those that are large in every Python since 3.10.
ORIGINS = {
    "archives": ("tarfile", "zipfile"),
    "asyncio": ("asyncio",),
    "dates": ("_pydatetime", "_strptime", "calendar", "datetime", "zoneinfo"),
    "decimal": ("_pydecimal",),
    "email": ("email",),
    "multiprocessing": ("multiprocessing",),
    "options": ("argparse", "optparse"),
    "pickle": ("pickle", "pickletools"),
    "typing": ("typing",),
    "unittest": ("unittest",),
    "xml": ("xml",),
}
# Not installed everywhere, or tables and not code.
SKIPPED = {
    "config",
    "dist-packages",
    "distutils",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtle.py",
    "turtledemo",
}

WINDOW_CHARACTERS = (220, 300, 380)  # in turn, so that lengths vary
PASSAGE_CHARACTERS = (300, 850)  # the least and the most
CHUNK_LINES = 40  # on average; a chunk of lines is held out, or trained on, as a whole
BATCH_SIZE = 16


@dataclass(frozen=True)
class LabelledText:
    """A text with its class, () int64, or with the class of each character, (len(text),) int64."""

    text: str
    labels: Ids


@dataclass(frozen=True)
class Example:
    """``input_ids``: (S,) int64; ``labels``: (S,) int64 with -100 where a token has no class, or () int64."""

    input_ids: Ids
    labels: Ids


class EvaluationBatch(NamedTuple):
    """Padded int64 arrays: three of (B, S), and labels of (B, S) with -100 where ignored, or of (B,)."""

    input_ids: Ids
    attention_mask: Ids
    token_type_ids: Ids
    labels: Ids


@dataclass(frozen=True)
class EvaluationSet:
    """Batches that no training has seen, and the names of their classes."""

    label_names: tuple[str, ...]
    batches: list[EvaluationBatch]

    @property
    def count(self) -> int:
        """How many labels count."""
        return sum(int((batch.labels != IGNORED).sum()) for batch in self.batches)


@dataclass(frozen=True)
class Task:
    """One example task: where its texts come from and how long they may be."""

    folder: str  # of the checkpoint
    label_names: tuple[str, ...]
    texts: Callable[[Split], list[LabelledText]]
    max_tokens: int
    held_out_texts: int | None  # spread evenly over those there are; None is all


def folder(name: str) -> Path:
    """Where the committed checkpoint of one task is."""
    return Path(__file__).parent / TASKS[name].folder


def held_out(name: str, tokenizer: Tokenizer, limit: int | None = None) -> EvaluationSet:
    """The evaluation set of one task, always the same with the same Python.

    Args:
        name: "roformer" (passage origin) or "roberta-prelayernorm" (token classes).
        tokenizer: Of that checkpoint.
        limit: Take only so many batches of 16; ``None`` takes all.
    """
    task = TASKS[name]
    texts = task.texts("held-out")
    count = min(task.held_out_texts or len(texts), len(texts))
    # An even spread, in an order that mixes the sources: the first batches represent the whole.
    chosen = [texts[index * len(texts) // count] for index in np.random.default_rng(0).permutation(count)]
    if limit is not None:
        chosen = chosen[: limit * BATCH_SIZE]
    examples = encode(tokenizer, chosen, task.max_tokens)
    batches = [
        pad(examples[start : start + BATCH_SIZE], tokenizer.pad_token_id)
        for start in range(0, len(examples), BATCH_SIZE)
    ]
    return EvaluationSet(task.label_names, batches)


def pad(examples: Sequence[Example], pad_token_id: int) -> EvaluationBatch:
    """Puts examples side by side, padded on the right to the longest of them."""
    shape = len(examples), max(example.input_ids.size for example in examples)
    input_ids, mask = np.full(shape, pad_token_id, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    for row, example in enumerate(examples):
        size = example.input_ids.size
        input_ids[row, :size], mask[row, :size], labels[row, :size] = example.input_ids, 1, example.labels
    return EvaluationBatch(
        input_ids, mask, np.zeros(shape, np.int64), labels if examples[0].labels.ndim else labels[:, 0]
    )


def encode(tokenizer: Tokenizer, texts: Sequence[LabelledText], max_tokens: int) -> list[Example]:
    """Tokenises texts, cut to ``max_tokens``; a token has the class of its first character."""
    examples = []
    for start in range(0, len(texts), 256):
        block = texts[start : start + 256]
        batch = tokenizer([item.text for item in block], max_length=max_tokens, truncation=True)
        for row, item in enumerate(block):
            size = int(batch.attention_mask[row].sum())
            labels = item.labels
            if labels.ndim:
                first, end = np.array(batch.offsets[row][:size]).T
                labels = np.where(end > first, np.append(labels, IGNORED)[first], IGNORED)
            examples.append(Example(batch.input_ids[row, :size].copy(), labels))
    return examples


def token_class_examples(tokenizer: Tokenizer, split: Split) -> list[Example]:
    """Windows of source code with a class for each token."""
    return encode(tokenizer, token_class_texts(split), TASKS["roberta-prelayernorm"].max_tokens)


def passage_examples(tokenizer: Tokenizer, split: Split) -> list[Example]:
    """Passages of source code with the package that each is from."""
    return encode(tokenizer, passage_texts(split), TASKS["roformer"].max_tokens)


def token_class_texts(split: Split) -> list[LabelledText]:
    """Consecutive windows of whole lines; one file in ten is held out, by its path."""
    windows: list[LabelledText] = []
    for path, text in _sources():
        if (_hash(path) % 10 == 0) != (split == "held-out"):
            continue
        try:
            classes = _character_classes(text)
        except (tokenize.TokenError, SyntaxError):
            continue  # some files are broken on purpose
        start = end = 0
        for line in text.splitlines(keepends=True):
            end += len(line)
            if end - start >= WINDOW_CHARACTERS[len(windows) % 3] or end == len(text):
                windows.append(LabelledText(text[start:end], classes[start:end]))
                start = end
    return [window for window in windows if (window.labels != IGNORED).any()]


def passage_texts(split: Split) -> list[LabelledText]:
    """Passages of whole lines, each with the package that it is from; a third of every file is held out.

    Held-out passages do not overlap; those to train on overlap one another by half.
    """
    least, most = PASSAGE_CHARACTERS
    classes = {name: index for index, names in enumerate(ORIGINS.values()) for name in names}
    passages = {}  # a dictionary, for licences and the like occur often
    for path, text in _sources():
        label = classes.get(path.split("/")[0].removesuffix(".py"))
        if label is None:
            continue
        for lines in _chunks(tuple(ORIGINS)[label], text, split):
            start = end = 0
            while end < len(lines):
                end, size = start, 0
                while end < len(lines) and (size == 0 or size + len(lines[end]) <= most):
                    size += len(lines[end])
                    end += 1
                if size >= least:
                    passages["".join(lines[start:end])] = label
                start = end if split == "held-out" else (start + end + 1) // 2
    return [LabelledText(text, np.array(label, np.int64)) for text, label in passages.items()]


TASKS = {
    "roformer": Task("roformer_passage_origin", tuple(ORIGINS), passage_texts, 256, None),
    "roberta-prelayernorm": Task("roberta_prelayernorm_token_classes", TOKEN_CLASSES, token_class_texts, 128, 256),
}


def _sources() -> Iterator[tuple[str, str]]:
    """The path inside the library, with slashes, and the text of each file, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).parts
        if SKIPPED.isdisjoint({*parts, parts[0].split("-")[0]}) and not parts[0].startswith("_sysconfigdata"):
            try:
                with tokenize.open(path) as stream:  # heeds the file's own encoding
                    text = stream.read()
            except (SyntaxError, UnicodeDecodeError):
                continue
            yield "/".join(parts), text


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _chunks(origin: str, text: str, split: Split) -> Iterator[list[str]]:
    """The runs of lines of one split.

    What a line says decides whether a chunk begins there and which split it is in, so an edit elsewhere in the file,
    or another name of the file, changes neither.
    """
    chunk: list[str] = []
    key = 0
    for line in text.splitlines(keepends=True):
        here = _hash(f"{origin}:{line.strip()}")
        if not chunk or (line.strip() and here % CHUNK_LINES == 0):
            if chunk and _is_held_out(key) == (split == "held-out"):
                yield chunk
            chunk, key = [], here
        chunk.append(line)
    if chunk and _is_held_out(key) == (split == "held-out"):
        yield chunk


def _is_held_out(key: int) -> bool:
    return key // CHUNK_LINES % 3 == 0


def _character_classes(text: str) -> Ids:
    """The index in TOKEN_CLASSES of each character, -100 for white space outside of strings and comments."""
    classes = np.full(len(text), IGNORED, np.int64)
    line_starts = np.cumsum([0, *map(len, io.StringIO(text))])

    def mark(first: tuple[int, int], last: tuple[int, int], name: str) -> None:
        start, end = (int(line_starts[row - 1]) + column for row, column in (first, last))
        classes[start:end] = TOKEN_CLASSES.index(name)

    tokens = []
    template: list[tuple[int, int]] = []  # where the open f-strings start; one token each before Python 3.12
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("FSTRING_START", "TSTRING_START"):
            template.append(token.start)
        elif kind in ("FSTRING_END", "TSTRING_END"):
            start = template.pop()
            if not template:
                tokens.append(token._replace(type=tokenize.NUMBER, start=start))
        elif kind == "COMMENT":
            mark(token.start, token.end, "comment")
        elif kind != "NL" and not template:
            tokens.append(token)

    for index, token in enumerate(tokens[:-1]):  # the last is the end of the file
        before, after = tokens[index - 1] if index else tokens[-1], tokens[index + 1]
        if token.type == tokenize.NAME:
            if keyword.iskeyword(token.string):
                name = "keyword"
            elif before.string in ("def", "class"):
                name = "definition"
            elif after.string == "(":
                name = "call"
            else:
                name = "attribute" if before.string == "." else "name"
        elif token.type == tokenize.STRING:
            alone = before.type not in (tokenize.OP, tokenize.NAME, tokenize.STRING) and after.type == tokenize.NEWLINE
            name = "docstring" if alone else "literal"
        elif token.type in (tokenize.NUMBER, tokenize.OP):
            name = "literal" if token.type == tokenize.NUMBER else "operator"
        else:
            continue
        mark(token.start, token.end, name)
    return classes
