"""Reading the files of a tokenizer folder, whose mistakes become one kind of error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from exporter.errors import TokenizerError

__all__ = ["read_added_tokens", "read_extra_special_tokens", "read_json", "read_settings", "read_token", "reported"]


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


def read_settings(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json``, completed by the older ``special_tokens_map.json``; both are optional.

    Raises:
        TokenizerError: If one of them is malformed.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    return settings


def read_token(value: Any, folder: Path) -> str | AddedToken:
    """A special token: configs hold it bare, or with flags around it.

    Raises:
        TokenizerError: If it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        with reported(folder / "tokenizer_config.json"):
            return AddedToken(**_flags(value))
    raise TokenizerError(f"{folder / 'tokenizer_config.json'} names a special token {value!r}; expected a string.")


def read_extra_special_tokens(folder: Path, settings: Mapping[str, Any]) -> list[str | AddedToken]:
    """Special tokens without a role of their own, under the names that ``transformers`` 5 and 4 give them.

    Raises:
        TokenizerError: If they are no list, or one is not a token.
    """
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    values = extra.values() if isinstance(extra, dict) else extra
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'} must hold a list of additional_special_tokens; got {extra!r}."
        )
    return [read_token(value, folder) for value in values]


def read_added_tokens(folder: Path, settings: Mapping[str, Any], special: Iterable[str]) -> dict[int, AddedToken]:
    """The tokens that older folders keep beside the vocabulary, by their ids.

    Args:
        folder: May hold ``added_tokens.json``.
        settings: Of ``tokenizer_config.json``; its ``added_tokens_decoder`` counts more, for it has their flags.
        special: The texts of all special tokens, which ``added_tokens.json`` does not mark.

    Raises:
        TokenizerError: If one of the files is malformed.
    """
    decoder, extra = settings.get("added_tokens_decoder"), folder / "added_tokens.json"
    if decoder:
        with reported(folder / "tokenizer_config.json"):
            return {int(index): AddedToken(**_flags(value)) for index, value in decoder.items()}
    if not extra.is_file():
        return {}
    names, content = set(special), read_json(extra)
    with reported(extra):
        return {
            int(index): AddedToken(text, special=text in names, normalized=text not in names)
            for text, index in content.items()
        }


def _flags(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: flag for key, flag in value.items() if key != "__type"}
