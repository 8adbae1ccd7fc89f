"""Names, labels and annotations: the only home of such strings."""

from __future__ import annotations

import hashlib
import re

from instructpt.api.base import GROUP, StorageSpec

OBJECT_NAME_LIMIT = 40
CHILD_NAME_LIMIT = 52
"""Of Jobs and PyTorchJobs: ``-worker-999`` still fits a DNS label of 63 characters."""

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "instructpt-operator"
"""Value of the label above, and the field manager of all writes."""

MANAGED_BY_VALUE = f"{GROUP}/operator"
"""Of ``spec.managedBy``: this operator, the same as leaving it out."""

LABEL_KIND = f"{GROUP}/kind"
LABEL_NAME = f"{GROUP}/name"
LABEL_STEP = f"{GROUP}/step"
LABEL_TASK = f"{GROUP}/task"
LABEL_ATTEMPT = f"{GROUP}/attempt"
TASK_WORK, TASK_FINALIZE = "work", "finalize"
"""Values of :data:`LABEL_TASK`."""

ANNOTATION_RECONCILE = f"{GROUP}/reconcile"
"""``disabled`` stops every write of the operator for this object."""
ANNOTATION_KEY = f"{GROUP}/stage-key"
"""On compute children: the stage key that they work for."""
ANNOTATION_TEMPLATE = f"{GROUP}/template-hash"
"""On compute children: hash of the podTemplate and images they were made with. Those may be corrected at any time."""
ANNOTATION_CODE_VERSION = f"{GROUP}/code-version"
"""On the objects that a pipeline creates: the version that its own stages are of, so that theirs agree."""
ANNOTATION_INPUTS = f"{GROUP}/inputs"
"""On the objects that a pipeline creates: the inputs named by its own refs, as they were when it started."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def child_name(owner: str, step: str, *, limit: int = OBJECT_NAME_LIMIT) -> str:
    """``<owner>-<step>``, shortened to ``limit`` with 8 hex digits of the full name's sha256 where it is longer."""
    return shortened(f"{owner}-{step}", limit=limit)


def shortened(full: str, *, limit: int) -> str:
    """A name of at most ``limit`` characters: itself, or a prefix and 8 hex digits of its sha256."""
    if len(full) <= limit:
        return full
    digest = hashlib.sha256(full.encode()).hexdigest()[:8]
    return f"{full[: limit - 9].rstrip('-.')}-{digest}"


def task_name(owner: str, task: str, attempt: int) -> str:
    """Name of a Job or PyTorchJob: ``<owner>-<task>-<attempt>``, a DNS label of at most 52 characters."""
    suffix = f"-{attempt}"
    # The training operator wants a name that begins with a letter (RFC 1035); ours may begin with a digit.
    start = "" if owner[0].isalpha() else "i-"
    return shortened(f"{start}{owner}-{as_label(task)}", limit=CHILD_NAME_LIMIT - len(suffix)) + suffix


def runspec_name(owner: str, task: str, digest: str) -> str:
    """Name of the ConfigMap that holds a RunSpec: ``<owner>-<task>-<8 hex digits of its hash>``."""
    return f"{shortened(f'{owner}-{as_label(task)}', limit=54)}-{digest[:8]}"


def as_label(step: str) -> str:
    """A step as a DNS label: ``train.pack-raw`` -> ``train-pack-raw``.

    Where more than the dot of our own steps had to be changed, 8 hex digits keep two names apart that were different.
    """
    own = step.replace(".pack-", "-pack-", 1).replace(".tokenizer", "-tokenizer", 1)
    plain = re.sub(r"[^a-z0-9-]+", "-", own.lower()).strip("-")
    return plain if plain == own else f"{plain}-{hashlib.sha256(step.encode()).hexdigest()[:8]}".lstrip("-")


def below(storage: StorageSpec, *parts: str) -> StorageSpec:
    """The same storage, further down."""
    return storage.model_copy(update={"uri": "/".join([storage.uri.rstrip("/"), *parts])})


def arm_step(arm: str, seed: int, *, seeds: int) -> str:
    """Step of one arm's training: ``train-instruct``, with ``-s<seed>`` where there are several seeds."""
    return f"train-{arm}" if seeds == 1 else f"train-{arm}-s{seed}"
