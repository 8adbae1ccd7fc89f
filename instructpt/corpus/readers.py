"""Reading whole objects (inspection) and spans of them (micro-shards), whatever the format."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from instructpt.corpus.columnar import (
    Groups,
    arrow_groups,
    is_arrow_file,
    parquet_groups,
    read_arrow_file,
    read_arrow_stream,
    read_parquet,
)
from instructpt.corpus.delimited import read_lines, read_pieces, read_whole
from instructpt.corpus.document import Document
from instructpt.corpus.manifest import Span
from instructpt.corpus.records import Invalid, ReadOptions
from instructpt.corpus.sources import SourceObject
from instructpt.corpus.streams import Tap, decompressed, decompressed_ahead, random_access, readable_object
from instructpt.errors import CorpusError
from instructpt.storage import open_all
from instructpt.storage.base import Store
from instructpt.storage.piped import Readable


class Item(NamedTuple):
    """One record of an object.

    Attributes:
        end: Offset behind it: bytes, row groups or record batches.
        cut: Whether a micro-shard may end here.
        result: A document, or why there is none.
    """

    end: int
    cut: bool
    result: Document | Invalid


def groups_of(store: Store, source: SourceObject, options: ReadOptions) -> Groups | None:
    """Row groups or record batches of an object that can be entered at them; None for every other object.

    Raises:
        ConfigError: A column is missing.
        CorpusError: The object cannot be read.
    """
    if source.format == "parquet":
        with readable_object(source.uri):
            return parquet_groups(random_access(store, source.key, source.size), options, where=source.name)
    if source.format == "arrow" and source.compression is None:
        with readable_object(source.uri):
            if is_arrow_file(store.get(source.key, length=8)):
                return arrow_groups(random_access(store, source.key, source.size), options, where=source.name)
    return None


def read_object(
    store: Store, source: SourceObject, options: ReadOptions, *, seen: Callable[[bytes], object] = lambda _: None
) -> Iterator[Item]:
    """Every record of an object, in order; memory stays flat.

    Args:
        store: Where it lies.
        source: The object.
        options: Names of the fields and limits.
        seen: Is told the stored bytes as they go by, where the object is read as a stream.

    Raises:
        ConfigError: A column is missing.
        CorpusError: The object is truncated, damaged or of another format.
    """
    if source.format == "parquet" or groups_of(store, source, options) is not None:
        read = read_parquet if source.format == "parquet" else read_arrow_file
        with readable_object(source.uri):
            file = random_access(store, source.key, source.size)
            for group, last, result in read(file, options, name=source.name):
                yield Item(group + 1, last, result)
        return
    with readable_object(source.uri), store.open(source.key) as raw, _opened(Tap(raw, seen), source) as stream:
        yield from _read_stream(stream, source, options)


def read_objects(
    store: Store,
    sources: Sequence[SourceObject],
    options: ReadOptions,
    *,
    seen: Callable[[bytes], object] = lambda _: None,
) -> Iterator[Item]:
    """Every record of several objects, in order; on S3 the next ones are fetched meanwhile.

    What is compressed is decompressed in a thread, which also calls ``seen``.

    Args:
        store: Where they lie.
        sources: The objects.
        options: Names of the fields and limits.
        seen: Is told the stored bytes as they go by, where an object is read as a stream.

    Raises:
        ConfigError: A column is missing.
        CorpusError: An object is truncated, damaged or of another format.
    """
    keys = [source.key for source in sources if is_stream(source)]
    with contextlib.closing(open_all(store, keys)) as streams:
        for source in sources:
            if not is_stream(source):
                yield from read_object(store, source, options, seen=seen)
                continue
            with readable_object(source.uri), _opened(Tap(next(streams), seen), source) as stream:
                yield from _read_stream(stream, source, options)


def is_stream(source: SourceObject) -> bool:
    """Whether an object is always read from its first byte to its last."""
    return source.format in ("jsonl", "text") or (source.format == "arrow" and source.compression is not None)


def _opened(raw: Tap, source: SourceObject) -> AbstractContextManager[Readable]:
    if source.format == "arrow":  # Arrow reads by the message: its pieces are no chunks
        return contextlib.nullcontext(decompressed(raw, source.compression))
    return decompressed_ahead(raw, source.compression)


def _read_stream(stream: Readable, source: SourceObject, options: ReadOptions) -> Iterator[Item]:
    if source.format == "arrow":
        for group, last, result in read_arrow_stream(stream, options, name=source.name):
            yield Item(group + 1, last, result)
    elif source.format == "text" and options.separator is None:
        size, result = read_whole(stream, options, name=source.name)
        if size:
            yield Item(size, True, result)
    elif source.format == "text":
        assert options.separator is not None
        for _, end, result in read_pieces(stream, options.separator, options, name=source.name):
            yield Item(end, True, result)
    else:
        for _, end, result in read_lines(stream, options, name=source.name):
            yield Item(end, True, result)


def read_span(store: Store, key: str, span: Span, options: ReadOptions, *, name: str) -> Iterator[Document | Invalid]:
    """The records of one micro-shard, in order.

    Args:
        store: Where the span's object lies.
        key: Its key there.
        span: What to read.
        options: Those of the inspection.
        name: Of the object, for ids.

    Raises:
        CorpusError: The object is damaged, or does not hold the span's records.
    """
    count = 0
    with readable_object(span.uri):
        for result in _span_records(store, key, span, options, name):
            count += 1
            yield result
    if count != span.records:
        raise CorpusError(
            f"{span.uri} holds {count} records where the inspection found {span.records} (from record {span.first})",
            fix="the object has changed: inspect the corpus again, into an empty storage",
        )


def _span_records(store: Store, key: str, span: Span, options: ReadOptions, name: str) -> Iterator[Document | Invalid]:
    if span.encoding in ("parquet", "arrow"):
        read = read_parquet if span.encoding == "parquet" else read_arrow_file
        file = random_access(store, key, store.head(key).size)
        for _, _, result in read(file, options, name=name, start=span.start, length=span.length, first=span.first):
            yield result
        return
    with store.open(key, start=span.start, length=span.length) as raw:
        if span.encoding == "text":
            assert options.separator is not None
            found = read_pieces(raw, options.separator, options, name=name, base=span.start, first=span.first)
        else:
            stream = decompressed(raw, "zstd" if span.encoding == "jsonl.zst" else None)
            # Frames hold what this package wrote: their offsets are not the object's, and no mark begins them.
            base = 1 if span.encoding == "jsonl.zst" else span.start
            found = read_lines(stream, options, name=name, base=base, first=span.first, lines=False)
        for _, _, result in found:
            yield result
