"""RoBERTa's tokenizer, which RoBERTa-PreLayerNorm shares: byte-level BPE."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from typing_extensions import Unpack

from exporter.errors import InputError, TokenizerError
from exporter.tokenization.tokenizer import FIRST, SECOND, PathLike, SpecialToken, Tokenizer, Tokens, check_flag

__all__ = ["RobertaTokenizer"]

# The library's alphabet stands in the order of the bytes, except that those without a glyph come from U+0100 on.
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTES = {chr(byte): byte for byte in _PRINTED} | {
    chr(0x100 + place): byte for place, byte in enumerate(byte for byte in range(0x100) if byte not in _PRINTED)
}


class RobertaTokens(Tokens, total=False):
    """Beside the options of every tokenizer: where a text begins and ends."""

    bos_token: SpecialToken
    eos_token: SpecialToken


class RobertaTokenizer(Tokenizer):
    """Byte-level BPE; ``<s> A </s>`` or ``<s> A </s></s> B </s>``, all of type 0.

    Args:
        vocab_file, merges_file: ``vocab.json`` and ``merges.txt``; or
        tokenizer_file: ``tokenizer.json``.
        errors: What decoding does with bytes that are not UTF-8, as in ``bytes.decode``.
        add_prefix_space: Read the first word as if a space stood before it.
        trim_offsets: Leave the space before a word out of its offsets.
        tokens: As ``Tokens``, and ``bos_token`` and ``eos_token``. A mask given as a ``str`` stands for a word and the
            space before it.

    Raises:
        TokenizerError: If a file is missing or malformed, the vocabulary lacks a special token, or an option is wrong.
    """

    family = "roberta-prelayernorm"
    class_name = "RobertaTokenizer"
    special_names = {  # noqa: RUF012  # declared ClassVar by the base
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    model_class = models.BPE
    vocabulary_files = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}  # noqa: RUF012
    template = (("cls_token", 0), (FIRST, 0), ("sep_token", 0), ("sep_token", 0), (SECOND, 0), ("sep_token", 0))
    bare_second_type = 0

    def __init__(
        self,
        vocab_file: PathLike | None = None,
        merges_file: PathLike | None = None,
        *,
        tokenizer_file: PathLike | None = None,
        errors: str = "replace",
        add_prefix_space: bool = False,
        trim_offsets: bool = True,
        **tokens: Unpack[RobertaTokens],
    ) -> None:
        try:
            codecs.lookup_error(errors)
        except (LookupError, TypeError) as error:
            raise TokenizerError(
                f"errors must be a handler of bytes.decode, like 'replace'; got {errors!r}."
            ) from error
        self._errors = errors
        check_flag("add_prefix_space", add_prefix_space)
        check_flag("trim_offsets", trim_offsets)
        self._prefix, self._trim = add_prefix_space, trim_offsets
        mask = tokens.get("mask_token", self.special_names["mask_token"])
        if isinstance(mask, str):
            tokens["mask_token"] = AddedToken(mask, lstrip=True, special=True, normalized=False)
        super().__init__(
            tokenizer_file=tokenizer_file,
            vocabulary={"vocab_file": vocab_file, "merges_file": merges_file},
            options={"errors": errors, "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets},
            tokens=tokens,
        )

    @classmethod
    def _read_vocabulary(cls, *paths: Path) -> Any:
        vocabulary, merges = models.BPE.read_file(*map(str, paths))
        return models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="")

    def _complete(self, backend: tokenizers.Tokenizer) -> processors.PostProcessor:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self._prefix)
        backend.decoder = decoders.ByteLevel()
        return processors.RobertaProcessing(
            (self._names["sep_token"], self.special_ids["sep_token"]),
            (self._names["cls_token"], self.special_ids["cls_token"]),
            trim_offsets=self._trim,
            add_prefix_space=self._prefix,
        )

    def _join(self, tokens: list[str]) -> str:
        # The library's decoder knows no other way than to replace.
        spelled = b"".join(
            bytes(map(_BYTES.__getitem__, token)) if _BYTES.keys() >= set(token) else token.encode() for token in tokens
        )
        try:
            return spelled.decode("utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise InputError(
                f"The ids spell no UTF-8 ({error}): a character is incomplete. Use errors='replace'."
            ) from error

    def _clean_up(self, text: str) -> str:
        return text
