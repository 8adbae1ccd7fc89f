"""Filters over a whole stage: what is dropped stands in the manifest and in the worker's figures, and adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthesis_support as support

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.corpus import builtin
from instructpt.corpus.augmented import ChainRow
from instructpt.corpus.manifest import load_manifest
from instructpt.corpus.shards import iter_augmented
from instructpt.errors import ConfigError, SynthesisError
from instructpt.storage import open_store
from instructpt.synthesis import worker

TEXTS = [document.text for document in builtin.documents()][:24]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    return support.make_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, per_shard=7)


def rows_of(spec: RunSpec) -> list[ChainRow]:
    return list(iter_augmented(ResolvedInput(uri=spec.output.uri)))


def counts_of(corpus: ResolvedInput, folder: Path, **filters: Any) -> dict[str, int]:
    spec = support.make_spec(corpus, folder / "out", settings={"filters": filters})
    support.run_stage(spec, folder / "scratch")
    return dict(load_manifest(open_store(str(folder / "out"))).counts)


def test_what_is_dropped_is_counted_by_reason_and_adds_up(corpus: ResolvedInput, tmp_path: Path) -> None:
    plain = counts_of(corpus, tmp_path / "plain")
    assert plain["parsed_pairs"] == plain["pairs"] > 24
    bounded = counts_of(
        corpus, tmp_path / "bounded", minAnswerCharacters=20, maxQuestionCharacters=150, minGroundedness=0.9,
        questionSimilarity=0.5,
    )  # fmt: skip
    reasons = {name: n for name, n in bounded.items() if name.startswith("filtered_")}
    assert set(reasons) >= {"filtered_answer_too_short", "filtered_question_too_long"}
    assert bounded["parsed_pairs"] == plain["parsed_pairs"] == bounded["pairs"] + sum(reasons.values())
    assert bounded["documents"] == bounded["augmented"] + bounded["raw"] == 24


def test_a_worker_tells_what_it_dropped(corpus: ResolvedInput, tmp_path: Path) -> None:
    spec = support.make_spec(corpus, tmp_path / "out", settings={"filters": {"minAnswerCharacters": 20}})
    context = support.context(tmp_path / "scratch")
    worker.run(spec, context)
    told = context.progress.snapshot()["counts"]
    assert told["filtered_answer_too_short"] > 0
    assert told["parsed_pairs"] == told["pairs"] + told["filtered_answer_too_short"]


def test_filters_that_leave_nothing_fail_the_job_and_say_which(corpus: ResolvedInput, tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match=r"the filters dropped all of \d+ pairs: filtered_answer_too_short"):
        counts_of(corpus, tmp_path, minAnswerCharacters=3999)
    assert not open_store(str(tmp_path / "out")).exists("manifest.json")


def test_pairs_that_hold_what_an_evaluation_asks_are_dropped(corpus: ResolvedInput, tmp_path: Path) -> None:
    plain = support.make_spec(corpus, tmp_path / "plain")
    support.run_stage(plain, tmp_path / "scratch")
    pairs = [pair for row in rows_of(plain) for shot in row.shots for pair in shot.pairs]
    asked = max((pair.question for pair in pairs), key=len)
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"q": f"Tell me: {asked}"}) + "\n")
    filters = {"decontaminate": {"sets": [{"uri": str(evaluation), "textField": "q"}], "ngram": 13, "minMatches": 3}}
    spec = support.make_spec(corpus, tmp_path / "out", settings={"filters": filters})
    support.run_stage(spec, tmp_path / "scratch")
    manifest = load_manifest(open_store(str(tmp_path / "out")))
    left = [pair.question for row in rows_of(spec) for shot in row.shots for pair in shot.pairs]
    dropped = manifest.counts["filtered_contaminated"]
    assert asked not in left
    assert dropped == len(pairs) - len(left) > 0
    assert manifest.extra["evaluation"]["items"] == 1
    assert manifest.extra["evaluation"]["digest"].startswith("sha256:")


def test_an_evaluation_set_that_is_replaced_during_the_run_is_noticed(corpus: ResolvedInput, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"text": "a b c d"}) + "\n")
    filters = {"decontaminate": {"sets": [{"uri": str(evaluation)}], "ngram": 3}}
    spec = support.make_spec(corpus, tmp_path / "out", settings={"filters": filters})
    worker.run(spec, support.context(tmp_path / "scratch"))
    evaluation.write_text(json.dumps({"text": "e f g h"}) + "\n")
    with pytest.raises(SynthesisError, match="a set was replaced during the run"):
        worker.finalize(spec.finalizer(), support.context(tmp_path / "scratch"))


def test_the_manifest_does_not_say_how_an_evaluation_set_is_reached(corpus: ResolvedInput, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"text": "a b c d"}) + "\n")
    sets = [{"uri": str(evaluation), "endpoint": "http://server:9000", "secretRef": {"name": "lab"}}]
    filters = {"decontaminate": {"sets": sets, "ngram": 3}}
    spec = support.make_spec(corpus, tmp_path / "out", settings={"filters": filters})
    support.run_stage(spec, tmp_path / "scratch")
    data = (tmp_path / "out" / "manifest.json").read_text()
    assert str(evaluation) in data
    assert "secretRef" not in data
    assert "server:9000" not in data


def test_a_filter_that_nobody_offers_is_refused_before_anything_is_claimed(
    corpus: ResolvedInput, tmp_path: Path
) -> None:
    spec = support.make_spec(corpus, tmp_path / "out", settings={"filters": {"plugins": ["nowhere"]}})
    with pytest.raises(ConfigError, match="unknown filter"):
        worker.run(spec, support.context(tmp_path / "scratch"))
    assert list(open_store(str(tmp_path / "out")).list()) == []
