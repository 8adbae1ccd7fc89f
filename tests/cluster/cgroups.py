"""The cgroup that all pods of the test bed run below: by it their processes are found when nothing else is left."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from cluster.layout import CGROUP, CGROUPS

BUSY_SECONDS = 5.0


def folders() -> list[Path]:
    """The folder of the cgroup of all pods in every hierarchy: many of cgroup v1, or the one of v2."""
    return [folder / CGROUP for folder in _hierarchies()]


def make() -> None:
    """Make the cgroup of all pods."""
    for target in folders():
        folder = target.parent
        target.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # v1: empty until set, and nothing can run there
            if folder != CGROUPS and (folder / name).exists():
                (target / name).write_text((folder / name).read_text())


def processes() -> list[int]:
    """Every process of a pod, by its cgroup: whatever became of kubelet, containerd and their state."""
    pids: set[int] = set()
    for top in folders():
        for folder, _, _ in os.walk(top):  # passes over what is removed meanwhile
            with contextlib.suppress(OSError):
                pids.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    return sorted(pids - {0})


def remove() -> None:
    """Remove the cgroups, innermost first; no process is left in them.

    Raises:
        OSError: One stays in use.
    """
    for top in folders():
        deadline = time.monotonic() + BUSY_SECONDS
        while top.exists():
            try:
                for folder, _, _ in os.walk(top, topdown=False):
                    os.rmdir(folder)
            except OSError:  # busy for a moment after its last process
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    names = {line.rpartition("/")[2] for line in _mounted_cgroups()}
    return [CGROUPS / name for name in sorted(names)]


def _mounted_cgroups() -> list[str]:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [fields[1] for fields in lines if fields[2] in ("cgroup", "cgroup2") and fields[1].startswith(f"{CGROUPS}/")]
