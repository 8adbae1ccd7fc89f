"""The worker of the stage ``synthesize``: leases micro-shards until none is left (protocols.md 3, design 4).

A long-lived process: one engine start, then micro-shards. Nothing of a micro-shard is kept before it is whole: a
killed worker loses the one under way, and whoever takes it over makes it again from its first document.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from instructpt.api.runspec import RunSpec
from instructpt.corpus.augmented import write_chains
from instructpt.corpus.leases import Claim, Renewal
from instructpt.errors import ConfigError, EnvironmentNotReadyError, StorageError
from instructpt.storage import open_store
from instructpt.storage.models import fetch_model, model_digest
from instructpt.synthesis import work as stage
from instructpt.synthesis.engine import Engine, open_engine
from instructpt.synthesis.finalize import finalize
from instructpt.synthesis.microshard import MicroShard, ModelWriter, RuleWriter, Writer, synthesize
from instructpt.synthesis.tokenization import check_context, check_tokenizer, load_tokenizer
from instructpt.synthesis.work import Part, Work
from instructpt.telemetry.context import WorkerContext

__all__ = ["finalize", "run"]

log = logging.getLogger(__name__)

MODEL_CACHE = "INSTRUCTPT_MODEL_CACHE"
"""Folder for models from a store, shared by the workers of a node; by default each worker has its own."""

_LOOK_SECONDS = 0.1
_REPORT_SECONDS = 1.0
_COUNTS = ("documents", "augmented", "raw", "dead_letters", "pairs", "prompt_tokens", "completion_tokens", "retries")


class _AbandonedError(Exception):
    """The micro-shard under way is given up: the worker was told to stop, or has lost the lease."""


def run(spec: RunSpec, ctx: WorkerContext) -> None:
    """Synthesize micro-shards until every one is committed, or the rest is leased by others for too long.

    Raises:
        ConfigError: A name, the model, its tokenizer or the corpus is wrong; nothing was written.
        EnvironmentNotReadyError: The engine cannot start, or died.
        StorageError: The storage failed.
    """
    output = open_store(spec.output.uri, access=spec.output)
    if stage.finished(spec, output) is not None:
        return
    work = stage.resolve(spec, output)
    ledger = work.ledger(ctx.worker_id)
    progress = _Report(ctx, len(work.parts))
    parts = {part.entry.id: part for part in work.parts}
    with _Generator(work, ctx.scratch) as generator:
        if not ledger.all_committed():
            generator.check()
            _stamp(spec, work)
        for claim in ledger.claims(wait=ctx.stop.wait, on_idle=generator.drop):
            progress.shards(ledger.num_committed)
            try:
                with ledger.renewing(claim) as renewal:
                    made = generator.make(parts[claim.shard], progress, _watch(ctx, renewal))
                    path = _write(made, ctx.scratch, claim)
                record = {"counts": made.counts, "examples": list(made.examples), "model": generator.digest}
                won = ledger.commit(claim, path, record)
                path.unlink(missing_ok=True)
            except BaseException as error:
                with contextlib.suppress(StorageError):
                    ledger.release(claim)
                if not isinstance(error, _AbandonedError):
                    raise
                log.info("gave up micro-shard %s", claim.shard)
            else:
                progress.commit(ledger.num_committed, made.counts if won else {})
            if ctx.stop.is_set():
                return
    progress.shards(ledger.num_committed)


def _stamp(spec: RunSpec, work: Work) -> None:
    """Leave the spec beside its work, for people; nothing reads it."""
    key = f"{work.prefix}/{stage.SPEC}"
    if not work.output.exists(key):
        work.output.put(key, spec.to_json().encode())


def _watch(ctx: WorkerContext, renewal: Renewal) -> Callable[[], bool]:
    return lambda: ctx.stop.is_set() or renewal.lost.is_set()


def _write(made: MicroShard, scratch: Path, claim: Claim) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"{claim.shard}-{claim.epoch}.parquet"
    write_chains(path, made.rows)
    return path


class _Generator:
    """Makes micro-shards; starts its engine when the first is asked for, and again after it was dropped.

    The event loop runs only while a micro-shard is made: the ledger's calls between them block.
    """

    def __init__(self, work: Work, scratch: Path) -> None:
        self._work = work
        self._scratch = scratch
        self._runner = asyncio.Runner()
        self._engine: Engine | None = None
        self._folder: Path | None = None
        self.digest: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.drop()
        finally:
            self._runner.close()

    def check(self) -> None:
        """Fetch the model and see that it, its tokenizer and the spec fit, before anything is claimed or started.

        Raises:
            ConfigError: They do not.
        """
        run = self._work.run
        if run.strategy == "mined":
            return
        if run.model is None:
            raise ConfigError(
                f"strategy {run.strategy} needs a model", field="synthesizer.model", fix="name one, or use mined"
            )
        cache = os.environ.get(MODEL_CACHE)
        self._folder = fetch_model(run.model, Path(cache) if cache else self._scratch / "models")
        check_context(self._folder, run.settings.sampling.context_window)
        check_tokenizer(self._work.recipe.profile, load_tokenizer(self._folder), model=run.model.uri)
        self.digest = model_digest(self._folder)

    def make(self, part: Part, progress: _Report, give_up: Callable[[], bool]) -> MicroShard:
        """One micro-shard.

        Raises:
            _AbandonedError: ``give_up`` said so.
            EnvironmentNotReadyError: The engine cannot start, or died.
        """
        settings = self._work.run.settings
        writer: Writer = RuleWriter(recipe=self._work.recipe)
        concurrency = 1
        if self._work.run.strategy != "mined":
            engine = self._started()
            writer = ModelWriter(recipe=self._work.recipe, engine=engine)
            concurrency = settings.engine.concurrency or engine.default_concurrency
        documents = self._work.reader.read(part.entry, split=self._work.run.split)
        work = synthesize(
            part.entry.id,
            list(itertools.islice(documents, part.documents)),
            self._work.recipe,
            writer,
            concurrency=concurrency,
            report=progress.tokens,
        )
        return self._runner.run(_unless(work, give_up))

    def _started(self) -> Engine:
        if self._engine is None:
            run, folder = self._work.run, self._folder
            if folder is None:
                self.check()
                folder = self._folder
            assert folder is not None
            engine = open_engine(
                run.settings.engine.name,
                folder,
                run.settings.engine,
                run.settings.sampling,
                parallelism=self._work.parallelism,
            )
            self._runner.run(_enter(engine))
            self._engine = engine
        return self._engine

    def drop(self) -> None:
        """Close the engine; the next micro-shard starts it again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            self._runner.run(_close(engine))


async def _enter(engine: Engine) -> None:
    await engine.__aenter__()


async def _close(engine: Engine) -> None:
    await engine.close()


async def _unless(work: Coroutine[Any, Any, MicroShard], give_up: Callable[[], bool]) -> MicroShard:
    """Do the work, but look now and then whether it is still wanted."""
    task = asyncio.ensure_future(work)
    while True:
        done, _ = await asyncio.wait({task}, timeout=_LOOK_SECONDS)
        if done:
            return task.result()
        if give_up():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, EnvironmentNotReadyError):
                await task
            raise _AbandonedError


class _Report:
    """This worker's progress: the ledger's totals, its own counts and rates."""

    def __init__(self, ctx: WorkerContext, total: int) -> None:
        self._progress = ctx.progress
        self._begun = time.monotonic()
        self._reported = self._begun
        self._counts: Counter[str] = Counter()
        self._progress.update(done=0, total=total, unit="shards")

    def shards(self, done: int) -> None:
        """So many micro-shards are committed."""
        self._progress.update(done=done)

    def commit(self, done: int, counts: Mapping[str, int]) -> None:
        """A micro-shard was made; ``counts`` are empty where another worker's commit was first."""
        self._counts.update(counts)
        self._progress.update(done=done, counts={name: self._counts[name] for name in _COUNTS})
        self._rate(0)

    def tokens(self, counts: Counter[str]) -> None:
        """Counts of the micro-shard under way."""
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            self._progress.update(counts={"pairs": self._counts["pairs"] + counts["pairs"]})
            self._rate(counts["completion_tokens"])

    def _rate(self, tokens: int) -> None:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        self._progress.update(
            rates={
                "tokens_per_second": (self._counts["completion_tokens"] + tokens) / seconds,
                "documents_per_second": self._counts["documents"] / seconds,
            }
        )
