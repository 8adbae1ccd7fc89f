"""Reading finished sets: changed and damaged objects are refused, everything else comes out as it went in."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest

from instructpt.api.base import Access
from instructpt.api.runspec import ResolvedInput
from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow, write_chains
from instructpt.corpus.files import iter_files
from instructpt.corpus.manifest import Manifest, ShardEntry, load_manifest, load_objects, publish_manifest
from instructpt.corpus.shards import CorpusReader, iter_augmented, iter_augmented_shard, iter_corpus, iter_shard
from instructpt.errors import ConfigError, CorpusError, NotFoundError
from instructpt.storage import open_store

TEXTS = [f"document {number} with some words" for number in range(30)]


@pytest.fixture
def plain(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", TEXTS))
    job.inspect()
    return job


def test_one_shard_and_one_part(plain):
    store, manifest = open_store(plain.output), plain.manifest
    shard = manifest.shards[1]
    documents = list(iter_shard(store, manifest, shard, Access()))
    assert [d.text for d in documents] == TEXTS[10:20]
    tune = list(iter_shard(store, manifest, shard, split="tune"))
    assert len(tune) == shard.counts["tune"]
    assert all(document in documents for document in tune)
    assert sum(1 for _ in iter_corpus(plain.input, "heldOut")) == manifest.counts["heldOut"]


def test_a_rewritten_file_is_refused(tmp_path, plain):
    path = tmp_path / "in" / "a.jsonl"
    path.write_bytes(path.read_bytes().replace(b"words", b"worms"))
    with pytest.raises(CorpusError, match="a.jsonl has changed since the corpus was inspected: other content; inspect"):
        plain.texts()


def test_a_touched_or_copied_file_is_the_same(tmp_path, plain):
    path = tmp_path / "in" / "a.jsonl"
    os.utime(path, ns=(1, 1))
    assert plain.texts() == TEXTS
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    assert plain.texts() == TEXTS


def test_a_file_that_is_gone(tmp_path, plain):
    (tmp_path / "in" / "a.jsonl").unlink()
    with pytest.raises(NotFoundError, match="a.jsonl, which the corpus .*out consists of, is gone"):
        plain.texts()


def test_a_damaged_copy_is_refused(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl.gz", TEXTS))
    job.inspect()
    (raw,) = (tmp_path / "out" / "raw").iterdir()
    data = bytearray(raw.read_bytes())
    second = job.manifest.shards[1].span
    data[second.start + second.length // 2] ^= 1
    raw.write_bytes(bytes(data))
    reader = CorpusReader(open_store(job.output), job.manifest)
    assert [d.text for d in reader.read(job.manifest.shards[0])] == TEXTS[:10]
    with pytest.raises(CorpusError, match="raw/.* has changed since the corpus was inspected: other bytes"):
        list(reader.read(job.manifest.shards[1]))
    raw.unlink()
    with pytest.raises(NotFoundError, match="raw/.*is gone"):
        list(reader.read(job.manifest.shards[1]))


def test_the_raw_copy_is_an_ordinary_zstd_file(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl.gz", TEXTS))
    job.inspect()
    again = corpus(tmp_path / "out" / "raw", tmp_path / "out2")
    again.inspect()
    assert again.texts() == TEXTS


def test_digest_and_missing_manifest(tmp_path, plain):
    digest = plain.manifest.digest
    assert len(list(iter_corpus(ResolvedInput(uri=plain.output, digest=digest)))) == 30
    with pytest.raises(ConfigError, match="has digest"):
        list(iter_corpus(ResolvedInput(uri=plain.output, digest="sha256:0")))
    with pytest.raises(NotFoundError, match="no manifest.json"):
        list(iter_corpus(ResolvedInput(uri=str(tmp_path / "none"))))


def chain(number):
    pair = PairRow(question="What?", answer=f"That {number}", kind="free")
    shot = ShotRow(
        document=f"a#{number}",
        text="text",
        pairs=(pair, pair),
        verdict="augmented",
        reason="",
        attempts=1,
        prompt_tokens=3,
        completion_tokens=4,
    )
    return ChainRow(id=f"000000/{number}", text=f"text {number}", shots=(shot,), templates=("t1",), seed=number)


@pytest.fixture
def augmented(tmp_path):
    store = open_store(str(tmp_path / "aug"))
    shards, objects, rows = [], {}, []
    for index in range(2):
        made = [chain(10 * index + n) for n in range(5)]
        rows += made
        path = tmp_path / "shard.parquet"
        write_chains(path, made)
        data = path.read_bytes()
        objects[f"00000{index}"] = key = f"data/00000{index}/1-abc.parquet"
        store.put(key, data)
        digest = hashlib.sha256(data).hexdigest()
        shards.append(ShardEntry(id=f"00000{index}", counts={"chains": 5}, bytes=len(data), sha256=digest))
    publish_manifest(store, Manifest(kind="augmented", code_version="1", shards=tuple(shards)), objects=objects)
    return store, rows


def test_augmented_rows_come_back(tmp_path, augmented):
    store, rows = augmented
    assert list(iter_augmented(ResolvedInput(uri=store.uri), scratch=tmp_path / "s")) == rows
    assert list((tmp_path / "s").iterdir()) == []
    manifest, objects = load_manifest(store), load_objects(store)
    assert list(iter_augmented_shard(store, manifest, objects, manifest.shards[1])) == rows[5:]


def test_a_corrupt_augmented_shard_is_refused_before_its_first_row(augmented):
    store, rows = augmented
    key = load_objects(store)["000001"]
    store.put(key, store.get(key)[:-1] + b"?")
    found = []
    with pytest.raises(CorpusError, match=f"shard 000001 of .*{key}. is corrupt"):
        found.extend(iter_augmented(ResolvedInput(uri=store.uri)))
    assert found == rows[:5]
    store.delete(key)
    with pytest.raises(CorpusError, match="shard 000001 of .* is gone"):
        list(iter_augmented(ResolvedInput(uri=store.uri)))


def test_kinds_are_not_mixed_up(plain, augmented):
    store, _ = augmented
    with pytest.raises(CorpusError, match="kind augmented, not a corpus"):
        list(iter_corpus(ResolvedInput(uri=store.uri)))
    rows = iter_augmented_shard(open_store(plain.output), plain.manifest, {}, plain.manifest.shards[0])
    with pytest.raises(CorpusError, match="kind corpus, not an augmented"):
        list(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.parquet", "a.feather", "a.arrow"])
def test_plain_files(tmp_path, write_corpus, name):
    path = write_corpus(tmp_path / "in" / name, TEXTS)
    assert [r["text"] for r in iter_files(str(path), Access(), "auto", ["text"])] == TEXTS
    with pytest.raises((ConfigError, CorpusError), match="body.*text"):
        list(iter_files(str(path), Access(), "auto", ["body"]))


def test_plain_text_files_are_one_record_each(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    records = list(iter_files(str(tmp_path), Access(), "text", ["text"]))
    assert records == [{"text": "text of a.txt"}, {"text": "text of b.txt"}]


def test_instructions(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "1+1?", "a": "2", "id": 1}\n\n{"q": "2+2?", "a": ""}\n{"q": 3, "a": "x"}\n{bad\n')
    with pytest.raises(CorpusError, match="a.jsonl:3: field 'a' is empty"):
        list(iter_files(str(path), Access(), "instructions", ["q", "a"]))
    skipped = []
    records = list(
        iter_files(str(path), Access(), "instructions", ["q", "a"], on_skip=lambda where, why: skipped.append(where))
    )
    assert records == [{"q": "1+1?", "a": "2"}]
    assert skipped == ["a.jsonl:3", "a.jsonl:4", "a.jsonl:5"]


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(ConfigError, match="spec.mixture.uri=.*nothing is there"):
        list(iter_files(str(tmp_path / "none"), Access(), "jsonl", ["text"]))
