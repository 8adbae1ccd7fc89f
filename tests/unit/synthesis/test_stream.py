"""The stream: nothing waits for a round, a micro-shard or a file; nothing is lost when some of it is."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import synthesis_support as support
from hypothesis import given
from hypothesis import strategies as st

from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
from instructpt.corpus.document import Document
from instructpt.errors import EnvironmentNotReadyError
from instructpt.synthesis import profiles, templates
from instructpt.synthesis.engine import Completion, GenerationRequest
from instructpt.synthesis.microshard import OpenShard
from instructpt.synthesis.model import Pair, Shot
from instructpt.synthesis.stream import MAX_ENDED, Chain, Room, Schedule, Stream
from instructpt.synthesis.writers import ModelWriter, Outcome, Recipe


def recipe(**settings: Any) -> Recipe:
    return Recipe(
        settings=SynthesisSettings.model_validate(settings), profile=profiles.load(), templates=templates.load()
    )


def shard(name: str, documents: int, made_of: Recipe) -> OpenShard:
    return OpenShard(name, [Document(id=f"{name}.{i}", text=f"{name}.{i}") for i in range(documents)], made_of)


class Gate:
    """A writer whose documents end when the test says so."""

    def __init__(self) -> None:
        self.started: dict[str, int] = {}
        self.open_now: dict[str, asyncio.Future[None]] = {}
        self.priorities: list[int] = []

    def open(self, priority: int) -> Gate:
        self.priorities.append(priority)
        return self

    async def write(self, chain: Sequence[Shot], document: Document, counts: Counter[str]) -> Outcome:
        self.started[document.id] = len(chain)
        self.open_now[document.id] = asyncio.get_running_loop().create_future()
        try:
            await self.open_now[document.id]
        finally:
            del self.open_now[document.id]
        return Outcome(pairs=(Pair("q", "a"),), afresh=not chain)

    async def let(self, name: str) -> None:
        """End a document, and let everything that follows from it happen."""
        self.open_now[name].set_result(None)
        await quiet()


async def quiet() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def play(shards: support.ListShards, gate: Gate, *, lanes: int, apart: bool = False) -> asyncio.Task[None]:
    task = asyncio.create_task(Stream(shards, gate, lanes=lanes, apart=apart).run())
    await quiet()
    return task


def test_the_next_shot_goes_out_when_its_own_chain_is_ready_and_no_other() -> None:
    async def main() -> None:
        gate, made_of = Gate(), recipe(shots=3)
        task = await play(support.ListShards([shard("s", 6, made_of)]), gate, lanes=2)
        assert set(gate.open_now) == {"s.0", "s.3"}
        await gate.let("s.0")
        await gate.let("s.1")
        assert gate.started == {"s.0": 0, "s.3": 0, "s.1": 1, "s.2": 2}
        assert gate.priorities == [0, 1]
        task.cancel()

    asyncio.run(main())


def test_the_next_micro_shard_is_under_way_before_the_one_before_has_ended() -> None:
    async def main() -> None:
        gate, made_of = Gate(), recipe(shots=1)
        shards = support.ListShards([shard(name, 4, made_of) for name in "abc"])
        task = await play(shards, gate, lanes=3)
        assert shards.opened == ["a"]
        assert set(gate.open_now) == {"a.0", "a.1", "a.2"}
        await gate.let("a.1")
        assert shards.opened == ["a", "b"]  # wanted when the last chain of a got a lane
        await gate.let("a.2")
        assert set(gate.open_now) == {"a.0", "a.3", "b.0"}
        await gate.let("a.3")
        for name in ("b.0", "b.1", "b.2", "b.3"):  # a slow document of a holds nobody up
            await gate.let(name)
        assert set(shards.made) == {"b"}
        assert set(gate.open_now) == {"a.0", "c.0", "c.1"}
        for name in ("a.0", "c.0", "c.1", "c.2", "c.3"):
            await gate.let(name)
        await asyncio.wait_for(task, 5)
        assert {name: made.counts["documents"] for name, made in shards.made.items()} == dict.fromkeys("abc", 4)

    asyncio.run(main())


def test_a_deterministic_engine_gets_one_micro_shard_at_a_time() -> None:
    async def main() -> None:
        gate, made_of = Gate(), recipe(shots=1)
        shards = support.ListShards([shard(name, 3, made_of) for name in "ab"])
        task = await play(shards, gate, lanes=2, apart=True)
        await gate.let("a.0")
        await gate.let("a.1")
        assert shards.opened == ["a", "b"]  # read ahead
        assert set(gate.open_now) == {"a.2"}  # but not started
        await gate.let("a.2")
        assert set(gate.open_now) == {"b.0", "b.1"}
        for name in ("b.0", "b.1", "b.2"):
            await gate.let(name)
        await asyncio.wait_for(task, 5)

    asyncio.run(main())


def test_a_lost_lease_takes_only_its_own_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructpt.synthesis.stream.LOOK_SECONDS", 0.001)

    async def main() -> None:
        gate, made_of = Gate(), recipe(shots=1)
        shards = support.ListShards([shard("a", 3, made_of), shard("b", 4, made_of)])
        task = await play(shards, gate, lanes=4)
        assert set(gate.open_now) == {"a.0", "a.1", "a.2", "b.0"}
        shards.losing.append("a")
        while shards.dropped != ["a"]:
            await asyncio.sleep(0.001)
        await quiet()
        assert set(gate.open_now) == {"b.0", "b.1", "b.2", "b.3"}
        for number in range(4):
            await gate.let(f"b.{number}")
        await asyncio.wait_for(task, 5)
        assert set(shards.made) == {"b"}

    asyncio.run(main())


def test_storage_that_does_not_keep_up_stops_the_opening_of_more() -> None:
    class Slow(support.ListShards):
        async def done(self, shard: OpenShard) -> None:
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        made_of = recipe(shots=1)
        shards = Slow([shard(f"s{i:02}", 1, made_of) for i in range(20)])
        engine = support.ScriptedEngine(lambda prompt: support.GOOD)
        task = asyncio.create_task(Stream(shards, ModelWriter(recipe=made_of, engine=engine), lanes=2).run())
        for _ in range(300):
            await asyncio.sleep(0)
        assert MAX_ENDED <= len(shards.opened) <= MAX_ENDED + 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_nothing_of_a_micro_shard_is_kept_once_it_is_committed() -> None:
    made_of = recipe(shots=2)
    kept: list[weakref.ref[OpenShard]] = []
    alive: list[int] = []

    class Forgetful(support.ListShards):
        async def next(self) -> OpenShard | None:
            await asyncio.sleep(0)
            if len(kept) == 60:
                return None
            opened = shard(f"s{len(kept):02}", 5, made_of)
            kept.append(weakref.ref(opened))
            return opened

        async def done(self, shard: OpenShard) -> None:
            shard.close()
            gc.collect()
            alive.append(sum(found() is not None for found in kept))

    async def main() -> None:
        engine = support.ScriptedEngine(lambda prompt: support.GOOD)
        await Stream(Forgetful([]), ModelWriter(recipe=made_of, engine=engine), lanes=4).run()

    gc.freeze()  # only what this test makes is looked through
    try:
        asyncio.run(main())
    finally:
        gc.unfreeze()
    assert len(alive) == 60
    assert max(alive) <= MAX_ENDED + 4  # those under way and those that wait for their commit
    gc.collect()
    assert not [found for found in kept if found() is not None]


def test_what_ends_one_lane_ends_all_and_is_told_as_it_is() -> None:
    def script(prompt: str) -> str | Exception:
        return EnvironmentNotReadyError("gone") if prompt.endswith("s.7 </CON>\n\n") else support.GOOD

    async def main() -> None:
        made_of = recipe(shots=2)
        engine = support.ScriptedEngine(script)
        shards = support.ListShards([shard("s", 20, made_of)])
        with pytest.raises(EnvironmentNotReadyError, match="gone"):
            await Stream(shards, ModelWriter(recipe=made_of, engine=engine), lanes=4).run()
        assert not shards.made
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@given(
    sizes=st.lists(st.integers(0, 9), max_size=6),
    shots=st.integers(1, 4),
    lanes=st.integers(1, 12),
    apart=st.booleans(),
    capacity=st.sampled_from([None, 1, 300, 2000]),
    seed=st.integers(0, 99),
)
def test_overlapping_micro_shards_come_out_as_each_would_alone(
    sizes: list[int], shots: int, lanes: int, apart: bool, capacity: int | None, seed: int
) -> None:
    made_of = recipe(shots=shots)

    def script(prompt: str) -> str:
        return "" if prompt.endswith("3 </CON>\n\n") else support.GOOD

    async def main() -> dict[str, Any]:
        shards = support.ListShards([shard(f"s{i}", size, made_of) for i, size in enumerate(sizes)])
        engine = support.ScriptedEngine(script, seed=seed)
        writer = ModelWriter(recipe=made_of, engine=engine)
        await Stream(shards, writer, lanes=lanes, apart=apart, room=Room(capacity, guess=50)).run()
        assert len(engine.prompts) == sum(sizes)
        return shards.made

    made = asyncio.run(main())
    for number, size in enumerate(sizes):
        name = f"s{number}"
        documents = [Document(id=f"{name}.{i}", text=f"{name}.{i}") for i in range(size)]
        writer = ModelWriter(recipe=made_of, engine=support.ScriptedEngine(script))
        assert made[name] == support.synthesize(documents, made_of, writer, concurrency=1, name=name)


def test_a_chain_waits_while_live_ones_fill_the_cache() -> None:
    room = Room(capacity=1000, guess=200)
    for chain in range(4):
        assert room.is_there
        room.enter(chain)
    assert not room.is_there  # four and one more at 200 are beyond 800
    for chain in range(4):
        room.grow(chain, 100)
    assert not room.is_there  # 400 held, and five shots of 100 to come
    room.leave(0)
    assert room.is_there  # 300 held, and four to come
    room.enter(4)
    room.grow(1, 50)  # started afresh
    room.leave(1)
    room.leave(1)
    assert Room().is_there
    tiny = Room(capacity=10, guess=200)
    assert tiny.is_there  # or nothing would ever start
    tiny.enter(0)
    assert not tiny.is_there


def test_chains_that_have_begun_go_on_while_new_ones_wait_for_room() -> None:
    async def main() -> None:
        made_of = recipe(shots=2)
        engine = Counting(lambda prompt: support.GOOD)
        shards = support.ListShards([shard(f"s{i}", 8, made_of) for i in range(4)])
        writer = ModelWriter(recipe=made_of, engine=engine)
        size = 2 * (len("<s> <CON> s0.0 </CON>") + len(support.GOOD))
        await Stream(shards, writer, lanes=12, room=Room(capacity=4 * size, guess=size // 2)).run()
        assert 1 < engine.most <= 6
        assert {name: made.counts["augmented"] for name, made in shards.made.items()} == {f"s{i}": 8 for i in range(4)}

    asyncio.run(main())


class Counting(support.ScriptedEngine):
    """Counts the requests that are there at once."""

    now = most = 0

    async def generate(self, request: GenerationRequest) -> Completion:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().generate(request)
        finally:
            self.now -= 1


@given(sizes=st.lists(st.integers(0, 6), max_size=8), lanes=st.integers(1, 5), data=st.data())
def test_the_schedule_gives_every_chain_once_and_ends_each_micro_shard_once(
    sizes: list[int], lanes: int, data: st.DataObject
) -> None:
    schedule = Schedule(lanes=lanes, lead=lanes // 4, apart=data.draw(st.booleans()))
    waiting, live, given_, ended = list(enumerate(sizes)), [], [], []
    while True:
        choices = ["add"] if waiting and schedule.wants_shard else []
        chain = schedule.next() if len(live) < lanes else None
        if chain is not None:
            assert all(chain.priority > other.priority for other in given_)
            live.append(chain)
            given_.append(chain)
            assert schedule.num_live == len(live) <= lanes
        choices += ["end"] if live else []
        if not choices:
            break
        if data.draw(st.sampled_from(choices)) == "add":
            number, size = waiting.pop(0)
            if not schedule.add(str(number), [(i,) for i in range(size)]):
                ended.append(str(number))
            # So little is held that nobody else could work on: a worker that finds nothing waits for no more.
            assert schedule.num_waiting < max(1, lanes // 4) + max(size, 1)
        else:
            done: Chain = live.pop(data.draw(st.integers(0, len(live) - 1)))
            if schedule.end(done):
                ended.append(done.shard)
    assert not waiting
    assert sorted((chain.shard, chain.indices) for chain in given_) == [
        (str(number), (i,)) for number, size in enumerate(sizes) for i in range(size)
    ]
    assert sorted(ended) == [str(number) for number in range(len(sizes))]
