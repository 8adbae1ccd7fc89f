"""The operator's own settings: read once at start from a YAML file and the environment, then frozen."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel, to_snake

from instructpt.cluster.context import DEFAULT_IMAGES, Role
from instructpt.cluster.context import Images as RenderImages
from instructpt.errors import ConfigError

ENV_PREFIX = "INSTRUCTPT_"

Image = Annotated[str, Field(min_length=1, max_length=512)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Part(BaseModel):
    """Base of all parts: camelCase in the file, unknown fields refused, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class LeaseSettings(_Part):
    """Leader election."""

    enabled: Annotated[bool, Field(description="False for a single replica that never overlaps another.")] = True
    name: Annotated[str, Field(min_length=1, max_length=63, description="Name of the Lease.")] = "instructpt-operator"
    namespace: Annotated[str, Field(max_length=63, description="Namespace of the Lease; empty for the operator's.")] = (
        ""
    )
    duration_seconds: Annotated[int, Field(ge=2, description="Without a renewal for so long it may be taken.")] = 15
    renew_deadline_seconds: Annotated[float, Field(gt=0, description="Without one for so long the leader ends.")] = 10.0
    retry_seconds: Annotated[float, Field(gt=0, description="Between two tries.")] = 2.0

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.retry_seconds < self.renew_deadline_seconds < self.duration_seconds:
            raise ValueError("must satisfy retrySeconds < renewDeadlineSeconds < durationSeconds; use 2, 10 and 15")
        return self


class RoleImages(_Part):
    """Images of one role."""

    cuda: Annotated[Image, Field(description="With CUDA.")]
    cpu: Annotated[Image, Field(description="Without CUDA.")]


class OperatorImages(_Part):
    """Images of the tasks that compute nothing."""

    cuda: Annotated[Image | None, Field(description="Not used: these tasks take no GPU.")] = None
    cpu: Annotated[Image, Field(description="The operator's own image.")] = DEFAULT_IMAGES.by_role["operator", "cpu"]


def _defaults(role: Role) -> RoleImages:
    by_role = DEFAULT_IMAGES.by_role
    return RoleImages(cuda=by_role[role, "cuda"], cpu=by_role[role, "cpu"])


class ImageSettings(_Part):
    """Images of the workers."""

    operator: Annotated[OperatorImages, Field(description="Inspection and finishing.")] = OperatorImages()
    synthesizer: Annotated[RoleImages, Field(description="Synthesis.")] = _defaults("synthesizer")
    trainer: Annotated[RoleImages, Field(description="Preparation, training, evaluation.")] = _defaults("trainer")
    pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"], Field(description="When to pull, unless the object says.")
    ] = "IfNotPresent"

    @field_validator("synthesizer", "trainer", mode="before")
    @classmethod
    def _complete(cls, value: object, info: ValidationInfo) -> object:
        """One image may be given alone; the default of the other stays."""
        return {**_defaults(str(info.field_name)).model_dump(), **value} if isinstance(value, Mapping) else value


class PortSettings(_Part):
    """One listening port."""

    port: Annotated[Port, Field(description="Where it listens.")]


class ProgressSettings(_Part):
    """Live progress, read from a sample of the workers' pods."""

    enabled: Annotated[bool, Field(description="Whether to read it.")] = True
    interval_seconds: Annotated[float, Field(ge=1, description="Between two looks at one object.")] = 10.0
    sample: Annotated[int, Field(ge=1, le=100, description="Pods asked for one object at most.")] = 20


def _words(value: object) -> object:
    """``a,b`` -> ``["a", "b"]``, as the environment writes a list."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class Settings(_Part):
    """All settings. Every replica must have the same."""

    watch_namespaces: Annotated[
        tuple[str, ...], BeforeValidator(_words), Field(description="Namespaces to serve; none for all.")
    ] = ()
    workers: Annotated[int, Field(ge=1, le=100, description="Workers of each kind.")] = 5
    qps: Annotated[float, Field(gt=0, description="Requests to the API server per second, averaged.")] = 100.0
    burst: Annotated[int, Field(ge=1, description="Requests that may go at once.")] = 200
    lease: Annotated[LeaseSettings, Field(description="Leader election.")] = LeaseSettings()
    images: Annotated[ImageSettings, Field(description="Images of the workers.")] = ImageSettings()
    launcher: Annotated[str, Field(min_length=1, description="What runs a training on several nodes.")] = "pytorchjob"
    resync_seconds: Annotated[float, Field(ge=1, description="Every object is looked at so often at least.")] = 600.0
    metrics: Annotated[PortSettings, Field(description="Prometheus metrics.")] = PortSettings(port=8080)
    health: Annotated[PortSettings, Field(description="Liveness and readiness.")] = PortSettings(port=8081)
    progress: Annotated[ProgressSettings, Field(description="Live progress.")] = ProgressSettings()

    @cached_property
    def hash(self) -> str:
        """16 hex digits over all values: goes into the status of what was made with them (R22)."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def render_images(self) -> RenderImages:
        """The images as rendering wants them."""
        images = self.images
        by_role: dict[tuple[Role, str], str] = {("operator", "cpu"): images.operator.cpu}
        if images.operator.cuda is not None:
            by_role["operator", "cuda"] = images.operator.cuda
        for role, pair in (("synthesizer", images.synthesizer), ("trainer", images.trainer)):
            by_role[role, "cuda"], by_role[role, "cpu"] = pair.cuda, pair.cpu
        return RenderImages(by_role=by_role, pull_policy=images.pull_policy)


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the file, then the environment over it: ``INSTRUCTPT_QPS``, ``INSTRUCTPT_LEASE__NAME``.

    Other variables with the prefix are left alone: workers have some, and a Service whose name begins with
    ``instructpt-`` makes Kubernetes set more. None of those is named like a setting.

    Args:
        path: A YAML file, the mounted ConfigMap; without one the defaults hold.
        environ: Variables; those of this process unless given.

    Raises:
        ConfigError: With one line for each problem: field, value, what to do.
    """
    data = {} if path is None else _read(path)
    for names, value in _overrides(os.environ if environ is None else environ):
        part = data
        for name in names[:-1]:
            inner = part.get(name)
            part[name] = dict(inner) if isinstance(inner, Mapping) else {}
            part = part[name]
        part[names[-1]] = value
    try:
        return Settings.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        where = "the settings" if path is None else f"{path}"
        lines = [_problem(problem) for problem in error.errors()]
        raise ConfigError(f"{where}:\n  " + "\n  ".join(lines)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot be read", field="--config", value=str(path), fix=str(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is a {type(data).__name__}, expected names and values")
    return data


def _overrides(environ: Mapping[str, str]) -> list[tuple[list[str], str]]:
    """(path of aliases, value) of each variable that is a setting."""
    found = []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        model: type[BaseModel] | None = Settings
        names = []
        for part in variable.removeprefix(ENV_PREFIX).lower().split("__"):
            field = None if model is None else model.model_fields.get(part)
            if field is None:
                break
            names.append(field.alias or part)
            model = _model_of(field.annotation)
        else:
            if model is None:  # a value, not a part
                found.append((names, value))
    return found


def _problem(problem: Mapping[str, Any]) -> str:
    """One line: field, value, what is wrong, and what may have been meant."""
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location) or "settings"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{field}={problem['input']!r}: unknown field; {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{field}: is required; add it"
    shown = "" if isinstance(problem["input"], Mapping) else f"={problem['input']!r}"
    return f"{field}{shown}: {message}"


def _fields_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for name in location:
        inner = _model_of(model.model_fields[to_snake(name)].annotation)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
