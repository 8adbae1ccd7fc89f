"""Corpora on real S3 servers: the same documents, spans by ETag, and errors as the storage raises them."""

from __future__ import annotations

import pytest

from instructpt.corpus.shards import iter_corpus
from instructpt.errors import ConfigError, CorpusError, NotFoundError
from instructpt.storage import open_store

TEXTS = [f"document {number} with some words" for number in range(30)]
NAMES = ("a.jsonl", "b/c.jsonl.gz", "b/d.parquet", "e.feather")


@pytest.fixture(params=["s3_versitygw", "s3_rclone"])
def server(request, monkeypatch):
    server = request.getfixturevalue(request.param)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def uploaded(server, tmp_path, write_corpus):
    """The corpus below ``s3://bucket/<test>/in``; the URI of ``<test>``."""
    top = f"s3://{server.bucket}/{tmp_path.name}"
    for name in NAMES:
        path = write_corpus(tmp_path / "in" / name, TEXTS, rows=7)
        server.client().upload_file(str(path), server.bucket, f"{tmp_path.name}/in/{name}")
    return top


def test_a_prefix_and_a_glob(server, uploaded, corpus):
    storage = {"endpoint": server.endpoint}
    job = corpus(f"{uploaded}/in/", f"{uploaded}/out", endpoint=server.endpoint, storage=storage)
    result = job.inspect()
    assert result.counts["documents"] == 120
    assert job.texts() == TEXTS * 4
    direct = [shard.span for shard in job.manifest.shards if shard.sha256 is None]
    assert {span.uri for span in direct} == {f"{uploaded}/in/{name}" for name in NAMES if not name.endswith(".gz")}
    assert all(span.etag and not span.etag.startswith("sha256:") for span in direct)
    some = corpus(f"{uploaded}/in/**/*.jsonl*", f"{uploaded}/out2", endpoint=server.endpoint, storage=storage)
    some.inspect()
    assert some.texts() == TEXTS * 2
    assert some.documents()[30].id == "b/c.jsonl.gz#0"


def test_the_source_is_reached_as_the_inspection_reached_it(server, uploaded, corpus):
    job = corpus(f"{uploaded}/in/a.jsonl", endpoint=server.endpoint)  # the output is a folder
    job.inspect()
    assert len(list(iter_corpus(job.input))) == 30
    source = open_store(f"{uploaded}/in", access=job.spec.inspect.source)
    source.put("a.jsonl", source.get("a.jsonl").replace(b"words", b"worms"))
    with pytest.raises(CorpusError, match="a.jsonl has changed since the corpus was inspected: etag"):
        job.texts()


def test_nothing_no_bucket_no_access(server, uploaded, corpus, monkeypatch):
    with pytest.raises(ConfigError, match="spec.corpus.uri='s3://.*nothing is there"):
        corpus(f"{uploaded}/none/", endpoint=server.endpoint).run()
    with pytest.raises(NotFoundError, match="no bucket no-such-bucket"):
        corpus("s3://no-such-bucket/in/*.jsonl", endpoint=server.endpoint).run()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ConfigError, match=f"access to bucket {server.bucket} is refused"):
        corpus(f"{uploaded}/in/", endpoint=server.endpoint).run()


def test_many_small_files_are_read_side_by_side_in_order_and_one_that_changed_is_found(server, tmp_path, corpus):
    top = f"{tmp_path.name}-many"
    for number in range(120):
        server.client().put_object(
            Bucket=server.bucket, Key=f"{top}/in/{number:03d}.txt", Body=f"text number {number}".encode()
        )
    job = corpus(f"s3://{server.bucket}/{top}/in/", str(tmp_path / "out"), endpoint=server.endpoint)
    assert job.inspect().counts["documents"] == 120
    assert [d.id for d in job.documents()] == [f"{number:03d}.txt#0" for number in range(120)]
    assert job.texts() == [f"text number {number}" for number in range(120)]


def test_a_file_that_changes_under_the_inspection_is_named(server, tmp_path, corpus, monkeypatch):
    from instructpt.corpus import units

    top = f"{tmp_path.name}-changed"
    for number in range(3):
        server.client().put_object(Bucket=server.bucket, Key=f"{top}/in/{number}.txt", Body=b"as it was")
    read = units.read_objects

    def change_one(*args, **options):
        yield from read(*args, **options)
        server.client().put_object(Bucket=server.bucket, Key=f"{top}/in/1.txt", Body=b"other")

    monkeypatch.setattr(units, "read_objects", change_one)
    with pytest.raises(CorpusError, match=r"in/1.txt changed while it was inspected"):
        corpus(f"s3://{server.bucket}/{top}/in/", str(tmp_path / "out"), endpoint=server.endpoint).inspect()
