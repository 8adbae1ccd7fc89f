"""Locations: one typed form for a path, ``file://``, ``s3://`` and ``memory://``. Pure; touches no disk, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import unquote

from instructpt.api.uris import QUERY, holds_credentials
from instructpt.errors import ConfigError

TEMPORARY_PREFIX = ".instructpt-tmp-"
"""Names that a folder store gives to unfinished writes; never a key, never listed."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)
_HALF_SCHEME = re.compile(r"^(s3|memory|file):/?(?!/)", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")


class Scheme(StrEnum):
    """Where a location lives."""

    FILE = "file"
    S3 = "s3"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A parsed URI.

    Attributes:
        scheme: Which store serves it.
        bucket: Bucket of ``s3://``, name of ``memory://``; empty for a path.
        path: Prefix or object below the bucket without slashes at its ends, or a path as it was written.
    """

    scheme: Scheme
    bucket: str = ""
    path: str = ""

    @property
    def uri(self) -> str:
        """The location as text, without a trailing slash; a path stays a plain path."""
        if self.scheme is Scheme.FILE:
            return self.path
        return f"{self.scheme.value}://{self.bucket}" + (f"/{self.path}" if self.path else "")

    def join(self, *parts: str) -> Location:
        """The location ``parts`` below this one; empty parts are passed over."""
        tail = [part.strip("/") for part in parts if part.strip("/")]
        for part in tail:
            check_key(part)
        if not tail:
            return self
        head = [self.path.rstrip("/")] if self.path else []
        return replace(self, path="/".join([*head, *tail]))

    def split(self) -> tuple[Location, str]:
        """The folder that holds this location, and the key in it.

        The key is everything from the first segment with a glob character (``*``, ``?``, ``[``) on, or the last
        segment where there is none. The key of a bucket, of ``/`` and of ``.`` or ``..`` is empty: they are folders.
        """
        segments = self.path.split("/")
        index = next((i for i, segment in enumerate(segments) if _GLOB.search(segment)), len(segments) - 1)
        key = "/".join(segments[index:])
        if key in ("", ".", "..", "~"):
            return self, ""
        folder = "/".join(segments[:index])
        if self.scheme is Scheme.FILE and not folder:
            folder = "/" if self.path.startswith("/") else "."
        return replace(self, path=folder), key

    def relative(self, other: Location) -> str:
        """The key of ``other`` below this location; empty when they are the same.

        Raises:
            ConfigError: ``other`` does not lie below this location.
        """
        if (other.scheme, other.bucket) == (self.scheme, self.bucket):
            root = self.path.rstrip("/")
            if other.path.rstrip("/") == root:
                return ""
            if not self.path or other.path.startswith(root + "/"):
                return other.path[len(root) :].lstrip("/") if self.path else other.path
        raise ConfigError(f"{other.uri} does not lie below {self.uri}")


def has_glob(text: str) -> bool:
    """Whether ``text`` holds ``*``, ``?`` or ``[``."""
    return _GLOB.search(text) is not None


def check_key(key: str) -> str:
    """``key`` itself, if every store can hold it.

    Raises:
        ConfigError: Empty, begins or ends with ``/``, has an empty, ``.`` or ``..`` segment or a reserved name.
    """
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or "\0" in key:
        raise ConfigError(f"{key!r} is no object key; give a relative name without empty, '.' or '..' parts")
    if any(segment.startswith(TEMPORARY_PREFIX) for segment in segments):
        raise ConfigError(f"{key!r} is no object key; names that start with {TEMPORARY_PREFIX} are reserved")
    return key


def parse_uri(uri: str) -> Location:
    """Parse a path, ``file:///path``, ``s3://bucket/prefix`` or ``memory://name/prefix``.

    Messages never repeat the URI: a part of it may be a secret, also where it does not look like one.

    Raises:
        ConfigError: Unknown scheme, credentials or a query inside, or no bucket.
    """
    if holds_credentials(uri):
        raise ConfigError(
            "a URI must not hold credentials",
            fix="write it without the part before '@' and name the credentials with secretRef",
        )
    match = _SCHEME.match(uri)
    if match is None:
        return _parse_path(uri)
    scheme, rest = match[1].lower(), match[2]
    if scheme not in set(Scheme):
        raise ConfigError(
            f"{scheme}:// is not a storage that instructpt speaks", fix="use a path, file:///path or s3://bucket/prefix"
        )
    authority, _, path = rest.partition("/")
    if re.search(QUERY, uri):
        raise ConfigError(
            f"a {scheme}:// URI must not hold a query or fragment", fix="endpoint and region are fields beside uri"
        )
    if scheme == Scheme.FILE:
        if authority not in ("", "localhost"):
            raise ConfigError("a file:// URI must not name another host", fix="write file:///path, with three slashes")
        return _parse_path("/" + unquote(path))
    if not _BUCKET.match(authority):
        raise ConfigError(
            f"a {scheme}:// URI needs a bucket name: letters, digits, '.', '_' and '-'",
            fix=f"write {scheme}://bucket/prefix",
        )
    return Location(scheme=Scheme(scheme), bucket=authority, path=path.strip("/"))


def _parse_path(path: str) -> Location:
    if not path.strip() or "\0" in path:
        raise ConfigError("the location is empty", fix="give a path or s3://bucket/prefix")
    half = _HALF_SCHEME.match(path)
    if half is not None:
        raise ConfigError(
            "the location looks like a URI with too few slashes",
            fix=f"write {half[1].lower()}:// (or ./ before it for a path)",
        )
    return Location(scheme=Scheme.FILE, path=path.rstrip("/") or "/")


def join_uri(uri: str, *parts: str) -> str:
    """``s3://b/a`` and ``c``, ``d.json`` to ``s3://b/a/c/d.json``; the same for a path."""
    return parse_uri(uri).join(*parts).uri


def relative_key(uri: str, root: str) -> str:
    """The key of ``uri`` below ``root``.

    Raises:
        ConfigError: It does not lie below ``root``.
    """
    return parse_uri(root).relative(parse_uri(uri))
