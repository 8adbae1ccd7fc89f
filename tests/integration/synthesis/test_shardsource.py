"""Micro-shards from a ledger that others use too."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import synthesis_support as support

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.corpus.ledger import Ledger
from instructpt.errors import StorageError
from instructpt.storage import open_store
from instructpt.synthesis import shardsource
from instructpt.synthesis import work as stage
from instructpt.synthesis.microshard import OpenShard
from instructpt.synthesis.report import Report
from instructpt.synthesis.shardsource import LedgerShards
from instructpt.synthesis.stream import Stream
from instructpt.synthesis.writers import RuleWriter
from instructpt.telemetry.progress import Progress


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    return support.make_corpus(tmp_path_factory.mktemp("corpus"), support.sentences(12), per_shard=3)


class Bench:
    """One stage, its workers' ledgers, and a source for one of them."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        self.work = stage.resolve(spec, open_store(spec.output.uri))
        self.folder = folder
        self.progress = Progress()
        self.idle = 0
        self.mine = self.work.ledger("mine")

    def other(self) -> Ledger:
        return self.work.ledger("other")

    async def source(self) -> LedgerShards:
        async def on_idle() -> None:
            self.idle += 1

        report = Report(self.progress, len(self.work.parts))
        return LedgerShards(self.work, self.mine, scratch=self.folder / "s", report=report, model=None, on_idle=on_idle)

    def play(self, scene: Callable[[LedgerShards], Awaitable[Any]]) -> None:
        async def main() -> None:
            source = await self.source()
            try:
                await asyncio.wait_for(scene(source), 60)
            finally:
                await source.close()

        asyncio.run(main())

    def keys(self, kind: str) -> list[str]:
        return [info.key for info in self.work.output.list() if f"/{kind}/" in info.key]


@pytest.fixture
def bench(corpus: ResolvedInput, tmp_path: Path) -> Bench:
    return Bench(support.make_spec(corpus, tmp_path / "out", parallelism=2), tmp_path)


async def carried(shard: OpenShard, bench: Bench) -> None:
    for indices in shard.chains:
        await shard.carry(indices, RuleWriter(recipe=bench.work.recipe).open(0))


def test_several_micro_shards_are_held_at_a_time_and_all_are_given_back(bench: Bench) -> None:
    async def scene(source: LedgerShards) -> None:
        found = [await source.next() for _ in range(3)]
        assert len({shard.name for shard in found if shard is not None}) == 3
        assert len(bench.keys("leases")) == 3

    bench.play(scene)
    assert not bench.keys("leases")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("renew-")]


def test_a_claim_under_way_when_the_worker_leaves_is_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    claiming, go_on = threading.Event(), threading.Event()
    claim = bench.mine.claim

    def slow() -> Any:
        claiming.set()
        assert go_on.wait(20)
        return claim()

    monkeypatch.setattr(bench.mine, "claim", slow)

    async def scene(source: LedgerShards) -> None:
        asking = asyncio.create_task(source.next())
        await asyncio.to_thread(claiming.wait, 20)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        go_on.set()

    bench.play(scene)
    assert not bench.keys("leases")


def test_a_worker_that_waits_for_its_storage_leaves_when_it_is_told_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardsource, "_FIRST_PAUSE", 120.0)
    asked = threading.Event()

    def fail() -> Any:
        asked.set()
        raise StorageError("503 SlowDown", retryable=True)

    monkeypatch.setattr(bench.mine, "claim", fail)

    async def scene(source: LedgerShards) -> None:
        asking = asyncio.create_task(source.next())
        await asyncio.to_thread(asked.wait, 20)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    begun = time.monotonic()
    bench.play(scene)
    assert time.monotonic() - begun < 60  # and not the pause


def test_with_nothing_under_way_the_engine_is_dropped_while_others_finish(bench: Bench) -> None:
    other = bench.other()
    claims = [other.claim() for _ in bench.work.parts]

    async def scene(source: LedgerShards) -> None:
        asking = asyncio.create_task(source.next())
        while not bench.idle:
            await asyncio.sleep(0.01)
        assert not asking.done()
        for claim in claims:
            assert claim is not None
            await asyncio.to_thread(other.commit, claim, b"data", {"counts": {}})
        assert await asking is None
        assert bench.idle == 1

    bench.play(scene)
    assert bench.progress.snapshot()["done"] == 4


def test_the_engine_stays_while_documents_are_under_way(bench: Bench) -> None:
    other = bench.other()
    theirs = [other.claim() for _ in range(3)]

    async def scene(source: LedgerShards) -> None:
        shard = await source.next()
        assert shard is not None
        asking = asyncio.create_task(source.next())
        await asyncio.sleep(0.3)
        assert not asking.done()
        assert bench.idle == 0
        for claim in theirs:
            assert claim is not None
            await asyncio.to_thread(other.commit, claim, b"data", {"counts": {}})
        await carried(shard, bench)
        await source.done(shard)
        assert await asking is None

    bench.play(scene)
    assert len(bench.keys("commits")) == 4
    assert bench.idle <= 1


def test_a_lost_lease_costs_its_own_micro_shard_and_the_stage_is_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker takes over the first micro-shard and commits it; ours drops it and makes all the others."""
    monkeypatch.setattr("instructpt.synthesis.stream.LOOK_SECONDS", 0.01)
    other = bench.other()

    class Stalled(RuleWriter):
        async def write(self, chain: Any, document: Any, counts: Any) -> Any:
            if document.text.startswith("The 0th"):
                await asyncio.get_running_loop().create_future()
            return await super().write(chain, document, counts)

    async def scene(source: LedgerShards) -> None:
        stream = asyncio.create_task(Stream(source, Stalled(recipe=bench.work.recipe), lanes=4).run())
        while "000000" not in source._held and not stream.done():
            await asyncio.sleep(0.01)
        while len(bench.keys("commits")) < 3:
            await asyncio.sleep(0.01)
        held = source._held["000000"]
        taken = other._leases.take("000000", held.claim.epoch + 1)
        assert taken is not None
        await asyncio.to_thread(other.commit, taken, b"theirs", {"counts": {}})
        held.renewal.lost.set()  # as the renewer does when it sees the next epoch
        await stream

    bench.play(scene)
    commits = bench.mine.committed()
    assert len(commits) == 4
    assert commits["000000"].bytes == len(b"theirs")
    assert bench.progress.snapshot()["counts"]["documents"] == 9


def test_a_micro_shard_whose_new_holder_dies_is_taken_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours loses its lease to a worker that never renews and never commits: once that expires, ours makes it."""
    monkeypatch.setattr("instructpt.synthesis.stream.LOOK_SECONDS", 0.01)
    other = bench.other()
    stalls = [True]

    class StalledOnce(RuleWriter):
        async def write(self, chain: Any, document: Any, counts: Any) -> Any:
            if document.text.startswith("The 0th") and stalls[0]:
                await asyncio.get_running_loop().create_future()
            return await super().write(chain, document, counts)

    async def scene(source: LedgerShards) -> None:
        stream = asyncio.create_task(Stream(source, StalledOnce(recipe=bench.work.recipe), lanes=4).run())
        while "000000" not in source._held and not stream.done():
            await asyncio.sleep(0.01)
        while len(bench.keys("commits")) < 3:
            await asyncio.sleep(0.01)
        held = source._held["000000"]
        assert other._leases.take("000000", held.claim.epoch + 1) is not None
        stalls[0] = False
        held.renewal.lost.set()
        await stream

    bench.play(scene)
    assert len(bench.mine.committed()) == 4
    assert bench.progress.snapshot()["counts"]["documents"] == 12
