"""RoBERTa's tokenizer, which RoBERTa-PreLayerNorm shares: byte-level BPE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from exporter.errors import TokenizerError
from exporter.tokenization.tokenizer import Tokenizer

__all__ = ["RobertaTokenizer"]


class RobertaTokenizer(Tokenizer):
    """Byte-level BPE; ``<s> A </s>`` or ``<s> A </s></s> B </s>``, all of type 0.

    ``add_prefix_space`` and ``trim_offsets`` come from ``tokenizer_config.json`` (defaults: false, true), as in
    ``transformers``.
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
    vocabulary_files = ("vocab.json", "merges.txt")

    def __init__(self, backend: tokenizers.Tokenizer, names: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        prefix, trim = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
        if not isinstance(prefix, bool) or not isinstance(trim, bool):
            raise TokenizerError(
                f"tokenizer_config.json must hold true or false for add_prefix_space and trim_offsets; "
                f"got {prefix!r} and {trim!r}."
            )
        super().__init__(backend, names, {**settings, "add_prefix_space": prefix, "trim_offsets": trim})
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        backend.post_processor = processors.RobertaProcessing(
            (names["sep_token"], self.special_ids["sep_token"]),
            (names["cls_token"], self.special_ids["cls_token"]),
            trim_offsets=trim,
            add_prefix_space=prefix,
        )
        backend.decoder = decoders.ByteLevel()

    @classmethod
    def _read_vocabulary(cls, *paths: Path, names: Mapping[str, str]) -> tokenizers.Tokenizer:
        vocabulary, merges = models.BPE.read_file(*map(str, paths))
        model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="")
        backend = tokenizers.Tokenizer(model)
        # The mask stands for a word and the space before it.
        known = (token for token in dict.fromkeys(names.values()) if token in vocabulary)
        backend.add_special_tokens([AddedToken(token, lstrip=token == names["mask_token"]) for token in known])
        return backend
