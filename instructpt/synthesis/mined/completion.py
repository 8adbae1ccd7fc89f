"""Miners of wording: missing words, endings, what follows, and which wording is that of the text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from instructpt.synthesis.mined.candidate import Candidate, ask, reason
from instructpt.synthesis.mined.text import MinedText, bare, is_content

MAX_SENTENCES = 6
BLANK_WINDOW = 4
MAX_ENDING_WORDS = 4
BEGINNING_WORDS = 4
CONTEXT_WORDS = 3
_NUMBER = re.compile(r"(?<![\w.])\d{1,6}(?:\.\d{1,4})?(?![\w])")


def mine_completion(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """Text completion: all of it can be copied from the document."""
    sentences = _sample(text.short_sentences, rng)
    for sentence in sentences:
        yield from _blank(text, sentence, rng)
        yield from _ending(text, sentence, rng)
        yield from _next_word(text, sentence, rng)
    if text.sentences:
        tokens = text.sentences[0].split()[:BEGINNING_WORDS]
        if len(tokens) == BEGINNING_WORDS:
            question = ask("beginning", rng)
            yield Candidate(family="completion", task="beginning", question=question, answer=" ".join(tokens))
    numbers = set(_NUMBER.findall(text.flat))
    if text.sentences and len(numbers) == 1:
        (number,) = numbers
        yield Candidate(family="completion", task="number", question=ask("number", rng), answer=number)


def mine_similarity(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """Paraphrase detection: a stretch of the text among others that differ from it in one word of the text."""
    content = sorted({bare(word) for sentence in text.sentences for word in sentence.split() if is_content(bare(word))})
    for sentence in _sample(text.short_sentences, rng):
        tokens = sentence.rstrip(" .!?").split()
        if len(tokens) < 4 or len(content) < 4:
            continue
        start = rng.randrange(max(1, len(tokens) - 5))
        stretch = tokens[start : start + 6]
        stretch[-1] = stretch[-1].rstrip(",;:")
        places = [index for index, token in enumerate(stretch) if is_content(token)]
        if not places:
            continue
        place = rng.choice(places)
        others = [word for word in content if word.lower() != stretch[place].lower()]
        variants = [[*stretch[:place], word, *stretch[place + 1 :]] for word in rng.sample(others, min(2, len(others)))]
        answer = " ".join(stretch)
        options = [answer, *(joined for variant in variants if not text.holds(joined := " ".join(variant)))]
        if len(options) > 1:
            rng.shuffle(options)
            question = ask("as-in-text", rng)
            yield Candidate(
                family="paraphrase", task="as-in-text", question=question, answer=answer, options=tuple(options)
            )


def _sample(sentences: tuple[str, ...], rng: random.Random) -> list[str]:
    return rng.sample(sentences, min(MAX_SENTENCES, len(sentences)))


def _blank(text: MinedText, sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """A word missing from a window of its sentence, with other words of the document as options or without."""
    tokens = sentence.split()
    places = [index for index, token in enumerate(tokens) if is_content(token) and index > 0]
    if not places:
        return
    place = rng.choice(places)
    before = " ".join(tokens[max(0, place - BLANK_WINDOW) : place])
    after = " ".join(tokens[place + 1 : place + 1 + BLANK_WINDOW]).rstrip(" .!?")
    answer = tokens[place]
    if not after:
        return
    others = sorted(
        {bare(word) for word in text.flat.split() if is_content(bare(word))} - {answer, answer.lower()},
    )
    options: tuple[str, ...] = ()
    if len(others) >= 2 and rng.random() < 0.5:
        shown = [answer, *rng.sample(others, 2)]
        rng.shuffle(shown)
        options = tuple(shown)
    why = reason("found", quote=f"{before} {answer} {after}")
    question = ask("blank", rng, before=before, after=after)
    yield Candidate(family="completion", task="blank", question=question, answer=answer, options=options, reasoning=why)


def _ending(text: MinedText, sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """The last words of a sentence."""
    tokens = sentence.rstrip(" .!?").split()
    if len(tokens) < MAX_ENDING_WORDS + 3:
        return
    length = rng.randint(2, MAX_ENDING_WORDS)
    before, answer = " ".join(tokens[:-length]), " ".join(tokens[-length:])
    if text.flat.count(f"{before} ") == 1:
        question = ask("ending", rng, before=before)
        yield Candidate(family="completion", task="ending", question=question, answer=answer)


def _next_word(text: MinedText, sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """The word after three words that occur once."""
    tokens = sentence.split()
    places = [index for index in range(CONTEXT_WORDS, len(tokens)) if bare(tokens[index]) == tokens[index]]
    if not places:
        return
    place = rng.choice(places)
    before = " ".join(tokens[place - CONTEXT_WORDS : place])
    if text.flat.count(f"{before} ") == 1:
        question = ask("next-word", rng, before=before)
        yield Candidate(family="completion", task="next-word", question=question, answer=tokens[place])
