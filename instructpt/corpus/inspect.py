"""The stage ``inspect``: one pass over a corpus cuts micro-shards, counts them and sets bad records aside.

Below the output: ``objects/`` (results of finished objects: a rerun skips them), ``raw/`` (copies of what cannot be
entered in the middle), ``dead-letters/`` (``where``, ``reason`` and ``detail`` of every record that is no document)
and, last and by :func:`finalize` alone, ``manifest.json``. Several workers take turns over the objects.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import orjson

from instructpt.api.runspec import InspectRun, RunSpec, StageResult, canonical_json
from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.corpus import builtin
from instructpt.corpus.contamination import EvaluationNgrams, evaluation_ngrams
from instructpt.corpus.delimited import pieces
from instructpt.corpus.filtered import Filtered, filter_corpus
from instructpt.corpus.manifest import MANIFEST, SOURCE, Manifest, ShardEntry, load_manifest, publish_manifest
from instructpt.corpus.readers import groups_of, read_object
from instructpt.corpus.records import ReadOptions
from instructpt.corpus.screening import Screen
from instructpt.corpus.sources import Source, SourceObject, resolve_source
from instructpt.corpus.streams import decompressed, readable_object
from instructpt.corpus.tokens import load_counter
from instructpt.corpus.units import (
    DEAD_LETTERS_PREFIX,
    OBJECTS_PREFIX,
    Inspection,
    Stopped,
    Unit,
    UnitResult,
    bundle,
    inspect_unit,
)
from instructpt.corpus.verdict import check_unique_ids, judge, watch_hopeless
from instructpt.errors import ConfigError
from instructpt.storage import open_store
from instructpt.storage.base import Store
from instructpt.telemetry.context import WorkerContext

_DOCUMENT_CAP = 1_000_000
_FIELD = "spec.corpus"


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One corpus to inspect, resolved."""

    section: InspectRun
    output: Store
    source: Source
    settings: dict[str, Any]
    code_version: str
    evaluation: EvaluationNgrams | None

    @property
    def options(self) -> ReadOptions:
        return options_of(self.section)

    @property
    def plan_key(self) -> str:
        """Where the number of documents in a micro-shard stands once it has been counted."""
        what = {"objects": [[o.uri, o.etag, o.size] for o in self.source.objects], **self.settings}
        digest = hashlib.sha256(canonical_json(what).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f"{OBJECTS_PREFIX}plan-{digest}.json"

    def units(self, target: int) -> list[tuple[Unit, str]]:
        """Units and the keys of their results."""
        decides = {**self.settings, "target": target, "code_version": self.code_version}
        if self.source.store is None:
            decides["builtin"] = builtin.identity()
        if self.evaluation is not None:
            decides["evaluation"] = self.evaluation.digest
        whole = self.section.source.separator is None
        return [(u, u.key(decides)) for u in bundle(self.source.objects, whole_files=whole, target=target)]


def options_of(section: InspectRun) -> ReadOptions:
    """How the records of a corpus are read."""
    source = section.source
    return ReadOptions(
        text_field=source.text_field,
        id_field=source.id_field,
        separator=source.separator,
        max_document_bytes=source.max_document_bytes,
    )


def settings_of(section: InspectRun) -> dict[str, Any]:
    """What decides the content of a corpus beside its objects, as it stands in the manifest."""
    split = {"tune": section.split.tune, "train": section.split.train, "heldOut": section.split.held_out}
    settings = {
        "source": {**options_of(section).to_settings(), "format": section.source.format},
        "split": split,
        "documents_per_shard": section.documents_per_shard,
        "shards": section.shards,
        "tokenizer": section.tokenizer,
        "filters": _filter_settings(section),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _filter_settings(section: InspectRun) -> dict[str, Any] | None:
    """What filters leave out, without how evaluation sets are reached."""
    if section.filters is None:
        return None
    wire = section.filters.to_wire()
    for one in wire.get("decontaminate", {}).get("sets", ()):
        for name in ("endpoint", "region", "secretRef"):
            one.pop(name, None)
    return wire


def _section(spec: RunSpec) -> InspectRun:
    if spec.inspect is None:
        raise ConfigError("the RunSpec has no section inspect", field="inspect", fix="plan the run again")
    return spec.inspect


def _prepare(spec: RunSpec) -> _Job:
    section = _section(spec)
    output = open_store(spec.output.uri, access=spec.output)
    wanted = section.filters.decontaminate if section.filters else None
    where = f"{_FIELD}.filters.decontaminate"
    return _Job(
        section=section,
        output=output,
        evaluation=None if wanted is None else evaluation_ngrams(wanted, output, field=where),
        source=resolve_source(section.source),
        settings=settings_of(section),
        code_version=spec.code_version,
    )


def run(spec: RunSpec, ctx: WorkerContext) -> None:
    """Inspect this worker's objects that have no result yet.

    Raises:
        ConfigError: Nothing is at the URI, or the objects lack a field that the spec names.
        CorpusError: An object is damaged, or (with one worker) the corpus cannot be used as it is.
    """
    if _finished(spec) is not None:
        return
    job = _prepare(spec)
    target = _plan(job)
    units = job.units(target)
    inspector = _Inspector(job, target, ctx, sum(unit.size for unit, _ in units))
    for unit, key in units:
        if unit.index % ctx.replicas != ctx.replica:
            continue
        try:
            inspector.take(unit, key)
        except Stopped:
            return
    if ctx.replicas == 1:
        judge(_results(job.output, units)[0], job.section.source, job.output)


class _Inspector:
    """Inspects units one after the other and reports how far it is."""

    def __init__(self, job: _Job, target: int, ctx: WorkerContext, size: int) -> None:
        ctx.scratch.mkdir(parents=True, exist_ok=True)
        self._progress = ctx.progress
        self._job = job
        self._bytes = 0
        self._done = 0
        self._size = size
        self._counts: Counter[str] = Counter()
        section = job.section
        name = section.tokenizer
        self._work = Inspection(
            source=job.source.store,
            output=job.output,
            scratch=ctx.scratch,
            options=job.options,
            target=target,
            split=section.split,
            counter=None if name is None else load_counter(name, access=section.source),
            screen=None if section.filters is None else Screen(section.filters, job.evaluation),
            stop=ctx.stop,
            seen=self._seen,
            watch=functools.partial(watch_hopeless, source=section.source),
        )

    def take(self, unit: Unit, key: str) -> None:
        """One unit, unless its result is there.

        Raises:
            Stopped: The worker was asked to leave.
        """
        if self._work.stop.is_set():
            raise Stopped
        result = load_result(self._job.output, key) or inspect_unit(unit, key, self._work)
        self._done += unit.size
        self._bytes = 0
        self._counts.update(result.counts)
        self._counts.update({f"filtered-{reason}": number for reason, number in result.dropped.items()})
        self._report(counts=True)

    def _seen(self, size: int) -> None:
        self._bytes += size
        self._report()

    def _report(self, *, counts: bool = False) -> None:
        self._progress.update(
            done=self._done + self._bytes,
            total=self._size,
            unit="bytes",
            counts={n: c for n, c in self._counts.items() if _is_told(n)} if counts else None,
        )


def _is_told(name: str) -> bool:
    """Whether a count stands in the live progress: duplicates are known only when all is inspected."""
    return name in ("documents", "invalid", "tokens") or name.startswith("filtered-")


def load_result(output: Store, key: str) -> UnitResult | None:
    """The result of a finished unit."""
    name = f"{OBJECTS_PREFIX}{key}.json"
    return UnitResult.from_bytes(output.get(name)) if output.exists(name) else None


def _results(output: Store, units: list[tuple[Unit, str]]) -> tuple[list[UnitResult], int]:
    """Results in order, and how many are missing."""
    found = [load_result(output, key) for _, key in units]
    results = [result for result in found if result is not None]
    return results, len(found) - len(results)


def _plan(job: _Job) -> int:
    """Documents in a micro-shard. A target number of micro-shards needs the corpus counted first; that is kept."""
    if job.section.shards is None:
        return job.section.documents_per_shard
    known = _planned(job)
    if known is not None:
        return known
    records = sum(_count_records(job, source) for source in job.source.objects)
    target = min(_DOCUMENT_CAP, max(1, -(-records // job.section.shards)))
    job.output.put(job.plan_key, orjson.dumps({"documents_per_shard": target}))
    return target


def _planned(job: _Job) -> int | None:
    if job.section.shards is None:
        return job.section.documents_per_shard
    if not job.output.exists(job.plan_key):
        return None
    return int(orjson.loads(job.output.get(job.plan_key))["documents_per_shard"])


def _count_records(job: _Job, source: SourceObject) -> int:
    """Records of an object, unread where its format allows: lines are counted, Parquet has a footer."""
    store, options = job.source.store, job.options
    if store is None:
        return sum(1 for _ in builtin.documents())
    if source.format == "text" and options.separator is None:
        return 1
    if source.format == "parquet":
        groups = groups_of(store, source, options)
        return sum(groups.rows) if groups is not None else 0
    if source.format == "arrow":
        return sum(1 for _ in read_object(store, source, options))
    delimiter = b"\n" if source.format == "jsonl" else (options.separator or "\n").encode("utf-8")
    with readable_object(source.uri), store.open(source.key) as raw:
        found = pieces(decompressed(raw, source.compression), delimiter, options.max_record_bytes)
        return sum(1 for _, _, piece in found if piece is None or (piece and not piece.isspace()))


def _finished(spec: RunSpec) -> Manifest | None:
    """The manifest, if it is there and was made from this spec; one of another spec is made again."""
    output = open_store(spec.output.uri, access=spec.output)
    if not output.exists(MANIFEST) or not output.exists(SOURCE):
        return None
    if orjson.loads(output.get(SOURCE)).get("work_key") != spec.work_key():
        logger.warning("the corpus below %s was inspected with another spec and is made again", output.uri)
        return None
    return load_manifest(output)


def finalize(spec: RunSpec, ctx: WorkerContext) -> StageResult:
    """Number the micro-shards, check the whole corpus and write its manifest.

    Returns:
        URI, digest and counts; ``missing`` counts objects without a result, and then no manifest is written.

    Raises:
        ConfigError: Most records lack a field, or two documents have one id.
        CorpusError: Too many unreadable records, or no documents.
    """
    done = _finished(spec)
    if done is not None:
        return _stage_result(spec, done)
    job = _prepare(spec)
    target = _planned(job)
    if target is None:
        return StageResult(uri=spec.output.uri, digest="", missing=max(1, len(job.source.objects)))
    units = job.units(target)
    results, missing = _results(job.output, units)
    if missing:
        return StageResult(uri=spec.output.uri, digest="", missing=missing)
    judge(results, job.section.source, job.output)
    check_unique_ids(results, [key for _, key in units], job.section.source, job.output)
    _drop_stale_letters(job.output, {unit.index for (unit, _), r in zip(units, results, strict=True) if r.examples})
    keys = [key for _, key in units]
    filtered = _filtered(job, results, keys, ctx) if job.section.filters is not None else None
    etags = {uri: etag for result in results for uri, etag in result.etags.items()}
    # A manifest of another spec goes first: no moment shows it beside this spec's source.
    job.output.delete(MANIFEST)
    where = {"access": _access(job.section.source), "etags": etags, "work_key": spec.work_key()}
    job.output.put(SOURCE, orjson.dumps(where, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))
    if filtered is not None:
        job.output.put(filtered.key, filtered.verdicts)
    manifest = _manifest(job, results, filtered)
    publish_manifest(job.output, manifest)
    return _stage_result(spec, manifest)


def _filtered(job: _Job, results: list[UnitResult], keys: list[str], ctx: WorkerContext) -> Filtered:
    assert job.section.filters is not None
    return filter_corpus(
        [entry for result in results for entry in result.entries],
        [functools.partial(job.output.open, f"{OBJECTS_PREFIX}{key}.rows") for key in keys],
        job.section.filters,
        estimated=job.section.tokenizer is None,
        scratch=ctx.scratch,
    )


def _manifest(job: _Job, results: list[UnitResult], filtered: Filtered | None) -> Manifest:
    found = filtered.entries if filtered else [entry for result in results for entry in result.entries]
    shards = tuple(replace(entry, id=f"{number:06d}") for number, entry in enumerate(found))
    counts: Counter[str] = Counter()
    for entry in shards:
        counts.update(entry.counts)
    extra: dict[str, Any] = {
        "objects": len(job.source.objects),
        "skipped_objects": len(job.source.skipped),
        "skipped_examples": list(job.source.skipped[:10]),
        "tokens_estimated": job.section.tokenizer is None,
    }
    if any(_in_source(entry) for entry in shards):
        extra["root"] = job.source.root
    if filtered is not None:
        extra["filters"] = filtered.extra()
    if job.evaluation is not None:
        extra["evaluation"] = job.evaluation.to_manifest()
    return Manifest(
        format_version=2 if filtered is not None else 1,
        kind="corpus",
        code_version=job.code_version,
        settings=job.settings,
        counts=dict(counts),
        shards=shards,
        extra=extra,
    )


def _access(source: CorpusSource) -> dict[str, Any]:
    """How readers reach the source: names of credentials, never the credentials."""
    return {name: value for name, value in source.to_wire().items() if name in ("endpoint", "region", "secretRef")}


def _in_source(entry: ShardEntry) -> bool:
    return entry.span is not None and entry.sha256 is None


def _drop_stale_letters(output: Store, wanted: set[int]) -> None:
    """Dead letters of an earlier run over other objects would be counted nowhere."""
    names = {f"{DEAD_LETTERS_PREFIX}{index:06d}.jsonl" for index in wanted}
    for info in list(output.list(DEAD_LETTERS_PREFIX)):
        if info.key not in names:
            output.delete(info.key)


def _stage_result(spec: RunSpec, manifest: Manifest) -> StageResult:
    counts = {**manifest.counts, "shards": len(manifest.shards), "objects": int(manifest.extra["objects"])}
    return StageResult(uri=spec.output.uri, digest=manifest.digest, counts=counts)
