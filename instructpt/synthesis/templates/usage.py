"""How often each pattern is used: over texts made for the purpose, or over those of a corpus."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from instructpt.synthesis.model import Pair, Shot, make_pair, with_options, with_reasoning
from instructpt.synthesis.templates.patterns import PatternSet
from instructpt.synthesis.templates.rendered import Templates

RENDERS = 10_000
MOST_OF_ONE = 0.05
SHAPES = ("classic", "dialog", "numbered", "inline", "next-turn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How many texts each shape, pattern and style stands in.

    Attributes:
        texts: The texts looked at.
        counts: Id to the texts with it; ids that were never used are missing.
    """

    texts: int
    counts: Mapping[str, int]

    def share(self, name: str) -> float:
        """The share of all texts that a shape, pattern or style stands in."""
        return self.counts.get(name, 0) / self.texts if self.texts else 0.0

    def above(self, share: float = MOST_OF_ONE) -> list[str]:
        """Patterns and styles in more than this share of all texts, the most frequent first; shapes do not count."""
        found = [name for name in self.counts if name not in SHAPES and self.share(name) > share]
        return sorted(found, key=lambda name: (-self.counts[name], name))


def count(template_ids: Iterable[Sequence[str]]) -> Usage:
    """The usage in texts of which the ids are known, such as the column ``templates`` of an augmented corpus."""
    texts, counts = 0, Counter[str]()
    for ids in template_ids:
        texts += 1
        counts.update(set(ids))
    return Usage(texts=texts, counts=counts)


def measure(templates: Templates, renders: int = RENDERS, *, seed: int = 12345) -> Usage:
    """The usage in texts of chains of one to three documents, with up to five pairs of the four kinds each."""
    return count(
        templates.render_with_ids(chain, seed + i).template_ids for i, chain in enumerate(_chains(renders, seed))
    )


def _chains(number: int, seed: int) -> Iterator[list[Shot]]:
    rng = random.Random(seed)
    for _ in range(number):
        yield [
            Shot(f"document {shot}", tuple(_pair(rng, position) for position in range(rng.randint(1, 5))))
            for shot in range(rng.randint(1, 3))
        ]


def _pair(rng: random.Random, position: int) -> Pair:
    question, answer = f"question {position}", f"answer {position}"
    if rng.random() < 0.5:
        question, answer = with_options(question, ("one", "two", "three")), rng.choice(("one", "two", "three"))
    return with_reasoning(question, "It is so.", answer) if rng.random() < 0.5 else make_pair(question, answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryUsage:
    """The usage of one category of patterns or styles.

    Attributes:
        name: The category.
        number: How many it has.
        most: Id of the most frequent.
        most_share: Share of all texts that it stands in.
        least_share: The same of the least frequent.
    """

    name: str
    number: int
    most: str
    most_share: float
    least_share: float


def by_category(usage: Usage, ids: Mapping[str, Sequence[str]]) -> list[CategoryUsage]:
    """The usage of each category that stands in a text at all, in the order given.

    Args:
        usage: The usage.
        ids: Category to the ids of its members: ``ids_of`` a set, or those ``seen``.
    """
    found: list[CategoryUsage] = []
    for name, members in ids.items():
        shares = {member: usage.share(member) for member in members}
        most = max(members, key=lambda member: shares[member])
        if shares[most]:
            found.append(
                CategoryUsage(
                    name=name,
                    number=len(members),
                    most=most,
                    most_share=shares[most],
                    least_share=min(shares.values()),
                )
            )
    return found


def ids_of(patterns: PatternSet) -> dict[str, list[str]]:
    """Category to ids, of a set."""
    ids = {name: [pattern.id for pattern in group] for name, group in patterns.patterns.items()}
    return ids | {name: [style.id for style in group] for name, group in patterns.styles.items()}


def seen(usage: Usage) -> dict[str, list[str]]:
    """Category to ids, of those that were used; an id is its category and a hash."""
    ids: dict[str, list[str]] = {}
    for name in sorted(usage.counts):
        if name not in SHAPES:
            ids.setdefault(name.rpartition("-")[0], []).append(name)
    return ids
