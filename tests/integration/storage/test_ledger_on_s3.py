"""The ledger on real S3 servers: racing workers where creates exclude, one worker where they do not."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest

from instructpt.corpus.ledger import Ledger
from instructpt.errors import ConfigError
from instructpt.storage import S3Store, parse_uri
from instructpt.storage.credentials import Target

SHARDS = [f"s{i:03d}" for i in range(24)]


@pytest.fixture
def open_at(monkeypatch, tmp_path):
    def open_at(server, prefix: str) -> S3Store:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        return S3Store(parse_uri(f"s3://{server.bucket}/{tmp_path.name}/{prefix}"), Target(endpoint=server.endpoint))

    return open_at


def make(store, worker: str, *, parallel: bool) -> Ledger:
    return Ledger(
        store,
        "ledger",
        worker_id=worker,
        lease_seconds=60,
        shards=SHARDS,
        parallel=parallel,
        rng=random.Random(worker),
    )


def test_racing_workers_commit_every_shard_once(s3_versitygw, open_at, tmp_path):
    store = open_at(s3_versitygw, "race")
    path = tmp_path / "rows"
    path.write_bytes(b"rows")
    won: list[str] = []

    def run(number: int) -> None:
        ledger = make(store, f"w{number}", parallel=True)
        for claim in ledger.claims(wait=lambda _: True):
            assert ledger.renew(claim)
            if ledger.commit(claim, path, {"worker": number}):
                won.append(claim.shard)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = make(store, "finalize", parallel=True)
    records = ledger.committed()
    assert sorted(won) == sorted(records) == SHARDS
    assert {r.sha256 for r in records.values()} == {hashlib.sha256(b"rows").hexdigest()}
    assert ledger.orphans() == []


def test_two_commits_of_one_shard_leave_one(s3_versitygw, open_at):
    store = open_at(s3_versitygw, "double")
    ledger = make(store, "w", parallel=True)
    claim = ledger.claim()
    assert ledger.commit(claim, b"first", {})
    assert not make(store, "x", parallel=True).commit(claim, b"second", {})
    assert store.get(ledger.committed()[claim.shard].object) == b"first"
    assert ledger.orphans() == []


def test_parallel_writers_are_refused_on_rclone(s3_rclone, open_at):
    store = open_at(s3_rclone, "refused")
    with pytest.raises(ConfigError, match=r"ignores If-None-Match, so two writers could both win; set parallelism: 1"):
        make(store, "w", parallel=True).claim()
    assert list(store.list()) == []


def test_one_writer_works_on_rclone(s3_rclone, open_at):
    store = open_at(s3_rclone, "one")
    ledger = make(store, "w", parallel=False)
    for claim in ledger.claims(wait=lambda _: True):
        assert ledger.commit(claim, claim.shard.encode(), {})
    again = make(store, "v", parallel=False)
    assert again.claim() is None
    assert sorted(again.committed()) == SHARDS
