from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError, CorpusError
from instructpt.training.tokenshards import Item, TokenShard, counts_of, pack_items, token_type, write_shard


@st.composite
def item_lists(draw, *, masked: bool):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    items = []
    for number, size in enumerate(draw(st.lists(st.integers(1, 40), max_size=30))):
        mask = rng.random(size) < 0.4 if masked and number % 3 else None
        items.append(Item(tokens=rng.integers(0, 60_000, size).astype(np.uint32), targets=mask, documents=number % 4))
    return items


@pytest.mark.parametrize("masked", [False, True])
@given(data=st.data(), length=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_every_token_and_target_comes_back(tmp_path_factory, masked, data, length):
    items = data.draw(item_lists(masked=masked))
    arrays, cut = pack_items(items, length, dtype="<u2", seed="s")
    path = tmp_path_factory.mktemp("shard") / "a.tokens"
    write_shard(path, arrays, sequence_length=length)
    shard = TokenShard(path)
    pieces = []
    for index in range(shard.num_rows):
        row = shard.row(index)
        assert 0 < len(row.tokens) <= length
        assert row.segments[0] == 0
        assert row.segments[-1] == len(row.tokens)
        assert int(row.targets.sum()) == shard.row_loss[index]
        assert not row.targets[row.segments[:-1]].any()
        pieces += [
            (row.tokens[a:b].tolist(), row.targets[a:b].tolist())
            for a, b in zip(row.segments, row.segments[1:], strict=False)
        ]
    wanted = []
    for item in items:
        mask = np.ones(len(item.tokens), dtype=bool) if item.targets is None else item.targets.copy()
        mask[::length] = False
        wanted += [
            (item.tokens[a : a + length].tolist(), mask[a : a + length].tolist())
            for a in range(0, len(item.tokens), length)
        ]
    assert sorted(pieces) == sorted(wanted)
    counts = counts_of(arrays, length)
    assert counts["tokens"] == sum(len(i.tokens) for i in items) == int(shard.row_sizes.sum())
    assert counts["documents"] == sum(i.documents for i in items) == int(shard.row_documents.sum())
    assert counts["padding"] == counts["rows"] * length - counts["tokens"]
    assert cut == dict.fromkeys(("cut_items", "cut_documents"), sum(len(i.tokens) > length for i in items))


def shard_bytes(path, items):
    arrays, _ = pack_items(items, 8, dtype="<u2", seed="x")
    write_shard(path, arrays, sequence_length=8)
    return path.read_bytes()


def test_equal_items_give_equal_bytes(tmp_path):
    items = [Item(tokens=np.arange(n, dtype=np.uint32), targets=None, documents=1) for n in (3, 9, 5, 5, 1)]
    assert shard_bytes(tmp_path / "a", items) == shard_bytes(tmp_path / "b", items)


def test_a_trimmed_row_keeps_its_beginning(tmp_path):
    shard_bytes(tmp_path / "a", [Item(tokens=np.arange(n, dtype=np.uint32), targets=None, documents=1) for n in (3, 4)])
    row = TokenShard(tmp_path / "a").row(0)
    assert row.segments.tolist() == [0, 3, 7]
    head = row.head(5)
    assert (head.tokens.tolist(), head.segments.tolist()) == ([0, 1, 2, 0, 1], [0, 3, 5])
    assert head.targets.tolist() == [False, True, True, False, True]
    assert row.head(3).segments.tolist() == [0, 3]
    assert row.head(7) is row


@pytest.mark.parametrize("keep", [4, 30, 200, -1])
def test_truncated_and_foreign_files_are_refused(tmp_path, keep):
    path = tmp_path / "a"
    data = shard_bytes(path, [Item(tokens=np.arange(90, dtype=np.uint32), targets=None, documents=1)])
    path.write_bytes(b"x" * 300 if keep < 0 else data[:keep])
    with pytest.raises(CorpusError, match="is no token shard"):
        TokenShard(path)


def test_token_type_holds_every_id():
    assert [token_type(v) for v in (300, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]


def test_a_type_too_small_for_the_ids_is_refused():
    item = Item(tokens=np.array([1, 70_000], dtype=np.uint32), targets=None, documents=1)
    with pytest.raises(ConfigError, match="id 70000 does not fit into uint16"):
        pack_items([item], 8, dtype="<u2", seed="s")
    assert pack_items([item], 8, dtype="<u4", seed="s")[0]["tokens"].tolist() == [1, 70_000]
    with pytest.raises(ConfigError, match="at most 32 bits"):
        token_type((1 << 32) + 1)


@given(
    items=st.lists(st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.booleans()), max_size=12),
    length=st.integers(1, 20),
)
@settings(max_examples=100, deadline=None)
def test_documents_are_counted_where_they_begin(items, length):
    made = []
    for documents, known in items:
        ends = np.cumsum(documents).tolist()
        tokens = np.arange(ends[-1], dtype=np.uint16)
        inner = tuple(ends[:-1]) if known else ()
        made.append(Item(tokens=tokens, targets=None, documents=len(documents), inner=inner))
    arrays, cut = pack_items(made, length, dtype="<u2", seed="s")
    assert int(arrays["segment_documents"].sum()) == sum(len(documents) for documents, _ in items)
    assert int(arrays["segment_documents"].astype(np.int64).max(initial=0)) <= 6
    longer = [n for documents, known in items for n in (documents if known else [sum(documents)]) if n > length]
    assert cut["cut_documents"] == len(longer)
    assert counts_of(arrays, length)["tokens"] == sum(sum(documents) for documents, _ in items)
