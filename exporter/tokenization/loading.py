"""Finding the tokenizer of a checkpoint folder."""

from __future__ import annotations

import os
from pathlib import Path

from exporter.errors import ConfigError, TokenizerError
from exporter.tokenization.reading import read_json
from exporter.tokenization.roberta import RobertaTokenizer
from exporter.tokenization.roformer import RoFormerTokenizer, RoFormerTokenizerFast
from exporter.tokenization.tokenizer import Tokenizer

__all__ = ["load_tokenizer"]

FAMILIES: dict[str, type[Tokenizer]] = {cls.family: cls for cls in (RoFormerTokenizerFast, RobertaTokenizer)}


def load_tokenizer(folder: str | os.PathLike[str], family: str | None = None, *, use_fast: bool = True) -> Tokenizer:
    """Reads the tokenizer files of a checkpoint folder, as ``transformers`` 4 or 5 wrote them.

    Args:
        folder: Holds ``tokenizer.json``, or the older ``vocab.txt`` (RoFormer) or ``vocab.json`` and ``merges.txt``
            (RoBERTa); ``tokenizer_config.json`` is optional.
        family: "roformer" or "roberta-prelayernorm"; ``None`` reads ``model_type`` from ``config.json``.
        use_fast: ``False`` gives RoFormer's original tokenizer, whose rules for punctuation and accents differ.

    Raises:
        TokenizerError: If a file is missing or malformed, or the family is not one of ours.
        ConfigError: If ``config.json`` names another architecture.
    """
    path = Path(folder)
    if not path.is_dir():
        raise TokenizerError(f"No folder at {path}: expected a checkpoint folder with tokenizer files.")
    expected = " or ".join(map(repr, FAMILIES))
    if family is None:
        config = path / "config.json"
        if not config.is_file():
            raise TokenizerError(f"{path} has no config.json to read the family from: give family={expected}.")
        family = str(read_json(config).get("model_type"))
        if family not in FAMILIES:
            raise ConfigError(f"{config} is of another architecture: model_type is {family!r}, expected {expected}.")
    if family not in FAMILIES:
        raise TokenizerError(f"There is no tokenizer for the family {family!r}: expected {expected}.")
    if not use_fast and family == RoFormerTokenizer.family:
        return RoFormerTokenizer.from_pretrained(path)
    return FAMILIES[family].from_pretrained(path)
