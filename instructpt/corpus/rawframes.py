"""The raw copy of an object that cannot be entered in the middle: zstd frames of jsonl, one frame a micro-shard.

Frames that follow each other are one valid ``.jsonl.zst``, so any tool reads the whole file (RFC 8878, section 3).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson
import zstandard

from instructpt.corpus.document import Document
from instructpt.corpus.records import ReadOptions

RAW_PREFIX = "raw/"
_LEVEL = 3


def raw_options(options: ReadOptions) -> ReadOptions:
    """How raw copies are read: by the fields that :class:`RawWriter` writes."""
    return ReadOptions(text_field="text", id_field="id", max_document_bytes=options.max_document_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One finished frame: offset and length in bytes, and its sha256 in hex."""

    start: int
    length: int
    sha256: str


class RawWriter:
    """Writes documents into a local file, frame by frame. Equal documents give equal bytes.

    Args:
        path: The file; replaced.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._whole = hashlib.sha256()
        self._position = 0
        self._begin()

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _begin(self) -> None:
        self._start = self._position
        self._digest = hashlib.sha256()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()

    def add(self, document: Document) -> None:
        """One document into the current frame."""
        line = orjson.dumps({"id": document.id, "text": document.text}, option=orjson.OPT_APPEND_NEWLINE)
        self._write(self._compressor.compress(line))

    def cut(self) -> Frame:
        """End the current frame (it may be empty) and begin another."""
        self._write(self._compressor.flush())
        frame = Frame(start=self._start, length=self._position - self._start, sha256=self._digest.hexdigest())
        self._begin()
        return frame

    def close(self) -> str:
        """End the file; returns the sha256 of its bytes in hex. What was added since the last cut is dropped."""
        self._file.close()
        return self._whole.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._whole.update(data)
        self._position += len(data)
