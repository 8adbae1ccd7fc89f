"""Objects in a folder, on S3 or in memory, behind one small protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from instructpt.errors import NotFoundError
from instructpt.storage.ahead import map_ahead, open_all
from instructpt.storage.base import ObjectInfo, Store
from instructpt.storage.credentials import Target, describe_credentials
from instructpt.storage.filesystem import FilesystemStore, write_atomically
from instructpt.storage.memory import MemoryStore
from instructpt.storage.s3 import S3Store
from instructpt.storage.url import Location, Scheme, has_glob, join_uri, parse_uri, relative_key

if TYPE_CHECKING:
    from instructpt.api.base import Access

__all__ = [
    "FilesystemStore",
    "Location",
    "MemoryStore",
    "ObjectInfo",
    "S3Store",
    "Scheme",
    "Store",
    "describe_access",
    "expand_uri",
    "has_glob",
    "join_uri",
    "map_ahead",
    "open_all",
    "open_store",
    "parse_uri",
    "relative_key",
    "split_uri",
    "write_atomically",
]


def open_store(uri: str, *, access: Access | None = None) -> Store:
    """The store whose root is ``uri``. Makes no request: errors of the location come with the first one.

    Args:
        uri: A folder, ``file:///folder``, ``s3://bucket/prefix`` or ``memory://name/prefix``.
        access: Endpoint, region and name of the credentials; read for ``s3://`` only.

    Raises:
        ConfigError: The URI cannot be parsed or holds credentials.
    """
    return _open(parse_uri(uri), access)


def _open(location: Location, access: Access | None) -> Store:
    if location.scheme is Scheme.S3:
        return S3Store(location, _target(access))
    if location.scheme is Scheme.MEMORY:
        return MemoryStore(location.uri)
    return FilesystemStore(location.path)


def _target(access: Access | None) -> Target:
    if access is None:
        return Target()
    secret = access.secret_ref.name if access.secret_ref else None
    return Target(endpoint=access.endpoint or None, region=access.region or None, secret=secret)


def describe_access(uri: str, *, access: Access | None = None) -> str:
    """Where the credentials for ``uri`` come from, in one phrase without a secret; empty for a folder."""
    return describe_credentials(_target(access)) if parse_uri(uri).scheme is Scheme.S3 else ""


def split_uri(uri: str, *, access: Access | None = None) -> tuple[Store, str]:
    """The store of the folder that holds ``uri``, and the key in it. Pure but for opening the store.

    ``data/a.jsonl`` gives (``data``, ``a.jsonl``); ``s3://b/x/*.gz`` gives (``s3://b/x``, ``*.gz``);
    ``s3://b`` gives (``s3://b``, ""). A folder such as ``data/raw`` gives (``data``, ``raw``): only a look at the
    storage tells it from a file, see :func:`expand_uri`.

    Raises:
        ConfigError: The URI cannot be parsed or holds credentials.
    """
    folder, key = parse_uri(uri).split()
    return _open(folder, access), key


def expand_uri(uri: str, *, access: Access | None = None) -> tuple[Store, Iterator[ObjectInfo]]:
    """The objects that an input URI names: one file, everything below a folder, or what a glob matches.

    Args:
        uri: In globs ``*`` and ``?`` stop at ``/``, and ``**/`` stands for any number of folders.
        access: As for :func:`open_store`.

    Returns:
        The store and its objects in ascending key order; the keys are relative to that store. In a folder,
        names with a segment that starts with ``.`` are passed over.

    Raises:
        NotFoundError: Nothing matches.
        ConfigError: The URI cannot be parsed or holds credentials.
    """
    store, key = split_uri(uri, access=access)
    if key and not has_glob(key) and not uri.endswith("/") and store.exists(key):
        return store, iter([store.head(key)])
    if has_glob(key):
        fixed = re.split(r"[*?\[]", key, maxsplit=1)[0]
        pattern = _glob_pattern(key)
        found = (info for info in store.list(fixed) if pattern.match(info.key))
    else:
        store = open_store(uri, access=access)
        found = (info for info in store.list() if not re.search(r"(^|/)\.", info.key))
    first = next(found, None)
    if first is None:
        raise NotFoundError(
            f"nothing is at {uri}", fix="give a file, a folder with files in it, or a glob that matches"
        )
    return store, _chain(first, found)


def _chain(first: ObjectInfo, rest: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
    yield first
    yield from rest


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """A pattern over whole keys."""
    out = ""
    for piece in re.split(r"(\*\*/|\*|\?|\[[^\]/]+\])", glob):
        if piece == "**/":
            out += "(?:[^/]+/)*"
        elif piece == "*":
            out += "[^/]*"
        elif piece == "?":
            out += "[^/]"
        elif piece.startswith("[") and piece.endswith("]"):
            inner = piece[1:-1].replace("\\", r"\\")
            out += f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        else:
            out += re.escape(piece)
    return re.compile(out + r"\Z", re.DOTALL)
