"""What a reconciler may ask for. Plain data: the executor alone acts on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """Names one object. ``uid`` is the one that was seen, empty where none was."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""

    @classmethod
    def of(cls, obj: Object) -> Ref:
        """The name of an object that was read or rendered."""
        meta = obj["metadata"]
        return cls(
            api_version=obj["apiVersion"], kind=obj["kind"], namespace=meta.get("namespace", ""), name=meta["name"],
            uid=meta.get("uid", ""),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Create the object once. If one of that name exists, it is taken over only where its controller is ``owner_uid``.

    A name held by anything else ends the Outcome as ``Blocked/NameConflict`` (rule R10).
    """

    object: Object
    owner_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Merge-patch a few fields of an object that was seen, guarded by its uid."""

    ref: Ref
    body: Object


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete an object that was seen, in the foreground unless told otherwise, guarded by its uid; absence is fine."""

    ref: Ref
    propagation: str = "Foreground"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmAbsent:
    """Read live before acting on "not in the cache".

    If the object exists, the whole Outcome is dropped, the cache is fed, and the key comes back at once.
    """

    ref: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmFresh:
    """Read the reconciled object live before the first child of an attempt is created.

    If its spec or what it remembers of its stages differs from what the visit saw, the visit decides again.
    """


Action = Create | Patch | Delete | ConfirmAbsent | ConfirmFresh


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One Kubernetes Event about the reconciled object, sent only after the status was written."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one visit decides: actions in order, then the status, then events; when to come back at the latest.

    Attributes:
        status: The whole new status as JSON, or ``None`` to leave it alone. It is written only where it differs.
        urgent: Whether the status must be written now; otherwise, where only progress differs, at most every 10 s.
        requeue_after: Seconds until the next visit, if nothing happens before.
    """

    actions: tuple[Action, ...] = ()
    status: Object | None = None
    urgent: bool = True
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
