"""Corpus: a named set of documents, inspected into micro-shards."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import (
    STORAGE_LIMIT,
    Access,
    ApiModel,
    CorpusUri,
    Count,
    PrinterColumn,
    Resource,
    Rule,
    Share,
    StorageSpec,
    Uri,
    storage_fits,
)
from instructpt.api.common import CommonStatus, RunPolicy
from instructpt.api.transitions import transition_rules
from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.api.v1alpha1.decontamination import Format as Format


class Split(ApiModel):
    """Shares of the documents by a hash of their content, so that exact duplicates fall on one side."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "the shares tune, train and heldOut must add up to 1",
            "self.tune + self.train + self.heldOut > 0.999999 && self.tune + self.train + self.heldOut < 1.000001",
            lambda s: abs(s.tune + s.train + s.held_out - 1.0) < 1e-6,
        ),
    )
    tune: Annotated[Share, Field(default=0.0, description="Share for tuning the synthesizer.")] = 0.0
    train: Annotated[Share, Field(default=1.0, description="Share that feeds the arms.")] = 1.0
    held_out: Annotated[Share, Field(default=0.0, description="Share that feeds evaluation only.")] = 0.0


class CorpusSource(Access):
    """Where documents come from and how they are read."""

    uri: Annotated[
        CorpusUri,
        Field(
            description="File, folder, glob or s3:// prefix; builtin://python-docs harvests the documentation "
            "strings of "
            "the Python installation that runs the worker."
        ),
    ]
    format: Annotated[Format, Field(default="auto", description="Format; auto goes by the file name.")] = "auto"
    text_field: Annotated[
        str, Field(default="text", min_length=1, max_length=253, description="Field or column that holds the text.")
    ] = "text"
    id_field: Annotated[
        str | None,
        Field(default=None, max_length=253, description="Field that holds a document id; empty numbers them."),
    ] = None
    separator: Annotated[
        str | None,
        Field(
            default=None,
            min_length=1,
            max_length=64,
            description="Of format text: what parts documents; empty means a file each.",
        ),
    ] = None
    max_document_bytes: Annotated[
        Count, Field(default=1_000_000, description="Longer documents become dead letters with reason too-large.")
    ] = 1_000_000
    max_invalid_share: Annotated[
        Share,
        Field(
            default=0.01,
            description="Above this share of unreadable records the corpus is refused; below, they are dead letters.",
        ),
    ] = 0.01


class CorpusSpec(CorpusSource, RunPolicy):
    """What a Corpus declares."""

    storage: Annotated[StorageSpec, Field(description="Where the manifest goes.")]
    split: Annotated[Split, Field(default_factory=Split, description="Shares of the documents by content hash.")]
    documents_per_shard: Annotated[
        int, Field(default=2000, ge=1, le=1_000_000, description="Target number of documents in a micro-shard.")
    ] = 2000
    shards: Annotated[
        int | None,
        Field(
            default=None, ge=1, le=1_000_000, description="Target number of micro-shards; wins over documentsPerShard."
        ),
    ] = None
    tokenizer: Annotated[
        Uri | None,
        Field(default=None, description="Tokenizer to count tokens with; empty estimates them."),
    ] = None
    filters: Annotated[CorpusFilters, Field(default_factory=CorpusFilters, description="Which documents are left out.")]
    rules: ClassVar[tuple[Rule, ...]] = (storage_fits("storage", STORAGE_LIMIT),)


class CorpusStatus(CommonStatus):
    """What is known of a Corpus."""


class Corpus(Resource):
    """A named set of documents: inspected once into micro-shards, named by the digest of its manifest."""

    plural: ClassVar[str] = "corpora"
    short_name: ClassVar[str] = "corp"
    columns: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Phase", ".status.phase"),
        PrinterColumn("Documents", ".status.display.documents"),
        PrinterColumn("Tokens", ".status.display.tokens"),
        PrinterColumn("Shards", ".status.display.shards"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Format", ".spec.format", priority=1),
        PrinterColumn("URI", ".spec.uri", priority=1),
        PrinterColumn("Digest", ".status.output.digest", priority=1),
    )
    rules: ClassVar[tuple[Rule, ...]] = transition_rules(CorpusSpec)
    kind: Annotated[Literal["Corpus"], Field(description="Kind.")]
    spec: Annotated[CorpusSpec, Field(description="What is wanted.")]
    status: Annotated[CorpusStatus | None, Field(default=None, description="What is known.")] = None
