"""Reasons of conditions, in one table: shared by conditions, events and the docs."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """One word for why a condition holds; :data:`MEANING` has its line in the docs."""

    PENDING = "Pending"
    RUNNING = "StageRunning"
    COMPLETED = "AllStagesDone"
    COMPLETED_WITH_FAILURES = "CompletedWithFailures"
    TOO_FEW_SUCCEEDED = "TooFewSucceeded"
    STAGE_FAILED = "StageFailed"
    INVALID_SPEC = "InvalidSpec"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    STOPPED = "Stopped"
    INPUT_NOT_READY = "InputNotReady"
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    QUOTA = "QuotaExceeded"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImageCannotBePulled"
    SECRET_MISSING = "SecretMissing"  # noqa: S105 -- a reason, no secret
    POD_START = "PodCannotStart"
    PODS_STAY = "PodsDoNotLeave"
    NAMESPACE_ENDS = "NamespaceTerminating"
    NAME_CONFLICT = "NameConflict"
    LAUNCHER_NOT_INSTALLED = "LauncherNotInstalled"
    DISRUPTED = "Disrupted"
    OUT_OF_MEMORY = "OutOfMemory"
    WORKER_FAILED = "WorkerFailed"
    CREDENTIALS = "WrongCredentials"
    CORPUS_REFUSED = "CorpusRefused"
    CHILD_FAILED = "ChildFailed"
    DEADLINE = "DeadlineExceeded"
    BACKOFF = "BackoffLimitExceeded"
    GATE_PASSED = "GatePassed"
    GATE_FAILED = "GateFailed"
    NO_GATE = "NoGate"


class EventReason(StrEnum):
    """Reasons of Events that tell of a step and stand in no condition; those of conditions appear as Events, too."""

    CHILD_CREATED = "ChildCreated"
    STAGE_STARTED = "StageStarted"
    STAGE_DONE = "StageDone"
    SCALED = "Scaled"
    CORRECTED = "Corrected"
    COMPLETED = "Completed"


EVENT_MEANING: dict[EventReason, str] = {
    EventReason.CHILD_CREATED: "a pipeline created one of its objects",
    EventReason.STAGE_STARTED: "workers of a step were started; the message has the attempt and how many",
    EventReason.STAGE_DONE: "a step has written its manifest; the message has the address",
    EventReason.SCALED: "parallelism was changed while workers run",
    EventReason.CORRECTED: "podTemplate or images were corrected while pods did not start; the attempt gives way",
    EventReason.COMPLETED: "everything is done",
}

MEANING: dict[Reason, str] = {
    Reason.PENDING: "nothing has started yet; if it stays so, see whether the operator runs",
    Reason.RUNNING: "workers of a stage are running",
    Reason.COMPLETED: "every stage has written its manifest",
    Reason.COMPLETED_WITH_FAILURES: "done, but some documents failed, no more than "
    "completionPolicy.minSucceededPercent allows; the message counts them, the dead letters beside the output "
    "hold them",
    Reason.TOO_FEW_SUCCEEDED: "more documents failed than completionPolicy.minSucceededPercent allows; read the "
    "reasons of the dead letters beside the output, or lower it in a new object",
    Reason.STAGE_FAILED: "a stage failed: more often than backoffLimit allows, or in a way that a retry cannot cure; "
    "the message names the stage and the error",
    Reason.INVALID_SPEC: "a worker found the spec or a credential wrong; retrying cannot help: correct what the "
    "message names in a new object",
    Reason.SUSPENDING: "spec.suspend is true, and pods still have to leave; committed work is kept",
    Reason.SUSPENDED: "spec.suspend is true, and nothing runs; committed work is kept: set it to false to go on",
    Reason.STOPPED: "the run was stopped or its process is gone; the same command goes on",
    Reason.INPUT_NOT_READY: "an object that is named by a ref does not exist, or has not finished; create it, or wait",
    Reason.QUEUED: "the workers wait for their queue to admit them; see the Workload of the child that the message "
    "names, and the quota of spec.queueName",
    Reason.ADMITTED: "the queue has admitted the workers",
    Reason.QUOTA: "a ResourceQuota or LimitRange of the namespace refuses the pods; ask for less, or have it raised",
    Reason.UNSCHEDULABLE: "no node fits a worker's pod; see the message, then change resources, nodeSelector, "
    "tolerations or affinity, or add nodes",
    Reason.IMAGE_PULL: "the image of a worker cannot be pulled; correct podTemplate.image or "
    "podTemplate.imagePullSecrets",
    Reason.SECRET_MISSING: "a Secret or ConfigMap that a worker needs is not in this namespace, or lacks a key; create "
    "it, and the workers start by themselves",
    Reason.POD_START: "a worker's pod cannot start for another reason; the message has what Kubernetes says of it",
    Reason.PODS_STAY: "a pod does not leave although its grace period is over, as a rule because its node is dead, and "
    "the next attempt, the suspension or the last of the work waits for it; until it is gone nothing may take its "
    "place: if the node is gone for good, delete it or give it the out-of-service taint",
    Reason.NAMESPACE_ENDS: "the namespace is being deleted; the workers are stopped, so that it can end",
    Reason.NAME_CONFLICT: "another object, which does not belong to this one, has the name of a child; delete or "
    "rename that object, or use another name for this one",
    Reason.LAUNCHER_NOT_INSTALLED: "the API server does not know the launcher's resource (PyTorchJob); install the "
    "training operator",
    Reason.DISRUPTED: "a worker's pod was preempted, evicted, drained or lost with its node; it starts again and this "
    "counts against no limit",
    Reason.OUT_OF_MEMORY: "a worker was killed for memory; raise podTemplate.resources.limits.memory, which may change "
    "at any time, or in a new object resources.memory of the stage, or lower microBatchRows or engine.concurrency",
    Reason.WORKER_FAILED: "a worker failed and is tried again, up to backoffLimit; the message has its error",
    Reason.CREDENTIALS: "the storage refused a worker's credentials; correct the Secret that secretRef names, then "
    "delete the object and create it again: committed work is kept",
    Reason.CORPUS_REFUSED: "the documents cannot be used as they are: too many unreadable records, a damaged object, "
    "or one that changed after it was inspected; correct what the message names, then delete the object and create it "
    "again",
    Reason.CHILD_FAILED: "a child of the pipeline failed; see that object, which the message names",
    Reason.DEADLINE: "activeDeadlineSeconds are over; committed work is kept: raise it in a new object over the same "
    "storage",
    Reason.BACKOFF: "attempts failed more often than backoffLimit allows; the message has the last error",
    Reason.GATE_PASSED: "the gate's metric gained at least minDelta over the baseline",
    Reason.NO_GATE: "the spec has no gate, so none is judged",
    Reason.GATE_FAILED: "the gate's metric did not gain minDelta over the baseline, or no more than noise; the scores "
    "tell",
}
