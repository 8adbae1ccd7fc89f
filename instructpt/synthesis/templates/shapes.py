"""The five shapes of few-shot text: classic, dialog, numbered questions, inline few-shot, next-turn dialog."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from instructpt.synthesis.model import CONCLUSION_MARK, STEP_BY_STEP, PairParts, Shot, parts_of
from instructpt.synthesis.templates.patterns import PatternSet, Style, substitute, substitute_reference

# Shares in percent when every document has at least two pairs, and otherwise (arXiv 2406.14491, reference code).
SHAPES_OF_SEVERAL_PAIRS = (("classic", 80), ("dialog", 5), ("numbered", 5), ("inline", 5), ("next-turn", 5))
SHAPES_OF_FEW_PAIRS = (("classic", 95), ("dialog", 5))
INVERTED_SHARE = 0.05
REFERENCE_LIMIT = 26

GOLD_NOT_IN_OPTIONS = "gold-not-in-options"
TOO_MANY_OPTIONS = "too-many-options"
TOO_MANY_QUESTIONS = "too-many-questions"


def letters(index: int) -> str:
    """The label of an entry: A to Z, then AA, AB and so on without end."""
    label = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        label = chr(ord("A") + digit) + label
    return label


class Writer:
    """Writes one chain; everything that is drawn is drawn from ``rng`` in a fixed order.

    Patterns are drawn once per chain, so that a chain reads as few-shot examples of one form. The attributes
    ``used``, ``repaired`` and ``dropped`` say afterwards which patterns stand in the text, which pairs had to be
    given another form, and (``reference`` only) which were lost.
    """

    def __init__(self, patterns: PatternSet, rng: random.Random, *, reference: bool) -> None:
        self.used: dict[str, None] = {}
        self.repaired: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self._reference = reference
        self._rng = rng
        self._patterns = patterns
        self._chosen = {category: patterns.pick(category, rng) for category in patterns.patterns}
        self._styles = {category: patterns.pick_style(category, rng) for category in patterns.styles}
        self._answer_form = rng.choice(("label", "text", "both"))
        self._inverted = rng.random() < INVERTED_SHARE

    def write(self, chain: Sequence[Shot]) -> str:
        """The text of a chain: its shots in order, one shape for all; a shot without pairs is its document."""
        shots = [(shot.document, self._resolve(shot)) for shot in chain]
        several = all(len(pairs) >= 2 for _, pairs in shots)
        shape = self._draw_shape(SHAPES_OF_SEVERAL_PAIRS if several else SHAPES_OF_FEW_PAIRS)
        if not any(pairs for _, pairs in shots):
            return "\n\n".join(document for document, _ in shots)
        self.used[shape] = None
        write_shot = {
            "classic": self._classic,
            "dialog": self._dialog,
            "numbered": self._numbered,
            "inline": self._inline,
            "next-turn": self._next_turn,
        }[shape]
        texts = [write_shot(document, pairs) if pairs else document for document, pairs in shots]
        return self._text("separators").join(texts)

    def _draw_shape(self, shares: Sequence[tuple[str, int]]) -> str:
        names = [name for name, _ in shares]
        return self._rng.choices(names, weights=[share for _, share in shares])[0]

    def _resolve(self, shot: Shot) -> list[PairParts]:
        """The pairs taken apart; options that cannot be answered among themselves become part of the question."""
        resolved: list[PairParts] = []
        for pair in shot.pairs:
            parts = parts_of(pair.question, pair.answer)
            options = parts.options
            if self._reference and len(options) > REFERENCE_LIMIT:
                self._count(self.dropped, TOO_MANY_OPTIONS)
                options = options[:REFERENCE_LIMIT]
            if options and _gold(parts, options) is None:
                if self._reference:
                    self._count(self.dropped, GOLD_NOT_IN_OPTIONS)
                    continue
                self._count(self.repaired, GOLD_NOT_IN_OPTIONS)
                resolved.append(_without_options(pair.question, parts))
            else:
                resolved.append(
                    PairParts(
                        kind=parts.kind,
                        stem=parts.stem,
                        options=options,
                        reasoning=parts.reasoning,
                        conclusion=parts.conclusion,
                    )
                )
        return resolved

    def _classic(self, document: str, pairs: Sequence[PairParts]) -> str:
        """A document and its pairs, or in few texts the pairs and then the document."""
        together = self._text("pair_separators").join(self._pair(parts) for parts in pairs)
        if self._inverted:
            return self._fill("inverted", {"document": document, "pairs": together})
        opened = self._fill("openers", {"document": document})
        joiner = self._fill("joiners", {})
        return "\n\n".join((opened, f"{joiner}\n{together}" if joiner else together))

    def _dialog(self, document: str, pairs: Sequence[PairParts]) -> str:
        """Turns of a user who brings the document and an assistant who answers."""
        questions = [self._question(parts) for parts in pairs]
        if self._inverted:
            turns = self._turns(questions, pairs)
            turns += [self._say("user", self._fill("dialog_inverted_closings", {})), self._say("assistant", document)]
        else:
            questions[0] = self._fill("dialog_openings", {"document": document, "question": questions[0]})
            turns = self._turns(questions, pairs)
        return self._text("pair_separators").join(turns)

    def _numbered(self, document: str, pairs: Sequence[PairParts]) -> str:
        """All questions in a numbered list, then all answers."""
        if self._reference and len(pairs) > REFERENCE_LIMIT:
            self._count(self.dropped, TOO_MANY_QUESTIONS, len(pairs) - REFERENCE_LIMIT)
            pairs = pairs[:REFERENCE_LIMIT]
        labels = [self._fill("number_styles", _numbers(index)) for index in range(len(pairs))]
        asked = [label + self._question(parts) for label, parts in zip(labels, pairs, strict=True)]
        told = [label + self._answer(parts) for label, parts in zip(labels, pairs, strict=True)]
        values = {"document": document, "questions": "\n".join(asked), "answers": "\n".join(told)}
        return self._fill("numbered", values)

    def _inline(self, document: str, pairs: Sequence[PairParts]) -> str:
        """All pairs but the last as examples in one line, then the last."""
        style = self._style("inline_examples")
        examples = [
            self._put(style["pair"], {"question": self._question(parts), "answer": self._answer(parts)})
            for parts in pairs[:-1]
        ]
        values = {
            "document": document,
            "examples": style["join"].join(examples),
            "question": self._question(pairs[-1]),
            "answer": self._answer(pairs[-1]),
        }
        return self._fill("inline", values)

    def _next_turn(self, document: str, pairs: Sequence[PairParts]) -> str:
        """A transcript that breaks off after the last question, then the turn that comes next."""
        turns = self._turns([self._question(parts) for parts in pairs], pairs)
        values = {"document": document, "dialog": "\n".join(turns[:-1]), "answer": self._answer(pairs[-1])}
        return self._fill("next_turn", values)

    def _turns(self, questions: Sequence[str], pairs: Sequence[PairParts]) -> list[str]:
        turns: list[str] = []
        for question, parts in zip(questions, pairs, strict=True):
            turns += [self._say("user", question), self._say("assistant", self._answer(parts))]
        return turns

    def _say(self, who: str, text: str) -> str:
        return self._style("speakers")[who] + text

    def _pair(self, parts: PairParts) -> str:
        """A pair in the pattern of its kind."""
        values = {
            "question": parts.stem,
            "options": self._options(parts),
            "reasoning": parts.reasoning,
            "conclusion": parts.conclusion,
            "answer": self._choice(parts) if parts.options else parts.conclusion,
        }
        return self._fill(parts.kind, values)

    def _question(self, parts: PairParts) -> str:
        """A question with its options and its request for reasoning, for the shapes without patterns per pair."""
        listed = f"{parts.stem}\n{self._options(parts)}" if parts.options else parts.stem
        return listed + STEP_BY_STEP if parts.reasoning else listed

    def _answer(self, parts: PairParts) -> str:
        choice = self._choice(parts) if parts.options else parts.conclusion
        return parts.reasoning + CONCLUSION_MARK + choice if parts.reasoning else choice

    def _options(self, parts: PairParts) -> str:
        if not parts.options:
            return ""
        style = self._style("labels")
        listed = (self._put(style["label"], _numbers(index)) + option for index, option in enumerate(parts.options))
        return style["separator"].join(listed)

    def _choice(self, parts: PairParts) -> str:
        """The gold option: its label, its text, or both, as drawn; its text where options have no labels."""
        gold = _gold(parts, parts.options)
        label = self._style("labels")["label"]
        shown = self._put(label, _numbers(gold or 0))
        if gold is None or shown == label or self._answer_form == "text":
            return parts.conclusion
        return shown + parts.conclusion if self._answer_form == "both" else shown.strip().removesuffix(".")

    def _style(self, category: str) -> Mapping[str, str]:
        style: Style = self._styles[category]
        self.used[style.id] = None
        return style.strings

    def _text(self, category: str) -> str:
        return self._chosen[category].text

    def _fill(self, category: str, values: Mapping[str, str]) -> str:
        pattern = self._chosen[category]
        self.used[pattern.id] = None
        return self._put(pattern.text, values)

    def _put(self, pattern: str, values: Mapping[str, str]) -> str:
        return substitute_reference(pattern, values) if self._reference else substitute(pattern, values)

    @staticmethod
    def _count(counts: dict[str, int], reason: str, number: int = 1) -> None:
        counts[reason] = counts.get(reason, 0) + number


def _numbers(index: int) -> dict[str, str]:
    """The values of the placeholders of labels: number, lower-case and upper-case letters."""
    upper = letters(index)
    return {"n": str(index + 1), "a": upper.lower(), "u": upper}


def _gold(parts: PairParts, options: Sequence[str]) -> int | None:
    """Which option the conclusion names; a chain of thought may end it with a full stop."""
    stripped = [option.strip() for option in options]
    said = parts.conclusion.strip()
    for candidate in (said, said.removesuffix(".") if parts.reasoning else said):
        if candidate in stripped:
            return stripped.index(candidate)
    return None


def _without_options(question: str, parts: PairParts) -> PairParts:
    """The pair with its options left in its question as they stand there, answered freely."""
    stem = question.removesuffix(STEP_BY_STEP) if parts.reasoning else question
    return PairParts(
        kind="cot" if parts.reasoning else "free",
        stem=stem,
        options=(),
        reasoning=parts.reasoning,
        conclusion=parts.conclusion,
    )
