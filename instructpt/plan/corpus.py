"""Corpus -> inspection."""

from __future__ import annotations

from instructpt.api.runspec import InspectRun, ResolvedInput
from instructpt.api.v1alpha1.corpus import CorpusSource, CorpusSpec
from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.plan.builder import PlanBuilder


def plan_corpus(builder: PlanBuilder, spec: CorpusSpec, *, step: str = "corpus") -> ResolvedInput | None:
    """One inspection; the only planner of micro-shard boundaries (protocols.md 2)."""
    source = CorpusSource(**{name: getattr(spec, name) for name in CorpusSource.model_fields})
    section = InspectRun(
        source=source, split=spec.split, documents_per_shard=spec.documents_per_shard, shards=spec.shards,
        tokenizer=spec.tokenizer, filters=None if spec.filters == CorpusFilters() else spec.filters,
    )  # fmt: skip
    return builder.add(step, "inspect", output=spec.storage, section=section)
