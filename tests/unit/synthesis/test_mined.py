from __future__ import annotations

import argparse
import inspect
import json
import pathlib
import random
import statistics
import subprocess
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.synthesis import Pair, profiles
from instructpt.synthesis.mined import FAMILIES, MINERS, mine, mine_tasks
from instructpt.synthesis.mined.candidate import data, words
from instructpt.synthesis.mined.text import MinedText
from instructpt.synthesis.model import parts_of
from instructpt.synthesis.templates.patterns import PLACEHOLDER

TAGS = profiles.load().forbidden_tags
FABLE = """\
The Fox and the Grapes

A fox is an animal with a long tail. One hot day a fox walked through an orchard because he was thirsty.
He saw a bunch of grapes, also known as Vitis. The vine was used for shade in the summer.
However, the grapes were hanging too high. If he jumped high enough, he could reach the lowest branch.
He jumped 3 times. The World Wide Web (WWW) was of no help to him. Therefore, he walked away.
"""


def corpus() -> list[str]:
    """Documents of 300 to 2,000 characters: signature and documentation of the standard library."""
    documents = []
    for module in (json, pathlib.Path, statistics, subprocess, textwrap, argparse):
        for name, member in sorted(vars(module).items()):
            text = inspect.getdoc(member) if callable(member) and not name.startswith("_") else None
            try:
                document = f"{name}{inspect.signature(member)}\n\n{text}" if text else ""
            except ValueError:
                continue
            if 300 <= len(document) <= 2000:
                documents.append(document)
    return documents


CORPUS = corpus()


def answers_of(pair: Pair) -> tuple[str, tuple[str, ...]]:
    parts = parts_of(pair.question, pair.answer)
    return parts.conclusion, parts.options


def stands_in(answer: str, document: str) -> bool:
    """White space and letter case aside."""
    return " ".join(answer.split()).lower() in " ".join(document.split()).lower()


def check(document: str, pairs: list[Pair], max_pairs: int) -> None:
    """What holds for the pairs of any document."""
    assert len(pairs) <= max_pairs
    assert len({pair.question.lower() for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.question == pair.question.strip() != ""
        assert pair.answer == pair.answer.strip() != ""
        assert not any(tag in pair.question + "\n" + pair.answer for tag in TAGS)
        answer, options = answers_of(pair)
        assert answer in options or answer in ("yes", "no") or stands_in(answer, document)
        assert answer in options or not options
    profile = profiles.load()
    if pairs:
        written = profile.render_tuning([profiles.Shot(document, tuple(pairs))])[1].text
        assert profile.parse(written.removesuffix(profile.eos)) == pairs


@settings(deadline=None)
@given(st.text(max_size=400), st.integers(0, 3), st.integers(0, 8))
def test_any_text(document: str, seed: int, max_pairs: int):
    check(document, mine(document, seed, max_pairs), max_pairs)


tokens = st.sampled_from(
    [*TAGS, *FABLE.split(), "\n", "\n\n", "\ud800", "\x00", '"', "\u2028", "f(a, b=1)", "Returns",
     "raises ValueError if",
     "(ABC)", "- ", ">>> x", "Options:", "\u00e9t\u00e9", "\u4e2d\u6587", "e.g."]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(tokens, max_size=80).map(" ".join), st.integers(0, 3))
def test_any_mixture_of_words(document: str, seed: int):
    check(document, mine(document, seed), 5)


def test_the_same_document_and_seed_give_the_same_pairs():
    assert mine(FABLE, 1) == mine(FABLE, 1)
    assert len({tuple(mine(FABLE, seed)) for seed in range(10)}) > 5


def test_the_bytes_are_frozen():
    # These are rows of a corpus: a change of the rules is a change of the version of the code.
    document = "Maple Syrup\n\nSyrup is a sweet liquid. It is made from sap because sap holds sugar."
    assert [(pair.question, pair.answer) for pair in mine(document, 0, 3)] == [
        ('Does the text say this: "Syrup is not a sweet liquid"?', "no"),
        ('Does the text mention the word "title"?', "no"),
        ('What is the reason for this: "It is made from sap"?', "because sap holds sugar"),
    ]


def test_stdlib_documents_yield_enough_short_pairs():
    assert len(CORPUS) > 40
    mined = [mine(document, 0) for document in CORPUS]
    for document, pairs in zip(CORPUS, mined, strict=True):
        check(document, pairs, 5)
    found = [pair for pairs in mined for pair in pairs]
    assert len(found) / len(CORPUS) >= 2.5
    short = [pair for pair in found if len(answers_of(pair)[0].split()) <= 8]
    assert len(short) / len(found) >= 0.8
    assert statistics.median(len(pair.question) for pair in found) <= 80
    assert {pair.kind for pair in found} == {"free", "options", "cot", "options-cot"}


def test_yes_and_no_are_balanced():
    answers = [answers_of(pair)[0] for document in CORPUS for seed in range(4) for pair in mine(document, seed)]
    yes, no = answers.count("yes"), answers.count("no")
    assert yes + no > 100
    assert 0.4 < yes / (yes + no) < 0.6


@pytest.fixture(scope="module")
def candidates() -> dict[str, set[tuple[str, str]]]:
    """Task to every question and answer the rules find in the fable, over many seeds."""
    return collect(FABLE)


def collect(document: str) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    text = MinedText.of(document)
    for seed in range(60):
        for miner in MINERS:
            for candidate in miner(text, random.Random(seed)):
                assert candidate.family in FAMILIES
                found.setdefault(candidate.task, set()).add((candidate.question, candidate.answer))
    return found


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("title", "What is the title of the text?", "The Fox and the Grapes"),
        ("opening-sentence", "What is the text about?", "A fox is an animal with a long tail."),
        ("definition", "What is a fox?", "an animal"),
        ("used-for", "What is it used for?", "for shade in the summer"),
        ("other-name", "What is another name for grapes?", "Vitis"),
        ("acronym", "What does WWW stand for?", "World Wide Web"),
        ("cause", 'Why: "One hot day a fox walked through an orchard"?', "because he was thirsty"),
        ("effect", "What happens if he jumped high enough?", "he could reach the lowest branch"),
        ("number", "Which number occurs in the text?", "3"),
        ("beginning", "How does the first sentence begin?", "A fox is an"),
        (
            "relation",
            'How does the sentence starting with "However, the grapes were hanging too" relate to the one before it?',
            "contrast",
        ),
        ("statement", 'Is this true according to the text: "However, the grapes were not hanging too high"?', "no"),
        ("statement", 'Is this true according to the text: "However, the grapes were hanging too high"?', "yes"),
        ("next-word", 'Which word follows "The vine was"?', "used"),
        ("mentions", 'Is the word "animal" in the text?', "yes"),
    ],
)
def test_rules_of_prose(candidates: dict[str, set[tuple[str, str]]], task: str, question: str, answer: str):
    assert (question, answer) in candidates[task]


def test_mentions_are_true(candidates: dict[str, set[tuple[str, str]]]):
    asked = {(question.split('"')[1], answer) for question, answer in candidates["mentions"]}
    assert {answer for _, answer in asked} == {"yes", "no"}
    present = set(FABLE.lower().replace(".", " ").replace(",", " ").split())
    assert all((term in present) == (answer == "yes") for term, answer in asked)


REFERENCE_DOCUMENT = """\
shop.open_door(path, mode='r', *, width=80)

Return the handle of the door. The argument mode defaults to r.
ValueError is raised if the door is locked. The same as unlock.

path -- where the door stands
"""


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("documented-name", "What is being documented?", "shop.open_door"),
        ("first-parameter", "What is the first parameter?", "path"),
        ("next-parameter", "Which parameter follows mode?", "width"),
        ("default-of-parameter", "What is the default of width?", "80"),
        ("default-of-parameter", "What is the default of mode?", "'r'"),
        ("has-parameter", "Is there a parameter called width?", "yes"),
        ("has-parameter", "Is there a parameter called encoding?", "no"),
        ("returned", "What is returned?", "the handle of the door"),
        ("raised", "Which exception is raised?", "ValueError"),
        ("raised-when", "When is ValueError raised?", "if the door is locked"),
        ("glossary", 'How is "path" explained?', "where the door stands"),
    ],
)
def test_rules_of_reference_documentation(task: str, question: str, answer: str):
    assert (question, answer) in collect(REFERENCE_DOCUMENT)[task]


WEATHER = """\
Weather Notes

Rain fell on the hills all night. Therefore, the river rose by morning. In other words, rain fills the river.
Fog is common in the valley. In contrast, the hills are clear. The river authority, also known as Stream Board, keeps
records. Stream Board measures rain with gauges. The authority measures snow. Similarly, it measures rain.
"""


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("topic", "Which word does the text use most?", "rain"),
        (
            "consequence",
            'What follows from this: "Rain fell on the hills all night"?',
            "the river rose by morning",
        ),
        ("ground", 'What does this follow from: "the river rose by morning"?', "Rain fell on the hills all night"),
        (
            "restated",
            'How else does the text put this: "Therefore, the river rose by morning"?',
            "rain fills the river",
        ),
        (
            "likeness",
            'Does the text call these alike or unlike: "Fog is common in the valley" and "the hills are clear"?',
            "unlike",
        ),
        (
            "likeness",
            'Does the text call these alike or unlike: "The authority measures snow" and "it measures rain"?',
            "alike",
        ),
        (
            "same-meaning",
            'Do these say the same: "Stream Board measures rain with gauges." and "river authority measures rain with '
            'gauges."?',
            "yes",
        ),
        (
            "continuation",
            'Continue the text: "Fog is common in the valley."',
            "In contrast, the hills are clear.",
        ),
    ],
)
def test_rules_of_discourse(task: str, question: str, answer: str):
    assert (question, answer) in collect(WEATHER)[task]


def test_another_name_says_the_same_and_another_word_does_not():
    asked = collect(WEATHER)["same-meaning"]
    assert {answer for _, answer in asked} == {"yes", "no"}
    # Where both names stand, nothing is asked; a name put in is "yes" only if it is that of the same thing.
    for question, answer in asked:
        assert ("river authority measures" in question) == (answer == "yes")
        assert "also known as" not in question


def test_no_topic_where_two_words_are_as_frequent():
    assert "topic" not in collect("Tea and milk. Tea and milk again. Some tea with milk for breakfast.")


def test_every_family_is_found_in_one_document_and_spread():
    found = [mine_tasks(WEATHER, seed, max_pairs=12) for seed in range(40)]
    assert {pair.family for pairs in found for pair in pairs} == set(FAMILIES)
    assert all(len({pair.family for pair in pairs}) >= 5 for pairs in found)
    assert [[pair.pair for pair in pairs] for pairs in found] == [mine(WEATHER, seed, 12) for seed in range(40)]
    assert all(pair.task in data()["questions"] for pairs in found for pair in pairs)


def test_every_phrasing_has_a_rule_that_uses_it(candidates: dict[str, set[tuple[str, str]]]):
    more = "Switch it off so that it cools. It stops when the lamp is cold. It is the same as a clock."
    documents = (REFERENCE_DOCUMENT, WEATHER, f"{more} Press it once.")
    used = candidates.keys() | {task for document in documents for task in collect(document)}
    assert data()["questions"].keys() == used


def test_word_lists_hold_no_duplicates_and_phrasings_no_tags():
    assert len(words("terms")) == len({term.lower() for term in words("terms")}) >= 150
    for phrasings in data()["questions"].values():
        assert len(set(phrasings)) == len(phrasings)
        assert not any(tag in phrasing for tag in TAGS for phrasing in phrasings)
        assert len({frozenset(PLACEHOLDER.findall(phrasing)) for phrasing in phrasings}) == 1


def test_a_document_without_prose_gives_nothing_or_little():
    assert mine("", 0) == []
    assert mine("   \n\n", 0) == []
    assert mine(">>> print(1)\n1\n" * 20, 0) == []


def test_no_pairs_when_none_are_wanted():
    assert mine(FABLE, 0, max_pairs=0) == []


def test_long_words_and_long_documents_take_no_time_out_of_proportion():
    # Counted, not timed: words that a search would run over again and again are no prose.
    assert MinedText.of("a" * 20_000 + " b c d. ").sentences == ()
    assert len(mine("The house is a place of rest. " * 20_000, 0)) > 0


def test_forbidden_strings_can_be_given():
    assert all(
        "fox" not in pair.question + pair.answer for seed in range(10) for pair in mine(FABLE, seed, forbidden=["fox"])
    )


def test_abbreviations_end_no_sentence():
    text = MinedText.of("Use a tool, e.g. a hammer. Then rest a while.")
    assert text.sentences == ("Use a tool, e.g. a hammer.", "Then rest a while.")
    text = MinedText.of("See Mr. Brown about it. He knows the way.")
    assert text.sentences == ("See Mr. Brown about it.", "He knows the way.")
