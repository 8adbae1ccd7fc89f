"""Evaluation sets whose text must not be trained on, as corpora and syntheses declare them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from instructpt.api.base import Access, ApiModel, CorpusUri

Format = Literal["auto", "jsonl", "parquet", "arrow", "text"]


class EvaluationSet(Access):
    """Texts of an evaluation, read as a corpus is."""

    uri: Annotated[CorpusUri, Field(description="File, folder, glob or s3:// prefix with the evaluation's items.")]
    format: Annotated[Format, Field(default="auto", description="Format; auto goes by the file name.")] = "auto"
    text_field: Annotated[
        str,
        Field(
            default="text",
            min_length=1,
            max_length=253,
            description="Field or column that is looked for in training data; name the set twice for two of them.",
        ),
    ] = "text"


class Decontamination(ApiModel):
    """Drops what shares word n-grams with evaluation sets."""

    sets: Annotated[
        tuple[EvaluationSet, ...],
        Field(
            min_length=1,
            max_length=16,
            description="Evaluation sets.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ]
    ngram: Annotated[
        int, Field(default=13, ge=3, le=50, description="Words in a row that must be the same; letter case is not.")
    ] = 13
    min_matches: Annotated[
        int, Field(default=1, ge=1, le=1000, description="Different n-grams that must be shared to be dropped.")
    ] = 1
