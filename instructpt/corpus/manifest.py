"""Manifests: a produced set exists when its ``manifest.json`` exists (design 3).

A manifest holds only functions of (inputs, spec, code version): no time, host, attempt or epoch. Where the shards of a
ledger lie is in ``objects.json`` beside it, how a corpus's source is reached in ``source.json``, when and where it ran
in ``run.json``; none of them is part of any digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from instructpt.errors import ConfigError, CorpusError, NotFoundError
from instructpt.storage.base import Store

FORMAT_VERSION = 2
"""The latest. Only what needs it is written in it: 2 is a corpus whose filters leave documents out."""
MANIFEST = "manifest.json"
OBJECTS = "objects.json"
RUN = "run.json"
SOURCE = "source.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a micro-shard of a raw corpus lies: whole records inside ONE object (protocols.md 2).

    Attributes:
        uri: Object's URI; relative (no scheme, no leading slash) means below the manifest's own prefix.
        etag: Of the object when it was inspected; a changed one is refused.
        encoding: ``jsonl``, ``jsonl.zst`` (frames), ``parquet``, ``arrow`` or ``text``.
        start: First byte (jsonl, text) or first row group / record batch (parquet, arrow).
        length: Bytes, or number of row groups / record batches.
        first: Ordinal of the first record in its object.
        records: Records in the span, unreadable ones included.
    """

    uri: str
    etag: str
    encoding: str
    start: int
    length: int
    first: int
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: a span of a raw corpus, or a produced object named by its sha256."""

    id: str
    counts: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    sha256: str | None = None
    span: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a set that has names of its own, such as a model's."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a produced set consists of and what it was made from.

    Attributes:
        kind: ``corpus``, ``augmented``, ``tokenizer``, ``tokens``, ``model``, ``scores`` or ``report``.
        code_version: Version of the code that made it.
        inputs: Name of each input to the digest of its manifest: the lineage.
        settings: The settings that decided the content, as JSON.
        counts: Totals; they equal the sums over the shards where both exist.
    """

    kind: str
    code_version: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    shards: tuple[ShardEntry, ...] = ()
    files: tuple[FileEntry, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = 1

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal manifests give equal bytes."""
        return orjson.dumps(_plain(self), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits of :meth:`to_bytes`."""
        return digest_of(self.to_bytes())


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read a manifest of this format version or an earlier one.

    Raises:
        CorpusError: It is no manifest, or of a later version.
    """
    try:
        raw = orjson.loads(data)
        version = int(raw["format_version"])
        if version > FORMAT_VERSION:
            raise CorpusError(
                f"{where} has manifest format {version}, this version reads up to {FORMAT_VERSION}",
                fix="upgrade instructpt",
            )
        shards = tuple(
            ShardEntry(**{**s, "span": Span(**s["span"]) if s.get("span") else None}) for s in raw.pop("shards", ())
        )
        files = tuple(FileEntry(**f) for f in raw.pop("files", ()))
        return Manifest(**raw, shards=shards, files=files)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{where} is not a manifest of instructpt: {error}") from error


def load_manifest(store: Store, *, digest: str | None = None) -> Manifest:
    """The manifest at a store's root.

    Raises:
        ConfigError: Its digest is not the one that was asked for.
        NotFoundError: There is none; the set is not finished.
    """
    try:
        data = store.get(MANIFEST)
    except NotFoundError as error:
        raise NotFoundError(
            f"no {MANIFEST} below {store.uri}", fix="let the job that writes it finish, or correct the URI"
        ) from error
    if digest is not None and digest_of(data) != digest:
        raise ConfigError(
            f"the manifest below {store.uri} has digest {digest_of(data)}, expected {digest}",
            fix="the input was made again; run the jobs after it again or drop the digest",
        )
    return parse_manifest(data, where=f"{store.uri}/{MANIFEST}")


def publish_manifest(store: Store, manifest: Manifest, *, objects: Mapping[str, str] | None = None) -> str:
    """Write ``objects.json``, then the manifest, last. Returns its digest; writing it twice is harmless."""
    if objects is not None:
        store.put(OBJECTS, orjson.dumps(dict(objects), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))
    store.put(MANIFEST, manifest.to_bytes())
    return manifest.digest


def load_objects(store: Store) -> dict[str, str]:
    """Where each produced shard lies: shard id -> key."""
    objects: dict[str, str] = orjson.loads(store.get(OBJECTS))
    return objects


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {k: v for k, v in fields.items() if v is not None}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
