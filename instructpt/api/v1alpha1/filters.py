"""Filters of synthesized pairs, as a SynthesisJob and a pipeline declare them (docs/user-guides/filters.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import ApiModel, Rule, Share, Url
from instructpt.api.v1alpha1.decontamination import Decontamination

Language = Literal[
    "ar", "da", "de", "el", "en", "es", "fa", "fr", "he", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "sv", "th",
    "uk", "zh",
]  # fmt: skip
"""What the heuristic of :mod:`instructpt.corpus.text.language` tells apart."""

Languages = Annotated[
    tuple[Language, ...],
    Field(default=(), max_length=21, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
]

PluginName = Annotated[str, Field(max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class Judge(ApiModel):
    """A chat model, served with OpenAI's HTTP interface, that says whether a document supports an answer."""

    endpoint: Annotated[Url, Field(description="Base URL of the judge's server, ending in /v1.")]
    served_model: Annotated[
        str, Field(min_length=1, max_length=253, description="Name of the model that is served there.")
    ]
    concurrency: Annotated[int, Field(default=64, ge=1, le=65536, description="Pairs judged at once by a worker.")] = 64
    max_tokens: Annotated[
        int,
        Field(
            default=16, ge=1, le=32768, description="Longest reply; a model that thinks before it speaks needs more."
        ),
    ] = 16


class Filters(ApiModel):
    """What is dropped from the synthesized pairs; each drop is counted by reason."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "minQuestionCharacters must not be above maxQuestionCharacters",
            "self.minQuestionCharacters <= self.maxQuestionCharacters",
            lambda s: s.min_question_characters <= s.max_question_characters,
        ),
        Rule(
            "minAnswerCharacters must not be above maxAnswerCharacters",
            "self.minAnswerCharacters <= self.maxAnswerCharacters",
            lambda s: s.min_answer_characters <= s.max_answer_characters,
        ),
    )

    deduplicate_questions: Annotated[bool, Field(default=True, description="Equal questions count once.")] = True
    max_question_characters: Annotated[int, Field(default=2000, ge=1, description="Longer questions are dropped.")] = (
        2000
    )
    max_answer_characters: Annotated[int, Field(default=4000, ge=1, description="Longer answers are dropped.")] = 4000
    require_grounded_answers: Annotated[
        bool, Field(default=False, description="Drop free answers none of whose words occur in their document.")
    ] = False
    min_question_characters: Annotated[int, Field(default=1, ge=1, description="Shorter questions are dropped.")] = 1
    min_answer_characters: Annotated[int, Field(default=1, ge=1, description="Shorter answers are dropped.")] = 1
    question_similarity: Annotated[
        float | None,
        Field(
            default=None,
            ge=0.3,
            le=1.0,
            description="Questions whose word pairs are as alike as this (Jaccard) count once; empty compares them as "
            "they are.",
        ),
    ] = None
    question_scope: Annotated[
        Literal["document", "micro-shard"],
        Field(
            default="document",
            description="Where a question counts once: of a document, or of all documents of a micro-shard.",
        ),
    ] = "document"
    max_repetition: Annotated[
        Share | None,
        Field(
            default=None,
            description="Drop pairs whose question or answer repeats itself in more than this share of its words or "
            "lines; empty turns this off.",
        ),
    ] = None
    languages: Annotated[
        Languages,
        Field(default=(), description="Drop pairs that are plainly in another language; empty keeps all."),
    ] = ()
    min_groundedness: Annotated[
        Share,
        Field(
            default=0.0,
            description="Drop free answers of whose content words a smaller share occurs in their document.",
        ),
    ] = 0.0
    min_likelihood_gain: Annotated[
        float | None,
        Field(
            default=None,
            ge=-20.0,
            le=20.0,
            description="Drop answers that their document makes likelier by fewer bits a token than this, by the "
            "synthesizer's own likelihood; empty turns this off.",
        ),
    ] = None
    judge: Annotated[
        Judge | None,
        Field(default=None, description="Drop answers that, as a model says, their document does not support."),
    ] = None
    decontaminate: Annotated[
        Decontamination | None,
        Field(default=None, description="Drop pairs that share word n-grams with evaluation sets."),
    ] = None
    plugins: Annotated[
        tuple[PluginName, ...],
        Field(
            default=(),
            max_length=8,
            description="Filters that an image brings (entry points instructpt.filters), by name, applied last.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = ()
