"""A corpus with filters: every document gets one verdict, kept or the reason why not, before the manifest is written.

Verdicts are one object of a byte a document, in the order of the micro-shards, named by its content; the manifest
names it, so what is left out is part of the corpus's digest. Readers pass over what it leaves out.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.corpus.cutting import COUNTED
from instructpt.corpus.duplicates import PASS_BYTES, Groups, equal_pairs
from instructpt.corpus.manifest import Manifest, ShardEntry
from instructpt.corpus.screening import DUPLICATE, KEPT, NEAR_DUPLICATE, REASONS, SPLITS, row_type
from instructpt.corpus.tokens import estimate_tokens
from instructpt.errors import CorpusError
from instructpt.storage.base import Store

PREFIX = "verdicts/"
FILTERED = "filtered"
_AMOUNTS = ("split", "bytes", "words", "tokens")
_CHUNK_ROWS = 65_536

Opener = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What filters made of a corpus.

    Attributes:
        entries: Its micro-shards, with the counts of what was kept, and of what was not by reason.
        verdicts: A byte a document.
    """

    entries: tuple[ShardEntry, ...]
    verdicts: bytes

    @property
    def key(self) -> str:
        """Name of the object with the verdicts."""
        return f"{PREFIX}{hashlib.sha256(self.verdicts).hexdigest()[:32]}.bin"

    def extra(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "verdicts": self.key,
            "sha256": hashlib.sha256(self.verdicts).hexdigest(),
            "reasons": dict(enumerate(REASONS)),
        }


def filter_corpus(
    entries: Sequence[ShardEntry],
    rows: Sequence[Opener],
    filters: CorpusFilters,
    *,
    estimated: bool,
    scratch: Path,
    pass_bytes: int = PASS_BYTES,
) -> Filtered:
    """Give every document its verdict. Memory: about 8 bytes a document and ``pass_bytes``; disk: its row.

    Args:
        entries: Micro-shards in order, as they were cut.
        rows: Opens the rows of :class:`~instructpt.corpus.screening.ScreenWriter`, unit by unit in the same order.
        filters: Of the spec.
        estimated: Tokens are estimated from bytes.
        scratch: Folder for files while this works.
        pass_bytes: Memory for a comparison.

    Raises:
        CorpusError: Rows and micro-shards do not fit together, or no document is kept.
    """
    count = sum(entry.counts["documents"] for entry in entries)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="filters-") as folder:
        columns = _Columns(Path(folder), filters)
        verdicts = columns.fill(rows)
        if len(verdicts) != count:
            raise CorpusError(
                f"{len(verdicts):,} documents were screened, the micro-shards hold {count:,}",
                fix="inspect the corpus again, into an empty storage",
            )
        if filters.deduplicate != "none":
            _mark_duplicates(verdicts, columns.hashes, pass_bytes)
        counted = tuple(_counted(entries, verdicts, columns.amounts, estimated=estimated))
    if not np.any(verdicts == KEPT):
        found = np.bincount(verdicts, minlength=len(REASONS))
        reasons = ", ".join(f"{REASONS[i]} {number:,}" for i, number in enumerate(found) if number)
        raise CorpusError(
            f"the filters leave out all of {count:,} documents: {reasons}",
            field="spec.corpus.filters",
            value=filters.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            fix="widen the bounds, or turn the filter off that leaves out most",
        )
    return Filtered(entries=counted, verdicts=verdicts.tobytes())


class _Columns:
    """Rows turned into a file a column, so that a comparison reads only the hash it needs."""

    def __init__(self, folder: Path, filters: CorpusFilters) -> None:
        self._type = row_type(filters)
        self.amounts = folder / "amounts"
        self.hashes = tuple(folder / f"hash-{i}" for i in range(self._type["hashes"].shape[0]))

    def fill(self, rows: Sequence[Opener]) -> Any:
        """Write the columns; returns the verdicts so far."""
        verdicts: list[Any] = [np.empty(0, np.uint8)]
        with contextlib.ExitStack() as stack:
            amounts = stack.enter_context(self.amounts.open("wb"))
            hashes = [stack.enter_context(path.open("wb")) for path in self.hashes]
            for opener in rows:
                for block in self._blocks(opener):
                    verdicts.append(block["reason"].copy())
                    amounts.write(_amounts_of(block).tobytes())
                    for index, file in enumerate(hashes):
                        file.write(block["hashes"][:, index].tobytes())
        return np.concatenate(verdicts)

    def _blocks(self, opener: Opener) -> Iterator[Any]:
        size, rest = self._type.itemsize, b""
        with opener() as stream:
            while data := stream.read(_CHUNK_ROWS * size):
                data = rest + data
                usable = len(data) - len(data) % size
                rest = data[usable:]
                yield np.frombuffer(data[:usable], dtype=self._type)


_AMOUNT = np.dtype([("split", "u1"), ("bytes", "<u4"), ("words", "<u4"), ("tokens", "<u4")])


def _amounts_of(block: Any) -> Any:
    found = np.empty(len(block), dtype=_AMOUNT)
    for name in _AMOUNTS:
        found[name] = block[name]
    return found


def _mark_duplicates(verdicts: Any, hashes: Sequence[Path], pass_bytes: int) -> None:
    for again, _ in equal_pairs(hashes[0], verdicts == KEPT, pass_bytes=pass_bytes):
        verdicts[again] = DUPLICATE
    if len(hashes) == 1:
        return
    groups, kept = Groups(len(verdicts)), verdicts == KEPT
    for column in hashes[1:]:
        for again, firsts in equal_pairs(column, kept, pass_bytes=pass_bytes):
            groups.join(again, firsts)
    verdicts[groups.followers()] = NEAR_DUPLICATE


def _counted(entries: Sequence[ShardEntry], verdicts: Any, amounts: Path, *, estimated: bool) -> Iterator[ShardEntry]:
    """Every micro-shard with the counts of what it keeps."""
    start = 0
    with amounts.open("rb") as file:
        for entry in entries:
            documents = entry.counts["documents"]
            mine = verdicts[start : start + documents]
            found = np.fromfile(file, dtype=_AMOUNT, count=documents)
            start += documents
            counts = _counts(entry.counts, mine, found[mine == KEPT], estimated=estimated)
            yield replace(entry, counts=counts, bytes=counts["bytes"])


def _counts(before: Mapping[str, int], verdicts: Any, kept: Any, *, estimated: bool) -> dict[str, int]:
    counts = Counter(dict(before))
    counts["documents"] = len(kept)
    for name in ("bytes", "words", "tokens"):
        counts[name] = int(kept[name].sum(dtype=np.int64))
    if estimated:
        counts["tokens"] = estimate_tokens(counts["bytes"])
    for index, split in enumerate(SPLITS):
        counts[split] = int(np.count_nonzero(kept["split"] == index))
    counts[FILTERED] = len(verdicts) - len(kept)
    found = np.bincount(verdicts, minlength=len(REASONS))
    reasons = {f"{FILTERED}-{REASONS[i]}": int(n) for i, n in enumerate(found) if i != KEPT and n}
    others = {name: n for name, n in before.items() if name not in COUNTED}
    return {name: counts[name] for name in COUNTED} | {FILTERED: counts[FILTERED]} | reasons | others


class Verdicts:
    """The verdicts of a finished corpus; none for a corpus without filters.

    Args:
        store: Root of the corpus.
        manifest: Its manifest.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._key: str | None = manifest.extra.get("filters", {}).get("verdicts")
        self._starts: dict[str, int] = {}
        if self._key is not None:
            start = 0
            for entry in manifest.shards:
                self._starts[entry.id] = start
                start += screened(entry)

    def of(self, entry: ShardEntry) -> bytes | None:
        """A byte a document of the micro-shard, 0 for those that are kept; None where all are.

        Raises:
            CorpusError: They are not those that the manifest counts.
        """
        if self._key is None or not entry.counts[FILTERED]:
            return None
        found = self._store.get(self._key, start=self._starts[entry.id], length=screened(entry))
        numbers = Counter(found)
        for index, reason in enumerate(REASONS):
            name = "documents" if index == KEPT else f"{FILTERED}-{reason}"
            if numbers[index] != entry.counts.get(name, 0):
                raise CorpusError(
                    f"{self._store.uri}/{self._key} is not what the manifest counts: micro-shard {entry.id} has "
                    f"{numbers[index]} documents {reason} instead of {entry.counts.get(name, 0)}",
                    fix="inspect the corpus again, into an empty storage",
                )
        return found


def screened(entry: ShardEntry) -> int:
    """Documents of a micro-shard, those that filters left out among them."""
    return entry.counts.get("documents", 0) + entry.counts.get(FILTERED, 0)
