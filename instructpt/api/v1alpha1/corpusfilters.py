"""Filters of documents, as a Corpus and a pipeline declare them (docs/user-guides/filters.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import ApiModel, Rule, Share
from instructpt.api.v1alpha1.decontamination import Decontamination
from instructpt.api.v1alpha1.filters import Languages


class CorpusFilters(ApiModel):
    """Which documents are left out; each is counted by reason, and all are off unless set."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "minWords must not be above maxWords",
            "!has(self.minWords) || !has(self.maxWords) || self.minWords <= self.maxWords",
            lambda s: s.min_words is None or s.max_words is None or s.min_words <= s.max_words,
        ),
    )

    min_words: Annotated[int | None, Field(default=None, ge=1, description="Shorter documents are left out.")] = None
    max_words: Annotated[int | None, Field(default=None, ge=1, description="Longer documents are left out.")] = None
    max_repetition: Annotated[
        Share | None,
        Field(
            default=None,
            description="Leave out documents that repeat themselves in more than this share of their words or lines.",
        ),
    ] = None
    languages: Annotated[
        Languages,
        Field(default=(), description="Leave out documents that are plainly in another language; empty keeps all."),
    ] = ()
    decontaminate: Annotated[
        Decontamination | None,
        Field(default=None, description="Leave out documents that share word n-grams with evaluation sets."),
    ] = None
    deduplicate: Annotated[
        Literal["none", "exact", "minhash"],
        Field(
            default="none",
            description="exact keeps the first of equal documents; minhash also the first of those nearly alike.",
        ),
    ] = "none"
    similarity: Annotated[
        float,
        Field(
            default=0.8,
            ge=0.5,
            le=0.95,
            description="Of minhash: share of common 5-word runs (Jaccard) from which on documents are found with a "
            "chance of at least 0.9.",
        ),
    ] = 0.8
