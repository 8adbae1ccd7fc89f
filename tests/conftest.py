"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Helpers of the tests are plain modules beside this file; --import-mode=importlib puts nothing on the path itself.
sys.path.insert(0, str(Path(__file__).parent))

import s3servers


@pytest.fixture(scope="session")
def s3_versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3servers.S3Server]:
    """A real S3 server that honours ``If-None-Match``."""
    if s3servers.versitygw_binary() is None:
        pytest.skip(s3servers.NO_GO)
    with s3servers.versitygw(tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3servers.S3Server]:
    """A real S3 server that accepts ``If-None-Match`` and ignores it."""
    with s3servers.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server
