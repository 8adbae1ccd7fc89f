"""Plain files as training sources: every record as a dictionary, in order, without a manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from instructpt.api.base import Access
from instructpt.api.v1alpha1.corpus import Format
from instructpt.corpus.columnar import is_arrow_file
from instructpt.corpus.delimited import pieces
from instructpt.corpus.readers import is_stream
from instructpt.corpus.records import Refused, decode_text, parse_object
from instructpt.corpus.sources import SourceObject, resolve_files
from instructpt.corpus.streams import CHUNK, decompressed, random_access, readable_object
from instructpt.errors import ConfigError, CorpusError
from instructpt.storage import open_all
from instructpt.storage.base import Store
from instructpt.storage.piped import Readable

FileFormat = Literal["auto", "jsonl", "parquet", "arrow", "text", "instructions"]

_LONGEST_LINE = 256 << 20
_ROWS = 256


def iter_files(
    uri: str,
    access: Access,
    format: FileFormat,  # noqa: A002  # the word of the spec
    fields: Sequence[str],
    *,
    field: str = "spec.mixture",
    on_skip: Callable[[str, str], object] | None = None,
    fault: Callable[[dict[str, Any], Sequence[str]], str | None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of the files at a URI as dictionaries with ``fields``, in ascending order of names.

    Args:
        uri: File, folder or glob.
        access: How it is reached.
        format: ``instructions`` is any of the record formats, by name; of ``text`` a file is one record.
        fields: Fields that each record must have as strings, such as question and answer; of ``text`` the first
            names the whole text.
        field: Path of the source in the spec, for messages.
        on_skip: Is told place and reason of a record that cannot be used; None ends with an error instead.
        fault: Why a record cannot be used; None asks that each field be a string that is not empty.

    Raises:
        ConfigError: Nothing is there, or no format is known.
        CorpusError: An object is damaged, or (without ``on_skip``) a record cannot be used.
    """
    wanted: Format = "auto" if format == "instructions" else format
    source = resolve_files(uri, access, wanted, field=field)
    assert source.store is not None
    for where, record in _records(source.store, source.objects, fields):
        reason = record.detail if isinstance(record, Refused) else (fault or _unusable)(record, fields)
        if reason is None:
            yield {name: cast("dict[str, Any]", record).get(name) for name in fields}
        elif on_skip is not None:
            on_skip(where, reason)
        else:
            raise CorpusError(
                f"{where}: {reason}", field=f"{field}.uri", value=uri, fix="correct the record or name other fields"
            )


def _unusable(record: dict[str, Any], fields: Sequence[str]) -> str | None:
    for name in fields:
        value = record.get(name)
        if value is None:
            known = ", ".join(list(record)[:50])
            return f"no field {name!r} (its fields are: {known})"
        if not isinstance(value, str):
            return f"field {name!r} holds {type(value).__name__}, not a string"
        if not value or value.isspace():
            return f"field {name!r} is empty"
    return None


_Found = tuple[str, dict[str, Any] | Refused]


def _records(store: Store, sources: Sequence[SourceObject], fields: Sequence[str]) -> Iterator[_Found]:
    """Those of all objects, in order; on S3 the next ones are fetched meanwhile."""
    keys = [source.key for source in sources if is_stream(source)]
    with contextlib.closing(open_all(store, keys)) as streams:
        for source in sources:
            with readable_object(source.uri):
                if is_stream(source):
                    yield from _streamed(next(streams), source, fields)
                else:
                    yield from _entered(store, source, fields)


def _entered(store: Store, source: SourceObject, fields: Sequence[str]) -> Iterator[_Found]:
    """Of an object that is read from its end, or must be looked into first."""
    if source.format == "parquet":
        yield from _parquet(store, source, fields)
    elif is_arrow_file(store.get(source.key, length=8)):
        reader = pa.ipc.open_file(random_access(store, source.key, source.size))
        yield from _rows(source, (reader.get_batch(i) for i in range(reader.num_record_batches)), fields)
    else:
        with store.open(source.key) as raw:
            yield from _streamed(raw, source, fields)


def _streamed(raw: Readable, source: SourceObject, fields: Sequence[str]) -> Iterator[_Found]:
    stream = decompressed(raw, source.compression)
    if source.format == "arrow":
        yield from _rows(source, iter(pa.ipc.open_stream(stream)), fields)
    elif source.format == "jsonl":
        yield from _lines(stream, source)
    else:
        yield from _text(stream, source, fields)


def _lines(stream: Any, source: SourceObject) -> Iterator[_Found]:
    for number, (start, end, line) in enumerate(pieces(stream, b"\n", _LONGEST_LINE), start=1):
        where = f"{source.name}:{number}"
        if line is None:
            yield where, Refused("too-large", f"line of {end - start:,} bytes")
        elif line and not line.isspace():
            try:
                yield where, parse_object(line, first=start == 0)
            except Refused as refused:
                yield where, refused


def _text(stream: Any, source: SourceObject, fields: Sequence[str]) -> Iterator[_Found]:
    held, size = [], 0
    while data := stream.read(CHUNK):
        size += len(data)
        if size > _LONGEST_LINE:
            yield source.name, Refused("too-large", f"file of more than {_LONGEST_LINE:,} bytes")
            return
        held.append(data)
    try:
        yield source.name, {fields[0]: decode_text(b"".join(held)).removeprefix("\ufeff")}
    except Refused as refused:
        yield source.name, refused


def _parquet(store: Store, source: SourceObject, fields: Sequence[str]) -> Iterator[_Found]:
    file = random_access(store, source.key, source.size)
    with pq.ParquetFile(file, buffer_size=4 << 20, pre_buffer=False) as parquet:
        _check(parquet.schema_arrow, fields, source)
        yield from _rows(source, parquet.iter_batches(_ROWS, columns=list(fields), use_threads=False), fields)


def _rows(source: SourceObject, batches: Iterator[Any], fields: Sequence[str]) -> Iterator[_Found]:
    ordinal = 0
    for batch in batches:
        _check(batch.schema, fields, source)
        for row in _plain(batch.select(list(fields))):
            yield f"{source.name} row {ordinal}", row
            ordinal += 1


def _plain(batch: Any) -> list[dict[str, Any] | Refused]:
    try:
        rows: list[dict[str, Any] | Refused] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        # Only now row by row, to keep the good ones.
        return [_row(batch, index) for index in range(batch.num_rows)]


def _row(batch: Any, index: int) -> dict[str, Any] | Refused:
    try:
        row: dict[str, Any] = batch.slice(index, 1).to_pylist()[0]
        return row
    except UnicodeDecodeError as error:
        return Refused("invalid-utf8", f"the row is not UTF-8 ({error.reason})")


def _check(schema: Any, fields: Sequence[str], source: SourceObject) -> None:
    missing = [name for name in fields if name not in schema.names]
    if missing:
        raise ConfigError(
            f"{source.name} has no column {missing[0]!r}",
            fix=f"its columns are: {', '.join(schema.names[:50])}; name one of them",
        )
