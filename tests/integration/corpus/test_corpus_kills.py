"""Kill the inspection before and after each write, run it again: the same bytes as without a kill."""

from __future__ import annotations

import json

import pytest
from faults import FaultyStore, Killed, kill_points

from instructpt.corpus import inspect
from instructpt.errors import CorpusError
from instructpt.storage import MemoryStore, open_store

TEXTS = [f"document {number} with some words in it" for number in range(30)]
BAD = b'{"text": \n'


@pytest.fixture
def job(tmp_path, corpus, write_corpus, request):
    folder = tmp_path / "in"
    for name in ("a.jsonl.gz", "b.jsonl", "c.parquet"):
        write_corpus(folder / name, TEXTS, rows=4)
    (folder / "b.jsonl").write_bytes((folder / "b.jsonl").read_bytes() + BAD)
    return corpus(folder, f"memory://{request.node.name}/out", max_invalid_share=0.1, text_field="text")


def objects(uri):
    store = open_store(uri)
    return {info.key: store.get(info.key) for info in store.list()}


def clear(uri):
    store = open_store(uri)
    for key in list(objects(uri)):
        store.delete(key)


def test_every_kill_leads_to_the_same_bytes(job, monkeypatch):
    counting = FaultyStore(open_store(job.output))
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "open_store", lambda uri, access=None: counting)
        undisturbed = job.inspect()
    expected = objects(job.output)
    assert "manifest.json" in expected
    assert len(expected["dead-letters/000001.jsonl"].splitlines()) == 1
    # raw + 3 results + dead letters, an older manifest taken away, source.json and the manifest
    assert counting.writes == 8
    for number, moment in kill_points(counting.writes):
        clear(job.output)
        faulty = FaultyStore(open_store(job.output), kill_at=number, moment=moment)
        with monkeypatch.context() as patch:
            patch.setattr(inspect, "open_store", lambda uri, access=None, faulty=faulty: faulty)
            with pytest.raises(Killed):
                job.inspect()
        after = objects(job.output)
        last = number == counting.writes and moment == "after"
        assert ("manifest.json" in after) == last, (number, moment)
        again = FaultyStore(open_store(job.output))
        with monkeypatch.context() as patch:
            patch.setattr(inspect, "open_store", lambda uri, access=None, again=again: again)
            assert job.inspect() == undisturbed
        assert objects(job.output) == expected, (number, moment)
        assert again.writes <= counting.writes


def test_finished_objects_are_not_read_again(job, monkeypatch):
    faulty = FaultyStore(open_store(job.output), kill_at=4)
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "open_store", lambda uri, access=None: faulty)
        with pytest.raises(Killed):
            job.run()
    done = [key for key in objects(job.output) if key.startswith("objects/")]
    assert len(done) == 1
    again = FaultyStore(open_store(job.output))
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "open_store", lambda uri, access=None: again)
        job.run()
    assert again.writes == 3


def test_finalize_repeats_its_result(job):
    first = job.inspect()
    before = objects(job.output)
    assert job.finalize() == first
    job.run()
    assert objects(job.output) == before


def test_finalize_without_work_writes_nothing(job):
    result = job.finalize()
    assert result.missing == 3
    assert objects(job.output) == {}


def test_workers_take_turns(job):
    alone = job.inspect()
    expected = objects(job.output)
    clear(job.output)
    for replica in (2, 0):
        job.run(replica, 3)
    assert job.finalize().missing == 1
    assert "manifest.json" not in objects(job.output)
    job.run(1, 3)
    assert job.finalize() == alone
    assert objects(job.output) == expected


def test_a_stopped_worker_leaves_and_goes_on(job):
    context = job.context()
    context.stop.set()
    inspect.run(job.spec, context)
    assert objects(job.output) == {}
    assert job.finalize().missing == 3
    assert job.inspect().missing == 0


def test_a_stop_in_the_middle_of_an_object_keeps_nothing_of_it(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", TEXTS * 100))
    context = job.context()
    seen = []

    def update(**figures):
        seen.append(figures)
        context.stop.set()

    context.progress.update = update
    inspect.run(job.spec, context)
    assert seen
    assert objects(job.output) == {}
    assert list(context.scratch.iterdir()) == []


def test_the_scratch_folder_is_left_empty_and_progress_counts_bytes(job):
    context = job.run()
    assert list(context.scratch.iterdir()) == []
    snapshot = context.progress.snapshot()
    assert snapshot["done"] == snapshot["total"] > 0
    assert snapshot["unit"] == "bytes"
    assert snapshot["counts"]["documents"] == 90


def test_the_manifest_of_copied_objects_knows_no_place(tmp_path, corpus, write_corpus):
    first, second = (tmp_path / name for name in ("x", "y"))
    manifests = []
    for folder in (first, second):
        write_corpus(folder / "in" / "a.jsonl.gz", TEXTS)
        job = corpus(folder / "in", folder / "out")
        job.inspect()
        manifests.append(job.manifest.to_bytes())
    assert manifests[0] == manifests[1]
    assert str(tmp_path).encode() not in manifests[0]


def test_dead_letters_of_an_earlier_input_are_removed(tmp_path, corpus):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' + BAD)
    job = corpus(path, max_invalid_share=0.5)
    job.run()
    assert len(job.dead_letters()) == 1
    path.write_bytes(b'{"text": "x"}\n{"text": "y"}\n')
    assert job.inspect().counts["invalid"] == 0
    assert job.dead_letters() == []


def test_an_object_that_changes_while_it_is_read(tmp_path, corpus, write_corpus):
    path = write_corpus(tmp_path / "in" / "a.jsonl", TEXTS * 100)
    job = corpus(path)
    context = job.context()
    context.progress.update = lambda **_: path.write_bytes(b'{"text": "other"}\n')
    with pytest.raises(CorpusError, match="changed while it was inspected"):
        inspect.run(job.spec, context)
    assert objects(job.output) == {}


def test_memory_stores_are_sources_too(request, corpus):
    store = MemoryStore(f"memory://{request.node.name}/in")
    store.put("a.jsonl", b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS))
    job = corpus(f"memory://{request.node.name}/in/")
    job.inspect()
    assert job.texts() == TEXTS
    assert job.manifest.shards[0].span.uri == f"memory://{request.node.name}/in/a.jsonl"
    store.put("a.jsonl", b"{}\n")
    with pytest.raises(CorpusError, match="has changed since the corpus was inspected: etag"):
        job.texts()
