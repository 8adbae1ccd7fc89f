"""Bad records and bad corpora: what is set aside, what is refused, and in which words."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import resource
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructpt.corpus.records import ReadOptions
from instructpt.corpus.shards import iter_corpus, iter_shard
from instructpt.errors import ConfigError, CorpusError, StorageError
from instructpt.storage import open_store

GOOD = b'{"text": "a good line"}'
BAD = {
    "broken-json": b'{"text": "cut of',
    "invalid-utf8": b'{"text": "caf\xe9"}',
    "missing-field": b'{"body": "x"}',
    "wrong-type": b'{"text": 3}',
    "empty": b'{"text": " \\n "}',
    "too-large": b'{"text": "' + b"x" * 2000 + b'"}',
}


@pytest.fixture
def one_file(tmp_path, corpus):
    def make(lines, **settings_):
        path = tmp_path / "in" / "a.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\n".join(lines) + b"\n")
        return corpus(path, max_document_bytes=1000, **settings_)

    return make


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_a_dead_letter(one_file, reason):
    job = one_file([GOOD] * 4 + [BAD[reason]] + [GOOD] * 5, max_invalid_share=0.1, per_shard=3)
    result = job.inspect()
    assert result.counts["documents"] == 9
    assert result.counts["invalid"] == result.counts[f"invalid-{reason}"] == 1
    (letter,) = job.dead_letters()
    assert letter["where"] == "a.jsonl:5"
    assert letter["reason"] == reason
    assert letter["detail"]
    assert len(job.documents()) == 9


@pytest.mark.parametrize("reason", [r for r in BAD if r != "missing-field"])
def test_too_many_bad_lines_refuse_the_corpus(tmp_path, one_file, reason):
    job = one_file([GOOD, BAD[reason], b"", GOOD, BAD[reason]])
    with pytest.raises(CorpusError, match="spec.corpus.maxInvalidShare=0.01: 2 of 4 records .50.00%. cannot") as caught:
        job.run()
    message = str(caught.value)
    assert f"a.jsonl:2 {reason}" in message
    assert f"a.jsonl:5 {reason}" in message
    assert "or raise spec.corpus.maxInvalidShare" in message
    assert ("raise spec.corpus.maxDocumentBytes" in message) == (reason == "too-large")
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(CorpusError):
        job.finalize()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len(job.dead_letters()) == 2


def test_raising_the_share_reuses_what_was_read(tmp_path, corpus):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + BAD["empty"] + b"\n")
    with pytest.raises(CorpusError):
        corpus(path).run()
    (result,) = (tmp_path / "out" / "objects").glob("*.json")
    before = result.stat().st_mtime_ns
    assert corpus(path, max_invalid_share=0.5).inspect().counts["documents"] == 1
    assert [p.stat().st_mtime_ns for p in (tmp_path / "out" / "objects").glob("*.json")] == [before]


def test_the_missing_text_field_names_those_that_exist(tmp_path, one_file):
    job = one_file([b'{"body": "x", "title": "y"}'] * 3 + [b'{"abstract": "z"}'])
    with pytest.raises(ConfigError) as caught:
        job.run()
    assert caught.value.field == "spec.corpus.textField"
    assert caught.value.value == "text"
    assert "abstract, body, title" in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_large_file_without_the_field_is_left_early(tmp_path, one_file):
    job = one_file([b'{"body": "x"}'] * 12_000)
    with pytest.raises(ConfigError, match="10,000 of 10,000 records have no such field; .*body"):
        job.run()
    assert not list((tmp_path / "out").glob("objects/*"))


def test_a_line_beyond_all_limits_is_not_held(tmp_path, corpus):
    path = tmp_path / "a.jsonl"
    limit = ReadOptions(max_document_bytes=1000).max_record_bytes
    path.write_bytes(GOOD + b"\n" + b"x" * (3 * limit) + b"\n" + GOOD + b"\n" + b"y" * (2 * limit))
    job = corpus(path, max_document_bytes=1000, max_invalid_share=0.5)
    assert job.inspect().counts["invalid-too-large"] == 2
    assert len(job.documents()) == 2
    assert [letter["where"] for letter in job.dead_letters()] == ["a.jsonl:2", "a.jsonl:4"]


def test_invalid_utf8_in_a_column_is_one_dead_letter(tmp_path, corpus):
    path = tmp_path / "a.parquet"
    values = pa.array([b"good", b"caf\xe9", b"fine", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": values}), path)
    job = corpus(path, max_invalid_share=0.5)
    assert job.inspect().counts["documents"] == 2
    assert [(x["where"], x["reason"]) for x in job.dead_letters()] == [
        ("a.parquet row 1", "invalid-utf8"),
        ("a.parquet row 3", "missing-field"),
    ]


def test_dictionary_and_large_string_columns(tmp_path, corpus):
    for name, kind in {"a": pa.large_string(), "b": pa.dictionary(pa.int32(), pa.string()), "c": pa.binary()}.items():
        column = pa.array(["one", "two"]).cast(pa.binary() if name == "c" else pa.string()).cast(kind)
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
    job = corpus(f"{tmp_path}/*.parquet")
    job.inspect()
    assert job.texts() == ["one", "two"] * 3


@pytest.mark.parametrize("content", [b"", b"\n\n \n"])
def test_an_empty_corpus(tmp_path, corpus, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    job = corpus(tmp_path / "a.jsonl")
    with pytest.raises(CorpusError, match="spec.corpus.uri=.*holds no records"):
        job.run()
    with pytest.raises(CorpusError):
        job.finalize()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_document_at_all(one_file):
    with pytest.raises(CorpusError, match="none of the 2 records is a document"):
        one_file([BAD["empty"]] * 2, max_invalid_share=1.0).run()


def test_an_object_without_documents_keeps_the_counts_adding_up(tmp_path, corpus):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(BAD["empty"] + b"\n")
    (tmp_path / "in" / "b.jsonl").write_bytes(GOOD + b"\n" + BAD["empty"] + b"\n")
    job = corpus(tmp_path / "in", max_invalid_share=1.0, per_shard=1)
    counts = job.inspect().counts
    manifest = job.manifest
    assert (counts["records"], counts["documents"], counts["invalid"]) == (3, 1, 2)
    for name in manifest.counts:
        assert manifest.counts[name] == sum(shard.counts.get(name, 0) for shard in manifest.shards)
    assert [s.counts["documents"] for s in manifest.shards] == [0, 1]
    assert job.texts() == ["a good line"]


def test_ids_from_a_field(tmp_path, corpus):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "n": 7}\n{"text": "two", "n": "x"}\n')
    job = corpus(path, id_field="n")
    job.inspect()
    assert [d.id for d in job.documents()] == ["7", "x"]


def test_ids_survive_the_copy_of_a_compressed_object(tmp_path, corpus, write_corpus):
    path = write_corpus(tmp_path / "in" / "a.jsonl.gz", ["one", "two"])
    job = corpus(path, id_field="text")
    job.inspect()
    assert [(d.id, d.text) for d in job.documents()] == [("one", "one"), ("two", "two")]


def test_double_ids_are_refused_with_their_places(tmp_path, corpus):
    for name, ids in {"a": [1, 2, 3], "b": [4, 2, 5, 1]}.items():
        lines = [json.dumps({"text": f"text {name} {i}", "n": i}) for i in ids]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    job = corpus(f"{tmp_path}/*.jsonl", id_field="n")
    job.run()
    with pytest.raises(ConfigError, match="spec.corpus.idField='n': 2 documents have the id of another") as caught:
        job.finalize()
    assert "a.jsonl record 1 and b.jsonl record 1" in str(caught.value)
    assert "a.jsonl record 0 and b.jsonl record 3" in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_id_field(one_file):
    with pytest.raises(ConfigError, match="spec.corpus.idField='key'.*text"):
        one_file([GOOD] * 3, id_field="key").run()


def test_dead_letters_never_hold_text(one_file):
    secret = b"Xyzzy-secret"
    lines = [
        b'{"text": "%s' % secret,
        b'{"text": "%s\xff"}' % secret,
        b'{"text": ["%s"]}' % secret,
        b'{"body": "%s"}' % secret,
        b'["%s"]' % secret,
        b'{"text": "%s"}' % (secret * 200),
    ]
    job = one_file([*lines, GOOD], max_invalid_share=0.9)
    job.inspect()
    letters = job.dead_letters()
    assert len(letters) == 6
    assert all("zzy" not in json.dumps(letter) and len(letter["detail"]) <= 200 for letter in letters)


def test_a_full_disk_leaves_nothing(tmp_path, corpus, write_corpus):
    texts = [hashlib.sha256(str(n).encode()).hexdigest() * 4 for n in range(6000)]
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl.gz", texts))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(StorageError, match="cannot write .*File too large; free space"):
            job.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert list(job.context().scratch.iterdir()) == []
    assert job.inspect().counts["documents"] == 6000


def test_a_name_that_is_not_utf8(tmp_path, corpus):
    (tmp_path / "in").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "in") + b"/caf\xe9.jsonl")).write_bytes(GOOD)
    with pytest.raises(ConfigError, match="is not UTF-8; rename the file"):
        corpus(tmp_path / "in").run()


def test_another_spec_is_inspected_again_and_the_same_one_is_not(one_file):
    job = one_file([GOOD] * 7)
    first = job.inspect()
    assert job.inspect() == first
    job.per_shard = 3
    second = job.inspect()
    assert second.counts["documents"] == first.counts["documents"] == 7
    assert second.digest != first.digest
    assert job.inspect() == second


LINE = st.one_of(
    st.text(min_size=1, max_size=30).map(lambda t: json.dumps({"text": t}).encode()),
    st.text(min_size=1, max_size=30).map(
        lambda t: json.dumps({"text": t}, ensure_ascii=False).encode(errors="replace")
    ),
    st.sampled_from([GOOD, b"", b"  ", *BAD.values()]),
    st.binary(max_size=20).map(lambda b: b.replace(b"\n", b" ")),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=40), per_shard=st.integers(1, 12), compressed=st.booleans())
def test_documents_and_dead_letters_are_all_records(corpus, lines, per_shard, compressed):
    records = sum(1 for line in lines if line.strip())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.jsonl.gz" if compressed else "a.jsonl")
        data = b"\n".join(lines)
        path.write_bytes(gzip.compress(data) if compressed else data)
        job = corpus(path, Path(folder) / "out", max_document_bytes=1000, max_invalid_share=1.0, per_shard=per_shard)
        try:
            result = job.inspect()
        except CorpusError:
            assert not (Path(folder) / "out" / "manifest.json").exists()
            assert records == 0 or len(job.dead_letters()) == records
            return
        counts, manifest, documents = result.counts, job.manifest, job.documents()
        assert counts["records"] == records == len(documents) + len(job.dead_letters())
        assert counts["invalid"] == len(job.dead_letters())
        assert counts["invalid"] == sum(n for name, n in counts.items() if name.startswith("invalid-"))
        spans = [shard.span for shard in manifest.shards]
        assert spans[0].start == 0
        for before, after in itertools.pairwise(spans):
            assert before.start + before.length == after.start
            assert before.first + before.records == after.first
        assert sum(span.records for span in spans) == (len(documents) if compressed else records)
        assert len({document.id for document in documents}) == len(documents)
        for shard in manifest.shards[:-1]:
            assert shard.counts["documents"] == per_shard
        parts = [d for name in ("tune", "train", "heldOut") for d in iter_corpus(job.input, name)]
        assert sorted(d.id for d in parts) == sorted(d.id for d in documents)
        by_shard = [d for shard in manifest.shards for d in iter_shard(open_store(job.output), manifest, shard)]
        assert by_shard == documents
