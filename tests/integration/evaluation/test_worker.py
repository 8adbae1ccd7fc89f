from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructpt.api.runspec import ResolvedInput, RunSpec, StageResult
from instructpt.api.v1alpha1.evaluationjob import Gate
from instructpt.corpus.manifest import load_manifest
from instructpt.errors import ConfigError, EvaluationError
from instructpt.evaluation import worker
from instructpt.storage import open_store
from instructpt.telemetry.context import WorkerContext

Evaluate = Callable[[RunSpec], StageResult]
Context = Callable[..., WorkerContext]


def outputs(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_trained_models_are_measured_beside_an_untrained_one_and_the_majority(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], evaluate: Evaluate, tmp_path: Path
) -> None:
    models = [("instruct", 1, make_model(1, steps=40)), ("vanilla", 1, make_model(2, steps=40))]
    result = evaluate(spec_of(models, gate=Gate(metric="bits-per-byte", min_delta=5.0)))
    assert result.missing == 0
    assert result.counts["documents"] == 12
    assert result.counts["questions"] == 18
    assert result.scores["gate"] == 0.0
    scores = json.loads((tmp_path / "scores/scores.json").read_bytes())
    bits = scores["metrics"]["bits-per-byte"]
    assert bits["informative"]
    assert bits["values"]["instruct"]["value"] < 0.7 * bits["values"]["untrained"]["value"]
    assert set(bits["values"]) == {"instruct", "vanilla", "untrained"}
    answers = scores["metrics"]["qa-exact-match"]
    assert set(answers["values"]) == {"instruct", "vanilla", "untrained", "majority", "chance"}
    assert not answers["informative"]  # forty steps teach nobody to answer
    assert "beyond_noise" in bits["gains"]["instruct"]
    assert scores["context_tokens"] == 256
    lines = [json.loads(line) for line in (tmp_path / "scores/predictions.jsonl").read_bytes().splitlines()]
    assert len(lines) == 18
    assert set(lines[0]["predictions"]) == {"instruct-1", "vanilla-1", "untrained"}
    manifest = load_manifest(open_store(str(tmp_path / "scores")), digest=result.digest)
    assert set(manifest.inputs) == {"corpus", "model/instruct/1", "model/vanilla/1"}


def test_nothing_of_time_or_place_is_in_the_manifest_and_a_second_run_gives_the_same_bytes(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], evaluate: Evaluate, tmp_path: Path
) -> None:
    models = [("instruct", 1, make_model(1)), ("vanilla", 1, make_model(2))]
    one = evaluate(spec_of(models, output="one"))
    two = evaluate(spec_of(models, output="two"))
    assert one.digest == two.digest
    same = {"manifest.json", "scores.json", "predictions.jsonl"}
    a, b = outputs(tmp_path / "one"), outputs(tmp_path / "two")
    assert {k: v for k, v in a.items() if k in same} == {k: v for k, v in b.items() if k in same}
    assert len({k for k in a if k in same}) == 3


def test_finalize_says_what_is_missing_and_a_rerun_measures_only_that(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], evaluate: Evaluate, context: Context,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = spec_of([("vanilla", 1, make_model(2))])
    whole = evaluate(spec)
    before = outputs(tmp_path / "scores")
    gone = [u.key for u in worker.plan_units(spec)][1::4]
    for key in (*gone, "manifest.json"):
        (tmp_path / "scores" / key).unlink()
    partial = worker.finalize(spec.finalizer(), context())
    assert partial.missing == len(gone)
    assert not (tmp_path / "scores/manifest.json").exists()
    measured: list[str] = []
    real = worker._measure_model
    monkeypatch.setattr(worker, "_measure_model", lambda *a: measured.extend(u.key for u in a[2]) or real(*a))
    worker.run(spec, context())
    assert sorted(measured) == sorted(gone)
    assert worker.finalize(spec.finalizer(), context()) == whole
    assert outputs(tmp_path / "scores") == before
    worker.run(spec, context())
    assert sorted(measured) == sorted(gone)


def test_finalize_repeats_its_message_from_the_manifest_alone_but_not_for_another_evaluation(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], evaluate: Evaluate, context: Context,
    tmp_path: Path,
) -> None:  # fmt: skip
    spec = spec_of([("vanilla", 1, make_model(2))], tasks=("bits-per-byte",))
    whole = evaluate(spec)
    for path in (tmp_path / "scores/work").rglob("*.json"):
        path.unlink()
    assert worker.finalize(spec.finalizer(), context()) == whole
    other = spec_of([("vanilla", 1, make_model(2))], tasks=("bits-per-byte",), max_documents=5)
    assert worker.finalize(other.finalizer(), context()).missing == 3


def test_a_killed_worker_loses_at_most_one_task_and_the_rerun_gives_the_same_bytes(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], evaluate: Evaluate, context: Context,
    tmp_path: Path,
) -> None:  # fmt: skip
    models = [("instruct", 1, make_model(1)), ("vanilla", 1, make_model(2))]
    undisturbed = evaluate(spec_of(models, output="undisturbed"))
    spec = spec_of(models, output="killed")
    path = tmp_path / "runspec.json"
    path.write_text(spec.to_json())
    # The worker kills itself the hard way as soon as its third result is there.
    program = f"""
import os, signal
from pathlib import Path
from instructpt.api.runspec import RunSpec
from instructpt.evaluation import worker
from instructpt.evaluation.results import TaskResult
from instructpt.telemetry.context import WorkerContext
real, calls = TaskResult.to_bytes, []
def dying(self):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self)
TaskResult.to_bytes = dying
worker.run(RunSpec.model_validate_json(Path({str(path)!r}).read_bytes()),
           WorkerContext(worker_id="w", scratch=Path({str(tmp_path / "s")!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    results = list((tmp_path / "killed/work").rglob("results/*.json"))
    assert len(results) == 2
    assert worker.finalize(spec.finalizer(), context()).missing == 7
    result = evaluate(spec)
    assert result.digest == undisturbed.digest


def test_a_stop_ends_between_two_tasks(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], context: Context, tmp_path: Path
) -> None:
    spec = spec_of([("vanilla", 1, make_model(2))])
    ctx = context()
    real = ctx.progress.update

    def stop_after_the_first(**changes: Any) -> None:
        real(**changes)
        if changes.get("done") == 1:
            ctx.stop.set()

    ctx.progress.update = stop_after_the_first  # type: ignore[method-assign]
    worker.run(spec, ctx)
    assert len(list((tmp_path / "scores/work").rglob("results/*.json"))) == 1
    assert ctx.progress.snapshot()["unit"] == "tasks"
    assert (ctx.progress.snapshot()["done"], ctx.progress.snapshot()["total"]) == (1, 6)


def test_replicas_share_the_work(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], context: Context, tmp_path: Path
) -> None:
    spec = spec_of([("vanilla", 1, make_model(2))])
    worker.run(spec, context(replica=1, replicas=2))
    assert len(list((tmp_path / "scores/work").rglob("results/*.json"))) == 3
    worker.run(spec, context(replica=0, replicas=2))
    assert worker.finalize(spec.finalizer(), context()).missing == 0


@pytest.mark.parametrize(
    ("names", "settings", "field"),
    [
        ([("vanilla", 1)], {"tasks": ("bits-per-byte", "mmlu")}, "spec.evaluation.tasks[1]"),
        ([("vanilla", 1)], {"tasks": ("bits-per-byte", "bits-per-byte")}, "spec.evaluation.tasks[1]"),
        ([("untrained", 1)], {}, "spec.models[0].name"),
        ([("vanilla", 1), ("vanilla", 1)], {}, "spec.models[1].name"),
        ([("vanilla", 1)], {"gate": Gate(metric="average")}, "spec.evaluation.gate.metric"),
    ],
)
def test_bad_specs_are_refused_before_anything_is_written(
    spec_of: Callable[..., RunSpec], corpus: ResolvedInput, context: Context, tmp_path: Path,
    names: list[tuple[str, int]], settings: dict[str, Any], field: str,
) -> None:  # fmt: skip
    spec = spec_of([(n, s, corpus) for n, s in names], **settings)
    with pytest.raises(ConfigError) as error:
        worker.run(spec, context())
    assert error.value.field == field
    assert error.value.fix
    assert not (tmp_path / "scores").exists()


def test_a_model_that_does_not_exist_and_a_corpus_without_held_out_documents(
    spec_of: Callable[..., RunSpec], make_model: Callable[..., ResolvedInput], context: Context, tmp_path: Path
) -> None:
    absent = spec_of([("vanilla", 1, ResolvedInput(uri=str(tmp_path / "nowhere")))])
    with pytest.raises(ConfigError, match="does not exist"):
        worker.run(absent, context())
    spec = spec_of([("vanilla", 1, make_model(2))])
    assert spec.evaluate is not None
    tuned = spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"split": "tune"})})
    with pytest.raises(EvaluationError, match="no document is held out"):
        worker.run(tuned, context())
