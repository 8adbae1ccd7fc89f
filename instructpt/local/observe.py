"""Run folder -> Observation: what a status is judged on."""

from __future__ import annotations

from typing import Any

from instructpt.local.executor import EXIT_CONFIG
from instructpt.local.folder import RunFolder
from instructpt.local.process import fetch_progress
from instructpt.plan.progress import merge_progress
from instructpt.plan.status import Observation, StageObservation


def observe_run(folder: RunFolder) -> Observation:
    """What the run folder and the live workers tell."""
    active = folder.running_pid() is not None
    stages = {}
    for step, state in folder.states().items():
        error = state.error or {}
        running = active and state.result is None and not error
        stages[step] = StageObservation(
            running=running,
            attempts=state.attempts,
            error=error.get("message"),
            is_config=error.get("exit_code") == EXIT_CONFIG,
            figures=_figures(folder, step) if running else None,
        )
    return Observation(stages=stages, active=active)


def live_workers(folder: RunFolder) -> dict[str, str]:
    """Task and replica -> base URL of each worker that answers."""
    found = {}
    for port_file in sorted((folder.path / "tasks").glob("*/*.port")):
        port = int(port_file.read_text())
        if fetch_progress(port) is not None:
            found[f"{port_file.parent.name}/{port_file.stem}"] = f"http://127.0.0.1:{port}"
    return found


def _figures(folder: RunFolder, step: str) -> dict[str, Any] | None:
    figures = [
        f
        for p in sorted((folder.path / "tasks" / step).glob("*.port"))
        if (f := fetch_progress(int(p.read_text()))) is not None
    ]
    return merge_progress(figures) if figures else None
