"""Rule-mined reading comprehension: instruction-response pairs out of a document without any model.

Six families of tasks, after AdaptLLM (arXiv 2309.09530, section 3: summary, word-to-text, natural-language inference,
commonsense reasoning, paraphrase detection, text completion) and TransformLLM; the rules are this project's own, for
plain English prose and for reference documentation. Most answers are a few words that stand in the document, so that
small models can learn the tasks and an exact match can judge them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterable

from instructpt.synthesis import profiles
from instructpt.synthesis.mined.candidate import Candidate
from instructpt.synthesis.mined.completion import mine_completion, mine_similarity
from instructpt.synthesis.mined.discourse import mine_discourse
from instructpt.synthesis.mined.prose import mine_prose
from instructpt.synthesis.mined.reference import mine_reference
from instructpt.synthesis.mined.text import MinedText
from instructpt.synthesis.model import Pair, make_pair, with_options, with_reasoning
from instructpt.synthesis.rules import MinedPair

FAMILIES = ("summary", "word-to-text", "inference", "cause-effect", "paraphrase", "completion")
MAX_DOCUMENT_CHARS = 20_000
LONG_ANSWER_WORDS = 8
MAX_LONG_ANSWERS = 1
MAX_PER_TASK = 2
# Tasks that nearly every document offers, held back so that rarer ones have room.
ONCE_PER_DOCUMENT = frozenset({"as-in-text", "mentions", "has-parameter", "blank", "next-parameter"})
MAX_QUESTION_CHARS = 240
REASONING_SHARE = 0.15
MINERS = (mine_prose, mine_discourse, mine_reference, mine_similarity, mine_completion)

__all__ = ["FAMILIES", "mine", "mine_tasks"]


def mine(document: str, seed: int, max_pairs: int = 5, forbidden: Collection[str] | None = None) -> list[Pair]:
    """The pairs of ``mine_tasks``."""
    return [found.pair for found in mine_tasks(document, seed, max_pairs, forbidden)]


def mine_tasks(
    document: str, seed: int, max_pairs: int = 5, forbidden: Collection[str] | None = None
) -> list[MinedPair]:
    """The pairs the rules find in a document, at most ``max_pairs``, spread over the families.

    Every answer stands in the document (white space aside), is one of the question's options, or is yes or no. The
    questions differ from one another, letter case aside. No pair holds a line break outside the marks of options and
    reasoning, an unprintable character, or a forbidden string. At most one answer has more than eight words, and one
    pair is closed (options or yes and no) wherever a rule offers one.

    Args:
        document: Any text. Rules read its first 20,000 characters.
        seed: Decides, with the document itself, which of the candidates are taken.
        max_pairs: The most pairs.
        forbidden: Strings no pair may hold; the default profile's tags if ``None``.
    """
    tags = profiles.load().forbidden_tags if forbidden is None else tuple(forbidden)
    digest = hashlib.sha256(f"{seed}\0".encode() + document.encode("utf-8", "surrogatepass")).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    text = MinedText.of(document[:MAX_DOCUMENT_CHARS])
    found = [candidate for miner in MINERS for candidate in miner(text, rng) if _is_sound(candidate, text, tags)]
    chosen = _choose(found, max_pairs, rng)
    return [MinedPair(family=found.family, task=found.task, pair=_to_pair(found, rng)) for found in chosen]


def _is_sound(candidate: Candidate, text: MinedText, tags: Iterable[str]) -> bool:
    """Whether a candidate may become a pair at all."""
    if not candidate.is_closed and not text.holds(candidate.answer):
        return False
    texts = [candidate.question, candidate.answer, candidate.reasoning, *candidate.options]
    if not candidate.question.strip() or not candidate.answer.strip() or len(candidate.question) > MAX_QUESTION_CHARS:
        return False
    if any(not part.isprintable() or part != part.strip() for part in texts):
        return False
    if candidate.options and (
        len(set(candidate.options)) != len(candidate.options) or candidate.answer not in candidate.options
    ):
        return False
    joined = "\n".join(texts)
    return not any(tag in joined for tag in tags)


def _choose(found: list[Candidate], max_pairs: int, rng: random.Random) -> list[Candidate]:
    """Take candidates family by family; within one, a random task and then a random candidate of it."""
    pool: dict[str, dict[str, list[Candidate]]] = {}
    for candidate in found:
        pool.setdefault(candidate.family, {}).setdefault(candidate.task, []).append(candidate)
    chosen: list[Candidate] = []
    asked: set[str] = set()

    def take(candidate: Candidate) -> bool:
        long = sum(_words(taken.answer) > LONG_ANSWER_WORDS for taken in chosen)
        same = sum(taken.task == candidate.task for taken in chosen)
        limit = 1 if candidate.task in ONCE_PER_DOCUMENT else MAX_PER_TASK
        too_long = _words(candidate.answer) > LONG_ANSWER_WORDS and long >= MAX_LONG_ANSWERS
        if candidate.question.lower() in asked or same >= limit or too_long:
            return False
        asked.add(candidate.question.lower())
        chosen.append(candidate)
        return True

    closed = [candidate for candidate in found if candidate.is_closed]
    if closed and max_pairs > 0:
        task = rng.choice(sorted({candidate.task for candidate in closed}))
        take(rng.choice([candidate for candidate in closed if candidate.task == task]))
    while pool and len(chosen) < max_pairs:
        families = sorted(pool)
        rng.shuffle(families)
        for family in families:
            if len(chosen) >= max_pairs:
                break
            _take_one(pool, family, rng, take)
    rng.shuffle(chosen)
    return chosen


def _take_one(
    pool: dict[str, dict[str, list[Candidate]]], family: str, rng: random.Random, take: Callable[[Candidate], bool]
) -> None:
    """Take one candidate of a family, trying until one is accepted; what was tried leaves the pool."""
    tasks = pool[family]
    while tasks:
        task = rng.choice(sorted(tasks))
        candidates = tasks[task]
        candidate = candidates.pop(rng.randrange(len(candidates)))
        if not candidates:
            del tasks[task]
        if take(candidate):
            break
    if not tasks:
        del pool[family]


def _words(text: str) -> int:
    return len(text.split())


def _to_pair(candidate: Candidate, rng: random.Random) -> Pair:
    """The candidate as a pair; a share of those with a reasoning shows it."""
    question = with_options(candidate.question, candidate.options) if candidate.options else candidate.question
    if candidate.reasoning and rng.random() < REASONING_SHARE:
        return with_reasoning(question, candidate.reasoning, candidate.answer)
    return make_pair(question, candidate.answer)
