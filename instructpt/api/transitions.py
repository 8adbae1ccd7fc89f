"""Rules on what may change in an object that exists; only a server can check them.

Before an object has started everything may change but ``managedBy``. Once it has, its spec is what its outputs were
made from: only fields that decide how the work is run, not what is computed, may still change.
"""

from __future__ import annotations

from collections.abc import Iterator

from instructpt.api.base import ApiModel, Rule

POLICY = frozenset(
    {"suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimit", "podTemplate", "cleanupPolicy"}
)
"""Fields of the run policy that may change at any time."""

# A suspended object has no startTime, but what it has done is in its stages and, of a pipeline, its children.
_STARTED = (
    "has(oldSelf.status) && (has(oldSelf.status.startTime) || "
    "(has(oldSelf.status.stages) && oldSelf.status.stages.size() > 0) || "
    "(has(oldSelf.status.childRefs) && oldSelf.status.childRefs.size() > 0))"
)
_WAY_OUT = "create a new object, or delete this one and create it again"


def transition_rules(spec: type[ApiModel], *, mutable: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """One rule for each field of a spec that cannot change at any time.

    Args:
        spec: The model of the spec.
        mutable: Fields of this kind that may change at any time, beside :data:`POLICY`: ``parallelism``, or
            ``synthesis.parallelism`` for a field of a required section.
    """
    return (
        Rule(
            f"spec.managedBy cannot change; {_WAY_OUT}",
            _same("managedBy"),
        ),
        Rule(
            "spec.queueName can change only before the object starts or while spec.suspend is true; suspend it first",
            f"!({_STARTED}) || oldSelf.spec.suspend || ({_same('queueName')})",
        ),
        *(
            Rule(f"spec.{path} cannot change once the object has started; {_WAY_OUT}", _frozen(path))
            for path in _paths(spec, POLICY | {"managedBy", "queueName"} | set(mutable))
        ),
    )


def _paths(model: type[ApiModel], mutable: frozenset[str] | set[str], prefix: str = "") -> Iterator[str]:
    """Fields that freeze; a section with a field that does not is taken apart."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if path in mutable:
            continue
        if any(other.startswith(f"{path}.") for other in mutable):
            if not isinstance(field.annotation, type) or not issubclass(field.annotation, ApiModel):
                raise TypeError(f"{path} is not a required section")
            yield from _paths(field.annotation, mutable, f"{path}.")
        else:
            yield path


def _frozen(path: str) -> str:
    return f"!({_STARTED}) || ({_same(path)})"


def _same(path: str) -> str:
    new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
    return f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
