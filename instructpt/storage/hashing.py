"""sha256 of files and objects, read in chunks: memory stays flat however large they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from instructpt.storage.base import Store

_CHUNK = 1 << 20


def sha256_of_stream(stream: BinaryIO) -> str:
    """Of what is left of a stream, in hex."""
    digest = hashlib.sha256()
    while data := stream.read(_CHUNK):
        digest.update(data)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Of a file, in hex.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        return sha256_of_stream(stream)


def sha256_of_object(store: Store, key: str) -> str:
    """Of an object, in hex.

    Raises:
        NotFoundError: It is not there.
    """
    with store.open(key) as stream:
        return sha256_of_stream(stream)
