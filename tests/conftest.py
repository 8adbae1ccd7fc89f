"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Helpers of the tests are plain modules beside this file; --import-mode=importlib puts nothing on the path itself.
sys.path.insert(0, str(Path(__file__).parent))

import s3servers

if TYPE_CHECKING:
    from apiserver import ApiServer


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


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real API server with controllers and our CRDs, shared by all tests of this process."""
    import apiserver as control_plane
    from cluster import binaries

    if not binaries.is_ready(control_plane.NEEDED) and shutil.which("go") is None:
        pytest.skip(binaries.NO_GO)
    with control_plane.api_server(tmp_path_factory.mktemp("apiserver"), controllers=True) as server:
        server.apply_crds()
        yield server


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """A fresh namespace; it is deleted afterwards, without waiting for that."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    status, answer = apiserver.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert status == 201, answer
    yield name
    apiserver.request("DELETE", f"/api/v1/namespaces/{name}")
