"""The narrow part of a pod that a user may set, with the names that Kubernetes gives it.

What could leave the pod's sandbox has no field here: host paths and networks, privileges, init containers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from instructpt.api.base import ApiModel, Rule

LabelValue = Annotated[str, Field(max_length=63)]
AnnotationValue = Annotated[str, Field(max_length=4096)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
Quantity = Annotated[str, Field(max_length=32, pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]

_OURS = ("instructpt.dev/", "app.kubernetes.io/managed-by", "batch.kubernetes.io/", "training.kubeflow.org/")
_LIST = {"x-kubernetes-list-type": "atomic"}
_BY_NAME = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
_UNTYPED = {"x-kubernetes-preserve-unknown-fields": True}


class KeySelector(ApiModel):
    """One key of a Secret or ConfigMap in the same namespace."""

    name: Annotated[ObjectName, Field(description="Name of the Secret or ConfigMap.")]
    key: Annotated[str, Field(min_length=1, max_length=253, description="Key in the Secret or ConfigMap.")]
    optional: Annotated[bool | None, Field(default=None, description="Whether the pod starts without it.")] = None


class EnvVarSource(ApiModel):
    """Where the value of an environment variable comes from."""

    secret_key_ref: Annotated[KeySelector | None, Field(default=None, description="A key of a Secret.")] = None
    config_map_key_ref: Annotated[KeySelector | None, Field(default=None, description="A key of a ConfigMap.")] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "valueFrom needs exactly one of secretKeyRef and configMapKeyRef",
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            lambda s: (s.secret_key_ref is None) != (s.config_map_key_ref is None),
        ),
    )


OPEN_ENV = (
    "INSTRUCTPT_DEVICE",
    "INSTRUCTPT_JUDGE_API_KEY",
    "INSTRUCTPT_JUDGE_API_KEY_FILE",
    "INSTRUCTPT_LOG_LEVEL",
    "INSTRUCTPT_MEET_SECONDS",
    "INSTRUCTPT_MODEL_CACHE",
    "INSTRUCTPT_OPENAI_API_KEY",
    "INSTRUCTPT_OPENAI_API_KEY_FILE",
    "INSTRUCTPT_THREADS",
)
"""The only variables of ours that a user may set: without the others a worker would not find its work."""

LAUNCHER_ENV = ("JOB_COMPLETION_INDEX", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
"""Set by Kubernetes and by the training operator: which worker this is, and where the first one is."""


def _is_reserved(name: str) -> bool:
    return name in LAUNCHER_ENV or (name.startswith("INSTRUCTPT_") and name not in OPEN_ENV)


def _as_list(names: Iterable[str]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


class EnvVar(ApiModel):
    """One environment variable of the workers."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            description="Name of the variable; caches such as HF_HOME may be moved.",
        ),
    ]
    value: Annotated[
        str | None, Field(default=None, max_length=4096, description="Value; a secret belongs in valueFrom.")
    ] = None
    value_from: Annotated[EnvVarSource | None, Field(default=None, description="Where the value comes from.")] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "an environment variable has value or valueFrom, not both",
            "!(has(self.value) && has(self.valueFrom))",
            lambda s: s.value is None or s.value_from is None,
        ),
        Rule(
            f"podTemplate.env must not set {', '.join(LAUNCHER_ENV)}, and of INSTRUCTPT_... only {', '.join(OPEN_ENV)}",
            f"!(self.name in {_as_list(LAUNCHER_ENV)}) && "
            f"(!self.name.startsWith('INSTRUCTPT_') || self.name in {_as_list(OPEN_ENV)})",
            lambda s: not _is_reserved(s.name),
        ),
    )


class EnvFromRef(ApiModel):
    """A Secret or ConfigMap all of whose keys become environment variables."""

    name: Annotated[ObjectName, Field(description="Name of the Secret or ConfigMap.")]
    optional: Annotated[bool | None, Field(default=None, description="Whether the pod starts without it.")] = None


class EnvFromSource(ApiModel):
    """Environment variables from all keys of one Secret or ConfigMap."""

    prefix: Annotated[str | None, Field(default=None, max_length=253, description="Text put before each key.")] = None
    secret_ref: Annotated[EnvFromRef | None, Field(default=None, description="Secret all of whose keys are taken.")] = (
        None
    )
    config_map_ref: Annotated[
        EnvFromRef | None, Field(default=None, description="ConfigMap all of whose keys are taken.")
    ] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "envFrom needs exactly one of secretRef and configMapRef",
            "has(self.secretRef) != has(self.configMapRef)",
            lambda s: (s.secret_ref is None) != (s.config_map_ref is None),
        ),
    )


class Toleration(ApiModel):
    """A taint that the pods tolerate."""

    key: Annotated[str | None, Field(default=None, max_length=317, description="Key of the taint; empty: all.")] = None
    operator: Annotated[
        Literal["Exists", "Equal"] | None, Field(default=None, description="Equal (with value) or Exists.")
    ] = None
    value: Annotated[LabelValue | None, Field(default=None, description="Value of the taint, with operator Equal.")] = (
        None
    )
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(default=None, description="Effect of the taint; empty: all."),
    ] = None
    toleration_seconds: Annotated[
        int | None, Field(default=None, ge=0, description="Of NoExecute: how long the pod stays; empty: for ever.")
    ] = None


class KeyToPath(ApiModel):
    """One key of a volume as a file."""

    key: Annotated[str, Field(min_length=1, max_length=253, description="Key in the Secret or ConfigMap.")]
    path: Annotated[str, Field(min_length=1, max_length=1024, description="File below the mount, relative.")]


_Items = Annotated[
    tuple[KeyToPath, ...] | None,
    Field(default=None, max_length=64, description="Keys that become files; empty: all.", json_schema_extra=_LIST),
]


class EmptyDirVolume(ApiModel):
    """Scratch space that goes with the pod."""

    medium: Annotated[Literal["Memory"] | None, Field(default=None, description="Memory, or empty for disk.")] = None
    size_limit: Annotated[Quantity | None, Field(default=None, description="Largest size, such as 8Gi.")] = None


class ClaimVolume(ApiModel):
    """A PersistentVolumeClaim in the same namespace."""

    claim_name: Annotated[ObjectName, Field(description="Name of the PersistentVolumeClaim.")]
    read_only: Annotated[bool | None, Field(default=None, description="Whether it is mounted read-only.")] = None


class ConfigMapVolume(ApiModel):
    """A ConfigMap as files."""

    name: Annotated[ObjectName, Field(description="Name of the ConfigMap.")]
    items: _Items = None
    optional: Annotated[bool | None, Field(default=None, description="Whether the pod starts without it.")] = None


class SecretVolume(ApiModel):
    """A Secret as files."""

    secret_name: Annotated[ObjectName, Field(description="Name of the Secret.")]
    items: _Items = None
    optional: Annotated[bool | None, Field(default=None, description="Whether the pod starts without it.")] = None


class Volume(ApiModel):
    """A volume of the workers' pods."""

    name: Annotated[
        str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", description="Name, for volumeMounts.")
    ]
    empty_dir: Annotated[
        EmptyDirVolume | None, Field(default=None, description="Scratch space that goes with the pod.")
    ] = None
    persistent_volume_claim: Annotated[
        ClaimVolume | None, Field(default=None, description="A PersistentVolumeClaim, such as a cache that stays.")
    ] = None
    config_map: Annotated[ConfigMapVolume | None, Field(default=None, description="A ConfigMap as files.")] = None
    secret: Annotated[SecretVolume | None, Field(default=None, description="A Secret as files.")] = None
    projected: Annotated[
        Mapping[str, Any] | None,
        Field(
            default=None,
            description="Several sources in one folder, such as a service account token; as in Kubernetes.",
            json_schema_extra=_UNTYPED,
        ),
    ] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "a volume needs exactly one of emptyDir, persistentVolumeClaim, configMap, secret and projected; "
            "others, such as hostPath, are not allowed",
            "[has(self.emptyDir), has(self.persistentVolumeClaim), has(self.configMap), has(self.secret), "
            "has(self.projected)].exists_one(given, given)",
            lambda s: (
                sum(
                    v is not None for v in (s.empty_dir, s.persistent_volume_claim, s.config_map, s.secret, s.projected)
                )
                == 1
            ),
        ),
    )


class VolumeMount(ApiModel):
    """Where a volume is seen in the workers."""

    name: Annotated[str, Field(min_length=1, max_length=63, description="Name of one of podTemplate.volumes.")]
    mount_path: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^/[^:]*$", description="Folder, from the root.")
    ]
    sub_path: Annotated[
        str | None,
        Field(default=None, max_length=1024, description="Folder of the volume that is mounted; empty: all of it."),
    ] = None
    read_only: Annotated[bool | None, Field(default=None, description="Whether it is mounted read-only.")] = None


class PodResourceList(ApiModel):
    """Amounts, as Kubernetes writes them."""

    cpu: Annotated[Quantity | None, Field(default=None, description="CPU cores, such as 2 or 500m.")] = None
    memory: Annotated[Quantity | None, Field(default=None, description="Memory, such as 8Gi.")] = None
    ephemeral_storage: Annotated[
        Quantity | None,
        Field(default=None, alias="ephemeral-storage", description="Disk of the node for scratch, such as 100Gi."),
    ] = None


class PodResources(ApiModel):
    """What every pod of the object asks for and may use at most. GPUs are asked for in the spec itself."""

    requests: Annotated[
        PodResourceList | None, Field(default=None, description="What a node must have free for the pod.")
    ] = None
    limits: Annotated[
        PodResourceList | None, Field(default=None, description="What the pod may use; above its memory it is killed.")
    ] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "podTemplate.resources: no request may be above its limit; lower the request or raise the limit",
            "!has(self.requests) || !has(self.limits) || "
            + " && ".join(
                f"(!has(self.requests.{name}) || !has(self.limits.{name}) || "
                f"quantity(self.requests.{name}).compareTo(quantity(self.limits.{name})) <= 0)"
                # A dash in a name, as CEL writes it.
                for name in ("cpu", "memory", "ephemeral__dash__storage")
            ),
            lambda s: _within_limits(s),
        ),
    )


_SCALES = {"": Fraction(1), "m": Fraction(1, 1000)} | {
    unit: Fraction(base**power)
    for base, units in ((1000, ("k", "M", "G", "T")), (1024, ("Ki", "Mi", "Gi", "Ti")))
    for power, unit in enumerate(units, start=1)
}


def amount(quantity: str) -> Fraction:
    """``500m`` -> 1/2, ``2Ki`` -> 2048."""
    number = quantity.rstrip("mkKMGTi")
    return Fraction(number) * _SCALES[quantity[len(number) :]]


def _within_limits(resources: PodResources) -> bool:
    requests = resources.requests.to_wire() if resources.requests else {}
    limits = resources.limits.to_wire() if resources.limits else {}
    return all(amount(requests[name]) <= amount(limits[name]) for name in requests.keys() & limits.keys())


class PullSecret(ApiModel):
    """A Secret with the credentials of a registry."""

    name: Annotated[ObjectName, Field(description="Name of the Secret.")]


class PodTemplate(ApiModel):
    """The part of a pod that may be set by the user. Nothing here can leave the pod's sandbox."""

    labels: Annotated[
        Mapping[str, LabelValue] | None,
        Field(default=None, description="Labels added to the pods.", json_schema_extra={"maxProperties": 64}),
    ] = None
    annotations: Annotated[
        Mapping[str, AnnotationValue] | None,
        Field(default=None, description="Annotations added to the pods.", json_schema_extra={"maxProperties": 64}),
    ] = None
    image: Annotated[str | None, Field(default=None, max_length=512, description="Image in place of the chart's.")] = (
        None
    )
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"] | None, Field(default=None, description="When to pull the image.")
    ] = None
    image_pull_secrets: Annotated[
        tuple[PullSecret, ...] | None,
        Field(default=None, max_length=16, description="Credentials of registries.", json_schema_extra=_BY_NAME),
    ] = None
    resources: Annotated[
        PodResources | None,
        Field(
            default=None,
            description="Of every pod of the object, finishing tasks included; what the spec asks for a worker comes "
            "before it.",
        ),
    ] = None
    env: Annotated[
        tuple[EnvVar, ...] | None,
        Field(
            default=None,
            max_length=64,
            description="Environment variables, such as HF_TOKEN from a Secret.",
            json_schema_extra=_BY_NAME,
        ),
    ] = None
    env_from: Annotated[
        tuple[EnvFromSource, ...] | None,
        Field(
            default=None,
            max_length=16,
            description="Secrets and ConfigMaps whose keys become environment variables.",
            json_schema_extra=_LIST,
        ),
    ] = None
    volumes: Annotated[
        tuple[Volume, ...] | None,
        Field(
            default=None,
            max_length=32,
            description="Volumes; one with the name models, scratch, tmp or shm replaces ours.",
            json_schema_extra=_BY_NAME,
        ),
    ] = None
    volume_mounts: Annotated[
        tuple[VolumeMount, ...] | None,
        Field(
            default=None,
            max_length=32,
            description="Where the volumes are seen.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]},
        ),
    ] = None
    node_selector: Annotated[
        Mapping[str, LabelValue] | None,
        Field(default=None, description="Labels the node must have.", json_schema_extra={"maxProperties": 64}),
    ] = None
    tolerations: Annotated[
        tuple[Toleration, ...] | None,
        Field(default=None, max_length=32, description="Taints that the pods tolerate.", json_schema_extra=_LIST),
    ] = None
    affinity: Annotated[
        Mapping[str, Any] | None,
        Field(default=None, description="Affinity, as in Kubernetes.", json_schema_extra=_UNTYPED),
    ] = None
    service_account_name: Annotated[
        str | None, Field(default=None, max_length=253, description="Service account, for workload identity.")
    ] = None
    priority_class_name: Annotated[
        str | None, Field(default=None, max_length=253, description="PriorityClass of the pods.")
    ] = None
    scheduler_name: Annotated[
        str | None,
        Field(default=None, max_length=253, description="Scheduler that places the pods, in place of the default one."),
    ] = None
    runtime_class_name: Annotated[
        str | None, Field(default=None, max_length=253, description="RuntimeClass of the workers, such as nvidia.")
    ] = None
    termination_grace_period_seconds: Annotated[
        int | None, Field(default=None, ge=0, description="In place of the planned grace period.")
    ] = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "podTemplate.labels must not hold labels of the operator or of Jobs (instructpt.dev/..., "
            "app.kubernetes.io/managed-by, batch.kubernetes.io/..., training.kubeflow.org/...)",
            "!has(self.labels) || self.labels.all(k, !k.startsWith('instructpt.dev/') && "
            "!k.startsWith('app.kubernetes.io/managed-by') && !k.startsWith('batch.kubernetes.io/') && "
            "!k.startsWith('training.kubeflow.org/'))",
            lambda s: not any(key.startswith(_OURS) for key in s.labels or ()),
        ),
        Rule(
            "each of podTemplate.volumeMounts must name one of podTemplate.volumes",
            "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && "
            "self.volumes.exists(v, v.name == m.name))",
            lambda s: {m.name for m in s.volume_mounts or ()} <= {v.name for v in s.volumes or ()},
        ),
    )
