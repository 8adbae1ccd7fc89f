"""The end of the test bed leaves nothing, however it came about, and a start says what went wrong.

Tests that end the test bed bring it up again for those that follow, and skip where somebody else brought it up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import bed as test_bed
from cluster import cgroups, network, parts, store, training_operator
from cluster.base_image import NSLOOKUP
from cluster.layout import HOST_LINK, Layout

pytestmark = pytest.mark.cluster

WARM_SECONDS = 60.0


@pytest.fixture
def own_bed(bed_was_up, bed_layout) -> Iterator[Layout]:
    if bed_was_up:
        pytest.skip("the test bed was up before: it is not ended under its user")
    yield bed_layout
    test_bed.up(bed_layout)


def run_pods(layout: Layout) -> None:
    """Pods with a mount in memory that do not end by themselves."""
    labels = {"app": "sleeper"}
    mount = {"name": "memory", "mountPath": "/dev/shm"}
    container = {"name": "main", "image": NSLOOKUP, "command": ["sleep", "600"]}
    container |= {"imagePullPolicy": "Never", "volumeMounts": [mount]}
    spec = {"containers": [container], "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}]}
    template = {"metadata": {"labels": labels}, "spec": spec}
    body = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "sleeper"}, "spec": body}
    layout.kubectl("apply", "-f", "-", stdin=json.dumps(deployment))
    layout.kubectl("rollout", "status", "deployment/sleeper", "--timeout=60s")
    assert len(cgroups.processes()) >= 4  # two sandboxes, two containers


def traces(layout: Layout) -> list[str]:
    """What is left on the machine, looked for apart from the code that removes it."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(layout.root) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text() + (process / "cgroup").read_text()
        except OSError:  # it ended meanwhile
            continue
        if str(layout.root) in line or "instructpt-bed" in line:
            found.append(line)
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    found += [line for line in spaces.splitlines() if line.startswith(("instructpt", "cni-"))]
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    found += [line for line in links.splitlines() if line.startswith((HOST_LINK, "cni0"))]
    places = (layout.root, *Path("/sys/fs/cgroup").rglob("instructpt-bed"), *Path("/var/log").glob("pods"))
    return found + [str(place) for place in places if place.exists()]


def parted(layout: Layout) -> dict[str, parts.Part]:
    return {part.name: part for part in parts.known(layout)}


def test_down_with_running_pods_leaves_nothing(own_bed):
    run_pods(own_bed)
    test_bed.down(own_bed)
    assert traces(own_bed) == []
    assert not own_bed.store_in_use.exists()


@pytest.mark.parametrize("killed", ["containerd", "kube-apiserver", "kubelet"])
def test_down_after_a_killed_part_leaves_nothing_and_up_works(own_bed, killed):
    run_pods(own_bed)
    part = parted(own_bed)[killed]
    parts.end([part], at_once=True)
    assert not part.is_alive()
    assert not test_bed.is_up(own_bed)
    test_bed.down(own_bed)
    assert traces(own_bed) == []
    test_bed.up(own_bed)
    # No container of the earlier run is in the store that is kept.
    pods = json.loads(own_bed.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    running = sum(1 + len(pod["spec"]["containers"]) for pod in pods)
    assert len(store.ctr(own_bed, "containers", "ls", "-q").split()) == running == 2


def test_a_warm_start_takes_below_a_minute(own_bed):
    test_bed.down(own_bed)
    began = time.monotonic()
    test_bed.up(own_bed)
    seconds = time.monotonic() - began
    print(f"warm start: {seconds:.1f} s")
    assert seconds < WARM_SECONDS


def test_start_that_failed_is_no_start(own_bed, monkeypatch):
    test_bed.down(own_bed)

    def fail(layout: Layout) -> None:
        raise parts.PartFailed("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(training_operator, "install", fail)
        with pytest.raises(parts.PartFailed, match="on purpose"):
            test_bed.up(own_bed)
    assert all(part.is_alive() for part in parts.known(own_bed))
    assert not test_bed.is_up(own_bed)
    said: list[str] = []
    test_bed.up(own_bed, said.append)
    assert said[0] == "a test bed that is not whole is removed first"
    assert test_bed.is_up(own_bed)


def test_killed_start_is_removed_whole(own_bed):
    test_bed.down(own_bed)
    with subprocess.Popen([sys.executable, test_bed.__file__, "up"], stdout=subprocess.PIPE, text=True) as start:
        assert start.stdout
        assert "containerd has its images" in start.stdout.readline()
        start.kill()
    assert network.processes()
    test_bed.down(own_bed)
    assert traces(own_bed) == []


def test_part_that_ends_is_told_of_with_its_last_lines(bed, tmp_path):
    layout = Layout(tmp_path)
    layout.logs.mkdir()
    layout.pids.mkdir()
    parts.start(layout, "broken", ["sh", "-c", "echo no such flag >&2; exit 3"])
    with pytest.raises(parts.PartFailed, match="broken ended") as failure:
        parts.wait_for(layout, "never", lambda: False, 30.0, "broken")
    assert "no such flag" in str(failure.value)
    assert str(layout.logs / "broken.log") in str(failure.value)


def test_stale_pid_file_ends_nobody(tmp_path):
    layout = Layout(tmp_path)
    layout.pids.mkdir()
    with subprocess.Popen(["sleep", "60"]) as other:
        stale = {"pid": other.pid, "started": "an-earlier-boot/12345"}
        (layout.pids / "kubelet.json").write_text(json.dumps(stale))
        (layout.pids / "half.json").write_text('{"pid": 1')
        (part,) = parts.known(layout)
        assert not part.is_alive()
        parts.end([part])
        assert other.poll() is None
        other.kill()
