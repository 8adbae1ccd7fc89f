"""Chains become text with the patterns of the reference implementation, in its way of drawing them.

The reference renders a *collection*: the chains that follow one another at one place of its rounds, with one seed for
all of them. Each thing is drawn by a generator of its own, started from that seed, so that equal numbers of candidates
give equal choices. ``compat="reference"`` gives the reference's bytes; ``compat="fixed"`` draws alike, loses nothing.

Source: facts about microsoft/LMOps, ``instruction_pretrain`` (arXiv 2406.14491); the code is this project's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from instructpt.synthesis.model import Pair, PairKind, Shot
from instructpt.synthesis.profiles import Compat
from instructpt.synthesis.templates.checkout import CheckoutPatterns, FewShot, Inline
from instructpt.synthesis.templates.rendered import Rendered, main_row
from instructpt.synthesis.templates.shapes import (
    INVERTED_SHARE,
    REFERENCE_LIMIT,
    SHAPES_OF_FEW_PAIRS,
    SHAPES_OF_SEVERAL_PAIRS,
    TOO_MANY_OPTIONS,
    TOO_MANY_QUESTIONS,
)
from instructpt.synthesis.templates.tasks import OptionStyle, Task, read_pair

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    """Draws of one seed: the same number of candidates leads to the same place in them."""

    seed: int

    def one(self, candidates: Sequence[T]) -> T:
        return random.Random(self.seed).choice(candidates)

    def weighted(self, candidates: Iterable[tuple[T, float]]) -> T:
        names, weights = zip(*candidates, strict=True)
        return random.Random(self.seed).choices(names, weights=weights)[0]  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Log:
    """What a text is made of and what happened on the way."""

    used: dict[str, None] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutTemplates:
    """The template set of a user's checkout of the reference."""

    source: str
    compat: Compat
    patterns: CheckoutPatterns

    @property
    def digest(self) -> str:
        """Hex sha256 of the pattern file."""
        return self.patterns.digest

    def render(self, chain: Sequence[Shot], seed: int) -> str:
        """The text of a chain; where the reference makes several of it, the first that is not empty."""
        return self.render_with_ids(chain, seed).text

    def render_with_ids(self, chain: Sequence[Shot], seed: int) -> Rendered:
        """As ``render``, with the ids of what was used and the counts of what was repaired or dropped."""
        rows = self.render_rows(chain, seed)
        return rows[main_row(rows)]

    def render_rows(self, chain: Sequence[Shot], seed: int) -> tuple[Rendered, ...]:
        """The rows of a chain that is alone in its collection."""
        return self.render_collection((chain,), seed)[0]

    def render_collection(self, chains: Sequence[Sequence[Shot]], seed: int) -> tuple[tuple[Rendered, ...], ...]:
        """The rows of the chains of one collection, chain by chain.

        With ``compat="reference"`` a chain is one text of the documents that kept a pair (an empty one where none
        did), followed by each of the others as it is, the last one first.
        """
        writer = _CollectionWriter(self.patterns, seed, reference=self.compat == "reference")
        # From the last chain on: where that is a dialog, the ones before it are written with its speakers.
        rows = [writer.rows(chain) for chain in reversed(chains)]
        return tuple(reversed(rows))


class _CollectionWriter:
    """Writes the chains of one collection, from the last to the first."""

    def __init__(self, patterns: CheckoutPatterns, seed: int, *, reference: bool) -> None:
        draw = _Draw(seed=seed)
        self._patterns = patterns
        self._draw = draw
        self._seed = seed
        self._reference = reference
        self._examples = {kind: draw.one(patterns.few_shot[kind]) for kind in ("free", "options", "cot", "options-cot")}
        self._options = OptionStyle(
            heading=draw.one(patterns.strings["option_headings"]),
            labels=draw.one(patterns.labels["option_labels"]),
            ends=draw.one(patterns.labels["option_ends"]),
            # An answer of this kind is replaced by another one of them; what is to lose nothing has none.
            none_of_these=frozenset(patterns.strings["none_of_these"] if reference else ()),
            none_shown=draw.one(patterns.strings["none_of_these"]),
        )
        self._separator = _Draw(seed=seed + 1).one(patterns.few_shot["free"]).separator

    def rows(self, chain: Sequence[Shot]) -> tuple[Rendered, ...]:
        """The texts of one chain, in the reference's order."""
        log = _Log()
        shots = [(shot.document, self._tasks(shot.pairs, log)) for shot in chain]
        if not self._reference and not any(tasks for _, tasks in shots):
            return (Rendered(text="\n\n".join(document for document, _ in shots)),)
        shape = self._shape([tasks for _, tasks in shots])
        log.used[shape] = None
        if shape in ("dialog", "next-turn"):
            self._hold_dialog()
        write = {
            "classic": self._classic,
            "dialog": self._dialog,
            "numbered": self._numbered,
            "inline": self._inline,
            "next-turn": self._next_turn,
        }[shape]
        texts: list[str] = []
        left: list[str] = []
        for document, tasks in shots:
            if tasks:
                texts.append(write(document, tasks, log))
            elif self._reference:
                left.insert(0, document)
            else:
                texts.append(document)
        used = tuple(log.used) if texts else ()
        row = Rendered(text=self._separator.join(texts), template_ids=used, repaired=log.repaired, dropped=log.dropped)
        return (row, *(Rendered(text=document) for document in left))

    def _tasks(self, pairs: Sequence[Pair], log: _Log) -> list[Task]:
        """The pairs taken apart; what cannot be is dropped (reference) or stays a plain question (fixed)."""
        tasks: list[Task] = []
        for position, pair in enumerate(pairs):
            task, fault = read_pair(pair, self._options, self._seed * position)
            if fault and self._reference:
                _count(log.dropped, fault)
            elif fault:
                _count(log.repaired, fault)
                tasks.append(Task(kind="free", values={"question": pair.question, "answer": pair.answer}))
            elif not self._reference and len(task.options) > REFERENCE_LIMIT:
                _count(log.repaired, TOO_MANY_OPTIONS)
                tasks.append(task.with_options_in_question())
            else:
                tasks.append(task)
        return tasks

    def _shape(self, tasks: Sequence[Sequence[Task]]) -> str:
        several = min(map(len, tasks)) >= 2
        shape = self._draw.weighted(SHAPES_OF_SEVERAL_PAIRS if several else SHAPES_OF_FEW_PAIRS)
        too_many = max(map(len, tasks)) > REFERENCE_LIMIT
        return "classic" if shape == "numbered" and too_many and not self._reference else shape

    def _hold_dialog(self) -> None:
        """From now on every example is a pair of turns."""
        # Candidates in reverse, so that the place drawn for the labels of options is not drawn again.
        first, second, *_ = self._draw.one(self._patterns.labels["speakers"][::-1])
        end = self._draw.one(self._patterns.labels["turn_ends"])[0]
        separator = self._draw.one(("", "\n"))
        self._examples = {
            kind: replace(pattern, inputs_prefix=first, targets_prefix=second, between=end, separator=separator)
            for kind, pattern in self._examples.items()
        }

    def _classic(self, document: str, tasks: Sequence[Task], log: _Log) -> str:
        joiner = self._string("joiners")
        head = self._string("openers").replace("{context}", document)
        head += self._string("opener_ends") + joiner if joiner else ""
        return self._examples_after(head, document, tasks, log)

    def _dialog(self, document: str, tasks: Sequence[Task], log: _Log) -> str:
        return self._examples_after(document + self._dialog_heading(), document, tasks, log)

    def _examples_after(self, head: str, document: str, tasks: Sequence[Task], log: _Log) -> str:
        """The examples after the opened document, or in few texts the examples and then the document."""
        examples = [self._example(task, log) for task in tasks]
        separator = self._examples[tasks[-1].kind].separator
        if self._draw.weighted(((True, INVERTED_SHARE * 100), (False, 100 - INVERTED_SHARE * 100))):
            opened = self._string("inverted").replace("{QA_demos}", separator.join(examples))
            closed = self._string("inverted_documents").replace("{context}", document)
            return opened + self._string("inverted_ends") + closed
        return head + separator + separator.join(examples)

    def _dialog_heading(self) -> str:
        return self._draw.one(("\n\n", "\n", " ", " | ")) + self._string("dialog_headings")

    def _next_turn(self, document: str, tasks: Sequence[Task], log: _Log) -> str:
        pattern = self._draw.one(self._patterns.few_shot["next-turn"])
        log.used[pattern.id] = None
        turns = "".join(self._examples[task.kind].separator + self._example(task, log) for task in tasks[:-1])
        values = {"dialog_": turns, "answer": self._example(tasks[-1], log)}
        return document + pattern.separator + pattern.body.format_map(values)

    def _numbered(self, document: str, tasks: Sequence[Task], log: _Log) -> str:
        pattern = self._draw.one(self._patterns.few_shot["numbered"])
        log.used[pattern.id] = None
        if len(tasks) > REFERENCE_LIMIT:
            _count(log.dropped, TOO_MANY_QUESTIONS, len(tasks) - REFERENCE_LIMIT)
        labels = self._draw.one(self._patterns.labels["question_labels"])
        ends = self._draw.one(self._patterns.labels["option_ends"][::-1])

        def listed(halves: Iterable[str]) -> str:
            # Where labels or ends run out, so does the list.
            return "".join(label + half + end for label, half, end in zip(labels, halves, ends, strict=False))

        asked = listed(self._half(task, log).inputs.format_map(task.values) for task in tasks)
        told = listed(self._half(task, log).targets.format_map(task.values) for task in tasks)
        return pattern.body.format_map({"context": document, "numbered_questions": asked, "numbered_answers": told})

    def _inline(self, document: str, tasks: Sequence[Task], log: _Log) -> str:
        explained = all("cot" in task.values for task in tasks)
        category = "inline-explained" if explained else "inline"
        pattern: Inline = self._draw.one(self._patterns.inline[category])
        log.used[pattern.id] = None
        examples = ""
        for task in tasks[:-1]:
            half = self._half(task, log, reasoning=False)
            values = {
                "ex_input": half.inputs.format_map(task.values),
                "ex_output": half.targets.format_map(task.values),
                "ex_explanation": task.values.get("cot", ""),
            }
            examples += pattern.example.format_map(values)
        half, last = self._half(tasks[-1], log, reasoning=False), tasks[-1].values
        asked = {"input": half.inputs.format_map(last), "output": half.targets.format_map(last)}
        return pattern.context.format_map({"context": document}) + examples + pattern.last.format_map(asked)

    def _half(self, task: Task, log: _Log, *, reasoning: bool = True) -> FewShot:
        """The pattern for a pair; without reasoning, that of the same kind without it."""
        kind: PairKind = task.kind
        if not reasoning and kind in ("cot", "options-cot"):
            kind = "options" if kind == "options-cot" else "free"
        pattern = self._examples[kind]
        log.used[pattern.id] = None
        return pattern

    def _example(self, task: Task, log: _Log) -> str:
        return self._half(task, log).body.format_map(task.values)

    def _string(self, name: str) -> str:
        return self._draw.one(self._patterns.strings[name])


def _count(counts: dict[str, int], reason: str, number: int = 1) -> None:
    counts[reason] = counts.get(reason, 0) + number
