"""From the URI of a corpus to the sorted list of its objects, each with its format."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from instructpt.api.base import Access
from instructpt.api.v1alpha1.corpus import CorpusSource, Format
from instructpt.errors import ConfigError, NotFoundError
from instructpt.storage import Location, ObjectInfo, Scheme, Store, expand_uri, has_glob, open_store, parse_uri

if TYPE_CHECKING:
    from instructpt.corpus.streams import Compression  # loads pyarrow, which a listing does not need

ObjectFormat = Literal["jsonl", "parquet", "arrow", "text"]

BUILTIN = "builtin://"
BUILTIN_DOCS = "builtin://python-docs"

_FORMATS: dict[str, ObjectFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceObject:
    """One object of a corpus.

    Attributes:
        uri: Absolute.
        key: Below the store's root.
        name: Below the corpus's root; begins the ids of its documents.
        size: In bytes, as stored.
        etag: Of the store; cheap, but on a file system no function of the content.
        format: How its content is read.
        compression: Of the whole object.
    """

    uri: str
    key: str
    name: str
    size: int
    etag: str
    format: ObjectFormat
    compression: Compression | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The objects of a corpus.

    Attributes:
        store: Their store; None for a builtin source.
        root: What an object's URI holds before its name; ends with a slash. Empty for a builtin source.
        objects: In ascending order of their names.
        skipped: Objects that were passed over, because their name tells no format or another one.
    """

    store: Store | None
    root: str
    objects: tuple[SourceObject, ...]
    skipped: tuple[str, ...] = ()


def detect(name: str) -> tuple[ObjectFormat | None, Compression | None]:
    """Format and compression by the end of a name; ``a.jsonl.gz`` is gzip over jsonl."""
    stem, suffix = os.path.splitext(name.lower())
    compression = _COMPRESSIONS.get(suffix)
    if compression is not None:
        suffix = os.path.splitext(stem)[1]
    return _FORMATS.get(suffix), compression


def locate(uri: str) -> tuple[Location, str]:
    """The store's root that reaches ``uri``, and its key: the whole bucket, or ``/`` of the file system.

    One store then serves every object of a corpus, whatever folder it lies in.
    """
    location = parse_uri(uri)
    if location.scheme is Scheme.FILE:
        path = os.path.abspath(os.path.expanduser(location.path))
        return Location(scheme=Scheme.FILE, path="/"), path.lstrip("/")
    return Location(scheme=location.scheme, bucket=location.bucket), location.path


def resolve_source(source: CorpusSource, *, field: str = "spec.corpus") -> Source:
    """The objects that a corpus names, in ascending order of their names.

    In a folder, names that start with ``.`` or ``_`` are no data (``_SUCCESS``), and names of another format are
    passed over and listed. A file or glob that names an object is taken at its word where ``format`` is set.

    Args:
        source: URI, access and format.
        field: Path of the source in the spec, for messages.

    Raises:
        ConfigError: Nothing is there, no object has a known format, or Parquet inside gzip or zstd.
        NotFoundError: There is no such bucket.
    """
    if source.uri.startswith(BUILTIN):
        return _resolve_builtin(source.uri, field)
    return resolve_files(source.uri, source, source.format, field=field)


def _resolve_builtin(uri: str, field: str) -> Source:
    if uri != BUILTIN_DOCS:
        raise ConfigError("no such builtin corpus", field=f"{field}.uri", value=uri, fix=f"there is {BUILTIN_DOCS}")
    return Source(
        store=None,
        root="",
        objects=(SourceObject(uri=uri, key="", name="python-docs", size=0, etag="", format="text"),),
    )


def resolve_files(uri: str, access: Access, format_: Format, *, field: str) -> Source:
    """The objects at a URI; see :func:`resolve_source`."""
    absolute = _absolute(uri)
    infos, prefix, named = _list(absolute, access, field, uri)
    location, _ = locate(absolute)
    objects, skipped = [], []
    for info in infos:
        name = info.key.removeprefix(prefix)
        found, compression = detect(info.key)
        if not named and re.search(r"(^|/)[._]", name):
            continue
        format_of = _format_of(found, format_, named)
        if format_of is None:
            skipped.append(name)
            continue
        object_uri = "/" + info.key if location.scheme is Scheme.FILE else f"{location.uri}/{info.key}"
        _check(format_of, compression, object_uri, field)
        objects.append(
            SourceObject(
                uri=object_uri,
                key=info.key,
                name=name,
                size=info.size,
                etag=info.etag,
                format=format_of,
                compression=compression,
            )
        )
    if not objects:
        raise _unknown_format(skipped, field, uri, format_)
    root = "/" + prefix if location.scheme is Scheme.FILE else f"{location.uri}/{prefix}"
    return Source(
        store=open_store(location.uri, access=access),
        root=root,
        objects=tuple(sorted(objects, key=lambda o: o.name)),
        skipped=tuple(sorted(skipped)),
    )


def _absolute(uri: str) -> str:
    """A relative path from the working directory; everything else as it is. Keeps a slash at the end."""
    location = parse_uri(uri)
    if location.scheme is not Scheme.FILE:
        return uri
    slash = "/" if uri.endswith("/") else ""
    return os.path.abspath(os.path.expanduser(location.path)) + slash


def _list(uri: str, access: Access, field: str, written: str) -> tuple[Iterable[ObjectInfo], str, bool]:
    """Objects with keys from the store's root, the prefix to cut for their names, and whether they were named."""
    try:
        store, found = expand_uri(uri, access=access)
        infos = list(found)
    except NotFoundError as error:
        location, key = locate(uri)
        if location.scheme is Scheme.S3:  # a bucket that is missing is the storage's error, an empty place is ours
            next(open_store(location.uri, access=access).list(key), None)
        raise ConfigError(
            "nothing is there", field=f"{field}.uri", value=written, fix="give a file, a folder or a glob that matches"
        ) from error
    _, root = locate(store.uri)
    head = f"{root}/" if root else ""
    prefix = head
    key = parse_uri(uri).split()[1]
    named = has_glob(key) or (len(infos) == 1 and head + infos[0].key == locate(uri)[1])
    full = [ObjectInfo(key=head + info.key, size=info.size, etag=info.etag) for info in infos]
    return full, prefix, named


def _format_of(found: ObjectFormat | None, wanted: Format, named: bool) -> ObjectFormat | None:
    if wanted == "auto":
        return found
    return wanted if named or found in (None, wanted) else None


def _check(format_: ObjectFormat, compression: Compression | None, uri: str, field: str) -> None:
    try:
        uri.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the name {uri!r} is not UTF-8", field=f"{field}.uri", value=uri, fix="rename the file"
        ) from error
    if format_ == "parquet" and compression is not None:
        raise ConfigError(
            f"{uri} is Parquet inside {compression}, which cannot be entered",
            field=f"{field}.uri",
            value=uri,
            fix="decompress it; Parquet compresses its own pages",
        )


def _unknown_format(skipped: list[str], field: str, uri: str, format_: Format) -> ConfigError:
    names = ", ".join(sorted(skipped)[:3])
    if format_ != "auto":
        return ConfigError(
            f"no object of format {format_} is there ({len(skipped)} others, such as {names})"
            if skipped
            else "no object with data is there",
            field=f"{field}.uri",
            value=uri,
            fix=f"set {field}.format to theirs, or name the objects by a glob",
        )
    return ConfigError(
        f"the names of {len(skipped)} objects tell no format ({names})" if skipped else "no object with data is there",
        field=f"{field}.uri",
        value=uri,
        fix=f"set {field}.format to jsonl, parquet, arrow or text, or use names that end in one of "
        + " ".join(_FORMATS)
        + " (and .gz, .zst)",
    )
