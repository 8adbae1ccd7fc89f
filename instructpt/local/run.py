"""``instructpt.run``: one object, from Python or the command line."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from instructpt.api.version import VERSION
from instructpt.errors import InstructPTError
from instructpt.local.command import DEFAULT_RUNS
from instructpt.local.executor import Executor, Outcome
from instructpt.local.folder import RunFolder, storage_locked
from instructpt.local.listener import Listener, Silent
from instructpt.local.preflight import preflight
from instructpt.local.spec_file import load_resource, parse_resource
from instructpt.plan.planner import AnyResource
from instructpt.storage import open_store


class RunFailedError(InstructPTError):
    """A run ended with a failed stage; ``outcome`` says which and why."""

    def __init__(self, outcome: Outcome) -> None:
        assert outcome.failure is not None
        self.outcome = outcome
        super().__init__(f"step {outcome.failure.step} failed: {outcome.failure.message}")


def run(
    spec: str | Path | Mapping[str, Any] | AnyResource,
    *,
    runs: Path = DEFAULT_RUNS,
    sample: int | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Run an object on this machine, or go on where an earlier run stopped.

    Args:
        spec: A file, a dictionary as it stands in YAML, or a typed object.
        runs: Folder of run folders; the run's own is ``runs/<name>``.
        sample: Stop after synthesizing pairs for so many documents; a later full run replaces them.
        listener: Is told what happens.

    Returns:
        What was planned and done; ``stopped`` when a signal ended it.

    Raises:
        ConfigError: The object is invalid.
        EnvironmentNotReadyError: Another run works in the same folder, or on the same storage.
        RunFailedError: A stage failed for good.
    """
    resource = as_resource(spec)
    preflight(resource)
    folder = RunFolder(path=runs / resource.metadata.name)
    # A suspended object writes nothing, so it needs no storage.
    storage = nullcontext() if resource.spec.suspend else storage_locked(resource.spec.storage.uri)
    with folder.locked(), storage:
        outcome = Executor(
            folder=folder,
            resource=resource,
            code_version=VERSION,
            listener=listener or Silent(),
            sample=sample,
        ).run()
        if outcome.failure is not None:
            raise RunFailedError(outcome)
        if not outcome.stopped:
            fetch_report(folder, outcome)
    return outcome


def as_resource(spec: str | Path | Mapping[str, Any] | AnyResource) -> AnyResource:
    """Any accepted form of a spec as a typed object."""
    if isinstance(spec, str | Path):
        return load_resource(Path(spec))
    if isinstance(spec, Mapping):
        return parse_resource(spec)
    return spec


def fetch_report(folder: RunFolder, outcome: Outcome) -> None:
    """Copy the report from storage into the run folder, where people look for it."""
    stage = outcome.plan.stages[-1]
    if stage.kind != "report" or stage.result is None or stage.output is None:
        return
    store = open_store(stage.result.uri, access=stage.output)
    for info in store.list():
        if info.key.startswith(("report.", "loss")) or info.key.endswith((".csv", ".html")):
            store.download(info.key, folder.path / Path(info.key).name)


def delete_run(folder: RunFolder) -> None:
    """Remove a run folder.

    Raises:
        EnvironmentNotReadyError: A run still works there.
    """
    with folder.locked():
        shutil.rmtree(folder.path)
