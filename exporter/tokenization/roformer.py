"""RoFormer's tokenizer: Chinese words where the vocabulary has them, WordPiece elsewhere."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import rjieba
import tokenizers
from tokenizers import NormalizedString, PreTokenizedString, decoders, models, normalizers, pre_tokenizers, processors

from exporter.errors import TokenizerError
from exporter.tokenization.tokenizer import Tokenizer

__all__ = ["RoFormerTokenizer"]

# The blocks of Chinese characters that BERT splits one by one.
_CHINESE = (
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
_PIECE = re.compile(rf"[{_CHINESE}]|[^\s{_CHINESE}]+")


class WordSplitter:
    """Splits at the word boundaries of jieba; a word that the vocabulary lacks falls apart into its characters.

    Only Chinese characters fall apart: a run of other characters stays whole for WordPiece. White space is dropped.
    """

    def __init__(self, vocabulary: Container[str]) -> None:
        self._vocabulary = vocabulary

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Called by the tokenizers library, which passes its own text to be split in place."""
        text.split(self._split)

    def _split(self, _: int, text: NormalizedString) -> list[NormalizedString]:
        spans: list[tuple[int, int]] = []
        for word, start, end in rjieba.tokenize(str(text), hmm=False):  # spans count characters
            if word in self._vocabulary:
                spans.append((start, end))
            else:
                spans += ((start + piece.start(), start + piece.end()) for piece in _PIECE.finditer(word))
        return [piece for start, end in spans if (piece := text[start:end]) is not None]


class RoFormerTokenizer(Tokenizer):
    """Words by jieba, then WordPiece; ``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]``.

    ``do_lower_case`` and ``strip_accents`` of ``tokenizer_config.json`` count more than the normaliser in
    ``tokenizer.json``, and Chinese characters always fall apart, whatever ``tokenize_chinese_chars`` says: both as
    in ``transformers``.
    """

    family = "roformer"
    special_names = {  # noqa: RUF012  # declared ClassVar by the base
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    model_class = models.WordPiece
    vocabulary_files = ("vocab.txt",)
    class_name = "RoFormerTokenizer"

    def __init__(self, backend: tokenizers.Tokenizer, names: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        lower, strip = settings.get("do_lower_case", True), settings.get("strip_accents")
        if not isinstance(lower, bool) or not isinstance(strip, bool | None):
            raise TokenizerError(
                f"tokenizer_config.json must hold true or false for do_lower_case and true, false or null for "
                f"strip_accents; got {lower!r} and {strip!r}."
            )
        super().__init__(backend, names, {**settings, "do_lower_case": lower, "strip_accents": strip})
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=False, strip_accents=strip, lowercase=lower
        )
        self._splitter = pre_tokenizers.PreTokenizer.custom(WordSplitter(backend.get_vocab()))
        backend.pre_tokenizer = self._splitter
        cls, sep = names["cls_token"], names["sep_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(names[key], self.special_ids[key]) for key in ("cls_token", "sep_token")],
        )
        backend.decoder = decoders.WordPiece()

    @classmethod
    def _read_vocabulary(cls, *paths: Path, names: Mapping[str, str]) -> tokenizers.Tokenizer:
        lines = paths[0].read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocabulary = {token: index for index, token in enumerate(lines)}
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"]))
        backend.add_special_tokens([token for token in names.values() if token in vocabulary])
        return backend

    def _portable_json(self) -> str:
        # Our splitter cannot be written; BERT's stands in for it, and readers put ours back.
        self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        try:
            return super()._portable_json()
        finally:
            self._backend.pre_tokenizer = self._splitter
