from __future__ import annotations

import logging

import pytest
from faults import FaultyStore

from instructpt.corpus.manifest import FileEntry
from instructpt.errors import ConfigError, StorageError
from instructpt.storage import MemoryStore
from instructpt.storage.hashing import sha256_of_file
from instructpt.training.checkpoint import (
    LATEST,
    TRAINER,
    drop_broken,
    fetch_latest,
    latest_step,
    name_checkpoint,
    part_name,
    store_files,
)
from instructpt.training.patience import Patience

KEY = "k" * 16
RANKS = 2


@pytest.fixture
def store(tmp_path):
    return MemoryStore(f"memory://checkpoints-{tmp_path.name.replace('_', '-')}")


def impatient() -> Patience:
    return Patience(seconds=0)


def written(folder, step, rank):
    names = [part_name(rank, RANKS), *([TRAINER] if rank == 0 else [])]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"state of %d on %d" % (step, rank) * 50)
    return [FileEntry(path=n, bytes=(folder / n).stat().st_size, sha256=sha256_of_file(folder / n)) for n in names]


def save(store, scratch, *steps, keep=3, key=KEY, life="a", named=True):
    for step in steps:
        files = [
            entry
            for rank in range(RANKS)
            for entry in store_files(store, step, life, scratch / "w", written(scratch / "w", step, rank), impatient())
        ]
        if named:
            name_checkpoint(store, step, key, RANKS, files, keep, impatient())


def steps_of(store):
    return sorted({int(info.key.split("-")[1].split("/")[0]) for info in store.list("checkpoints/step-")})


def fetch(store, scratch, key=KEY):
    return fetch_latest(store, key, scratch / "r", impatient())


def test_the_newest_is_resumed_and_the_oldest_are_removed(store, tmp_path):
    save(store, tmp_path, 4, 8, 12, keep=2)
    assert steps_of(store) == [8, 12]
    found = fetch(store, tmp_path)
    assert (found.resume.step, found.refused) == (12, ())
    assert [p.read_bytes() for p in found.resume.parts] == [b"state of 12 on %d" % r * 50 for r in range(RANKS)]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncate", "rank-00001-of-00002.safetensors is truncated: 749 of 750 bytes"),
        ("flip", "is corrupt: its sha256"),
        ("delete", "it is incomplete"),
        ("manifest", "manifest"),
        ("part", "does not name the parts of all ranks"),
    ],
)
def test_a_damaged_one_is_refused_with_a_reason_and_the_one_before_is_taken(store, tmp_path, caplog, damage, reason):
    save(store, tmp_path, 4, 8)
    key = f"checkpoints/step-8/a/{part_name(1, RANKS)}"
    data = store.get(key)
    if damage == "truncate":
        store.put(key, data[:-1])
    elif damage == "flip":
        store.put(key, bytes([data[0] ^ 1]) + data[1:])
    elif damage == "delete":
        store.delete(key)
    elif damage == "part":
        files = store_files(store, 8, "a", tmp_path / "w", written(tmp_path / "w", 8, 0), impatient())
        name_checkpoint(store, 8, KEY, RANKS, files, 3, impatient())
    else:
        store.put("checkpoints/step-8/manifest.json", b"{}")
    with caplog.at_level(logging.WARNING):
        found = fetch(store, tmp_path)
    assert found.resume.step == 4
    assert found.refused[0].startswith("checkpoint step-8 is refused: ")
    assert reason in found.refused[0]
    assert found.refused[0].removeprefix("checkpoint step-8 is refused: ") in caplog.text


def test_a_broken_one_is_named_no_more_and_takes_no_place(store, tmp_path):
    save(store, tmp_path, 4, 8, keep=2)
    store.delete(f"checkpoints/step-8/a/{TRAINER}")
    found = fetch(store, tmp_path)
    assert found.broken == (8,)
    drop_broken(store, found.broken, found.resume.step, impatient())
    assert (latest_step(store), fetch(store, tmp_path).refused) == (4, ())
    save(store, tmp_path, 9, keep=2, life="b")
    assert steps_of(store) == [4, 9]
    store.delete("checkpoints/step-4/manifest.json")
    store.delete(f"checkpoints/step-9/b/{TRAINER}")
    drop_broken(store, fetch(store, tmp_path).broken, 0, impatient())
    assert not store.exists(LATEST)


def test_that_of_another_training_is_not_broken(store, tmp_path):
    save(store, tmp_path, 4)
    assert fetch(store, tmp_path, key="other").broken == ()


def test_where_none_is_whole_all_reasons_are_told(store, tmp_path):
    save(store, tmp_path, 4, 8)
    for step in (4, 8):
        store.delete(f"checkpoints/step-{step}/a/{TRAINER}")
    found = fetch(store, tmp_path)
    assert found.resume is None
    assert [text.split(" is ")[0] for text in found.refused] == ["checkpoint step-8", "checkpoint step-4"]


def test_a_storage_that_is_away_refuses_nothing(store, tmp_path):
    save(store, tmp_path, 4, 8)

    class Away(FaultyStore):
        times = 3

        def download(self, key, path):
            if self.times:
                self.times -= 1
                raise StorageError("connection refused", retryable=True)
            return super().download(key, path)

    away = Away(store)
    with pytest.raises(StorageError, match="connection refused"):
        fetch(away, tmp_path)
    assert fetch_latest(away, KEY, tmp_path / "r", Patience(wait=lambda _: None)).resume.step == 8


def test_refused_credentials_refuse_no_checkpoint(store, tmp_path):
    class Locked(FaultyStore):
        def list(self, prefix="", *, start_after=""):
            raise ConfigError("the Secret is wrong")

    with pytest.raises(ConfigError):
        fetch(Locked(store), tmp_path)


def test_one_that_was_never_named_is_not_looked_at(store, tmp_path):
    save(store, tmp_path, 4, 8)
    store.put(LATEST, b'{"step": 4}')
    assert fetch(store, tmp_path).resume.step == 4


def test_an_unreadable_latest_leaves_all_to_be_looked_at(store, tmp_path):
    save(store, tmp_path, 4, 8)
    store.put(LATEST, b"{")
    assert fetch(store, tmp_path).resume.step == 8


def test_that_of_another_training_is_refused(store, tmp_path):
    save(store, tmp_path, 4)
    found = fetch(store, tmp_path, key="other")
    assert found.resume is None
    assert "another spec" in found.refused[0]


def test_none_is_none(store, tmp_path):
    assert fetch(store, tmp_path).resume is None


def test_a_life_that_died_leaves_nothing_in_the_checkpoint_of_the_next(store, tmp_path):
    save(store, tmp_path, 4)
    save(store, tmp_path, 8, 12, named=False)  # of a life that wrote parts and died
    save(store, tmp_path, 8, life="b")
    assert [info.key for info in store.list("checkpoints/step-8/")] == [
        f"checkpoints/step-8/b/{part_name(0, RANKS)}",
        f"checkpoints/step-8/b/{part_name(1, RANKS)}",
        f"checkpoints/step-8/b/{TRAINER}",
        "checkpoints/step-8/manifest.json",
    ]
    assert steps_of(store) == [4, 8]


def test_one_that_was_never_named_takes_no_place_of_those_that_stay(store, tmp_path):
    save(store, tmp_path, 4, 8, keep=2)
    save(store, tmp_path, 10, named=False)
    save(store, tmp_path, 11, keep=2, life="b")
    assert steps_of(store) == [8, 11]


def test_what_reads_back_different_is_never_named(store, tmp_path):
    class Lying(FaultyStore):
        def open(self, key, *, start=0, length=None):
            self.inner.put(key, b"something else")
            return super().open(key, start=start, length=length)

    with pytest.raises(StorageError, match="reads back different"):
        save(Lying(store), tmp_path, 4)
    assert not store.exists(LATEST)


def test_old_ones_that_stay_are_no_failure_of_the_new_one(store, tmp_path, caplog):
    class Stubborn(FaultyStore):
        def delete(self, key):
            raise StorageError("access denied")

    save(Stubborn(store), tmp_path, 4, 8, keep=1)
    assert fetch(store, tmp_path).resume.step == 8
    assert "cannot be removed" in caplog.text
