"""A corpus whose filters leave documents out: what comes after it sees the others alone, by every way of reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthesis_support as support

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import InspectRun, ResolvedInput, RunSpec
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.corpus import builtin, inspect
from instructpt.corpus.manifest import load_manifest
from instructpt.corpus.shards import iter_augmented, iter_corpus
from instructpt.storage import open_store

KEPT = [document.text for document in builtin.documents() if len(document.text.split()) >= 20][:20]
SHORT = "left out"
TEXTS = [text for one in KEPT for text in (one, SHORT, one)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    folder = tmp_path_factory.mktemp("corpus")
    # The first two micro-shards keep nothing.
    texts = [SHORT] * 10 + TEXTS
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = RunSpec(
        verb="inspect",
        owner_kind="Corpus",
        owner_name="c",
        step="inspect",
        output=StorageSpec(uri=str(folder / "out")),
        code_version="test",
        inspect=InspectRun(
            source=CorpusSource(uri=str(folder / "a.jsonl")),
            split=Split(tune=0.3, train=0.4, held_out=0.3),
            documents_per_shard=5,
            filters=CorpusFilters(min_words=5, deduplicate="exact"),
        ),
    )
    inspect.run(spec, support.context(folder / "scratch"))
    result = inspect.finalize(spec.finalizer(), support.context(folder / "scratch"))
    assert result.counts["documents"] == len(set(KEPT)) == 20
    return ResolvedInput(uri=result.uri, digest=result.digest)


def synthesized(corpus: ResolvedInput, folder: Path, **section: object) -> list[str]:
    """Texts of the documents that a synthesis saw; its counts must be of them."""
    spec = support.make_spec(corpus, folder / "out", **section)
    result = support.run_stage(spec, folder / "scratch")
    seen = [shot.text for row in iter_augmented(ResolvedInput(uri=result.uri)) for shot in row.shots]
    assert result.counts["documents"] == len(seen) == result.counts["augmented"] + result.counts["raw"]
    return seen


def test_a_synthesis_sees_what_is_kept(corpus: ResolvedInput, tmp_path: Path) -> None:
    assert sorted(synthesized(corpus, tmp_path)) == sorted(KEPT)
    assert len(load_manifest(open_store(str(tmp_path / "out"))).shards) == 12, "of 14 two keep nothing"


@pytest.mark.parametrize("split", ["tune", "train", "heldOut"])
def test_a_part_is_taken_of_what_is_kept(corpus: ResolvedInput, tmp_path: Path, split: str) -> None:
    wanted = [document.text for document in iter_corpus(corpus, split=split)]  # type: ignore[arg-type]
    assert 0 < len(wanted) < 20
    assert sorted(synthesized(corpus, tmp_path, split=split)) == sorted(wanted)


def test_a_sample_counts_only_what_is_kept(corpus: ResolvedInput, tmp_path: Path) -> None:
    assert sorted(synthesized(corpus, tmp_path, max_documents=7)) == sorted(KEPT[:7])
