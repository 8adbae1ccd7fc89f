"""What every kind shares: naming, metadata, conditions, references, and rules that hold in Python and CEL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

from instructpt.api.rules import Rule as Rule
from instructpt.api.uris import CorpusUri as CorpusUri
from instructpt.api.uris import Uri as Uri
from instructpt.api.uris import Url as Url

GROUP = "instructpt.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$"


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


_SUFFIXES = {"": 0, "k": 3, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
_COUNT = "must be a whole number above 0, or a number with one of the suffixes k, M, B, T, such as 500M"


def parse_count(value: object) -> object:
    """``8B`` -> 8_000_000_000; whole numbers pass through; anything else is left for pydantic to refuse."""
    if isinstance(value, bool):
        raise ValueError(_COUNT)
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKMBGT]?)", value)
        if match is None:
            raise ValueError(_COUNT)
        # Not a float: 0.07M is 70000, and 0.07 * 10**6 is not.
        scaled = Fraction(match[1]) * 10 ** _SUFFIXES[match[2]]
        if scaled.denominator != 1 or scaled < 1:
            raise ValueError(_COUNT)
        return int(scaled)
    return value


def _count_cel() -> str:
    """The same for the server: a number, or text that comes to a whole number above 0."""
    whole = r"[0-9]+(\.0+)?"
    scaled = "|".join(
        rf"[0-9]+(\.[0-9]{{1,{digits}}}0*)?[{suffixes}]"
        for digits, suffixes in ((3, "kK"), (6, "M"), (9, "BG"), (12, "T"))
    )
    return (
        f"type(self) == string ? self.matches(r'^({whole}|{scaled})$') && self.matches('[1-9]') : "
        "type(self) == int && self >= 1"
    )


Count = Annotated[
    int,
    BeforeValidator(parse_count),
    Field(ge=1),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-kubernetes-validations": [{"rule": _count_cel(), "message": _COUNT}],
        }
    ),
]
"""A positive number that may be written with a suffix: ``8B``, ``500M``, ``200k``."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]


Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=40)]


def must_name(path: str, *kinds: str) -> Rule:
    """The rule that a ref, where there is one, names an object of one of these kinds.

    Args:
        path: Of the ref, from the model that carries the rule: ``ref``, ``input.ref``.
        kinds: What may be named.
    """
    parts = path.split(".")
    absent = " || ".join(f"!has(self.{'.'.join(parts[: n + 1])})" for n in range(len(parts)))

    def holds(model: Any) -> bool:
        for part in parts:
            model = getattr(model, part)
            if model is None:
                return True
        return model.kind in kinds

    listed = ", ".join(f"'{kind}'" for kind in kinds)
    return Rule(f"{path} must name a {' or a '.join(kinds)}", f"{absent} || self.{path}.kind in [{listed}]", holds)


STORAGE_LIMIT = 960
"""Characters of a job's ``storage.uri``, so that what lies below it fits a URI too."""
PIPELINE_STORAGE_LIMIT = 896
"""The same of a pipeline: its children's storage is below its own."""


def storage_fits(name: str, limit: int) -> Rule:
    """The rule that a storage, where it is set, leaves room for longer names below it."""
    return Rule(
        f"{name}.uri must have at most {limit} characters: names are added to it",
        f"!has(self.{name}) || self.{name}.uri.size() <= {limit}",
        lambda model: getattr(model, name) is None or len(getattr(model, name).uri) <= limit,
    )


class SecretRef(ApiModel):
    """A Secret in the same namespace; on a laptop, the AWS profile of that name."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret (or AWS profile).")]


class Access(ApiModel):
    """How a location is reached. Credentials are named here, never written here."""

    endpoint: Annotated[
        Url | None, Field(default=None, description="URL of an S3-compatible server; empty for AWS.")
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
