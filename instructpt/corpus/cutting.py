"""Cutting a run of records into micro-shards and counting them. Pure but for the raw copy it may write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from instructpt.api.v1alpha1.corpus import Split
from instructpt.corpus.document import Document, split_of
from instructpt.corpus.manifest import ShardEntry, Span
from instructpt.corpus.rawframes import RawWriter
from instructpt.corpus.readers import Item
from instructpt.corpus.screening import ScreenWriter
from instructpt.corpus.tokens import TokenCounter, estimate_tokens

_TOKEN_BATCH_BYTES = 4 << 20

COUNTED = ("records", "documents", "invalid", "bytes", "words", "tokens", "tune", "train", "heldOut")
"""Counts that every micro-shard has; ``invalid-<reason>`` follow where there are any."""


@dataclass(slots=True)
class _Open:
    """The micro-shard being filled."""

    start: int = 0
    first: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class Cutter:
    """Takes the records of one object in order and yields its micro-shards.

    A micro-shard ends at the first place that allows it once it has ``target`` documents. What remains without a
    document joins the micro-shard before it, so that only an object without any document has an empty one.

    Args:
        target: Documents in a micro-shard.
        split: Shares of the parts.
        uri: Of the object, in the spans; a raw copy gets its name when it is finished.
        etag: The same.
        encoding: Of the spans.
        counter: Counts tokens; None estimates them.
        raw: Where documents are copied to; spans are then offsets of its frames.
        screen: Is shown every document. What it leaves out is still counted here: filters count when all is known.
    """

    def __init__(
        self,
        *,
        target: int,
        split: Split,
        uri: str = "",
        etag: str = "",
        encoding: str = "jsonl.zst",
        counter: TokenCounter | None = None,
        raw: RawWriter | None = None,
        screen: ScreenWriter | None = None,
    ) -> None:
        self._target = target
        self._split = split
        self._blank = Span(uri=uri, etag=etag, encoding=encoding, start=0, length=0, first=0, records=0)
        self._counter = counter
        self._raw = raw
        self._screen = screen
        self._open = _Open()
        self._end = 0
        self._texts: list[str] = []
        self._text_bytes = 0
        self.entries: list[ShardEntry] = []

    def add(self, item: Item) -> None:
        """The next record."""
        counts = self._open.counts
        counts["records"] += 1
        if isinstance(item.result, Document):
            self._count(item.result)
            if self._raw is not None:
                self._raw.add(item.result)
        else:
            counts["invalid"] += 1
            counts[f"invalid-{item.result.reason}"] += 1
        self._end = item.end
        if (item.cut or self._raw is not None) and counts["documents"] >= self._target:
            self._cut()

    def finish(self) -> list[ShardEntry]:
        """The last micro-shard; then all of them, still without ids."""
        counts = self._open.counts
        if counts["records"] and not counts["documents"] and self.entries:
            self.entries[-1] = self._joined(self.entries[-1])
        elif counts["records"]:
            self._cut()
        return self.entries

    def _count(self, document: Document) -> None:
        text, counts = document.text, self._open.counts
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
        counts["documents"] += 1
        counts["bytes"] += size
        words = len(text.split())
        counts["words"] += words
        part = "train" if self._split.train == 1.0 else split_of(text, self._split)
        counts[part] += 1
        if self._screen is not None:
            self._screen.add(text, size=size, words=words, split=part)
        if self._counter is not None:
            self._texts.append(text)
            self._text_bytes += size
            if self._text_bytes >= _TOKEN_BATCH_BYTES:
                self._count_tokens()

    def _count_tokens(self) -> None:
        if self._counter is None:
            self._open.counts["tokens"] = estimate_tokens(self._open.counts["bytes"])
        elif self._texts:
            tokens = self._counter(self._texts)
            self._open.counts["tokens"] += sum(tokens)
            if self._screen is not None:
                self._screen.tokens(tokens)
            self._texts, self._text_bytes = [], 0

    def _cut(self) -> None:
        self._count_tokens()
        opened, counts = self._open, self._open.counts
        if self._raw is None:
            span = replace(
                self._blank,
                start=opened.start,
                length=self._end - opened.start,
                first=opened.first,
                records=counts["records"],
            )
            sha256 = None
        else:
            frame = self._raw.cut()
            # A raw copy holds the documents only: its records are counted from there.
            span = replace(
                self._blank, start=frame.start, length=frame.length, first=opened.first, records=counts["documents"]
            )
            sha256 = frame.sha256
        self.entries.append(ShardEntry(id="", counts=_ordered(counts), bytes=counts["bytes"], sha256=sha256, span=span))
        self._open = _Open(start=self._end, first=span.first + span.records)

    def _joined(self, last: ShardEntry) -> ShardEntry:
        counts = Counter(last.counts) + self._open.counts
        if self._raw is not None or last.span is None:
            return replace(last, counts=_ordered(counts))
        span = replace(last.span, length=self._end - last.span.start, records=counts["records"])
        return replace(last, counts=_ordered(counts), span=span)


def total(entries: list[ShardEntry]) -> dict[str, int]:
    """Sums of the counts of all entries."""
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.counts)
    return _ordered(counts)


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    reasons = {name: n for name, n in sorted(counts.items()) if name not in COUNTED and n}
    return {name: counts.get(name, 0) for name in COUNTED} | reasons
