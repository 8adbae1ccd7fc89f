"""Where the test bed keeps things, and the names and addresses that its parts agree on."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries

NETNS = "instructpt"
HOST_LINK = "ipt-host"
NODE_LINK = "ipt-node"
HOST_ADDRESS = "10.231.0.1"
NODE_ADDRESS = "10.231.0.2"
PREFIX = 30
POD_RANGE = "10.244.0.0/16"
NODE_POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"

NODE = "node-0"
# Real and fake nodes are told apart by this label.
NODE_LABEL = "instructpt.dev/bed-node"
API_URL = f"https://{NODE_ADDRESS}:6443"
S3_PORT = 9000
S3_ENDPOINT = f"http://{NODE_ADDRESS}:{S3_PORT}"
# All pods run below this cgroup, so `down` finds their processes whatever became of their runtime.
CGROUP = "instructpt-bed"
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one test bed: what belongs to a run, and what stays in the cache between runs."""

    root: Path

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def pids(self) -> Path:
        return self.root / "pid"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def kubelet_kubeconfig(self) -> Path:
        return self.root / "kubelet.kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def complete(self) -> Path:
        """There once all of it was ready; a start that ended early left none."""
        return self.root / "complete"

    @property
    def s3_credentials(self) -> Path:
        return self.root / "s3.env"

    @property
    def s3_data(self) -> Path:
        return self.root / "s3"

    @property
    def containerd(self) -> Path:
        """Sockets and state of containerd: of this run alone."""
        return self.root / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.containerd / "containerd.sock"

    @property
    def store(self) -> Path:
        """Content and snapshots of containerd: large, and kept between runs."""
        return binaries.cache_folder() / "containerd"

    @property
    def store_in_use(self) -> Path:
        """There while containers may be recorded in the store: from the start of containerd until a clean end."""
        return binaries.cache_folder() / "containerd.in-use"

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 120.0) -> str:
        """Run kubectl against this cluster.

        Raises:
            RuntimeError: kubectl failed; its message is in the error.
        """
        argv = [str(binaries.path("kubectl")), f"--kubeconfig={self.kubeconfig}", *args]
        return run(argv, stdin=stdin, timeout=timeout)


def current() -> Layout:
    """The test bed of this machine; its path is short, for sockets lie in it."""
    return Layout(Path(os.environ.get("INSTRUCTPT_BED") or "/tmp/instructpt-bed"))


def run(argv: list[str], *, stdin: str | None = None, timeout: float = 120.0) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        RuntimeError: It failed; its output is in the error.
    """
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(argv[:6])} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.stdout
