"""What the tokenizers of both families share: batches, limits, decoding, and the files around them."""

from __future__ import annotations

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding
from typing_extensions import Self

from exporter.errors import InputError, TokenizerError
from exporter.files import new_file

__all__ = ["Batch", "Tokenizer", "read_json", "reported"]

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Encoded texts, padded on the right to the longest of them.

    Attributes:
        input_ids: (B, S) int64.
        attention_mask: (B, S) int64, 1 for tokens and 0 for padding.
        token_type_ids: (B, S) int64, 1 for the second text of a pair where the family tells them apart.
        special_tokens_mask: (B, S) int64, 1 for tokens that the template or the padding added.
        offsets: For each row, S spans (start, end) of characters in the token's own text; (0, 0) for added tokens.
    """

    input_ids: Ids
    attention_mask: Ids
    token_type_ids: Ids
    special_tokens_mask: Ids
    offsets: list[list[tuple[int, int]]]


class Tokenizer(ABC):
    """A loaded tokenizer; call it with texts. Calls from several threads are safe.

    Args:
        backend: The vocabulary and its rules; the families complete it.
        names: The text of each special token, by its key in ``tokenizer_config.json``.
        settings: The content of ``tokenizer_config.json``, kept for ``save``.

    Attributes:
        special_ids: The id of each special token, by its key in ``tokenizer_config.json``.
        pad_token_id, mask_token_id: Those of them that users of a model need most.
        vocab_size: One more than the largest id, added tokens included.

    Raises:
        TokenizerError: If the vocabulary lacks a special token.
    """

    family: ClassVar[str]
    class_name: ClassVar[str]  # what transformers calls it
    special_names: ClassVar[Mapping[str, str]]  # the default text of each special token
    model_class: ClassVar[type[Any]]  # of the tokenizers library
    vocabulary_files: ClassVar[tuple[str, ...]]  # what stands in for tokenizer.json in older folders

    def __init__(self, backend: tokenizers.Tokenizer, names: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self.special_ids: dict[str, int] = {}
        for key, token in names.items():
            index = backend.token_to_id(token)
            if index is None:
                raise TokenizerError(
                    f"The vocabulary has no {token!r}, which is the {key} of this {self.family} tokenizer: "
                    f"the vocabulary is incomplete, or tokenizer_config.json names another token."
                )
            self.special_ids[key] = index
        backend.no_padding()
        backend.no_truncation()
        self._backend, self._names, self._settings = backend, dict(names), dict(settings)
        self._lock = threading.Lock()  # truncation is a state of the backend
        self.pad_token_id: int = self.special_ids["pad_token"]
        self.mask_token_id: int = self.special_ids["mask_token"]
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Loads the files of one folder.

        Raises:
            TokenizerError: If a file is missing or malformed.
        """
        settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                settings |= read_json(folder / name)
        names = {key: _token_text(settings.get(key), default, folder) for key, default in cls.special_names.items()}
        complete, older = folder / "tokenizer.json", [folder / name for name in cls.vocabulary_files]
        if complete.is_file():
            with reported(complete):
                backend = tokenizers.Tokenizer.from_file(str(complete))
            if not isinstance(backend.model, cls.model_class):
                raise TokenizerError(
                    f"{complete} holds a {type(backend.model).__name__} vocabulary; "
                    f"a {cls.family} tokenizer is a {cls.model_class.__name__}."
                )
        elif all(path.is_file() for path in older):
            with reported(*older):
                backend = cls._read_vocabulary(*older, names=names)
            _add_tokens(backend, folder, settings)
        else:
            raise TokenizerError(
                f"{folder} has no tokenizer: expected tokenizer.json, or {' and '.join(cls.vocabulary_files)}."
            )
        return cls(backend, names, settings)

    @classmethod
    @abstractmethod
    def _read_vocabulary(cls, *paths: Path, names: Mapping[str, str]) -> tokenizers.Tokenizer:
        """A backend from ``vocabulary_files``."""

    def _portable_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return self._backend.to_str(pretty=True)

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> Batch:
        """Encodes texts, or pairs of texts, with the family's special tokens around them.

        Args:
            texts: B texts.
            pairs: B second texts, or ``None``.
            max_length: The most tokens a row may have, special ones included; ``None`` is no limit.
            truncate: Cut longer rows to ``max_length``, the longer text of a pair first, instead of refusing them.

        Raises:
            InputError: If there are no texts, one is not a ``str``, the pairs are not as many, or a row is too long.
            TokenizerError: If a text is not valid Unicode.
        """
        rows = self._rows(texts, pairs)
        shortest = self._backend.num_special_tokens_to_add(pairs is not None)
        if max_length is not None and max_length < shortest:
            raise InputError(f"max_length must leave room for {shortest} special tokens; got {max_length}.")
        if truncate and max_length is None:
            raise InputError("truncate=True needs the max_length to cut to; got None.")
        with self._lock:
            if truncate and max_length is not None:
                self._backend.enable_truncation(max_length)
            try:
                encodings = self._backend.encode_batch(rows)
            finally:
                self._backend.no_truncation()
        for index, encoding in enumerate(encodings):
            if max_length is not None and len(encoding) > max_length:
                raise InputError(
                    f"Text {index} has {len(encoding)} tokens, special ones included; the limit is {max_length}. "
                    f"Split the text, or ask for truncation."
                )
        return self._batch(encodings)

    def decode(self, ids: Sequence[int] | Ids, skip_special_tokens: bool = True) -> str:
        """The text of one row of ids; not always the original one, which tokenizing may have simplified.

        Raises:
            InputError: If an id is outside the vocabulary.
        """
        text: str = self._backend.decode(self._checked(ids), skip_special_tokens=skip_special_tokens)
        return text

    def tokens(self, ids: Sequence[int] | Ids) -> list[str]:
        """The vocabulary's spelling of each id.

        Raises:
            InputError: If an id is outside the vocabulary.
        """
        return [token for index in self._checked(ids) if (token := self._backend.id_to_token(index)) is not None]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``, for ``load_tokenizer`` and for ``transformers``.

        Raises:
            BundleError: If the folder cannot be written.
        """
        settings = self._settings | self._names | {"tokenizer_class": self.class_name}
        settings.pop("added_tokens_decoder", None)  # tokenizer.json has them
        with self._lock:
            portable = self._portable_json()
        for name, text in (
            ("tokenizer.json", portable),
            ("tokenizer_config.json", json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)),
        ):
            with new_file(Path(folder) / name) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")

    def _rows(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[str] | list[tuple[str, str]]:
        for name, values in (("texts", texts), ("pairs", pairs)):
            if isinstance(values, str):
                raise InputError(f"{name} must be a list of texts; got one str. Put it into a list.")
            for index, text in enumerate(values or ()):
                if not isinstance(text, str):
                    raise InputError(f"{name}[{index}] must be a str; got {type(text).__name__}.")
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError as error:
                    raise TokenizerError(f"{name}[{index}] is not valid Unicode: {error}.") from error
        if not len(texts):
            raise InputError("texts must hold at least one text; got none.")
        if pairs is None:
            return list(texts)
        if len(pairs) != len(texts):
            raise InputError(f"pairs must be as many as texts; got {len(pairs)} for {len(texts)} texts.")
        return list(zip(texts, pairs, strict=True))

    def _batch(self, encodings: list[Encoding]) -> Batch:
        shape = len(encodings), max(map(len, encodings))
        input_ids = np.full(shape, self.pad_token_id, np.int64)
        attention_mask, token_type_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        special_tokens_mask = np.ones(shape, np.int64)
        offsets = []
        for row, encoding in enumerate(encodings):
            size = len(encoding)
            input_ids[row, :size] = encoding.ids
            attention_mask[row, :size] = 1
            token_type_ids[row, :size] = encoding.type_ids
            special_tokens_mask[row, :size] = encoding.special_tokens_mask
            offsets.append(encoding.offsets + [(0, 0)] * (shape[1] - size))
        return Batch(input_ids, attention_mask, token_type_ids, special_tokens_mask, offsets)

    def _checked(self, ids: Sequence[int] | Ids) -> list[int]:
        numbers = [int(index) for index in ids]
        for index in numbers:
            # Ids may have gaps, so vocab_size alone does not tell.
            if index < 0 or self._backend.id_to_token(index) is None:
                raise InputError(f"The id {index} is not in the vocabulary of {self.vocab_size} tokens.")
        return numbers


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        TokenizerError: If the file cannot be read or does not hold a JSON object.
    """
    with reported(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object; got a {type(content).__name__}.")
    return content


@contextmanager
def reported(*paths: Path) -> Iterator[None]:
    """Turns whatever is raised while reading these files into a TokenizerError that names them."""
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers library raises bare Exception, and panics, which are none
        names = " or ".join(map(str, paths))
        raise TokenizerError(f"{names} is malformed ({error}): copy the file again from its source.") from error


def _token_text(value: Any, default: str, folder: Path) -> str:
    """A special token's text: configs hold it bare, or with flags around it."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is None:
        return default
    if not isinstance(text, str):
        raise TokenizerError(f"{folder / 'tokenizer_config.json'} names a special token {value!r}; expected a string.")
    return text


def _add_tokens(backend: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Adds the tokens that older folders keep beside the vocabulary, at the ids which the model learned for them."""
    wanted: dict[int, AddedToken] = {}
    extra, decoder = folder / "added_tokens.json", settings.get("added_tokens_decoder") or {}
    with reported(folder / "tokenizer_config.json"):
        for index, flags in decoder.items():
            known = {key: value for key, value in flags.items() if key != "__type"}
            wanted[int(index)] = AddedToken(**known)
    if not decoder and extra.is_file():
        content = read_json(extra)
        with reported(extra):
            wanted = {int(index): AddedToken(text) for text, index in content.items()}
    for index, token in sorted(wanted.items()):
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            raise TokenizerError(
                f"The added token {token.content!r} of {folder} must have the id {index}, "
                f"but comes to {backend.token_to_id(token.content)}: the vocabulary is incomplete."
            )
