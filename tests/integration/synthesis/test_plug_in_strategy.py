"""A strategy of another distribution: installed as an entry point, planned, and carried out by a worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import synthesis_support as support

from instructpt.errors import ConfigError
from instructpt.local.spec_file import parse_resource
from instructpt.plan.planner import plan_resource
from instructpt.synthesis import strategies, worker

MODULE = """
from instructpt.synthesis import Pair
from instructpt.synthesis.rules import MinedPair
from instructpt.synthesis.strategies import Strategy


def first_words(document, seed, *, forbidden):
    if "broken" in document:
        raise RuntimeError("no rule for this")
    yield MinedPair(family="first-words", task="two", pair=Pair("Which words come first?", document[:8]))
    yield MinedPair(family="tagged", task="tag", pair=Pair(f"What about {forbidden[0]}?", f"seed {seed}"))


strategy = Strategy(
    name="first-words", paper="none", engines=("mined",), deduplicate="document", summary="First words.",
    mine=first_words,
)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution on the path, as pip leaves it there."""
    site = tmp_path / "site"
    info = site / "our_strategies-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "our_strategies.py").write_text(MODULE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our-strategies\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        f"[{strategies.ENTRY_POINT_GROUP}]\nfirst-words = our_strategies:strategy\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_worker_carries_it_out(installed: Path, tmp_path: Path) -> None:
    texts = [f"Document {i} is about something." for i in range(5)] + ["This one is broken."]
    corpus = support.make_corpus(tmp_path / "c", texts)
    spec = support.make_spec(corpus, tmp_path / "out", strategy="first-words", settings={"shots": 1, "seed": 7})
    ctx = support.context(tmp_path / "scratch")
    worker.run(spec, ctx)
    assert "first-words" in strategies.names()
    # The stage is finalized in the operator's image, which holds no plug-ins.
    sys.path.remove(str(installed))
    assert "first-words" not in strategies.names()
    counts = worker.finalize(spec.finalizer(), ctx).counts
    assert counts["mined_first_words"] == counts["mined_tagged"] == 5
    assert counts["pairs"] == 10
    assert counts["neutralised_pairs"] == 5
    assert counts["dead_letters"] == counts["dead_letters_rule_error"] == 1


def test_a_job_that_names_it_is_planned_without_a_synthesizer() -> None:
    job = {
        "apiVersion": "instructpt.dev/v1alpha1",
        "kind": "SynthesisJob",
        "metadata": {"name": "job"},
        "spec": {
            "input": {"uri": "s3://bucket/corpus"},
            "storage": {"uri": "s3://bucket/out"},
            "strategy": "first-words",
            "engine": {"name": "mined"},
        },
    }
    resource = parse_resource(job, where="job")
    (stage,) = plan_resource(resource, {}, code_version="0").stages  # type: ignore[arg-type]
    assert stage.runspec is not None
    assert stage.runspec.synthesize is not None
    assert stage.runspec.synthesize.strategy == "first-words"
    with pytest.raises(ConfigError, match="neither for strategies of rules"):
        parse_resource({**job, "spec": {**job["spec"], "synthesizer": {"model": "s3://m/x"}}}, where="job")  # type: ignore[dict-item]


def test_without_the_distribution_the_worker_says_what_it_knows(tmp_path: Path) -> None:
    corpus = support.make_corpus(tmp_path / "c", ["one"])
    spec = support.make_spec(corpus, tmp_path / "out", strategy="first-words")
    with pytest.raises(ConfigError, match="known: instruction-synthesizer, mined"):
        worker.run(spec, support.context(tmp_path / "scratch"))
