"""Every format and compression: the same documents come out, whatever the micro-shards."""

from __future__ import annotations

import pytest

from instructpt.errors import ConfigError, CorpusError

TEXTS = [f"document {number} über alles, with some words to count " * (1 + number % 3) for number in range(57)]
NAMES = [
    "a.jsonl",
    "a.ndjson",
    "a.json",
    "a.jsonl.gz",
    "a.jsonl.zst",
    "a.jsonl.zstd",
    "a.parquet",
    "a.feather",
    "a.arrow",
    "a.arrow.zst",
    "a.txt",
]


def separator(name: str) -> dict[str, str]:
    return {"separator": "\n\n"} if name.endswith(".txt") else {}


@pytest.mark.parametrize("per_shard", [1, 10, 57, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_all_formats_give_the_same_documents(tmp_path, corpus, write_corpus, name, per_shard):
    if name.endswith(".zstd"):
        path = write_corpus(tmp_path / "in" / "a.jsonl.zst", TEXTS).rename(tmp_path / "in" / name)
    else:
        path = write_corpus(tmp_path / "in" / name, TEXTS, rows=7)
    job = corpus(path, per_shard=per_shard, **separator(name))
    result = job.inspect()
    expected = [text.strip("\r\n") for text in TEXTS]
    assert job.texts() == expected
    assert [d.id for d in job.documents()] == [f"{name}#{n}" for n in range(57)]
    assert result.counts["documents"] == result.counts["records"] == 57
    assert result.counts["bytes"] == sum(len(t.encode()) for t in expected)
    assert result.counts["words"] == sum(len(t.split()) for t in expected)
    assert result.counts["tune"] + result.counts["train"] + result.counts["heldOut"] == 57
    assert result.counts["tokens"] > 0
    assert job.manifest.extra["tokens_estimated"] is True
    shards = job.manifest.shards
    grain = 7 if name.endswith((".parquet", ".feather")) and per_shard >= 7 else 1
    assert all(per_shard <= shard.counts["documents"] < per_shard + grain for shard in shards[:-1])
    assert [shard.id for shard in shards] == [f"{n:06d}" for n in range(len(shards))]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl.zst"),
        ("a.parquet", "parquet"),
        ("a.feather", "arrow"),
        ("a.arrow", "jsonl.zst"),
        ("a.txt", "text"),
    ],
)
def test_only_what_cannot_be_entered_is_copied(tmp_path, corpus, write_corpus, name, encoding):
    path = write_corpus(tmp_path / "in" / name, TEXTS, rows=7)
    job = corpus(path, per_shard=10, **separator(name))
    job.inspect()
    for shard in job.manifest.shards:
        assert shard.span.encoding == encoding
        copied = encoding == "jsonl.zst"
        assert (shard.sha256 is not None) == copied
        assert shard.span.uri.startswith("raw/") if copied else shard.span.uri == str(path)
        assert shard.span.etag.startswith("sha256:")
    assert (tmp_path / "out" / "raw").exists() == (encoding == "jsonl.zst")


def test_row_groups_beyond_the_target_are_copied(tmp_path, corpus, write_corpus):
    path = write_corpus(tmp_path / "in" / "a.parquet", TEXTS, rows=1000)
    job = corpus(path, per_shard=10)
    job.inspect()
    assert [s.counts["documents"] for s in job.manifest.shards] == [10, 10, 10, 10, 10, 7]
    assert {s.span.encoding for s in job.manifest.shards} == {"jsonl.zst"}
    assert job.texts() == TEXTS


def test_files_of_one_document_share_micro_shards(tmp_path, corpus):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number:02d}.txt").write_text(f"text number {number}\n\nsecond paragraph\n")
    (folder / "99.md").write_text("")
    job = corpus(folder, per_shard=10)
    result = job.inspect()
    assert result.counts["documents"] == 25
    assert [s.counts["documents"] for s in job.manifest.shards] == [10, 10, 5]
    assert job.documents()[3].id == "03.txt#0"
    assert job.texts()[3] == "text number 3\n\nsecond paragraph\n"


def test_a_folder_mixes_formats_and_lists_what_it_skips(tmp_path, corpus, write_corpus):
    folder = tmp_path / "in"
    write_corpus(folder / "a.jsonl", TEXTS[:5])
    write_corpus(folder / "deep" / "b.parquet", TEXTS[5:9])
    write_corpus(folder / "_logs" / "c.jsonl", TEXTS)
    (folder / "notes.doc").write_bytes(b"?")
    (folder / "_SUCCESS").write_bytes(b"")
    job = corpus(folder)
    job.inspect()
    assert job.texts() == TEXTS[:9]
    assert job.manifest.extra["skipped_objects"] == 1
    assert job.manifest.extra["skipped_examples"] == ["notes.doc"]


def test_a_glob_with_two_stars(tmp_path, corpus, write_corpus):
    write_corpus(tmp_path / "in" / "x" / "a.jsonl", TEXTS[:2])
    write_corpus(tmp_path / "in" / "x" / "y" / "b.jsonl", TEXTS[2:4])
    write_corpus(tmp_path / "in" / "c.parquet", TEXTS)
    job = corpus(f"{tmp_path}/in/**/*.jsonl")
    job.inspect()
    assert [d.id for d in job.documents()] == ["x/a.jsonl#0", "x/a.jsonl#1", "x/y/b.jsonl#0", "x/y/b.jsonl#1"]


def test_an_explicit_format_reads_files_without_a_suffix(tmp_path, corpus, write_corpus):
    write_corpus(tmp_path / "in" / "part-00000", TEXTS[:3])
    (tmp_path / "in" / "README.md").write_text("not data")
    job = corpus(tmp_path / "in", format="jsonl")
    job.inspect()
    assert job.texts() == TEXTS[:3]


def test_a_byte_order_mark_is_no_fault(tmp_path, corpus):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')
    job = corpus(tmp_path / "a.jsonl", per_shard=1)
    assert job.inspect().counts["invalid"] == 0
    assert job.texts() == ["one", "two"]


def test_shards_is_a_target_over_the_whole_corpus(tmp_path, corpus, write_corpus):
    for name in ("a.jsonl", "b.jsonl.zst", "c.parquet", "d.feather"):
        write_corpus(tmp_path / "in" / name, TEXTS[:50], rows=5)
    job = corpus(tmp_path / "in", shards=8, per_shard=1)
    job.inspect()
    assert len(job.manifest.shards) == 8
    assert job.texts() == TEXTS[:50] * 4


def test_shards_of_text_with_a_separator(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.txt", TEXTS), shards=3, separator="\n\n")
    job.inspect()
    assert [s.counts["documents"] for s in job.manifest.shards] == [19, 19, 19]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.feather", "a.arrow"])
def test_a_truncated_object_is_named(tmp_path, corpus, write_corpus, name):
    path = write_corpus(tmp_path / "in" / name, TEXTS * 20, rows=7)
    path.write_bytes(path.read_bytes()[:-600])
    job = corpus(path)
    with pytest.raises(CorpusError, match=f"{name} cannot be read.*truncated, damaged"):
        job.run()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_parquet_inside_gzip_is_refused(tmp_path, corpus):
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="spec.corpus.uri=.*Parquet inside gzip"):
        corpus(tmp_path / "a.parquet.gz").run()


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_a_missing_column_names_those_that_exist(tmp_path, corpus, write_corpus, name):
    path = write_corpus(tmp_path / "in" / name, TEXTS, rows=7)
    with pytest.raises(ConfigError, match="spec.corpus.textField='body'.*its columns are: other, text"):
        corpus(path, text_field="body").run()
    with pytest.raises(ConfigError, match="spec.corpus.textField='other'.*int64"):
        corpus(path, text_field="other").run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nothing.jsonl", "none/*.jsonl", "empty"])
def test_nothing_there(tmp_path, corpus, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"spec.corpus.uri='.*': nothing is there; give a file"):
        corpus(tmp_path / name).run()


def test_names_that_tell_no_format(tmp_path, corpus):
    (tmp_path / "data").write_bytes(b"{}")
    with pytest.raises(ConfigError, match="spec.corpus.uri=.*tell no format .data.*set spec.corpus.format"):
        corpus(tmp_path / "data").run()


def test_no_such_builtin(corpus):
    with pytest.raises(ConfigError, match="spec.corpus.uri='builtin://poems'.*builtin://python-docs"):
        corpus("builtin://poems").run()
