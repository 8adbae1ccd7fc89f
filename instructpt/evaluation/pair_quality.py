"""How good the synthesized pairs are, as far as it can be counted: yield, lengths, kinds, groundedness, repetition.

Pure functions over the chains of an augmented corpus. Whether an answer is *right* cannot be counted (the paper found
70-86 % of its own right, arXiv 2406.14491), so look at some: ``instructpt show augmented``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow
from instructpt.synthesis.model import parts_of

_CLOSED = frozenset({"yes", "no", "true", "false"})
MAX_BAR = 30


@dataclass(slots=True)
class PairQuality:
    """Counts that grow with every chain; memory grows with the number of different questions, 8 bytes each.

    Attributes:
        documents: Documents by verdict.
        reasons: Documents that were not augmented, by reason.
        asked: Documents that the engine was asked for.
        asked_augmented: Of those, documents that got pairs.
        pairs_per_document: Number of pairs -> documents, over the documents asked for.
        kinds: Pairs by kind.
        grounds: Pairs by where the answer stands: ``document``, ``options``, ``yes-no`` or ``elsewhere``.
        question_words: Length -> pairs.
        answer_words: Length -> pairs.
        repeated_in_document: Pairs whose question stands in the same document before.
        repeated_in_corpus: Pairs whose question stands anywhere before.
        chains: Chains read.
        chain_shots: Shots -> chains.
    """

    documents: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    asked_augmented: int = 0
    pairs_per_document: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    grounds: Counter[str] = field(default_factory=Counter)
    question_words: Counter[int] = field(default_factory=Counter)
    answer_words: Counter[int] = field(default_factory=Counter)
    repeated_in_document: int = 0
    repeated_in_corpus: int = 0
    chains: int = 0
    chain_shots: Counter[int] = field(default_factory=Counter)
    _seen: set[bytes] = field(default_factory=set)

    def add(self, row: ChainRow) -> None:
        """Count one chain."""
        self.chains += 1
        self.chain_shots[len(row.shots)] += 1
        for shot in row.shots:
            self._add_shot(shot)

    def _add_shot(self, shot: ShotRow) -> None:
        self.documents[shot.verdict] += 1
        if shot.reason:
            self.reasons[shot.reason] += 1
        if shot.attempts > 0 or shot.pairs:
            self.asked += 1
            self.asked_augmented += bool(shot.pairs)
            self.pairs_per_document[len(shot.pairs)] += 1
        text = _plain(shot.text) if shot.pairs else ""
        own: set[str] = set()
        for pair in shot.pairs:
            self._add_pair(pair, text, own)

    def _add_pair(self, pair: PairRow, text: str, own: set[str]) -> None:
        parts = parts_of(pair.question, pair.answer)
        self.kinds[pair.kind] += 1
        self.grounds[_ground(parts.conclusion, parts.options, text)] += 1
        self.question_words[len(parts.stem.split())] += 1
        self.answer_words[len(pair.answer.split())] += 1
        question = _plain(parts.stem)
        self.repeated_in_document += question in own
        own.add(question)
        key = hashlib.blake2b(question.encode("utf-8", "replace"), digest_size=8).digest()
        self.repeated_in_corpus += key in self._seen
        self._seen.add(key)

    def summary(self) -> dict[str, Any]:
        """The figures as JSON-ready data; shares are of 1, ``None`` where nothing was counted."""
        pairs = sum(self.kinds.values())
        return {
            "chains": self.chains,
            "shots_per_chain": _sorted(self.chain_shots),
            "documents": dict(sorted(self.documents.items())),
            "reasons": dict(sorted(self.reasons.items())),
            "asked": self.asked,
            "yield": _share(self.asked_augmented, self.asked),
            "pairs": pairs,
            "pairs_per_document": _sorted(self.pairs_per_document),
            "pairs_per_document_mean": _share(pairs, self.asked_augmented),
            "kinds": dict(sorted(self.kinds.items())),
            "question_words": _lengths(self.question_words),
            "answer_words": _lengths(self.answer_words),
            "answers_in": {name: _share(self.grounds[name], pairs) for name in _GROUNDS},
            "repeated_in_document": self.repeated_in_document,
            "repeated_in_corpus": self.repeated_in_corpus,
            "different_questions": _share(len(self._seen), pairs),
        }


_GROUNDS = {
    "document": "stand in their document",
    "options": "are one of the options",
    "yes-no": "are yes or no",
    "elsewhere": "stand nowhere in the document",
}


def measure(rows: Iterable[ChainRow]) -> dict[str, Any]:
    """The pair-quality figures of some chains; see :meth:`PairQuality.summary`."""
    quality = PairQuality()
    for row in rows:
        quality.add(row)
    return quality.summary()


def render(quality: Mapping[str, Any]) -> RenderableType:
    """The figures for a terminal."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in describe(quality):
        table.add_row(name, value)
    bars = Table(box=None, show_header=False, pad_edge=False, title="pairs a document", title_justify="left")
    bars.add_column(justify="right")
    bars.add_column(justify="right")
    bars.add_column(style="green")
    histogram = {int(k): int(v) for k, v in quality["pairs_per_document"].items()}
    most = max(histogram.values(), default=1)
    for number, documents in sorted(histogram.items()):
        bars.add_row(str(number), f"{documents:,}", "█" * max(1, round(MAX_BAR * documents / most)))
    return Group(table, "", bars) if histogram else table


def describe(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of (what, how much), for the terminal and the page."""
    verdicts = ", ".join(f"{number:,} {name}" for name, number in quality["documents"].items())
    lines = [("documents", verdicts or "none"), ("chains", f"{quality['chains']:,}")]
    if quality["reasons"]:
        lines.append(("not augmented", ", ".join(f"{n:,} {reason}" for reason, n in quality["reasons"].items())))
    if quality["asked"]:
        lines.append(("yield", f"{percent(quality['yield'])} of {quality['asked']:,} documents asked for got pairs"))
    mean = quality["pairs_per_document_mean"]
    lines.append(("pairs", f"{quality['pairs']:,}" + (f", {mean:.1f} a document that got any" if mean else "")))
    if quality["pairs"]:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in quality["kinds"].items())
        question, answer = quality["question_words"], quality["answer_words"]
        grounds = ", ".join(f"{percent(quality['answers_in'][k])} {text}" for k, text in _GROUNDS.items())
        lines += [
            ("kinds", kinds),
            ("questions", f"{question['mean']:.1f} words, half of them {question['median']} or fewer"),
            ("answers", f"{answer['mean']:.1f} words, half of them {answer['median']} or fewer"),
            ("of the answers", grounds),
            ("different questions", f"{percent(quality['different_questions'])} of the pairs"),
        ]
    return lines


def percent(share: float | None) -> str:
    """``0.873`` -> ``87.3 %`` with a space that does not break; a dash for ``None``."""
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _ground(answer: str, options: tuple[str, ...], text: str) -> str:
    plain = _plain(answer).rstrip(".")
    if options and plain in {_plain(option).rstrip(".") for option in options}:
        return "options"
    if plain in _CLOSED:
        return "yes-no"
    return "document" if plain and plain in text else "elsewhere"


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _sorted(counter: Counter[int]) -> dict[str, int]:
    return {str(k): v for k, v in sorted(counter.items())}


def _lengths(counter: Counter[int]) -> dict[str, float | int]:
    total = sum(counter.values())
    if not total:
        return {"mean": 0.0, "median": 0, "longest": 0}
    seen = 0
    median = 0
    for length, number in sorted(counter.items()):
        seen += number
        if 2 * seen >= total:
            median = length
            break
    mean = sum(length * number for length, number in counter.items()) / total
    return {"mean": round(mean, 2), "median": median, "longest": max(counter)}
