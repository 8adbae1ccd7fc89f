from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructpt.api.v1alpha1.decontamination import Decontamination
from instructpt.corpus.contamination import PREFIX, EvaluationNgrams, evaluation_ngrams
from instructpt.errors import ConfigError
from instructpt.storage import open_store

NUMBERS = itertools.count()
ITEM = "one two three four five six seven"


@pytest.fixture
def made(tmp_path: Path) -> Any:
    store = open_store(f"memory://contamination-{next(NUMBERS)}")

    def make(*items: str, **settings: Any) -> EvaluationNgrams:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items))
        wanted = Decontamination.model_validate({"sets": [{"uri": str(path)}], "ngram": 5, **settings})
        return evaluation_ngrams(wanted, store, field="filters.decontaminate")

    make.store = store  # type: ignore[attr-defined]
    return make


@pytest.mark.parametrize(
    ("text", "contaminated"),
    [
        (ITEM, True),
        ("before ONE, two: three four-five! after", True),
        ("one two three four", False),
        ("two three four five six", True),
        ("one two three three four five", False),
        ("", False),
    ],
)
def test_a_run_of_words_in_common_contaminates(made: Any, text: str, contaminated: bool) -> None:
    assert made(ITEM, "another item of the set").contaminate(text) is contaminated


def test_different_runs_are_counted_each_once(made: Any) -> None:
    known = made(ITEM, minMatches=3)
    assert known.contaminate(ITEM)
    assert not known.contaminate("one two three four five six")
    assert not known.contaminate("one two three four five and one two three four five and one two three four five")


def test_what_is_built_is_kept_under_what_decides_it(made: Any) -> None:
    first = made(ITEM, "two three four five six", "too short")
    assert (first.items, first.too_short, len(first.hashes)) == (3, 1, 3)
    assert np.all(first.hashes[1:] > first.hashes[:-1])
    made(ITEM)
    assert len(list(made.store.list(PREFIX))) == 2


def test_equal_sets_give_an_equal_digest_wherever_they_lie(made: Any) -> None:
    assert made(ITEM, "x").digest == made(ITEM, "x").digest != made(ITEM + " eight").digest


def test_large_sets_are_built_in_parts(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [f"a{i} b c d e f{i}" for i in range(50)]
    whole = made(*items)
    monkeypatch.setattr("instructpt.corpus.contamination._BATCH", 7)
    assert made(*items).digest == whole.digest


def test_sets_that_are_not_there_are_named(tmp_path: Path, made: Any) -> None:
    wanted = Decontamination.model_validate({"sets": [{"uri": str(tmp_path / "none.jsonl")}]})
    with pytest.raises(ConfigError, match=r"filters.decontaminate.sets\[0\].uri"):
        evaluation_ngrams(wanted, made.store, field="filters.decontaminate")
