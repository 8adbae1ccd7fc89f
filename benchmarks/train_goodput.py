"""Goodput of a training whose ranks are killed: the time of the steps that count, over the time that passed.

The whole is `instructpt run` on a TrainingJob of two ranks, as a user starts it; a rank is killed by its process id
with SIGKILL every so many seconds. A step counts once: one that is done again after a restart is loss, as are
detection, start and load. Each restart is taken apart by the moments at which its log lines and processes appear.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.02
EACH = 20
_STEP = re.compile(r"\bstep +(\d+)/(\d+) ")
_MARKS = {
    "resuming": re.compile(r"resuming after step"),
    "engine": re.compile(r"DeepSpeed: ZeRO"),
}


@dataclass(slots=True)
class Restart:
    """Moments of one restart, in seconds since the kill.

    Attributes:
        step: Last step that was told of before the kill.
        resumed: Step after which the new life went on.
    """

    step: int
    at: dict[str, float] = field(default_factory=dict)
    resumed: int | None = None

    def parts(self, step_seconds: float) -> dict[str, float]:
        """What the restart took, in order; they add up to the time from the kill to the end of the first new step."""
        names = ("gone", "started", "resuming", "engine", "first_step")
        found = [self.at[name] for name in names]
        spans = [b - a for a, b in zip([0.0, *found[:-1]], found, strict=True)]
        spans[-1] = max(0.0, spans[-1] - step_seconds)
        titles = ("detection", "next_worker", "fetch_and_verify", "ranks_and_engine", "load")
        return {f"{t}_seconds": round(s, 3) for t, s in zip(titles, spans, strict=True)}


def job(folder: Path, *, steps: int, text: Path, rows: int = 16, length: int = 256, every: int = 5) -> dict[str, Any]:
    """A TrainingJob of about so many steps."""
    return {
        "apiVersion": "instructpt.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "goodput"},
        "spec": {
            "storage": {"uri": str(folder / "out")},
            "init": {"config": {
                "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
                "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512,
                "tie_word_embeddings": True,
            }},
            "tokenizer": {"train": {"vocabSize": 4096}},
            "mixture": [{"uri": str(text), "format": "jsonl", "maxRepeats": 1000}],
            "tokens": steps * rows * length,
            "sequenceLength": length,
            "globalBatchRows": rows,
            "microBatchRows": rows // 2,
            "processesPerNode": 2,
            "schedule": {"name": "constant", "warmupFraction": 0},
            "checkpoint": {"everySteps": every, "keep": 2},
            "backoffLimit": 100,
            "seed": 11,
        },
    }  # fmt: skip


class Watched:
    """A run with its worker's log read as it grows, and its processes looked at."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.folder = folder
        (folder / "job.yaml").write_text(json.dumps(spec))
        self._log = folder / "log"
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "instructpt", "run", "job.yaml"], cwd=folder, env=environ,
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._read = 0
        self.first = self.last = 0.0
        self.step = self.steps = 0
        self.restarts: list[Restart] = []
        self._killed_at = 0.0
        self._worker = 0

    def poll(self) -> None:
        """Take in what has been written since."""
        now = time.monotonic()
        restart = self.restarts[-1] if self.restarts and "first_step" not in self.restarts[-1].at else None
        if restart is not None:
            self._look(restart, now)
        for path in self.folder.glob("runs/*/tasks/train/0.log"):
            with path.open("rb") as stream:
                stream.seek(self._read)
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                self._take(line, now, restart)

    def _take(self, line: str, now: float, restart: Restart | None) -> None:
        if restart is not None:
            for name, pattern in _MARKS.items():
                if pattern.search(line) and "started" in restart.at:
                    restart.at.setdefault(name, now - self._killed_at)
        found = _STEP.search(line)
        if found is None:
            return
        step = int(found[1])
        if restart is not None and "engine" in restart.at and "first_step" not in restart.at:
            restart.at["first_step"] = now - self._killed_at
            restart.resumed = step - 1
        self.step, self.steps, self.last = step, int(found[2]), now
        self.first = self.first or now

    def _look(self, restart: Restart, now: float) -> None:
        """When the worker was gone, and the next one there."""
        worker = self._find_worker()
        if "gone" not in restart.at and worker != self._worker:
            restart.at["gone"] = now - self._killed_at
        if "gone" in restart.at and "started" not in restart.at and worker:
            restart.at["started"] = now - self._killed_at

    def _find_worker(self) -> int:
        return next((pid for pid in children(self.process.pid) if " worker train " in command(pid)), 0)

    def kill_a_rank(self) -> None:
        """SIGKILL to the second rank."""
        self._worker = self._find_worker()
        launchers = children(self._worker)
        ranks = [pid for launcher in launchers for pid in children(launcher) if "training.rank" in command(pid)]
        self.restarts.append(Restart(step=self.step))
        self._killed_at = time.monotonic()
        os.kill(ranks[-1], signal.SIGKILL)

    @property
    def recovered(self) -> bool:
        """Whether the last restart is over."""
        return not self.restarts or "first_step" in self.restarts[-1].at


def children(pid: int) -> list[int]:
    """Of a process, by id."""
    with contextlib.suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command(pid: int) -> str:
    """Command line of a process; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


def measure(folder: Path, text: Path, *, steps: int, period: float | None, seconds: float) -> dict[str, Any]:
    """One run: a kill in the middle of every period, until its end or until the time is over.

    Args:
        folder: New, for everything that is written.
        text: jsonl file to train on.
        steps: Of the whole training.
        period: Seconds between kills; None for none.
        seconds: After the first step; then the run is stopped, and keeps a checkpoint.
    """
    folder.mkdir(parents=True)
    run = Watched(folder, job(folder, steps=steps, text=text))
    stopped = False
    while run.process.poll() is None:
        run.poll()
        since = time.monotonic() - run.first if run.first else 0.0
        due = period is not None and since >= period * (len(run.restarts) + 0.5)
        if due and run.recovered and not stopped:
            run.kill_a_rank()
        if since > seconds and run.recovered and not stopped:
            stopped = True
            run.process.send_signal(signal.SIGINT)
        time.sleep(POLL_SECONDS)
    run.poll()
    return figures(run, period)


def figures(run: Watched, period: float | None) -> dict[str, Any]:
    """Of a run that has ended; restarts as their means."""
    lines, losses = records(run.folder / "out")
    seconds = [float(line["seconds"]) for line in lines]
    typical = statistics.median(seconds)
    restarts = [
        {
            **restart.parts(typical),
            "restart_seconds": round(restart.at["first_step"] - typical, 3),
            "lost_steps": max(0, restart.step - (restart.resumed or 0)),
        }
        for restart in run.restarts
        if "first_step" in restart.at
    ]
    means = {name: round(statistics.mean(r[name] for r in restarts), 3) for name in (restarts[0] if restarts else ())}
    # The first steps after a start are slow: what they take beyond others is loss.
    return {
        "period_seconds": period,
        "steps": len(lines),
        "useful_seconds": round(min(sum(seconds), len(seconds) * typical), 3),
        "wall_seconds": round(run.last - run.first + seconds[0], 3),
        "step_seconds": round(typical, 4),
        "kills": len(restarts),
        **means,
        "final_loss": losses[-1],
        "loss_digests": " ".join(digests(losses)),
    }


def digests(losses: Sequence[float]) -> list[str]:
    """A hash of all losses up to every twentieth step: two runs that agree there agreed in every step before."""
    ends = range(EACH, len(losses) + 1, EACH)
    return [hashlib.sha256(json.dumps(losses[:end]).encode()).hexdigest()[:8] for end in ends]


def differing(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each run that was killed: how many digests differ from those of the undisturbed one."""
    told = [(str(run["group"]), str(run["loss_digests"]).split()) for run in runs if "loss_digests" in run]
    whole = next((found for group, found in told if group == "undisturbed"), None)
    if whole is None:
        return []
    others = [found for group, found in told if group != "undisturbed"]
    return [float(sum(a != b for a, b in zip(found, whole, strict=False))) for found in others]


def records(output: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Throughput and losses of the steps that count: of the export, else of the last checkpoint."""
    folder = output
    if not (output / "metrics.jsonl").exists():
        step = json.loads((output / "checkpoints" / "LATEST").read_text())["step"]
        folder = next((output / "checkpoints" / f"step-{step}").glob("*/metrics.jsonl")).parent
    lines = [json.loads(line) for line in (folder / "throughput.jsonl").read_text().splitlines()]
    return lines, [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
