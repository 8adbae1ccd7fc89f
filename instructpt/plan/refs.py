"""The refs of an object: which other objects it waits for, and how their outputs are named as inputs."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from instructpt.api.base import ObjectRef
from instructpt.api.common import InputStatus
from instructpt.api.runspec import ResolvedInput
from instructpt.plan.builder import RefKey, access_of
from instructpt.plan.planner import AnyResource


def refs_of(resource: AnyResource) -> tuple[RefKey, ...]:
    """Kind and name of every object that the spec refers to, each once, in the order of the spec."""
    return tuple(dict.fromkeys((ref.kind, ref.name) for ref in _walk(resource.spec)))


def frozen_input(resource: AnyResource) -> InputStatus | None:
    """An object's output as an input of others; ``None`` while it is not complete."""
    status = resource.status
    if status is None or status.output is None or not is_true(resource, "Complete"):
        return None
    return InputStatus(
        kind=resource.kind, name=resource.metadata.name, uri=status.output.uri, digest=status.output.digest,
        **access_of(resource.spec.storage),
    )  # fmt: skip


def as_resolved(frozen: InputStatus) -> ResolvedInput:
    """The same as a plan takes it."""
    return ResolvedInput(uri=frozen.uri, digest=frozen.digest, **access_of(frozen))


def is_true(resource: AnyResource, type_: str) -> bool:
    """Whether a condition of that type holds."""
    conditions = resource.status.conditions if resource.status else ()
    return any(c.type == type_ and c.status == "True" for c in conditions)


def _walk(value: object) -> Iterator[ObjectRef]:
    if isinstance(value, ObjectRef):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _walk(item)
