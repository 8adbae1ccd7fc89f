"""The end of the stage ``synthesize``: from the ledger to a manifest whose counts add up; and requeueing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from instructpt.api.runspec import RunSpec, StageResult
from instructpt.corpus.contamination import PREFIX as EVALUATION_PREFIX
from instructpt.corpus.ledger import CommitRecord, Ledger
from instructpt.corpus.manifest import MANIFEST, Manifest, load_manifest, publish_manifest
from instructpt.errors import ConfigError, SynthesisError
from instructpt.storage import Store, open_store
from instructpt.synthesis import work as stage
from instructpt.synthesis.work import Work
from instructpt.telemetry.context import WorkerContext

_EXAMPLES = 3
_FILTERED = "filtered_"


def finalize(spec: RunSpec, ctx: WorkerContext) -> StageResult:
    """Write the manifest once every micro-shard is committed; with the manifest there, repeat its result.

    Returns:
        URI, digest, counts and rates; ``missing`` counts micro-shards without a commit, and then nothing is written.

    Raises:
        SynthesisError: The counts do not add up, every document failed, or a model wrote no pair at all.
        ConfigError: The corpus or a name in the spec is wrong.
    """
    output = open_store(spec.output.uri, access=spec.output)
    done = stage.finished(spec, output)
    if done is not None:
        return _result(spec, done)
    work = stage.resolve(spec, output)
    ledger = work.ledger(ctx.worker_id)
    commits = ledger.committed()
    missing = len(work.parts) - len(commits)
    if missing:
        return StageResult(uri=spec.output.uri, digest="", missing=missing)
    manifest = _manifest(work, commits)
    _check(work, manifest.counts, commits)
    if output.exists(MANIFEST):
        # Of other work. It goes first, so that no reader ever sees it beside the new objects.json.
        output.delete(MANIFEST)
    publish_manifest(output, manifest, objects={shard: commit.object for shard, commit in commits.items()})
    ledger.sweep()
    return _result(spec, manifest)


def _manifest(work: Work, commits: Mapping[str, CommitRecord]) -> Manifest:
    totals: Counter[str] = Counter({"documents": 0, "augmented": 0, "raw": 0, "dead_letters": 0, "pairs": 0})
    shards = []
    for part in work.parts:
        commit = commits[part.entry.id]
        counts = {str(name): int(number) for name, number in commit.record["counts"].items()}
        totals.update(counts)
        shards.append(stage.shard_entry(part.entry, counts=counts, sha256=commit.sha256, size=commit.bytes))
    inputs = {"corpus": work.corpus_digest}
    models = {commit.record.get("model") for commit in commits.values()} - {None}
    if len(models) > 1:
        raise SynthesisError(
            "micro-shards were made with different models: the model was replaced during the run",
            fix="name the model's digest, and synthesize into an empty storage",
        )
    if models:
        inputs["model"] = str(models.pop())
    extra: dict[str, Any] = {"work_key": work.key}
    if work.evaluation is not None:
        _check_one_evaluation(work)
        extra["evaluation"] = work.evaluation.to_manifest()
    return Manifest(
        kind="augmented",
        code_version=work.code_version,
        inputs=inputs,
        settings=work.settings(_recipe(work, commits)),
        counts=dict(sorted(totals.items())),
        shards=tuple(shards),
        extra=extra,
    )


def _recipe(work: Work, commits: Mapping[str, CommitRecord]) -> Mapping[str, str]:
    """The digests of profile and templates, as the workers had them."""
    found = {tuple(sorted(commit.record["recipe"].items())) for commit in commits.values() if "recipe" in commit.record}
    if len(found) > 1:
        raise SynthesisError(
            "micro-shards were made with different templates or profiles: they were replaced during the run",
            field="templates",
            value=work.run.settings.templates,
            fix="give every worker the same, and synthesize into an empty storage",
        )
    # Commits of earlier versions have none.
    return dict(found.pop()) if found else work.recipe.digests


def _check_one_evaluation(work: Work) -> None:
    found = [info.key for info in work.output.list(f"{work.prefix}/{EVALUATION_PREFIX}")]
    if len(found) > 1:
        raise SynthesisError(
            "micro-shards were made against different evaluation sets: a set was replaced during the run",
            field="filters.decontaminate",
            fix="synthesize into an empty storage",
        )


def _check(work: Work, counts: Mapping[str, int], commits: Mapping[str, CommitRecord]) -> None:
    """Refuse a result in which a document is lost, or that is worth nothing."""
    documents, verdicts = counts["documents"], counts["augmented"] + counts["raw"] + counts["dead_letters"]
    if not documents == verdicts == work.documents:
        raise SynthesisError(
            f"{work.documents} documents went in, {documents} came out with {verdicts} verdicts",
            fix="this is a fault of instructpt: please report it with the manifest of the corpus",
        )
    parsed, filtered = counts.get("parsed_pairs", 0), sum(n for name, n in counts.items() if name.startswith(_FILTERED))
    if parsed != counts["pairs"] + filtered:
        raise SynthesisError(
            f"{parsed} pairs were parsed, {counts['pairs']} were kept and {filtered} dropped by filters",
            fix="this is a fault of instructpt: please report it with the manifest of the corpus",
        )
    if counts["dead_letters"] == documents:
        raise SynthesisError(
            f"the engine failed on all of {documents} documents",
            fix="read the worker's log, repair the engine, then retry them with `instructpt requeue`",
        )
    converted = documents - counts.get("raw_not_converted", 0)
    if converted and counts.get("raw_too_long", 0) == converted:
        sampling = work.run.settings.sampling
        raise SynthesisError(
            f"all of {converted} documents are too long: {sampling.context_window} tokens less maxTokens "
            f"{sampling.max_tokens} leave {sampling.context_window - sampling.max_tokens} for a prompt",
            field="sampling.contextWindow",
            value=sampling.context_window,
            fix="raise it, lower sampling.maxTokens, or cut the documents shorter",
        )
    if parsed and not counts["pairs"]:
        reasons = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if name.startswith(_FILTERED))
        raise SynthesisError(
            f"the filters dropped all of {parsed} pairs: {reasons}",
            field="filters",
            fix="look at some with `instructpt run FILE --sample 20` and no filters, then set the bounds",
        )
    completions = counts.get("finish_stop", 0) + counts.get("finish_length", 0)
    if completions and not counts["pairs"]:
        found = [str(e) for c in commits.values() for e in c.record.get("examples", ())][:_EXAMPLES]
        shown = "; ".join(repr(example) for example in found)
        raise SynthesisError(
            f"no pair in {completions} completions (parse rate 0 %) under profile {work.run.profile}: {shown}",
            fix="use a model tuned for this profile, or the profile that the model was tuned for",
        )


def _result(spec: RunSpec, manifest: Manifest) -> StageResult:
    counts = manifest.counts
    completions = counts.get("finish_stop", 0) + counts.get("finish_length", 0)
    scores = {"pairs_per_document": counts["pairs"] / counts["documents"]}
    if completions:
        scores["parse_rate"] = counts["augmented"] / completions
    return StageResult(
        uri=spec.output.uri,
        digest=manifest.digest,
        counts={**counts, "shards": len(manifest.shards)},
        scores={name: round(value, 6) for name, value in scores.items()},
    )


def requeue(output: Store, work_key: str | None = None, reason: str | None = None) -> int:
    """Take back the commits of micro-shards that hold dead letters, so that the next run makes them again.

    Args:
        output: Root of the augmented corpus.
        work_key: Whose; that of the manifest, or the only one there is, when empty.
        reason: Only dead letters with this reason, such as ``engine-error``; empty takes all.

    Returns:
        How many micro-shards will be made again. The manifest is removed if there are any.

    Raises:
        ConfigError: No work is there, or there are several and none is named.
    """
    prefix = stage.prefix_of(work_key or _only_key(output))
    commits = f"{prefix}/commits/"
    shards = [info.key[len(commits) :] for info in output.list(commits)]
    ledger = Ledger(output, prefix, worker_id="requeue", lease_seconds=60, shards=shards, parallel=False)
    name = "dead_letters" if reason is None else f"dead_letters_{reason.replace('-', '_')}"
    found = {shard: int(commit.record.get("counts", {}).get(name, 0)) for shard, commit in ledger.committed().items()}
    again = [shard for shard, number in found.items() if number]
    if again:
        output.delete(MANIFEST)
    for shard in again:
        ledger.uncommit(shard)
    return len(again)


def _only_key(output: Store) -> str:
    if output.exists(MANIFEST):
        key = load_manifest(output).extra.get("work_key")
        if key is not None:
            return str(key)
    keys = {info.key.split("/")[1] for info in output.list(f"{stage.WORK}/")}
    if len(keys) != 1:
        raise ConfigError(
            f"{len(keys)} sets of synthesis work are below {output.uri}",
            field="storage.uri",
            value=output.uri,
            fix="name the output of one SynthesisJob",
        )
    return keys.pop()
