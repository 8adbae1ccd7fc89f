"""What is measured on, as one object beside the results: chosen documents, questions, contexts, origins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from instructpt.api.v1alpha1.evaluationjob import EvaluationSettings
from instructpt.corpus.document import Document
from instructpt.errors import EvaluationError
from instructpt.evaluation.metrics import METRICS
from instructpt.evaluation.tasks import (
    Miner,
    Question,
    build_questions,
    choose_documents,
    excerpt_characters,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """The documents and questions that every model is measured on.

    Attributes:
        documents: Chosen held-out documents.
        questions: Questions mined from their beginnings.
        context_tokens: Window of every model, in tokens: the shortest context among the models.
        excerpt_characters: Characters of a document that questions are asked on.
        counts: Documents available and used, questions, and pairs that made no question by reason.
    """

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    context_tokens: int
    excerpt_characters: int
    counts: Mapping[str, int] = field(default_factory=dict)


def build_evaluation_set(
    documents: Iterable[Document], settings: EvaluationSettings, miner: Miner, *, context_tokens: int
) -> EvaluationSet:
    """Choose documents, and mine questions if a task needs them; a pure function of its arguments.

    Raises:
        EvaluationError: No document is held out.
    """
    chosen, seen = choose_documents(documents, settings.max_documents, settings.seed)
    if not chosen:
        raise EvaluationError(
            "no document is held out, so there is nothing to measure on",
            field="spec.corpus.split.heldOut",
            fix="raise the share, or use a corpus with more documents",
        )
    characters = excerpt_characters(context_tokens, settings.shots)
    counts = {f"documents_{name}": number for name, number in seen.items()}
    questions: tuple[Question, ...] = ()
    if any(METRICS[task].answers for task in settings.tasks):
        found = build_questions(
            chosen,
            miner,
            max_questions=settings.max_questions,
            shots=settings.shots,
            characters=characters,
            seed=settings.seed,
        )
        questions = found.questions
        counts |= {"questions": len(questions)} | {f"dropped_{k}": v for k, v in found.dropped.items()}
    return EvaluationSet(
        documents=chosen,
        questions=questions,
        context_tokens=context_tokens,
        excerpt_characters=characters,
        counts=counts,
    )


def describe(evaluation_set: EvaluationSet, *, inputs: Mapping[str, str]) -> bytes:
    """The set as JSON, without the documents' text, for the finishing task; equal sets give equal bytes."""
    left_out = ("context", "shots")
    questions = [{k: v for k, v in asdict(q).items() if k not in left_out} for q in evaluation_set.questions]
    return orjson.dumps(
        {
            "documents": [d.id for d in evaluation_set.documents],
            "questions": questions,
            "context_tokens": evaluation_set.context_tokens,
            "excerpt_characters": evaluation_set.excerpt_characters,
            "counts": dict(evaluation_set.counts),
            "inputs": dict(inputs),
        },
        option=orjson.OPT_SORT_KEYS,
    )


def parse_description(data: bytes) -> tuple[dict[str, Any], list[Question]]:
    """What :func:`describe` wrote, and its questions (without contexts and examples)."""
    raw: dict[str, Any] = orjson.loads(data)
    return raw, [Question(**q, context="") for q in raw["questions"]]
