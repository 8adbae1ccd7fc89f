"""Miners of reference documentation: signatures, parameters, defaults, returned values, exceptions."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from instructpt.synthesis.mined.candidate import Candidate, ask, data, words
from instructpt.synthesis.mined.text import MinedText

MAX_GLOSS_WORDS = 8
_SIGNATURE = re.compile(r"^(?:(?:async )?(?:def|class) )?([A-Za-z_][\w.]*)\((.*)\)(?: ?->.{0,60})?:?$")
_PARAMETER = re.compile(r"^\*{0,2}([A-Za-z_]\w*)(?: ?: ?[^=]+?)?(?: ?= ?(.+))?$")
# "name -- text" for any word; "name: text" and "name  text" for words in lower case, since prose has the like.
_GLOSS = re.compile(
    r"^['\"]?(?:([A-Za-z_][\w-]{0,30})['\"]? --? |([a-z_][\w-]{0,30})['\"]?(?:: +|  +))([A-Za-z][^:]*)$"
)
_RETURNS = re.compile(r"^Returns? ([^,;:()]+)")
_RETURN_CUT = re.compile(r" (?:if|when|that|which|where|with|for|as|in|on|from|or|and|using|so) ")
_EXCEPTION = re.compile(r"\b([A-Z][A-Za-z]*(?:Error|Exception|Warning|StopIteration|KeyboardInterrupt|SystemExit))\b")
_RAISED_WHEN = re.compile(r"\b(?:exception |error )?(?:is |will be |are )?(?:raised )?((?:if|when|on|unless) [^,;]+)")
_DEFAULTS = re.compile(r"\b([A-Za-z_]\w+) (?:defaults to|is by default|has the default value) ([^\s,;()]+)")


def mine_reference(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """Candidates from what reference documentation says about code."""
    yield from _signature(text, rng)
    for line in text.lines:
        yield from _gloss(line, rng)
    for sentence in text.sentences:
        yield from _returns(sentence, rng)
        for match in _DEFAULTS.finditer(sentence):
            yield from _default(match[1], match[2].rstrip("."), rng)
    yield from _exceptions(text, rng)


def _signature(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """A signature in the first line: its name, parameters and defaults."""
    match = _SIGNATURE.match(text.lines[0]) if text.lines else None
    if match is None:
        return
    question = ask("documented-name", rng)
    yield Candidate(family="summary", task="documented-name", question=question, answer=match[1])
    parameters = [found for part in _split_parameters(match[2]) if (found := _PARAMETER.match(part))]
    names = [found[1] for found in parameters if found[1] not in ("self", "cls")]
    if names:
        question = ask("first-parameter", rng)
        yield Candidate(family="word-to-text", task="first-parameter", question=question, answer=names[0])
        yield from _has_parameter(names, rng)
    for name, following in zip(names, names[1:], strict=False):
        question = ask("next-parameter", rng, term=name)
        yield Candidate(family="word-to-text", task="next-parameter", question=question, answer=following)
    for found in parameters:
        if found[2]:
            yield from _default(found[1], found[2].strip(), rng)


def _split_parameters(inside: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts = [""]
    depth = 0
    for character in inside:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _has_parameter(names: list[str], rng: random.Random) -> Iterator[Candidate]:
    """Whether there is a parameter of a frequent name; present and absent ones in equal shares."""
    frequent = [name for name in words("parameters") if name not in ("self", "cls")]
    absent = [name for name in frequent if name not in names]
    is_there = rng.random() < 0.5
    term = rng.choice(names if is_there else absent)
    answer = str(data()["yes"] if is_there else data()["no"])
    question = ask("has-parameter", rng, term=term)
    yield Candidate(family="inference", task="has-parameter", question=question, answer=answer)


def _default(name: str, value: str, rng: random.Random) -> Iterator[Candidate]:
    if 0 < len(value) <= 40:
        question = ask("default-of-parameter", rng, term=name)
        yield Candidate(family="word-to-text", task="default-of-parameter", question=question, answer=value)


def _gloss(line: str, rng: random.Random) -> Iterator[Candidate]:
    """A line that explains a word: word -- explanation."""
    match = _GLOSS.match(line)
    if match is None:
        return
    answer = " ".join(match[3].split()).rstrip(".;,")
    if 0 < len(answer.split()) <= MAX_GLOSS_WORDS:
        question = ask("glossary", rng, term=match[1] or match[2])
        yield Candidate(family="word-to-text", task="glossary", question=question, answer=answer)


def _returns(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """Returns something."""
    match = _RETURNS.match(sentence)
    if match is None:
        return
    answer = _RETURN_CUT.split(match[1], maxsplit=1)[0].strip(" .!?")
    if 0 < len(answer.split()) <= MAX_GLOSS_WORDS:
        yield Candidate(family="cause-effect", task="returned", question=ask("returned", rng), answer=answer)


def _exceptions(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """Which exception is raised, and when."""
    raising = [sentence for sentence in text.sentences if "rais" in sentence.lower()]
    names = {match[1] for sentence in raising for match in _EXCEPTION.finditer(sentence)}
    if len(names) == 1:
        (name,) = names
        yield Candidate(family="cause-effect", task="raised", question=ask("raised", rng), answer=name)
    for sentence in raising:
        match = _EXCEPTION.search(sentence)
        when = _RAISED_WHEN.match(sentence, match.end() + 1) if match else None
        if match and when:
            answer = when[1].strip(" .!?")
            if 1 < len(answer.split()) <= MAX_GLOSS_WORDS + 2:
                question = ask("raised-when", rng, term=match[1])
                yield Candidate(family="cause-effect", task="raised-when", question=question, answer=answer)
