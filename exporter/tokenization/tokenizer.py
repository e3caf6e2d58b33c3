"""What all tokenizers share: batches, templates, decoding, and the files around them."""

from __future__ import annotations

import inspect
import json
import operator
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar, get_args

import tokenizers
from tokenizers import AddedToken, Encoding, processors
from typing_extensions import Self

from exporter.errors import InputError, TokenizerError
from exporter.files import new_file
from exporter.tokenization.batch import Batch, Ids, Limit, Padding, Side, Truncation, pad
from exporter.tokenization.reading import (
    read_added_tokens,
    read_extra_special_tokens,
    read_settings,
    read_token,
    reported,
)

__all__ = ["PathLike", "SpecialToken", "Tokenizer", "Tokens", "check_flag"]

PathLike = str | os.PathLike[str]
SpecialToken = str | AddedToken
Choice = TypeVar("Choice")

FIRST, SECOND = "first", "second"  # where the texts stand in a template
PADDINGS: dict[Any, Padding] = {name: name for name in get_args(Padding)} | {True: "longest", False: "do_not_pad"}
TRUNCATIONS: dict[Any, Truncation] = {name: name for name in get_args(Truncation)} | {
    True: "longest_first",
    False: "do_not_truncate",
}
SIDES: dict[Any, Side] = {name: name for name in get_args(Side)}
# What BERT's decoding takes back, in this order.
_SPACES = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")]
_SPACES += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


class Tokens(TypedDict, total=False):
    """Which tokens mean something: options of every tokenizer.

    Attributes:
        unk_token, sep_token, pad_token, cls_token, mask_token: The special tokens.
        additional_special_tokens: Special tokens without a role of their own.
        added_tokens: Tokens that the vocabulary files lack, by the ids which the model learned for them.
    """

    unk_token: SpecialToken
    sep_token: SpecialToken
    pad_token: SpecialToken
    cls_token: SpecialToken
    mask_token: SpecialToken
    additional_special_tokens: Sequence[SpecialToken]
    added_tokens: Mapping[int, AddedToken]


class Tokenizer(ABC):
    """A loaded tokenizer; call it with texts. Calls from several threads are safe.

    Args:
        tokenizer_file: A ``tokenizer.json``; or
        vocabulary: The files of the older layout, by the names of their arguments. One of the two must be given.
        options: The family's own options, as ``tokenizer_config.json`` holds them.
        tokens: See ``Tokens``.

    Attributes:
        special_ids: The id of each special token, by its key in ``tokenizer_config.json``.
        all_special_ids: Those and the ids of all further special tokens: what decoding skips.
        pad_token_id, mask_token_id: Those of them that users of a model need most.
        vocab_size: One more than the largest id, added tokens included.

    Raises:
        TokenizerError: If a file is missing or malformed, the vocabulary lacks a special token, or an option is wrong.
    """

    family: ClassVar[str]
    class_name: ClassVar[str]  # what transformers calls it
    special_names: ClassVar[Mapping[str, str]]  # the default text of each special token
    model_class: ClassVar[type[Any]]  # of the tokenizers library
    vocabulary_files: ClassVar[Mapping[str, str]]  # of the older layout: argument and file name
    template: ClassVar[Sequence[tuple[str, int]]]  # of pairs: special or text, and its type; its first 3 are for one

    bare_second_type: ClassVar[int]  # of a pair's second text without special tokens

    def __init__(
        self,
        *,
        tokenizer_file: PathLike | None,
        vocabulary: Mapping[str, PathLike | None],
        options: Mapping[str, Any],
        tokens: Mapping[str, Any],
    ) -> None:
        more = dict(tokens)
        extra, added = more.pop("additional_special_tokens", ()), more.pop("added_tokens", {})
        if not isinstance(extra, list | tuple):
            raise TokenizerError(f"additional_special_tokens must be a list of tokens; got {extra!r}.")
        if not isinstance(added, Mapping) or not all(isinstance(token, AddedToken) for token in added.values()):
            raise TokenizerError(f"added_tokens must give an AddedToken for each id; got {added!r}.")
        if unknown := more.keys() - self.special_names.keys():
            raise TokenizerError(f"A {type(self).__name__} has no option {' or '.join(map(repr, sorted(unknown)))}.")
        special: dict[str, SpecialToken] = {**self.special_names, **more}
        self._names = {key: _text(key, token) for key, token in special.items()}
        backend = self._read(tokenizer_file, vocabulary)
        _add_tokens(backend, added)
        self._mark_special(backend, [*special.items(), *(("additional_special_tokens", token) for token in extra)])
        backend.no_padding()
        backend.no_truncation()
        vocabulary_ids = backend.get_vocab(with_added_tokens=True)
        self.special_ids: dict[str, int] = {key: vocabulary_ids[text] for key, text in self._names.items()}
        known = backend.get_added_tokens_decoder()
        self.all_special_ids: frozenset[int] = frozenset(index for index, token in known.items() if token.special)
        self.pad_token_id: int = self.special_ids["pad_token"]
        self.mask_token_id: int = self.special_ids["mask_token"]
        self.vocab_size: int = max(vocabulary_ids.values()) + 1
        self._settings: dict[str, Any] = dict(options)
        self._processor = self._complete(backend)
        backend.post_processor = None  # texts are cut between encoding and this
        self._backend = backend
        self._lock = threading.RLock()  # writing tokenizer.json changes the backend for a moment

    @classmethod
    def from_pretrained(cls, folder: PathLike) -> Self:
        """Loads the files of one folder: ``tokenizer.json`` or those of the older layout, and what configures them.

        Raises:
            TokenizerError: If a file is missing or malformed.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        special = {key: read_token(settings[key], folder) for key in cls.special_names if settings.get(key) is not None}
        extra = read_extra_special_tokens(folder, settings)
        files = {"tokenizer_file", *cls.vocabulary_files}  # older configs name files of another machine
        known = inspect.signature(cls).parameters.keys() - files
        options: dict[str, Any] = {key: settings[key] for key in known if settings.get(key) is not None}
        options |= {**special, "additional_special_tokens": extra}
        older = {argument: folder / name for argument, name in cls.vocabulary_files.items()}
        if (folder / "tokenizer.json").is_file():
            options["tokenizer_file"] = folder / "tokenizer.json"
        elif all(path.is_file() for path in older.values()):
            names = [_text("a special token", token) for token in [*{**cls.special_names, **special}.values(), *extra]]
            options |= {**older, "added_tokens": read_added_tokens(folder, settings, names)}
        else:
            raise TokenizerError(
                f"{folder} has no tokenizer: expected tokenizer.json, or {' and '.join(cls.vocabulary_files.values())}."
            )
        tokenizer = cls(**options)
        tokenizer._settings = settings | tokenizer._settings
        return tokenizer

    def save_pretrained(self, folder: PathLike) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``, for ``load_tokenizer`` and for ``transformers``.

        Raises:
            BundleError: If the folder cannot be written.
        """
        self._write(Path(folder) / "tokenizer.json", self._portable_json())
        self._save_settings(Path(folder))

    def save_vocabulary(self, folder: PathLike, filename_prefix: str | None = None) -> tuple[Path, ...]:
        """Writes the vocabulary in the older layout, without added tokens; gives the paths of the files.

        Raises:
            TokenizerError: If the vocabulary cannot be written so, because its ids have gaps, for example.
            BundleError: If the folder cannot be written.
        """
        with tempfile.TemporaryDirectory() as temporary:
            self._backend.model.save(temporary)
            written = {name: Path(temporary) / name for name in self.vocabulary_files.values()}
            with reported(*written.values()):
                model = self._read_vocabulary(*written.values())
            if tokenizers.Tokenizer(model).get_vocab() != self._backend.get_vocab(with_added_tokens=False):
                raise TokenizerError(
                    f"This vocabulary does not fit into {' and '.join(written)}: its ids have gaps, or a token holds "
                    f"a line break. Use save_pretrained, which writes tokenizer.json."
                )
            prefix = f"{filename_prefix}-" if filename_prefix else ""
            paths = {Path(folder) / f"{prefix}{name}": path for name, path in written.items()}
            for target, source in paths.items():
                self._write(target, source.read_text(encoding="utf-8"))
        return tuple(paths)

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | Padding = True,
        padding_side: Side | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | Truncation = False,
        truncation_side: Side | None = None,
        max_length: int | None = None,
        stride: int = 0,
        return_overflowing_tokens: bool = False,
    ) -> Batch:
        """Encodes texts, or pairs of texts, as rows of one length S.

        Args:
            texts: B texts.
            pairs: B second texts, or ``None``.
            add_special_tokens: Put the family's special tokens around them.
            padding: "longest" (``True``): S is the length of the longest row. "max_length": S is ``max_length``.
                "do_not_pad" (``False``): all rows must be of one length as they are.
            padding_side: "right" or "left"; ``None`` is what ``tokenizer_config.json`` says, or right.
            pad_to_multiple_of: Make S a multiple of this.
            truncation: What to do with rows longer than ``max_length``: "do_not_truncate" (``False``) refuses them;
                "longest_first" (``True``) cuts the longer text of a pair until both are equal, then both;
                "only_first" and "only_second" cut that text alone.
            truncation_side: Where to cut, as ``padding_side``.
            max_length: The most tokens a row may have, special ones included; ``None`` is no limit.
            stride: How many tokens a window repeats from the one before it.
            return_overflowing_tokens: Add what was cut off as further rows: windows over the text.

        Raises:
            InputError: If there are no texts, one is not a ``str``, the pairs are not as many, a row is too long or
                cannot be cut as asked, or an option is wrong.
            TokenizerError: If a text is not valid Unicode.
        """
        texts, pairs = _checked_texts("texts", texts), None if pairs is None else _checked_texts("pairs", pairs)
        if not texts:
            raise InputError("texts must hold at least one text; got none.")
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"pairs must be as many as texts; got {len(pairs)} for {len(texts)} texts.")
        strategy = _choice("truncation", truncation, TRUNCATIONS)
        cut_side = _choice("truncation_side", truncation_side or self._settings.get("truncation_side", "right"), SIDES)
        filling = _choice("padding", padding, PADDINGS)
        fill_side = _choice("padding_side", padding_side or self._settings.get("padding_side", "right"), SIDES)
        _check_number("stride", stride, 0)
        for name, number in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if number is not None:
                _check_number(name, number, 1)
        for name, value in (
            ("add_special_tokens", add_special_tokens),
            ("return_overflowing_tokens", return_overflowing_tokens),
        ):
            if not isinstance(value, bool):
                raise InputError(f"{name} must be True or False; got {value!r}.")
        needs = "truncation" if strategy != "do_not_truncate" else "padding" if filling == "max_length" else None
        if max_length is None and needs:
            raise InputError(f"{needs} needs the max_length to cut or to pad to; got None.")
        if return_overflowing_tokens and strategy == "do_not_truncate":
            raise InputError("return_overflowing_tokens needs truncation: nothing is cut off without it.")
        if stride and not return_overflowing_tokens:
            raise InputError("stride needs return_overflowing_tokens=True: without it there are no windows.")
        if strategy == "only_second" and pairs is None:
            raise InputError("truncation='only_second' needs pairs; got texts alone. Use 'longest_first'.")
        added = self.num_special_tokens_to_add(pairs is not None) if add_special_tokens else 0
        if max_length is not None and max_length < added:
            raise InputError(f"max_length must leave room for {added} special tokens; got {max_length}.")

        with self._lock:
            single = self._backend.encode_batch([*texts, *(pairs or [])], add_special_tokens=False)
        limit = None
        if max_length is not None:
            limit = Limit(max_length - added, added, strategy, cut_side, stride, return_overflowing_tokens)
        rows: list[tuple[int, Encoding]] = []
        for index, first in enumerate(single[: len(texts)]):
            second = None if pairs is None else single[len(texts) + index]
            if limit is not None:
                first, second = self._fit(index, first, second, limit)
            row = self._processor.process(first, second, add_special_tokens)
            rows += ((index, window) for window in ([row, *row.overflowing] if return_overflowing_tokens else [row]))

        sizes = {len(encoding) for _, encoding in rows}
        if filling == "do_not_pad" and len(sizes) > 1:
            raise InputError(
                f"Without padding, all rows must have as many tokens; got from {min(sizes)} to {max(sizes)}. "
                f"Encode the texts one by one, or ask for padding."
            )
        size = max_length if filling == "max_length" and max_length is not None else max(sizes)
        if filling != "do_not_pad" and pad_to_multiple_of is not None:
            size += -size % pad_to_multiple_of
        return pad(
            rows,
            size=size,
            pad_token_id=self.pad_token_id,
            second_type=dict(self.template)[SECOND] if add_special_tokens else self.bare_second_type,
            side=fill_side,
        )

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one text, without special ones around it.

        Raises:
            InputError: If it is not a ``str``.
            TokenizerError: If it is not valid Unicode.
        """
        return self.tokens(self([text], add_special_tokens=False).input_ids[0])

    def tokens(self, ids: Sequence[int] | Ids) -> list[str]:
        """The vocabulary's spelling of each id.

        Raises:
            InputError: If ``ids`` is not one row of whole numbers, or one is outside the vocabulary.
        """
        tokens = []
        for index in _whole_numbers(ids):
            # Ids may have gaps, so vocab_size alone does not tell.
            token = self._backend.id_to_token(index) if 0 <= index < self.vocab_size else None
            if token is None:
                raise InputError(f"The id {index} is not in the vocabulary of {self.vocab_size} tokens.")
            tokens.append(token)
        return tokens

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """The id of each token; what is not in the vocabulary gets that of the unknown token.

        Raises:
            InputError: If ``tokens`` is not a list of ``str``.
            TokenizerError: If one of them is not valid Unicode.
        """
        found = (self._backend.token_to_id(token) for token in _checked_texts("tokens", tokens))
        return [self.special_ids["unk_token"] if index is None else index for index in found]

    def decode(
        self,
        ids: Sequence[int] | Ids,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of one row of ids; not always the original one, which tokenizing may have simplified.

        Args:
            ids: Token ids.
            skip_special_tokens: Leave special tokens out.
            clean_up_tokenization_spaces: Take away the spaces before punctuation and English contractions; ``None`` is
                what ``tokenizer_config.json`` says, or ``False``. RoBERTa's spaces are its own: they always stay.

        Raises:
            InputError: If ``ids`` is not one row of whole numbers, or one is outside the vocabulary.
        """
        ids = _whole_numbers(ids)
        tokens = self.tokens(ids)
        if skip_special_tokens:
            tokens = [token for index, token in zip(ids, tokens, strict=True) if index not in self.all_special_ids]
        text = self._join(tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self._settings.get("clean_up_tokenization_spaces", False)
        return self._clean_up(text) if clean_up_tokenization_spaces else text

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens the template puts around a text, or around a pair of texts."""
        return sum(part not in (FIRST, SECOND) for part, _ in self._parts(pair))

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The ids of a text, or of a pair of texts, with the template's special tokens around them."""
        texts = {FIRST: token_ids_0, SECOND: token_ids_1 or ()}
        ids: list[int] = []
        for part, _ in self._parts(token_ids_1 is not None):
            ids += texts[part] if part in texts else [self.special_ids[part]]
        return ids

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens and 0 for others, in what ``build_inputs_with_special_tokens`` makes of these ids.

        With ``already_has_special_tokens``, ``token_ids_0`` is such a row itself, and every special token in it counts.

        Raises:
            InputError: If there is a second text beside a row that is complete.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError("token_ids_1 must be None with already_has_special_tokens: one row holds both texts.")
            return [int(index in self.all_special_ids) for index in _whole_numbers(token_ids_0)]
        sizes = {FIRST: len(token_ids_0), SECOND: len(token_ids_1 or ())}
        mask: list[int] = []
        for part, _ in self._parts(token_ids_1 is not None):
            mask += [0] * sizes[part] if part in sizes else [1]
        return mask

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The type of each token in what ``build_inputs_with_special_tokens`` makes of these ids."""
        sizes = {FIRST: len(token_ids_0), SECOND: len(token_ids_1 or ())}
        return [kind for part, kind in self._parts(token_ids_1 is not None) for _ in range(sizes.get(part, 1))]

    @classmethod
    @abstractmethod
    def _read_vocabulary(cls, *paths: Path) -> Any:
        """A model of the tokenizers library from the files of the older layout."""

    @abstractmethod
    def _complete(self, backend: tokenizers.Tokenizer) -> processors.PostProcessor:
        """Sets the family's steps around the model; gives the last one, which puts the special tokens in."""

    def _join(self, tokens: list[str]) -> str:
        """The text that these tokens spell."""
        text: str = self._backend.decoder.decode(tokens)
        return text

    def _clean_up(self, text: str) -> str:
        for before, after in _SPACES:
            text = text.replace(before, after)
        return text

    def _shares(self, first: int, second: int, room: int) -> tuple[int, int]:
        """How many tokens of each text stay when the longer one is cut first. Where both are cut, the longer keeps one
        more if the room is odd; the second if they were equal.
        """
        shorter = min(first, second, room // 2)
        return (room - shorter, shorter) if first > second else (shorter, room - shorter)

    def _portable_json(self) -> str:
        """The content of ``tokenizer.json``."""
        with self._lock:
            self._backend.post_processor = self._processor
            try:
                return self._backend.to_str(pretty=True)
            finally:
                self._backend.post_processor = None

    def _parts(self, pair: bool) -> Sequence[tuple[str, int]]:
        return self.template if pair else self.template[:3]

    def _fit(
        self, index: int, first: Encoding, second: Encoding | None, limit: Limit
    ) -> tuple[Encoding, Encoding | None]:
        """Cuts one text, or one pair, to as many tokens as there is room for."""
        sizes = len(first), 0 if second is None else len(second)
        excess = sum(sizes) - limit.room
        if excess <= 0:
            return first, second
        found = f"Text {index} has {sum(sizes) + limit.added} tokens, special ones included"
        if limit.strategy == "do_not_truncate":
            raise InputError(
                f"{found}; the limit is {limit.room + limit.added}. Split the text, or ask for truncation."
            )
        if limit.strategy == "longest_first":
            kept = (limit.room, 0) if second is None else self._shares(*sizes, limit.room)
        else:
            place = 0 if limit.strategy == "only_first" else 1
            if sizes[place] <= excess:
                raise InputError(
                    f"{found}; truncation={limit.strategy!r} cannot take {excess} from that text, which has "
                    f"{sizes[place]}. Use 'longest_first' or raise max_length."
                )
            kept = (sizes[0] - excess, sizes[1]) if place == 0 else (sizes[0], sizes[1] - excess)
        first = limit.cut(first, kept[0], f"texts[{index}]")
        return first, None if second is None else limit.cut(second, kept[1], f"pairs[{index}]")

    def _read(self, tokenizer_file: PathLike | None, vocabulary: Mapping[str, PathLike | None]) -> tokenizers.Tokenizer:
        given = {name: path for name, path in {"tokenizer_file": tokenizer_file, **vocabulary}.items() if path}
        complete = "tokenizer_file" in given
        if set(given) != ({"tokenizer_file"} if complete else set(vocabulary)):
            raise TokenizerError(
                f"A {type(self).__name__} is made from {' and '.join(vocabulary)}, or from tokenizer_file; "
                f"got {' and '.join(given) or 'none'}."
            )
        paths = [Path(path) for path in given.values()]
        for path in paths:
            if not path.is_file():
                raise TokenizerError(f"No file at {path}: expected a tokenizer file, which from_pretrained finds.")
        with reported(*paths):
            backend = (
                tokenizers.Tokenizer.from_file(str(paths[0]))
                if complete
                else tokenizers.Tokenizer(self._read_vocabulary(*paths))
            )
        if not isinstance(backend.model, self.model_class):
            raise TokenizerError(
                f"{paths[0]} holds a {type(backend.model).__name__} vocabulary; "
                f"a {self.family} tokenizer is a {self.model_class.__name__}."
            )
        return backend

    def _mark_special(self, backend: tokenizers.Tokenizer, tokens: Iterable[tuple[str, SpecialToken]]) -> None:
        """Makes the backend find these tokens in texts, unless its file said already how to."""
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        for key, token in tokens:
            text = _text(key, token)
            if backend.token_to_id(text) is None:
                raise TokenizerError(
                    f"The vocabulary has no {text!r}, which is the {key} of this {self.family} tokenizer: "
                    f"the vocabulary is incomplete, or tokenizer_config.json names another token."
                )
            if text not in known:
                known.add(text)
                backend.add_special_tokens(
                    [AddedToken(text, special=True, normalized=False) if isinstance(token, str) else token]
                )

    def _save_settings(self, folder: Path, **more: Any) -> None:
        settings = self._settings | self._names | {"tokenizer_class": self.class_name}
        settings.pop("added_tokens_decoder", None)  # tokenizer.json has them
        content = json.dumps(settings | more, indent=2, sort_keys=True, ensure_ascii=False)
        self._write(folder / "tokenizer_config.json", content + "\n")

    @staticmethod
    def _write(path: Path, text: str) -> None:
        with new_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """Checks an option that is true or false, or null where it is ``optional``.

    Raises:
        TokenizerError: If it is something else.
    """
    if not isinstance(value, bool) and not (optional and value is None):
        expected = "true, false or null" if optional else "true or false"
        raise TokenizerError(f"{name} must be {expected}, in tokenizer_config.json and in Python; got {value!r}.")


def _text(key: str, token: Any) -> str:
    text = token.content if isinstance(token, AddedToken) else token
    if not isinstance(text, str):
        raise TokenizerError(f"{key} must be a string or an AddedToken; got {text!r}.")
    return text


def _add_tokens(backend: tokenizers.Tokenizer, tokens: Mapping[int, AddedToken]) -> None:
    """Adds tokens at the ids which a model learned for them."""
    for index, token in sorted(tokens.items()):
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            raise TokenizerError(
                f"The added token {token.content!r} must have the id {index}, "
                f"but comes to {backend.token_to_id(token.content)}: the vocabulary is incomplete."
            )


def _checked_texts(name: str, texts: Any) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(f"{name} must be a list of texts; got one {type(texts).__name__}. Put it into a list.")
    checked: list[str] = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name}[{index}] must be a str; got {type(text).__name__}.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(f"{name}[{index}] is not valid Unicode: {error}.") from error
        checked.append(text)
    return checked


def _whole_numbers(ids: Any) -> list[int]:
    try:
        return [operator.index(index) for index in ids]
    except TypeError as error:
        raise InputError(f"ids must be one row of whole numbers; got {ids!r}.") from error


def _choice(name: str, value: Any, choices: Mapping[Any, Choice]) -> Choice:
    if not isinstance(value, str | bool) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
    return choices[value]


def _check_number(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}; got {value!r}.")
