"""Checkpoints of a training that is made up: its state is a chain of hashes, so that one wrong byte shows for ever."""

from __future__ import annotations

import hashlib
import itertools
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from faults import FaultyStore, Killed, kill_points

from instructpt.corpus.manifest import FileEntry
from instructpt.errors import ConfigError, StorageError
from instructpt.storage import MemoryStore
from instructpt.storage.hashing import sha256_of_file
from instructpt.telemetry.progress import Progress
from instructpt.training.checkpoint import LATEST, TRAINER, fetch_latest, latest_step, part_name
from instructpt.training.patience import Patience
from instructpt.training.saver import NOTE, Group, Saver, Snapshot

KEY, STEPS, EVERY = "k" * 16, 9, 2
LIVES = itertools.count()


def chain(steps: int) -> bytes:
    state = b"start"
    for step in range(steps):
        state = hashlib.sha256(state + b"%d" % step).digest()
    return state


class Ranks:
    """Threads that meet, as processes do in a collective; one that is gone ends the others."""

    def __init__(self, size: int) -> None:
        self.size, self._values = size, [None] * size
        self._barrier = threading.Barrier(size)

    def group(self, rank: int) -> Group:
        return Group(
            rank=rank, size=self.size, gather=lambda value: self._meet(rank, value),
            total=lambda values: [sum(column) for column in zip(*self._meet(rank, values), strict=True)],
        )  # fmt: skip

    def _meet(self, rank: int, value):
        self._values[rank] = value
        self._barrier.wait(60)
        found = list(self._values)
        self._barrier.wait(60)
        return found

    def leave(self) -> None:
        self._barrier.abort()


class Life:
    """One start of one rank: from the last checkpoint to the end, or until it is killed."""

    def __init__(self, store, folder: Path, group: Group | None = None, **options) -> None:
        self.store, self.folder, self.group = store, folder, group or Group()
        self.options = {"every": EVERY, "keep": 2, "patience_seconds": 0.0, "turn_seconds": 0.05, **options}
        self.progress = Progress()
        self.copies: list[int] = []

    def start(self, life: str) -> tuple[int, Saver]:
        found = fetch_latest(self.store, KEY, self.folder / "resume", Patience(seconds=0))
        self.done, self.state = 0, chain(0)
        if found.resume is not None:
            self.done = found.resume.step
            self.state = found.resume.parts[min(self.group.rank, len(found.resume.parts) - 1)].read_bytes()
            assert self.state == chain(self.done)
        self.saver = Saver(
            self.store, KEY, self.folder / "scratch", self.group, self.capture, life=life, progress=self.progress,
            step=self.done, **self.options,
        )  # fmt: skip
        return self.done, self.saver

    def capture(self, step: int):
        self.copies.append(step)
        copy: list[bytes] = []

        def write(folder: Path) -> list[FileEntry]:
            names = [part_name(self.group.rank, self.group.size), *([TRAINER] if self.group.rank == 0 else [])]
            for name in names:
                (folder / name).write_bytes(copy[0])
            return [
                FileEntry(path=n, bytes=(folder / n).stat().st_size, sha256=sha256_of_file(folder / n)) for n in names
            ]

        return Snapshot(copy=lambda: copy.append(bytes(self.state)), write=write)

    def step(self) -> None:
        self.saver.before_update()
        self.state = hashlib.sha256(self.state + b"%d" % self.done).digest()
        self.done += 1
        self.saver.after_step(self.done, self.group.total(self.saver.votes()), last=self.done == STEPS)

    def run(self, life: str | None = None, *, at_leisure: bool = True) -> bytes:
        """``at_leisure``: each checkpoint has ended before the next step: the writes are the same every time."""
        self.start(life or f"life-{next(LIVES)}")
        while self.done < STEPS:
            self.step()
            if at_leisure:
                self.saver.drain()
        self.saver.drain()
        return self.state


@pytest.fixture
def store(tmp_path):
    return MemoryStore(f"memory://saver-{tmp_path.name.replace('_', '-')}")


def note(life: Life) -> str | None:
    return life.progress.snapshot()["notes"].get(NOTE)


def test_killed_at_any_write_it_goes_on_to_the_same_end(tmp_path):
    whole = FaultyStore(MemoryStore("memory://saver-whole"))
    assert Life(whole, tmp_path).run() == chain(STEPS)
    assert whole.writes == 4 * 4 + 2 * 3  # four files each; of the first two the manifest and both files are removed
    lost = []
    for number, (kill_at, moment) in enumerate(kill_points(whole.writes)):
        inner = MemoryStore(f"memory://saver-{number}")
        victim = Life(FaultyStore(inner, kill_at=kill_at, moment=moment), tmp_path)
        with pytest.raises(Killed):
            victim.run()
        again = Life(inner, tmp_path)
        assert again.run() == chain(STEPS)
        lost.append(victim.done - (STEPS - len(again.copies) * EVERY))
        assert latest_step(inner) == 8
        assert fetch_latest(inner, KEY, tmp_path / "r").resume.step == 8
        # What a killed life had not yet removed goes with the next checkpoint, of which there is none after the eighth.
        assert len({info.key.split("/")[1] for info in inner.list("checkpoints/step-")}) <= 3
    assert max(lost) <= 2 * EVERY


def test_training_goes_on_while_one_is_stored_and_the_next_is_written_as_soon_as_it_may(store, tmp_path):
    go, began = threading.Event(), threading.Event()

    class Slow(FaultyStore):
        def put_file(self, key, path):
            began.set()
            assert go.wait(60)
            return super().put_file(key, path)

    life = Life(Slow(store), tmp_path)
    life.start("a")
    for _ in range(7):
        life.step()
    assert began.wait(60)
    assert (life.done, life.copies, latest_step(store)) == (7, [2], None)
    go.set()
    life.saver._background.wait()
    life.step()
    assert life.copies == [2, 8]
    life.saver.drain()
    assert latest_step(store) == 8


def test_the_copy_runs_beside_the_next_step_and_its_update_waits_for_it(store, tmp_path):
    life, go = Life(store, tmp_path), threading.Event()
    life.start("a")
    capture = life.capture

    def slow(step):
        snapshot = capture(step)
        return replace(snapshot, copy=lambda: (go.wait(60), snapshot.copy()))

    life.saver._capture = slow
    life.step()
    life.step()  # begins one, and the passes of the third step run
    updated = threading.Event()
    update = threading.Thread(target=lambda: (life.saver.before_update(), updated.set()))
    update.start()
    assert not updated.wait(0.05)
    go.set()
    update.join()
    life.step()
    life.saver.drain()
    assert life.progress.snapshot()["gauges"]["checkpoint_stall_seconds"] > 0
    assert fetch_latest(store, KEY, tmp_path / "r").resume.parts[0].read_bytes() == chain(2)


def test_ranks_agree_and_the_manifest_names_the_part_of_each(store, tmp_path):
    ranks = Ranks(3)
    lives = [Life(store, tmp_path / str(r), ranks.group(r)) for r in range(3)]
    states: list[bytes] = [b""] * 3

    def run(rank: int) -> None:
        states[rank] = lives[rank].run("a", at_leisure=False)

    threads = [threading.Thread(target=run, args=(r,)) for r in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == [chain(STEPS)] * 3
    assert lives[0].copies == lives[1].copies == lives[2].copies
    found = fetch_latest(store, KEY, tmp_path / "r").resume
    assert found.step == lives[0].copies[-1] == lives[2].saver.step
    assert [path.name for path in found.parts] == [part_name(r, 3) for r in range(3)]
    # A single rank goes on from there.
    assert Life(store, tmp_path / "one").run() == chain(STEPS)


def test_one_rank_that_cannot_store_its_part_spoils_the_checkpoint_for_all(store, tmp_path):
    ranks = Ranks(2)
    broken = FaultyStore(store, fail_at=frozenset({1}))  # patience is none here
    lives = [Life(store, tmp_path / "0", ranks.group(0)), Life(broken, tmp_path / "1", ranks.group(1))]
    kept: list[bool] = [True, True]

    def run(rank: int) -> None:
        lives[rank].start("a")
        for _ in range(1):
            lives[rank].step()
        kept[rank] = lives[rank].saver.save_now(1)

    threads = [threading.Thread(target=run, args=(r,)) for r in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept == [False, False]
    assert not store.exists(LATEST)
    assert "1 of 2 ranks could not store their part" in (note(lives[0]) or "")


def test_asked_to_leave_it_writes_one_at_once_even_if_one_is_under_way(store, tmp_path):
    life = Life(store, tmp_path)
    life.start("a")
    for _ in range(3):
        life.step()
    assert life.saver.save_now(3)
    assert latest_step(store) == 3
    writes = list(store.list("checkpoints/"))
    assert life.saver.save_now(3)
    assert list(store.list("checkpoints/")) == writes


def test_a_full_disk_ends_no_training_and_the_alarm_shows_until_one_is_stored(store, tmp_path):
    life = Life(store, tmp_path)
    life.start("a")
    scratch = tmp_path / "scratch" / "saving-0"
    capture = life.capture

    def full(step):
        snapshot = capture(step)

        def fill(folder):
            assert folder == scratch
            (folder / part_name(0, 1)).symlink_to("/dev/full")  # every write fails: no space left on device
            return snapshot.write(folder)

        return replace(snapshot, write=fill) if step < 5 else snapshot

    life.saver._capture = full
    for _ in range(4):
        life.step()
        life.saver.drain()
    assert note(life) == "checkpoint step-4 was not stored: [Errno 28] No space left on device; the last one is step-0"
    assert life.progress.snapshot()["counts"] == {"checkpoints_failed": 2}
    assert not scratch.exists()
    assert not store.exists(LATEST)
    for _ in range(2):
        life.step()
        life.saver.drain()
    assert (note(life), latest_step(store)) == (None, 6)


def test_a_storage_that_is_away_is_waited_for_beside_the_steps_with_an_alarm(store, tmp_path):
    away, asked = threading.Event(), threading.Semaphore(0)

    class Flaky(FaultyStore):
        def put_file(self, key, path):
            if away.is_set():
                raise StorageError("connection refused", retryable=True)
            return super().put_file(key, path)

    def patience(tell, *, seconds):
        return Patience(tell, seconds=seconds, wait=lambda _: asked.acquire(timeout=60))

    life = Life(Flaky(store), tmp_path, patience=patience, patience_seconds=600.0)
    life.start("a")
    away.set()
    for _ in range(3):
        life.step()
    while note(life) is None:
        pass
    for _ in range(3):
        life.step()
    figures = life.progress.snapshot()
    assert "step-2 cannot be stored for now, and is tried again: connection refused" in figures["notes"][NOTE]
    assert figures["gauges"]["checkpoint_storage_away"] == 1
    assert figures["gauges"]["checkpoint_age_seconds"] > 0
    assert (life.done, life.copies) == (6, [2])
    away.clear()
    asked.release(100)
    life.saver.drain()
    figures = life.progress.snapshot()
    assert (figures["notes"], figures["gauges"]["checkpoint_storage_away"], latest_step(store)) == ({}, 0, 2)
    life.step()
    life.saver.drain()
    assert latest_step(store) == 7


def test_credentials_that_are_refused_end_the_run(store, tmp_path):
    class Locked(FaultyStore):
        def put_file(self, key, path):
            raise ConfigError("the Secret is wrong")

    life = Life(Locked(store), tmp_path)
    life.start("a")
    life.step()
    life.step()
    with pytest.raises(ConfigError, match="the Secret is wrong"):
        life.saver.drain()
