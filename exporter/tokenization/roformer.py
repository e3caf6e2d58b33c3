"""RoFormer's tokenizers: Chinese words where the vocabulary has them, WordPiece elsewhere."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import rjieba
import tokenizers
from tokenizers import (
    NormalizedString,
    PreTokenizedString,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from typing_extensions import Unpack

from exporter.errors import TokenizerError
from exporter.tokenization.tokenizer import FIRST, SECOND, PathLike, Tokenizer, Tokens, check_flag

__all__ = ["RoFormerTokenizer", "RoFormerTokenizerFast"]

# The blocks of Chinese characters that BERT splits one by one.
_CHINESE = (
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f"
)
_RUN = re.compile(r"\S+")
_RUN_OR_CHINESE = re.compile(rf"[{_CHINESE}]|[^\s{_CHINESE}]+")


class WordSplitter(ABC):
    """Splits at the word boundaries of jieba; a word that the vocabulary lacks falls apart. White space is dropped."""

    def __init__(self, vocabulary: Collection[str]) -> None:
        self._vocabulary = vocabulary

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Called by the tokenizers library, which passes its own text to be split in place."""
        text.split(self._split)

    def _split(self, _: int, text: NormalizedString) -> list[NormalizedString]:
        pieces: list[NormalizedString] = []
        for word, start, end in rjieba.tokenize(str(text), hmm=False):  # spans count characters
            piece = text[start:end]
            assert piece is not None, "jieba's words are inside the text"
            pieces += [piece] if word in self._vocabulary else self._split_unknown(piece)
        return pieces

    @abstractmethod
    def _split_unknown(self, word: NormalizedString) -> Iterator[NormalizedString]:
        """The parts of a word that the vocabulary lacks, for WordPiece."""


class CharacterSplitter(WordSplitter):
    """Chinese characters fall apart; a run of others stays whole."""

    def _split_unknown(self, word: NormalizedString) -> Iterator[NormalizedString]:
        return _parts(word, (match.span() for match in _RUN_OR_CHINESE.finditer(str(word))))


class BasicSplitter(WordSplitter):
    """BERT's basic tokenization: cleaned text, Chinese characters and punctuation apart, lower case, no accents.

    Args:
        vocabulary: The tokens that the model knows.
        unknown: What stands for an unknown one.
        never_split: Pieces that stay as they are, known or not.
        lowercase, strip_accents, chinese: What to do.
    """

    def __init__(
        self,
        vocabulary: Collection[str],
        *,
        unknown: str,
        never_split: Collection[str],
        lowercase: bool,
        strip_accents: bool,
        chinese: bool,
    ) -> None:
        super().__init__(vocabulary)
        self._unknown = unknown
        self._never_split = frozenset(never_split)
        self._lowercase, self._strip_accents = lowercase, strip_accents
        self._run = _RUN_OR_CHINESE if chinese else _RUN

    def _split_unknown(self, word: NormalizedString) -> Iterator[NormalizedString]:
        _keep(word, _is_clean)
        word.nfc()
        for run in _parts(word, (match.span() for match in self._run.finditer(str(word)))):
            if str(run) in self._never_split:
                if str(run) not in self._vocabulary:  # WordPiece would try to take it apart
                    run.clear()
                    run.append(self._unknown)
                yield run
            else:
                if self._lowercase:
                    run.lowercase()
                if self._strip_accents:
                    run.nfd()
                    _keep(run, _is_no_accent)
                yield from _parts(run, _split_punctuation(str(run)))


class PlainSplitter(WordSplitter):
    """No basic tokenization: only white space separates."""

    def _split_unknown(self, word: NormalizedString) -> Iterator[NormalizedString]:
        return _parts(word, (match.span() for match in _RUN.finditer(str(word))))


class _RoFormer(Tokenizer):
    """What both tokenizers of RoFormer share: the template and the files."""

    family = "roformer"
    class_name = "RoFormerTokenizer"
    special_names = {  # noqa: RUF012  # declared ClassVar by the base
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    model_class = models.WordPiece
    vocabulary_files = {"vocab_file": "vocab.txt"}  # noqa: RUF012
    template = (("cls_token", 0), (FIRST, 0), ("sep_token", 0), (SECOND, 1), ("sep_token", 1))
    bare_second_type = 1

    @classmethod
    def _read_vocabulary(cls, *paths: Path) -> Any:
        lines = paths[0].read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return models.WordPiece({token: index for index, token in enumerate(lines)})

    @abstractmethod
    def _normalizer(self) -> normalizers.Normalizer | None:
        """What happens to the whole text before it is split."""

    @abstractmethod
    def _splitter(self, vocabulary: Collection[str]) -> WordSplitter:
        """What splits it."""

    def _complete(self, backend: tokenizers.Tokenizer) -> processors.PostProcessor:
        backend.model.unk_token = self._names["unk_token"]
        backend.normalizer = self._normalizer()
        vocabulary = backend.get_vocab(with_added_tokens=False)
        self._pre_tokenizer = pre_tokenizers.PreTokenizer.custom(self._splitter(vocabulary))
        backend.pre_tokenizer = self._pre_tokenizer
        backend.decoder = decoders.WordPiece()
        parts = {FIRST: "$A", SECOND: "$B"} | self._names
        return processors.TemplateProcessing(
            single=[f"{parts[part]}:{kind}" for part, kind in self._parts(pair=False)],
            pair=[f"{parts[part]}:{kind}" for part, kind in self._parts(pair=True)],
            special_tokens=[(self._names[key], self.special_ids[key]) for key in ("cls_token", "sep_token")],
        )


class RoFormerTokenizerFast(_RoFormer):
    """Words by jieba, then WordPiece; ``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]``.

    The text is cleaned, lower-cased and freed of accents as a whole before it is split. Punctuation is only separated
    where jieba does so, and Chinese characters always fall apart: both as in ``transformers``. The options count more
    than the normaliser in ``tokenizer.json``.

    Args:
        vocab_file: ``vocab.txt``; or
        tokenizer_file: ``tokenizer.json``.
        do_lower_case: Lower-case the text.
        tokenize_chinese_chars: Kept for files that hold it; it changes nothing.
        strip_accents: Take accents away; ``None`` does so where ``do_lower_case`` does.
        tokens: See ``Tokens``.

    Raises:
        TokenizerError: If a file is missing or malformed, the vocabulary lacks a special token, or an option is wrong.
    """

    def __init__(
        self,
        vocab_file: PathLike | None = None,
        *,
        tokenizer_file: PathLike | None = None,
        do_lower_case: bool = True,
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        **tokens: Unpack[Tokens],
    ) -> None:
        check_flag("do_lower_case", do_lower_case)
        check_flag("tokenize_chinese_chars", tokenize_chinese_chars)
        check_flag("strip_accents", strip_accents, optional=True)
        self._lowercase, self._strip_accents = do_lower_case, strip_accents
        super().__init__(
            tokenizer_file=tokenizer_file,
            vocabulary={"vocab_file": vocab_file},
            options={
                "do_lower_case": do_lower_case,
                "tokenize_chinese_chars": tokenize_chinese_chars,
                "strip_accents": strip_accents,
            },
            tokens=tokens,
        )

    def _normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=False,
            strip_accents=self._strip_accents,
            lowercase=self._lowercase,
        )

    def _splitter(self, vocabulary: Collection[str]) -> WordSplitter:
        return CharacterSplitter(vocabulary)

    def _portable_json(self) -> str:
        # Our splitter cannot be written; BERT's stands in for it, and readers put ours back.
        with self._lock:
            self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            try:
                return super()._portable_json()
            finally:
                self._backend.pre_tokenizer = self._pre_tokenizer


class RoFormerTokenizer(_RoFormer):
    """RoFormer's original tokenizer: jieba on the text itself, then BERT's basic tokenization and WordPiece.

    A word of jieba that the vocabulary has stays whole. Any other one is cleaned, split at punctuation and into Chinese
    characters, lower-cased and freed of accents, before WordPiece. Decoding only joins: no space is taken away before
    punctuation unless asked for. ``save_pretrained`` writes ``vocab.txt`` and ``tokenizer_config.json``.

    Args:
        vocab_file: ``vocab.txt``; or
        tokenizer_file: ``tokenizer.json``, of which only the vocabulary and the added tokens count.
        do_lower_case: Lower-case everything but special tokens, before jieba sees it.
        do_basic_tokenize: Without it, words go to WordPiece as they are, and the options for the basic tokenization,
            ``do_lower_case`` among them, change nothing.
        never_split: Words that the basic tokenization leaves whole.
        tokenize_chinese_chars: Split words that the vocabulary lacks into Chinese characters.
        strip_accents: Take accents away; ``None`` does so where ``do_lower_case`` does.
        tokens: See ``Tokens``.

    Raises:
        TokenizerError: If a file is missing or malformed, the vocabulary lacks a special token, or an option is wrong.
    """

    bare_second_type = 0

    def __init__(
        self,
        vocab_file: PathLike | None = None,
        *,
        tokenizer_file: PathLike | None = None,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Collection[str] | None = None,
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        **tokens: Unpack[Tokens],
    ) -> None:
        words: Any = [] if never_split is None else never_split
        if not isinstance(words, Collection) or isinstance(words, str) or not all(isinstance(x, str) for x in words):
            raise TokenizerError(f"never_split must be a list of words, or null; got {never_split!r}.")
        check_flag("do_basic_tokenize", do_basic_tokenize)
        check_flag("do_lower_case", do_lower_case)
        check_flag("tokenize_chinese_chars", tokenize_chinese_chars)
        check_flag("strip_accents", strip_accents, optional=True)
        self._never_split = list(words)
        self._basic, self._lowercase, self._chinese = do_basic_tokenize, do_lower_case, tokenize_chinese_chars
        self._strip_accents = do_lower_case if strip_accents is None else strip_accents
        super().__init__(
            tokenizer_file=tokenizer_file,
            vocabulary={"vocab_file": vocab_file},
            options={
                "do_lower_case": do_lower_case,
                "do_basic_tokenize": do_basic_tokenize,
                "never_split": None if never_split is None else self._never_split,
                "tokenize_chinese_chars": tokenize_chinese_chars,
                "strip_accents": strip_accents,
            },
            tokens=tokens,
        )

    def save_pretrained(self, folder: PathLike) -> None:
        """Writes ``vocab.txt`` and ``tokenizer_config.json``, for ``load_tokenizer`` and for ``transformers`` 4.

        Raises:
            TokenizerError: If the vocabulary cannot be written as ``vocab.txt``, because its ids have gaps.
            BundleError: If the folder cannot be written.
        """
        self.save_vocabulary(folder)
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        added = self._backend.get_added_tokens_decoder()
        decoder = {str(index): {flag: getattr(token, flag) for flag in flags} for index, token in added.items()}
        self._save_settings(Path(folder), added_tokens_decoder=decoder)

    def _normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.Lowercase() if self._basic and self._lowercase else None

    def _splitter(self, vocabulary: Collection[str]) -> WordSplitter:
        if not self._basic:
            return PlainSplitter(vocabulary)
        return BasicSplitter(
            vocabulary,
            unknown=self._names["unk_token"],
            never_split=self._never_split,
            lowercase=self._lowercase,
            strip_accents=self._strip_accents,
            chinese=self._chinese,
        )

    def _shares(self, first: int, second: int, room: int) -> tuple[int, int]:
        """As the fast one, but where both are cut, it is the first that keeps one more."""
        shorter = min(first, second, room // 2)
        return (room - shorter, shorter) if first > second or second > room // 2 < first else (shorter, room - shorter)

    def _join(self, tokens: list[str]) -> str:
        return " ".join(tokens).replace(" ##", "").strip()


def _parts(text: NormalizedString, spans: Iterator[tuple[int, int]]) -> Iterator[NormalizedString]:
    for start, end in spans:
        if (part := text[start:end]) is not None:
            yield part


def _keep(text: NormalizedString, wanted: Callable[[str], bool]) -> None:
    if not all(map(wanted, str(text))):
        text.filter(wanted)


def _is_clean(character: str) -> bool:
    """Whether BERT keeps this character: controls go, but not those that are white space."""
    return character in "\t\n\r" or (character != "\ufffd" and not unicodedata.category(character).startswith("C"))


def _is_no_accent(character: str) -> bool:
    return unicodedata.category(character) != "Mn"


def _split_punctuation(text: str) -> Iterator[tuple[int, int]]:
    """Spans of single punctuation marks and of what is between them; BERT counts all ASCII symbols as punctuation."""
    start = 0
    for index, character in enumerate(text):
        if unicodedata.category(character)[0] == "P" or (character.isascii() and _is_symbol(character)):
            if start < index:
                yield start, index
            yield index, index + 1
            start = index + 1
    if start < len(text):
        yield start, len(text)


def _is_symbol(character: str) -> bool:
    return unicodedata.category(character)[0] == "S"
