"""The control plane that other tests stand on: it can be restarted, its controllers work, it ends with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

TESTS = Path(__file__).resolve().parents[2]
OWNER = """
import sys, time, pathlib
sys.path.insert(0, sys.argv[1])
import apiserver
with apiserver.api_server(pathlib.Path(sys.argv[2]), controllers=True) as server:
    print(*server.pids.values(), flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(holds, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_outlives_its_owner_even_if_that_is_killed(apiserver: ApiServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(TESTS), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_control_plane_keeps_its_objects_over_a_restart(apiserver: ApiServer, tmp_path: Path) -> None:
    import apiserver as control_plane

    with control_plane.api_server(tmp_path) as server:
        code, _ = server.request("POST", "/api/v1/namespaces", {"metadata": {"name": "kept"}})
        assert code == 201
        url = server.url
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            server.request("GET", "/readyz")
        server.restart_apiserver()
        assert server.url == url
        assert server.request("GET", "/api/v1/namespaces/kept")[0] == 200


def test_controllers_run_jobs_and_collect_garbage(apiserver: ApiServer, namespace: str) -> None:
    job = {
        "metadata": {"name": "j"},
        "spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example.com/none"}]}}
        },
    }
    jobs, pods = f"/apis/batch/v1/namespaces/{namespace}/jobs", f"/api/v1/namespaces/{namespace}/pods"
    assert apiserver.request("POST", jobs, job)[0] == 201
    until(lambda: len(apiserver.request("GET", pods)[1]["items"]) == 1)
    assert apiserver.request("GET", pods)[1]["items"][0]["status"]["phase"] == "Pending"
    assert apiserver.request("DELETE", f"{jobs}/j", {"propagationPolicy": "Background"})[0] == 200
    until(lambda: not apiserver.request("GET", pods)[1]["items"])
