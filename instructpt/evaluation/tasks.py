"""The evaluation set: held-out documents, and questions that rules mine from them. Pure and deterministic.

Documents and questions are chosen by hashes of the seed and their content, so the choice depends neither on the order
of the corpus nor on the models. Questions are asked on the beginning of a document (an excerpt), so that a small
context holds the document, the question and the solved examples; their answers stand in that excerpt, among the
question's options, or are yes or no. Examples come from *other held-out documents*, never from training.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from instructpt.corpus.document import Document, content_hash
from instructpt.synthesis.model import parts_of, with_options

QuestionKind = Literal["yes-no", "options", "span"]

MAX_DOCUMENT_CHARACTERS = 100_000
MAX_ANSWER_WORDS = 5
MINED_PER_DOCUMENT = 8
MIN_EXCERPT_CHARACTERS = 200
MAX_EXCERPT_CHARACTERS = 1200
_YES_NO = frozenset({"yes", "no", "true", "false"})
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class MinedPair(Protocol):
    """What a miner yields; ``instructpt.synthesis.model.Pair`` is one."""

    @property
    def question(self) -> str:
        """With its options, where it has some."""

    @property
    def answer(self) -> str:
        """The response."""


Miner = Callable[[str, int, int], Sequence[MinedPair]]
"""(document, seed, most pairs) -> pairs; ``instructpt.synthesis.mined.mine`` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A document's beginning with one solved question on it."""

    context: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of the evaluation set.

    Attributes:
        id: ``<document>?<number>``.
        document: Id of its document.
        kind: ``yes-no``, ``options`` or ``span`` (the answer stands in the context).
        context: The beginning of the document.
        question: With its options, where it has some.
        answer: The gold answer.
        num_options: Answers to choose among: 2 for yes-no, 0 for a span.
        shots: Solved examples, from other documents.
    """

    id: str
    document: str
    kind: QuestionKind
    context: str
    question: str
    answer: str
    num_options: int
    shots: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """Questions, and what was not taken: reason -> number."""

    questions: tuple[Question, ...]
    dropped: dict[str, int]


def normalize(answer: str) -> str:
    """Lower-case, without punctuation, articles and extra white space (SQuAD, arXiv 1606.05250, section 6.1)."""
    bare = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same after :func:`normalize`."""
    return normalize(prediction) == normalize(answer)


def choose_documents(
    documents: Iterable[Document], max_documents: int, seed: int
) -> tuple[tuple[Document, ...], dict[str, int]]:
    """At most ``max_documents`` documents, those with the smallest hash of seed and content, ordered by that hash.

    Equal texts count once. Memory: the chosen documents, however many there are.

    Returns:
        The documents, cut at ``MAX_DOCUMENT_CHARACTERS``, and counts: ``available`` documents, ``used`` ones,
        ``duplicates`` of used ones, and used ones that were ``cut``.
    """
    heap: list[tuple[int, str, str]] = []
    times: dict[int, int] = {}
    available = 0
    for document in documents:
        available += 1
        rank = _rank(seed, "document", content_hash(document.text))
        if rank in times:
            times[rank] += 1
            continue
        # Negative, because heapq keeps the smallest at the top and the largest rank has to go first.
        item = (-rank, document.id, document.text)
        if len(heap) >= max_documents and item < heap[0]:
            continue
        times[rank] = 1
        if len(heap) < max_documents:
            heapq.heappush(heap, item)
        else:
            del times[-heapq.heapreplace(heap, item)[0]]
    found = [(name, text) for _, name, text in sorted(heap, reverse=True)]
    counts = {
        "available": available,
        "used": len(found),
        "duplicates": sum(times.values()) - len(times),
        "cut": sum(len(text) > MAX_DOCUMENT_CHARACTERS for _, text in found),
    }
    return tuple(Document(id=name, text=text[:MAX_DOCUMENT_CHARACTERS]) for name, text in found), counts


def excerpt_characters(context_tokens: int, shots: int) -> int:
    """How much of a document a question is asked on: two characters a token, shared by the document and its examples.

    English has about 3 to 4 characters a token, so this leaves a good third of the context to questions and answers.
    """
    return min(MAX_EXCERPT_CHARACTERS, max(MIN_EXCERPT_CHARACTERS, 2 * context_tokens // (shots + 1)))


def excerpt(text: str, characters: int) -> str:
    """The text's beginning, at most so many characters, ended at white space where there is some."""
    if len(text) <= characters:
        return text.strip()
    cut = text[:characters]
    space = max(cut.rfind(" "), cut.rfind("\n"))
    return cut[: space if space > characters // 2 else characters].strip()


def build_questions(
    documents: Sequence[Document], miner: Miner, *, max_questions: int, shots: int,
    characters: int, seed: int,
) -> QuestionSet:  # fmt: skip
    """Mine questions from excerpts and choose among them, kind by kind in turn, so that no kind drowns the others.

    Args:
        documents: Held-out documents.
        miner: Makes pairs from a text.
        max_questions: At most so many.
        shots: Solved examples for each; fewer where there are not that many other documents.
        characters: Length of an excerpt.
        seed: Of the rules and of the choice.
    """
    dropped: Counter[str] = Counter()
    pool: list[Question] = []
    for document in documents:
        context = excerpt(document.text, characters)
        for number, pair in enumerate(miner(context, seed, MINED_PER_DOCUMENT)):
            question = _to_question(document.id, number, context, pair)
            if isinstance(question, str):
                dropped[question] += 1
            else:
                pool.append(question)
    chosen = _choose_in_turn(pool, max_questions, seed)
    dropped["over-max-questions"] += len(pool) - len(chosen)
    finished = tuple(_with_shots(question, pool, shots, seed) for question in chosen)
    dropped["shots-not-to-be-had"] += sum(shots - len(question.shots) for question in finished)
    return QuestionSet(questions=finished, dropped={k: v for k, v in sorted(dropped.items()) if v})


def render_prompt(question: Question, shots: int | None = None) -> str:
    """The text that a model continues: examples, then the document and the question, up to ``Answer:``.

    A plain layout that belongs to no template set, the same for every model.

    Args:
        question: With its examples.
        shots: Only so many of the examples, the first ones.
    """
    parts = [
        f"{shot.context}\n\nQuestion: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in question.shots[:shots]
    ]
    return "".join(parts) + f"{question.context}\n\nQuestion: {question.question}\nAnswer:"


def majority_answers(questions: Sequence[Question]) -> dict[QuestionKind, str]:
    """The most frequent gold answer (normalised) of each kind; of equally frequent ones the first in the alphabet.

    It is counted over the very questions it is then measured on, so it is the best constant answer there is: a baseline
    that is a little too strong rather than too weak.
    """
    counts: dict[QuestionKind, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.kind, Counter())[normalize(question.answer)] += 1
    return {kind: min(counter, key=lambda answer: (-counter[answer], answer)) for kind, counter in counts.items()}


def chance(question: Question) -> float:
    """Probability of the right answer when one of the choices is drawn; 0 where there are none."""
    return 1.0 / question.num_options if question.num_options else 0.0


def _rank(seed: int, *parts: str) -> int:
    text = "\0".join((str(seed), *parts))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _to_question(document: str, number: int, context: str, pair: MinedPair) -> Question | str:
    """The question, or the reason why the pair makes none."""
    parts = parts_of(pair.question, pair.answer)
    gold = normalize(parts.conclusion)
    if not gold:
        return "answer-empty-when-normalised"
    if len(parts.conclusion.split()) > MAX_ANSWER_WORDS:
        return "answer-too-long"
    kind: QuestionKind
    if parts.options:
        if gold not in {normalize(option) for option in parts.options}:
            return "answer-not-among-options"
        kind = "options"
    elif gold in _YES_NO:
        kind = "yes-no"
    elif f" {gold} " in f" {normalize(context)} ":
        kind = "span"
    else:
        return "answer-not-in-document"
    return Question(
        id=f"{document}?{number}",
        document=document,
        kind=kind,
        context=context,
        question=with_options(parts.stem, parts.options) if parts.options else parts.stem,
        answer=parts.conclusion,
        num_options=2 if kind == "yes-no" else len(parts.options),
    )


def _choose_in_turn(pool: Sequence[Question], most: int, seed: int) -> list[Question]:
    by_kind: dict[str, list[Question]] = {}
    for question in sorted(pool, key=lambda q: (_rank(seed, "question", q.id, q.question), q.id)):
        by_kind.setdefault(question.kind, []).append(question)
    queues = [by_kind[kind] for kind in sorted(by_kind)]
    chosen: list[Question] = []
    for place in range(max((len(queue) for queue in queues), default=0)):
        chosen += [queue[place] for queue in queues if place < len(queue)]
    return chosen[:most]


def _with_shots(question: Question, pool: Sequence[Question], shots: int, seed: int) -> Question:
    """Examples of the same kind before others, each from a document of its own, drawn by hash."""
    others = [q for q in pool if q.document != question.document and q.context != question.context]
    others.sort(key=lambda q: (q.kind != question.kind, _rank(seed, "shot", question.id, q.id)))
    taken: dict[str, Example] = {}
    for other in others:
        if len(taken) >= shots:
            break
        taken.setdefault(other.document, Example(context=other.context, question=other.question, answer=other.answer))
    return replace(question, shots=tuple(taken.values()))
