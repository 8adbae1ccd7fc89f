"""PyTorchJob of the Kubeflow training operator (v1), built from its typed models.

Our worker starts torchrun itself, from the MASTER_ADDR, MASTER_PORT and RANK that the training operator sets in each
pod; so ``nprocPerNode`` stays away, and the operator's own default for it changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypedDict

from instructpt.cluster.context import RenderContext
from instructpt.cluster.launchers.base import Capabilities, WorkState
from instructpt.cluster.meta import task_metadata
from instructpt.cluster.pods import pod_template
from instructpt.errors import EnvironmentNotReadyError
from instructpt.plan.model import Stage, Task

CONTAINER = "pytorch"
PORT = {"name": "pytorchjob-port", "containerPort": 23456}
"""Both names are the training operator's."""


class Counts(TypedDict):
    """Pods by state."""

    active: int
    ready: int
    succeeded: int
    failed: int


class PyTorchJob:
    """One Master and, on several nodes, Workers; any failed pod fails the whole (protocols.md 7)."""

    name = "pytorchjob"
    api_version = "kubeflow.org/v1"
    kind = "PyTorchJob"
    plural = "pytorchjobs"
    pod_name_label = "training.kubeflow.org/job-name"

    def build(self, stage: Stage, task: Task, attempt: int, ctx: RenderContext) -> dict[str, Any]:
        """The object of one attempt.

        Raises:
            EnvironmentNotReadyError: The Python client of the training operator is not installed.
        """
        models = _models()

        def replicas(count: int) -> Any:
            template = pod_template(stage, task, attempt, ctx, container=CONTAINER, ports=[dict(PORT)])
            return models.KubeflowOrgV1ReplicaSpec(replicas=count, restart_policy="Never", template=template)

        specs = {"Master": replicas(1)}
        if task.replicas > 1:
            specs["Worker"] = replicas(task.replicas - 1)
        built = models.KubeflowOrgV1PyTorchJob(
            api_version=self.api_version,
            kind=self.kind,
            metadata=task_metadata(stage, task, attempt, ctx),
            spec=models.KubeflowOrgV1PyTorchJobSpec(
                pytorch_replica_specs=specs,
                run_policy=models.KubeflowOrgV1RunPolicy(
                    # The failed pod stays, for its log and its termination message. With a backoffLimit, even of 0,
                    # the training operator (1.9) deletes every pod before it says Failed; attempts are ours to count.
                    clean_pod_policy="Running",
                    suspend=False,
                    scheduling_policy=_scheduling(models, task, ctx),
                ),
            ),
        )
        wire: dict[str, Any] = _client().sanitize_for_serialization(built)
        return wire

    def observe(self, obj: Mapping[str, Any]) -> WorkState:
        """What the object says of itself: by the conditions that hold, whatever their order."""
        status = obj.get("status") or {}
        counts = _counts(status.get("replicaStatuses") or {})
        wanted = sum(int(r.get("replicas") or 1) for r in (obj["spec"].get("pytorchReplicaSpecs") or {}).values())
        true = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
        suspended = bool((obj["spec"].get("runPolicy") or {}).get("suspend"))
        for type_, phase in _PHASES:
            if type_ in true or (type_ == "Suspended" and suspended):
                said = true.get(type_, {})
                return WorkState(
                    phase=phase,
                    reason=said.get("reason") or "",
                    message=said.get("message") or "",
                    wanted=wanted,
                    **counts,
                )
        return WorkState(phase="Pending", wanted=wanted, **counts)

    def suspend_patch(self, suspend: bool) -> dict[str, Any]:
        """A merge patch that stops or resumes it."""
        return {"spec": {"runPolicy": {"suspend": suspend}}}

    def capabilities(self) -> Capabilities:
        """Gang scheduling by Kueue or by a PodGroup; no change of size while it runs."""
        return Capabilities(gang=True, managed_by=True)


_PHASES: tuple[tuple[str, Any], ...] = (
    ("Failed", "Failed"),
    ("Succeeded", "Succeeded"),
    ("Suspended", "Suspended"),
    ("Restarting", "Running"),
    ("Running", "Running"),
)
"""Conditions in the order in which they decide; ``Created`` alone is Pending."""

PYTORCHJOB = PyTorchJob()


def _counts(replicas: Mapping[str, Any]) -> Counts:
    """The training operator counts a pod as active once it runs, and it knows no readiness."""
    active, succeeded, failed = (
        sum(r.get(name) or 0 for r in replicas.values()) for name in ("active", "succeeded", "failed")
    )
    return {"active": active, "ready": active, "succeeded": succeeded, "failed": failed}


def _scheduling(models: Any, task: Task, ctx: RenderContext) -> Any:
    """For a gang scheduler, and for Kueue, which reads the priority here. It never starts a part of the pods."""
    user = ctx.policy.pod_template
    if user is None or not (user.scheduler_name or user.priority_class_name):
        return None
    return models.KubeflowOrgV1SchedulingPolicy(
        min_available=task.replicas,
        priority_class=user.priority_class_name,
        queue=ctx.policy.queue_name if user.scheduler_name else None,
    )


def _models() -> Any:
    """The typed models, imported late: seeing an object needs none, nor does planning anything but a training."""
    try:
        import kubeflow.training as models
    except ImportError as error:
        raise EnvironmentNotReadyError(
            f"a PyTorchJob needs kubeflow-training, which cannot be imported ({error})",
            fix="install instructpt with the extra cluster",
        ) from error
    return models


@functools.cache
def _client() -> Any:
    """Turns models into JSON; it calls nobody."""
    return _models().ApiClient()
