"""kill -9 of real workers at any write: the same command then ends with the same bytes (protocols.md 4)."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import synthesis_support as support
from faults import FaultyStore, Killed, kill_points

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.corpus.shards import iter_augmented, iter_corpus
from instructpt.storage import open_store
from instructpt.synthesis import worker

SMALL = {"sampling": {"contextWindow": 512, "maxTokens": 60}, "engine": {"name": "transformers"}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    texts = support.sentences(9) + ["Iron is a metal. Because it rusts, it is painted. However, gold is not painted."]
    return support.make_corpus(tmp_path_factory.mktemp("corpus"), texts, per_shard=4)


@pytest.fixture(scope="module")
def undisturbed(
    corpus: ResolvedInput, tmp_path_factory: pytest.TempPathFactory, synthesizer: Path
) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed")
    mined = support.make_spec(corpus, folder / "mined")
    model = support.make_spec(corpus, folder / "model", model=synthesizer, settings=SMALL)
    for spec in (mined, model):
        support.run_stage(spec, folder / "s")
    return {"mined": support.fingerprint(mined), "model": support.fingerprint(model)}


def test_killed_before_and_after_every_write(
    corpus: ResolvedInput, tmp_path: Path, undisturbed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where every point can be tried: stamp, lease, data and commit of each micro-shard."""
    opened = worker.open_store
    counting = FaultyStore(opened(str(tmp_path / "count")))
    spec = support.make_spec(corpus, tmp_path / "count")
    monkeypatch.setattr(worker, "open_store", lambda *a, **k: counting)
    worker.run(spec, support.context(tmp_path / "s"))
    assert counting.writes == 1 + 3 * 3
    for number, moment in kill_points(counting.writes):
        folder = tmp_path / f"{number}-{moment}"
        spec = support.make_spec(corpus, folder)
        monkeypatch.setattr(
            worker,
            "open_store",
            lambda uri, n=number, m=moment, **k: FaultyStore(opened(uri, **k), kill_at=n, moment=m),
        )
        with pytest.raises(Killed):
            worker.run(spec, support.context(tmp_path / "s"))
        monkeypatch.setattr(worker, "open_store", opened)
        support.run_stage(spec, tmp_path / "s")
        assert support.fingerprint(spec) == undisturbed["mined"]


@pytest.mark.slow
def test_real_processes_killed_at_random_writes(
    corpus: ResolvedInput, tmp_path: Path, undisturbed: dict[str, object], synthesizer: Path
) -> None:
    rng = random.Random(7)
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL)
    for _ in range(2):
        fault = (str(rng.randrange(1, 5)), rng.choice(["before", "after"]))
        status, output = support.finish(support.start_driver(spec, tmp_path, "w", *fault))
        assert status == support.KILLED, output
    status, output = support.finish(support.start_driver(spec, tmp_path, "w"))
    assert status == 0, output
    worker.finalize(spec.finalizer(), support.context(tmp_path / "s"))
    assert support.fingerprint(spec) == undisturbed["model"]


@pytest.mark.slow
def test_two_workers_at_once_one_of_them_killed(tmp_path: Path, synthesizer: Path) -> None:
    corpus = support.make_corpus(tmp_path, support.sentences(24), per_shard=2)
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL, parallelism=2)
    workers = [support.start_driver(spec, tmp_path, "a"), support.start_driver(spec, tmp_path, "b", "6", "before")]
    ended = [support.finish(process) for process in workers]
    assert ended[0][0] == 0, ended[0][1]
    assert ended[1][0] in (0, support.KILLED), ended[1][1]
    each_document_once(spec, corpus, tmp_path)
    alone = support.make_spec(corpus, tmp_path / "alone", model=synthesizer, settings=SMALL)
    support.run_stage(alone, tmp_path / "s")
    assert support.fingerprint(spec) == support.fingerprint(alone)


def test_two_workers_share_the_micro_shards(
    corpus: ResolvedInput, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    spec = support.make_spec(corpus, tmp_path / "out", parallelism=2)
    workers = [support.start_driver(spec, tmp_path, name) for name in ("a", "b")]
    for process in workers:
        status, output = support.finish(process)
        assert status == 0, output
    each_document_once(spec, corpus, tmp_path)
    assert support.fingerprint(spec) == undisturbed["mined"]


def test_a_worker_that_is_told_to_stop_leaves_at_once(
    corpus: ResolvedInput, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    spec = support.make_spec(corpus, tmp_path / "out")
    process = support.start_driver(spec, tmp_path, "w")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    status, output = support.finish(process)
    assert status == 0, output
    support.run_stage(spec, tmp_path / "s")
    assert support.fingerprint(spec) == undisturbed["mined"]


def each_document_once(spec: RunSpec, corpus: ResolvedInput, folder: Path) -> None:
    result = worker.finalize(spec.finalizer(), support.context(folder / "s"))
    wanted = [document.id for document in iter_corpus(corpus)]
    found = [shot.document for row in iter_augmented(ResolvedInput(uri=spec.output.uri)) for shot in row.shots]
    assert sorted(found) == sorted(wanted)
    assert result.counts["documents"] == len(wanted)
    store = open_store(spec.output.uri)
    assert sum("/commits/" in info.key for info in store.list()) == result.counts["shards"]
