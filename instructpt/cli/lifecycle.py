"""Verbs that start, watch and end runs: run, status, logs, stop, delete, dashboard, requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructpt.api.version import VERSION
from instructpt.cli.console import Output, command, duration, emit, is_interactive, out, size, talk
from instructpt.cli.panel import Panel, figures_text
from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.local.command import DEFAULT_RUNS
from instructpt.local.folder import RunFolder, storage_folder
from instructpt.local.observe import live_workers, observe_run
from instructpt.local.run import RunFailedError, delete_run
from instructpt.local.run import run as run_resource
from instructpt.local.spec_file import load_resource
from instructpt.plan import Plan, plan_resource
from instructpt.plan.planner import AnyResource
from instructpt.plan.status import Judged, judge

if TYPE_CHECKING:
    from instructpt.storage import Store

RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the run, or the path of its folder.")]


def run(
    file: Annotated[Path, typer.Argument(help="YAML file with one object.")],
    runs: RunsOption = DEFAULT_RUNS,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Stop after pairs for so many documents, and judge their quality.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Run an object on this machine, or go on where an earlier run stopped."""
    resource = load_resource(file)
    name = resource.metadata.name
    if detach:
        _detach(resource, runs, sample)
        return
    again = command("run", str(file), *_sampled(sample), runs=runs)
    panel = Panel()
    try:
        outcome = run_resource(resource, runs=runs, sample=sample, listener=panel)
    except RunFailedError as error:
        panel.close()
        _explain_failure(error, runs / name, again)
        raise typer.Exit(1) from error
    finally:
        panel.close()
    if outcome.stopped:
        if resource.spec.suspend:
            talk.print(f"{resource.kind} {name} is suspended (spec.suspend is true).")
            return
        talk.print(f"Stopped cleanly, nothing lost. Go on: {again}", markup=False)
        raise typer.Exit(130)
    _show_results(outcome.plan, runs / name, output, sample=sample)


def _show_results(plan: Plan, folder: Path, output: Output, *, sample: int | None) -> None:
    from instructpt.cli.results import print_pair_quality, print_report

    if (folder / "report.json").exists() and sample is None:
        print_report(folder, output)
        return
    stage = plan.stages[-1]
    if stage.kind == "synthesize" and stage.result is not None and stage.output is not None:
        print_pair_quality(stage, folder, output)
        return
    result = stage.result.to_wire() if stage.result else {}
    emit(result, Output.YAML if output is Output.TABLE else output)


def _explain_failure(error: RunFailedError, folder: Path, again: str) -> None:
    failure = error.outcome.failure
    assert failure is not None
    talk.print(f"\n[bold red]Failed[/]: step {failure.step}: ", end="")
    talk.print(failure.message, markup=False)
    if failure.last_lines:
        talk.print(f"\nLast lines of {folder / 'tasks' / failure.step}:")
        for line in failure.last_lines:
            talk.print(f"  | {line}", markup=False)
    hint = "correct that, then" if failure.permanent else "nothing is lost; go on with"
    talk.print(f"\nWhat next: {hint}: {again}", markup=False)
    whole = command("logs", folder.name, "--task", failure.step, runs=folder.parent)
    talk.print(f"The whole log: {whole}", markup=False)


def _sampled(sample: int | None) -> list[str]:
    return ["--sample", str(sample)] if sample else []


def _detach(resource: AnyResource, runs: Path, sample: int | None) -> None:
    """Start the run in the background, and stay until it holds its folder or has failed."""
    name = resource.metadata.name
    folder = RunFolder(path=runs / name)
    look = command("status", name, runs=runs)
    if folder.running_pid() is not None:
        raise EnvironmentNotReadyError(f"run folder {folder.path} is in use", fix=look)
    folder.prepare(resource)
    argv = [sys.executable, "-m", "instructpt", "run", str(folder.path / "spec.yaml"), "--runs", str(runs)]
    log = folder.path / "run.log"
    with log.open("ab") as target:
        began = target.tell()
        child = subprocess.Popen(
            [*argv, *_sampled(sample)], stdin=subprocess.DEVNULL, stdout=target, stderr=target, start_new_session=True
        )
    while child.poll() is None and folder.running_pid() != child.pid:
        time.sleep(0.1)
    if child.returncode:
        said = log.read_bytes()[began:].decode("utf-8", "replace").splitlines()
        talk.print(f"{name} ended at once with exit code {child.returncode}; the end of {log}:", markup=False)
        for line in said[-20:]:
            talk.print(f"  | {line}", markup=False)
        raise typer.Exit(child.returncode)
    talk.print(f"{name} is done." if child.returncode == 0 else f"{name} runs in the background.")
    follow, end = command("logs", name, "-f", runs=runs), command("stop", name, runs=runs)
    talk.print(f"Follow it: {follow}    Look: {look}    End: {end}", markup=False)


def find_folder(name: str, runs: Path) -> RunFolder:
    """The run folder of a name or path.

    Raises:
        ConfigError: There is none.
    """
    for path in (Path(name), runs / name):
        if (path / "spec.yaml").exists():
            return RunFolder(path=path)
    known = sorted(p.parent.name for p in runs.glob("*/spec.yaml"))
    raise ConfigError(
        f"there is no run {name} below {runs}/", fix=f"known runs: {', '.join(known) if known else 'none'}"
    )


def judge_folder(folder: RunFolder) -> tuple[AnyResource, Plan, Judged]:
    """Object, plan and status of a run folder."""
    from instructpt.local.executor import verified_results

    resource = load_resource(folder.path / "spec.yaml")
    plan = plan_resource(resource, verified_results(folder), code_version=VERSION, sample=folder.sample)
    return resource, plan, judge(resource, plan, observe_run(folder))


def status(
    name: NameArgument,
    runs: RunsOption = DEFAULT_RUNS,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat until it ends.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how far a run is."""
    folder = find_folder(name, runs)
    while True:
        resource, plan, judged = judge_folder(folder)
        if output is Output.TABLE:
            _print_status(folder, resource, plan, judged)
        else:
            emit({**resource.to_wire(), "status": judged.to_wire()}, output)
        if not watch or judged.phase in ("Complete", "Failed", "Stopped", "Suspended"):
            return
        time.sleep(2)


def _print_status(folder: RunFolder, resource: AnyResource, plan: Plan, judged: Judged) -> None:
    part = f" (a sample of {folder.sample} documents)" if folder.sample else ""
    out.print(f"{resource.kind} {resource.metadata.name}: [bold]{judged.phase}[/]{part}")
    states, observed = folder.states(), observe_run(folder)
    for stage in plan.stages:
        state, seen = states.get(stage.step), observed.stages.get(stage.step)
        if stage.result is not None:
            word = "done"
        elif seen is not None and seen.running:
            word = figures_text(dict(seen.figures)) if seen.figures else "running"
        elif seen is not None and seen.error is not None:
            word = f"failed: {seen.error.splitlines()[0]}"
        else:
            word = f"waits for {', '.join(stage.waits_for)}" if stage.waits_for else "waits"
        took = f"{duration(state.seconds)}  {size(state.peak_memory_bytes)}" if state and stage.result else ""
        out.print(f"  {stage.step:<32} {word:<48} {took}", markup=False)
    for condition in judged.conditions:
        if condition.message:
            out.print(f"  {condition.type}={condition.status} {condition.reason}: {condition.message}", markup=False)


def logs(
    name: NameArgument,
    runs: RunsOption = DEFAULT_RUNS,
    task: Annotated[str | None, typer.Option(help="Only this task, such as synthesis or train-instruct.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """Print the logs of a detached run and of the workers."""
    folder = find_folder(name, runs)
    seen: dict[Path, int] = {}
    while True:
        files = _log_files(folder, task)
        runs_on = follow and folder.running_pid() is not None
        if task is not None and not files and not runs_on:
            tasks = sorted(p.parent.name for p in (folder.path / "tasks").glob("*/*.log"))
            known = f"use one of {', '.join(dict.fromkeys(tasks))}" if tasks else "no task has started yet"
            raise ConfigError("has no log", field="--task", value=task, fix=known)
        for path in files:
            with path.open("rb") as log:
                log.seek(seen.get(path, 0))
                text = log.read().decode("utf-8", "replace")
                seen[path] = log.tell()
            label = path.stem if path.parent == folder.path else f"{path.parent.name}/{path.stem}"
            for line in text.splitlines():
                print(f"{label} | {line}")
        if not runs_on:
            return
        time.sleep(0.5)


def _log_files(folder: RunFolder, task: str | None) -> list[Path]:
    """Oldest first; the executor's own log only where no task is named."""
    files = [*(folder.path / "tasks").glob(f"{task or '*'}/*.log")]
    if task is None:
        files += folder.path.glob("run.log")
    return sorted(files, key=lambda p: p.stat().st_mtime)


def stop(name: NameArgument, runs: RunsOption = DEFAULT_RUNS) -> None:
    """Stop a run cleanly; the same run command goes on later."""
    folder = find_folder(name, runs)
    pid = folder.running_pid()
    if pid is None:
        talk.print(f"{name} does not run.")
        return
    os.kill(pid, signal.SIGINT)
    while folder.running_pid() == pid:
        time.sleep(0.1)
    talk.print(f"Stopped, nothing lost. Go on: {_again(folder)}", markup=False)


def _again(folder: RunFolder) -> str:
    """The command that goes on with a run folder."""
    return command("run", str(folder.path / "spec.yaml"), *_sampled(folder.sample), runs=folder.path.parent)


def delete(
    name: NameArgument,
    runs: RunsOption = DEFAULT_RUNS,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a run folder; data that lie outside it stay."""
    folder = find_folder(name, runs)
    storage = load_resource(folder.path / "spec.yaml").spec.storage.uri
    place, here = storage_folder(storage), folder.path.resolve()
    inside = place is not None and (place == here or here in place.parents)
    what = f"{folder.path}" + (" with all its data" if inside else f"; the data in {storage} stay")
    if not yes:
        if not is_interactive():
            raise ConfigError("would remove " + what, fix="say --yes")
        typer.confirm(f"Remove {what}?", abort=True, err=True)
    delete_run(folder)
    talk.print(f"Removed {what}.")


def dashboard(name: NameArgument, runs: RunsOption = DEFAULT_RUNS, output: OutputOption = Output.TABLE) -> None:
    """Print where to look: the report, and the metrics of live workers."""
    folder = find_folder(name, runs)
    urls: dict[str, Any] = {task: f"{url}/metrics" for task, url in live_workers(folder).items()}
    report = folder.path / "report.html"
    if report.exists():
        urls["report"] = report.resolve().as_uri()
    if output is not Output.TABLE:
        emit(urls, output)
        return
    for task, url in urls.items():
        out.print(f"{task:<32} {url}", markup=False)
    if not urls:
        talk.print(f"{name} has no live worker and no report yet.")


def requeue(
    name: NameArgument,
    runs: RunsOption = DEFAULT_RUNS,
    reason: Annotated[str | None, typer.Option(help="Only dead letters of this reason.")] = None,
    step: Annotated[str, typer.Option(help="Step whose dead letters are tried again.")] = "synthesis",
) -> None:
    """Try dead letters again: the next run makes their micro-shards anew."""
    from instructpt.storage import open_store
    from instructpt.synthesis.finalize import requeue as requeue_shards

    folder = find_folder(name, runs)
    _, plan, _ = judge_folder(folder)
    stage = next((s for s in plan.stages if s.step == step and s.kind == "synthesize"), None)
    if stage is None or stage.runspec is None or stage.output is None:
        steps = [s.step for s in plan.stages if s.kind == "synthesize"]
        raise ConfigError("has no dead letters", field="--step", value=step, fix=f"use one of {', '.join(steps)}")
    store, key = open_store(stage.output.uri, access=stage.output), stage.runspec.work_key()
    with folder.locked():
        reasons = _dead_letter_reasons(store, key)
        if reasons and reason is not None and reason not in reasons:
            known = ", ".join(f"{name} ({count})" for name, count in reasons.items())
            raise ConfigError(
                "no dead letter has this reason", field="--reason", value=reason, fix=f"there are {known}"
            )
        shards = requeue_shards(store, key, reason=reason) if reasons else 0
    if not shards:
        talk.print(f"Step {step} of {folder.path.name} has no dead letters; nothing is made again.")
        return
    talk.print(f"{shards} micro-shards will be made again. Go on: {_again(folder)}", markup=False)


def _dead_letter_reasons(store: Store, work_key: str) -> dict[str, int]:
    """Reason -> how many dead letters the committed micro-shards have."""
    from instructpt.corpus.ledger import Ledger
    from instructpt.synthesis.work import prefix_of

    prefix = prefix_of(work_key)
    shards = [info.key.rpartition("/")[2] for info in store.list(f"{prefix}/commits/")]
    ledger = Ledger(store, prefix, worker_id="requeue", lease_seconds=60, shards=shards, parallel=False)
    found: Counter[str] = Counter()
    for commit in ledger.committed().values():
        for name, count in commit.record.get("counts", {}).items():
            if name.startswith("dead_letters_") and count:
                found[name.removeprefix("dead_letters_").replace("_", "-")] += int(count)
    return dict(sorted(found.items()))
