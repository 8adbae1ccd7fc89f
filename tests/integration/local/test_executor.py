from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import localruns
import pytest
import yaml

from instructpt.local.folder import RunFolder, storage_locked

CORPUS = """
apiVersion: instructpt.dev/v1alpha1
kind: Corpus
metadata: {name: docs}
spec:
  uri: corpus/*.jsonl
  storage: {uri: runs/docs/data}
  documentsPerShard: 10
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    localruns.write_corpus(tmp_path / "corpus" / "a.jsonl", 35)
    (tmp_path / "docs.yaml").write_text(CORPUS)
    return tmp_path


@contextmanager
def started(folder: Path, *args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "instructpt", *args],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=localruns.environment(**env),
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


# A worker that waits for a file before it does anything: long enough to be found, stopped or killed.
HOLDING = """
import os, sys
from pathlib import Path

if "worker" in sys.orig_argv:
    import threading
    here = Path(os.environ["HOLD"])
    (here / f"pid-{os.getpid()}").touch()
    from instructpt.corpus import inspect

    def held(run):
        def wrapped(spec, ctx):
            while not (here / "go").exists() and not ctx.stop.wait(0.05):
                pass
            return None if ctx.stop.is_set() else run(spec, ctx)
        return wrapped
    inspect.run = held(inspect.run)
"""


def holding(folder: Path) -> dict[str, str]:
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(HOLDING)
    (folder / "hold").mkdir(exist_ok=True)
    return {"PYTHONPATH": str(site), "HOLD": str(folder / "hold")}


def await_worker(folder: Path, process: subprocess.Popen[str]) -> int:
    """The pid of a worker that has come up."""
    while process.poll() is None:
        found = [int(p.name[4:]) for p in (folder / "hold").glob("pid-*")]
        alive = [pid for pid in found if Path(f"/proc/{pid}").exists()]
        if alive:
            return alive[-1]
    raise AssertionError(process.communicate()[1])


def test_the_second_run_has_nothing_to_do(folder: Path) -> None:
    first = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert first.returncode == 0, first.stderr
    manifest = folder / "runs/docs/data/manifest.json"
    before = (manifest.read_bytes(), manifest.stat().st_mtime_ns)
    second = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert second.returncode == 0
    assert "already done" in second.stderr
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns) == before


def test_a_changed_corpus_is_inspected_again(folder: Path) -> None:
    localruns.instructpt("run", "docs.yaml", cwd=folder)
    localruns.write_corpus(folder / "more" / "b.jsonl", 7)
    text = (folder / "more" / "b.jsonl").read_text().replace("lives", "lived")
    (folder / "corpus" / "b.jsonl").write_text(text)
    before = localruns.digests(folder / "runs/docs")
    done = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "the corpus has changed since it was inspected" in done.stderr
    assert yaml.safe_load(done.stdout)["counts"]["documents"] == 42
    assert localruns.digests(folder / "runs/docs") != before
    again = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert "already done" in again.stderr
    assert "has changed" not in again.stderr
    (folder / "corpus" / "b.jsonl").unlink()
    back = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert yaml.safe_load(back.stdout)["counts"]["documents"] == 35
    assert localruns.digests(folder / "runs/docs") == before


def test_a_changed_corpus_is_noticed_without_its_run_folder(folder: Path) -> None:
    text = CORPUS.replace("runs/docs/data", "kept")
    (folder / "docs.yaml").write_text(text)
    localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert localruns.instructpt("delete", "docs", "--yes", cwd=folder).returncode == 0
    localruns.write_corpus(folder / "corpus" / "a.jsonl", 36)
    done = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert yaml.safe_load(done.stdout)["counts"]["documents"] == 36


def test_a_corpus_that_is_gone_is_taken_as_it_was_inspected(folder: Path) -> None:
    localruns.instructpt("run", "docs.yaml", cwd=folder)
    (folder / "corpus" / "a.jsonl").unlink()
    done = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert done.returncode == 0
    assert "already done" in done.stderr
    assert "is taken as it was inspected" in done.stderr


def test_two_runs_on_one_storage_are_refused_whatever_their_names(folder: Path) -> None:
    (folder / "other.yaml").write_text(CORPUS.replace("name: docs", "name: other"))
    with storage_locked(str(folder / "runs/docs/data")):
        for args in (("other.yaml",), ("docs.yaml", "--runs", "elsewhere")):
            done = localruns.instructpt("run", *args, cwd=folder)
            assert done.returncode == 3
            assert f"storage runs/docs/data is in use by process {os.getpid()}" in done.stderr
    assert localruns.instructpt("run", "other.yaml", cwd=folder).returncode == 0


def test_a_detached_run_that_fails_at_once_says_why(folder: Path) -> None:
    with storage_locked(str(folder / "runs/docs/data")):
        done = localruns.instructpt("run", "docs.yaml", "--detach", "--runs", "elsewhere", cwd=folder)
    assert done.returncode == 3
    assert "storage runs/docs/data is in use" in done.stderr
    logs = localruns.instructpt("logs", "docs", "--runs", "elsewhere", cwd=folder)
    assert "run | Error: storage runs/docs/data is in use" in logs.stdout
    none = localruns.instructpt("logs", "docs", "--task", "corpus", "--runs", "elsewhere", cwd=folder)
    assert none.returncode == 2
    assert "no task has started yet" in none.stderr


def test_a_place_that_cannot_hold_run_folders_is_named(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    done = localruns.instructpt("run", "docs.yaml", "--runs", "taken", cwd=folder)
    assert done.returncode == 3
    assert "taken" in done.stderr
    assert "--runs FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lost_output_is_made_again(folder: Path) -> None:
    localruns.instructpt("run", "docs.yaml", cwd=folder)
    manifest = folder / "runs/docs/data/manifest.json"
    data = manifest.read_bytes()
    manifest.unlink()
    assert localruns.instructpt("run", "docs.yaml", cwd=folder).returncode == 0
    assert manifest.read_bytes() == data


def test_two_runs_on_one_folder_are_refused(folder: Path) -> None:
    with RunFolder(path=folder / "runs" / "docs").locked():
        done = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert done.returncode == 3
    assert f"run folder runs/docs is in use by process {os.getpid()}; wait for it, or end it: " in done.stderr
    assert "instructpt stop docs" in done.stderr
    assert not (folder / "runs/docs/data").exists()


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(folder: Path) -> None:
    with started(folder, "run", "docs.yaml", **holding(folder)) as process:
        await_worker(folder, process)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    (said,) = [line for line in talk.splitlines() if line.startswith("Stopped cleanly, nothing lost. Go on: ")]
    assert said.endswith("instructpt run docs.yaml")
    status = localruns.instructpt("status", "docs", "-o", "json", cwd=folder)
    assert json.loads(status.stdout)["status"]["phase"] == "Stopped"
    go_on = said.partition("Go on: ")[2]
    again = subprocess.run(go_on, shell=True, cwd=folder, env=localruns.environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


def test_a_killed_executor_takes_its_workers_along(folder: Path) -> None:
    env = holding(folder)
    with started(folder, "run", "docs.yaml", **env) as process:
        worker = await_worker(folder, process)
        process.kill()
        process.wait()
        while Path(f"/proc/{worker}").exists():
            pass
    (folder / "hold" / "go").touch()
    again = localruns.instructpt("run", "docs.yaml", cwd=folder, **env)
    assert again.returncode == 0, again.stderr


def test_stop_and_status_reach_a_detached_run(folder: Path) -> None:
    env = holding(folder)
    assert localruns.instructpt("run", "docs.yaml", "--detach", cwd=folder, **env).returncode == 0
    run = RunFolder(path=folder / "runs" / "docs")
    while run.running_pid() is None or not list((folder / "hold").glob("pid-*")):
        pass
    status = localruns.instructpt("status", "docs", "-o", "json", cwd=folder)
    assert json.loads(status.stdout)["status"]["phase"] == "Running"
    stopped = localruns.instructpt("stop", "docs", cwd=folder)
    assert stopped.returncode == 0
    assert run.running_pid() is None
    assert "Stopped cleanly" in (folder / "runs/docs/run.log").read_text()


def test_a_worker_killed_by_a_signal_is_tried_again(folder: Path) -> None:
    env = holding(folder)
    with started(folder, "run", "docs.yaml", **env) as process:
        os.kill(await_worker(folder, process), signal.SIGKILL)
        (folder / "hold" / "go").touch()
        _, talk = process.communicate(timeout=120)
    assert process.returncode == 0, talk
    assert "killed by SIGKILL" in talk
    assert "failed 1x, trying again" in talk
    assert json.loads((folder / "runs/docs/state/corpus.json").read_text())["attempts"] == 2


def test_a_failure_shows_cause_last_lines_and_the_next_command(folder: Path) -> None:
    (folder / "docs.yaml").write_text(CORPUS.replace("  storage", "  textField: body\n  storage"))
    done = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert done.returncode == 1
    assert "Failed: step corpus:" in done.stderr
    assert "body" in done.stderr
    assert "Last lines of" in done.stderr
    assert re.search(r"What next: correct that, then: .*instructpt run docs\.yaml", done.stderr)
    assert not (folder / "runs/docs/data/manifest.json").exists()
    assert json.loads((folder / "runs/docs/state/corpus.json").read_text())["attempts"] == 1
    status = localruns.instructpt("status", "docs", "-o", "json", cwd=folder)
    assert json.loads(status.stdout)["status"]["conditions"][0]["reason"] == "InvalidSpec"


def test_a_deadline_ends_the_run(folder: Path) -> None:
    (folder / "docs.yaml").write_text(CORPUS + "  activeDeadlineSeconds: 1\n")
    done = localruns.instructpt("run", "docs.yaml", cwd=folder, **holding(folder))
    assert done.returncode == 1
    assert "spec.activeDeadlineSeconds=1 is over" in done.stderr


def test_a_suspended_object_starts_nothing(folder: Path) -> None:
    (folder / "docs.yaml").write_text(CORPUS + "  suspend: true\n")
    done = localruns.instructpt("run", "docs.yaml", cwd=folder)
    assert done.returncode == 0
    assert "is suspended" in done.stderr
    assert not (folder / "runs/docs/data").exists()


def test_logs_delete_and_lineage(folder: Path) -> None:
    localruns.instructpt("run", "docs.yaml", cwd=folder)
    lineage = json.loads(localruns.instructpt("lineage", "docs", "-o", "json", cwd=folder).stdout)
    assert lineage[0]["digest"] == localruns.digests(folder / "runs/docs")["corpus"]
    wrong = localruns.instructpt("logs", "docs", "--task", "nope", cwd=folder)
    assert wrong.returncode == 2
    assert "use one of corpus, corpus-finalize" in wrong.stderr
    refused = localruns.instructpt("delete", "docs", cwd=folder)
    assert refused.returncode == 2
    assert "say --yes" in refused.stderr
    assert localruns.instructpt("delete", "docs", "--yes", cwd=folder).returncode == 0
    assert not (folder / "runs/docs").exists()


@pytest.mark.parametrize(
    ("storage", "inside"),
    [("runs/docs", True), ("file://{here}/runs/docs/data", True), ("runs/docs/../docs/data", True),
     ("runs/docs-data", False), ("file://{here}/data", False)],
)  # fmt: skip
def test_delete_knows_what_lies_inside(tmp_path: Path, storage: str, inside: bool) -> None:
    uri = storage.format(here=tmp_path)
    (tmp_path / "runs/docs").mkdir(parents=True)
    (tmp_path / "runs/docs/spec.yaml").write_text(CORPUS.replace("runs/docs/data", uri))
    done = localruns.instructpt("delete", "docs", cwd=tmp_path)
    assert done.returncode == 2
    assert ("with all its data" in done.stderr) is inside
    assert (f"the data in {uri} stay" in done.stderr) is not inside
