from __future__ import annotations

import logging

import pytest
from faults import FaultyStore

from instructpt.errors import StorageError
from instructpt.storage import MemoryStore
from instructpt.training.checkpoint import LATEST, STATE, TRAINER, Saver, fetch_latest

KEY = "k" * 16


def content(step):
    def write(folder):
        (folder / STATE).write_bytes(b"state of %d" % step * 50)
        (folder / TRAINER).write_text("{}")

    return write


@pytest.fixture
def store(tmp_path):
    return MemoryStore(f"memory://checkpoints-{tmp_path.name.replace('_', '-')}")


def save(store, scratch, *steps, keep=3, key=KEY):
    noted = []
    saver = Saver(store, key, scratch, keep=keep, done=noted.append)
    for step in steps:
        saver.save(step, content(step))
    saver.wait()
    return noted


def steps_of(store):
    return sorted({int(info.key.split("-")[1].split("/")[0]) for info in store.list("checkpoints/step-")})


def test_the_newest_is_resumed_and_the_oldest_are_removed(store, tmp_path):
    assert save(store, tmp_path, 4, 8, 12, keep=2) == [4, 8, 12]
    assert steps_of(store) == [8, 12]
    resume = fetch_latest(store, KEY, tmp_path / "r")
    assert resume.step == 12
    assert (tmp_path / "r" / "step-12" / STATE).read_bytes() == b"state of 12" * 50
    assert not list(tmp_path.glob("saving-*"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest"])
def test_a_damaged_one_is_refused_with_a_reason_and_the_one_before_is_taken(store, tmp_path, caplog, damage):
    save(store, tmp_path, 4, 8)
    key = f"checkpoints/step-8/{STATE}"
    data = store.get(key)
    if damage == "truncate":
        store.put(key, data[:-1])
    elif damage == "flip":
        store.put(key, bytes([data[0] ^ 1]) + data[1:])
    elif damage == "delete":
        store.delete(key)
    else:
        store.put("checkpoints/step-8/manifest.json", b"{}")
    with caplog.at_level(logging.WARNING):
        assert fetch_latest(store, KEY, tmp_path / "r").step == 4
    assert "step-8" in caplog.text
    assert "refused" in caplog.text


def test_one_that_was_never_named_is_not_looked_at(store, tmp_path):
    save(store, tmp_path, 4, 8)
    store.put(LATEST, b'{"step": 4}')
    assert fetch_latest(store, KEY, tmp_path / "r").step == 4


def test_an_unreadable_latest_leaves_all_to_be_looked_at(store, tmp_path):
    save(store, tmp_path, 4, 8)
    store.put(LATEST, b"{")
    assert fetch_latest(store, KEY, tmp_path / "r").step == 8


def test_that_of_another_training_is_refused(store, tmp_path, caplog):
    save(store, tmp_path, 4)
    with caplog.at_level(logging.WARNING):
        assert fetch_latest(store, "other", tmp_path / "r") is None
    assert "another spec" in caplog.text


def test_none_is_none(store, tmp_path):
    assert fetch_latest(store, KEY, tmp_path) is None


def test_a_failed_upload_is_told_and_latest_stays(store, tmp_path):
    save(store, tmp_path, 4)
    saver = Saver(FaultyStore(store, fail_at=frozenset({2})), KEY, tmp_path, keep=2, done=lambda _: None)
    saver.save(8, content(8))
    with pytest.raises(StorageError):
        saver.wait()
    assert fetch_latest(store, KEY, tmp_path / "r").step == 4


def test_what_reads_back_different_is_never_named(store, tmp_path):
    class Lying(FaultyStore):
        def download(self, key, path):
            info = super().download(key, path)
            path.write_bytes(b"something else")
            return info

    saver = Saver(Lying(store), KEY, tmp_path, keep=2, done=lambda _: None)
    saver.save(4, content(4))
    with pytest.raises(StorageError, match="reads back different"):
        saver.wait()
    assert not store.exists(LATEST)
