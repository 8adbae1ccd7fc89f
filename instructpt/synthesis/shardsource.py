"""Micro-shards from the ledger, several at a time: leased and read ahead, renewed while live, committed when done.

The ledger is asked in one thread of its own and files are read and written in another, so that the engine's event
loop never waits for storage.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from instructpt.corpus.augmented import write_chains
from instructpt.corpus.leases import Claim, Renewal
from instructpt.corpus.ledger import Ledger
from instructpt.errors import InstructPTError, StorageError
from instructpt.synthesis.microshard import MicroShard, OpenShard
from instructpt.synthesis.report import Report
from instructpt.synthesis.work import Work

log = logging.getLogger(__name__)

_LEAST_WAIT = 0.01
PATIENCE_SECONDS = 300.0
"""How long a storage that fails may recover while documents go on; beyond it the worker ends."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True)
class _Held:
    """A lease that is held, and what renews it."""

    claim: Claim
    renewal: Renewal = field(default_factory=Renewal)
    renewing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class LedgerShards:
    """The micro-shards of a stage, as :class:`~instructpt.synthesis.stream.Shards`.

    Args:
        work: The stage.
        ledger: Its ledger, for this object alone from now on.
        scratch: Folder for files on their way.
        report: Is told what is committed.
        model: Digest of the model; stands in every commit.
        on_idle: Called before the first wait for others, when nothing is under way: the place to drop an engine.
    """

    def __init__(
        self,
        work: Work,
        ledger: Ledger,
        *,
        scratch: Path,
        report: Report,
        model: str | None,
        on_idle: Callable[[], Awaitable[None]],
    ) -> None:
        self._work = work
        self._ledger = ledger
        self._scratch = scratch
        self._report = report
        self._model = model
        self._on_idle = on_idle
        self._parts = {part.entry.id: part for part in work.parts}
        self._held: dict[str, _Held] = {}
        self._claiming: asyncio.Future[Claim | None] | None = None
        self._released = asyncio.Event()
        self._leaving = asyncio.Event()
        self._claims = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._files = ThreadPoolExecutor(1, thread_name_prefix="shards")

    async def next(self) -> OpenShard | None:
        """The next micro-shard, leased and read; None once all are committed, or others kept the rest for too long.

        Raises:
            StorageError: The storage failed.
            CorpusError: The corpus cannot be read.
        """
        idle_since: float | None = None
        clock = asyncio.get_running_loop().time
        while True:
            self._released.clear()
            claim = await self._claim()
            self._report.shards(self._ledger.num_committed)
            if claim is not None:
                return await self._open(claim)
            if not self._held:
                if await self._patiently(self._claims, self._ledger.all_committed):
                    return None
                if idle_since is None:
                    idle_since = clock()
                    await self._on_idle()
                if clock() - idle_since >= 2 * self._work.run.settings.lease_seconds:
                    return None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), max(self._ledger.retry_after(), _LEAST_WAIT))

    async def _claim(self) -> Claim | None:
        """A claim; when the caller is cancelled meanwhile, :meth:`close` finds it and gives it back."""
        self._claiming = asyncio.ensure_future(self._patiently(self._claims, self._ledger.claim))
        claim = await asyncio.shield(self._claiming)
        self._claiming = None
        return claim

    async def _open(self, claim: Claim) -> OpenShard:
        held = _Held(claim)
        held.renewal = held.renewing.enter_context(self._ledger.renewing(claim))
        self._held[claim.shard] = held
        return await self._patiently(self._files, self._read, claim.shard)

    def _read(self, name: str) -> OpenShard:
        part = self._parts[name]
        documents = self._work.reader.read(part.entry, split=self._work.run.split)
        return OpenShard(name, itertools.islice(documents, part.documents), self._work.recipe)

    async def done(self, shard: OpenShard) -> None:
        """Write the rows, then commit: data before commit.

        Raises:
            StorageError: The storage failed.
            ConfigError: The storage refused a renewal meanwhile.
        """
        held = self._held.get(shard.name)
        if held is None:  # its lease was lost in the last moment, and others make it again
            return
        made, path = await self._in(self._files, self._write, shard, held.claim)
        record = {
            "counts": made.counts,
            "examples": list(made.examples),
            "model": self._model,
            "recipe": self._work.recipe.digests,
        }
        won = await self._patiently(self._claims, self._ledger.commit, held.claim, path, record)
        path.unlink(missing_ok=True)
        self._held.pop(shard.name, None)
        await self._in(self._files, held.renewing.close)
        self._report.commit(self._ledger.num_committed, made.counts if won else {})
        self._released.set()

    def _write(self, shard: OpenShard, claim: Claim) -> tuple[MicroShard, Path]:
        made = shard.close()
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"{claim.shard}-{claim.epoch}.parquet"
        write_chains(path, made.rows)
        return made, path

    def lost(self) -> list[str]:
        """Micro-shards whose lease others took over.

        Raises:
            ConfigError: The storage refuses renewals.
        """
        for held in self._held.values():
            if held.renewal.error is not None:
                raise held.renewal.error
        return [name for name, held in self._held.items() if held.renewal.lost.is_set()]

    async def drop(self, shard: str) -> None:
        """Forget a micro-shard; whoever holds it now is watched like any other."""
        held = self._held.pop(shard, None)
        if held is not None:
            log.info("gave up micro-shard %s", shard)
            with contextlib.suppress(InstructPTError):
                await self._in(self._files, held.renewing.close)
            await self._in(self._claims, self._ledger.release, held.claim)
            self._released.set()

    async def close(self) -> None:
        """Give back every lease, so that nobody has to wait for it to expire."""
        self._leaving.set()
        held = list(self._held.values())
        self._held.clear()
        try:
            if self._claiming is not None:
                (claim,) = await asyncio.gather(self._claiming, return_exceptions=True)
                if isinstance(claim, Claim):
                    held.append(_Held(claim))
            for one in held:
                with contextlib.suppress(InstructPTError):
                    await self._in(self._files, one.renewing.close)
            for one in held:
                with contextlib.suppress(InstructPTError):
                    await self._in(self._claims, self._ledger.release, one.claim)
        finally:
            self._claims.shutdown()
            self._files.shutdown()

    async def _patiently(
        self, pool: ThreadPoolExecutor, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """A call that may be made again, made again while the storage fails in a way that may pass.

        Raises:
            StorageError: It did not pass.
        """
        clock = asyncio.get_running_loop().time
        begun, pause = clock(), _FIRST_PAUSE
        while True:
            try:
                return await self._in(pool, call, *args, **kwargs)
            except StorageError as error:
                if not error.retryable or self._leaving.is_set() or clock() - begun + pause > PATIENCE_SECONDS:
                    raise
                log.warning("the storage fails, tried again in %.0f s: %s", pause, error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(call, *args, **kwargs))
