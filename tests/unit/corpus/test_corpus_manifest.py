"""Manifests: canonical bytes, versions, lineage; documents: ids and splits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.api.v1alpha1.corpus import Split
from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow, read_chains, write_chains
from instructpt.corpus.document import content_hash, split_of, split_position
from instructpt.corpus.manifest import (
    Manifest,
    ShardEntry,
    Span,
    load_manifest,
    load_objects,
    parse_manifest,
    publish_manifest,
)
from instructpt.errors import ConfigError, CorpusError, NotFoundError
from instructpt.storage import MemoryStore

SPAN = Span(uri="a", etag="e", encoding="jsonl", start=0, length=3, first=0, records=1)
MANIFEST = Manifest(
    kind="corpus",
    code_version="1",
    settings={"b": 1, "a": [1.5, None, {"c": True}]},
    counts={"documents": 1},
    shards=(ShardEntry(id="000000", counts={"documents": 1}, bytes=3, span=SPAN), ShardEntry(id="000001", sha256="x")),
)


def test_a_manifest_comes_back_with_the_same_bytes():
    again = parse_manifest(MANIFEST.to_bytes(), where="here")
    assert again.to_bytes() == MANIFEST.to_bytes()
    assert again.digest == MANIFEST.digest
    assert again.shards[0].span == SPAN
    assert again.shards[1].span is None


def test_order_of_keys_changes_nothing():
    other = Manifest(kind="x", code_version="1", counts={"b": 1, "a": 2})
    assert other.to_bytes() == Manifest(kind="x", code_version="1", counts={"a": 2, "b": 1}).to_bytes()


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format_version": 1}', b'{"format_version": 1, "kind": "x", "y": 1}'])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(CorpusError, match="here is not a manifest"):
        parse_manifest(data, where="here")


def test_a_later_version_asks_for_an_upgrade():
    data = MANIFEST.to_bytes().replace(b'"format_version": 1', b'"format_version": 3')
    with pytest.raises(CorpusError, match="manifest format 3.*upgrade instructpt"):
        parse_manifest(data, where="here")


def test_publishing_and_loading():
    store = MemoryStore()
    with pytest.raises(NotFoundError, match="let the job that writes it finish"):
        load_manifest(store)
    digest = publish_manifest(store, MANIFEST, objects={"000001": "data/x"})
    assert load_manifest(store, digest=digest).to_bytes() == MANIFEST.to_bytes()
    assert load_objects(store) == {"000001": "data/x"}
    with pytest.raises(ConfigError, match="expected sha256:other"):
        load_manifest(store, digest="sha256:other")


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_equal_texts_fall_on_one_side(text, one, two):
    tune, train = min(one, two), abs(one - two)
    split = Split(tune=tune, train=train, held_out=1 - tune - train if tune + train < 1 else 0.0)
    assert 0 <= split_position(text) < 1
    assert split_of(text, split) == split_of(str(text), split)
    assert len(content_hash(text)) == 64


def test_shares_are_kept():
    split = Split(tune=0.2, train=0.7, held_out=0.1)
    parts = [split_of(f"text {n}", split) for n in range(5000)]
    for name, share in {"tune": 0.2, "train": 0.7, "heldOut": 0.1}.items():
        assert abs(parts.count(name) / 5000 - share) < 0.02
    assert {split_of(f"text {n}", Split()) for n in range(100)} == {"train"}
    assert {split_of(f"text {n}", Split(tune=0.0, train=0.0, held_out=1.0)) for n in range(100)} == {"heldOut"}


def test_chains_come_back_and_bytes_repeat(tmp_path):
    shot = ShotRow(
        document="a#0",
        text="t",
        pairs=(PairRow(question="q", answer="a", kind="k"),),
        verdict="augmented",
        reason="",
        attempts=1,
        prompt_tokens=2,
        completion_tokens=3,
    )
    rows = [ChainRow(id=f"0/{n}", text="x" * n, shots=(shot,) * (n % 3), templates=("t",), seed=n) for n in range(25)]
    for name in ("one", "two"):
        write_chains(tmp_path / name, iter(rows), row_group=10)
    assert list(read_chains(tmp_path / "one")) == rows
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
