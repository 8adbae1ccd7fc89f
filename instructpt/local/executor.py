"""Carries out a plan as subprocesses on this machine: plan, run the next stage, look, plan again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import StageResult
from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.corpus.manifest import MANIFEST, digest_of
from instructpt.errors import NotFoundError, PlanError
from instructpt.local.changes import has_changed, inputs_of
from instructpt.local.folder import RunFolder, StageState
from instructpt.local.listener import Listener
from instructpt.local.process import WorkerProcess
from instructpt.plan import Plan, Stage, Task, plan_resource
from instructpt.plan.planner import AnyResource
from instructpt.plan.progress import merge_progress
from instructpt.storage import open_store

EXIT_CONFIG = 43
EXIT_PREEMPTED = 75
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a stage ended: the cause and the task's last lines; ``permanent`` when a retry cannot help."""

    step: str
    exit_code: int
    message: str
    last_lines: tuple[str, ...]
    permanent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: everything done, stopped in between, or failed."""

    plan: Plan
    stopped: bool = False
    failure: Failure | None = None


@dataclass(slots=True, kw_only=True)
class Executor:
    """Runs one object in one run folder, which must be locked by the caller.

    Attributes:
        listener: Is told what happens; decides nothing.
        sample: Stop after a synthesis of so many documents.
        grace_seconds: How long a worker may take to stop after SIGTERM.
    """

    folder: RunFolder
    resource: AnyResource
    code_version: str
    listener: Listener
    sample: int | None = None
    grace_seconds: float = 120.0
    _stop_signals: int = field(default=0)
    _deadline: float | None = field(default=None)

    def run(self) -> Outcome:
        """Run until the plan is complete, a stage fails for good, or a signal says stop."""
        self.folder.prepare(self.resource)
        limit = self.resource.spec.active_deadline_seconds
        self._deadline = None if limit is None else time.monotonic() + limit
        results = verified_results(self.folder)
        self._drop_outdated(results)
        self.folder.keep_sample(self.sample)
        with self._signals():
            while True:
                plan = plan_resource(self.resource, results, code_version=self.code_version, sample=self.sample)
                self.listener.planned(plan)
                stage = plan.next_stage()
                if stage is None:
                    if not plan.is_complete:
                        raise PlanError(f"no stage of {plan.name} can start and none runs")
                    return Outcome(plan=plan)
                if self.resource.spec.suspend:
                    return Outcome(plan=plan, stopped=True)
                ended = self._run_stage(stage)
                if isinstance(ended, Failure):
                    return Outcome(plan=plan, failure=ended)
                if ended is None:
                    return Outcome(plan=plan, stopped=True)
                assert stage.key is not None
                results[stage.key] = ended

    def _drop_outdated(self, results: dict[str, StageResult]) -> None:
        """Forget inspections whose corpus has changed since, and the copied report where it has to be made again."""
        plan = plan_resource(self.resource, results, code_version=self.code_version, sample=self.sample)
        for stage in plan.stages:
            state = self.folder.load_state(stage.step)
            if stage.kind != "inspect" or stage.result is None or state is None or state.inputs is None:
                continue
            assert stage.runspec is not None
            assert stage.runspec.inspect is not None
            assert stage.output is not None
            if not has_changed(stage.runspec.inspect.source, state.inputs):
                continue
            self.listener.inputs_changed(stage)
            # The inspection answers with the manifest that it finds, so that goes first; results of unchanged objects
            # have keys with their etags and are taken over.
            open_store(stage.output.uri, access=stage.output).delete(MANIFEST)
            self.folder.save_state(stage.step, replace(state, result=None))
            results.pop(f"{stage.key}", None)
        # Not the sample's plan: a sample leaves the report of an earlier full run as it is.
        whole = plan_resource(self.resource, results, code_version=self.code_version)
        if not any(stage.kind == "report" and stage.result is not None for stage in whole.stages):
            self.folder.drop_report()

    def _run_stage(self, stage: Stage) -> StageResult | Failure | None:
        """The stage's result, why it failed, or ``None`` when it was told to stop."""
        assert stage.key is not None
        assert stage.output is not None
        before = self.folder.load_state(stage.step)
        fresh = StageState(key=stage.key, output=stage.output.to_wire())
        state = before if before is not None and before.key == stage.key else fresh
        if stage.runspec is not None and stage.runspec.inspect is not None:
            state = self._with_inputs(stage, state, stage.runspec.inspect.source)
        failures = 0
        while True:
            state = replace(state, attempts=state.attempts + 1, result=None, error=None)
            self.folder.save_state(stage.step, state)
            self.listener.stage_started(stage, state.attempts)
            began = time.monotonic()
            ended = self._attempt(stage)
            peak = max(state.peak_memory_bytes, self._peak)
            state = replace(state, seconds=state.seconds + time.monotonic() - began, peak_memory_bytes=peak)
            if isinstance(ended, StageResult):
                state = replace(state, result=ended.to_wire())
                self.folder.save_state(stage.step, state)
                self.listener.stage_done(stage, ended, state.seconds)
                return ended
            if ended is None:
                self.folder.save_state(stage.step, state)
                return None
            state = replace(state, error=_error(ended))
            self.folder.save_state(stage.step, state)
            failures += ended.exit_code != EXIT_PREEMPTED
            if ended.permanent or failures > self.resource.spec.backoff_limit:
                return ended
            self.listener.stage_retried(stage, ended.message, failures)

    def _with_inputs(self, stage: Stage, state: StageState, source: CorpusSource) -> StageState:
        """Note the listing before the work: a change during it is then seen by the next run, never missed."""
        assert stage.output is not None
        now = inputs_of(source)
        if now is not None and (state.inputs is None or has_changed(source, state.inputs)):
            # A manifest that an ended run or another one left may be of other objects; see _drop_outdated.
            open_store(stage.output.uri, access=stage.output).delete(MANIFEST)
        return replace(state, inputs=now)

    def _attempt(self, stage: Stage) -> StageResult | Failure | None:
        self._peak = 0
        assert stage.finalize is not None
        if stage.work is not None:
            ended = self._run_task(stage, stage.work)
            if ended is None or isinstance(ended, Failure):
                return ended
        ended = self._run_task(stage, stage.finalize)
        if ended is None or isinstance(ended, Failure):
            return ended
        message = ended[0].termination()
        if message is None:
            return self._failure(stage, ended[0], "the finishing task left no result")
        result = StageResult.model_validate(message)
        if result.missing:
            return self._failure(stage, ended[0], f"{result.missing} micro-shards have no commit yet")
        return result

    _peak: int = field(default=0)

    def _run_task(self, stage: Stage, task: Task) -> list[WorkerProcess] | Failure | None:
        """All replicas, ended with 0; or why not; or ``None`` when told to stop."""
        threads = max(1, (os.cpu_count() or 1) // task.replicas)
        folder = self.folder.task_folder(task.name)
        workers = [
            WorkerProcess.start(task, i, folder, worker_id=f"{self.folder.path.name}.{task.name}.{i}", threads=threads)
            for i in range(task.replicas)
        ]
        try:
            return self._watch(stage, task, workers)
        finally:
            self._end(workers)
            self._peak = max(self._peak, sum(w.peak_memory_bytes for w in workers))

    def _watch(self, stage: Stage, task: Task, workers: list[WorkerProcess]) -> list[WorkerProcess] | Failure | None:
        last_look = 0.0
        while True:
            codes = [w.poll() for w in workers]
            failed = next((w for w, code in zip(workers, codes, strict=True) if code not in (None, 0)), None)
            if self._stop_signals:
                return None
            if failed is not None:
                return self._failure(stage, failed)
            if all(code == 0 for code in codes):
                return workers
            now = time.monotonic()
            if self._deadline is not None and now > self._deadline:
                limit = self.resource.spec.active_deadline_seconds
                return self._failure(stage, workers[0], f"spec.activeDeadlineSeconds={limit} is over", permanent=True)
            if now - last_look >= PROGRESS_SECONDS:
                last_look = now
                figures = [p for p in (w.progress() for w in workers) if p is not None]
                if figures and task.runspec.verb != "finalize":
                    self.listener.progressed(stage, merge_progress(figures))
            time.sleep(POLL_SECONDS)

    def _end(self, workers: list[WorkerProcess]) -> None:
        """Stop what still runs: SIGTERM, the grace period, SIGKILL."""
        running = [w for w in workers if w.poll() is None]
        for worker in running:
            worker.signal(signal.SIGTERM)
        limit = time.monotonic() + self.grace_seconds
        while any(w.poll() is None for w in running):
            if time.monotonic() > limit or self._stop_signals > 1:
                for worker in running:
                    worker.signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _failure(self, stage: Stage, worker: WorkerProcess, message: str = "", *, permanent: bool = False) -> Failure:
        code = worker.exit_code if worker.exit_code is not None else 0
        error = (worker.termination() or {}).get("error", {})
        said = message or error.get("message") or describe_exit(code)
        return Failure(
            step=stage.step, exit_code=code, message=said, last_lines=tuple(worker.last_lines()),
            permanent=permanent or code == EXIT_CONFIG or error.get("retryable") is False,
        )  # fmt: skip

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stop_signals += 1
            self.listener.stopping(self._stop_signals)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def verified_results(folder: RunFolder) -> dict[str, StageResult]:
    """Results whose manifest is still there with the digest that was noted; the others run again."""
    kept = {}
    for state in folder.states().values():
        if state.result is None:
            continue
        place, result = StorageSpec.model_validate(state.output), StageResult.model_validate(state.result)
        try:
            if digest_of(open_store(place.uri, access=place).get(MANIFEST)) == result.digest:
                kept[state.key] = result
        except NotFoundError:
            continue
    return kept


def describe_exit(code: int) -> str:
    """What an exit code means."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -9 else "")
    return f"exit code {code}"


def _error(failure: Failure) -> dict[str, Any]:
    return {"message": failure.message, "exit_code": failure.exit_code, "last_lines": list(failure.last_lines)}
