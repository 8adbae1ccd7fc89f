"""The run folder: what is done, what runs, and the lock that keeps a second run out.

runs/NAME/
  spec.yaml          the object as it was given
  lock               process that works here (held with flock)
  state/STEP.json    what is known of a stage: key, attempts, result or failure
  sample.json        of a run with --sample: how many documents
  tasks/TASK/        runspec.json, REPLICA.log, REPLICA.json (termination message), REPLICA.port
  report.json/html   once the pipeline is done
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from instructpt.local.command import command
from instructpt.local.lock import held, holder_of
from instructpt.plan.planner import AnyResource
from instructpt.storage import Scheme, parse_uri
from instructpt.storage import write_atomically as write_file

logger = logging.getLogger(__name__)

# Below the storage. A store lists no name with this beginning, so that the lock is no object.
STORAGE_LOCK = ".instructpt-tmp-lock"


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
        inputs: Of an inspection: the listing of its corpus when it began (:mod:`instructpt.local.changes`).
    """

    key: str
    output: dict[str, Any]
    attempts: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    inputs: str | None = None


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
        """What is known of a step; ``None`` where it never started, or where its file cannot be understood."""
        path = self.path / "state" / f"{step}.json"
        try:
            return StageState(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            logger.warning("%s cannot be understood and is taken as absent: %s", path, error)
            return None

    def save_state(self, step: str, state: StageState) -> None:
        """Replace what is known of a step."""
        write_atomically(self.path / "state" / f"{step}.json", json.dumps(asdict(state), indent=2))

    def states(self) -> dict[str, StageState]:
        """All steps that were ever started."""
        found = {p.stem: self.load_state(p.stem) for p in sorted((self.path / "state").glob("*.json"))}
        return {step: state for step, state in found.items() if state is not None}

    @property
    def sample(self) -> int | None:
        """How many documents the last run sampled; ``None`` after a full run."""
        path = self.path / "sample.json"
        try:
            return int(json.loads(path.read_bytes())["documents"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("%s cannot be understood and is taken as absent: %s", path, error)
            return None

    def keep_sample(self, documents: int | None) -> None:
        """Note that this is a run on a sample, or with ``None`` that it is a full one."""
        path = self.path / "sample.json"
        if documents is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, json.dumps({"documents": documents}))

    def drop_report(self) -> None:
        """Remove the copies of a report that another specification or corpus was measured for."""
        for pattern in ("report.*", "loss*", "*.csv", "*.html"):
            for path in self.path.glob(pattern):
                if path.is_file():
                    path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            EnvironmentNotReadyError: Another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        stop = command("stop", self.path.name, runs=self.path.parent)
        with held(self.path / "lock", what=f"run folder {self.path}", fix=f"wait for it, or end it: {stop}"):
            yield

    def running_pid(self) -> int | None:
        """Process that holds the folder; ``None`` where nobody does."""
        return holder_of(self.path / "lock")


def storage_folder(uri: str) -> Path | None:
    """The folder that a storage URI names, absolute and with links followed; ``None`` for a bucket."""
    location = parse_uri(uri)
    if location.scheme is not Scheme.FILE:
        return None
    return Path(os.path.abspath(os.path.expanduser(location.path))).resolve()


@contextmanager
def storage_locked(uri: str) -> Iterator[None]:
    """Hold the folder of a storage, so that no second run of another name writes there.

    A bucket is not locked: there the ledger's leases and conditional writes protect the work itself.

    Raises:
        EnvironmentNotReadyError: Another process holds it.
    """
    folder = storage_folder(uri)
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STORAGE_LOCK).touch()
    except OSError as error:
        # Nobody can write there, so there is nothing to protect; the first worker that has to says what to do.
        logger.warning("the storage %s is not locked: %s", uri, error)
        yield
        return
    fix = "wait for that run or stop it, or give this one another storage.uri"
    with held(folder / STORAGE_LOCK, what=f"storage {uri}", fix=fix):
        yield


def write_atomically(path: Path, text: str) -> None:
    """Write aside, flush to disk, then rename: a reader sees the old text or the new one, even after a power cut."""
    write_file(path, lambda stream: _write(stream, text))


def _write(stream: BinaryIO, text: str) -> None:
    stream.write(text.encode("utf-8"))
