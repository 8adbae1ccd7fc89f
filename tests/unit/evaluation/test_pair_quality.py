from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow
from instructpt.evaluation.pair_quality import measure, render
from instructpt.synthesis.model import with_options


def pair(question: str, answer: str, kind: str = "free") -> PairRow:
    return PairRow(question=question, answer=answer, kind=kind)


def shot(text: str, *pairs: PairRow, reason: str = "", attempts: int = 1) -> ShotRow:
    return ShotRow(
        document=text[:4], text=text, pairs=pairs, verdict="augmented" if pairs else "raw", reason=reason,
        attempts=attempts, prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip


def chain(*shots: ShotRow) -> ChainRow:
    return ChainRow(id="0/0", text="t", shots=shots, templates=(), seed=0)


ROWS = [
    chain(
        shot(
            "The river runs\n to the sea.",
            pair("Where does it run?", "To  the sea."),
            pair("Is it dry?", "no"),
            pair(with_options("Which?", ["river", "hill"]), "river", "options"),
            pair("is it  DRY?", "It is wet"),
        ),
        shot("Another text."),
    ),
    chain(shot("A third text.", pair("Is it dry?", "yes"))),
    chain(shot("Left raw.", reason="not-selected", attempts=0)),
]


def test_every_figure_by_hand() -> None:
    got = measure(ROWS)
    assert got["documents"] == {"augmented": 2, "raw": 2}
    assert got["reasons"] == {"not-selected": 1}
    assert got["asked"] == 3
    assert got["yield"] == 0.6667
    assert got["pairs"] == 5
    assert got["pairs_per_document"] == {"0": 1, "1": 1, "4": 1}
    assert got["pairs_per_document_mean"] == 2.5
    assert got["kinds"] == {"free": 4, "options": 1}
    assert got["answers_in"] == {"document": 0.2, "options": 0.2, "yes-no": 0.4, "elsewhere": 0.2}
    assert got["repeated_in_document"] == 1
    assert got["repeated_in_corpus"] == 2
    assert got["different_questions"] == 0.6
    assert got["question_words"] == {"mean": 2.8, "median": 3, "longest": 4}
    assert got["answer_words"]["longest"] == 3
    assert got["shots_per_chain"] == {"1": 2, "2": 1}


def test_nothing_is_no_division_by_zero() -> None:
    got = measure([])
    assert got["yield"] is None
    assert got["pairs"] == 0
    assert shown(got)


def test_the_terminal_shows_yield_and_histogram() -> None:
    text = shown(measure(ROWS))
    assert "66.7\u00a0% of 3 documents asked for got pairs" in text
    assert "not-selected" in text
    assert "█" in text


def shown(quality: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=110).print(render(quality))
    return out.getvalue()
