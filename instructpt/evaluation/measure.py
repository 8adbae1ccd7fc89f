"""One model on one task."""

from __future__ import annotations

from instructpt.api.v1alpha1.evaluationjob import EvaluationSettings
from instructpt.errors import EvaluationError
from instructpt.evaluation.evaluation_set import EvaluationSet
from instructpt.evaluation.generation import FittedPrompt, fit_prompt, generate_answers
from instructpt.evaluation.language_model import LanguageModel
from instructpt.evaluation.likelihood import continuation_bits, text_bits
from instructpt.evaluation.results import ItemScore, TaskResult
from instructpt.evaluation.tasks import exact_match

MAX_PREDICTION_CHARACTERS = 200


def measure(
    lm: LanguageModel, task: str, on: EvaluationSet, settings: EvaluationSettings, *, model: str, seed: int | None
) -> TaskResult:
    """Score one model on one task.

    Args:
        lm: The model.
        task: One of the known tasks.
        on: Documents and questions.
        settings: Of the evaluation.
        model: Name in the result.
        seed: Training seed in the result.

    Raises:
        EvaluationError: The task is unknown, or the model gives probabilities that are not numbers.
    """
    if task == "bits-per-byte":
        items, counts = _documents(lm, on)
    elif task == "answer-bits-per-byte":
        items, counts = _answer_bits(lm, on, settings)
    elif task == "qa-exact-match":
        items, counts = _exact_match(lm, on, settings)
    else:
        raise EvaluationError(f"no measurement is known for task {task}")
    return TaskResult(model=model, seed=seed, task=task, items=items, counts=counts)


def _documents(lm: LanguageModel, on: EvaluationSet) -> tuple[tuple[ItemScore, ...], dict[str, int]]:
    scored = text_bits(lm, [d.text for d in on.documents], context=on.context_tokens)
    items = tuple(
        ItemScore(id=d.id, document=d.id, score=_steady(b.bits), weight=b.num_bytes)
        for d, b in zip(on.documents, scored, strict=True)
    )
    return items, {
        "tokens": sum(b.num_tokens for b in scored),
        "bytes": sum(b.num_bytes for b in scored),
        "windows": sum(b.windows for b in scored),
    }


def _answer_bits(
    lm: LanguageModel, on: EvaluationSet, settings: EvaluationSettings
) -> tuple[tuple[ItemScore, ...], dict[str, int]]:
    prompts, counts = _prompts(lm, on, settings)
    answers = [f" {q.answer}" for q in on.questions]
    scored = continuation_bits(lm, [p.ids for p in prompts], answers, context=on.context_tokens)
    items = tuple(
        ItemScore(id=q.id, document=q.document, score=_steady(b.bits), weight=b.num_bytes)
        for q, b in zip(on.questions, scored, strict=True)
    )
    return items, counts | {"tokens": sum(b.num_tokens for b in scored), "bytes": sum(b.num_bytes for b in scored)}


def _exact_match(
    lm: LanguageModel, on: EvaluationSet, settings: EvaluationSettings
) -> tuple[tuple[ItemScore, ...], dict[str, int]]:
    prompts, counts = _prompts(lm, on, settings)
    answers = generate_answers(lm, [p.ids for p in prompts], max_tokens=settings.max_answer_tokens)
    items = tuple(
        ItemScore(
            id=q.id,
            document=q.document,
            score=float(exact_match(text, q.answer)),
            weight=1.0,
            prediction=text[:MAX_PREDICTION_CHARACTERS],
        )
        for q, text in zip(on.questions, answers, strict=True)
    )
    too_long = sum(len(lm.encode(f" {q.answer}")) > settings.max_answer_tokens for q in on.questions)
    empty = sum(not answer for answer in answers)
    return items, counts | {"answers_longer_than_max_tokens": too_long, "empty_predictions": empty}


def _prompts(
    lm: LanguageModel, on: EvaluationSet, settings: EvaluationSettings
) -> tuple[list[FittedPrompt], dict[str, int]]:
    """Prompts that leave room for the start token and the longest answer; the same for both tasks on answers."""
    longest = max((len(lm.encode(f" {q.answer}")) for q in on.questions), default=0)
    room = on.context_tokens - 1 - max(settings.max_answer_tokens, longest)
    if room < 1 and on.questions:
        raise EvaluationError(
            f"a context of {on.context_tokens} tokens leaves no room for a prompt beside the answer",
            field="spec.evaluation.maxAnswerTokens",
            value=settings.max_answer_tokens,
            fix="lower it",
        )
    prompts = [fit_prompt(lm, q, room=room) for q in on.questions]
    return prompts, {
        "prompts": len(prompts),
        "prompts_without_all_shots": sum(p.dropped_shots > 0 for p in prompts),
        "prompts_with_cut_document": sum(p.cut_tokens > 0 for p in prompts),
    }


def _steady(bits: float) -> float:
    """Rounded to a millionth of a bit, below which the order of additions decides."""
    return round(bits, 6)
