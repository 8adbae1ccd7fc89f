"""A real one-node Kubernetes for tests, in a network namespace of its own: ``python tests/cluster/bed.py up``.

``up`` on a running test bed only checks it. ``down`` removes every trace but the cache, whatever state it finds.
docs/contributor-guides/test-bed.md tells more.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# As a script this file alone is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import (
    base_image,
    binaries,
    cgroups,
    controlplane,
    network,
    node,
    packages,
    parts,
    pki,
    s3,
    store,
    training_operator,
)
from cluster.layout import NODE, S3_ENDPOINT, Layout, current, run
from cluster.parts import PartFailed

PARTS = (
    "containerd",
    "coredns",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
    "kwok",
    "versitygw",
)
MIB = 2**20


def up(layout: Layout, say: Callable[[str], None] = print) -> None:
    """Bring the test bed up; where it runs already, check it and say so.

    Raises:
        PartFailed: A part did not start; what there is stays, for its logs.
        LookupError: Something that it needs is missing on this machine.
    """
    with _alone():
        if is_up(layout):
            say(f"the test bed is up already: {layout.kubeconfig}")
            return
        reason = packages.why_not()
        if reason:
            raise LookupError(reason)
        binaries.build([*(name for name in PARTS if name in binaries.PROGRAMS), "kubectl", "training-operator.v1"])
        if _traces(layout):
            say("a test bed that is not whole is removed first")
            _down(layout)
        start = time.monotonic()

        def told(what: str) -> None:
            say(f"{time.monotonic() - start:5.1f} s  {what}")

        _start(layout, told)
        say(f"node {NODE} with {memory_bytes(layout) // MIB} MiB resident in {len(PARTS)} processes")
        say(f"kubeconfig {layout.kubeconfig}; S3 at {S3_ENDPOINT}, credentials in {layout.s3_credentials}")


def _start(layout: Layout, told: Callable[[str], None]) -> None:
    for folder in (layout.root, layout.logs, layout.pids):
        folder.mkdir(mode=0o755)
    network.up()
    if layout.store_in_use.exists():
        node.clean_store(layout)
        parts.end(part for part in parts.known(layout) if part.name == "containerd")
        told("the store of containerd is clean again")
    pki.make(layout)
    controlplane.start_api(layout)
    s3.start(layout)
    node.start_containerd(layout)
    for archive in base_image.archives().values():
        store.load_image(archive, layout=layout)
    told("containerd has its images")
    controlplane.wait_for_api(layout)
    told("the API server is ready")
    controlplane.start_controllers(layout)
    node.start_kubelet(layout)
    node.start_helpers(layout)
    training_operator.install(layout)
    s3.wait_for(layout)
    node.wait_for_node(layout)
    told("the node is ready")
    training_operator.wait_for(layout)
    parts.require_alive(layout)
    layout.complete.touch()
    told("the training operator is ready")


def down(layout: Layout) -> None:
    """Remove everything but the cache, also after a start that failed, a part that died, or a reboot."""
    with _alone():
        _down(layout)


def _down(layout: Layout) -> None:
    running = {part.name: part for part in parts.known(layout) if part.is_alive()}
    containerd = running.pop("containerd", None)
    # The kubelet first: it would start again what ends.
    parts.end(running[name] for name in ("kubelet", "kube-controller-manager") if name in running)
    parts.end_pids(cgroups.processes)
    if containerd:
        with suppress(RuntimeError):  # what is left then is removed at the next start
            store.remove_containers(layout)
            shutil.rmtree(layout.store / "io.containerd.grpc.v1.cri", ignore_errors=True)
            layout.store_in_use.unlink(missing_ok=True)
        parts.end([containerd])
    parts.end(running.values(), at_once=True)
    parts.end_pids(network.processes)
    for point in _mounts(layout):
        run(["umount", "-l", point])
    network.down()
    cgroups.remove()
    node.remove_places()
    shutil.rmtree(layout.root, ignore_errors=True)
    left = _traces(layout)
    if left:
        raise PartFailed(f"not all is removed: {', '.join(left)}")


def is_up(layout: Layout) -> bool:
    """Whether all of it was ready once, every part lives, and the API server says that it is ready."""
    if not layout.complete.exists():
        return False
    alive = {part.name for part in parts.known(layout) if part.is_alive()}
    return alive.issuperset(PARTS) and controlplane.is_ready(layout)


def memory_bytes(layout: Layout) -> int:
    """Resident memory of all parts together; pods are not in it."""
    return sum(part.resident_bytes() for part in parts.known(layout) if part.is_alive())


def status(layout: Layout) -> Iterator[str]:
    """A line for each part, and one for all."""
    known = {part.name: part for part in parts.known(layout)}
    for name in PARTS:
        part = known.get(name)
        if part and part.is_alive():
            yield f"{name:26} pid {part.pid:<8} {part.resident_bytes() // MIB:5} MiB"
        else:
            yield f"{name:26} not running{' (it ended)' if part else ''}"
    state = "up" if is_up(layout) else "not up"
    yield f"{state}: {memory_bytes(layout) // MIB} MiB; kubeconfig {layout.kubeconfig}"


def _traces(layout: Layout) -> list[str]:
    """What is there of a test bed, whole or not."""
    found = [f"process {pid}" for pid in {*network.processes(), *cgroups.processes()}]
    found += [f"mount {point}" for point in _mounts(layout)]
    paths = (layout.root, network.NETNS_FILE, network.HOST_LINK_FOLDER, *cgroups.folders())
    return found + [str(path) for path in paths if path.exists()]


def _mounts(layout: Layout) -> list[str]:
    """Everything that is mounted below the state of this run, innermost first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{layout.root}/")), key=len, reverse=True)


@contextmanager
def _alone() -> Iterator[None]:
    """One start or end at a time on this machine."""
    folder = binaries.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".bed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down", "status", "kubeconfig"))
    action = parser.parse_args(argv).action
    layout = current()
    start = time.monotonic()
    try:
        if action == "up":
            up(layout, lambda line: print(line, flush=True))
        elif action == "down":
            down(layout)
            print(
                f"the test bed is down ({time.monotonic() - start:.1f} s); the cache stays: {binaries.cache_folder()}"
            )
        elif action == "status":
            print("\n".join(status(layout)))
            return 0 if is_up(layout) else 1
        else:
            print(layout.kubeconfig)
    except (LookupError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
