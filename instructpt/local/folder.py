"""The run folder: what is done, what runs, and the lock that keeps a second run out.

runs/NAME/
  spec.yaml          the object as it was given
  lock               process that works here (held with flock)
  state/STEP.json    what is known of a stage: key, attempts, result or failure
  tasks/TASK/        runspec.json, REPLICA.log, REPLICA.json (termination message), REPLICA.port
  report.json/html   once the pipeline is done
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from instructpt.errors import EnvironmentNotReadyError
from instructpt.plan.planner import AnyResource


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """What the run folder keeps of one stage.

    Attributes:
        key: Key of the stage when it ran; another key means that it must run again.
        output: Where its manifest goes, and how that place is reached.
        attempts: Times that its workers were started.
        seconds: Wall time over all attempts.
        peak_memory_bytes: Largest sum over replicas of their resident peaks.
        result: Once it is done.
        error: Of the last failed attempt: cause, exit code, last lines.
    """

    key: str
    output: dict[str, Any]
    attempts: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """One run's folder on this machine."""

    path: Path

    def prepare(self, resource: AnyResource) -> None:
        """Create the folder and keep the object as it was given."""
        (self.path / "state").mkdir(parents=True, exist_ok=True)
        write_atomically(
            self.path / "spec.yaml", yaml.safe_dump(resource.to_wire(), sort_keys=False, allow_unicode=True)
        )

    def task_folder(self, task: str) -> Path:
        """Folder of one task, created."""
        folder = self.path / "tasks" / task
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def load_state(self, step: str) -> StageState | None:
        """What is known of a step; ``None`` where it never started."""
        path = self.path / "state" / f"{step}.json"
        return StageState(**json.loads(path.read_text())) if path.exists() else None

    def save_state(self, step: str, state: StageState) -> None:
        """Replace what is known of a step."""
        write_atomically(self.path / "state" / f"{step}.json", json.dumps(asdict(state), indent=2))

    def states(self) -> dict[str, StageState]:
        """All steps that were ever started."""
        folder = self.path / "state"
        return {p.stem: StageState(**json.loads(p.read_text())) for p in sorted(folder.glob("*.json"))}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            EnvironmentNotReadyError: Another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = self.running_pid()
                raise EnvironmentNotReadyError(
                    f"run folder {self.path} is in use by process {holder}",
                    fix=f"wait for it, or end it: instructpt stop {self.path.name}",
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            try:
                yield
            finally:
                lock.truncate(0)

    def running_pid(self) -> int | None:
        """Process that holds the folder; ``None`` where nobody does."""
        path = self.path / "lock"
        if not path.exists():
            return None
        with path.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                text = lock.read().strip()
                return int(text) if text else None
        return None


def write_atomically(path: Path, text: str) -> None:
    """Write aside, then rename: a reader sees the old text or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
