"""Micro-shards partition their object for any target, and their counts add up."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from instructpt.api.v1alpha1.corpus import Split
from instructpt.corpus.cutting import COUNTED, Cutter, total
from instructpt.corpus.document import Document
from instructpt.corpus.rawframes import RawWriter
from instructpt.corpus.readers import Item
from instructpt.corpus.records import Invalid

SPLIT = Split(tune=0.3, train=0.3, held_out=0.4)
RECORD = st.tuples(st.integers(1, 50), st.booleans(), st.one_of(st.text(min_size=1), st.none()))


def items(records):
    end = 0
    for number, (length, cut, text) in enumerate(records):
        end += length
        bad = Invalid(reason="empty", where=f"a:{number}", detail="")
        yield Item(end, cut, bad if text is None else Document(id=f"a#{number}", text=text))


def cut(records, target, **settings):
    cutter = Cutter(target=target, split=SPLIT, uri="a", etag="e", encoding="jsonl", **settings)
    for item in items(records):
        cutter.add(item)
    return cutter.finish()


@given(st.lists(RECORD, max_size=40), st.integers(1, 15))
def test_spans_partition_the_records(records, target):
    entries = cut(records, target)
    spans = [entry.span for entry in entries]
    assert sum(span.records for span in spans) == len(records)
    assert sum(span.length for span in spans) == sum(length for length, _, _ in records)
    for before, after in itertools.pairwise(spans):
        assert (before.start + before.length, before.first + before.records) == (after.start, after.first)
    counts = total(entries)
    texts = [text for _, _, text in records if text is not None]
    assert counts["documents"] == len(texts) == counts["tune"] + counts["train"] + counts["heldOut"]
    assert counts["invalid"] == counts.get("invalid-empty", 0) == len(records) - len(texts)
    assert counts["bytes"] == sum(len(text.encode()) for text in texts) == sum(entry.bytes for entry in entries)
    assert counts["words"] == sum(len(text.split()) for text in texts)


@given(st.lists(RECORD, min_size=1, max_size=40), st.integers(1, 15))
def test_shards_reach_the_target_and_end_where_they_may(records, target):
    entries = cut(records, target)
    ends = {sum(r[0] for r in records[: n + 1]) for n, r in enumerate(records) if r[1]}
    for entry in entries[:-1]:
        assert entry.counts["documents"] >= target
        assert entry.span.start + entry.span.length in ends
    if any(text is not None for _, _, text in records):
        assert all(entry.counts["documents"] for entry in entries)
    else:
        assert len(entries) == 1


def test_tokens_are_counted_or_estimated():
    records = [(1, True, "one two three"), (1, True, "four")]
    assert cut(records, 5)[0].counts["tokens"] == 5  # 17 bytes at four a token, rounded up
    counted = cut(records, 1, counter=lambda texts: [len(t.split()) for t in texts])
    assert [e.counts["tokens"] for e in counted] == [3, 1]


def test_frames_of_a_raw_copy_are_cut_anywhere(tmp_path):
    records = [(1, False, "one"), (1, False, None), (1, False, "two"), (1, True, None)]
    with RawWriter(tmp_path / "raw") as raw:
        entries = cut(records, 1, raw=raw)
        raw.close()
    assert [(e.span.first, e.span.records, e.counts["records"]) for e in entries] == [(0, 1, 1), (1, 1, 3)]
    assert sum(e.span.length for e in entries) == (tmp_path / "raw").stat().st_size
    assert set(COUNTED) <= set(entries[0].counts)
