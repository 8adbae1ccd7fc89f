"""The stages ``tokenizer`` and ``pack``: text -> a tokenizer, and text -> packed token shards (protocols.md 6).

``pack`` is one task per micro-shard of the source, leased through the ledger by any number of workers. Every token that
comes out of the tokenizer stands in exactly one row; that is checked on every shard. The fast tokenizer does the work
where it is proved to give the ids of the Hugging Face tokenizer (``fastencoder``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructpt.api.runspec import PackRun, RunSpec, StageResult, TokenizerRun
from instructpt.corpus.ledger import CommitRecord, Ledger
from instructpt.corpus.manifest import MANIFEST, FileEntry, Manifest, ShardEntry, load_manifest, publish_manifest
from instructpt.errors import ConfigError, StorageError, TrainingError
from instructpt.storage import Store, open_store
from instructpt.synthesis import profiles
from instructpt.telemetry.context import WorkerContext
from instructpt.training import encodings
from instructpt.training.encoder import TextEncoder
from instructpt.training.encodings import Choice, Encodings
from instructpt.training.files import TokenizerFolder, file_entries, tokenizer_folder
from instructpt.training.outputs import clear, is_whole, result_key
from instructpt.training.sources import Source, SourceShard, resolve
from instructpt.training.taskcollection import Fitting
from instructpt.training.tokenizer import SPECIAL_TOKENS, train_tokenizer
from instructpt.training.tokenizing import Differs, Tokenizing
from instructpt.training.tokenshards import EXTENSION, counts_of, pack_items, token_type, write_shard

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0


def run(spec: RunSpec, ctx: WorkerContext) -> None:
    """Train the tokenizer, or pack micro-shards until every one is committed.

    Raises:
        ConfigError: A source, the tokenizer or their combination is wrong; nothing was written.
        CorpusError: The source is damaged.
        StorageError: The storage failed.
    """
    output = open_store(spec.output.uri, access=spec.output)
    if finished(spec, output) is not None:
        return
    if spec.tokenizer is not None:
        _run_tokenizer(spec, output, ctx)
    else:
        _run_pack(spec, output, ctx)


def finalize(spec: RunSpec, ctx: WorkerContext) -> StageResult:
    """Write the manifest once everything is there; with the manifest there, repeat its result.

    Raises:
        TrainingError: The counts do not add up, or no token came out.
    """
    output = open_store(spec.output.uri, access=spec.output)
    manifest = finished(spec, output)
    if manifest is None:
        objects: dict[str, str] | None = None
        ledger: Ledger | None = None
        if spec.tokenizer is not None:
            made, missing = _tokenizer_manifest(spec, output)
        else:
            made, missing, objects, ledger = _pack_manifest(spec, output, ctx)
        if made is None:
            return StageResult(uri=spec.output.uri, digest="", missing=missing)
        if output.exists(MANIFEST):
            output.delete(MANIFEST)  # of other work; no reader may see it beside the new objects
        publish_manifest(output, made, objects=objects)
        if ledger is not None:
            ledger.sweep()
        manifest = made
    scores = {"fill": float(manifest.extra["fill"])} if "fill" in manifest.extra else {}
    how = Encodings.load(output) if spec.pack is not None else None
    counts = {**manifest.counts, **(how.counts() if how is not None else {})}
    return StageResult(uri=spec.output.uri, digest=manifest.digest, counts=counts, scores=scores)


def finished(spec: RunSpec, output: Store) -> Manifest | None:
    """The manifest, if it is that of this very work."""
    if not output.exists(MANIFEST):
        return None
    manifest = load_manifest(output)
    return manifest if manifest.extra.get("work_key") == spec.work_key() else None


def _prefix(spec: RunSpec) -> str:
    return f"work/{spec.work_key()}"


# ---------------------------------------------------------------- tokenizer


def _run_tokenizer(spec: RunSpec, output: Store, ctx: WorkerContext) -> None:
    section = spec.tokenizer
    assert section is not None
    if is_whole(output, spec.work_key()):
        return
    source = resolve(section.source)
    folder = ctx.scratch / "tokenizer"
    texts = (part for shard in source.shards for text in source.texts(shard, ctx.scratch) for part, _ in text.parts)
    trained = train_tokenizer(_counted(texts, ctx), folder, vocab_size=section.vocab_size, tags=_tags(section))
    if trained.vocab_size < section.vocab_size:
        log.info("tokenizer: %d entries of %d, the text has no more merges", trained.vocab_size, section.vocab_size)
    files = file_entries(folder)
    clear(output, keep={file.path for file in files})
    for file in files:
        output.put_file(file.path, folder / file.path)
    record = {
        "files": [[f.path, f.bytes, f.sha256] for f in files],
        "counts": {"vocab_size": trained.vocab_size, "documents": trained.documents, "bytes": trained.text_bytes},
        "capped": trained.capped,
        "source": source.digest,
    }
    output.put(result_key(spec.work_key()), json.dumps(record, sort_keys=True).encode())


def _counted(texts: Iterator[str], ctx: WorkerContext) -> Iterator[str]:
    for number, text in enumerate(texts, start=1):
        if number % 1000 == 0:
            ctx.progress.update(done=number, unit="documents")
        yield text


def _tokenizer_manifest(spec: RunSpec, output: Store) -> tuple[Manifest | None, int]:
    section = spec.tokenizer
    assert section is not None
    key = result_key(spec.work_key())
    if output.exists(MANIFEST) or not output.exists(key):
        return None, 1  # a manifest is that of another tokenizer, whose files lie here
    record = json.loads(output.get(key))
    return Manifest(
        kind="tokenizer",
        code_version=spec.code_version,
        inputs={section.source.name: record["source"]},
        settings={
            "vocab_size": section.vocab_size,
            "tags": list(_tags(section)),
            "source": _source_settings(section.source.to_wire()),
        },
        counts=record["counts"],
        files=tuple(FileEntry(path=p, bytes=b, sha256=s) for p, b, s in record["files"]),
        extra={"work_key": spec.work_key(), "capped": record["capped"]},
    ), 0


def _source_settings(wire: dict[str, Any]) -> dict[str, Any]:
    """What of a source decides content: not where it lies or how it is reached."""
    return {k: v for k, v in wire.items() if k not in ("uri", "digest", "endpoint", "region", "secretRef", "name")}


# --------------------------------------------------------------------- pack


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pack:
    """One source to pack, resolved."""

    section: PackRun
    source: Source
    encoder: TextEncoder
    tokenizer: TokenizerFolder
    prefix: str
    output: Store
    parallel: bool

    @property
    def dtype(self) -> str:
        return token_type(self.encoder.vocab_size)

    def ledger(self, worker_id: str) -> Ledger:
        return Ledger(
            self.output,
            self.prefix,
            worker_id=worker_id,
            lease_seconds=LEASE_SECONDS,
            shards=[shard.id for shard in self.source.shards],
            parallel=self.parallel,
        )


def _resolve_pack(spec: RunSpec, output: Store, ctx: WorkerContext) -> _Pack:
    section = spec.pack
    if section is None:
        raise ConfigError("the RunSpec has neither section tokenizer nor pack", field="pack", fix="plan the run again")
    source = resolve(section.source, section.objective, section.profile)
    tokenizer = tokenizer_folder(section.tokenizer, ctx.scratch / "models")
    encoder = TextEncoder(tokenizer.folder)
    if section.objective == "SynthesizerTuning":
        missing = profiles.load(section.profile).missing_strings(encoder.vocabulary)
        if missing:
            raise ConfigError(
                f"the tokenizer has no token {' and no token '.join(missing)}, which profile {section.profile} needs",
                field="tokenizer",
                value=section.tokenizer.uri,
                fix="train one (tokenizer.train), or take a model's that has them",
            )
    return _Pack(
        section=section,
        source=source,
        encoder=encoder,
        tokenizer=tokenizer,
        prefix=_prefix(spec),
        output=output,
        parallel=max(spec.parallelism, ctx.replicas) > 1,
    )


def _run_pack(spec: RunSpec, output: Store, ctx: WorkerContext) -> None:
    job = _resolve_pack(spec, output, ctx)
    shards = {shard.id: shard for shard in job.source.shards}
    ledger = job.ledger(ctx.worker_id)
    ctx.scratch.mkdir(parents=True, exist_ok=True)
    ctx.progress.update(done=ledger.num_committed, total=len(shards), unit="shards")
    choice = encodings.choose(job.encoder, marked=job.section.objective == "SynthesizerTuning")
    records: list[dict[str, Any]] = []
    for claim in ledger.claims(wait=ctx.stop.wait):
        path = ctx.scratch / f"{claim.shard}-{claim.epoch}.{EXTENSION}"
        try:
            with ledger.renewing(claim):
                began = time.monotonic()
                record = _pack_shard(job, shards[claim.shard], path, ctx.scratch, choice)
                seconds = max(1e-6, time.monotonic() - began)
            ledger.commit(claim, path, record, extension=EXTENSION)
        except BaseException:
            with contextlib.suppress(StorageError):
                ledger.release(claim)
            raise
        finally:
            path.unlink(missing_ok=True)
        records.append({name: record[name] for name in ("counts", "encoding")})
        ctx.progress.update(
            done=ledger.num_committed,
            total=len(shards),
            unit="shards",
            rates={"tokens_per_second": record["counts"]["tokens"] / seconds},
            counts=Encodings.total(records).counts(),
        )
        if ctx.stop.is_set():
            return
    ctx.progress.update(done=ledger.num_committed, total=len(shards), unit="shards")


def _pack_shard(job: _Pack, shard: SourceShard, path: Path, scratch: Path, choice: Choice) -> dict[str, Any]:
    length = job.section.sequence_length
    while True:
        tokenizing = Tokenizing(job.encoder, length, fast=choice.fast, seed=shard.id)
        fit = Fitting(size=job.encoder.sizes, length=length, counts=tokenizing.counts)
        try:
            items = list(tokenizing.items(job.source.texts(shard, scratch, fit)))
            break
        except Differs as error:
            choice.give_up(error, shard.id)
    arrays, cut = pack_items(items, length, dtype=job.dtype, seed=shard.id)
    write_shard(path, arrays, sequence_length=length)
    return {
        "counts": {**tokenizing.counts, **counts_of(arrays, length), **cut},
        "texts": tokenizing.digest.hexdigest(),
        "tokenizer": job.tokenizer.content,
        "encoding": encodings.record_of(choice, tokenizing.counts["items"], tokenizing.sampled),
    }


def _pack_manifest(
    spec: RunSpec, output: Store, ctx: WorkerContext
) -> tuple[Manifest | None, int, dict[str, str] | None, Ledger]:
    job = _resolve_pack(spec, output, ctx)
    ledger = job.ledger(ctx.worker_id)
    commits = ledger.committed()
    missing = len(job.source.shards) - len(commits)
    if missing:
        return None, missing, None, ledger
    totals: Counter[str] = Counter()
    entries = []
    for shard in job.source.shards:
        commit = commits[shard.id]
        counts = {str(k): int(v) for k, v in commit.record["counts"].items()}
        totals.update(counts)
        entries.append(ShardEntry(id=shard.id, counts=counts, bytes=commit.bytes, sha256=commit.sha256))
    _check(job, totals, commits)
    length = job.section.sequence_length
    tuning = job.section.objective == "SynthesizerTuning"
    Encodings.total(commit.record for commit in commits.values()).publish(output)
    manifest = Manifest(
        kind="tokens",
        code_version=spec.code_version,
        inputs={"source": _input_digest(job, commits), "tokenizer": job.tokenizer.digest},
        settings={
            "objective": job.section.objective,
            "sequence_length": length,
            "profile": profiles.load(job.section.profile).digest if tuning else None,
            "source": _source_settings(job.section.source.to_wire()),
            "tokenizer": job.tokenizer.content,
            "dtype": job.dtype,
            "vocab_size": job.encoder.vocab_size,
        },
        counts=dict(sorted(totals.items())),
        shards=tuple(entries),
        extra={"work_key": spec.work_key(), "fill": round(totals["tokens"] / (totals["rows"] * length), 6)},
    )
    return manifest, 0, {shard: commit.object for shard, commit in commits.items()}, ledger


def _check(job: _Pack, totals: Counter[str], commits: dict[str, CommitRecord]) -> None:
    if not totals["tokens"] or not totals["loss_tokens"]:
        raise TrainingError(
            f"source {job.section.source.name!r} gave {totals['tokens']} tokens, {totals['loss_tokens']} with a loss, "
            f"from {totals['items']} texts ({totals['without_targets']} more had nothing to learn)",
            fix="look at the source: it holds no text for this objective",
        )
    if totals["tokens"] + totals["padding"] != totals["rows"] * job.section.sequence_length:
        raise TrainingError("the counts of the token shards do not add up", fix="report it with the manifest")
    tokenizers = {commit.record["tokenizer"] for commit in commits.values()}
    if tokenizers != {job.tokenizer.content}:
        raise TrainingError(
            f"shards were made with different tokenizers ({', '.join(sorted(map(str, tokenizers)))}), the run's is "
            f"{job.tokenizer.content}: the tokenizer was replaced during the run",
            fix="remove the output and pack again",
        )


def _input_digest(job: _Pack, commits: dict[str, CommitRecord]) -> str:
    """That of the source's manifest; for files, of their texts."""
    if job.source.manifest is not None or job.section.source.digest is not None:
        return job.source.digest
    texts = "".join(f"{shard.id} {commits[shard.id].record['texts']}\n" for shard in job.source.shards)
    return "sha256:" + hashlib.sha256(texts.encode()).hexdigest()


def _tags(section: TokenizerRun) -> tuple[str, ...]:
    """Strings of the profile that get a token each; BOS and EOS have theirs already."""
    if section.profile is None:
        return ()
    return tuple(tag for tag in profiles.load(section.profile).forbidden_tags if tag not in SPECIAL_TOKENS)
