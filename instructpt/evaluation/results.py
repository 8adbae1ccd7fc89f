"""What one model scored on one task, and the object it is committed as."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import orjson

from instructpt.errors import EvaluationError
from instructpt.evaluation.statistics import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScore:
    """One document or question.

    Attributes:
        id: Of the document or question.
        document: Id of the document it belongs to.
        score: Bits; or 1 for a right answer and 0 for a wrong one.
        weight: Bytes that the bits are spread over; 1 for an answer.
        prediction: What was generated, where something was.
    """

    id: str
    document: str
    score: float
    weight: float
    prediction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One model on one task.

    Attributes:
        model: Name of the model.
        seed: Seed it was trained with.
        task: Name of the task.
        items: In the order of the evaluation set.
        counts: What happened on the way: tokens, windows, prompts that were cut.
    """

    model: str
    seed: int | None
    task: str
    items: tuple[ItemScore, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """JSON; equal results give equal bytes."""
        return orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)


def parse_result(data: bytes) -> TaskResult:
    """Read what :meth:`TaskResult.to_bytes` wrote."""
    raw = orjson.loads(data)
    items = tuple(ItemScore(**item) for item in raw.pop("items"))
    return TaskResult(**raw, items=items)


def result_key(work_key: str, model: str, seed: int | None, task: str) -> str:
    """Where a result lies below the output: ``work/<work key>/results/<model>-<seed>-<task>.json``.

    A name with characters that a key cannot hold is shortened to safe ones and a hash.
    """
    safe = re.sub(r"[^A-Za-z0-9._]+", "_", model)
    if safe != model:
        safe += "_" + hashlib.sha256(model.encode()).hexdigest()[:8]
    return f"work/{work_key}/results/{safe}-{'none' if seed is None else seed}-{task}.json"


def to_sample(results: Sequence[TaskResult]) -> Sample | None:
    """Results of one model on one task, one a training seed, summed by document; ``None`` when there are no items.

    Raises:
        EvaluationError: The results are not of the same items.
    """
    first = results[0]
    ids = [item.id for item in first.items]
    if any([item.id for item in other.items] != ids for other in results[1:]):
        raise EvaluationError(f"the results of {first.model} on {first.task} are not of the same items")
    if not ids:
        return None
    place = {name: i for i, name in enumerate(dict.fromkeys(item.document for item in first.items))}
    scores, weights = np.zeros((len(results), len(place))), np.zeros((len(results), len(place)))
    for row, result in enumerate(results):
        for item in result.items:
            scores[row, place[item.document]] += item.score
            weights[row, place[item.document]] += item.weight
    return Sample(scores=scores, weights=weights)
