"""One case for each way to get stuck or to fail, with what the docs say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import operators
from cluster import s3
from cluster.base_image import NSLOOKUP
from cluster.layout import S3_ENDPOINT, Layout
from lifecycle import Case, Object
from lifecycle_world import DOCUMENTS

from instructpt.api.reasons import Reason

NOWHERE = "127.0.0.1:1/instructpt:none"
"""An image of a registry that does not answer."""


def access(secret: str = "s3") -> Object:
    return {"endpoint": S3_ENDPOINT, "secretRef": {"name": secret}}


def corpus(name: str, *, secret: str = "s3", documents: str = "good", **spec: Any) -> Object:
    """A Corpus over documents of this run."""
    storage = {"uri": f"{DOCUMENTS}/{name}", **access(secret)}
    return operators.corpus(name, uri=f"{DOCUMENTS}/docs/{documents}/*", storage=storage, **access(secret), **spec)


def synthesis(name: str, source: str = "", **spec: Any) -> Object:
    """Rules over a Corpus: no model is needed."""
    storage = {"uri": f"{DOCUMENTS}/{name}", **access()}
    base = {
        "storage": storage,
        "input": {"ref": {"kind": "Corpus", "name": source}},
        "parallelism": 1,
        "leaseSeconds": 5,
    }
    return operators.synthesis(name, **{**base, **spec})


def secret(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def training(name: str, **spec: Any) -> Object:
    """A TrainingJob of a master and a worker over text of this run; it ends after a few steps."""
    base = {
        "storage": {"uri": f"{DOCUMENTS}/{name}", **access()},
        "mixture": [{"uri": f"{DOCUMENTS}/docs/good/*", "format": "jsonl", "name": "text", **access()}],
        "init": {"preset": "tiny", "config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                              "num_attention_heads": 4, "num_key_value_heads": 4}},
        "tokenizer": {"train": {"vocabSize": 300}},
        "tokens": 2000,
        "sequenceLength": 64,
        "globalBatchRows": 2,
        "microBatchRows": 1,
        "maxRepeats": 50,
    }  # fmt: skip
    return operators.training(name, **{**base, **spec})


def foreign_job(name: str) -> Object:
    container = {"name": "main", "image": NSLOOKUP, "imagePullPolicy": "Never", "command": ["true"]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": name}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}


def env_from(kind: str, name: str, key: str) -> Object:
    return {"env": [{"name": "TOKEN", "valueFrom": {kind: {"name": name, "key": key}}}]}


def make_secret(name: str) -> Callable[..., None]:
    """Creates a Secret with the right keys."""
    return lambda world, namespace=0: world.apply(secret(name, **_keys(world.layout)), namespace)


def edit(obj: Object, **spec: Any) -> Any:
    return lambda world: world.edit(obj, **spec)


def _keys(layout: Layout) -> dict[str, str]:
    keys = s3.credentials(layout)
    return {k: keys[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


NOT_STARTING = {"podTemplate": {"nodeSelector": {"instructpt.dev/no-such": "label"}}}
IN_NEW_OBJECT = "Delete the object and create it again: what is committed on the storage is used."


def _blocked() -> Iterator[Case]:
    """Cases where Kubernetes cannot start a pod, or nothing may be started yet."""
    obj = corpus("no-secret", secret="later")
    yield Case(
        name="missing Secret", object=obj,
        why="`secretRef.name` names a Secret that is not in this namespace.",
        do="Create it; the pods that wait start by themselves.",
        shows=("Blocked", Reason.SECRET_MISSING), says="create the Secret",
        knows=lambda seen: seen.told("FailedMount"), fix=make_secret("later"),
    )  # fmt: skip
    obj = corpus("no-env", podTemplate=env_from("secretKeyRef", "tokens", "hub"))
    yield Case(
        name="missing Secret of an environment variable", object=obj,
        why="`podTemplate.env` takes a value from a Secret that is not in this namespace.",
        do="Create it; the pods that wait start by themselves.",
        shows=("Blocked", Reason.SECRET_MISSING), says="create the Secret",
        knows=lambda seen: seen.waits("CreateContainerConfigError"),
        fix=lambda world: world.apply(secret("tokens", hub="x")),
    )  # fmt: skip
    obj = corpus("no-key", podTemplate=env_from("configMapKeyRef", "kube-root-ca.crt", "no-such-key"))
    yield Case(
        name="missing key of a ConfigMap", object=obj,
        why="`podTemplate.env` takes a value from a ConfigMap that does not have this key.",
        do="Put the key there, or correct `podTemplate`.",
        shows=("Blocked", Reason.SECRET_MISSING), says="put the key into the ConfigMap",
        knows=lambda seen: seen.waits("CreateContainerConfigError"), fix=edit(obj, podTemplate=None),
    )  # fmt: skip
    obj = corpus("no-image", podTemplate={"image": NOWHERE, "imagePullPolicy": "IfNotPresent"})
    yield Case(
        name="image that cannot be pulled", object=obj,
        why="`podTemplate.image`, or the chart's images, name one that the registry does not have or does not give.",
        do="Correct `podTemplate.image` or add `podTemplate.imagePullSecrets`; the stuck attempt is replaced.",
        shows=("Blocked", Reason.IMAGE_PULL), says="set podTemplate.image",
        knows=lambda seen: seen.waits("ErrImagePull", "ImagePullBackOff"), fix=edit(obj, podTemplate=None),
    )  # fmt: skip
    obj = corpus("no-node", **NOT_STARTING)
    yield Case(
        name="unschedulable pod", object=obj,
        why="No node fits: its labels, taints, or what is free of CPU, memory and GPUs.",
        do="Add nodes, or correct `podTemplate`; the stuck attempt is replaced.",
        shows=("Blocked", Reason.UNSCHEDULABLE), says="change podTemplate.nodeSelector",
        knows=lambda seen: seen.unschedulable(), fix=edit(obj, podTemplate=None),
    )  # fmt: skip
    obj = corpus("no-account", podTemplate={"serviceAccountName": "nobody"})
    yield Case(
        name="missing service account", object=obj,
        why="`podTemplate.serviceAccountName` is not in this namespace.",
        do="Create it, or correct `podTemplate`.",
        shows=("Blocked", Reason.POD_START), says="create the service account",
        knows=lambda seen: seen.told("FailedCreate"), fix=edit(obj, podTemplate=None),
    )  # fmt: skip
    obj = corpus("no-quota")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    yield Case(
        name="exhausted quota", object=obj, before=(quota,), namespace=1,
        why="A ResourceQuota or LimitRange of the namespace refuses the pods.",
        do="Raise it, or ask for less; it goes on by itself, after at most a few minutes.",
        shows=("Blocked", Reason.QUOTA), says="raise the quota",
        knows=lambda seen: seen.told("FailedCreate"),
        fix=lambda world: world.kubectl("delete", "resourcequota", "none", namespace=1),
    )  # fmt: skip
    obj = corpus("taken")
    yield Case(
        name="name collision", object=obj, before=(foreign_job("taken-corpus-1"),),
        why="A Job that somebody else made has the name of one of ours. It is neither adopted nor deleted.",
        do="Delete or rename it, or give this object another name.",
        shows=("Blocked", Reason.NAME_CONFLICT), says="delete or rename it",
        fix=lambda world: world.kubectl("delete", "job", "taken-corpus-1"),
    )  # fmt: skip
    yield Case(
        name="input that does not exist", object=synthesis("too-early", "later-corpus"),
        why="`input.ref` names an object that is not there, or is not complete.",
        do="Create it, or wait for it; it goes on by itself.",
        shows=("Blocked", Reason.INPUT_NOT_READY), says="create it, or correct the ref",
        fix=lambda world: world.create(corpus("later-corpus")),
    )  # fmt: skip
    obj = corpus("held", suspend=True)
    yield Case(
        name="suspended", object=obj,
        why="`spec.suspend` is true: there are no pods, and committed work is kept.",
        do="Set it to false.",
        shows=("Suspended", Reason.SUSPENDED), says="set spec.suspend to false", fix=edit(obj, suspend=False),
    )  # fmt: skip


GANG = training("gang")
GANG_EDITS: tuple[tuple[str, Object], ...] = (
    ("training that finds no node", NOT_STARTING["podTemplate"]),
    ("training whose image cannot be pulled", {"image": NOWHERE, "imagePullPolicy": "IfNotPresent"}),
    ("training that lacks a Secret", env_from("secretKeyRef", "training-tokens", "hub")),
)
"""What goes wrong with one training, one after the other: in the end it completes."""
GANG_STEP = "step train: "
"""Not one of its preparation, which may wait for a busy node as well."""


def _gang() -> Iterator[Case]:
    """Cases of a PyTorchJob. Its worker waits in the training operator's init container while the master is stuck."""
    unschedulable, image, lacking = (name for name, _ in GANG_EDITS)
    yield Case(
        name=unschedulable, object=GANG,
        why="No node fits a pod of the gang; the others wait for it.",
        do="Add nodes or GPUs, or correct `podTemplate`; the stuck attempt is replaced and counts as no failure.",
        shows=("Blocked", Reason.UNSCHEDULABLE), says="change podTemplate.nodeSelector", about=GANG_STEP,
        knows=lambda seen: seen.of("train").unschedulable(), fix=edit(GANG, podTemplate=None),
    )  # fmt: skip
    yield Case(
        name=image, object=GANG,
        why="The master's image cannot be pulled. The worker waits for the master in an init container that the "
        "training operator adds: that is no fault of its own, and is not what is told.",
        do="Correct `podTemplate.image` or add `podTemplate.imagePullSecrets`; the stuck attempt is replaced.",
        shows=("Blocked", Reason.IMAGE_PULL), says="set podTemplate.image", about=GANG_STEP,
        knows=lambda seen: seen.of("train").waits("ErrImagePull", "ImagePullBackOff"), fix=edit(GANG, podTemplate=None),
    )  # fmt: skip
    yield Case(
        name=lacking, object=GANG,
        why="`podTemplate.env` takes a value from a Secret that is not in this namespace.",
        do="Create it; the pods that wait start by themselves.",
        shows=("Blocked", Reason.SECRET_MISSING), says="create the Secret", about=GANG_STEP,
        knows=lambda seen: seen.of("train").waits("CreateContainerConfigError"),
        fix=lambda world: world.apply(secret("training-tokens", hub="x")),
    )  # fmt: skip


def _change_after_inspection(world: Any) -> None:
    """A corpus is inspected, then one of its objects is written anew, then a synthesis reads it."""
    source = corpus("changes", documents="changes")
    world.create(source)
    world.wait(source, "Complete", seconds=200)
    world.put("docs/changes/part.jsonl", b'{"text": "Another text than was inspected."}')
    world.create(CHANGED)


CHANGED = synthesis("over-changed", "changes")


def _failing() -> Iterator[Case]:
    """Cases that a worker finds out, or the clock."""
    yield Case(
        name="micro-shard that has changed", object=CHANGED, start=_change_after_inspection,
        why="An object of the corpus was written anew, damaged or deleted after the corpus was inspected.",
        do="Put the object back, or inspect the corpus again into an empty storage.",
        shows=("Failed", Reason.CORPUS_REFUSED), says="inspect the corpus again", knows=lambda seen: seen.ended(),
    )  # fmt: skip
    yield Case(
        name="wrong credentials", object=corpus("wrong-keys", secret="wrong"),
        before=(secret("wrong", AWS_ACCESS_KEY_ID="somebody", AWS_SECRET_ACCESS_KEY="else"),),
        why="The storage refuses the keys of the Secret.", do=f"Correct the Secret. {IN_NEW_OBJECT}",
        shows=("Failed", Reason.CREDENTIALS), says="check the credentials that secretRef names",
        knows=lambda seen: seen.ended(),
    )  # fmt: skip
    yield Case(
        name="Secret without a key", object=corpus("half-keys", secret="half"),
        before=(secret("half", AWS_ACCESS_KEY_ID="somebody"),),
        why="The Secret lacks `AWS_ACCESS_KEY_ID` or `AWS_SECRET_ACCESS_KEY`.", do=f"Add it. {IN_NEW_OBJECT}",
        shows=("Failed", Reason.CREDENTIALS), says="put the key AWS_SECRET_ACCESS_KEY into the Secret",
        knows=lambda seen: seen.ended(),
    )  # fmt: skip
    yield Case(
        name="too many unreadable records", object=corpus("bad-records", documents="bad"),
        why="More than `maxInvalidShare` of the records cannot be read. Fewer are dead letters, and it is Complete.",
        do=f"Correct them, or raise `maxInvalidShare`. {IN_NEW_OBJECT}",
        shows=("Failed", Reason.CORPUS_REFUSED), says="maxInvalidShare", knows=lambda seen: seen.ended(),
    )  # fmt: skip
    yield Case(
        name="damaged object", object=corpus("damaged", documents="damaged"),
        why="An object of the corpus is truncated, corrupt, or of another format than its name says.",
        do=f"Write it again or leave it out. {IN_NEW_OBJECT}",
        shows=("Failed", Reason.CORPUS_REFUSED), says="write it again", knows=lambda seen: seen.ended(),
    )  # fmt: skip
    yield Case(
        name="wrong field", object=corpus("wrong-field", textField="body"),
        why="The spec names something that the data does not have.", do=f"Correct the spec. {IN_NEW_OBJECT}",
        shows=("Failed", Reason.INVALID_SPEC), says="set it to one of the fields that exist",
        knows=lambda seen: seen.ended(),
    )  # fmt: skip
    obj = corpus("no-bucket")
    obj["spec"]["storage"]["uri"] = "s3://bucket-of-<namespace>/no-bucket"
    yield Case(
        name="failure that is tried again", object=obj,
        why="A worker failed in a way that may pass: here the bucket of `storage.uri` is not there.",
        do="Nothing, if it passes; else what the message says, before `backoffLimit` is spent.",
        shows=("Running", Reason.WORKER_FAILED), says="create it", knows=lambda seen: seen.ended(),
        fix=lambda world: world.s3.create_bucket(Bucket=f"bucket-of-{world.namespace}"),
    )  # fmt: skip
    obj = corpus("gives-up", backoffLimit=0)
    obj["spec"]["storage"]["uri"] = "s3://no-such-bucket-<namespace>/gives-up"
    yield Case(
        name="failed too often", object=obj,
        why="Attempts failed more often than `backoffLimit` allows.",
        do=f"What the last error says. {IN_NEW_OBJECT}",
        shows=("Failed", Reason.BACKOFF), says="backoffLimit is 0; the last time",
        knows=lambda seen: seen.job_failed("finalize"),
    )  # fmt: skip
    yield Case(
        name="image without instructpt", object=corpus("bare-image", podTemplate={"image": NSLOOKUP}),
        why="`podTemplate.image` starts, but does not have the program.",
        do="Build it from the project's image. Correct `podTemplate`: it holds from the next attempt on.",
        shows=("Running", Reason.WORKER_FAILED), says="the container did not start", knows=lambda seen: seen.ended(),
    )  # fmt: skip
    engine = {"name": "mined", "resources": {"memory": "32Mi"}}
    source = {"uri": f"{DOCUMENTS}/large", **access()}
    yield Case(
        name="out of memory", object=synthesis("small", input=source, engine=engine),
        why="A worker used more than its memory limit.",
        do="Raise `podTemplate.resources.limits.memory`: that may be done at any time and holds from the next attempt. "
        f"Or raise `resources.memory` of the stage, or lower what it holds at once. {IN_NEW_OBJECT}",
        shows=("Running", Reason.OUT_OF_MEMORY), says="raise podTemplate.resources.limits.memory",
        knows=lambda seen: seen.ended(reason="OOMKilled"),
    )  # fmt: skip
    yield Case(
        name="deadline", object=corpus("late", activeDeadlineSeconds=5, **NOT_STARTING),
        why="`activeDeadlineSeconds` have passed since the first worker was created, or since the last resume.",
        do=f"Raise it. {IN_NEW_OBJECT}",
        shows=("Failed", Reason.DEADLINE), says="raise it in a new object",
        knows=lambda seen: _age(seen.object.get("status", {}).get("startTime")) >= 5,
    )  # fmt: skip


def _age(moment: str | None) -> float:
    if moment is None:
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


CASES = (*_blocked(), *_failing())
GANG_CASES = tuple(_gang())
ORDER = [case.name for case in (*_blocked(), *GANG_CASES, *_failing())]
