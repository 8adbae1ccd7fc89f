"""F6 with whole operators as processes of their own: a leader that is frozen, and one that is cut off from the API."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invariants
import operators
import pytest
import yaml
from history import History
from player import End, Player

from instructpt.plan.naming import LABEL_TASK, TASK_WORK
from instructpt_operator.runtime.client import ApiError, KubeClient
from instructpt_operator.runtime.lease import LEASES
from instructpt_operator.types import JOBS

if TYPE_CHECKING:
    from apiserver import ApiServer

pytestmark = pytest.mark.cluster

LEASE = {"enabled": True, "durationSeconds": 4, "renewDeadlineSeconds": 3.0, "retrySeconds": 0.5}
SYN = operators.synthesis("syn")


def waits(labels: Mapping[str, str], number: int) -> End:
    """Workers run until they are released."""
    return End(wait=labels[LABEL_TASK] == TASK_WORK)


class Line:
    """Passes bytes on to the API server until it is cut: then nothing comes through, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._to, self._cut = port, threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """From now on."""
        self._cut.set()

    def close(self) -> None:
        """Hang up on everybody."""
        self._cut.set()
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                if self._cut.is_set():
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets.append(far)
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := one.recv(65536)) and not self._cut.is_set():
                other.sendall(data)
            if not self._cut.is_set():
                other.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(pytorchjobs: ApiServer) -> Iterator[Line]:
    made = Line(int(pytorchjobs.url.rsplit(":", 1)[1]))
    yield made
    made.close()


@pytest.fixture
def pair(
    pytorchjobs: ApiServer, kube: KubeClient, namespace: str, tmp_path: Path, line: Line
) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A leader that speaks through the line, and a candidate that does not."""
    config = yaml.safe_load(pytorchjobs.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{line.port}"
    through = tmp_path / "kubeconfig"
    through.write_text(yaml.safe_dump(config))
    made: list[subprocess.Popen[bytes]] = []
    try:
        for name, kubeconfig in (("first", through), ("second", pytorchjobs.kubeconfig)):
            settings = operators.config_file(tmp_path, namespace, lease=LEASE)
            made.append(operators.spawn(kubeconfig, settings, tmp_path / f"{name}.log", namespace))
            operators.wait_for(lambda: holder(kube, namespace), otherwise=(tmp_path / f"{name}.log").read_text)
        yield made[0], made[1]
    finally:
        for process in made:
            process.kill()
            process.wait()


def holder(kube: KubeClient, namespace: str) -> str:
    try:
        return str(kube.get(LEASES, namespace, "instructpt-operator")["spec"].get("holderIdentity") or "")
    except ApiError as error:
        if error.status == 404:
            return ""
        raise


def handed_over(kube: KubeClient, namespace: str, before: str) -> None:
    """Wait until another process leads."""
    operators.wait_for(lambda: holder(kube, namespace) not in ("", before), seconds=20, otherwise="no other leader")


def completes(kube: KubeClient, namespace: str, player: Player) -> None:
    """What the first leader began is the second one's to end: nothing was lost, made twice or counted."""
    player.release("synthesis")
    done = operators.wait_condition(kube, namespace, SYN, "Complete", seconds=90)
    assert (done["status"]["attempt"], done["status"]["restarts"]) == (1, 0)


def test_f6_frozen_leader_writes_nothing_once_it_goes_on(
    kube: KubeClient, namespace: str, recorded: History, tmp_path: Path,
    pair: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    """It wakes to a cluster without a leader and with work to do, and must not touch it: its lease is over."""
    first, second = pair
    with Player(kube, namespace, waits) as player:
        operators.create(kube, namespace, SYN)
        operators.wait_condition(kube, namespace, SYN, "Running")
        leader = holder(kube, namespace)
        first.send_signal(signal.SIGSTOP)
        handed_over(kube, namespace, leader)
        completes(kube, namespace, player)
        operators.kill(second)
        late = operators.create(kube, namespace, operators.synthesis("late"))
        first.send_signal(signal.SIGCONT)
        assert first.wait(15) == 1
    now = operators.get(kube, namespace, late)
    assert now is not None
    assert now["metadata"]["resourceVersion"] == late["metadata"]["resourceVersion"]
    assert [j["metadata"]["name"] for j in kube.list(JOBS, namespace) if j["metadata"]["name"].startswith("late")] == []
    invariants.check(recorded, namespace)
    assert "Traceback" not in (tmp_path / "second.log").read_text()


def test_f6_leader_that_is_cut_off_ends_itself_and_is_followed(
    kube: KubeClient, namespace: str, recorded: History, line: Line, tmp_path: Path,
    pair: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
) -> None:  # fmt: skip
    first, second = pair
    with Player(kube, namespace, waits) as player:
        operators.create(kube, namespace, SYN)
        operators.wait_condition(kube, namespace, SYN, "Running")
        leader = holder(kube, namespace)
        line.cut()
        assert first.wait(15) == 1
        handed_over(kube, namespace, leader)
        completes(kube, namespace, player)
    assert second.poll() is None
    invariants.check(recorded, namespace)
    assert "Traceback" not in (tmp_path / "second.log").read_text()
    created: dict[str, Any] = recorded.created(namespace)
    assert created.keys() == {"Job/syn-synthesis-1", "Job/syn-synthesis-finalize-1"}
