"""Miners of what sentences say: summary, definitions, causes and conditions, inference, paraphrase."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

from instructpt.synthesis.mined.candidate import Candidate, ask, data, reason, words
from instructpt.synthesis.mined.discourse import mine_renaming
from instructpt.synthesis.mined.text import MinedText, bare, is_content

MAX_SUMMARY_WORDS = 16
MAX_CLAUSE_WORDS = 10
MAX_FRAGMENT_WORDS = 14
QUOTE_WORDS = 4
_SUBJECT = r"((?:(?:An?|The) )?[\w'-]+(?: [\w'-]+){0,2}?)"
_DEFINITION = re.compile(rf"^{_SUBJECT} (?:is|are|means) ((?:an?|the) [^,;:()]+)")
_CUT = re.compile(r" (?:that|which|who|whose|where|because|so|but|if|when|unless|and|with|for|using|by|as) |[,;:()]")
_ALIAS = re.compile(
    r"([\w-]+(?: [\w-]+){0,2}),? \(?(?:also|often|sometimes|better|otherwise|commonly) "
    r"(?:known as|called|named|referred to as|spelled) (?:the |an? )?([\w-]+(?: [\w-]+){0,2})"
)
_SAME = re.compile(
    r"\b(?:same as|equivalent to|identical to|shorthand for|synonym for|alias for|alias of|short for|similar to) "
    r"(?:the |an? )?([^\s,;()]+(?: [^\s,;()]+){0,4})"
)
_ACRONYM = re.compile(r"\(([A-Z]{2,6})\)")
_USED = re.compile(r"\b(?:used|useful|intended|designed|meant) (to|for|as) ([^,;:()]+)")


def mine_prose(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """Candidates of five families, from the sentences of a document."""
    yield from _summary(text, rng)
    yield from mine_renaming(text, [names for sentence in text.sentences for names in names_in(sentence)], rng)
    yield from _mentions(text, rng)
    previous = ""
    for sentence in text.sentences:
        yield from _definition(sentence, rng)
        yield from _causes(sentence, rng)
        yield from _uses(sentence, rng)
        yield from _paraphrases(sentence, rng)
        if previous:
            yield from _relation(sentence, rng)
        previous = sentence
    for sentence in text.short_sentences:
        yield from _statement(sentence, rng)
        yield from _keywords(sentence, rng)


def _summary(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """A heading as title, the first sentence as summary."""
    if text.title:
        yield Candidate(family="summary", task="title", question=ask("title", rng), answer=text.title)
    if text.sentences and len(text.sentences[0].split()) <= MAX_SUMMARY_WORDS:
        question = ask("opening-sentence", rng)
        yield Candidate(family="summary", task="opening-sentence", question=question, answer=text.sentences[0])


def _mentions(text: MinedText, rng: random.Random) -> Iterator[Candidate]:
    """Whether a frequent word occurs; present and absent ones come from the same list, in equal shares."""
    terms = words("terms")
    present = [term for term in terms if term in text.vocabulary]
    absent = [term for term in terms if term not in text.vocabulary]
    if not text.sentences:
        return
    groups = [group for group in (present, absent) if group]
    term = rng.choice(rng.choice(groups))
    found = term in text.vocabulary
    why = _quote_around(text, term) if found else reason("absent", term=term)
    answer = str(data()["yes"] if found else data()["no"])
    question = ask("mentions", rng, term=term)
    yield Candidate(family="inference", task="mentions", question=question, answer=answer, reasoning=why)


def _quote_around(text: MinedText, term: str) -> str:
    """The words around a term as a reason; nothing where a quotation mark stands among them."""
    tokens = text.flat.split()
    place = next((index for index, token in enumerate(tokens) if bare(token).lower() == term), None)
    if place is None:
        return ""
    quote = " ".join(tokens[max(0, place - QUOTE_WORDS) : place + QUOTE_WORDS + 1])
    return "" if '"' in quote else reason("found", quote=quote)


def _definition(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """X is a Y."""
    match = _DEFINITION.match(sentence)
    if match is None:
        return
    subject = match[1].split()
    if subject[0].lower() in ("a", "an", "the"):
        subject[0] = subject[0].lower()
    answer = _clause(match[2])
    nouns = subject[1:] if subject[0] in ("a", "an", "the") else subject
    if answer and nouns and all(map(is_content, nouns)) and len(answer.split()) > 1:
        question = ask("definition", rng, term=" ".join(subject))
        yield Candidate(family="word-to-text", task="definition", question=question, answer=answer)


def _clause(text: str) -> str:
    """The first clause of a text without the full stop; empty if it is longer than a clause may be."""
    clause = _CUT.split(text, maxsplit=1)[0].strip(" .!?")
    return clause if 0 < len(clause.split()) <= MAX_CLAUSE_WORDS else ""


@cache
def _connective() -> re.Pattern[str]:
    """A connective between an effect and what it depends on; named groups say which kind."""
    groups = (
        f"(?P<{kind}>{'|'.join(re.escape(word) for word in group)})" for kind, group in data()["connectives"].items()
    )
    return re.compile(rf",? \b(?:{'|'.join(groups)})\b ")


def _causes(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """If C, E; E if C; E because C; E so that P."""
    body = sentence.rstrip(" .!?")
    first, _, after = body.partition(" ")
    if first in data()["leading_conditions"]:
        condition, comma, effect = after.partition(", ")
        effect = effect.removeprefix("then ").partition(". ")[0]
        fits = len(condition.split()) <= MAX_FRAGMENT_WORDS and 0 < len(effect.split()) <= MAX_FRAGMENT_WORDS
        if comma and fits and not first.startswith("("):
            question = ask("effect", rng, condition=f"{first.lower()} {condition}")
            yield Candidate(family="cause-effect", task="effect", question=question, answer=effect)
        return
    match = _connective().search(body)
    if match is None or match.lastgroup is None:
        return
    effect = body[: match.start()]
    answer = match[0].lstrip(", ") + body[match.end() :].partition(", ")[0]
    if '"' in effect or not 2 <= len(effect.split()) <= MAX_FRAGMENT_WORDS:
        return
    if 1 < len(answer.split()) <= MAX_FRAGMENT_WORDS:
        task = match.lastgroup
        question = ask(task, rng, effect=effect)
        yield Candidate(family="cause-effect", task=task, question=question, answer=answer)


def _uses(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """Used to do something, used for something."""
    match = _USED.search(sentence)
    answer = _clause(match[2]) if match else ""
    if match and answer:
        question = ask("used-for", rng)
        yield Candidate(family="cause-effect", task="used-for", question=question, answer=f"{match[1]} {answer}")


def _paraphrases(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """Other names, things said to be the same, and what acronyms abbreviate."""
    for term, other in _aliases(sentence):
        question = ask("other-name", rng, term=term)
        yield Candidate(family="paraphrase", task="other-name", question=question, answer=other)
    if same := _SAME.search(sentence):
        answer = _clause(f"{same[1]} ")
        if answer:
            yield Candidate(family="paraphrase", task="same-as", question=ask("same-as", rng), answer=answer)
    for short, long in _acronyms(sentence):
        question = ask("acronym", rng, term=short)
        yield Candidate(family="paraphrase", task="acronym", question=question, answer=long)


def names_in(sentence: str) -> list[tuple[str, str]]:
    """Two names of one thing, for each that the sentence gives two names to."""
    return [*_aliases(sentence), *_acronyms(sentence)]


def _aliases(sentence: str) -> Iterator[tuple[str, str]]:
    alias = _ALIAS.search(sentence)
    term = _last_words(alias[1]) if alias else ""
    if alias and term:
        yield term, alias[2]


def _acronyms(sentence: str) -> Iterator[tuple[str, str]]:
    for match in _ACRONYM.finditer(sentence):
        long = sentence[: match.start()].split()[-len(match[1]) :]
        if len(long) == len(match[1]) and "".join(word[0] for word in long).upper() == match[1]:
            yield match[1], " ".join(long)


def _last_words(phrase: str) -> str:
    """What follows the last word of a phrase that carries no meaning."""
    tokens: list[str] = []
    for token in reversed(phrase.split()):
        if not is_content(token):
            break
        tokens.insert(0, token)
    return " ".join(tokens)


def _relation(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """How a sentence that opens with a connective relates to the one before it."""
    relations = data()["relations"]
    for relation, openings in relations.items():
        if any(sentence.startswith((f"{opening} ", f"{opening}, ")) for opening in openings):
            start = " ".join(sentence.split()[:6]).rstrip(".,;:!?")
            if '"' not in start:
                options = list(relations)
                rng.shuffle(options)
                question = ask("relation", rng, start=start)
                yield Candidate(
                    family="inference", task="relation", question=question, answer=relation, options=tuple(options)
                )
            return


def _statement(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """A sentence as it stands (yes), or with its first auxiliary negated or freed from its negation (no)."""
    changed = _negated(sentence.split())
    if changed is None:
        return
    is_true = rng.random() < 0.5
    statement = (sentence if is_true else changed).rstrip(" .!?")
    answer = str(data()["yes"] if is_true else data()["no"])
    question = ask("statement", rng, statement=statement)
    yield Candidate(family="inference", task="statement", question=question, answer=answer)


def _negated(tokens: list[str]) -> str | None:
    for index, token in enumerate(tokens[:-1]):
        if token in words("auxiliaries"):
            rest = tokens[index + 2 :] if tokens[index + 1] == "not" else ["not", *tokens[index + 1 :]]
            return " ".join([*tokens[: index + 1], *rest])
    return None


def _keywords(sentence: str, rng: random.Random) -> Iterator[Candidate]:
    """A sentence from three of its words."""
    content = list(dict.fromkeys(bare(word) for word in sentence.split() if is_content(bare(word))))
    if len(content) >= 3 and len(sentence.split()) <= MAX_FRAGMENT_WORDS:
        picked = sorted(rng.sample(range(len(content)), 3))
        question = ask("keywords", rng, words=", ".join(content[index] for index in picked))
        yield Candidate(family="word-to-text", task="keywords", question=question, answer=sentence)
