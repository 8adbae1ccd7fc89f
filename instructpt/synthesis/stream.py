"""The stream: chains of several micro-shards on one engine, without a barrier at shots, shards or files.

A lane carries one chain at a time, so a chain's next shot is asked for the moment the one before is parsed, and as
many requests are in flight as there are lanes. A lane whose chain has ended takes the next chain at once; the next
micro-shard is opened while chains of the one before are still waiting for a lane. Which chain goes next is decided
by ``Schedule``, which knows no engine, no storage and no time.

Depth-first, chain by chain, is what prefix caching needs: a pool larger than the engine's cache would be forgotten
between two rounds (performance notes on PagedAttention, arXiv 2309.06180).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from instructpt.synthesis.microshard import OpenShard
from instructpt.synthesis.writers import Outcome, Writer

LOOK_SECONDS = 0.1
"""How often lost leases are looked for."""
MAX_ENDED = 4
"""Micro-shards that wait for their commit; with more, no further one is opened until the storage keeps up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain to be worked on.

    Attributes:
        shard: Its micro-shard.
        indices: Its documents, by index in the micro-shard.
        priority: Its place in the order of all chains started: the lowest has waited longest.
    """

    shard: str
    indices: Sequence[int]
    priority: int


@dataclass(slots=True)
class _Open:
    """What is left of a micro-shard."""

    waiting: deque[Sequence[int]]
    live: int = 0


class Room:
    """How many tokens of live chains the engine's cache may hold.

    With the cache full, a new chain takes the blocks that a chain between two shots has just freed and is about to
    ask for again. So a new chain waits while live ones, each with one more shot as long as shots are on average, fill
    ``SHARE`` of the cache.

    Args:
        capacity: Tokens that the cache holds; None has room for all.
        guess: Tokens of a shot, until one is known.
    """

    SHARE = 0.8

    def __init__(self, capacity: int | None = None, guess: int = 0) -> None:
        self._capacity = capacity
        self._guess = guess
        self._held: dict[int, int] = {}
        self._sum = 0
        self._shots = self._tokens = 0

    @property
    def is_there(self) -> bool:
        """Whether one more chain may start; the first always may."""
        if self._capacity is None or not self._held:
            return True
        shot = self._tokens / self._shots if self._shots else self._guess
        return self._sum + (len(self._held) + 1) * shot <= self.SHARE * self._capacity

    def enter(self, chain: int) -> None:
        """A chain starts."""
        self._held[chain] = 0

    def grow(self, chain: int, tokens: int) -> None:
        """A chain's prompt and completion are so long now; shorter than before where it started afresh."""
        if chain in self._held:
            self._shots += 1
            self._tokens += tokens - self._held[chain] if tokens > self._held[chain] else tokens
            self._sum += tokens - self._held[chain]
            self._held[chain] = tokens

    def leave(self, chain: int) -> None:
        """A chain ended or was dropped."""
        self._sum -= self._held.pop(chain, 0)


class Schedule:
    """Which chain goes next, when the next micro-shard is wanted, when one has ended. Decides only.

    Args:
        lanes: Chains that are live at most.
        lead: The next micro-shard is wanted when fewer chains than this wait for a lane.
        apart: No chain of a micro-shard starts before all of the one before have ended.
        room: For live chains in the engine's cache.
    """

    def __init__(self, *, lanes: int, lead: int, apart: bool = False, room: Room | None = None) -> None:
        self._lead = max(1, min(lead, lanes))
        self._apart = apart
        self._open: dict[str, _Open] = {}
        self._numbers = itertools.count()
        self.room = room or Room()

    @property
    def wants_shard(self) -> bool:
        """Whether the next micro-shard should be opened now."""
        if self._apart and len(self._open) > 1:
            return False
        return self.num_waiting < self._lead

    @property
    def num_waiting(self) -> int:
        """Chains without a lane."""
        return sum(len(shard.waiting) for shard in self._open.values())

    @property
    def num_live(self) -> int:
        """Chains on lanes."""
        return sum(shard.live for shard in self._open.values())

    def add(self, shard: str, chains: Sequence[Sequence[int]]) -> bool:
        """Take in a micro-shard; False where it has no chain and so has ended already."""
        if chains:
            self._open[shard] = _Open(deque(chains))
        return bool(chains)

    def next(self) -> Chain | None:
        """The next chain of the micro-shard opened first that has one; it is live from now on."""
        if not self.room.is_there:
            return None
        for name, shard in self._open.items():
            if shard.waiting:
                shard.live += 1
                chain = Chain(shard=name, indices=shard.waiting.popleft(), priority=next(self._numbers))
                self.room.enter(chain.priority)
                return chain
            if self._apart:
                return None
        return None

    def end(self, chain: Chain) -> bool:
        """A chain left its lane; whether its micro-shard has ended with it."""
        self.room.leave(chain.priority)
        shard = self._open.get(chain.shard)
        if shard is None:  # dropped meanwhile
            return False
        shard.live -= 1
        if shard.waiting or shard.live:
            return False
        del self._open[chain.shard]
        return True

    def drop(self, shard: str) -> None:
        """Forget a micro-shard; its live chains are still to be reported to :meth:`end`."""
        self._open.pop(shard, None)


class Shards(Protocol):
    """Where micro-shards come from and go to. Calls of ``next`` do not overlap."""

    async def next(self) -> OpenShard | None:
        """The next micro-shard, leased and read; None when there will be no more. May wait long."""

    async def done(self, shard: OpenShard) -> None:
        """Every document of this micro-shard has its verdict: commit it."""

    def lost(self) -> Collection[str]:
        """Micro-shards whose leases were lost since the last call."""

    async def drop(self, shard: str) -> None:
        """Nothing of this micro-shard is under way any more; its lease was lost."""


@dataclass(slots=True)
class _Lane:
    """A place for one live chain."""

    chain: Chain | None = None
    is_dropped: bool = False
    task: asyncio.Task[None] | None = None


class Stream:
    """Carries micro-shards from their source through a writer back to it.

    Args:
        shards: The source.
        writer: Rules or a model.
        lanes: Chains in flight.
        apart: See :class:`Schedule`; for engines whose results would depend on who else is under way.
        room: See :class:`Schedule`.
        observe: Is told the outcome of each document.
    """

    def __init__(
        self,
        shards: Shards,
        writer: Writer,
        *,
        lanes: int,
        apart: bool = False,
        room: Room | None = None,
        observe: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._shards = shards
        self._writer = writer
        self._observe = observe
        self._schedule = Schedule(lanes=lanes, lead=lanes // 4, apart=apart, room=room)
        self._lanes = [_Lane() for _ in range(lanes)]
        self._num_running = lanes
        self._open: dict[str, OpenShard] = {}
        self._ended: asyncio.Queue[OpenShard | None] = asyncio.Queue()
        self._num_ended = 0
        self._is_dry = False
        self._is_over = asyncio.Event()
        self._wanted = asyncio.Event()
        self._idle: deque[asyncio.Future[None]] = deque()

    @property
    def num_live(self) -> int:
        """Chains in flight."""
        return self._schedule.num_live

    async def run(self) -> None:
        """Until the source has no more micro-shards and all of them are committed or lost.

        Raises:
            InstructPTError: Whatever ended a lane or the source; everything under way is given up.
        """
        tasks = [asyncio.create_task(work) for work in (self._feed(), self._settle(), self._watch())]
        for lane in self._lanes:
            lane.task = asyncio.create_task(self._carry(lane))
            tasks.append(lane.task)
        self._look_ahead()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self) -> None:
        """Open micro-shards ahead of the lanes."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            shard = await self._shards.next()
            if shard is None:
                self._is_dry = True
                self._wake()
                return
            self._open[shard.name] = shard
            if self._schedule.add(shard.name, shard.chains):
                self._wake()
            else:
                self._finish(shard.name)
            self._look_ahead()

    async def _carry(self, lane: _Lane) -> None:
        """Chain after chain."""
        while (chain := await self._next()) is not None:
            shard, lane.chain = self._open[chain.shard], chain
            try:
                observe = functools.partial(self._observed, chain)
                await shard.carry(chain.indices, self._writer.open(chain.priority), observe)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not lane.is_dropped or task is None or task.uncancel() > 0:
                    raise
            finally:
                lane.chain, lane.is_dropped = None, False
            if self._schedule.end(chain):
                self._finish(chain.shard)
                self._wake()
        self._num_running -= 1
        if not self._num_running:
            self._ended.put_nowait(None)

    def _observed(self, chain: Chain, outcome: Outcome) -> None:
        self._schedule.room.grow(chain.priority, outcome.prompt_tokens + outcome.completion_tokens)
        self._observe(outcome)

    async def _next(self) -> Chain | None:
        """The next chain, as soon as there is one; None when there will be none."""
        while True:
            chain = self._schedule.next()
            if chain is not None:
                self._look_ahead()
                if self._idle and self._schedule.num_waiting and self._schedule.room.is_there:
                    self._wake(1)
                return chain
            if self._is_dry and not self._schedule.num_waiting:
                return None
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(news)
            await news

    async def _settle(self) -> None:
        """Commit what has ended."""
        while (shard := await self._ended.get()) is not None:
            await self._shards.done(shard)
            self._num_ended -= 1
            self._look_ahead()
        self._is_over.set()

    async def _watch(self) -> None:
        """Drop the chains of micro-shards whose leases were lost, and no others."""
        while not self._is_over.is_set():
            for name in self._shards.lost():
                self._schedule.drop(name)
                self._open.pop(name, None)
                for lane in self._lanes:
                    if lane.chain is not None and lane.chain.shard == name and lane.task is not None:
                        lane.is_dropped = True
                        lane.task.cancel()
                await self._shards.drop(name)
                self._wake()
                self._look_ahead()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), LOOK_SECONDS)

    def _finish(self, name: str) -> None:
        """Every chain of a micro-shard has ended."""
        self._num_ended += 1
        self._ended.put_nowait(self._open.pop(name))

    def _look_ahead(self) -> None:
        """Have the next micro-shard opened if it is time."""
        if self._schedule.wants_shard and self._num_ended < MAX_ENDED:
            self._wanted.set()

    def _wake(self, number: int | None = None) -> None:
        """Let lanes without a chain look again; all of them unless a number is given."""
        for _ in range(len(self._idle) if number is None else min(number, len(self._idle))):
            news = self._idle.popleft()
            if not news.done():
                news.set_result(None)
