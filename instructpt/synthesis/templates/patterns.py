"""Patterns: the data files of the native template set, and how placeholders are filled in."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

PLACEHOLDER = re.compile(r"\{(\w+)\}")
# Data file to the category of its list; the file of shapes names its categories itself.
DATA_FILES = {
    "patterns_free": "free",
    "patterns_options": "options",
    "patterns_cot": "cot",
    "patterns_options_cot": "options-cot",
    "openers": "openers",
    "joiners": "joiners",
    "shapes": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A text with placeholders.

    Attributes:
        id: Its category and the start of its hash, such as ``free-1f0c22ab``: it survives a reordering of the file.
        text: The text; placeholders are names in braces.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A small layout of several strings: speakers of a dialog, labels of options, examples in line."""

    id: str
    strings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternSet:
    """All patterns of a template set, by category.

    Attributes:
        patterns: Category to patterns.
        styles: Category to styles.
        digest: Hex sha256 over every id and text, in order; part of the cache key of a synthesis.
    """

    patterns: Mapping[str, tuple[Pattern, ...]]
    styles: Mapping[str, tuple[Style, ...]]
    digest: str

    def pick(self, category: str, rng: random.Random) -> Pattern:
        """One pattern of a category, each as likely as the others."""
        return rng.choice(self.patterns[category])

    def pick_style(self, category: str, rng: random.Random) -> Style:
        """One style of a category, each as likely as the others."""
        return rng.choice(self.styles[category])


def substitute(pattern: str, values: Mapping[str, str]) -> str:
    """Fill in placeholders in one pass: text that was put in is never looked at again.

    Raises:
        KeyError: The pattern has a placeholder that ``values`` lacks; ``lint`` excludes it for the shipped set.
    """
    return PLACEHOLDER.sub(lambda match: values[match[1]], pattern)


def substitute_reference(pattern: str, values: Mapping[str, str]) -> str:
    """Fill in placeholders one after the other, so that text put in may be rewritten: the reference's fault."""
    for name, value in values.items():
        pattern = pattern.replace("{" + name + "}", value)
    return pattern


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_data(name: str) -> Any:
    """The content of a YAML data file of this package, by its name without ending."""
    return yaml.safe_load(files("instructpt.synthesis").joinpath("data", f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def native() -> PatternSet:
    """The patterns that ship with this package."""
    raw: dict[str, list[Any]] = {}
    for name, category in DATA_FILES.items():
        content = read_data(name)
        raw.update({category: content} if category else content)
    patterns: dict[str, tuple[Pattern, ...]] = {}
    styles: dict[str, tuple[Style, ...]] = {}
    for category, entries in raw.items():
        if isinstance(entries[0], str):
            patterns[category] = tuple(Pattern(id=f"{category}-{_short_hash(text)}", text=text) for text in entries)
        else:
            styles[category] = tuple(
                Style(id=f"{category}-{_short_hash(repr(sorted(entry.items())))}", strings=entry) for entry in entries
            )
    lines = [f"{pattern.id}\0{pattern.text}" for group in patterns.values() for pattern in group]
    lines += [style.id for group in styles.values() for style in group]
    return PatternSet(patterns=patterns, styles=styles, digest=hashlib.sha256("\0".join(lines).encode()).hexdigest())
