from __future__ import annotations

import threading

import pytest

from instructpt.errors import StorageError
from instructpt.training.background import Background


def test_waiting_ends_with_the_time_or_with_the_work():
    go, work = threading.Event(), Background()
    assert work.wait(0)
    work.start(go.wait, name="w")
    assert not work.wait(0.01)
    go.set()
    assert work.wait()


def test_an_error_comes_back_once_to_whoever_waits():
    def fail() -> None:
        raise StorageError("full")

    work = Background()
    work.start(fail, name="w")
    with pytest.raises(StorageError, match="full"):
        work.wait()
    assert work.wait()
