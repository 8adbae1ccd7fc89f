"""A YAML or JSON file -> one typed object, or an error that names field, value and fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from instructpt.api.base import API_VERSION
from instructpt.api.v1alpha1 import KINDS
from instructpt.errors import ConfigError
from instructpt.local.command import command
from instructpt.plan.planner import AnyResource


def load_resource(path: Path) -> AnyResource:
    """Read the one object of a file.

    Raises:
        ConfigError: The file is missing, is no YAML, holds no or several objects, or the object is invalid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"file {path} does not exist", fix=f"{command('init', 'DIR')} writes one to start from"
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"file {path} cannot be read: {error}") from error
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        raise ConfigError(f"file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if len(documents) != 1:
        raise ConfigError(
            f"file {path} holds {len(documents)} objects, expected one", fix="put each object in a file of its own"
        )
    return parse_resource(documents[0], where=str(path))


def parse_resource(data: object, *, where: str = "object") -> AnyResource:
    """Validate a dictionary as one of the five kinds.

    Raises:
        ConfigError: With one line for each problem.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is a {type(data).__name__}, expected an object with apiVersion, kind and spec")
    if data.get("apiVersion") != API_VERSION:
        raise ConfigError("is not served", field="apiVersion", value=data.get("apiVersion"), fix=f"use {API_VERSION}")
    kind = data.get("kind")
    model = KINDS.get(str(kind))
    if model is None:
        raise ConfigError("is not a kind", field="kind", value=kind, fix=f"use one of {', '.join(KINDS)}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [describe_problem(problem, data, model) for problem in error.errors()]
        raise ConfigError(f"{where} is not a valid {kind}:\n  " + "\n  ".join(lines)) from error


def describe_problem(problem: Mapping[str, Any], data: object, model: type[BaseModel]) -> str:
    """One line: field, value, what is wrong, and what may have been meant."""
    location: Sequence[Any] = problem["loc"]
    field = dotted(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{field}: unknown field; {hint}"
    if problem["type"] == "missing":
        return f"{field}: is required; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input")
    # A text with an '@' may be a location that holds a secret, also where something else is wrong with it.
    secret = "must not hold credentials" in message or (isinstance(value, str) and "@" in value)
    parts = value if isinstance(value, list | tuple) else (value,)
    # A list of objects is not shown either: one of them may hold the secret that another problem is about.
    shown = "" if secret or any(isinstance(part, Mapping | BaseModel) for part in parts) else f"={value!r}"
    yaml_trap = " (YAML reads unquoted on, off, yes and no as booleans; put it in quotes)" if value in (True, False) and isinstance(value, bool) and "string" in message else ""  # fmt: skip  # noqa: E501
    return f"{field}{shown}: {message}{yaml_trap}"


def dotted(location: Sequence[Any]) -> str:
    """``('spec', 'mixture', 0, 'weight')`` -> ``spec.mixture[0].weight``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "object"


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = next((f for n, f in current.model_fields.items() if part in (n, f.alias)), None)
        if field is None:
            return []
        current = _model_in(field.annotation)
        if current is None:
            return []
    return [f.alias or n for n, f in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None
