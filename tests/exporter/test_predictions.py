"""Finding the best answer among all spans. The other readers are tested with the session that uses them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from exporter.engines import Arrays
from exporter.predictions import LONGEST_ANSWER, best_span, softmax
from exporter.tokenization import Batch

CONTEXT = "".join(chr(97 + index % 26) for index in range(60))


def windows(rows: int, length: int, question: int) -> Batch:
    """Every character of the context is a token; a row is a window that begins where the one before ends."""
    shape = rows, question + length
    sequence = np.concatenate((np.zeros((rows, question)), np.ones((rows, length))), axis=1).astype(np.int64)
    sequence[:, 0] = -1  # a special token
    offsets = [
        [(0, 1)] * question + [(row * length + place, row * length + place + 1) for place in range(length)]
        for row in range(rows)
    ]
    empty = np.zeros(shape, np.int64)
    return Batch(empty, empty, empty, empty, sequence, np.zeros(rows, np.int64), offsets)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 2), length=st.integers(1, 30))
def test_the_best_span_is_the_best_of_all(seed: int, rows: int, length: int) -> None:
    random = np.random.default_rng(seed)
    batch = windows(rows, length, question=3)
    outputs = {name: 4 * random.standard_normal((rows, 3 + length)) for name in ("start_logits", "end_logits")}
    found = best_span("why", CONTEXT, batch, outputs)
    start, end = (softmax(outputs[name][:, 3:].ravel()).reshape(rows, length) for name in outputs)
    spans = [
        (start[row, first] * end[row, last], row * length + first, row * length + last + 1)
        for row in range(rows)
        for first in range(length)
        for last in range(first, min(length, first + LONGEST_ANSWER))
    ]
    score, begins, ends = max(spans)
    np.testing.assert_allclose(found["score"], score, rtol=1e-12)
    assert (found["start"], found["end"], found["answer"]) == (begins, ends, CONTEXT[begins:ends])


def test_no_answer_is_longer_than_thirty_tokens() -> None:
    outputs: Arrays = {name: np.zeros((1, 43)) for name in ("start_logits", "end_logits")}
    outputs["start_logits"][0, 3], outputs["end_logits"][0, -1] = 9.0, 9.0
    assert len(best_span("why", CONTEXT, windows(1, 40, question=3), outputs)["answer"]) <= LONGEST_ANSWER


def test_a_context_without_tokens_has_no_answer() -> None:
    outputs: Arrays = {name: np.zeros((1, 3)) for name in ("start_logits", "end_logits")}
    assert best_span("why", "", windows(1, 0, question=3), outputs)["answer"] == ""
