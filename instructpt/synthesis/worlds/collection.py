"""Examples as files: a collection of tasks to tune on, a corpus to synthesize on, and what came of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instructpt.corpus.augmented import ChainRow
from instructpt.synthesis.model import make_pair
from instructpt.synthesis.worlds.example import Example, judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How the pairs of a synthesizer are.

    Attributes:
        documents: Documents of the corpus.
        with_pairs: Of them, those with at least one pair: the parse rate.
        pairs: Pairs in all.
        right: Pairs whose question is on the document and whose answer is right.
        wrong: Pairs whose answer is wrong.
        unknown: Pairs that ask for nothing that the document states, or in words that are not known.
        kinds: Pairs by kind.
    """

    documents: int
    with_pairs: int
    pairs: int
    right: int
    wrong: int
    unknown: int
    kinds: dict[str, int]

    @property
    def parse_rate(self) -> float:
        """Share of the documents with a pair."""
        return self.with_pairs / self.documents if self.documents else 0.0

    @property
    def accuracy(self) -> float:
        """Share of all pairs that are right; one that asks for nothing stated is not."""
        return self.right / self.pairs if self.pairs else 0.0


def write_collection(folder: Path, examples: Iterable[Example]) -> list[Path]:
    """Write a data set for each domain, one example a line, as ``format: tasks`` reads it; returns the files."""
    by_domain: dict[str, list[Example]] = {}
    for example in examples:
        by_domain.setdefault(example.domain, []).append(example)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, made in sorted(by_domain.items()):
        paths.append(folder / f"{name}.jsonl")
        lines = (
            {"context": e.context, "question": [p.question for p in e.pairs], "answer": [p.answer for p in e.pairs]}
            for e in made
        )
        paths[-1].write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return paths


def write_corpus(path: Path, examples: Iterable[Example]) -> None:
    """Write the documents alone, one a line, as a Corpus reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": e.context}) + "\n" for e in examples), encoding="utf-8")


def score(examples: Iterable[Example], rows: Iterable[ChainRow]) -> Score:
    """Judge the pairs of an augmented corpus that was made from these examples; other documents do not count."""
    known = {example.context: example for example in examples}
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for row in rows:
        for shot in row.shots:
            example = known.get(shot.text)
            if example is None:
                continue
            found["documents"] += 1
            found["with_pairs"] += bool(shot.pairs)
            for pair in shot.pairs:
                found[judge(example, make_pair(pair.question, pair.answer))] += 1
                kinds[pair.kind] += 1
    pairs = found["right"] + found["wrong"] + found["unknown"]
    return Score(
        documents=found["documents"], with_pairs=found["with_pairs"], pairs=pairs, right=found["right"],
        wrong=found["wrong"], unknown=found["unknown"], kinds=dict(sorted(kinds.items())),
    )  # fmt: skip
