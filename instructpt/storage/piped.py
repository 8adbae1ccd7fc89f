"""A stream that a thread reads and the caller takes from: bounded, in order, and stopped by either side."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

CHUNK = 1 << 20
"""Bytes that a thread reads at a time."""


class Readable(Protocol):
    """An open object."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; empty at the end."""


class Piped:
    """What one thread reads, for another to take.

    Args:
        limit: Bytes that may wait for the caller.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._ended = False
        self._abandoned = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self.closed = False

    def pump(self, stream: Readable) -> None:
        """Read a stream to its end; the body of a thread. What goes wrong is raised where the caller reads."""
        try:
            self._pass_on(stream)
        except BaseException as error:  # whatever it is, the caller's thread raises it
            self._error = error
        finally:
            self._end()

    def _pass_on(self, stream: Readable) -> None:
        while not self._abandoned and (data := stream.read(CHUNK)) and self._give(data):
            pass

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _give(self, data: bytes) -> bool:
        """Hand over a chunk, once there is room; False where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._waiting < self._limit)
            if self._abandoned:
                return False
            self._chunks.append(data)
            self._waiting += len(data)
            self._changed.notify_all()
            return True

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, everything that is left where it is negative; empty at the end.

        Raises:
            Exception: What the thread's stream raised.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        with self._changed:
            self._changed.wait_for(lambda: bool(self._chunks) or self._ended)
            if not self._chunks:
                if self._error is not None:
                    raise self._error
                return b""
            data = self._chunks.popleft()
            if len(data) > size:
                self._chunks.appendleft(data[size:])
                data = data[:size]
            self._waiting -= len(data)
            self._changed.notify_all()
            return data

    def readable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Let go of the stream: the thread stops reading it."""
        with self._changed:
            self._abandoned = self.closed = True
            self._chunks.clear()
            self._changed.notify_all()


class Begun:
    """A stream of which the first bytes were read."""

    def __init__(self, first: bytes, rest: Readable) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes; empty at the end."""
        if size < 0:
            first, self._first = self._first, b""
            return first + self._rest.read()
        if not self._first:
            return self._rest.read(size)
        data, self._first = self._first[:size], self._first[size:]
        return data
