"""A process that forks real operators which kill themselves before or after a given write (fault F1).

Forked from a process that has imported everything, an operator starts in a fraction of a second. Run as a program it
reads one JSON line for each operator to start, and answers with its pid. An operator notes every write in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import operators

from instructpt_operator import __main__ as entry
from instructpt_operator.actions import Ref


class _Silent:
    """Stands for the server of probes: many operators run at once here, and ports are few."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def start(self) -> None:
        """Nothing."""

    stop = start


def run(kubeconfig: str, namespace: str, notes: str, kill: str) -> None:
    """Be an operator until killed, by itself where ``kill`` says so: ``before:7`` is just before the seventh write."""
    entry.HealthServer = _Silent  # type: ignore[attr-defined]
    stream = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    count = 0

    def note(point: str, verb: str, ref: Ref) -> None:
        nonlocal count
        count += point == "before"
        os.write(stream, f"{point} {count} {verb} {ref.kind}/{ref.name}\n".encode())
        if kill == f"{point}:{count}":
            os.kill(os.getpid(), signal.SIGKILL)

    operator = entry.Operator(operators.settings(namespace, workers=1), kubeconfig=kubeconfig, namespace=namespace)
    executor = operator.manager.executor
    operators.hasten(operator)
    executor._before = lambda verb, ref: note("before", verb, ref)
    executor._after = lambda verb, ref: note("after", verb, ref)
    operator.start()
    operators.wait_for(lambda: operator.manager.caches.synced, seconds=600)
    Path(f"{notes}.{os.getpid()}").touch()  # what it decides from now on, it decides from full caches
    signal.pause()


def main() -> None:
    """Fork one operator for each line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            operators.die_with_parent()
            try:
                run(**asked)
            finally:
                os._exit(1)
        print(pid, flush=True)


@dataclass(frozen=True)
class Crashing:
    """A forked operator."""

    pid: int
    handle: int

    def has_ended(self) -> bool:
        """Whether it is dead."""
        return bool(select.select([self.handle], [], [], 0)[0])

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        select.select([self.handle], [], [], 30)
        os.close(self.handle)


class Forker:
    """The program above; thread-safe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._lock = process, threading.Lock()

    def start(self, kubeconfig: Path, namespace: str, notes: Path, kill: str = "") -> Crashing:
        """Start an operator."""
        asked = {"kubeconfig": str(kubeconfig), "namespace": namespace, "notes": str(notes), "kill": kill}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            pid = int(self._process.stdout.readline())
            return Crashing(pid, os.pidfd_open(pid))


@contextlib.contextmanager
def forker(log: Path) -> Iterator[Forker]:
    """Run the program; operators that are left end with it."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True,
            env=operators.environment(),
        )  # fmt: skip
    with process:
        try:
            yield Forker(process)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
