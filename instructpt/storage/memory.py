"""A store in a dictionary, for tests: exact, thread-safe, gone with the process."""

from __future__ import annotations

import bisect
import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from instructpt.errors import ConditionFailedError, NotFoundError
from instructpt.storage.base import ObjectInfo
from instructpt.storage.filesystem import check_range, os_errors, write_atomically
from instructpt.storage.url import check_key, parse_uri


class _Bucket:
    """Objects and their keys in order: a listing costs what it yields, as on S3."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}  # content and etag
        self.keys: list[str] = []

    def put(self, key: str, data: bytes) -> None:
        if key not in self.objects:
            bisect.insort(self.keys, key)
        self.objects[key] = (data, hashlib.sha256(data).hexdigest())

    def delete(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            del self.keys[bisect.bisect_left(self.keys, key)]

    def after(self, prefix: str, key: str) -> list[str]:
        """Keys that start with ``prefix`` and come after ``key``."""
        first = max(bisect.bisect_left(self.keys, prefix), bisect.bisect_right(self.keys, key))
        # No key goes on with a code point above all others, so this is the end of the prefix.
        return self.keys[first : bisect.bisect_left(self.keys, prefix + chr(0x10FFFF))]


class MemoryStore:
    """Objects in memory. Stores with the same ``memory://name`` share them within a process.

    Args:
        uri: ``memory://name/prefix``; the default belongs to this instance alone.
    """

    _shared: dict[str, _Bucket] = {}
    _lock = threading.RLock()

    def __init__(self, uri: str | None = None) -> None:
        self._uri = "memory://private" if uri is None else parse_uri(uri).uri
        location = parse_uri(self._uri)
        self._prefix = f"{location.path}/" if location.path else ""
        with self._lock:
            self._bucket = _Bucket() if uri is None else self._shared.setdefault(location.bucket, _Bucket())

    @property
    def uri(self) -> str:
        """``memory://name/prefix``."""
        return self._uri

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or ``length`` of them from ``start``; shorter where the object ends."""
        check_range(start, length)
        with self._lock:
            try:
                data, _ = self._bucket.objects[self._prefix + check_key(key)]
            except KeyError:
                raise NotFoundError(f"no object {self._uri}/{key}") from None
        return data[start:] if length is None else data[start : start + length]

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """A reader over the object, or over ``length`` bytes of it from ``start``."""
        return io.BytesIO(self.get(key, start=start, length=length))

    def head(self, key: str) -> ObjectInfo:
        """Size and etag."""
        with self._lock:
            found = self._bucket.objects.get(self._prefix + check_key(key))
        if found is None:
            raise NotFoundError(f"no object {self._uri}/{key}")
        return ObjectInfo(key=key, size=len(found[0]), etag=found[1])

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        with self._lock:
            return self._prefix + check_key(key) in self._bucket.objects

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, in ascending key order; the keys are those of the first step."""
        with self._lock:
            keys = self._bucket.after(self._prefix + prefix, self._prefix + start_after if start_after else "")
        for key in keys:
            found = self._bucket.objects.get(key)
            if found is not None:
                yield ObjectInfo(key=key[len(self._prefix) :], size=len(found[0]), etag=found[1])

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write the whole object, replacing what was there."""
        with self._lock:
            self._bucket.put(self._prefix + check_key(key), bytes(data))
            return self.head(key)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Copy a local file in, replacing what was there."""
        with os_errors(path):
            data = path.read_bytes()
        return self.put(key, data)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write the object only if the key is free.

        Raises:
            ConditionFailedError: Somebody else holds the key; nothing was changed.
        """
        with self._lock:
            if self._prefix + check_key(key) in self._bucket.objects:
                raise ConditionFailedError(f"{self._uri}/{key} already exists")
            return self.put(key, data)

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Copy the object out to a local file, atomically."""
        with self._lock:
            data, info = self.get(key), self.head(key)
        write_atomically(path, lambda stream: _write_all(stream, data))
        return info

    def delete(self, key: str) -> None:
        """Remove the object; no error where it is already gone."""
        with self._lock:
            self._bucket.delete(self._prefix + check_key(key))

    def supports_conditional_create(self) -> bool:
        """Always."""
        return True


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
