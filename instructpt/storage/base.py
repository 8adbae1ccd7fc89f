"""The protocol that everything above speaks to storage with: flat keys under one root.

Three stores implement it: a folder, S3 (boto3) and memory. Keys are relative, ``/``-separated and never
start with ``/``. A write is all or nothing: a reader sees the whole object or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a listing or a HEAD tells of one object.

    Attributes:
        key: Relative to the store's root.
        size: In bytes.
        etag: Opaque; changes whenever the content is rewritten with other bytes. A folder uses
            a content-derived or (mtime_ns, size, inode)-derived string.
        modified: Time of the last write by the storage's clock, seconds since the epoch; None where it does not
            tell. For housekeeping only: nothing that is written may depend on it.
    """

    key: str
    size: int
    etag: str
    modified: float | None = field(default=None, compare=False)


@runtime_checkable
class Store(Protocol):
    """One root (a folder, ``s3://bucket/prefix``) and the objects below it.

    Every method raises :class:`~instructpt.errors.NotFoundError` for an object or bucket that does not
    exist, :class:`~instructpt.errors.ConfigError` for credentials that are refused, and
    :class:`~instructpt.errors.StorageError` (``retryable`` set) when the server failed after retries.
    """

    @property
    def uri(self) -> str:
        """The root as the user wrote it, without a trailing slash; never holds credentials."""

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or ``length`` of them from ``start``."""

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """A streaming reader over the object, or over ``length`` bytes of it; memory stays flat."""

    def head(self, key: str) -> ObjectInfo:
        """Size and etag, without the content."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, in ascending key order, streamed."""

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write the whole object, replacing what was there."""

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Upload a local file (multipart where it pays), replacing what was there."""

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write the object only if the key is free (``If-None-Match: *``).

        Raises:
            ConditionFailedError: Somebody else holds the key; nothing was changed.
        """

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Fetch the object into a local file, atomically (temporary name, then rename)."""

    def delete(self, key: str) -> None:
        """Remove the object; no error where it is already gone."""

    def supports_conditional_create(self) -> bool:
        """Whether :meth:`create` really excludes a second writer. Probed once, at first use, and cached."""
