"""Records that a delimiter ends: lines of jsonl, pieces of a text file. A record too long is skipped, never held."""

from __future__ import annotations

from collections.abc import Iterator

from instructpt.corpus.document import Document
from instructpt.corpus.records import (
    Invalid,
    ReadOptions,
    Refused,
    checked_text,
    decode_text,
    document_of,
    parse_object,
    too_long,
)
from instructpt.corpus.streams import CHUNK
from instructpt.storage.piped import Readable

Piece = tuple[int, int, bytes | None]
"""Start and end offset (the delimiter included) and content, None where it is longer than the limit."""

Read = tuple[int, int, Document | Invalid]
"""Start and end offset of a record and what it holds."""


def pieces(stream: Readable, delimiter: bytes, limit: int, *, chunk: int = CHUNK) -> Iterator[Piece]:
    """Cut a stream at a delimiter. The last piece needs none; what follows the last delimiter may be empty.

    Memory: ``limit`` + ``chunk`` bytes. The cuts do not depend on ``chunk``: the leftmost delimiter wins.
    """
    position, carry, pending = 0, b"", b""
    while data := pending or stream.read(chunk):
        pending = b""
        *whole, carry = (carry + data).split(delimiter)
        for content in whole:
            end = position + len(content) + len(delimiter)
            yield position, end, content if len(content) <= limit else None
            position = end
        if len(carry) > limit + len(delimiter):
            length, rest = _skip(stream, carry, delimiter, chunk)
            end = position + length + (0 if rest is None else len(delimiter))
            yield position, end, None
            if rest is None:
                return
            position, carry, pending = end, b"", rest
    if carry:
        yield position, position + len(carry), carry if len(carry) <= limit else None


def _skip(stream: Readable, carry: bytes, delimiter: bytes, chunk: int) -> tuple[int, bytes | None]:
    """Read on to the next delimiter: length of the record, and what follows it in its chunk (None: end of stream)."""
    keep = len(delimiter) - 1
    length = len(carry)
    tail = carry[len(carry) - keep :]
    while data := stream.read(chunk):
        window = tail + data
        found = window.find(delimiter)
        if found >= 0:
            return length - len(tail) + found, window[found + len(delimiter) :]
        length += len(data)
        tail = window[len(window) - keep :]
    return length, None


def read_lines(
    stream: Readable, options: ReadOptions, *, name: str, base: int = 0, first: int = 0, lines: bool = True
) -> Iterator[Read]:
    """Records of jsonl. Lines of white space alone are no records.

    Args:
        stream: Decompressed bytes.
        options: Names of the fields and limits.
        name: Of the object, for ids and places.
        base: Offset of the stream's first byte in its object.
        first: Ordinal of the first record.
        lines: Places are line numbers; only right from the start of an object. Else ordinals of records.
    """
    ordinal, limit = first, options.max_record_bytes
    for line_number, (start, end, line) in enumerate(pieces(stream, b"\n", limit), start=1):
        if line is not None and (not line or line.isspace()):
            continue
        result: Document | Invalid
        try:
            if line is None:
                raise too_long(end - start, limit)
            record = parse_object(line, first=base + start == 0)
            result = document_of(record, options, f"{name}#{ordinal}")
        except Refused as refused:
            result = refused.at(f"{name}:{line_number}" if lines else f"{name} record {ordinal}")
        yield base + start, base + end, result
        ordinal += 1


def read_pieces(
    stream: Readable, separator: str, options: ReadOptions, *, name: str, base: int = 0, first: int = 0
) -> Iterator[Read]:
    """Records of a text file with a separator. Line ends around a piece are cut; blank pieces are no records."""
    ordinal, limit = first, options.max_record_bytes
    for start, end, content in pieces(stream, separator.encode("utf-8"), limit):
        if content is not None and (not content or content.isspace()):
            continue
        result: Document | Invalid
        try:
            if content is None:
                raise too_long(end - start, limit)
            text = decode_text(content).strip("\r\n")
            if base + start == 0:
                text = text.removeprefix("\ufeff")
            result = Document(id=f"{name}#{ordinal}", text=checked_text(text, options))
        except Refused as refused:
            result = refused.at(f"{name} record {ordinal}")
        yield base + start, base + end, result
        ordinal += 1


def read_whole(stream: Readable, options: ReadOptions, *, name: str) -> tuple[int, Document | Invalid]:
    """A file that is one document: its decompressed size and the document."""
    size, limit = 0, options.max_record_bytes
    held: list[bytes] = []
    while data := stream.read(CHUNK):
        size += len(data)
        held = [*held, data] if size <= limit else []
    try:
        if size > limit:
            raise too_long(size, limit)
        text = decode_text(b"".join(held)).removeprefix("\ufeff")
        return size, Document(id=f"{name}#0", text=checked_text(text, options))
    except Refused as refused:
        return size, refused.at(name)
