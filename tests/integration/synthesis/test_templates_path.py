"""``templates: PATH`` through a worker: a file that the workers have and finalize has not."""

from __future__ import annotations

from pathlib import Path

import pattern_file
import pytest
import synthesis_support as support

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.corpus.manifest import load_manifest
from instructpt.corpus.shards import iter_augmented
from instructpt.errors import ConfigError, SynthesisError
from instructpt.storage import open_store
from instructpt.synthesis import templates, worker
from instructpt.synthesis import work as stage

TEXTS = [f"Lamp {i} is a source of light. It shines because it is hot." for i in range(4)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return pattern_file.write(tmp_path / "LMOps")


@pytest.fixture
def spec(tmp_path: Path, file: Path) -> RunSpec:
    corpus = support.make_corpus(tmp_path / "c", TEXTS, per_shard=2)
    return support.make_spec(corpus, tmp_path / "out", settings={"shots": 1, "templates": str(tmp_path / "LMOps")})


def test_the_texts_are_of_its_patterns_and_finalize_needs_it_no_more(spec: RunSpec, file: Path, tmp_path: Path) -> None:
    ctx = support.context(tmp_path / "scratch")
    digest = templates.load(str(file)).digest
    worker.run(spec, ctx)
    file.unlink()
    result = worker.finalize(spec.finalizer(), ctx)
    manifest = load_manifest(open_store(result.uri), digest=result.digest)
    assert manifest.settings["templates"] == {"source": str(tmp_path / "LMOps"), "digest": digest}
    rows = list(iter_augmented(ResolvedInput(uri=result.uri, digest=result.digest)))
    assert len(rows) == 4
    assert all(" / T " in row.text or "V:" in row.text or "=" in row.text for row in rows)


def test_a_file_replaced_during_the_run_is_refused(spec: RunSpec, file: Path, tmp_path: Path) -> None:
    ctx = support.context(tmp_path / "scratch")
    worker.run(spec, ctx)
    work = stage.resolve(spec, open_store(spec.output.uri))
    work.ledger("other").uncommit(work.parts[0].entry.id)
    file.write_text(pattern_file.FILE.replace('"then"', '"next"'), encoding="utf-8")
    worker.run(spec, ctx)
    with pytest.raises(SynthesisError, match="different templates or profiles"):
        worker.finalize(spec.finalizer(), ctx)


def test_without_the_file_nothing_is_claimed(spec: RunSpec, file: Path, tmp_path: Path) -> None:
    file.unlink()
    with pytest.raises(ConfigError, match="no pattern file at this path"):
        worker.run(spec, support.context(tmp_path / "scratch"))
    assert not list(open_store(spec.output.uri).list("work/"))
