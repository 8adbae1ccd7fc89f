"""Parquet (by row groups) and Arrow IPC (by record batches): only the columns that are needed, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from instructpt.corpus.document import Document
from instructpt.corpus.records import Invalid, ReadOptions, Refused, document_of
from instructpt.errors import ConfigError, CorpusError
from instructpt.storage.piped import Readable

Row = tuple[int, bool, Document | Invalid]
"""Row group or record batch, whether this is its last row, and what the row holds."""

ARROW_MAGIC = b"ARROW1"
_BATCH_BYTES = 8 << 20
_BUFFER = 4 << 20
_MAX_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Row groups of a Parquet file, or record batches of an Arrow file, without their content.

    Attributes:
        rows: Rows of each, in order; of an Arrow file the first only, since its footer does not tell.
    """

    rows: tuple[int, ...]

    @property
    def largest(self) -> int:
        """Rows of the largest one."""
        return max(self.rows, default=0)


def parquet_groups(file: BinaryIO, options: ReadOptions, *, where: str) -> Groups:
    """What the footer tells.

    Raises:
        ConfigError: The text or id column is missing or of a type that cannot hold it.
    """
    with pq.ParquetFile(file) as parquet:
        check_columns(parquet.schema_arrow, options, where=where)
        return Groups(rows=tuple(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)))


def read_parquet(
    file: BinaryIO, options: ReadOptions, *, name: str, start: int = 0, length: int | None = None, first: int = 0
) -> Iterator[Row]:
    """Rows of ``length`` row groups from ``start``. Memory: pages of one column, not a row group.

    Raises:
        ConfigError: As for :func:`parquet_groups`.
    """
    with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as parquet:
        check_columns(parquet.schema_arrow, options, where=name)
        stop = parquet.num_row_groups if length is None else min(start + length, parquet.num_row_groups)
        ordinal = first
        for group in range(start, stop):
            total = seen = parquet.metadata.row_group(group).num_rows
            batches = parquet.iter_batches(
                batch_size=_batch_size(parquet.metadata.row_group(group)),
                row_groups=[group],
                columns=columns_of(options),
                use_threads=False,
            )
            for batch in batches:
                for result in documents_in(batch, options, name=name, first=ordinal):
                    ordinal, seen = ordinal + 1, seen - 1
                    yield group, seen == 0, result
            if seen:
                raise CorpusError(f"{name}: row group {group} has {total - seen} of the {total} rows its footer names")


def _batch_size(group: Any) -> int:
    # Rows of about 8 MiB, so that a file of long documents does not fill the memory.
    average = group.total_byte_size / max(1, group.num_rows)
    return int(max(1, min(_MAX_ROWS, _BATCH_BYTES / max(1.0, average))))


def is_arrow_file(head: bytes) -> bool:
    """Whether an Arrow object is of the file format, whose batches can be entered, rather than a stream."""
    return head.startswith(ARROW_MAGIC)


def arrow_groups(file: BinaryIO, options: ReadOptions, *, where: str) -> Groups:
    """Size of the first record batch of an Arrow file.

    Raises:
        ConfigError: As for :func:`parquet_groups`.
    """
    reader = _open_arrow_file(file, options, where=where)
    count = reader.num_record_batches
    return Groups(rows=(reader.get_batch(0).num_rows,) * count if count else ())


def read_arrow_file(
    file: BinaryIO, options: ReadOptions, *, name: str, start: int = 0, length: int | None = None, first: int = 0
) -> Iterator[Row]:
    """Rows of ``length`` record batches from ``start``. Memory: the needed columns of one batch.

    Raises:
        ConfigError: As for :func:`parquet_groups`.
    """
    reader = _open_arrow_file(file, options, where=name)
    stop = reader.num_record_batches if length is None else min(start + length, reader.num_record_batches)
    ordinal = first
    for number in range(start, stop):
        batch = reader.get_batch(number)
        for row, result in enumerate(documents_in(batch, options, name=name, first=ordinal), start=1):
            yield number, row == batch.num_rows, result
        ordinal += batch.num_rows


def read_arrow_stream(stream: Readable, options: ReadOptions, *, name: str) -> Iterator[Row]:
    """Rows of an Arrow IPC stream from its start. Memory: one record batch.

    Raises:
        ConfigError: As for :func:`parquet_groups`.
    """
    reader = pa.ipc.open_stream(stream)
    check_columns(reader.schema, options, where=name)
    ordinal = 0
    for number, batch in enumerate(reader):
        for row, result in enumerate(documents_in(batch, options, name=name, first=ordinal), start=1):
            yield number, row == batch.num_rows, result
        ordinal += batch.num_rows


def _open_arrow_file(file: BinaryIO, options: ReadOptions, *, where: str) -> Any:
    schema = pa.ipc.open_file(file).schema
    check_columns(schema, options, where=where)
    wanted = [schema.get_field_index(name) for name in columns_of(options)]
    file.seek(0)
    return pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False))


def columns_of(options: ReadOptions) -> list[str]:
    """Names of the columns that are read, each once."""
    names = [options.text_field, options.id_field]
    return list(dict.fromkeys(name for name in names if name is not None))


def check_columns(schema: Any, options: ReadOptions, *, where: str) -> None:
    """Refuse a table without the columns.

    Raises:
        ConfigError: A column is missing, or of a type that holds neither text (nor, for ids, whole numbers).
    """
    for field, name in (("spec.corpus.textField", options.text_field), ("spec.corpus.idField", options.id_field)):
        if name is None:
            continue
        if name not in schema.names:
            known = ", ".join(schema.names[:50]) or "none"
            raise ConfigError(f"{where} has no such column", field=field, value=name, fix=f"its columns are: {known}")
        kind = schema.field(name).type
        if not _is_text(kind) and not (name == options.id_field and pa.types.is_integer(kind)):
            raise ConfigError(
                f"{where} has {kind} in that column, not text", field=field, value=name, fix="name a column of strings"
            )


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")
    return any(getattr(pa.types, test)(kind) for test in tests) or pa.types.is_null(kind)


def documents_in(batch: Any, options: ReadOptions, *, name: str, first: int) -> Iterator[Document | Invalid]:
    """The rows of a record batch as documents."""
    columns = {column: values_of(batch.column(column)) for column in columns_of(options)}
    for row in range(batch.num_rows):
        ordinal = first + row
        try:
            record = {column: values[row] for column, values in columns.items()}
            yield document_of(record, options, f"{name}#{ordinal}")
        except Refused as refused:
            yield refused.at(f"{name} row {ordinal}")


def values_of(column: Any) -> list[Any]:
    """A column's values; text as bytes, because Arrow leaves UTF-8 unchecked and one bad row must not end all."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type) and not pa.types.is_null(column.type):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values
