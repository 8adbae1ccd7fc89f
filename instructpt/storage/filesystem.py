"""A folder as a store: atomic by a temporary file and rename, exclusive by a hard link."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, cast

from instructpt.errors import ConditionFailedError, ConfigError, InstructPTError, NotFoundError, StorageError
from instructpt.storage.base import ObjectInfo
from instructpt.storage.url import TEMPORARY_PREFIX, check_key

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_COPY_BYTES = 1 << 20


class FilesystemStore:
    """Objects are files below ``root``; the folder is made at the first write.

    An object may not have the name of a folder of others (``a`` beside ``a/b``), which S3 would allow.

    Args:
        root: The folder; ``~`` is expanded.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._uri = os.fspath(root).rstrip("/") or "/"
        self._root = Path(self._uri).expanduser()
        self._links: bool | None = None

    @property
    def uri(self) -> str:
        """The folder as the user wrote it."""
        return self._uri

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    def path(self, key: str) -> Path:
        """The file that holds, or would hold, ``key``."""
        return self._root / check_key(key)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or ``length`` of them from ``start``; shorter where the object ends."""
        with self.open(key, start=start, length=length) as stream:
            return stream.read()

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """A streaming reader over the object, or over ``length`` bytes of it from ``start``."""
        check_range(start, length)
        path = self.path(key)
        with os_errors(path):
            stream = path.open("rb")
            stream.seek(start)
        if length is None:
            return stream
        return cast("BinaryIO", io.BufferedReader(_Window(stream, length)))

    def head(self, key: str) -> ObjectInfo:
        """Size and etag."""
        path = self.path(key)
        with os_errors(path):
            if path.is_dir():
                raise NotFoundError(f"no object {path} (it is a folder)")
            return _info(key, path.stat())

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            self.head(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, ascending; an absent folder is an empty one, as on S3.

        Raises:
            StorageError: A symbolic link that leads nowhere or in a circle.
        """
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        top = self._root / folder if folder else self._root
        return self._walk(top, f"{folder}/" if folder else "", prefix, start_after, ())

    def _walk(
        self, folder: Path, above: str, prefix: str, after: str, parents: tuple[tuple[int, int], ...]
    ) -> Iterator[ObjectInfo]:
        for name, entry in _entries(folder):
            key = above + name
            if key.endswith("/"):
                if not (key.startswith(prefix) or prefix.startswith(key)) or (
                    key <= after and not after.startswith(key)
                ):
                    continue
                with os_errors(Path(entry.path)):
                    here = entry.stat()
                inode = (here.st_dev, here.st_ino)
                if inode in parents:
                    raise StorageError(f"{entry.path} leads back to a folder above it", fix="remove the link")
                yield from self._walk(Path(entry.path), key, prefix, after, (*parents, inode))
            elif key.startswith(prefix) and key > after:
                try:
                    with os_errors(Path(entry.path)):
                        info = _info(key, entry.stat())
                except NotFoundError:
                    if entry.is_symlink():
                        fix = "remove the link or restore its target"
                        raise StorageError(f"{entry.path} is a link that leads nowhere", fix=fix) from None
                    continue  # deleted since the folder was read: no longer an object
                yield info

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write the whole object, replacing what was there."""
        return self._write(key, lambda stream: _write_all(stream, data), os.replace)

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Copy a local file in, replacing what was there."""
        with os_errors(path):
            source = path.open("rb")
        with source:
            return self._write(key, lambda stream: shutil.copyfileobj(source, stream, _COPY_BYTES), os.replace)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write the object only if the key is free: a hard link fails where the name exists.

        Raises:
            ConditionFailedError: Somebody else holds the key; nothing was changed.
        """
        return self._write(key, lambda stream: _write_all(stream, data), _link)

    def _write(self, key: str, fill: Callable[[BinaryIO], None], publish: Callable[[Path, Path], None]) -> ObjectInfo:
        path = self.path(key)
        return _info(key, write_atomically(path, fill, publish))

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Copy the object out to a local file, atomically."""
        info = self.head(key)
        with self.open(key) as source:
            write_atomically(path, lambda stream: shutil.copyfileobj(source, stream, _COPY_BYTES))
        return info

    def delete(self, key: str) -> None:
        """Remove the object; no error where it is already gone. Its folder stays."""
        path = self.path(key)
        with os_errors(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def supports_conditional_create(self) -> bool:
        """Whether the file system has hard links, on which :meth:`create` rests. Tried once."""
        if self._links is None:
            key = f".instructpt-probe-{secrets.token_hex(8)}"  # no folder: two probes would race over removing it
            try:
                self.create(key, b"1")
                self.create(key, b"2")
            except ConditionFailedError:
                self._links = True
            except _NoHardLinksError:
                self._links = False
            else:
                self._links = False
            finally:
                self.delete(key)
        return self._links


class _NoHardLinksError(StorageError):
    """This file system has no hard links, so nothing can be created exclusively and whole."""


class _Window(io.RawIOBase):
    """The next ``left`` bytes of a stream, closed together with it."""

    def __init__(self, stream: BinaryIO, left: int) -> None:
        super().__init__()
        self._stream = stream
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the base is untyped about buffers
        data = self._stream.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def check_range(start: int, length: int | None) -> None:
    """Refuse a range that no store can serve.

    Raises:
        ValueError: ``start`` or ``length`` is negative.
    """
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"start={start} and length={length} must not be negative")


def write_atomically(
    path: Path, fill: Callable[[BinaryIO], None], publish: Callable[[Path, Path], None] = os.replace
) -> os.stat_result:
    """Write a temporary file in the folder of ``path``, flush it to disk, then give it its name.

    Args:
        path: The final name; folders above it are made.
        fill: Writes the content.
        publish: ``(temporary, final)``; ``os.replace``, or a link that refuses an existing name.

    Returns:
        The stat of the written file.

    Raises:
        ConfigError: Permission denied or a read-only file system.
        StorageError: Disk full and everything else; nothing half-written is left.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    with os_errors(path, writing=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not tempfile: its mode 0600 would hide objects from other users; here the umask decides.
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
                stat = os.fstat(stream.fileno())
            publish(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        _sync_folder(path.parent)
    return stat


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise ConditionFailedError(f"{path} already exists") from None
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _NoHardLinksError(
                f"the file system of {path.parent} has no hard links ({error.strerror})",
                fix="put the storage on a local or NFS file system",
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    # The name itself must outlive a power cut, or a commit could name data that is gone.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def _entries(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """The folder's entries in key order: a folder sorts as ``name/``, because its keys continue that way."""
    with os_errors(folder):
        try:
            with os.scandir(folder) as found:
                entries = [e for e in found if not e.name.startswith(TEMPORARY_PREFIX)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(((f"{e.name}/" if e.is_dir() else e.name, e) for e in entries), key=lambda pair: pair[0])


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"
    return ObjectInfo(key=key, size=stat.st_size, etag=etag, modified=stat.st_mtime)


@contextlib.contextmanager
def os_errors(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Turn an OSError about ``path``, raised inside the block, into an error that says what to do."""
    try:
        yield
    except InstructPTError:
        raise
    except OSError as error:
        raise _translate(error, path, writing) from error


def _translate(error: OSError, path: Path, writing: bool) -> InstructPTError:
    reason = error.strerror or type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError) and not writing:
        return NotFoundError(f"no object {path}" + ("" if error.errno == errno.ENOENT else f" ({reason})"))
    verb = "write" if writing else "read"
    if error.errno in _NO_SPACE:
        return StorageError(
            f"cannot {verb} {path}: {reason}",
            fix="free space there (or raise the quota), or point the storage at another disk, then run the same again",
        )
    if error.errno in _REFUSED:
        return ConfigError(f"cannot {verb} {path}: {reason}", fix="give this user access, or name another folder")
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return StorageError(f"cannot {verb} {path}: {reason}", fix="a file and a folder want the same name; move one")
    return StorageError(f"cannot {verb} {path}: {reason}", retryable=error.errno in (errno.EIO, errno.ESTALE))
