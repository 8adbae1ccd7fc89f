"""What every kind shares: naming, metadata, conditions, references, and rules that hold in Python and CEL."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

GROUP = "instructpt.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$"


@dataclass(frozen=True, slots=True)
class Rule:
    """A cross-field rule, written once for pydantic and once for the API server, with one message.

    Attributes:
        message: What the user reads, locally and from kubectl; names the field and the fix.
        cel: The expression of the CRD; ``self`` is the object that carries the rule.
        holds: The same in Python. ``None`` for rules on transitions (``oldSelf``), which only a server can check.
    """

    message: str
    cel: str
    holds: Callable[[Any], bool] | None = None


class ApiModel(BaseModel):
    """Base of all API models: camelCase on the wire, unknown fields refused, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for cls in reversed(type(self).__mro__):
            for rule in cls.__dict__.get("rules", ()):
                if rule.holds is not None and not rule.holds(self):
                    raise ValueError(rule.message)
        return self

    def to_wire(self) -> dict[str, Any]:
        """The object as it stands in YAML: camelCase keys, nothing that is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def parse_count(value: object) -> object:
    """``8B`` -> 8_000_000_000; numbers pass through; anything else is left for pydantic to refuse."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMBGT]?)", value.strip())
        if match is None:
            raise ValueError("must be a whole number or a number with one of the suffixes k, M, B, T, such as 500M")
        scaled = float(match[1]) * _SUFFIXES[match[2]]
        if scaled != int(scaled):
            raise ValueError("must come to a whole number")
        return int(scaled)
    return value


Count = Annotated[
    int,
    BeforeValidator(parse_count),
    Field(ge=1),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 32, "pattern": r"^\d+(\.\d+)?[kKMBGT]?$"}),
]
"""A positive number that may be written with a suffix: ``8B``, ``500M``, ``200k``."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _no_userinfo(uri: str) -> str:
    """Refuse credentials in a URI, wherever one is written."""
    if re.match(r"^[a-z][a-z0-9+.-]*://[^/]*@", uri):
        # The value is not repeated: it holds the secret.
        raise ValueError(URI_RULE.message)
    return uri


URI_RULE = Rule(
    "must not hold credentials; name them with secretRef",
    "!has(self) || !self.matches('^[a-z][a-z0-9+.-]*://[^/]*@')",
)
URI_MARK = "x-instructpt-uri"
"""Marks a field for :data:`URI_RULE`; it never reaches a CRD."""
Uri = Annotated[
    str, Field(min_length=1, max_length=2048, json_schema_extra={URI_MARK: True}), AfterValidator(_no_userinfo)
]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=40)]


class SecretRef(ApiModel):
    """A Secret in the same namespace; on a laptop, the AWS profile of that name."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret (or AWS profile).")]


class Access(ApiModel):
    """How a location is reached. Credentials are named here, never written here."""

    endpoint: Annotated[
        Uri | None, Field(default=None, description="URL of an S3-compatible server; empty for AWS.")
    ] = None
    region: Annotated[str | None, Field(default=None, max_length=64, description="Region of the bucket.")] = None
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            default=None, description="Secret with the credentials; empty means the default chain or workload identity."
        ),
    ] = None


class StorageSpec(Access):
    """A place that this object writes to: a folder or ``s3://bucket/prefix``."""

    uri: Annotated[Uri, Field(description="Folder or s3://bucket/prefix below which everything is written.")]


class ObjectRef(ApiModel):
    """Another object in the same namespace, whose output is the input here."""

    kind: Annotated[
        Literal["Corpus", "SynthesisJob", "TrainingJob", "EvaluationJob"], Field(description="Kind of the object.")
    ]
    name: Annotated[Name, Field(description="Name of the object.")]


class Input(Access):
    """An input: exactly one of ``uri`` (with an optional digest) and ``ref``."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "exactly one of uri and ref must be set",
            "has(self.uri) != has(self.ref)",
            lambda s: (s.uri is None) != (s.ref is None),
        ),
    )
    uri: Annotated[Uri | None, Field(default=None, description="Folder, s3:// prefix or manifest of the input.")] = None
    digest: Annotated[
        str | None,
        Field(
            default=None,
            max_length=71,
            pattern=r"^sha256:[0-9a-f]{64}$",
            description="Digest the input's manifest must have.",
        ),
    ] = None
    ref: Annotated[ObjectRef | None, Field(default=None, description="Object that produces the input.")] = None


class Condition(ApiModel):
    """One condition of an object's status, as in metav1.Condition."""

    type: Annotated[str, Field(max_length=64, description="Complete, Failed, Running, Suspended, Blocked, ...")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether it holds.")]
    reason: Annotated[str, Field(max_length=64, description="One word from the documented table of reasons.")]
    message: Annotated[str, Field(default="", max_length=4096, description="What it means and what to do.")] = ""
    last_transition_time: Annotated[
        str | None,
        Field(
            default=None, description="When status last changed (RFC 3339).", json_schema_extra={"format": "date-time"}
        ),
    ] = None
    observed_generation: Annotated[int | None, Field(default=None, description="Generation this was judged on.")] = None


class ObjectMeta(BaseModel):
    """The part of Kubernetes metadata that instructpt reads; the rest passes through unread."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: Annotated[Name, Field(description="At most 40 characters: names of children are made from it.")]
    namespace: Annotated[str | None, Field(default=None, description="Namespace.")] = None
    labels: Annotated[Mapping[str, str], Field(default_factory=dict, description="Labels.")]
    annotations: Annotated[Mapping[str, str], Field(default_factory=dict, description="Annotations.")]
    uid: Annotated[str | None, Field(default=None, description="Set by the API server.")] = None
    generation: Annotated[int | None, Field(default=None, description="Set by the API server.")] = None


@dataclass(frozen=True, slots=True)
class Scale:
    """Paths of the scale subresource, which ``kubectl scale`` and autoscalers use."""

    spec_replicas: str
    status_replicas: str
    selector: str


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """One column of ``kubectl get``."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


class Resource(ApiModel):
    """An API object. Each kind narrows ``kind``, ``spec`` and ``status``."""

    plural: ClassVar[str]
    short_name: ClassVar[str]
    columns: ClassVar[tuple[PrinterColumn, ...]] = ()
    scale: ClassVar[Scale | None] = None

    api_version: Annotated[Literal["instructpt.dev/v1alpha1"], Field(description="API group and version.")]
    metadata: Annotated[ObjectMeta, Field(description="Name, namespace, labels.")]

    @classmethod
    def kind_name(cls) -> str:
        """The kind, such as ``Corpus``."""
        return cls.__name__
