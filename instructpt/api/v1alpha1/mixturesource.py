"""One source of a mixture: where its text comes from, how it is read, and how much of it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import Access, Count, ObjectRef, Rule, Uri, must_name
from instructpt.api.v1alpha1.sourceformats import Formatting, TaskCollection
from instructpt.api.v1alpha1.synthesisjob import SplitName

Objective = Literal["Pretraining", "SynthesizerTuning", "InstructionTuning"]
SourceFormat = Literal["augmented", "corpus", "tasks", "instructions", "jsonl", "parquet", "arrow", "text"]
OBJECTIVE_FORMATS: Mapping[Objective, tuple[SourceFormat, ...]] = {
    "SynthesizerTuning": ("augmented", "tasks"),
    "InstructionTuning": ("instructions",),
}
"""Formats that say what an answer is, by objectives that learn answers alone; others take any format."""


class MixtureSource(Access):
    """One source of a mixture: a name that the pipeline resolves, a ref, or a URI."""

    name: Annotated[
        str | None,
        Field(default=None, max_length=63, description="Name in receipts; empty uses source, ref or a number."),
    ] = None
    source: Annotated[
        Literal["augmented", "raw", "tuning"] | None,
        Field(
            default=None,
            description="Of the pipeline: the augmented corpus, the same documents raw, or the synthesizer's "
            "tuning set.",
        ),
    ] = None
    ref: Annotated[ObjectRef | None, Field(default=None, description="SynthesisJob or Corpus.")] = None
    uri: Annotated[Uri | None, Field(default=None, description="Prefix with a manifest, or files.")] = None
    digest: Annotated[
        str | None,
        Field(
            default=None, max_length=71, pattern=r"^sha256:[0-9a-f]{64}$", description="Digest its manifest must have."
        ),
    ] = None
    split: Annotated[SplitName | None, Field(default=None, description="Part of a Corpus; empty takes all.")] = None
    format: Annotated[
        SourceFormat | None,
        Field(
            default=None,
            description="augmented and corpus have manifests; instructions holds question and answer, tasks a context "
            "as well; others are files.",
        ),
    ] = None
    text_field: Annotated[str, Field(default="text", max_length=253, description="Of files: field with the text.")] = (
        "text"
    )
    question_field: Annotated[
        str,
        Field(
            default="question", max_length=253, description="Of instructions and tasks: field that holds the question."
        ),
    ] = "question"
    answer_field: Annotated[
        str,
        Field(default="answer", max_length=253, description="Of instructions and tasks: field that holds the answer."),
    ] = "answer"
    formatting: Annotated[
        Formatting | None,
        Field(default=None, description="Of instructions: data formatting; empty is question, a space, answer."),
    ] = None
    tasks: Annotated[
        TaskCollection | None, Field(default=None, description="Of tasks: how they are read and put together.")
    ] = None
    weight: Annotated[
        float,
        Field(
            default=1.0,
            gt=0,
            description="Share of the tokens that repeats leave, relative to the other sources with a weight.",
        ),
    ] = 1.0
    repeats: Annotated[
        int | None,
        Field(
            default=None,
            ge=1,
            le=1000,
            description="Passes over this source, exactly so many, whatever its size; empty shares by weight.",
        ),
    ] = None
    max_tokens: Annotated[
        Count | None,
        Field(
            default=None,
            description="Cap: tokens of this source at most over the run; the rest goes to the sources with a weight.",
        ),
    ] = None
    max_repeats: Annotated[
        int | None,
        Field(default=None, ge=1, le=1000, description="Passes over this source at most; empty takes the job's."),
    ] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        must_name("ref", "SynthesisJob", "Corpus"),
        Rule(
            "a mixture entry has weight or repeats, not both: repeats says how much is taken",
            "!has(self.repeats) || !has(self.weight) || self.weight == 1.0",
            lambda s: s.repeats is None or s.weight == 1.0,
        ),
        Rule(
            "a mixture entry with uri needs format: augmented or corpus for a prefix with a manifest; instructions, "
            "tasks, jsonl, parquet, arrow or text for files",
            "!has(self.uri) || has(self.format)",
        ),
        Rule(
            "formatting of a mixture entry is for format instructions, and tasks for format tasks; set format, or "
            "drop it",
            "(!has(self.formatting) || (has(self.format) && self.format == 'instructions')) && "
            "(!has(self.tasks) || (has(self.format) && self.format == 'tasks'))",
            lambda s: (s.formatting is None or s.format == "instructions") and (s.tasks is None or s.format == "tasks"),
        ),
        Rule(
            "a mixture entry needs exactly one of source, ref and uri",
            "(has(self.source) ? 1 : 0) + (has(self.ref) ? 1 : 0) + (has(self.uri) ? 1 : 0) == 1",
            lambda s: sum(x is not None for x in (s.source, s.ref, s.uri)) == 1,
        ),
    )
