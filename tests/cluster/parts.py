"""Processes of the test bed: start them in its namespace, know them again, end them by id.

A process is known by its id and its start time, so an id that another process has taken meanwhile is never ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import network
from cluster.layout import Layout

PAGE = os.sysconf("SC_PAGE_SIZE")
END_SECONDS = 5.0


class PartFailed(RuntimeError):
    """A part ended or did not become ready; the message has its last lines and where its log lies."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process as its pid file tells of it."""

    name: str
    pid: int
    started: str

    def is_alive(self) -> bool:
        """Whether exactly this process runs still."""
        return self.pid > 0 and _start_time(self.pid) == self.started

    def resident_bytes(self) -> int:
        """Memory that it holds now."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE
        except OSError:
            return 0


def start(layout: Layout, name: str, argv: Iterable[str], env: Mapping[str, str] | None = None) -> Part:
    """Start a part inside the namespace; it outlives this process."""
    with (layout.logs / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            network.enter(list(argv)),
            env={**os.environ, **(env or {})},
            cwd=layout.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = _start_time(process.pid) or ""
    process.returncode = 0  # not ours to wait for: it shall outlive this process, and Popen would warn
    part = Part(name, process.pid, started)
    file = layout.pids / f"{name}.json"
    file.write_text(json.dumps({"pid": part.pid, "started": part.started}))
    return part


def known(layout: Layout) -> list[Part]:
    """Every part that a pid file tells of, alive or not."""
    parts = []
    for file in sorted(layout.pids.glob("*.json")):
        try:
            content = json.loads(file.read_text())
            parts.append(Part(file.stem, int(content["pid"]), str(content["started"])))
        except (ValueError, KeyError):  # a start that was killed left half a file
            continue
    return parts


def require_alive(layout: Layout) -> None:
    """Check that no part has ended.

    Raises:
        PartFailed: One has.
    """
    for part in known(layout):
        if not part.is_alive():
            raise PartFailed(f"{part.name} ended\n{tail(layout, part.name)}")


def wait_for(layout: Layout, what: str, check: Callable[[], bool], seconds: float, log: str) -> None:
    """Poll a condition until it holds; a part that ends meanwhile ends the wait.

    Raises:
        PartFailed: A part ended, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while not check():
        require_alive(layout)
        if time.monotonic() > deadline:
            raise PartFailed(f"{what}: not within {seconds:.0f} s\n{tail(layout, log)}")
        time.sleep(0.1)


def tail(layout: Layout, name: str, lines: int = 12) -> str:
    """The last lines of a part's log, and where the log lies."""
    path = layout.logs / f"{name}.log"
    text = path.read_text(errors="replace") if path.exists() else ""
    last = "\n".join(f"  {line[:400]}" for line in text.splitlines()[-lines:])
    return f"{last}\n  (all of it: {path})"


def end(parts: Iterable[Part], *, at_once: bool = False) -> None:
    """End these processes: ask first, then force."""
    left = [part for part in parts if part.is_alive()]
    for sign in (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL):
        for part in left:
            _signal(part.pid, sign)
        deadline = time.monotonic() + END_SECONDS
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = [part for part in left if part.is_alive()]


def end_pids(find: Callable[[], list[int]]) -> None:
    """Force every process that ``find`` names to end, until it names none."""
    deadline = time.monotonic() + 2 * END_SECONDS
    while found := find():
        for pid in found:
            _signal(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise PartFailed(f"processes {found} do not end")
        time.sleep(0.05)


def _signal(pid: int, sign: signal.Signals) -> None:
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return
    try:
        # A part that this very process started would stay a zombie until it is waited for.
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _start_time(pid: int) -> str | None:
    """When the process started, in ticks since boot, with the boot's id; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return f"{boot}/{fields[19]}"
