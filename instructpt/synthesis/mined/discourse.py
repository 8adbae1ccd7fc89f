"""Miners of what stands between sentences: what follows from what, what is said again, and how the text goes on."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from instructpt.synthesis.mined.candidate import Candidate, ask, data, words
from instructpt.synthesis.mined.text import MinedText, bare, is_content

MAX_SENTENCE_WORDS = 16
MAX_PAIRS_OF_SENTENCES = 4
MIN_TOPIC_COUNT = 3
MAX_NAMES = 4


def mine_discourse(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """Candidates of four families, from sentences that follow one another and from the text as a whole."""
    yield from _topic(text, rng)
    for first, second in pairwise(text.sentences):
        if _is_short(first) and _is_short(second):
            yield from _consequence(first, second, rng)
            yield from _restated(first, second, rng)
            yield from _likeness(first, second, rng)
    following = [(one, two) for one, two in pairwise(text.sentences) if _is_short(one) and _is_short(two)]
    for first, second in rng.sample(following, min(MAX_PAIRS_OF_SENTENCES, len(following))):
        if text.holds(f"{first} {second}"):
            question = ask("continuation", rng, sentence=first)
            yield Candidate(family="completion", task="continuation", question=question, answer=second)


def mine_renaming(text: MinedText, names: list[tuple[str, str]], rng: random.Random) -> Iterator[Candidate]:
    """Whether a sentence still says the same with another name in it; yes and no in equal shares.

    Args:
        text: The document.
        names: Two names of one thing, as the document gives them.
        rng: Decides which sentences, and whether the name is that of the same thing.
    """
    content = sorted({bare(word) for sentence in text.sentences for word in sentence.split() if is_content(bare(word))})
    for one, other in list(dict.fromkeys(names))[:MAX_NAMES]:
        for name, renamed in ((one, other), (other, one)):
            place = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
            for sentence in text.short_sentences:
                # Not the sentence that gives both names.
                if renamed in sentence or len(place.findall(sentence)) != 1:
                    continue
                is_same = rng.random() < 0.5
                strangers = [word for word in content if word.lower() not in f"{sentence} {renamed} {name}".lower()]
                if not is_same and not strangers:
                    continue
                put = renamed if is_same else rng.choice(strangers)
                changed = place.sub(lambda _, put=put: put, sentence)  # type: ignore[misc]
                question = ask("same-meaning", rng, first=sentence, second=changed)
                answer = str(data()["yes"] if is_same else data()["no"])
                yield Candidate(family="paraphrase", task="same-meaning", question=question, answer=answer)


def _is_short(sentence: str) -> bool:
    return len(sentence.split()) <= MAX_SENTENCE_WORDS and '"' not in sentence


def _topic(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """The word of the text that occurs most, where one plainly does."""
    counts = Counter(bare(word).lower() for word in text.flat.split() if is_content(bare(word)))
    ranked = counts.most_common(2)
    if not ranked or ranked[0][1] < MIN_TOPIC_COUNT or (len(ranked) > 1 and ranked[1][1] == ranked[0][1]):
        return
    if text.holds(ranked[0][0]):
        yield Candidate(family="summary", task="topic", question=ask("topic", rng), answer=ranked[0][0])


def _after(sentence: str, openings: tuple[str, ...]) -> str:
    """What follows an opening and its comma; empty where the sentence does not open so."""
    for opening in openings:
        if sentence.startswith(f"{opening}, "):
            return sentence[len(opening) + 2 :]
    return ""


def _consequence(first: str, second: str, rng: random.Random) -> Iterator[Candidate]:
    """One sentence, and the next that names what it leads to; asked for in both directions."""
    effect = _after(second, tuple(data()["relations"]["consequence"])).rstrip(" .!?")
    if len(effect.split()) < 2:
        return
    cause = first.rstrip(" .!?")
    question = ask("consequence", rng, cause=cause)
    yield Candidate(family="cause-effect", task="consequence", question=question, answer=effect)
    question = ask("ground", rng, effect=effect)
    yield Candidate(family="cause-effect", task="ground", question=question, answer=cause)


def _restated(first: str, second: str, rng: random.Random) -> Iterator[Candidate]:
    """One sentence, and the next that says it again."""
    again = _after(second, words("restatements")).rstrip(" .!?")
    if len(again.split()) > 1:
        question = ask("restated", rng, sentence=first.rstrip(" .!?"))
        yield Candidate(family="paraphrase", task="restated", question=question, answer=again)


def _likeness(first: str, second: str, rng: random.Random) -> Iterator[Candidate]:
    """Two sentences that the text itself calls alike or unlike."""
    for likeness, openings in data()["likeness"].items():
        rest = _after(second, tuple(openings))
        if rest:
            options = list(data()["likeness"])
            rng.shuffle(options)
            question = ask("likeness", rng, first=first.rstrip(" .!?"), second=rest.rstrip(" .!?"))
            yield Candidate(
                family="paraphrase", task="likeness", question=question, answer=likeness, options=tuple(options)
            )
            return
