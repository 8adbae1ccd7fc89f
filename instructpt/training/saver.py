"""When a checkpoint is written, and who does what: all of it beside the steps that follow.

All ranks take their part at the same step. Forward and backward passes change no state, so the copy to host memory runs
beside those of the next step, and only its update waits for what is left of it. Then each rank writes, uploads and
verifies its part in a thread of its own; whether it is done is summed with the loss of each step, so that all ranks
know at the same step. Then rank 0 writes the manifest and ``LATEST``, beside the steps as well.

A checkpoint that is due while the one before is still under way is written as soon as that has ended; one that cannot
be stored is given up, with an alarm, and the next one tries again.

    idle --copy--> storing --all ranks have stored--> naming --rank 0 has named it--> idle

Source: Maurya et al., DataStates-LLM, arXiv 2406.10707 (copies beside forward and backward); Wan et al.,
ByteCheckpoint, arXiv 2407.20143 (asynchronous upload, commit after all ranks).
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from instructpt.corpus.manifest import FileEntry
from instructpt.errors import ConfigError, StorageError
from instructpt.storage import Store
from instructpt.telemetry.progress import Progress
from instructpt.training.background import Background
from instructpt.training.checkpoint import name_checkpoint, store_files
from instructpt.training.patience import PATIENCE_SECONDS, Patience

log = logging.getLogger(__name__)

NOTE = "checkpoint"
TURN_SECONDS = 20.0
"""Far below the time after which a collective gives up on a peer (10 minutes, DEEPSPEED_TIMEOUT)."""

Write = Callable[[Path], Sequence[FileEntry]]
"""Fills a folder with files, from memory that nobody changes meanwhile, and gives their entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state after a step, about to be copied.

    Attributes:
        copy: Copies it; nothing may change it before that has ended.
        write: Writes the copy.
    """

    copy: Callable[[], object]
    write: Write


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """How ranks agree; every call is made by all ranks together.

    Attributes:
        rank: This one.
        size: Of all.
        gather: A small value of every rank, by rank.
        total: The sums of a few numbers over the ranks.
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    total: Callable[[Sequence[float]], Sequence[float]] = lambda values: values


@dataclass(slots=True)
class _Outcome:
    """Of the thread: what it stored, or why it could not."""

    files: tuple[FileEntry, ...] = ()
    failed: str | None = None
    trouble: bool = field(default=False)


class Saver:
    """One rank's side of all checkpoints of a run.

    Args:
        store: Of the run's output.
        key: From :func:`~instructpt.training.checkpoint.training_key`.
        scratch: Where files are written before they are uploaded.
        group: The ranks.
        capture: Takes the state after so many steps.
        life: Of this start; the same on all ranks.
        every: Steps between checkpoints.
        keep: How many stay.
        progress: Live figures; those of rank 0 are looked at.
        step: Of the checkpoint that was resumed.
        patience: How long a storage may be away, and how it is waited for.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        scratch: Path,
        group: Group,
        capture: Callable[[int], Snapshot],
        *,
        life: str,
        every: int,
        keep: int,
        progress: Progress,
        step: int = 0,
        patience: Callable[..., Patience] = Patience,
        patience_seconds: float = PATIENCE_SECONDS,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self._store, self._key, self._scratch, self._group, self._capture = store, key, scratch, group, capture
        self._life, self._every, self._keep, self._progress = life, every, keep, progress
        self._turn_seconds = turn_seconds
        self._patience = patience(self._tell, seconds=patience_seconds)
        self._phase: Literal["idle", "storing", "naming"] = "idle"
        self._background = Background()
        self._outcome = _Outcome()
        self._saving = self._tried = self._named = step
        self._began = self._named_at = time.monotonic()
        self._away = self._stalled = 0.0
        self._copied = threading.Event()
        self._copied.set()

    @property
    def step(self) -> int:
        """Of the last checkpoint that ``LATEST`` names, as far as this rank knows."""
        return self._named

    def votes(self) -> tuple[float, float, float]:
        """This rank's part of what all ranks sum with a step's loss: whether it is done, has failed, is in trouble."""
        done = self._phase != "idle" and self._background.wait(0)
        return float(done), float(done and self._outcome.failed is not None), float(self._outcome.trouble)

    def after_step(self, done: int, sums: Sequence[float], *, last: bool = False) -> None:
        """Go on with the checkpoint that is under way, and begin one that is due.

        Args:
            done: Steps done.
            sums: Of all ranks' :meth:`votes`.
            last: Whether no checkpoint is to be begun any more.

        Raises:
            ConfigError: The storage refuses this run for good.
        """
        self._advance(sums)
        if self._phase == "idle" and not last and done // self._every > self._tried // self._every:
            self._begin(done)
        if self._group.rank == 0:
            self._progress.update(gauges={"checkpoint_age_seconds": round(time.monotonic() - self._named_at, 3)})

    def before_update(self) -> None:
        """Wait until the copy has ended: from now on the state changes."""
        if not self._copied.is_set():
            began = time.monotonic()
            self._copied.wait()
            self._stall(time.monotonic() - began)

    def save_now(self, done: int) -> bool:
        """Write one after ``done`` steps and wait until ``LATEST`` names it; whether it does."""
        self.drain()
        if self._named != done:
            self._begin(done)
            self.drain()
        return self._named == done

    def drain(self) -> None:
        """Wait, all ranks, until nothing is under way.

        The ranks meet again and again meanwhile: storage may take far longer than a collective waits for a peer, and
        one that died is noticed as soon as in a step.
        """
        while self._phase != "idle":
            self._background.wait(self._turn_seconds)
            self._advance(self._group.total(self.votes()))

    # ------------------------------------------------------------- the phases

    def _begin(self, step: int) -> None:
        self._began = time.monotonic()
        snapshot = self._capture(step)
        self._saving = self._tried = step
        self._copied.clear()
        self._start("storing", lambda: self._store_part(step, snapshot))
        self._stalled = 0.0
        self._stall(time.monotonic() - self._began)

    def _stall(self, seconds: float) -> None:
        """Training stood still for so long because of this checkpoint."""
        self._stalled += seconds
        self._progress.update(gauges={"checkpoint_stall_seconds": round(self._stalled, 6)})

    def _advance(self, sums: Sequence[float]) -> None:
        """Take the next phase if all ranks are done with this one; all come to the same answer."""
        finished, failed, trouble = sums
        self._show(trouble)
        if self._phase == "idle" or finished < self._group.size:
            return
        self._background.wait()
        if failed:
            self._give_up(failed)
        elif self._phase == "storing" and self._group.size > 1:
            files = [file for part in self._group.gather(self._outcome.files) for file in part]
            self._start("naming", (lambda: self._name(files)) if self._group.rank == 0 else (lambda: None))
        else:
            self._phase, self._named, self._named_at = "idle", self._saving, time.monotonic()
            if self._group.rank == 0:
                gauges = {
                    "checkpoint_step": float(self._named),
                    "checkpoint_seconds": round(self._named_at - self._began, 3),
                }
                self._progress.update(gauges=gauges, notes={NOTE: None})

    def _give_up(self, failed: float) -> None:
        self._phase = "idle"
        why = self._outcome.failed or f"{failed:.0f} of {self._group.size} ranks could not store their part"
        text = f"checkpoint step-{self._saving} was not stored: {why}; the last one is step-{self._named}"
        log.error("%s; training goes on, and the next one is tried", text)
        if self._group.rank == 0:
            self._progress.update(counts={"checkpoints_failed": self._failed_total()}, notes={NOTE: text})

    def _failed_total(self) -> int:
        return int(self._progress.snapshot()["counts"].get("checkpoints_failed", 0)) + 1

    def _start(self, phase: Literal["storing", "naming"], work: Callable[[], object]) -> None:
        self._phase = phase
        self._outcome = _Outcome(files=self._outcome.files if phase == "naming" else ())
        self._background.start(lambda: self._try(work), name=f"checkpoint-{self._saving}")

    def _try(self, work: Callable[[], object]) -> None:
        """What cannot be cured ends the run; what the next checkpoint may do better is only noted."""
        try:
            work()
        except ConfigError:
            raise
        except (StorageError, OSError) as error:
            self._outcome.failed = str(error) or type(error).__name__

    def _store_part(self, step: int, snapshot: Snapshot) -> None:
        try:
            snapshot.copy()
        finally:
            self._copied.set()
        folder = self._scratch / f"saving-{self._group.rank}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            files = store_files(self._store, step, self._life, folder, snapshot.write(folder), self._patience)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._outcome.files = files
        if self._group.size == 1:
            self._name(files)

    def _name(self, files: Sequence[FileEntry]) -> None:
        store, size = self._store, self._group.size
        name_checkpoint(store, self._saving, self._key, size, files, self._keep, self._patience)

    # --------------------------------------------------------------- the alarm

    def _tell(self, text: str | None) -> None:
        """From the thread: storage is away, or back."""
        self._outcome.trouble = text is not None
        if self._group.rank == 0:
            self._progress.update(notes={NOTE: text}, gauges={"checkpoint_storage_away": float(text is not None)})

    def _show(self, trouble: float) -> None:
        """On rank 0: how many ranks wait for storage, where that changed."""
        if self._group.rank == 0 and trouble != self._away:
            self._away = trouble
            self._progress.update(gauges={"checkpoint_storage_away": trouble})
            if trouble and not self._outcome.trouble:
                text = f"checkpoint step-{self._saving}: {trouble:.0f} ranks wait for a storage that is away"
                self._progress.update(notes={NOTE: text})
