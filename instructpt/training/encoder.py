"""A tokenizer as preparation needs it: exact ids, nothing added, special tokens only where they are meant."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructpt.errors import ConfigError, EnvironmentNotReadyError

_INSTALL = "pip install 'instructpt[training]'"


class TextEncoder:
    """Encodes texts; loads no torch where the folder holds ``tokenizer.json``.

    Args:
        folder: A folder in the Hugging Face layout.

    Attributes:
        vocab_size: One more than the largest id: vocabularies may leave ids out.

    Raises:
        ConfigError: It holds no tokenizer that can be read, or one without an end-of-sequence token.
        EnvironmentNotReadyError: The package ``tokenizers`` is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._backend, special = _load(folder)
        # Saved with a tokenizer, these would cut texts or lengthen them without a word.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._token_bytes: NDArray[np.int64] | None = None
        self.vocab_size: int = 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos = self._id(special.get("bos_token"))
        eos = self._id(special.get("eos_token"))
        if eos is None:
            raise ConfigError(
                f"the tokenizer in {folder} declares no end-of-sequence token, so texts could not be told apart",
                field="tokenizer",
                fix="set eos_token in its tokenizer_config.json",
            )
        self.eos: int = eos
        pad = self._id(special.get("pad_token"))
        self.pad: int = eos if pad is None else pad

    def _id(self, token: str | None) -> int | None:
        found = None if token is None else self._backend.token_to_id(token)
        return None if found is None else int(found)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def encode(self, texts: Sequence[str], *, marked: bool = False) -> list[NDArray[np.uint32]]:
        """Token ids of each text.

        Args:
            texts: Any.
            marked: Whether strings of special tokens in a text are those tokens, as in the texts of a profile. In
                documents they are ordinary characters: a document must not end itself.
        """
        self._backend.encode_special_tokens = not marked
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, dtype=np.uint32) for e in found]

    def sizes(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text of a profile, where strings of special tokens are those tokens."""
        return [len(ids) for ids in self.encode(texts, marked=True)]

    def token_starts(
        self, text: str, ids: NDArray[Any], characters: Sequence[int], *, marked: bool = False
    ) -> list[int]:
        """The first of the tokens ``ids`` of a text that begins at or after each of ``characters``, which ascend.

        The bytes of byte-level tokens are counted; other kinds are encoded again, which is slow, for their offsets.
        """
        if self._token_bytes is None:
            self._token_bytes = _token_bytes(self._backend, self.vocab_size)
        ends = np.cumsum(self._token_bytes[ids])
        size = len(text.encode())
        if len(ends) and int(ends[-1]) == size:
            before = [len(part.encode()) for part in _between(text, characters)]
            firsts = ends - self._token_bytes[ids]
            return [int(found) for found in np.searchsorted(firsts, np.cumsum(before))]
        self._backend.encode_special_tokens = not marked
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        return [bisect_left([first for first, _ in offsets], character) for character in characters]

    def to_json(self) -> str:
        """The tokenizer, as in ``tokenizer.json``."""
        return str(self._backend.to_str())


def _between(text: str, characters: Sequence[int]) -> list[str]:
    """What of a text lies before each of ``characters`` and after the one before it."""
    return [text[a:b] for a, b in zip([0, *characters], characters, strict=False)]


def _token_bytes(backend: Any, size: int) -> NDArray[np.int64]:
    """How many bytes of text each id stands for if it is byte-level; 0 for ids that are not there."""
    found = np.zeros(size, dtype=np.int64)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token, number in backend.get_vocab(with_added_tokens=True).items():
        found[number] = len(token.encode()) if token in added else len(token)
    return found


def _load(folder: Path) -> tuple[Any, dict[str, str]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EnvironmentNotReadyError("tokenizing needs the package tokenizers", fix=_INSTALL) from error
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json")), _special_tokens(folder)
        return _from_transformers(folder)
    # tokenizers raises plain Exception, and every broken file gives an exception of its own kind.
    except Exception as error:
        raise ConfigError(
            f"{folder} holds no tokenizer that can be read ({type(error).__name__}: {error})",
            field="tokenizer",
            value=str(folder),
            fix="give a folder with tokenizer.json and tokenizer_config.json",
        ) from error


def _special_tokens(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        raw: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
        for key in ("bos_token", "eos_token", "pad_token"):
            value = raw.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[key] = text
    return found


def _from_transformers(folder: Path) -> tuple[Any, dict[str, str]]:
    """Formats other than ``tokenizer.json``, such as SentencePiece, which transformers converts."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    names = ("bos_token", "eos_token", "pad_token")
    return loaded.backend_tokenizer, {n: str(getattr(loaded, n)) for n in names if getattr(loaded, n) is not None}
