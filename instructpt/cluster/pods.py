"""The pod of a task: restricted, with a read-only root, and with what the user's podTemplate adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from instructpt.api.common import Resources
from instructpt.api.pods import amount
from instructpt.cluster.context import (
    FINALIZE_ROLE,
    METRICS_PORT,
    ROLE,
    RUNSPEC_FILE,
    RUNSPEC_FOLDER,
    SECRETS_FOLDER,
    TERMINATION_LOG,
    RenderContext,
)
from instructpt.cluster.grace import GRACE_SECONDS, grace_seconds
from instructpt.cluster.meta import is_finalize, task_labels
from instructpt.errors import ConfigError
from instructpt.plan.model import Stage, Task
from instructpt.plan.naming import runspec_name

USER = 65532
SCRATCH, MODELS, TMP, SHM = "/scratch", "/models", "/tmp", "/dev/shm"  # noqa: S108 - mount points of emptyDirs
VOLUME_RUNSPEC, VOLUME_SECRET = "runspec", "secret-"
GPU = "nvidia.com/gpu"

SMALL: dict[str, dict[str, str]] = {"requests": {"cpu": "100m", "memory": "256Mi"}}
"""What a worker asks for where nobody said anything: a pod without requests is the first to be evicted."""

FINALIZE: dict[str, dict[str, str]] = {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
"""Of a finishing task."""

_BOTH = ("serviceAccountName", "priorityClassName", "schedulerName", "tolerations", "imagePullSecrets")
"""Fields of podTemplate that hold for every pod of the object ..."""

_WORK_ONLY = ("nodeSelector", "affinity", "runtimeClassName")
"""... and those that choose a place for the workers: a finishing task needs no GPU node."""

_FIXED_ENV = ("INSTRUCTPT_WORKER_ID", "INSTRUCTPT_REPLICAS", "INSTRUCTPT_SCRATCH", "INSTRUCTPT_METRICS_PORT")

_SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")

Wire = dict[str, Any]


def pod_template(
    stage: Stage, task: Task, attempt: int, ctx: RenderContext, *, container: str, ports: Sequence[Wire] = ()
) -> Wire:
    """The pod template of one attempt.

    Args:
        stage: The stage.
        task: Its work or its finishing task.
        attempt: Number of the attempt.
        ctx: Owner, policy and images.
        container: Name of the container.
        ports: Ports beside that of the metrics.
    """
    user = _user(ctx)
    metadata: Wire = {"labels": {**user.get("labels", {}), **task_labels(task, attempt, ctx)}}
    if user.get("annotations"):
        metadata["annotations"] = dict(user["annotations"])
    return {
        "metadata": metadata,
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": _grace(task, user),
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **{name: user[name] for name in _BOTH if user.get(name)},
            **({} if is_finalize(task) else {name: user[name] for name in _WORK_ONLY if user.get(name)}),
            "containers": [_container(stage, task, ctx, user, container, ports)],
            "volumes": _by("name", _volumes(stage, task, ctx), user.get("volumes", ()), _is_ours),
        },
    }


def gpus_of(stage: Stage, task: Task) -> int:
    """GPUs of one pod."""
    if is_finalize(task):
        return 0
    train = task.runspec.train
    return max(stage.resources.gpus, train.gpus_per_node if train is not None else 0)


def secret_names(task: Task) -> tuple[str, ...]:
    """Every Secret that the RunSpec names.

    Raises:
        ConfigError: A name that no Secret can have; it would become a path.
    """
    names = sorted(set(_secret_names(task.runspec.to_wire())))
    for name in names:
        if len(name) > 253 or _SECRET_NAME.fullmatch(name) is None:
            raise ConfigError(
                "is not the name of a Secret", field="secretRef.name", value=name, fix="use a-z, 0-9, - and ."
            )
    return tuple(names)


def _secret_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "secretRef":
                yield inner["name"]
            else:
                yield from _secret_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _secret_names(inner)


def _user(ctx: RenderContext) -> Wire:
    return {} if ctx.policy.pod_template is None else ctx.policy.pod_template.to_wire()


def _grace(task: Task, user: Wire) -> int:
    if is_finalize(task):
        return GRACE_SECONDS
    wanted = user.get("terminationGracePeriodSeconds")
    return grace_seconds(task.runspec) if wanted is None else int(wanted)


def _container(stage: Stage, task: Task, ctx: RenderContext, user: Wire, name: str, ports: Sequence[Wire]) -> Wire:
    out: Wire = {
        "name": name,
        "image": _image(stage, task, ctx, user),
        "imagePullPolicy": user.get("imagePullPolicy") or ctx.images.pull_policy,
        "command": ["instructpt"],
        "args": list(task.argv(f"{RUNSPEC_FOLDER}/{RUNSPEC_FILE}")),
        "env": _by("name", _env(stage, task), user.get("env", ()), _is_reserved),
    }
    if user.get("envFrom"):
        out["envFrom"] = list(user["envFrom"])
    return {
        **out,
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}, *ports],
        "resources": _resources(stage, task, user),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_LOG,
        "volumeMounts": _by("mountPath", _mounts(stage, task), user.get("volumeMounts", ()), _is_ours_path),
    }


def _image(stage: Stage, task: Task, ctx: RenderContext, user: Wire) -> str:
    """An image of the user's own is meant for the work; the finishing task keeps that of the chart."""
    if is_finalize(task):
        return ctx.images.by_role[FINALIZE_ROLE[stage.kind], "cpu"]
    accelerator = "cuda" if gpus_of(stage, task) and ROLE[stage.kind] != "operator" else "cpu"
    return str(user.get("image") or ctx.images.by_role[ROLE[stage.kind], accelerator])


def _env(stage: Stage, task: Task) -> list[Wire]:
    fixed = {
        "INSTRUCTPT_REPLICAS": str(task.replicas),
        "INSTRUCTPT_SCRATCH": SCRATCH,
        "INSTRUCTPT_MODEL_CACHE": f"{MODELS}/synthesizer",
        "INSTRUCTPT_METRICS_PORT": str(METRICS_PORT),
        # The user id has no entry in the image's passwd: without a name getpass, and so torch's compiler, fails.
        "USER": "instructpt",
        # The root is read-only. vLLM, torch, Triton, FlashInfer and matplotlib write below these and nowhere else.
        "HOME": f"{SCRATCH}/home",
        "TMPDIR": TMP,
        "XDG_CACHE_HOME": f"{SCRATCH}/cache",
        "XDG_CONFIG_HOME": f"{SCRATCH}/config",
        "MPLCONFIGDIR": f"{SCRATCH}/matplotlib",
        "TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH}/cache/inductor",
        "TRITON_CACHE_DIR": f"{SCRATCH}/cache/triton",
        "HF_HOME": f"{MODELS}/huggingface",
    }
    if stage.resources.cpus is not None and not is_finalize(task):
        # Python counts the cores of the node, not those of the pod.
        fixed["INSTRUCTPT_THREADS"] = str(max(1, int(stage.resources.cpus)))
    worker = {"name": "INSTRUCTPT_WORKER_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    return [worker, *({"name": name, "value": value} for name, value in fixed.items())]


def _resources(stage: Stage, task: Task, user: Wire) -> Wire:
    """Ours below the podTemplate's, and that below what the stage itself asks for."""
    layers: list[Wire] = [FINALIZE if is_finalize(task) else SMALL, user.get("resources", {})]
    if not is_finalize(task):
        layers.append(_wanted(stage, task))
    out: Wire = {"requests": {}, "limits": {}}
    for layer in layers:
        requests, limits = layer.get("requests", {}), layer.get("limits", {})
        out["requests"] |= requests
        out["limits"] |= limits
        # Kubernetes refuses a request above its limit: what a later layer says moves the other one along.
        for name in out["requests"].keys() & out["limits"].keys():
            if amount(out["requests"][name]) > amount(out["limits"][name]):
                moved = out["requests" if name in limits else "limits"]
                moved[name] = (limits if name in limits else requests)[name]
    return {name: value for name, value in out.items() if value}


def _wanted(stage: Stage, task: Task) -> Wire:
    """What the stage asks for. Memory is limited to what was asked; a limit on CPU would only waste idle cores."""
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    want: Resources = stage.resources
    if want.cpus is not None:
        requests["cpu"] = str(int(want.cpus)) if want.cpus == int(want.cpus) else f"{max(1, round(want.cpus * 1000))}m"
    if want.memory is not None:
        requests["memory"] = limits["memory"] = want.memory
    gpus = gpus_of(stage, task)
    if gpus:
        limits[GPU] = str(gpus)
    return {"requests": requests, "limits": limits}


def _needs_shm(stage: Stage, task: Task) -> bool:
    """Ranks, and the processes of vLLM, exchange data there; the default is 64 MiB."""
    if is_finalize(task):
        return False
    section = task.runspec.synthesize
    return stage.kind == "train" or (section is not None and section.settings.engine.name == "vllm")


def _volumes(stage: Stage, task: Task, ctx: RenderContext) -> list[Wire]:
    config = runspec_name(ctx.owner.name, task.name, task.runspec.hash)
    out: list[Wire] = [
        {"name": VOLUME_RUNSPEC, "configMap": {"name": config, "defaultMode": 0o444}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "models", "emptyDir": {}},
    ]
    if _needs_shm(stage, task):
        out.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    for index, name in enumerate(secret_names(task)):
        secret = {"secretName": name, "defaultMode": 0o440, "optional": False}
        out.append({"name": f"{VOLUME_SECRET}{index}", "secret": secret})
    return out


def _mounts(stage: Stage, task: Task) -> list[Wire]:
    out: list[Wire] = [
        {"name": VOLUME_RUNSPEC, "mountPath": RUNSPEC_FOLDER, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "tmp", "mountPath": TMP},
        {"name": "models", "mountPath": MODELS},
    ]
    if _needs_shm(stage, task):
        out.append({"name": "shm", "mountPath": SHM})
    for index, name in enumerate(secret_names(task)):
        out.append({"name": f"{VOLUME_SECRET}{index}", "mountPath": f"{SECRETS_FOLDER}/{name}", "readOnly": True})
    return out


def _is_reserved(name: str) -> bool:
    """Variables that a worker finds its work by; caches, homes and threads are the user's to move."""
    return name in _FIXED_ENV


def _is_ours(name: str) -> bool:
    """Volumes that the worker trusts; a cache may be replaced, such as ``models`` by a claim."""
    return name == VOLUME_RUNSPEC or name.startswith(VOLUME_SECRET)


def _is_ours_path(path: str) -> bool:
    return path == RUNSPEC_FOLDER or path.startswith(f"{SECRETS_FOLDER}/")


def _by(key: str, ours: Iterable[Wire], theirs: Iterable[Mapping[str, Any]], keep: Any) -> list[Wire]:
    """Both lists, ours first; of two entries with one key ours is kept where ``keep`` says so, else theirs."""
    merged = {entry[key]: entry for entry in ours}
    for entry in theirs:
        name = entry[key]
        if name not in merged or not keep(name):
            merged[name] = dict(entry)
    return list(merged.values())
