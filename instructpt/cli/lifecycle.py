"""Verbs that start, watch and end runs: run, status, logs, stop, delete, dashboard, requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from instructpt.api.version import VERSION
from instructpt.cli.console import Output, duration, emit, is_interactive, out, size, talk
from instructpt.cli.panel import Panel, figures_text
from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.local.folder import RunFolder
from instructpt.local.observe import live_workers, observe_run
from instructpt.local.run import DEFAULT_RUNS, RunFailedError, delete_run
from instructpt.local.run import run as run_resource
from instructpt.local.spec_file import load_resource
from instructpt.plan import Plan, plan_resource
from instructpt.plan.planner import AnyResource
from instructpt.plan.status import Judged, judge

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
    again = f"instructpt run {file}" + ("" if runs == DEFAULT_RUNS else f" --runs {runs}")
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
        talk.print(f"Stopped cleanly, nothing lost. Go on: {again}")
        raise typer.Exit(130)
    _show_results(outcome.plan, runs / name, output, sample=sample)


def _show_results(plan: Plan, folder: Path, output: Output, *, sample: int | None) -> None:
    from instructpt.cli.results import print_pair_quality, print_report

    if (folder / "report.json").exists() and sample is None:
        print_report(folder, output)
        return
    stage = plan.stages[-1]
    if stage.kind == "synthesize" and stage.result is not None and stage.output is not None:
        print_pair_quality(stage, output)
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
    talk.print(f"\nWhat next: {hint}: {again}")
    talk.print(f"The whole log: instructpt logs {folder} --task {failure.step}")


def _detach(resource: AnyResource, runs: Path, sample: int | None) -> None:
    name = resource.metadata.name
    folder = RunFolder(path=runs / name)
    if folder.running_pid() is not None:
        raise EnvironmentNotReadyError(f"run folder {folder.path} is in use", fix=f"instructpt status {name}")
    folder.prepare(resource)
    command = [sys.executable, "-m", "instructpt", "run", str(folder.path / "spec.yaml"), "--runs", str(runs)]
    command += ["--sample", str(sample)] if sample else []
    with (folder.path / "run.log").open("ab") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    talk.print(f"{name} runs in the background.")
    talk.print(f"Follow it: instructpt logs {name} -f    Look: instructpt status {name}    End: instructpt stop {name}")


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
    plan = plan_resource(resource, verified_results(folder), code_version=VERSION)
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
    out.print(f"{resource.kind} {resource.metadata.name}: [bold]{judged.phase}[/]")
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
    """Print the workers' logs."""
    folder = find_folder(name, runs)
    seen: dict[Path, int] = {}
    while True:
        files = sorted((folder.path / "tasks").glob(f"{task or '*'}/*.log"), key=lambda p: p.stat().st_mtime)
        if task is not None and not files:
            tasks = sorted(p.name for p in (folder.path / "tasks").iterdir())
            raise ConfigError("has no log", field="--task", value=task, fix=f"use one of {', '.join(tasks)}")
        for path in files:
            with path.open("rb") as log:
                log.seek(seen.get(path, 0))
                text = log.read().decode("utf-8", "replace")
                seen[path] = log.tell()
            for line in text.splitlines():
                print(f"{path.parent.name}/{path.stem} | {line}")
        if not follow or folder.running_pid() is None:
            return
        time.sleep(0.5)


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
    talk.print(f"Stopped, nothing lost. Go on: instructpt run {folder.path / 'spec.yaml'}")


def delete(
    name: NameArgument,
    runs: RunsOption = DEFAULT_RUNS,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a run folder; data that lie outside it stay."""
    folder = find_folder(name, runs)
    storage = load_resource(folder.path / "spec.yaml").spec.storage.uri
    inside = "://" not in storage and folder.path.resolve() in Path(storage).resolve().parents
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
    with folder.locked():
        shards = requeue_shards(
            open_store(stage.output.uri, access=stage.output), stage.runspec.work_key(), reason=reason
        )
    talk.print(f"{shards} micro-shards will be made again. Go on: instructpt run {folder.path / 'spec.yaml'}")
