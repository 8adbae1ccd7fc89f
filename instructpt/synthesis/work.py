"""What a synthesis stage consists of, as its workers and its finalize both see it.

Everything that one set of inputs and settings leads to lies below ``work/<work key>/``: its ledger, its data, and
``spec.json``. So results of other inputs are never mixed in, and ``manifest.json`` at the root, written last, names
the objects of one key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from instructpt.api.runspec import RunSpec, SynthesizeRun
from instructpt.corpus.contamination import EvaluationNgrams, evaluation_ngrams
from instructpt.corpus.ledger import Ledger
from instructpt.corpus.manifest import MANIFEST, Manifest, ShardEntry, digest_of, load_manifest, parse_manifest
from instructpt.corpus.shards import CorpusReader
from instructpt.errors import ConfigError
from instructpt.storage import Store, open_store
from instructpt.synthesis import mined, profiles, strategies, templates
from instructpt.synthesis.writers import Recipe

WORK = "work"
SPEC = "spec.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A micro-shard of the corpus and how many of its documents are taken, from the first on."""

    entry: ShardEntry
    documents: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """A synthesis stage, resolved.

    What the workers' image alone may hold (plug-ins, the pattern file that ``templates`` names) is loaded when
    ``recipe`` is first asked for; the stage is finalized without it.

    Attributes:
        run: Its section of the RunSpec.
        key: Hash of what it computes.
        output: Where it writes.
        parts: Its micro-shards.
        reader: Reads them.
        corpus_digest: Of the corpus's manifest.
        code_version: Version of the code.
        parallelism: Workers.
    """

    run: SynthesizeRun
    key: str
    output: Store
    parts: tuple[Part, ...]
    reader: CorpusReader
    corpus_digest: str
    code_version: str
    parallelism: int

    @cached_property
    def evaluation(self) -> EvaluationNgrams | None:
        """N-grams that no pair may share, where the spec names evaluation sets."""
        wanted, place = self.run.settings.filters.decontaminate, f"{self.prefix}/"
        return evaluation_ngrams(wanted, self.output, place, field="filters.decontaminate") if wanted else None

    @cached_property
    def recipe(self) -> Recipe:
        """Settings, profile, templates and rules.

        Raises:
            ConfigError: A name is unknown, or what it names cannot be used.
        """
        run = self.run
        strategy = strategies.load(run.strategy)
        strategy.check_engine(run.settings.engine.name)
        return Recipe(
            settings=run.settings,
            profile=profiles.load(run.profile, run.compat),
            templates=templates.load(run.settings.templates, run.compat),
            deduplicate=strategy.deduplicate,
            evaluation=self.evaluation,
            mine=strategy.mine or mined.mine_tasks,
        )

    @property
    def prefix(self) -> str:
        """Where the ledger lies below the output."""
        return prefix_of(self.key)

    @property
    def documents(self) -> int:
        """Documents of all parts."""
        return sum(part.documents for part in self.parts)

    def ledger(self, worker_id: str) -> Ledger:
        """The ledger of this stage for one worker."""
        return Ledger(
            self.output,
            self.prefix,
            worker_id=worker_id,
            lease_seconds=self.run.settings.lease_seconds,
            shards=[part.entry.id for part in self.parts],
            parallel=self.parallelism > 1,
        )

    def settings(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """What decided the content, as it stands in the manifest: no place, no number of workers.

        Args:
            digests: Of profile and templates, as the workers had them (``Recipe.digests``).
        """
        wire = self.run.settings.to_wire()
        for name in ("parallelism", "leaseSeconds"):
            wire.pop(name, None)
        for name in ("endpoint", "resources"):
            wire.get("engine", {}).pop(name, None)
        wire["filters"].get("judge", {}).pop("endpoint", None)
        for one in wire["filters"].get("decontaminate", {}).get("sets", ()):
            for name in ("endpoint", "region", "secretRef"):
                one.pop(name, None)
        return {
            "strategy": self.run.strategy,
            "profile": {"name": self.run.profile, "compat": self.run.compat, "digest": digests["profile"]},
            "templates": {"source": self.run.settings.templates, "digest": digests["templates"]},
            "split": self.run.split or "all",
            "max_documents": self.run.max_documents or 0,
            "synthesis": wire,
        }


def prefix_of(key: str) -> str:
    """Where everything of one work key lies."""
    return f"{WORK}/{key}"


def section(spec: RunSpec) -> SynthesizeRun:
    """The section of a RunSpec.

    Raises:
        ConfigError: It is not there.
    """
    if spec.synthesize is None:
        raise ConfigError("the RunSpec has no section synthesize", field="synthesize", fix="plan the run again")
    return spec.synthesize


def finished(spec: RunSpec, output: Store) -> Manifest | None:
    """The manifest, if it is that of this very work."""
    if not output.exists(MANIFEST):
        return None
    manifest = load_manifest(output)
    return manifest if manifest.extra.get("work_key") == spec.work_key() else None


def resolve(spec: RunSpec, output: Store) -> Work:
    """Read the corpus's manifest.

    Raises:
        ConfigError: The corpus is another one than the spec says, or has no documents in this part.
        NotFoundError: The corpus is not finished.
    """
    run = section(spec)
    corpus = open_store(run.corpus.uri, access=run.corpus)
    load_manifest(corpus, digest=run.corpus.digest)
    data = corpus.get(MANIFEST)
    manifest = parse_manifest(data, where=f"{corpus.uri}/{MANIFEST}")
    parts = take(manifest, run.split, run.max_documents)
    if not parts:
        raise ConfigError(
            f"the corpus {corpus.uri} has no documents in this part",
            field="split",
            value=run.split or "all",
            fix="give this part of corpus.split a larger share, or name another part",
        )
    return Work(
        run=run,
        key=spec.work_key(),
        output=output,
        parts=parts,
        reader=CorpusReader(corpus, manifest),
        corpus_digest=digest_of(data),
        code_version=spec.code_version,
        parallelism=max(spec.parallelism, run.settings.parallelism),
    )


def take(manifest: Manifest, split: str | None, max_documents: int | None) -> tuple[Part, ...]:
    """The micro-shards that hold documents of ``split``, up to the first ``max_documents`` documents in order."""
    parts: list[Part] = []
    left = max_documents
    for entry in manifest.shards:
        found = int(entry.counts.get(split or "documents", 0))
        part = Part(entry=entry, documents=found if left is None else min(found, left))
        if part.documents:
            parts.append(part)
            left = None if left is None else left - part.documents
    return tuple(parts)


def shard_entry(entry: ShardEntry, *, counts: dict[str, int], sha256: str, size: int) -> ShardEntry:
    """The entry of a synthesized micro-shard: the same id, its own content."""
    return replace(entry, counts=counts, sha256=sha256, bytes=size, span=None)
