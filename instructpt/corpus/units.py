"""Units of inspection: one object, or a bundle of small text files; what one leaves behind, and how it is made."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import orjson

from instructpt.api.runspec import canonical_json
from instructpt.api.v1alpha1.corpus import Split
from instructpt.corpus import builtin
from instructpt.corpus.columnar import Groups
from instructpt.corpus.cutting import Cutter, total
from instructpt.corpus.document import Document
from instructpt.corpus.identities import IdWriter
from instructpt.corpus.manifest import ShardEntry, Span
from instructpt.corpus.rawframes import RAW_PREFIX, RawWriter
from instructpt.corpus.readers import Item, groups_of, read_objects
from instructpt.corpus.records import Invalid, ReadOptions
from instructpt.corpus.screening import Screen, ScreenWriter
from instructpt.corpus.sources import SourceObject
from instructpt.corpus.tokens import TokenCounter
from instructpt.errors import CorpusError, StorageError
from instructpt.storage import Scheme, Store, map_ahead, parse_uri
from instructpt.storage.hashing import sha256_of_object

OBJECTS_PREFIX = "objects/"
DEAD_LETTERS_PREFIX = "dead-letters/"
_BUNDLE_BYTES = 256 << 20
_EXAMPLES = 3


class Stopped(Exception):  # noqa: N818  # not a fault: the worker was asked to leave
    """The worker's stop event was set; nothing of the unit was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A run of objects that are inspected together: one, or several files of one document each."""

    index: int
    objects: tuple[SourceObject, ...]

    def key(self, settings: dict[str, Any]) -> str:
        """Name of its result: a hash of everything that decides it."""
        what = {"index": self.index, "objects": [asdict(o) for o in self.objects], **settings}
        return hashlib.sha256(canonical_json(what).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(o.size for o in self.objects)


def bundle(objects: tuple[SourceObject, ...], *, whole_files: bool, target: int) -> list[Unit]:
    """Units in order. Neighbouring files of one document each share one, so that micro-shards fill up.

    Args:
        objects: In order.
        whole_files: Text files have no separator.
        target: Documents in a micro-shard; a bundle holds as many files, or 256 MiB.
    """
    groups: list[list[SourceObject]] = []
    open_size = -1
    for source in objects:
        alone = not (whole_files and source.format == "text" and not source.uri.startswith("builtin:"))
        if alone:
            groups.append([source])
            open_size = -1
        elif open_size < 0 or len(groups[-1]) >= target or open_size + source.size > _BUNDLE_BYTES:
            groups.append([source])
            open_size = source.size
        else:
            groups[-1].append(source)
            open_size += source.size
    return [Unit(index=index, objects=tuple(group)) for index, group in enumerate(groups)]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitResult:
    """What the inspection of one unit leaves in ``objects/<key>.json``.

    Attributes:
        entries: Its micro-shards, without ids.
        counts: Their sums.
        examples: The first three dead letters.
        missing: Records that lack a field, by field.
        known: Fields that records had which lacked one, sorted.
        etags: Store's etag of each object on a file system that spans name; there the span holds the content's hash.
        ids: Number of ids beside it in ``objects/<key>.ids``; None without ``idField``.
        names: Objects of the unit.
        dropped: Documents that filters left out already, by reason; rows are beside it in ``objects/<key>.rows``.
    """

    entries: tuple[ShardEntry, ...]
    counts: dict[str, int]
    examples: tuple[Invalid, ...]
    missing: dict[str, int]
    known: tuple[str, ...]
    etags: dict[str, str]
    ids: int | None
    names: tuple[str, ...]
    dropped: dict[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return orjson.dumps(self, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_bytes(cls, data: bytes) -> UnitResult:
        """Read what :meth:`to_bytes` wrote."""
        raw = orjson.loads(data)
        entries = tuple(ShardEntry(**{**e, "span": Span(**e["span"])}) for e in raw.pop("entries"))
        examples = tuple(Invalid(**{**i, "known": tuple(i["known"])}) for i in raw.pop("examples"))
        known, names = tuple(raw.pop("known")), tuple(raw.pop("names"))
        return cls(entries=entries, examples=examples, known=known, names=names, **raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What every unit of one corpus shares.

    Attributes:
        source: Store of the objects; None for a builtin corpus.
        output: Store of the corpus.
        scratch: Folder for files that are being written.
        options: How records are read.
        target: Documents in a micro-shard.
        split: Shares of the parts.
        counter: Counts tokens; None estimates.
        screen: Judges documents; None without filters.
        stop: Set when the worker is to leave.
        seen: Is told the number of stored bytes as they are read.
        watch: Is shown the running tally of the unit once in a thousand records; may raise to end a hopeless run.
    """

    source: Store | None
    output: Store
    scratch: Path
    options: ReadOptions
    target: int
    split: Split
    counter: TokenCounter | None
    screen: Screen | None
    stop: Event
    seen: Callable[[int], object] = lambda _: None
    watch: Callable[[Tally], object] = lambda _: None


@dataclass(slots=True)
class Tally:
    """Dead letters of a unit as they come: counts, examples, field names."""

    records: int = 0
    examples: list[Invalid] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    known: set[str] = field(default_factory=set)

    def note(self, invalid: Invalid) -> None:
        """One more dead letter."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(invalid)
        if invalid.reason == "missing-field" and invalid.field is not None:
            self.missing[invalid.field] += 1
            if len(self.known) < 100:
                self.known.update(invalid.known)


def inspect_unit(unit: Unit, key: str, work: Inspection) -> UnitResult:
    """Read a unit once and leave its raw copy, dead letters, ids and, last, its result.

    Raises:
        ConfigError: A column is missing.
        CorpusError: An object cannot be read, or changed while it was read.
        StorageError: The scratch folder is full or cannot be written.
        Stopped: ``work.stop`` was set.
    """
    direct = _direct_encoding(unit, work)
    paths = _Paths(work.scratch, key)
    try:
        with contextlib.ExitStack() as stack:
            raw = None if direct else stack.enter_context(RawWriter(paths.raw))
            ids = None if work.options.id_field is None else stack.enter_context(IdWriter(paths.ids))
            rows = None
            if work.screen is not None:
                counted = work.counter is not None
                rows = stack.enter_context(ScreenWriter(paths.rows, work.screen, counted=counted))
            etag, etags = _identity(unit.objects[0], work) if direct else ("", {})
            cutter = Cutter(
                target=work.target,
                split=work.split,
                uri=unit.objects[0].uri,
                etag=etag,
                encoding=direct or "jsonl.zst",
                counter=work.counter,
                raw=raw,
                screen=rows,
            )
            tally = _read_unit(unit, work, cutter, paths.letters, ids)
            entries = cutter.finish()
            _check_unchanged(unit, work)
            if raw is not None:
                entries = _store_raw(raw, paths.raw, entries, work.output)
            if tally.examples:
                work.output.put_file(f"{DEAD_LETTERS_PREFIX}{unit.index:06d}.jsonl", paths.letters)
            if ids is not None:
                ids.close()
                work.output.put_file(f"{OBJECTS_PREFIX}{key}.ids", paths.ids)
            if rows is not None:
                rows.close()
                work.output.put_file(f"{OBJECTS_PREFIX}{key}.rows", paths.rows)
        result = _result(unit, entries, tally, etags, ids, rows)
        work.output.put(f"{OBJECTS_PREFIX}{key}.json", result.to_bytes())
        return result
    except OSError as error:  # of the files in scratch; stores and readers have turned theirs into errors of ours
        raise StorageError(
            f"cannot write below {work.scratch}: {error.strerror or error}",
            fix="free space there, or name another working folder; then run the same again",
        ) from error
    finally:
        paths.remove()


class _Paths:
    """Files of a unit that are being written."""

    def __init__(self, scratch: Path, key: str) -> None:
        self.raw, self.letters, self.ids, self.rows = (
            scratch / f"{key}.{end}" for end in ("raw", "dead", "ids", "rows")
        )

    def remove(self) -> None:
        """Remove those that are there."""
        for path in (self.raw, self.letters, self.ids, self.rows):
            path.unlink(missing_ok=True)


def _result(
    unit: Unit,
    entries: list[ShardEntry],
    tally: Tally,
    etags: dict[str, str],
    ids: IdWriter | None,
    rows: ScreenWriter | None,
) -> UnitResult:
    return UnitResult(
        entries=tuple(entries),
        counts=total(entries),
        examples=tuple(tally.examples),
        missing=dict(sorted(tally.missing.items())),
        known=tuple(sorted(tally.known)),
        etags=etags,
        ids=None if ids is None else ids.count,
        names=tuple(o.name for o in unit.objects),
        dropped={} if rows is None else rows.dropped,
    )


def _read_unit(unit: Unit, work: Inspection, cutter: Cutter, letters: Path, ids: IdWriter | None) -> Tally:
    tally = Tally()
    with letters.open("wb") as dead:
        for item in records_of(unit, work):
            tally.records += 1
            cutter.add(item)
            if isinstance(item.result, Document):
                if ids is not None:
                    ids.add(item.result.id, tally.records - 1)
            else:
                tally.note(item.result)
                letter = {"where": item.result.where, "reason": item.result.reason, "detail": item.result.detail}
                dead.write(orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE))
            if tally.records % 1000 == 0:
                work.watch(tally)
                if work.stop.is_set():
                    raise Stopped
    return tally


def records_of(unit: Unit, work: Inspection) -> Iterator[Item]:
    """Every record of a unit, in order."""
    if work.source is None:
        for number, document in enumerate(builtin.documents(), start=1):
            yield Item(number, True, document)
        return
    yield from read_objects(work.source, unit.objects, work.options, seen=lambda data: work.seen(len(data)))


def _direct_encoding(unit: Unit, work: Inspection) -> str | None:
    """Encoding of spans that lie in the object itself; None where a raw copy is needed."""
    first = unit.objects[0]
    if work.source is None or len(unit.objects) > 1 or first.compression is not None:
        return None
    if first.format == "jsonl":
        return "jsonl"
    if first.format == "text":
        return None if work.options.separator is None else "text"
    groups: Groups | None = groups_of(work.source, first, work.options)
    # A row group beyond the target would become one oversized micro-shard, and cannot be entered in the middle.
    return first.format if groups is not None and groups.largest <= work.target else None


def _identity(source: SourceObject, work: Inspection) -> tuple[str, dict[str, str]]:
    """Etag of the spans. Of a file it is the content's hash: the store's tells of times and inodes."""
    assert work.source is not None
    if parse_uri(source.uri).scheme is not Scheme.FILE:
        return source.etag, {}
    return f"sha256:{sha256_of_object(work.source, source.key)}", {source.uri: source.etag}


def _check_unchanged(unit: Unit, work: Inspection) -> None:
    if work.source is None:
        return
    heads = map_ahead(work.source, work.source.head, [source.key for source in unit.objects])
    for source, head in zip(unit.objects, heads, strict=True):
        if head.etag != source.etag:
            raise CorpusError(
                f"{source.uri} changed while it was inspected", fix="let its writer finish, then run the same again"
            )


def _store_raw(raw: RawWriter, path: Path, entries: list[ShardEntry], output: Store) -> list[ShardEntry]:
    digest = raw.close()
    if not entries:
        return entries
    # Named by its content, so that a second inspection writes the same object.
    name = f"{RAW_PREFIX}{digest[:32]}.jsonl.zst"
    output.put_file(name, path)
    return [_named(entry, name, f"sha256:{digest}") for entry in entries]


def _named(entry: ShardEntry, uri: str, etag: str) -> ShardEntry:
    assert entry.span is not None
    return replace(entry, span=replace(entry.span, uri=uri, etag=etag))
