"""A plan: stages in order, each with the workers that do it and the finishing task that closes it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from instructpt.api.base import StorageSpec
from instructpt.api.common import Resources
from instructpt.api.runspec import RunSpec, StageKind, StageResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One command, in one or more replicas.

    Attributes:
        name: ``<step>`` or ``<step>-finalize``.
        runspec: The file that every replica reads.
        replicas: Processes or pods that share the work through the ledger.
    """

    name: str
    runspec: RunSpec
    replicas: int = 1
    resources: Resources = field(default_factory=Resources)

    def argv(self, runspec_path: str) -> tuple[str, ...]:
        """Arguments after ``instructpt``."""
        return ("worker", self.runspec.verb, "--run-spec", runspec_path, "--hash", self.runspec.hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a plan.

    Attributes:
        step: Unique in the plan, such as ``synthesis`` or ``train-instruct``.
        owner: Kind and name of the (child) object that the stage belongs to.
        output: Where its manifest goes; ``None`` while that depends on an input that is not there yet.
        runspec: What its workers do; ``None`` while an input is not there yet.
        waits_for: Steps or refs whose results it needs.
        result: What it left, once it is done.
        arm: Arm that it trains, if any.
    """

    step: str
    kind: StageKind
    owner: tuple[str, str]
    replicas: int
    resources: Resources
    output: StorageSpec | None
    runspec: RunSpec | None
    waits_for: tuple[str, ...] = ()
    result: StageResult | None = None
    arm: str | None = None
    seed: int | None = None

    @property
    def key(self) -> str | None:
        """Names the stage's result: where it goes and what it computes."""
        return None if self.runspec is None else stage_key(self.runspec)

    @property
    def work(self) -> Task | None:
        """The workers; the report has none."""
        if self.runspec is None or self.kind == "report":
            return None
        return Task(name=self.step, runspec=self.runspec, replicas=self.replicas, resources=self.resources)

    @property
    def finalize(self) -> Task | None:
        """The finishing task."""
        if self.runspec is None:
            return None
        return Task(name=f"{self.step}-finalize", runspec=self.runspec.finalizer())


def stage_key(runspec: RunSpec) -> str:
    """Names a stage's result: where it goes and what it computes."""
    return f"{runspec.output.uri}#{runspec.work_key()}"


Results = Mapping[str, StageResult]
"""Results of finished stages by :func:`stage_key`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done for one object, as far as it is known."""

    kind: str
    name: str
    stages: tuple[Stage, ...]

    def next_stage(self) -> Stage | None:
        """The first stage that is not done and can start."""
        return next((s for s in self.stages if s.result is None and s.runspec is not None), None)

    @property
    def is_complete(self) -> bool:
        """Whether every stage has left its result."""
        return all(s.result is not None for s in self.stages)

    def stage(self, step: str) -> Stage:
        """The stage of that step."""
        return next(s for s in self.stages if s.step == step)
