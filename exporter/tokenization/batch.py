"""From the encodings of single texts to arrays: cutting, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from exporter.errors import InputError

__all__ = ["Batch", "Ids", "Limit", "Padding", "Side", "Truncation", "pad"]

Ids = NDArray[np.int64]
Padding = Literal["longest", "max_length", "do_not_pad"]
Side = Literal["right", "left"]
Truncation = Literal["longest_first", "only_first", "only_second", "do_not_truncate"]


@dataclass(frozen=True)
class Batch:
    """Encoded texts: B rows of S tokens. A text makes one row, or several where it was cut into windows.

    Attributes:
        input_ids: (B, S) int64.
        attention_mask: (B, S) int64, 1 for tokens and 0 for padding.
        token_type_ids: (B, S) int64, 1 for the second text of a pair where the family tells them apart.
        special_tokens_mask: (B, S) int64, 1 for tokens that the template or the padding added.
        sequence_ids: (B, S) int64, 0 in the first text of a pair, 1 in the second, -1 where the special mask is 1.
        text_index: (B,) int64, the text that each row is from.
        offsets: For each row, S spans (start, end) of characters in the token's own text; (0, 0) for added tokens.
    """

    input_ids: Ids
    attention_mask: Ids
    token_type_ids: Ids
    special_tokens_mask: Ids
    sequence_ids: Ids
    text_index: Ids
    offsets: list[list[tuple[int, int]]]


def pad(rows: Sequence[tuple[int, Encoding]], *, size: int, pad_token_id: int, second_type: int, side: Side) -> Batch:
    """Puts rows side by side.

    Args:
        rows: B times the index of a text, and an encoding of it of at most ``size`` tokens.
        size: S.
        pad_token_id: Fills the shorter rows.
        second_type: The type of the second text of a pair; encodings know it in their first window alone.
        side: Where padding goes.
    """
    shape = len(rows), size
    batch = Batch(
        input_ids=np.full(shape, pad_token_id, np.int64),
        attention_mask=np.zeros(shape, np.int64),
        token_type_ids=np.zeros(shape, np.int64),
        special_tokens_mask=np.ones(shape, np.int64),
        sequence_ids=np.full(shape, -1, np.int64),
        text_index=np.array([index for index, _ in rows], np.int64),
        offsets=[],
    )
    for row, (_, encoding) in enumerate(rows):
        missing = size - len(encoding)
        filled = slice(0, len(encoding)) if side == "right" else slice(missing, size)
        batch.input_ids[row, filled] = encoding.ids
        batch.attention_mask[row, filled] = 1
        batch.token_type_ids[row, filled] = encoding.type_ids
        batch.special_tokens_mask[row, filled] = encoding.special_tokens_mask
        batch.sequence_ids[row, filled] = [-1 if index is None else index for index in encoding.sequence_ids]
        padding = [(0, 0)] * missing
        batch.offsets.append(encoding.offsets + padding if side == "right" else padding + encoding.offsets)
    batch.token_type_ids[batch.sequence_ids == 1] = second_type
    return batch


@dataclass(frozen=True)
class Limit:
    """How long a row may be, and what becomes of a longer one.

    Attributes:
        room: The most tokens, without special ones.
        added: How many special ones there are.
        strategy, side, stride, windows: See ``Tokenizer.__call__``.
    """

    room: int
    added: int
    strategy: Truncation
    side: Side
    stride: int
    windows: bool

    def cut(self, encoding: Encoding, size: int, name: str) -> Encoding:
        """Cuts an encoding to ``size`` tokens. With ``windows``, what was cut off becomes its ``overflowing`` ones.

        Raises:
            InputError: If windows of this size would not advance.
        """
        length = len(encoding)
        if length <= size:
            return encoding
        if self.windows and self.stride >= size:
            raise InputError(
                f"A window must have more tokens of {name} than the stride of {self.stride}; there is room for {size}. "
                f"Lower stride or raise max_length."
            )
        if self.windows or not 0 < size <= length - size:
            encoding.truncate(size, stride=self.stride, direction=self.side)
            return encoding
        # Many windows of one text would each be joined to every window of the other. What the remainder, cut from the
        # other side, leaves over is the same as the cut text and has no windows.
        encoding.truncate(length - size, direction="left" if self.side == "right" else "right")
        return encoding.overflowing[0]
