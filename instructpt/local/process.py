"""One worker process: started with what it needs, watched, stopped in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructpt.local.folder import write_atomically
from instructpt.plan.model import Task

LAST_LINES = 20


def fetch_progress(port: int) -> dict[str, Any] | None:
    """``/progress`` of a worker on this machine, or ``None`` where nobody answers with one."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=2) as answer:
            figures: dict[str, Any] = json.loads(answer.read(64 * 1024))
            return figures
    except (OSError, urllib.error.URLError, json.JSONDecodeError):
        return None


@dataclass(slots=True, kw_only=True)
class WorkerProcess:
    """A running or ended replica of a task.

    Attributes:
        exit_code: ``None`` while it runs; negative for a signal.
        peak_memory_bytes: Resident peak, known at the end.
    """

    task: Task
    replica: int
    folder: Path
    popen: subprocess.Popen[bytes]
    exit_code: int | None = None
    peak_memory_bytes: int = 0
    _port: int | None = field(default=None)

    @classmethod
    def start(cls, task: Task, replica: int, folder: Path, *, worker_id: str, threads: int) -> WorkerProcess:
        """Start ``instructpt worker VERB`` on the task's RunSpec.

        The process is in a session of its own, so that a Ctrl-C reaches only the executor, which then stops it in
        order; and it watches this process, so that it ends even where the executor is killed.
        """
        runspec = folder / f"{task.runspec.verb}.runspec.json"
        write_atomically(runspec, task.runspec.to_json())
        termination, port = folder / f"{replica}.json", folder / f"{replica}.port"
        for stale in (termination, port):
            stale.unlink(missing_ok=True)
        env = {
            **os.environ,
            "INSTRUCTPT_WORKER_ID": worker_id,
            "INSTRUCTPT_REPLICA": str(replica),
            "INSTRUCTPT_REPLICAS": str(task.replicas),
            "INSTRUCTPT_TERMINATION_LOG": str(termination),
            "INSTRUCTPT_PORT_FILE": str(port),
            "INSTRUCTPT_SCRATCH": str(folder / "scratch" / str(replica)),
            "INSTRUCTPT_PARENT_PID": str(os.getpid()),
            "INSTRUCTPT_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            # Threads that wait must not spin: on a busy machine spinning makes two threads slower than one.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        with (folder / f"{replica}.log").open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "instructpt", *task.argv(str(runspec))],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True,
            )  # fmt: skip
        return cls(task=task, replica=replica, folder=folder, popen=popen)

    def poll(self) -> int | None:
        """The exit code once it has ended; also takes the resident peak."""
        if self.exit_code is None:
            pid, status, usage = os.wait4(self.popen.pid, os.WNOHANG)
            if pid:
                self.exit_code = self.popen.returncode = os.waitstatus_to_exitcode(status)
                self.peak_memory_bytes = usage.ru_maxrss * 1024
        return self.exit_code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker and what it started."""
        if self.poll() is None:
            os.killpg(self.popen.pid, number)

    def progress(self) -> dict[str, Any] | None:
        """What ``/progress`` says; ``None`` before the server is up and after it is gone."""
        if self._port is None:
            path = self.folder / f"{self.replica}.port"
            self._port = int(path.read_text()) if path.exists() else None
        if self._port is None:
            return None
        return fetch_progress(self._port)

    def termination(self) -> dict[str, Any] | None:
        """The termination message, if it left a whole one."""
        path = self.folder / f"{self.replica}.json"
        try:
            message: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:  # killed while it wrote
            return None
        return message

    def last_lines(self) -> list[str]:
        """The end of its log."""
        path = self.folder / f"{self.replica}.log"
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16_384))
            return log.read().decode("utf-8", "replace").splitlines()[-LAST_LINES:]
