"""Verbs on the demo pipeline, as far as it goes without a model, and each kind run by itself."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import localruns
import pytest
import yaml

from instructpt.local.folder import RunFolder


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo after ``run --sample 20``."""
    folder = tmp_path_factory.mktemp("sampled")
    assert localruns.instructpt("init", "demo", "--documents", "60", cwd=folder).returncode == 0
    done = localruns.instructpt("run", "pipeline.yaml", "--sample", "20", "-o", "json", cwd=folder / "demo")
    assert done.returncode == 0, done.stderr
    quality = json.loads(done.stdout)
    assert quality
    assert "show augmented demo -n 3" not in done.stdout
    return folder / "demo"


def shown(folder: Path, *args: str) -> Any:
    done = localruns.instructpt("show", *args, "-o", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sample_is_shown_and_is_complete(sampled: Path) -> None:
    (row,) = shown(sampled, "augmented")
    assert any(shot["pairs"] for shot in row["shots"])
    status = localruns.instructpt("status", "demo", "-o", "json", cwd=sampled)
    assert json.loads(status.stdout)["status"]["phase"] == "Complete"
    assert "(a sample of 20 documents)" in localruns.instructpt("status", "demo", cwd=sampled).stdout
    assert len(shown(sampled, "documents", "-n", "3")) == 3
    assert shown(sampled, "dead-letters") == []


def test_the_use_of_templates_is_counted(sampled: Path) -> None:
    found = shown(sampled, "templates")
    assert found["texts"] == sum(found["shapes"].values()) > 0
    listed = {name for name in found["counts"] if name not in found["shapes"]}
    assert len(listed) == sum(category["number"] for category in found["categories"])
    table = localruns.instructpt("show", "templates", cwd=sampled).stdout
    assert table.startswith(f"{found['texts']} texts with pairs")


def test_show_never_takes_another_step_instead(sampled: Path) -> None:
    wrong = localruns.instructpt("show", "augmented", "--step", "tuning-tasks", cwd=sampled)
    assert wrong.returncode == 2
    assert "use one of synthesis" in wrong.stderr


def test_requeue_without_dead_letters_says_so(sampled: Path) -> None:
    done = localruns.instructpt("requeue", "demo", cwd=sampled)
    assert done.returncode == 0
    assert "has no dead letters" in done.stderr


def test_requeue_with_an_unknown_reason_lists_those_that_exist(sampled: Path, tmp_path: Path) -> None:
    shutil.copytree(sampled, tmp_path / "demo")
    (commit, *_) = sorted((tmp_path / "demo/runs/demo/data").rglob("commits/*"))
    data = json.loads(commit.read_text())
    data["record"]["counts"]["dead_letters_engine_error"] = 3
    commit.write_text(json.dumps(data))
    done = localruns.instructpt("requeue", "demo", "--reason", "nope", cwd=tmp_path / "demo")
    assert done.returncode == 2
    assert "there are engine-error (3)" in done.stderr
    again = localruns.instructpt("requeue", "demo", "--reason", "engine-error", cwd=tmp_path / "demo")
    assert again.returncode == 0, again.stderr
    assert "1 micro-shards will be made again" in again.stderr


def test_a_full_run_takes_the_sample_and_a_stale_report_away(sampled: Path, tmp_path: Path) -> None:
    shutil.copytree(sampled, tmp_path / "demo")
    run = RunFolder(path=tmp_path / "demo/runs/demo")
    (run.path / "report.json").write_text("{}")
    process = subprocess.Popen(
        [sys.executable, "-m", "instructpt", "run", "pipeline.yaml"],
        cwd=tmp_path / "demo", stderr=subprocess.PIPE, env=localruns.environment(),
    )  # fmt: skip
    while process.poll() is None and run.sample is not None:
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert run.sample is None
    assert not (run.path / "report.json").exists()


HOLDING = """
import os, sys
from pathlib import Path

if "worker" in sys.orig_argv:
    from instructpt.corpus import inspect

    def held(run):
        def wrapped(spec, ctx):
            (Path(os.environ["HOLD"]) / "up").touch()
            ctx.stop.wait()
        return wrapped
    inspect.run = held(inspect.run)
"""


def test_dashboard_names_live_metrics(tmp_path: Path) -> None:
    localruns.write_corpus(tmp_path / "corpus" / "a.jsonl", 5)
    write(tmp_path, "Corpus", {"uri": "corpus/a.jsonl", "storage": {"uri": "runs/job/data"}})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOLDING)
    env = {"PYTHONPATH": str(tmp_path / "site"), "HOLD": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "instructpt", "run", "job.yaml"],
        cwd=tmp_path, stderr=subprocess.PIPE, env=localruns.environment(**env),
    ) as process:  # fmt: skip
        while process.poll() is None and not (tmp_path / "up").exists():
            pass
        urls = json.loads(localruns.instructpt("dashboard", "job", "-o", "json", cwd=tmp_path).stdout)
        with urllib.request.urlopen(urls["corpus/0"], timeout=10) as answer:
            assert b"instructpt_" in answer.read()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert "no live worker" in localruns.instructpt("dashboard", "job", cwd=tmp_path).stderr


def write(folder: Path, kind: str, spec: dict[str, Any]) -> None:
    wire = {"apiVersion": "instructpt.dev/v1alpha1", "kind": kind, "metadata": {"name": "job"}, "spec": spec}
    (folder / "job.yaml").write_text(yaml.safe_dump(wire))


def ran(folder: Path, kind: str, name: str, spec: dict[str, Any]) -> Any:
    wire = {"apiVersion": "instructpt.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(wire))
    done = localruns.instructpt("run", f"{name}.yaml", "-o", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_kind_runs_by_itself(tmp_path: Path) -> None:
    localruns.write_corpus(tmp_path / "corpus" / "a.jsonl", 30)
    corpus = ran(
        tmp_path, "Corpus", "corpus",
        {"uri": "corpus/*.jsonl", "storage": {"uri": "out/corpus"}, "documentsPerShard": 10,
         "split": {"tune": 0, "train": 0.7, "heldOut": 0.3}},
    )  # fmt: skip
    assert corpus["counts"]["documents"] == 30
    ran(
        tmp_path, "SynthesisJob", "pairs",
        {"input": {"uri": "out/corpus"}, "storage": {"uri": "out/pairs"}, "strategy": "mined",
         "engine": {"name": "mined"}, "split": "train"},
    )  # fmt: skip
    assert (tmp_path / "out/pairs/manifest.json").exists()
    trained = ran(
        tmp_path, "TrainingJob", "model",
        {"init": localruns.TINY, "tokenizer": {"train": {"vocabSize": 400}}, "tokens": 4000, "sequenceLength": 128,
         "globalBatchRows": 4, "microBatchRows": 4, "maxRepeats": 20, "storage": {"uri": "out/model"},
         "mixture": [{"uri": "corpus/a.jsonl", "format": "jsonl", "weight": 1}]},
    )  # fmt: skip
    assert trained["digest"].startswith("sha256:")
    scored = ran(
        tmp_path, "EvaluationJob", "scores",
        {"models": [{"name": "model", "uri": "out/model"}], "corpus": {"uri": "out/corpus"}, "maxDocuments": 3,
         "maxQuestions": 3, "storage": {"uri": "out/scores"}},
    )  # fmt: skip
    assert scored["digest"].startswith("sha256:")
    assert scored["scores"]


def test_check_of_a_file_names_a_corpus_and_a_model_that_are_not_there(tmp_path: Path) -> None:
    spec = {"uri": "nowhere/*.jsonl", "storage": {"uri": "out"}}
    write(tmp_path, "Corpus", spec)
    rows = checked(tmp_path)
    assert rows["spec.storage"]["ok"] is True
    assert rows["spec"]["ok"] is False
    assert "nothing is there" in rows["spec"]["fix"]
    write(
        tmp_path, "SynthesisJob",
        {"input": {"uri": "x"}, "storage": {"uri": "out"}, "synthesizer": {"model": "./models/none"}},
    )  # fmt: skip
    assert "./models/none" in checked(tmp_path)["settings"]["fix"]


def checked(folder: Path) -> dict[str, Any]:
    done = localruns.instructpt("check", "job.yaml", "-o", "json", cwd=folder)
    assert done.returncode == 3
    return {row["what"]: row for row in json.loads(done.stdout)}
