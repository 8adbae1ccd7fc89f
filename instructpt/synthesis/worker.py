"""The worker of the stage ``synthesize``: leases micro-shards until none is left (protocols.md 3).

A long-lived process: one engine, and documents of several micro-shards on it at a time. Nothing of a micro-shard is
kept before it is whole: a killed worker loses those under way, and whoever takes them over makes them again from
their first document.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from instructpt.api.runspec import RunSpec
from instructpt.corpus.ledger import Ledger
from instructpt.errors import ConfigError
from instructpt.storage import open_store
from instructpt.storage.models import fetch_model, model_digest
from instructpt.synthesis import work as stage
from instructpt.synthesis.engine import Engine, load_libraries, open_engine
from instructpt.synthesis.engine import registry as engines
from instructpt.synthesis.finalize import finalize
from instructpt.synthesis.fruitless import FruitlessGuard
from instructpt.synthesis.judge import ServerJudge
from instructpt.synthesis.judges import PairJudge
from instructpt.synthesis.likelihood import LikelihoodJudge
from instructpt.synthesis.report import Report
from instructpt.synthesis.shardsource import LedgerShards
from instructpt.synthesis.stream import Room, Stream
from instructpt.synthesis.supervisor import SupervisedEngine
from instructpt.synthesis.tokenization import (
    check_context,
    check_room,
    check_tokenizer,
    check_tuned_for,
    load_tokenizer,
)
from instructpt.synthesis.work import Work
from instructpt.synthesis.writers import ModelWriter, Outcome, RuleWriter
from instructpt.telemetry.context import WorkerContext

__all__ = ["finalize", "run"]

log = logging.getLogger(__name__)

MODEL_CACHE = "INSTRUCTPT_MODEL_CACHE"
"""Folder for models from a store, shared by the workers of a node; by default each worker has its own."""

_LOOK_SECONDS = 0.1


def run(spec: RunSpec, ctx: WorkerContext) -> None:
    """Synthesize micro-shards until every one is committed, or the rest is leased by others for too long.

    Raises:
        ConfigError: A name, the model, its tokenizer or the corpus is wrong; nothing was written.
        EnvironmentNotReadyError: The engine cannot start, or dies again and again.
        StorageError: The storage failed.
    """
    output = open_store(spec.output.uri, access=spec.output)
    if stage.finished(spec, output) is not None:
        return
    work = stage.resolve(spec, output)
    ledger = work.ledger(ctx.worker_id)
    report = Report(ctx.progress, len(work.parts))
    if not ledger.all_committed():
        _ = work.recipe.filter_settings  # a filter that nobody offers is refused here, not at the first pair
        if work.run.settings.engine.name != "mined":
            with ctx.loading():
                load_libraries(work.run.settings.engine.name)
        model = _model(work, ctx.scratch)
        _stamp(spec, work)
        asyncio.run(_until_stopped(work, ledger, model, report, ctx))
    report.shards(ledger.num_committed)


def _model(work: Work, scratch: Path) -> Path | None:
    """The model's folder, once all that the spec names was seen to be there and to fit: before anything is claimed.

    Raises:
        ConfigError: They do not fit.
    """
    run = work.run
    recipe = work.recipe
    if run.settings.engine.name == "mined":
        return None
    if run.model is None:
        raise ConfigError(
            f"strategy {run.strategy} needs a model", field="synthesizer.model", fix="name one, or use mined"
        )
    engines.get(run.settings.engine.name)
    cache = os.environ.get(MODEL_CACHE)
    folder = fetch_model(run.model, Path(cache) if cache else scratch / "models")
    check_context(folder, run.settings.sampling.context_window)
    tokenizer = load_tokenizer(folder)
    check_tuned_for(folder, run.profile, model=run.model.uri)
    check_tokenizer(recipe.profile, tokenizer, model=run.model.uri)
    check_room(work.recipe.profile, tokenizer, run.settings.sampling)
    return folder


def _stamp(spec: RunSpec, work: Work) -> None:
    """Leave the spec beside its work, for people; nothing reads it."""
    key = f"{work.prefix}/{stage.SPEC}"
    if not work.output.exists(key):
        work.output.put(key, spec.to_json().encode())


async def _until_stopped(work: Work, ledger: Ledger, model: Path | None, report: Report, ctx: WorkerContext) -> None:
    """Work, but look now and then whether it is still wanted."""
    task = asyncio.create_task(_work(work, ledger, model, report, ctx))
    try:
        while not ctx.stop.is_set():
            done, _ = await asyncio.wait({task}, timeout=_LOOK_SECONDS)
            if done:
                return task.result()
        log.info("told to stop: the micro-shards under way are given up")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return None


async def _work(work: Work, ledger: Ledger, model: Path | None, report: Report, ctx: WorkerContext) -> None:
    if model is None:
        async with _judge(work) as judges, _shards(work, ledger, None, report, ctx, None) as shards:
            lanes = work.run.settings.filters.judge.concurrency if work.run.settings.filters.judge else 1
            writer = RuleWriter(recipe=work.recipe, judges=judges)
            await Stream(shards, writer, lanes=lanes, observe=report.document).run()
        return

    def start() -> Engine:
        settings = work.run.settings
        return open_engine(
            settings.engine.name, model, settings.engine, settings.sampling, parallelism=work.parallelism
        )

    guard = FruitlessGuard(work.run.profile)

    def observe(outcome: Outcome) -> None:
        report.document(outcome)
        guard.document(outcome)

    async with (
        _judge(work) as judges,
        SupervisedEngine(start) as engine,
        _shards(work, ledger, model, report, ctx, engine) as shards,
    ):
        min_gain = work.run.settings.filters.min_likelihood_gain
        if min_gain is not None:
            judges = (LikelihoodJudge(engine, work.recipe.profile, min_gain), *judges)
        stream = Stream(
            shards,
            ModelWriter(recipe=work.recipe, engine=engine, judges=judges),
            lanes=work.run.settings.engine.concurrency or engine.default_concurrency,
            apart=engine.deterministic,
            # An answer at its longest, and a document about as long.
            room=Room(engine.cache_tokens, guess=2 * work.run.settings.sampling.max_tokens),
            observe=observe,
        )
        report.watch(lambda: {"chains_in_flight": stream.num_live, "engine_restarts": engine.restarts})
        await stream.run()


@contextlib.asynccontextmanager
async def _judge(work: Work) -> AsyncIterator[tuple[PairJudge, ...]]:
    """The judge on a server, where the spec names one."""
    spec = work.run.settings.filters.judge
    if spec is None:
        yield ()
        return
    async with ServerJudge(spec) as judge:
        yield (judge,)


@contextlib.asynccontextmanager
async def _shards(
    work: Work,
    ledger: Ledger,
    model: Path | None,
    report: Report,
    ctx: WorkerContext,
    engine: SupervisedEngine | None,
) -> AsyncIterator[LedgerShards]:
    async def drop_engine() -> None:
        if engine is not None:
            await engine.drop()

    digest = model_digest(model) if model is not None else None
    shards = LedgerShards(work, ledger, scratch=ctx.scratch, report=report, model=digest, on_idle=drop_engine)
    try:
        yield shards
    finally:
        await shards.close()
