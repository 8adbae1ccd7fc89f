"""Reads what the stages of a run left, for the report. A stage that left nothing is noted and passed over."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from instructpt.api.runspec import ReportRun, StageOutput
from instructpt.corpus.augmented import ChainRow
from instructpt.corpus.manifest import Manifest, load_manifest
from instructpt.errors import NotFoundError
from instructpt.evaluation.finish import PREDICTIONS, SCORES
from instructpt.evaluation.pair_quality import PairQuality
from instructpt.storage import Store, open_store
from instructpt.telemetry.context import WorkerContext

logger = logging.getLogger(__name__)

CONFIG = "config.json"
LOSSES = "metrics.jsonl"
THROUGHPUT = "throughput.jsonl"
# Of a corpus of millions, enough to judge it by; said in the report when it is not all.
MAX_CHAINS = 20_000
MAX_EXAMPLE_CHARACTERS = 3500
MAX_QUESTIONS_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStage:
    """One finished stage.

    Attributes:
        stage: What the RunSpec says of it.
        manifest: Its manifest.
        losses: Of training: rows of ``metrics.jsonl``, in order.
        throughput: Of training: rows of ``throughput.jsonl``.
        config: Of training: the model's ``config.json``.
        scores: Of evaluation: ``scores.json``.
        predictions: Of evaluation: the first rows of ``predictions.jsonl``.
        quality: Of synthesis: the pair-quality figures.
        example: Of synthesis: one chain with its pairs.
    """

    stage: StageOutput
    manifest: Manifest
    losses: tuple[Mapping[str, Any], ...] = ()
    throughput: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] | None = None
    predictions: tuple[Mapping[str, Any], ...] = ()
    quality: Mapping[str, Any] | None = None
    example: ChainRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All finished stages in order, and the steps that left no manifest."""

    stages: tuple[FoundStage, ...]
    absent: tuple[str, ...] = field(default=())


def collect(section: ReportRun, ctx: WorkerContext) -> Found:
    """Read every stage.

    Raises:
        ConfigError: A manifest is not the one that the RunSpec names.
        CorpusError: An augmented corpus is damaged.
    """
    stages: list[FoundStage] = []
    absent: list[str] = []
    for number, stage in enumerate(section.stages):
        store = open_store(stage.uri, access=stage)
        try:
            manifest = load_manifest(store, digest=stage.digest)
        except NotFoundError:
            logger.warning("stage left no manifest", extra={"step": stage.step})
            absent.append(stage.step)
            continue
        stages.append(_read(stage, store, manifest, ctx))
        ctx.progress.update(done=number + 1, total=len(section.stages), unit="stages")
    return Found(stages=tuple(stages), absent=tuple(absent))


def _read(stage: StageOutput, store: Store, manifest: Manifest, ctx: WorkerContext) -> FoundStage:
    if stage.kind == "train":
        return FoundStage(
            stage=stage, manifest=manifest, losses=_lines(store, LOSSES), throughput=_lines(store, THROUGHPUT),
            config=orjson.loads(store.get(CONFIG)) if store.exists(CONFIG) else None,
        )  # fmt: skip
    if stage.kind == "evaluate":
        scores = orjson.loads(store.get(SCORES)) if store.exists(SCORES) else None
        return FoundStage(
            stage=stage, manifest=manifest, scores=scores,
            predictions=_lines(store, PREDICTIONS)[:MAX_QUESTIONS_SHOWN],
        )  # fmt: skip
    if stage.kind == "synthesize":
        quality, example = _read_chains(stage, ctx)
        return FoundStage(stage=stage, manifest=manifest, quality=quality, example=example)
    return FoundStage(stage=stage, manifest=manifest)


def _read_chains(stage: StageOutput, ctx: WorkerContext) -> tuple[dict[str, Any], ChainRow | None]:
    from instructpt.corpus.shards import iter_augmented

    rows: Iterator[ChainRow] = iter_augmented(stage, scratch=ctx.scratch)
    quality = PairQuality()
    example: ChainRow | None = None
    for row in rows:
        if quality.chains == MAX_CHAINS:
            break
        quality.add(row)
        if _worth(row) > _worth(example):
            example = row
    return quality.summary() | {"only_first_chains": MAX_CHAINS if quality.chains == MAX_CHAINS else None}, example


def _worth(row: ChainRow | None) -> tuple[bool, bool, int]:
    """How well a chain serves as the example: short enough to read, every document with pairs, several of them."""
    if row is None:
        return (False, False, 0)
    pairs = [len(shot.pairs) for shot in row.shots]
    return (len(row.text) <= MAX_EXAMPLE_CHARACTERS, bool(pairs) and min(pairs) > 0, min(sum(pairs), 6))


def _lines(store: Store, key: str) -> tuple[Mapping[str, Any], ...]:
    if not store.exists(key):
        return ()
    return tuple(orjson.loads(line) for line in store.get(key).splitlines() if line.strip())
