"""A collection of tasks: data sets of contexts with questions and answers, as shots for tuning a synthesizer.

A data set is read twice, so that memory holds its contexts' hashes and the examples that are taken, never its text:
first pairs are counted by context, then the examples with the most pairs are read. What is taken and in which order is
a function of the records alone: neither the order of the files nor how records lie in them matters.

Source: arXiv 2406.14491, section 2.1 (at most 10 K examples of a data set, those with the most pairs; a sequence holds
several examples of one data set).
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instructpt.api.runspec import PreparedSource
from instructpt.api.v1alpha1.sourceformats import TaskCollection
from instructpt.corpus.files import iter_files
from instructpt.corpus.sources import SourceObject
from instructpt.errors import CorpusError
from instructpt.synthesis.model import Shot, make_pair

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
Key = tuple[str, bytes]
"""A data set's name and a hash of a context."""

_HASH_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Files that belong together.

    Attributes:
        name: The folder below the source's root, else the file without its extensions.
        files: In ascending order of their names.
    """

    name: str
    files: tuple[SourceObject, ...]


def datasets(objects: Iterable[SourceObject]) -> tuple[Dataset, ...]:
    """The data sets of a collection: a folder right below its root is one, and so is a file at its root."""
    found: dict[str, list[SourceObject]] = {}
    for item in objects:
        folder, slash, _ = item.name.partition("/")
        found.setdefault(folder if slash else item.name.split(".", 1)[0] or item.name, []).append(item)
    return tuple(Dataset(name=name, files=tuple(found[name])) for name in sorted(found))


@dataclass(slots=True, kw_only=True)
class Fitting:
    """What a sequence may hold.

    Attributes:
        size: Tokens of each text of a sequence, as it will be tokenized.
        length: Tokens of a row; None sets no limit.
        counts: Are added to: ``examples`` found, of which ``over_cap`` and ``too_long`` were left out; ``pairs`` found
            in the examples that were taken, of which ``pairs_cut`` found no room in a row; ``repeated_questions`` and
            ``refused_records`` that were passed over.
    """

    size: Callable[[Sequence[str]], list[int]] = field(default=lambda texts: [0] * len(texts))
    length: int | None = None
    counts: Counter[str] = field(default_factory=Counter)


class TaskReader:
    """The examples of one data set.

    Args:
        dataset: Its files.
        spec: Of the source: access and names of fields.
        counts: As in :class:`Fitting`.
    """

    def __init__(self, dataset: Dataset, spec: PreparedSource, counts: Counter[str]) -> None:
        self._dataset = dataset
        self._spec = spec
        self._tasks = spec.tasks or TaskCollection()
        self._counts = counts

    def examples(self) -> Iterator[tuple[str, list[Shot]]]:
        """Names of data sets and their examples, at most the spec's number, in an order drawn by their contexts.

        Raises:
            CorpusError: An object is damaged, or the data set holds no record that can be used.
        """
        chosen = self._choose()
        taken: dict[Key, tuple[str, dict[str, tuple[str, str]]]] = {key: ("", {}) for key in chosen}
        for name, context, pairs in self._records(count=False):
            key = _key(name, context)
            if key in taken:
                kept = taken[key][1]
                for question, answer in pairs:
                    kept.setdefault(question.lower(), (question, answer))
                taken[key] = (context, kept)
        shots: dict[str, list[Shot]] = {}
        for key in chosen:
            context, kept = taken.pop(key)
            made = tuple(make_pair(question, answer) for question, answer in kept.values())
            shots.setdefault(key[0], []).append(Shot(document=context, pairs=made))
        yield from sorted(shots.items())

    def _choose(self) -> list[Key]:
        """The examples with the most pairs, of each data set; ties by the hash of their context."""
        questions: dict[Key, set[int]] = {}
        for name, context, pairs in self._records(count=True):
            seen = questions.setdefault(_key(name, context), set())
            before = len(seen)
            seen.update(_short(question) for question, _ in pairs)
            self._counts["repeated_questions"] += before + len(pairs) - len(seen)
        by_name: dict[str, list[Key]] = {}
        for key in questions:
            by_name.setdefault(key[0], []).append(key)
        chosen: list[Key] = []
        for keys in by_name.values():
            best = heapq.nsmallest(
                self._tasks.examples_per_dataset, keys, key=lambda key: (-len(questions[key]), key[1])
            )
            chosen += best
            self._counts["over_cap"] += len(keys) - len(best)
        self._counts["examples"] += len(questions)
        return sorted(chosen, key=lambda key: key[1])

    def _records(self, *, count: bool) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
        """Data set, context and pairs of each record that can be used."""
        spec, tasks = self._spec, self._tasks
        fields = [tasks.context_field, spec.question_field, spec.answer_field]
        fields += [tasks.dataset_field] if tasks.dataset_field else []
        refused: list[str] = []
        used = 0

        def skip(where: str, reason: str) -> None:
            refused.append(f"{where}: {reason}" if not refused else "")

        for file in self._dataset.files:
            place = f"source {spec.name}"
            for record in iter_files(
                file.uri, spec, "instructions", fields, field=place, on_skip=skip, fault=self._fault
            ):
                used += 1
                name = record[tasks.dataset_field] if tasks.dataset_field else self._dataset.name
                yield name, record[tasks.context_field], _pairs(record, spec)
        if not used:
            raise CorpusError(
                f"data set {self._dataset.name} holds no record that can be used"
                + (f" ({refused[0]})" if refused else ""),
                field=f"source {spec.name}.uri",
                value=spec.uri,
                fix="name its fields with questionField, answerField and tasks.contextField, or remove the data set",
            )
        if count and refused:
            self._counts["refused_records"] += len(refused)
            log.warning(
                "records of a data set were passed over",
                extra={"dataset": self._dataset.name, "records": len(refused), "first": refused[0]},
            )

    def _fault(self, record: Record, fields: Sequence[str]) -> str | None:
        """Why a record cannot be used; None where it can."""
        spec = self._spec
        for name in fields:
            value = record.get(name)
            listed = isinstance(value, list) and name in (spec.question_field, spec.answer_field)
            if value is None:
                return f"no field {name!r} (its fields are: {', '.join(list(record)[:50])})"
            texts = value if listed else [value]
            if not all(isinstance(text, str) for text in texts):
                return f"field {name!r} holds {type(value).__name__}, not a string"
            if not texts or any(not text or text.isspace() for text in texts):
                return f"field {name!r} is empty"
        question, answer = record[spec.question_field], record[spec.answer_field]
        if isinstance(question, list) != isinstance(answer, list):
            return f"one of {spec.question_field!r} and {spec.answer_field!r} is a list and the other is not"
        if isinstance(question, list) and len(question) != len(answer):
            return f"{len(question)} in {spec.question_field!r} and {len(answer)} in {spec.answer_field!r}"
        return None


def sequences(
    shots: Iterable[Shot], most: int, fit: Fitting, parts: Callable[[Shot], list[str]]
) -> Iterator[list[Shot]]:
    """Shots put together, in their order: at most ``most`` of them, and as many as fit a row.

    A shot that is longer than a row alone loses its last pairs; one whose context leaves no room for a pair is left
    out, since a row that begins amid it would teach answers without their document.

    Args:
        shots: Examples of one data set.
        most: Shots in a sequence.
        fit: Sizes, limit and counts.
        parts: The texts that a shot becomes.
    """
    held: list[Shot] = []
    tokens = 0
    for shot in shots:
        fit.counts["pairs"] += len(shot.pairs)
        fitted, size = _fitted(shot, fit, parts)
        if fitted is None:
            fit.counts["too_long"] += 1
            continue
        full = fit.length is not None and tokens + size > fit.length
        if held and (full or len(held) == most):
            yield held
            held, tokens = [], 0
        held.append(fitted)
        tokens += size
    if held:
        yield held


def _fitted(shot: Shot, fit: Fitting, parts: Callable[[Shot], list[str]]) -> tuple[Shot | None, int]:
    """The shot with as many of its pairs as fit a row, and its tokens."""
    whole = len(shot.pairs)
    while True:
        size = sum(fit.size(parts(shot)))
        if fit.length is None or size <= fit.length:
            fit.counts["pairs_cut"] += whole - len(shot.pairs)
            return shot, size
        if len(shot.pairs) <= 1:
            fit.counts["pairs_cut"] += whole
            return None, size
        shot = Shot(document=shot.document, pairs=shot.pairs[:-1])


def _pairs(record: Record, spec: PreparedSource) -> list[tuple[str, str]]:
    question, answer = record[spec.question_field], record[spec.answer_field]
    return list(zip(question, answer, strict=True)) if isinstance(question, list) else [(question, answer)]


def _key(name: str, context: str) -> Key:
    return name, hashlib.sha256(context.encode("utf-8", "surrogatepass")).digest()[:_HASH_BYTES]


def _short(question: str) -> int:
    data = question.lower().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
