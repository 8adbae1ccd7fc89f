"""The linter of the native pattern set: what a test holds every pattern to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import combinations

from instructpt.synthesis.templates.patterns import PLACEHOLDER, PatternSet, native

# The placeholders of each category: all must occur, exactly once, and no other.
REQUIRED: dict[str, frozenset[str]] = {
    "free": frozenset({"question", "answer"}),
    "options": frozenset({"question", "options", "answer"}),
    "cot": frozenset({"question", "reasoning", "conclusion"}),
    "options-cot": frozenset({"question", "options", "reasoning", "answer"}),
    "openers": frozenset({"document"}),
    "joiners": frozenset(),
    "inverted": frozenset({"pairs", "document"}),
    "dialog_openings": frozenset({"document", "question"}),
    "dialog_inverted_closings": frozenset(),
    "numbered": frozenset({"document", "questions", "answers"}),
    "inline": frozenset({"document", "examples", "question", "answer"}),
    "next_turn": frozenset({"document", "dialog", "answer"}),
    "separators": frozenset(),
    "pair_separators": frozenset(),
}
LABEL_PLACEHOLDERS = frozenset({"n", "a", "u"})
STYLE_KEYS = {
    "speakers": {"user": frozenset[str](), "assistant": frozenset[str]()},
    "inline_examples": {"pair": frozenset({"question", "answer"}), "join": frozenset[str]()},
    "labels": {"label": LABEL_PLACEHOLDERS, "separator": frozenset[str]()},
}
# Drawn more often by standing in the list more than once.
MAY_REPEAT = frozenset({"pair_separators"})
OVERLAP_LIMIT = 0.6
GRAM = 5


def lint(patterns: PatternSet | None = None) -> list[str]:
    """Every fault of a pattern set, one line each; empty for a sound one.

    Checked: each category has its placeholders, each once, and no other; no pattern or style occurs twice; no two
    patterns of a category share 60 % or more of the 5-grams (words, punctuation, line ends) of the shorter one.
    """
    chosen = patterns or native()
    return [*_placeholder_faults(chosen), *_style_faults(chosen), *_similarity_faults(chosen)]


def _placeholder_faults(patterns: PatternSet) -> Iterator[str]:
    for category, group in patterns.patterns.items():
        for pattern in group:
            found = PLACEHOLDER.findall(pattern.text)
            if category == "number_styles":
                if len(found) != 1 or not set(found) <= LABEL_PLACEHOLDERS:
                    yield f"{pattern.id}: needs exactly one of n, a, u: {pattern.text!r}"
                continue
            if category not in REQUIRED:
                yield f"{pattern.id}: unknown category {category}"
                continue
            required = REQUIRED[category]
            for name in sorted(required - set(found)):
                yield f"{pattern.id}: lacks {{{name}}}: {pattern.text!r}"
            for name in sorted(set(found) - required):
                yield f"{pattern.id}: unknown placeholder {{{name}}}: {pattern.text!r}"
            for name in sorted({name for name in found if found.count(name) > 1}):
                yield f"{pattern.id}: {{{name}}} more than once: {pattern.text!r}"
    for category in REQUIRED.keys() - patterns.patterns.keys():
        yield f"{category}: no patterns"


def _style_faults(patterns: PatternSet) -> Iterator[str]:
    for category, keys in STYLE_KEYS.items():
        for style in patterns.styles.get(category, ()):
            if style.strings.keys() != keys.keys():
                yield f"{style.id}: needs {sorted(keys)}, has {sorted(style.strings)}"
                continue
            for key, allowed in keys.items():
                found = set(PLACEHOLDER.findall(style.strings[key]))
                if not found <= allowed or (category == "inline_examples" and found != allowed):
                    yield f"{style.id}: wrong placeholders in {key}: {style.strings[key]!r}"
        for first, second in combinations(patterns.styles.get(category, ()), 2):
            if first.strings == second.strings:
                yield f"{first.id}: occurs twice in {category}: {dict(first.strings)}"
    for category in STYLE_KEYS.keys() - patterns.styles.keys():
        yield f"{category}: no styles"


def _similarity_faults(patterns: PatternSet) -> Iterator[str]:
    for category, group in patterns.patterns.items():
        if category in MAY_REPEAT:
            continue
        for first, second in combinations(group, 2):
            if first.text == second.text:
                yield f"{first.id}: occurs twice in {category}: {first.text!r}"
            elif overlap(first.text, second.text) >= OVERLAP_LIMIT:
                yield f"{first.id} and {second.id} are too alike: {first.text!r}, {second.text!r}"


def overlap(first: str, second: str) -> float:
    """The share of the 5-grams of the text with fewer of them that also stand in the other."""
    one, other = grams(first), grams(second)
    return len(one & other) / min(len(one), len(other)) if one and other else 0.0


def grams(text: str) -> frozenset[tuple[str, ...]]:
    """The 5-grams of a text's tokens: placeholders, words, line ends, other characters; none if it is shorter."""
    tokens = list(_tokens(text))
    return frozenset(_windows(tokens))


def _tokens(text: str) -> Iterable[str]:
    return (match[0].lower() for match in re.finditer(r"\{\w+\}|\w+|\n|[^\w\s]", text))


def _windows(tokens: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1))
