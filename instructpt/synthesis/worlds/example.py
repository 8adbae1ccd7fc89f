"""One document of a generated world, with its questions; and whether an answer to a question on it is right."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from instructpt.synthesis.model import Pair, make_pair, parts_of, with_options
from instructpt.synthesis.worlds.domains import DOMAINS, Attribute, Domain
from instructpt.synthesis.worlds.vocabulary import Vocabulary

Judgement = Literal["right", "wrong", "unknown"]

MAX_PAIRS = 5
_HELD_OUT_SENTENCES = 0.5
_SECOND_SUBJECT = 0.25
_PRONOUN, _SHORT = 0.4, 0.2
_OPTIONS, _CHECK = 0.2, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that a document states.

    Attributes:
        subject: Its full name.
        attribute: Name of the attribute.
        value: As it stands in the document.
    """

    subject: str
    attribute: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A document.

    Attributes:
        domain: Its domain's name.
        context: The text.
        facts: In the order of the text.
        pairs: Questions and their answers, in the order of the facts.
    """

    domain: str
    context: str
    facts: tuple[Fact, ...]
    pairs: tuple[Pair, ...]


def make_example(seed: str, domain: Domain, *, held_out: bool = False) -> Example:
    """An example: the same arguments give the same one.

    Args:
        seed: Of every choice.
        domain: What it is about.
        held_out: Names that training never shows, and in half of the sentences wordings that it never shows.
    """
    rng = random.Random(seed)
    vocabulary = Vocabulary(rng, held_out=held_out)
    facts: list[Fact] = []
    sentences: list[str] = []
    most = len(domain.attributes)
    counts = [rng.randint(min(3, most), most)] + [rng.randint(1, 2)] * (rng.random() < _SECOND_SUBJECT)
    for number, count in enumerate(counts):
        subject = vocabulary.draw(domain.subject)
        pronoun = rng.choice(domain.pronouns)
        for place, attribute in enumerate(rng.sample(domain.attributes, count)):
            value = _other(vocabulary, attribute.kind, {fact.value for fact in facts})
            facts.append(Fact(subject=subject, attribute=attribute.name, value=value))
            says = attribute.says[-1:] if held_out and rng.random() < _HELD_OUT_SENTENCES else attribute.says[:-1]
            name = subject if number or not place else None
            sentences.append(_sentence(rng, rng.choice(says), domain, subject, value, name, pronoun))
    text = (" " if rng.random() < 0.8 else "\n").join(sentences)
    pairs = tuple(_pair(rng, domain, facts, fact, vocabulary) for fact in facts[:MAX_PAIRS])
    return Example(domain=domain.name, context=text, facts=tuple(facts), pairs=pairs)


def make_examples(seed: int, count: int, *, held_out: bool = False) -> list[Example]:
    """So many examples of every domain, domain by domain; no two have the same text."""
    made: dict[str, Example] = {}
    for domain in DOMAINS:
        for number in range(count):
            side = "held-out" if held_out else "training"
            example = make_example(f"{side}:{seed}:{domain.name}:{number}", domain, held_out=held_out)
            made.setdefault(example.context, example)
    return list(made.values())


def judge(example: Example, pair: Pair) -> Judgement:
    """Whether a question is one on the document, and its answer right; ``unknown`` where it asks for nothing stated.

    A question with options is right only if the right value is among them; one for Yes or No is right whichever it is.
    """
    domain = next(d for d in DOMAINS if d.name == example.domain)
    parts = parts_of(pair.question, pair.answer)
    answer = parts.conclusion.strip().rstrip(".")
    for fact in example.facts:
        attribute = domain.attribute(fact.attribute)
        if parts.stem in (ask.format(s=fact.subject) for ask in attribute.asks):
            offered = not parts.options or fact.value in parts.options
            return "right" if answer == fact.value and offered else "wrong"
        asked = _checked_value(attribute, fact.subject, parts.stem)
        if asked is not None:
            return "right" if answer == ("Yes" if asked == fact.value else "No") else "wrong"
    return "unknown"


def _checked_value(attribute: Attribute, subject: str, question: str) -> str | None:
    """The value that a yes-or-no question names; None where it is no such question."""
    for check in attribute.checks:
        head, tail = (part.format(s=subject) for part in check.split("{v}"))
        match = re.fullmatch(f"{re.escape(head)}(.+){re.escape(tail)}", question)
        if match:
            return match[1]
    return None


def _sentence(
    rng: random.Random, pattern: str, domain: Domain, subject: str, value: str, name: str | None, pronoun: str
) -> str:
    """A sentence; ``name`` is what the subject must be called, None leaves a choice."""
    if name is None:
        name, drawn = subject, rng.random()
        if pattern.startswith("{s} ") and drawn < _PRONOUN:
            name = pronoun
        elif pattern.startswith("The {s} ") and drawn < _PRONOUN:
            pattern, name = pattern.removeprefix("The "), pronoun
        elif domain.subject == "person" and drawn > 1 - _SHORT:
            name = subject.split()[-1]
    made = pattern.format(s=name, v=value)
    return made[0].upper() + made[1:]


def _pair(rng: random.Random, domain: Domain, facts: Sequence[Fact], fact: Fact, vocabulary: Vocabulary) -> Pair:
    attribute = domain.attribute(fact.attribute)
    drawn = rng.random()
    others = [f.value for f in facts if domain.attribute(f.attribute).kind == attribute.kind and f.value != fact.value]
    if drawn < _CHECK:
        asked = fact.value
        if rng.random() < 0.5:
            asked = rng.choice(others) if others else _other(vocabulary, attribute.kind, {fact.value})
        question = rng.choice(attribute.checks).format(s=fact.subject, v=asked)
        return make_pair(question, "Yes" if asked == fact.value else "No")
    question = rng.choice(attribute.asks).format(s=fact.subject)
    if drawn < _CHECK + _OPTIONS:
        options = [fact.value, *others][:2]
        while len(options) < 3:
            options.append(_other(vocabulary, attribute.kind, set(options)))
        question = with_options(question, rng.sample(options, len(options)))
    return make_pair(question, fact.value)


def _other(vocabulary: Vocabulary, kind: str, taken: set[str]) -> str:
    while (value := vocabulary.draw(kind)) in taken:
        pass
    return value
