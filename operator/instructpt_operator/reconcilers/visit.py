"""One visit to one object: what it remembers, what it asks for, and the status that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from instructpt.api.common import InputStatus, StageStatus
from instructpt.api.reasons import EventReason, Reason
from instructpt.api.runspec import StageResult
from instructpt.cluster.context import Owner, RenderContext
from instructpt.cluster.meta import step_label
from instructpt.plan.conditions import has_ended
from instructpt.plan.model import Plan, Stage
from instructpt.plan.naming import ANNOTATION_CODE_VERSION
from instructpt.plan.planner import AnyResource, plan_resource
from instructpt.plan.refs import as_resolved
from instructpt_operator.actions import Action, Event, Object, Outcome
from instructpt_operator.observed import Observed
from instructpt_operator.reconcilers.config import Config


@dataclass(slots=True, kw_only=True)
class Visit:
    """Collects actions, events and wake-up times while an object is looked at.

    Attributes:
        resource: The object, typed.
        memory: Its stages as the status remembers them, by step.
        inputs: Refs that are frozen already.
        start_time: When its first worker was started; ``None`` before, and while it is suspended.
        restarts: Attempts that were started after the first, whatever the cause.
        extra: Status fields that only the reconciler of this kind knows.
    """

    resource: AnyResource
    observed: Observed
    now: datetime
    config: Config
    memory: dict[str, StageStatus] = field(default_factory=dict)
    inputs: tuple[InputStatus, ...] = ()
    start_time: str | None = None
    restarts: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, resource: AnyResource, observed: Observed, now: datetime, config: Config) -> Visit:
        """A visit that remembers what the object's status says."""
        visit = cls(resource=resource, observed=observed, now=now, config=config)
        if resource.status is not None:
            visit.memory = {s.step: s for s in resource.status.stages}
            visit.inputs = resource.status.inputs
            visit.start_time = resource.status.start_time
            visit.restarts = resource.status.restarts
        return visit

    @property
    def uid(self) -> str:
        """Of the object."""
        return self.resource.metadata.uid or ""

    @property
    def code_version(self) -> str:
        """Version that its stages are of: fixed on the first visit, and for children by their pipeline."""
        known = self.resource.status.code_version if self.resource.status else None
        return known or self.resource.metadata.annotations.get(ANNOTATION_CODE_VERSION) or self.config.code_version

    @property
    def context(self) -> RenderContext:
        """What rendering needs."""
        meta = self.resource.metadata
        owner = Owner(
            api_version=self.resource.api_version, kind=self.resource.kind, name=meta.name,
            namespace=meta.namespace or "default", uid=self.uid,
        )  # fmt: skip
        return RenderContext(
            owner=owner, policy=self.resource.spec, images=self.config.images, launcher=self.config.launcher
        )

    @property
    def has_ended(self) -> bool:
        """Whether Complete or Failed holds already."""
        return self.resource.status is not None and has_ended(self.resource.status.conditions)

    def plan(self, more: Mapping[str, StageResult] | None = None) -> Plan:
        """The plan, with every result that is known.

        Args:
            more: Results of stages that children did.

        Raises:
            ConfigError: The spec cannot be carried out.
            PlanError: Its numbers do not add up.
        """
        results = {s.key: s.result for s in self.memory.values() if s.result is not None}
        return plan_resource(
            self.resource, {**results, **(more or {})}, code_version=self.code_version,
            refs={(i.kind, i.name): as_resolved(i) for i in self.inputs},
        )  # fmt: skip

    def record(self, stage: Stage) -> StageStatus:
        """What is remembered of a stage. Attempts count on where the stage's work has changed: names stay unique."""
        assert stage.key is not None
        known = self.memory.get(stage.step)
        if known is None:
            return StageStatus(step=stage.step, key=stage.key)
        if known.key != stage.key:
            return StageStatus(step=stage.step, key=stage.key, attempt=known.attempt, failed_attempt=known.attempt)
        return known

    def remember(self, record: StageStatus, **update: Any) -> StageStatus:
        """Keep what is known of a stage now."""
        record = record.model_copy(update=update)
        self.memory[record.step] = record
        return record

    def catch_up(self, stage: Stage, attempt: int) -> StageStatus:
        """Count attempts whose children are there, though the status was never written: a crash, or an edit between."""
        record = self.record(stage)
        if attempt > record.attempt and stage.work is not None:
            self.restarts += attempt - max(record.attempt, 1)
        return self.remember(record, attempt=max(attempt, record.attempt))

    def children_of(self, stage: Stage, label: str) -> list[Object]:
        """Children whose step label is that of the stage; ``label`` is the key of that label."""
        step = step_label(stage.step)
        return [c for c in self.observed.children.values() if c["metadata"].get("labels", {}).get(label) == step]

    def began(self, *children: Object | None) -> None:
        """The clock runs from the first child that is there: the visit that made it may not have come to say so."""
        made = [c["metadata"]["creationTimestamp"] for c in children if c is not None and not is_leaving(c)]
        if self.start_time is None and made:
            self.start_time = min(made)

    def wake_in(self, seconds: float) -> None:
        """Come back after so many seconds at the latest."""
        self.wakes.append(max(0.1, seconds))

    def say(self, reason: Reason | EventReason, message: str, *, warning: bool = False) -> None:
        """One Event about the object."""
        type_ = "Warning" if warning else "Normal"
        self.events.append(Event(type=type_, reason=str(reason), message=message[:1024]))

    def says(self, reason: str) -> bool:
        """Whether a condition has that reason already."""
        status = self.resource.status
        return status is not None and any(c.reason == reason for c in status.conditions)

    def outcome(self, status: Object | None, *, urgent: bool = True) -> Outcome:
        """Everything that was asked for."""
        return Outcome(
            actions=tuple(self.actions), status=status, urgent=urgent, events=tuple(self.events),
            requeue_after=min(self.wakes, default=None),
        )  # fmt: skip


def is_leaving(child: Object) -> bool:
    """Whether it is being deleted."""
    return child["metadata"].get("deletionTimestamp") is not None


def rfc3339(moment: datetime) -> str:
    """As Kubernetes writes times: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """The reverse; fractions of seconds are accepted."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def seconds_since(now: datetime, text: str) -> float:
    """Seconds from a time in a status to now."""
    return (now - parse_time(text)).total_seconds()
