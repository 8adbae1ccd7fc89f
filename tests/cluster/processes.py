"""Processes of pods, as the machine below sees them: a pod is killed here as the kernel kills, not by the API."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import cgroups


def main_process(pod: Mapping[str, Any], container: str) -> int:
    """Process 1 of a container that runs, by its id on this machine.

    Raises:
        LookupError: The container does not run here.
    """
    statuses = pod.get("status", {}).get("containerStatuses", ())
    ids = [s["containerID"].rpartition("/")[2] for s in statuses if s["name"] == container and "containerID" in s]
    for pid in of_container(ids[0]) if ids else ():
        with contextlib.suppress(OSError):
            # Its ids from the outermost namespace to its own: in its own it is number 1.
            numbers = next(line for line in _status(pid) if line.startswith("NSpid:")).split()[1:]
            if numbers[-1] == "1":
                return pid
    raise LookupError(f"container {container} of pod {pod['metadata']['name']} has no process here")


def of_container(container_id: str) -> list[int]:
    """Every process below the cgroup of a container."""
    pids: set[int] = set()
    for top in cgroups.folders():
        for folder, _, _ in os.walk(top):
            if container_id in folder:
                with contextlib.suppress(OSError):
                    pids.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    return sorted(pids - {0})


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still, and let it go on unless it was killed meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """SIGKILL, as the kernel sends it where memory is short; with process 1 its whole container is gone."""
    os.kill(pid, signal.SIGKILL)


def _status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()
