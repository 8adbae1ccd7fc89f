from __future__ import annotations

import pytest

from instructpt.errors import NotFoundError, StorageError
from instructpt.training.patience import Patience


class Away:
    """A storage that fails some times; time passes only where it is waited for."""

    def __init__(self, times: int, error: Exception) -> None:
        self.now, self.left, self.error = 0.0, times, error
        self.told: list[str | None] = []

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def call(self) -> str:
        if self.left:
            self.left -= 1
            raise self.error
        return "there"

    def patience(self, seconds: float) -> Patience:
        return Patience(self.told.append, seconds=seconds, wait=self.wait, clock=lambda: self.now)


def test_ten_minutes_away_are_waited_for_and_told_of_once():
    away = Away(24, StorageError("connection refused", retryable=True))
    assert away.patience(3600)("it cannot be stored", away.call) == "there"
    assert away.now == 1 + 2 + 4 + 8 + 16 + 19 * 30 > 600
    assert away.told == ["it cannot be stored for now, and is tried again: connection refused", None]


def test_it_ends_with_the_time():
    away = Away(10**6, StorageError("connection refused", retryable=True))
    with pytest.raises(StorageError, match="connection refused"):
        away.patience(600)("it cannot be stored", away.call)
    assert away.now <= 600


@pytest.mark.parametrize("error", [NotFoundError("no bucket"), StorageError("it reads back different")])
def test_what_waiting_cannot_cure_is_not_waited_for(error):
    away = Away(1, error)
    with pytest.raises(type(error)):
        away.patience(600)("it cannot be stored", away.call)
    assert (away.now, away.told) == (0, [])
