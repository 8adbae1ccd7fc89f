"""Counting tokens: with a tokenizer where one is named, else four bytes a token, marked as an estimate."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from instructpt.api.base import Access
from instructpt.errors import ConfigError, EnvironmentNotReadyError, NotFoundError
from instructpt.storage import Scheme, open_store, parse_uri, split_uri

BYTES_PER_TOKEN = 4
_FILE = "tokenizer.json"


class TokenCounter(Protocol):
    """Counts the tokens of texts, special tokens left out."""

    def __call__(self, texts: list[str]) -> list[int]:
        """Tokens of each of ``texts``."""


def estimate_tokens(size: int) -> int:
    """Tokens of ``size`` bytes of text at four bytes a token, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def load_counter(name: str, *, access: Access | None = None, field: str = "spec.corpus.tokenizer") -> TokenCounter:
    """A counter that uses the tokenizer ``name``.

    Args:
        name: A ``tokenizer.json``, a folder with one (local or ``s3://``), or a hub id.
        access: Of the storage, for ``s3://``.
        field: For messages.

    Raises:
        ConfigError: There is no such tokenizer.
        EnvironmentNotReadyError: The package ``tokenizers`` is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EnvironmentNotReadyError(
            "counting with a tokenizer needs the package tokenizers",
            field=field,
            value=name,
            fix="pip install 'instructpt[synthesis]', or leave the tokenizer empty for an estimate",
        ) from error
    try:
        data = _tokenizer_json(name, access)
        tokenizer = Tokenizer.from_pretrained(name) if data is None else Tokenizer.from_buffer(data)
    except NotFoundError as error:
        raise ConfigError(
            f"there is no {_FILE}", field=field, value=name, fix="give a folder or file that holds it, or a hub id"
        ) from error
    except Exception as error:  # tokenizers raises plain Exception for everything
        raise ConfigError(f"the tokenizer cannot be loaded: {error}", field=field, value=name) from error

    def count(texts: list[str]) -> list[int]:
        return [len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return count


def _tokenizer_json(name: str, access: Access | None) -> bytes | None:
    """The tokenizer's file; None for a hub id."""
    if parse_uri(name).scheme is Scheme.FILE and not Path(name).expanduser().exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise NotFoundError(f"no {name}")
        return None
    if name.endswith(".json"):
        store, key = split_uri(name, access=access)
        return store.get(key)
    return open_store(name, access=access).get(_FILE)
