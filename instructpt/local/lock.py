"""Locks between processes of this machine: a file held with flock, with the holder's pid in it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instructpt.errors import EnvironmentNotReadyError

_TRIES = 10
_PAUSE_SECONDS = 0.1


@contextmanager
def held(path: Path, *, what: str, fix: str) -> Iterator[None]:
    """Hold the lock file for this process; its folder must exist.

    Args:
        path: The lock file, created where it is missing and never removed: a name that goes away could be held twice.
        what: What it stands for, such as ``run folder runs/demo``.
        fix: What a person can do where another process holds it.

    Raises:
        EnvironmentNotReadyError: Another process holds it.
        OSError: The file cannot be opened.
    """
    with path.open("a+") as lock:
        _take(lock.fileno(), path, what, fix)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def _take(descriptor: int, path: Path, what: str, fix: str) -> None:
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = holder_of(path)
            if holder is None and left:
                # Somebody only looks (holder_of takes the lock for a moment), or has not yet written its pid.
                time.sleep(_PAUSE_SECONDS)
                continue
            who = f"process {holder}" if holder is not None else "another process"
            raise EnvironmentNotReadyError(f"{what} is in use by {who}", fix=fix) from error
        return


def holder_of(path: Path) -> int | None:
    """Process that holds the lock; ``None`` where nobody does."""
    if not path.exists():
        return None
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            text = lock.read().strip()
            return int(text) if text.isdigit() else None
    return None
