"""A store that fails on purpose and counts requests: what the invariant tests run the real code on."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Literal

from instructpt.errors import ConditionFailedError, StorageError
from instructpt.storage.base import ObjectInfo, Store

Moment = Literal["before", "after"]
PAGE = 1000
"""Keys per page of a listing, as S3 counts requests."""


class Killed(BaseException):  # noqa: N818  # not an error: the simulated process is gone, nothing may catch it
    """The simulated kill -9. A BaseException, so that no ``except Exception`` of the code under test survives it."""


class FaultyStore:
    """Passes everything on to ``inner``; kills or fails at the n-th write; counts requests.

    A write is a put, put_file, create or delete, counted from 1. After a kill every further call raises
    :class:`Killed` too: a dead process makes no requests.

    Args:
        inner: The real store.
        kill_at: Number of the write at which the process dies.
        fail_at: Numbers of the writes that raise a retryable StorageError.
        moment: Whether that is before the write reaches the store, or after it took effect and the answer was lost.
        conditional: False makes ``create`` overwrite silently, as servers do that ignore ``If-None-Match``.
    """

    def __init__(
        self,
        inner: Store,
        *,
        kill_at: int | None = None,
        fail_at: frozenset[int] = frozenset(),
        moment: Moment = "before",
        conditional: bool = True,
    ) -> None:
        self.inner = inner
        self.requests: Counter[str] = Counter()
        self.writes = 0
        self.killed = False
        self._kill_at = kill_at
        self._fail_at = fail_at
        self._moment = moment
        self._conditional = conditional
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """That of the inner store."""
        return self.inner.uri

    def _count(self, verb: str) -> None:
        with self._lock:
            if self.killed:
                raise Killed
            self.requests[verb] += 1

    def _start_write(self, verb: str) -> int:
        self._count(verb)
        with self._lock:
            self.writes += 1
            number = self.writes
        self._fault(number, "before", verb)
        return number

    def _fault(self, number: int, moment: Moment, verb: str) -> None:
        if moment != self._moment:
            return
        if number == self._kill_at:
            self.killed = True
            raise Killed
        if number in self._fail_at:
            raise StorageError(f"injected fault {moment} write {number} ({verb})", retryable=True)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Counted as ``get``."""
        self._count("get")
        return self.inner.get(key, start=start, length=length)

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """Counted as ``get``."""
        self._count("get")
        return self.inner.open(key, start=start, length=length)

    def head(self, key: str) -> ObjectInfo:
        """Counted as ``head``."""
        self._count("head")
        return self.inner.head(key)

    def exists(self, key: str) -> bool:
        """Counted as ``head``."""
        self._count("head")
        return self.inner.exists(key)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Counted as ``list``, once for each page of 1,000 keys that is begun."""
        self._count("list")
        for number, info in enumerate(self.inner.list(prefix, start_after=start_after)):
            if number and number % PAGE == 0:
                self._count("list")
            yield info

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Counted as ``put``."""
        number = self._start_write("put")
        info = self.inner.put(key, data)
        self._fault(number, "after", "put")
        return info

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Counted as ``put``."""
        number = self._start_write("put")
        info = self.inner.put_file(key, path)
        self._fault(number, "after", "put")
        return info

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Counted as ``put``.

        Raises:
            ConditionFailedError: Somebody else holds the key.
        """
        number = self._start_write("put")
        try:
            info = self.inner.create(key, data) if self._conditional else self.inner.put(key, data)
        except ConditionFailedError:
            self._fault(number, "after", "create")
            raise
        self._fault(number, "after", "create")
        return info

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Counted as ``get``."""
        self._count("get")
        return self.inner.download(key, path)

    def delete(self, key: str) -> None:
        """Counted as ``delete``."""
        number = self._start_write("delete")
        self.inner.delete(key)
        self._fault(number, "after", "delete")

    def supports_conditional_create(self) -> bool:
        """As the inner store, unless ``conditional`` is off. Not counted: once per process."""
        return self._conditional and self.inner.supports_conditional_create()


def kill_points(writes: int) -> Iterator[tuple[int, Moment]]:
    """Every place at which a run of ``writes`` writes can die: before and after each of them."""
    moments: tuple[Moment, Moment] = ("before", "after")
    return itertools.product(range(1, writes + 1), moments)
