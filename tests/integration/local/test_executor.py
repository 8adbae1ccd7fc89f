from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import localruns
import pytest

from instructpt.local.folder import RunFolder

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
    assert f"is in use by process {os.getpid()}; wait for it, or end it: instructpt stop docs" in done.stderr
    assert not (folder / "runs/docs/data").exists()


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(folder: Path) -> None:
    with started(folder, "run", "docs.yaml", **holding(folder)) as process:
        await_worker(folder, process)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped cleanly, nothing lost. Go on: instructpt run docs.yaml" in talk
    status = localruns.instructpt("status", "docs", "-o", "json", cwd=folder)
    assert json.loads(status.stdout)["status"]["phase"] == "Stopped"
    assert localruns.instructpt("run", "docs.yaml", cwd=folder).returncode == 0


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
    assert json.loads(status.stdout)["status"]["phase"] == "Inspecting"
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
    assert "What next: correct that, then: instructpt run docs.yaml" in done.stderr
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
