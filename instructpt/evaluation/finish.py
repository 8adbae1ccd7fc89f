"""The finishing task of an evaluation: committed results -> ``scores.json``, ``predictions.jsonl`` and the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from instructpt.api.runspec import EvaluateRun, RunSpec, StageResult
from instructpt.corpus.manifest import FileEntry, Manifest, load_manifest, publish_manifest
from instructpt.errors import NotFoundError
from instructpt.evaluation.evaluation_set import parse_description
from instructpt.evaluation.metrics import CHANCE, MAJORITY, METRICS, UNTRAINED
from instructpt.evaluation.results import ItemScore, TaskResult, parse_result
from instructpt.evaluation.scores import score
from instructpt.evaluation.tasks import Question, chance, majority_answers, normalize
from instructpt.storage import Store, open_store

if TYPE_CHECKING:
    from instructpt.evaluation.worker import Unit

SCORES = "scores.json"
PREDICTIONS = "predictions.jsonl"
# Of the 4,096 bytes of a termination message (protocols.md 4), what the headline scores may take.
_MAX_HEADLINE_BYTES = 2800


def finish(spec: RunSpec, section: EvaluateRun, units: Sequence[Unit], set_key: str) -> StageResult:
    """Publish the scores, or say how many results are missing.

    Idempotent: the same results give the same bytes. Where the work objects are gone but a manifest of this very
    evaluation is there, its result is repeated.
    """
    output = open_store(spec.output.uri, access=spec.output)
    committed = {info.key for info in output.list(f"work/{spec.work_key()}/")}
    missing = sum(unit.key not in committed for unit in units) + (set_key not in committed)
    if missing:
        return _repeat(spec, section, output) or StageResult(uri=spec.output.uri, digest="", missing=missing)
    description, questions = parse_description(output.get(set_key))
    results = [parse_result(output.get(unit.key)) for unit in units]
    results += baselines(questions, section.settings.tasks)
    content = scores_content(section, description, results)
    files = {SCORES: _pretty(content), PREDICTIONS: predictions(questions, results)}
    for name, data in files.items():
        output.put(name, data)
    manifest = Manifest(
        kind="scores",
        code_version=spec.code_version,
        inputs=description["inputs"],
        settings=_settings(section),
        counts=_counts(section, description, units),
        files=tuple(
            FileEntry(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in sorted(files.items())
        ),
        extra={"scores": headline(content)},
    )
    return _result(spec, manifest, publish_manifest(output, manifest))


def scores_content(section: EvaluateRun, description: dict[str, Any], results: Sequence[TaskResult]) -> dict[str, Any]:
    """What ``scores.json`` holds; see :func:`instructpt.evaluation.scores.score` for its core."""
    settings = section.settings
    core = score(results, tasks=settings.tasks, baseline=section.baseline, gate=settings.gate, seed=settings.seed)
    models = [{"name": m.name, "seed": m.seed} for m in section.models]
    return {
        "format_version": 1,
        "models": models,
        "baseline": section.baseline,
        "tasks": list(settings.tasks),
        **core,
        "counts": {
            **description["counts"],
            "by_model": {
                f"{r.model}{'' if r.seed is None else f'-{r.seed}'}/{r.task}": dict(r.counts)
                for r in results
                if r.counts
            },
        },
        "questions_by_kind": _kinds(description),
        "context_tokens": description["context_tokens"],
        "excerpt_characters": description["excerpt_characters"],
        "shots": settings.shots,
        "majority_answers": next((_answers(r) for r in results if r.model == MAJORITY), {}),
    }


def baselines(questions: Sequence[Question], tasks: Sequence[str]) -> list[TaskResult]:
    """The answers that need no model: the most frequent one of each kind, and a draw among the choices."""
    if "qa-exact-match" not in tasks or not questions:
        return []
    constant = majority_answers(questions)
    majority = tuple(
        ItemScore(
            id=q.id, document=q.document, score=float(constant[q.kind] == normalize(q.answer)), weight=1.0,
            prediction=constant[q.kind],
        )
        for q in questions
    )  # fmt: skip
    drawn = tuple(ItemScore(id=q.id, document=q.document, score=chance(q), weight=1.0) for q in questions)
    return [
        TaskResult(model=MAJORITY, seed=None, task="qa-exact-match", items=majority),
        TaskResult(model=CHANCE, seed=None, task="qa-exact-match", items=drawn),
    ]


def predictions(questions: Sequence[Question], results: Sequence[TaskResult]) -> bytes:
    """One JSON line a question: document, question, gold answer, and what each model answered."""
    answered = [r for r in results if r.task == "qa-exact-match" and r.model not in (MAJORITY, CHANCE)]
    lines: list[bytes] = []
    for place, question in enumerate(questions):
        said = {
            r.model if r.seed is None else f"{r.model}-{r.seed}": {
                "answer": r.items[place].prediction,
                "right": bool(r.items[place].score),
            }
            for r in answered
        }
        lines.append(
            orjson.dumps(
                {
                    "id": question.id, "document": question.document, "kind": question.kind,
                    "question": question.question, "answer": question.answer, "predictions": said,
                },
                option=orjson.OPT_SORT_KEYS,
            )
        )  # fmt: skip
    return b"".join(line + b"\n" for line in lines)


def headline(content: dict[str, Any]) -> dict[str, float]:
    """``<model>/<task>`` -> value, models before baselines, as many as a termination message holds; and ``gate``."""
    scores: dict[str, float] = {}
    if content["gate"]["verdict"] != "None":
        scores["gate"] = 1.0 if content["gate"]["verdict"] == "Passed" else 0.0
    names = dict.fromkeys(model["name"] for model in content["models"])
    for name in [*names, UNTRAINED, MAJORITY]:
        for task in content["tasks"]:
            entry = content["metrics"][task]["values"].get(name)
            if entry is not None:
                scores[f"{name}/{task}"] = entry["value"]
    while len(orjson.dumps(scores)) > _MAX_HEADLINE_BYTES:
        scores.popitem()
    return scores


def _kinds(description: dict[str, Any]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for question in description["questions"]:
        kinds[question["kind"]] = kinds.get(question["kind"], 0) + 1
    return dict(sorted(kinds.items()))


def _answers(result: TaskResult) -> dict[str, int]:
    """The constant answers that the majority baseline gave, and how often each was right."""
    right: dict[str, int] = {}
    for item in result.items:
        name = item.prediction or ""
        right[name] = right.get(name, 0) + int(item.score)
    return dict(sorted(right.items()))


def _settings(section: EvaluateRun) -> dict[str, Any]:
    settings = section.settings.to_wire()
    settings.pop("resources", None)
    return {
        **settings,
        "split": section.split,
        "baseline": section.baseline,
        "models": [{"name": m.name, "seed": m.seed} for m in section.models],
        "directions": {task: METRICS[task].direction for task in section.settings.tasks},
    }


def _counts(section: EvaluateRun, description: dict[str, Any], units: Sequence[Unit]) -> dict[str, int]:
    counts = description["counts"]
    return {
        "models": len(section.models),
        "tasks": len(units),
        "documents": counts["documents_used"],
        "questions": counts.get("questions", 0),
    }


def _repeat(spec: RunSpec, section: EvaluateRun, output: Store) -> StageResult | None:
    """The result of the manifest that is there, if it is one of this evaluation."""
    try:
        manifest = load_manifest(output)
    except NotFoundError:
        return None
    wanted = {f"model/{m.name}" if m.seed is None else f"model/{m.name}/{m.seed}": m.digest for m in section.models}
    wanted["corpus"] = section.corpus.digest
    same = (
        manifest.kind == "scores"
        and manifest.code_version == spec.code_version
        and orjson.dumps(manifest.settings, option=orjson.OPT_SORT_KEYS)
        == orjson.dumps(_settings(section), option=orjson.OPT_SORT_KEYS)
        and all(digest is None or manifest.inputs.get(name) == digest for name, digest in wanted.items())
    )
    return _result(spec, manifest, manifest.digest) if same else None


def _result(spec: RunSpec, manifest: Manifest, digest: str) -> StageResult:
    return StageResult(
        uri=spec.output.uri, digest=digest, counts=dict(manifest.counts), scores=dict(manifest.extra["scores"])
    )


def _pretty(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"
