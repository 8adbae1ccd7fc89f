"""A candidate task, and how it is asked."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from instructpt.synthesis.templates.patterns import read_data, substitute


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A task a rule found, before the choice among all of them.

    Attributes:
        family: One of the six families.
        task: The rule, as in ``questions`` of the data file.
        question: One line of text.
        answer: One line of text; one of the options where there are some.
        options: The options in the order shown.
        reasoning: One line that leads to the answer; empty where the rule has none.
    """

    family: str
    task: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    reasoning: str = ""

    @property
    def is_closed(self) -> bool:
        """Whether the answer is one of a few given ones."""
        return bool(self.options) or self.answer in (data()["yes"], data()["no"])


@cache
def data() -> Mapping[str, Any]:
    """Phrasings and word lists of the miners."""
    content: Mapping[str, Any] = read_data("mined")
    return content


@cache
def words(name: str) -> tuple[str, ...]:
    """A word list of the data file, each word once, in its order."""
    return tuple(dict.fromkeys(data()[name]))


def ask(task: str, rng: random.Random, **values: str) -> str:
    """A question of a task in one of its phrasings."""
    return substitute(rng.choice(data()["questions"][task]), values)


def reason(kind: str, **values: str) -> str:
    """A reasoning in the words of the data file."""
    return substitute(data()["reasoning"][kind], values)
