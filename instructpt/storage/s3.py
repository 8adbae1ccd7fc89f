"""S3 and its kin through boto3, which is imported only inside functions.

Retries are botocore's alone (mode standard, bounded attempts); nothing is stacked on top. Only the body of a
download, which botocore does not retry, is taken up again where it broke off.
"""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from instructpt.errors import ConditionFailedError, ConfigError, NotFoundError, StorageError
from instructpt.storage.base import ObjectInfo
from instructpt.storage.credentials import Target, client_for, renew_client
from instructpt.storage.filesystem import check_range, os_errors, write_atomically
from instructpt.storage.s3_errors import no_bucket, status_of, translated
from instructpt.storage.url import Location, Scheme, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Above this size a file is sent, and an object fetched, in parts of this size (boto3 grows them beyond 80 GB)."""

_BUFFER_BYTES = 1 << 20
_STREAM_ATTEMPTS = 5
_T = TypeVar("_T")


class S3Store:
    """Objects below ``s3://bucket/prefix``.

    Args:
        location: Bucket and prefix.
        target: Endpoint, region and name of the credentials.
    """

    def __init__(self, location: Location, target: Target | None = None) -> None:
        if location.scheme is not Scheme.S3:
            raise ValueError(f"{location.uri} is not an s3:// location")
        self._location = location
        self._bucket = location.bucket
        self._prefix = f"{location.path}/" if location.path else ""
        self._target = target or Target()
        self._seen_bucket = False
        self._conditional: bool | None = None
        self._probe_lock = threading.Lock()

    @property
    def uri(self) -> str:
        """``s3://bucket/prefix``."""
        return self._location.uri

    def _call(self, key: str | None, request: Callable[[S3Client], _T]) -> _T:
        """One request; a refused one is repeated once if the mounted credentials were rotated meanwhile."""
        client = client_for(self._target)
        try:
            with translated(self._bucket, key, client.meta.endpoint_url, self._target.secret):
                answer = request(client)
        except ConfigError:
            if not renew_client(self._target, client):
                raise
            log.info("credentials of %s were rotated: repeating the request", self.uri)
            client = client_for(self._target)
            with translated(self._bucket, key, client.meta.endpoint_url, self._target.secret):
                answer = request(client)
        self._seen_bucket = True
        return answer

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or ``length`` of them from ``start``; shorter where the object ends."""
        with self.open(key, start=start, length=length) as stream:
            return stream.read()

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> AbstractContextManager[BinaryIO]:
        """A streaming reader over the object, or over ``length`` bytes of it from ``start``.

        A connection that breaks is taken up again at the byte where it broke, up to 5 times without progress.
        """
        check_range(start, length)
        if length == 0:
            self.head(key)
            return io.BytesIO()
        raw = _ResumingBody(self, key, start, length)
        return cast("BinaryIO", io.BufferedReader(raw, _BUFFER_BYTES))

    def _fetch(self, key: str, start: int, end: int | None, etag: str | None) -> tuple[Any, str, int]:
        """A response body from ``start`` to ``end`` (exclusive), the etag, and the body's length in bytes."""
        options: dict[str, Any] = {}
        if start or end is not None:
            options["Range"] = f"bytes={start}-" + ("" if end is None else str(end - 1))
        if etag is not None:
            options["IfMatch"] = f'"{etag}"'
        name = self._name(key)
        answer = self._call(name, lambda client: client.get_object(Bucket=self._bucket, Key=name, **options))
        if start and "content-range" not in answer["ResponseMetadata"]["HTTPHeaders"]:  # rclone's status is 200, too
            answer["Body"].close()
            raise StorageError(f"{self.uri}: the server ignores Range, so objects cannot be read in parts")
        return answer["Body"], answer["ETag"].strip('"'), answer["ContentLength"]

    def head(self, key: str) -> ObjectInfo:
        """Size and etag."""
        info = self._head(key)
        if info is None:
            raise NotFoundError(f"no object s3://{self._bucket}/{self._name(key)}")
        return info

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        return self._head(key) is not None

    def _head(self, key: str) -> ObjectInfo | None:
        name = self._name(key)
        try:
            answer = self._call(name, lambda client: client.head_object(Bucket=self._bucket, Key=name))
        except NotFoundError:
            self._check_bucket()  # a HEAD has no body that would tell a missing bucket from a missing object
            return None
        return ObjectInfo(
            key=key,
            size=answer["ContentLength"],
            etag=answer["ETag"].strip('"'),
            modified=answer["LastModified"].timestamp(),
        )

    def _check_bucket(self) -> None:
        if self._seen_bucket:
            return
        try:
            # Not head_bucket: only an answer with a body names its reason.
            self._call(None, lambda client: client.list_objects_v2(Bucket=self._bucket, MaxKeys=1))
        except NotFoundError:
            raise no_bucket(self._bucket, client_for(self._target).meta.endpoint_url) from None

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, ascending, a page of 1,000 at a time.

        Empty objects whose name ends in ``/``, with which consoles mark folders, are passed over.

        Raises:
            StorageError: The server does not list in ascending order, on which callers rely.
        """
        options: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if start_after:
            options["StartAfter"] = self._prefix + start_after
        last = ""
        while True:
            page = self._call(None, lambda client: client.list_objects_v2(**options))
            for item in page.get("Contents", ()):
                name, size = item["Key"], item["Size"]
                if name <= last:
                    raise StorageError(f"{self.uri}: the server lists {name!r} after {last!r}, out of order")
                last = name
                if not name.endswith("/") or size:
                    etag, modified = item["ETag"].strip('"'), item["LastModified"].timestamp()
                    yield ObjectInfo(key=name[len(self._prefix) :], size=size, etag=etag, modified=modified)
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]
            options.pop("StartAfter", None)

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Write the whole object, replacing what was there."""
        return self._put(key, data)

    def _put(self, key: str, data: bytes, **options: Any) -> ObjectInfo:
        name = self._name(key)
        answer = self._call(name, lambda client: client.put_object(Bucket=self._bucket, Key=name, Body=data, **options))
        return ObjectInfo(key=key, size=len(data), etag=answer["ETag"].strip('"'))

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Upload a local file, in parts above :data:`PART_BYTES`, replacing what was there."""
        with os_errors(path):
            size = path.stat().st_size
            data = path.read_bytes() if size <= PART_BYTES else None
        if data is not None:
            return self.put(key, data)
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
        name = self._name(key)
        self._call(name, lambda client: client.upload_file(str(path), self._bucket, name, Config=parts))
        info = self.head(key)
        if info.size != size:
            raise StorageError(f"s3://{self._bucket}/{name} has {info.size} bytes, {path} has {size}", retryable=True)
        return info

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Write the object only if the key is free.

        A repeated request may find its own first attempt: the caller who must know reads the object back.

        Raises:
            ConditionFailedError: Somebody else holds the key (412), or writes it at this moment (409).
        """
        try:
            return self._put(key, data, IfNoneMatch="*")
        except StorageError as error:
            if status_of(error.__cause__ or error)[0] == 409:
                raise ConditionFailedError(f"s3://{self._bucket}/{self._name(key)} is being written") from error
            raise

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Fetch the object into a local file, in parallel ranges above :data:`PART_BYTES`, atomically."""
        info = self.head(key)
        if info.size <= PART_BYTES:
            data = self.get(key)
            write_atomically(path, lambda stream: _write_all(stream, data))
            return info
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
        name = self._name(key)

        def fill(stream: BinaryIO) -> None:
            def request(client: S3Client) -> None:
                stream.seek(0)
                stream.truncate()
                client.download_fileobj(self._bucket, name, stream, Config=parts)

            self._call(name, request)
            if stream.seek(0, io.SEEK_END) != info.size:
                raise StorageError(f"s3://{self._bucket}/{name} changed while it was read", retryable=True)

        write_atomically(path, fill)
        return info

    def delete(self, key: str) -> None:
        """Remove the object; no error where it is already gone."""
        name = self._name(key)
        try:
            self._call(name, lambda client: client.delete_object(Bucket=self._bucket, Key=name))
        except NotFoundError:  # some servers answer 404 where AWS answers 204
            self._check_bucket()

    def supports_conditional_create(self) -> bool:
        """Whether the server refuses a second create; some accept the header and ignore it. Tried once."""
        with self._probe_lock:
            if self._conditional is None:
                self._conditional = self._probe()
            return self._conditional

    def _probe(self) -> bool:
        key = f".instructpt-probe/{secrets.token_hex(8)}"
        try:
            self.create(key, b"1")
        except ConditionFailedError:  # its own first attempt, when the answer to that was lost
            self.delete(key)
            return True
        except StorageError as error:
            if status_of(error.__cause__ or error)[0] in (400, 501):  # the header is not implemented
                return False
            raise
        try:
            self.create(key, b"2")
        except ConditionFailedError:
            return True
        finally:
            self.delete(key)
        return False


class _ResumingBody(io.RawIOBase):
    """The body of a GET that reopens itself, at the byte it reached, when the connection breaks."""

    def __init__(self, store: S3Store, key: str, start: int, length: int | None) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._position = start
        self._end = None if length is None else start + length
        self._etag: str | None = None
        self._body: Any = None
        self._failures = 0
        self._reopen()

    def _reopen(self) -> None:
        try:
            body, etag, size = self._store._fetch(self._key, self._position, self._end, self._etag)
        except ConditionFailedError as error:
            raise StorageError(f"{self._store.uri}/{self._key} changed while it was read", retryable=True) from error
        except StorageError as error:
            if status_of(error.__cause__ or error)[0] != 416:
                raise
            self._end = self._position  # the range starts at or after the object's end: nothing to read
            return
        if self._etag is not None and etag != self._etag:  # for servers that ignore If-Match
            body.close()
            raise StorageError(f"{self._store.uri}/{self._key} changed while it was read", retryable=True)
        end = self._position + size
        self._body, self._etag = body, etag
        self._end = end if self._end is None else min(self._end, end)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the base is untyped about buffers
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        while self._end is not None and self._position < self._end:
            try:
                data = cast("bytes", self._body.read(min(size, self._end - self._position)))
                reason = "the connection ended early"
            except (BotoCoreError, HTTPError, OSError) as error:
                data, reason = b"", type(error).__name__
            if data:
                self._position += len(data)
                self._failures = 0
                return data
            self._failures += 1
            where = f"{self._store.uri}/{self._key}"
            if self._failures >= _STREAM_ATTEMPTS:
                raise StorageError(
                    f"{where} broke off {self._failures} times at byte {self._position}: {reason}", retryable=True
                )
            log.warning("%s broke off at byte %d (%s): resuming", where, self._position, reason)
            self._body.close()
            self._reopen()
        return b""

    def close(self) -> None:
        if self._body is not None:
            with contextlib.suppress(OSError):
                self._body.close()
        super().close()


def _write_all(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
