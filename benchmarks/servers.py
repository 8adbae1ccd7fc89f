"""The S3 servers of the tests, for benchmarks."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import ROOT

SERVERS = ("versitygw", "rclone")


def _module() -> Any:
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("s3servers")


def describe(name: str) -> str:
    """A server with its version where it is pinned."""
    return f"versitygw {_module().VERSITYGW_VERSION}" if name == "versitygw" else name


@contextlib.contextmanager
def s3_server(name: str, scratch: Path) -> Iterator[Any]:
    """A server over an empty folder (``endpoint``, ``bucket``, ``env``); this process gets its credentials.

    Raises:
        LookupError: It cannot be built here.
    """
    # It closes the connection after every answer unless told otherwise, which S3 does not.
    options = {"options": ("--keep-alive",)} if name == "versitygw" else {}
    with getattr(_module(), name)(scratch, **options) as server:
        os.environ.update({key: value for key, value in server.env.items() if key != "AWS_ENDPOINT_URL"})
        yield server
