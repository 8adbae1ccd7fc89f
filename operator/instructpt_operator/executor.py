"""The only writer: carries out an Outcome. Actions in order, then the status, then events."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from instructpt.plan.naming import ANNOTATION_RECONCILE, MANAGED_BY, OPERATOR
from instructpt_operator.actions import (
    Action,
    ConfirmAbsent,
    ConfirmFresh,
    Create,
    Delete,
    Event,
    Object,
    Outcome,
    Patch,
    Ref,
)
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType
from instructpt_operator.runtime.merge import difference, guarded, is_another, plain
from instructpt_operator.runtime.recorder import EventRecorder
from instructpt_operator.types import OURS

STATUS_TRIES = 3
REFUSALS = (400, 403, 422)
"""Answers to a Create that the same call will get again: a quota, an admission policy, an invalid object."""
TERMINATING = "because it is being terminated"
"""Of a namespace: nobody can mend that, and soon it is gone."""
PROGRESS_SECONDS = 10.0
PROGRESS_FIELDS = frozenset(
    {
        "progress",
        "shards",
        "counts",
        "scores",
        "cost",
        "display",
        "step",
        "steps",
        "loss",
        "checkpoint",
        "synthesis",
        "training",
        "workers",
    }
)
"""Status fields that may be late: a status that differs in nothing else is written at most every 10 s."""

logger = logging.getLogger(__name__)

Hook = Callable[[str, Ref], None]
"""Told of each write: ``create``, ``patch``, ``delete``, ``status`` or ``event``, and the object written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How it went, and when the key is to come back.

    Attributes:
        requeue_after: Seconds until the next visit, if nothing happens before and ``retry`` is false.
        retry: Come back with back-off: something failed, or the state was not what the Outcome assumed.
        conflict_name: A foreign object holds this name of a child: reconcile again with ``Observed.name_conflict``.
        refused: What the API server said when it refused to create a child, and will say again: a quota, an admission
            policy, an invalid object. Reconcile again with ``Observed.refused``.
        error: What the API server said, where that is why; ``None`` for conflicts, which are no errors.
    """

    requeue_after: float | None = None
    retry: bool = False
    conflict_name: str | None = None
    refused: str | None = None
    error: ApiError | None = None


class _NotLeaderError(Exception):
    """This process may not write any more."""


class _ConflictError(Exception):
    """The object changed since it was read.

    Args:
        live: The object as it is, where that was read already.
    """

    def __init__(self, live: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.live = live


def _nothing(verb: str, ref: Ref) -> None:
    pass


class Executor:
    """Writes for all workers. Thread-safe, as long as no two threads hold the same object.

    Args:
        client: Sends the requests.
        types: Every type that an Outcome may name, by apiVersion and kind.
        feed: Puts an object that was written or read into the caches, so that the next visit sees it.
        recorder: Sends the events.
        may_write: Asked before each write, and again when its turn has come to be sent; false once the lease is too
            old.
        clock: Monotonic seconds.
        before_write: Called before each write; for tests of crashes.
        after_write: Called after each write that succeeded.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        types: Mapping[tuple[str, str], ResourceType],
        feed: Callable[[Object], None],
        recorder: EventRecorder,
        may_write: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        before_write: Hook = _nothing,
        after_write: Hook = _nothing,
    ) -> None:
        client.guard_writes(may_write)
        self._client = client
        self._types = types
        self._feed = feed
        self._recorder = recorder
        self._may_write = may_write
        self._clock = clock
        self._before, self._after = before_write, after_write
        self._lock = threading.Lock()
        self._writes: Counter[str] = Counter()
        self._written_at: OrderedDict[str, float] = OrderedDict()  # by uid, the longest ago first; 10 s of it

    @property
    def writes(self) -> Counter[str]:
        """How many writes were sent, by verb; a copy."""
        with self._lock:
            return self._writes.copy()

    def execute(self, obj: Object, outcome: Outcome, *, recompute: Callable[[Object], Outcome]) -> Result:
        """Carry out what a visit decided.

        Args:
            obj: The object as the visit saw it.
            outcome: What it decided.
            recompute: Decides again, for the object as it is now; called where the status write met a conflict.
        """
        done: list[Action] = []
        try:
            for _ in range(STATUS_TRIES):
                if _paused(obj):
                    return Result()
                try:
                    stopped = self._act(obj, outcome, done)
                    return self._report(obj, outcome) if stopped is None else stopped
                except _ConflictError as conflict:
                    live = conflict.live or self._live(Ref.of(obj))
                if live is None or live["metadata"]["uid"] != obj["metadata"]["uid"]:
                    return Result()  # deleted: its cache will say so
                self._feed(live)
                obj, outcome = live, recompute(live)
        except _NotLeaderError:
            return Result(retry=True)
        except ApiError as error:
            return Result(retry=True, error=error)
        logger.info("%s %s: changes faster than its status can be written", obj["kind"], obj["metadata"]["name"])
        return Result(retry=True)

    def _act(self, obj: Object, outcome: Outcome, done: list[Action]) -> Result | None:
        """Carry out the actions that were not yet; a Result where the rest of the Outcome must be dropped."""
        for action in outcome.actions:
            if action in done:  # before a conflict; to confirm absence of what was created since would be wrong
                continue
            stopped: Result | None = None
            match action:
                case ConfirmFresh():
                    stopped = self._confirm_fresh(obj)
                case ConfirmAbsent():
                    stopped = self._confirm_absent(obj, outcome, action)
                case Create():
                    stopped = self._create(obj, action)
                case Patch():
                    stopped = self._patch(action)
                case Delete():
                    self._delete(action)
            if stopped is not None:
                return stopped
            done.append(action)
        return None

    def _confirm_fresh(self, obj: Object) -> Result | None:
        live = self._live(Ref.of(obj))
        if live is None or live["metadata"]["uid"] != obj["metadata"]["uid"]:
            return Result()  # deleted: its cache will say so
        if _basis(live) != _basis(obj):
            raise _ConflictError(live)
        return None

    def _confirm_absent(self, obj: Object, outcome: Outcome, action: ConfirmAbsent) -> Result | None:
        live = self._live(action.ref)
        if live is None:
            return None
        relation = _relation(live, obj, obj["metadata"]["uid"])
        if relation == "foreign":
            # It will not go away, and it is not among the children: to wait for it would be for ever.
            names = {_name(Ref.of(a.object)) for a in outcome.actions if isinstance(a, Create)}
            return Result(conflict_name=action.ref.name) if _name(action.ref) in names else None
        if relation == "own":
            live = self._labelled(action.ref, live)
        self._feed(live)
        return Result(retry=True)

    def _labelled(self, ref: Ref, live: dict[str, Any]) -> dict[str, Any]:
        """A child of ours that lost the label by which it is cached gets it back."""
        if ref.kind in OURS or (live["metadata"].get("labels") or {}).get(MANAGED_BY) == OPERATOR:
            return live
        body = guarded({"metadata": {"labels": {MANAGED_BY: OPERATOR}}}, uid=live["metadata"]["uid"])
        written: dict[str, Any] = self._write(
            "patch", ref, lambda: self._client.merge_patch(self._type(ref), ref.namespace, ref.name, body)
        )
        return written

    def _create(self, obj: Object, action: Create) -> Result | None:
        ref = Ref.of(action.object)
        try:
            created = self._write("create", ref, lambda: self._client.create(self._type(ref), action.object))
        except ApiError as error:
            if error.status in REFUSALS and TERMINATING not in error.message:
                return Result(retry=True, refused=error.message, error=error)
            if error.status != 409 or error.reason != "AlreadyExists":
                raise
            return self._adopt(obj, ref, action.owner_uid)
        self._feed(created)
        return None

    def _adopt(self, obj: Object, ref: Ref, owner_uid: str) -> Result | None:
        live = self._live(ref)
        if live is None:
            return Result(retry=True)
        relation = _relation(live, obj, owner_uid)
        if relation == "foreign":
            return Result(conflict_name=ref.name)
        self._feed(live)
        # What is on its way out makes room soon: the last attempt (R11), or a child of an object that had our name.
        leaving = relation == "former" or live["metadata"].get("deletionTimestamp")
        return Result(retry=True) if leaving else None

    def _patch(self, action: Patch) -> Result | None:
        ref = action.ref
        body = guarded(action.body, uid=ref.uid)
        try:
            patched = self._write(
                "patch", ref, lambda: self._client.merge_patch(self._type(ref), ref.namespace, ref.name, body)
            )
        except ApiError as error:
            if error.status == 404 or is_another(error):
                return Result(retry=True)
            raise
        self._feed(patched)
        return None

    def _delete(self, action: Delete) -> None:
        ref = action.ref
        self._write(
            "delete",
            ref,
            lambda: self._client.delete(
                self._type(ref), ref.namespace, ref.name, uid=ref.uid or None, propagation=action.propagation
            ),
        )

    def _report(self, obj: Object, outcome: Outcome) -> Result:
        """Write the status if it differs, then send the events that tell of the change."""
        result = Result(requeue_after=outcome.requeue_after)
        if outcome.status is None:
            return result
        change = difference(obj.get("status") or {}, plain(outcome.status))
        if not change:
            return result
        ref = Ref.of(obj)
        if not outcome.urgent and not outcome.events and PROGRESS_FIELDS.issuperset(change):
            wait = self._progress_wait(ref.uid)
            if wait > 0:
                return Result(requeue_after=wait if result.requeue_after is None else min(wait, result.requeue_after))
        body = guarded({"status": change}, uid=ref.uid, resourceVersion=obj["metadata"]["resourceVersion"])
        try:
            written = self._write(
                "status",
                ref,
                lambda: self._client.merge_patch(self._type(ref), ref.namespace, ref.name, body, subresource="status"),
            )
        except ApiError as error:
            if error.status == 404:
                return Result()
            if is_another(error):
                raise _ConflictError from error
            raise
        self._feed(written)
        self._remember(ref.uid)
        for event in outcome.events:
            self._event(ref, written, event)
        return result

    def _event(self, ref: Ref, obj: Object, event: Event) -> None:
        self._write(
            "event",
            ref,
            lambda: self._recorder.record(obj, type=event.type, reason=event.reason, note=event.message),
        )

    def _write(self, verb: str, ref: Ref, send: Callable[[], Any]) -> Any:
        self._before(verb, ref)
        if not self._may_write():
            raise _NotLeaderError
        with self._lock:
            self._writes[verb] += 1
        answer = send()
        self._after(verb, ref)
        return answer

    def _live(self, ref: Ref) -> dict[str, Any] | None:
        try:
            return self._client.get(self._type(ref), ref.namespace, ref.name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _type(self, ref: Ref) -> ResourceType:
        return self._types[(ref.api_version, ref.kind)]

    def _progress_wait(self, uid: str) -> float:
        """Seconds until progress of this object may be written."""
        with self._lock:
            at = self._written_at.get(uid)
        return 0.0 if at is None else at + PROGRESS_SECONDS - self._clock()

    def _remember(self, uid: str) -> None:
        with self._lock:
            now = self._clock()
            self._written_at[uid] = now
            self._written_at.move_to_end(uid)
            while now - next(iter(self._written_at.values())) > PROGRESS_SECONDS:
                self._written_at.popitem(last=False)


def _paused(obj: Object) -> bool:
    return (obj["metadata"].get("annotations") or {}).get(ANNOTATION_RECONCILE) == "disabled"


def _basis(obj: Object) -> tuple[Any, ...]:
    """What a visit decides on, of the object itself: others may write labels and annotations as they like."""
    status = obj.get("status") or {}
    return obj.get("spec"), status.get("stages"), status.get("conditions"), obj["metadata"].get("deletionTimestamp")


def _name(ref: Ref) -> tuple[str, str, str]:
    return ref.kind, ref.namespace, ref.name


def _controller(obj: Object) -> Mapping[str, Any]:
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def _relation(live: Object, owner: Object, owner_uid: str) -> Literal["own", "former", "foreign"]:
    """Whose an object is. ``former``: of a deleted object that had the owner's name; the garbage collector takes it."""
    ref = _controller(live)
    if ref.get("uid") == owner_uid:
        return "own"
    same = (ref.get("apiVersion"), ref.get("kind"), ref.get("name"))
    return "former" if same == (owner["apiVersion"], owner["kind"], owner["metadata"]["name"]) else "foreign"
