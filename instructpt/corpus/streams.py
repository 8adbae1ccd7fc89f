"""Bytes of an object: plain, decompressed as a stream, or by random access. Memory stays flat."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

from instructpt.errors import CorpusError
from instructpt.storage.base import Store
from instructpt.storage.piped import Begun, Piped, Readable

Compression = Literal["gzip", "zstd"]

CHUNK = 1 << 20
_REMOTE_BLOCK = 1 << 20
_AHEAD_BYTES = 2 << 20


class Tap:
    """A stream that tells every piece of bytes to ``seen`` as it goes by."""

    def __init__(self, inner: Readable, seen: Callable[[bytes], object]) -> None:
        self._inner = inner
        self._seen = seen
        self.closed = False

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes of the inner stream."""
        data = self._inner.read(size)
        self._seen(data)
        return data

    def readable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing: who opened the inner stream closes it."""
        self.closed = True


def decompressed(stream: Readable, compression: Compression | None) -> Readable:
    """The stream's content; frames and members that follow each other are read as one.

    Arrow's decompressor rather than zstandard's: it refuses a truncated last frame, which the other takes for the end.
    """
    if compression is None:
        return stream
    plain = stream if isinstance(stream, Tap) else Tap(stream, lambda _: None)
    return cast("Readable", pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), compression))


@contextlib.contextmanager
def decompressed_ahead(stream: Readable, compression: Compression | None) -> Iterator[Readable]:
    """As :func:`decompressed`; what is longer than a chunk is decompressed in a thread while the caller works.

    Decompression holds no lock of Python's, and neither does hashing what goes by.
    """
    plain = decompressed(stream, compression)
    if compression is None or len(first := plain.read(CHUNK)) < CHUNK:
        yield plain if compression is None else Begun(first, plain)
        return
    piped = Piped(_AHEAD_BYTES)
    thread = threading.Thread(target=piped.pump, args=(plain,), name="decompress", daemon=True)
    thread.start()
    try:
        yield Begun(first, piped)
    finally:
        piped.close()
        thread.join()


@contextlib.contextmanager
def readable_object(where: str) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged object into an error that names it.

    Raises:
        CorpusError: The object is truncated, corrupt or not of its format.
    """
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        # OSError: Arrow raises it for damaged data; errors of the storage are InstructPTError by now.
        raise CorpusError(
            f"{where} cannot be read: {_first_line(error)}",
            fix="the object is truncated, damaged or of another format: write it again, or correct spec.corpus.format",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class RandomAccess(io.RawIOBase):
    """A seekable view of an object, one ranged read a request.

    Args:
        store: Where the object lies.
        key: Its key.
        size: Its length in bytes.
    """

    def __init__(self, store: Store, key: str, size: int) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset; returns it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` from the current offset; returns the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes from the current offset; all that is left where it is negative."""
        left = max(0, self._size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if length == 0:
            return b""
        data = self._store.get(self._key, start=self._position, length=length)
        self._position += len(data)
        return data


def random_access(store: Store, key: str, size: int) -> BinaryIO:
    """The object as a seekable file; small reads nearby are served from one block."""
    return cast("BinaryIO", io.BufferedReader(RandomAccess(store, key, size), buffer_size=_REMOTE_BLOCK))
