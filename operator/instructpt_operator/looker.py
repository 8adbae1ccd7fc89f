"""Looks at the pods of children, bounded: one look per child every ten seconds, progress of at most twenty pods.

Pods are not watched (rule R5). Looks are taken in threads of their own: what a visit gets is what the last one showed,
so a pod that answers slowly, or a page that takes long, holds no visit up. A child that has ended is looked at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from instructpt.cluster.observe import work_state
from instructpt.plan.naming import LABEL_ATTEMPT, LABEL_KIND, LABEL_NAME, LABEL_STEP, LABEL_TASK, TASK_WORK
from instructpt.plan.progress import merge_progress
from instructpt_operator.actions import Object
from instructpt_operator.observed import PodFacts
from instructpt_operator.pods import is_running, is_stuck, pod_facts
from instructpt_operator.progress import ANSWER_SECONDS, Fetch
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType
from instructpt_operator.runtime.store import controller_uid

PODS = ResourceType(api_version="v1", kind="Pod", plural="pods")
EVENTS = ResourceType(api_version="v1", kind="Event", plural="events")

logger = logging.getLogger(__name__)

_LABELS = (LABEL_KIND, LABEL_NAME, LABEL_STEP, LABEL_TASK, LABEL_ATTEMPT)
_LIVING = "status.phase!=Succeeded,status.phase!=Failed"
_FAILED = "status.phase=Failed"
ENDED_PODS = 500
"""Pods listed of a child that has ended: once, in one page."""
STUCK_SECONDS = 10.0
"""Most time between two looks at a child of which no pod runs."""
DUE_SECONDS = 1.0
"""Least wait for a look: one that failed is due at once."""
LOOKS, FETCHES = 8, 32
"""Threads that list, and that ask pods."""

Run = Callable[[Callable[[], None]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What was seen last of a child.

    Attributes:
        at: Monotonic seconds at its beginning.
        version: resourceVersion of a child that had ended; empty otherwise.
        ran: Of a gang: uid of each pod that was seen to run, by name.
        admitted: When a queue last held the child back or let it go.
    """

    at: float
    version: str
    facts: PodFacts
    ran: Mapping[str, str] = field(default_factory=dict)
    admitted: str = ""


class PodLooker:
    """Remembers what it saw. Thread-safe.

    Args:
        client: Lists pods and events.
        fetch: Pod address -> its ``/progress``, or ``None``; left out where progress is switched off.
        clock: Monotonic seconds.
        now: The wall clock.
        interval_seconds: Least time between two looks at a child that has not ended.
        sample: Pods at most, listed and asked.
        run: Runs a look; threads of its own unless given.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        interval_seconds: float = 10.0,
        sample: int = 20,
        run: Run | None = None,
    ) -> None:
        self._client, self._fetch, self._clock, self._now = client, fetch, clock, now
        self._interval, self._sample = interval_seconds, sample
        self._run = run or ThreadPoolExecutor(LOOKS, "look").submit
        self._fetchers = ThreadPoolExecutor(FETCHES, "fetch")
        self._told: Callable[[Object], None] = lambda child: None
        self._lock = threading.Lock()
        self._looks: dict[str, _Look] = {}
        self._busy: set[str] = set()

    def subscribe(self, told: Callable[[Object], None]) -> None:
        """Whom to tell that a look showed something new of a child."""
        self._told = told

    def facts(self, child: Object) -> PodFacts | None:
        """What the last look at a child's pods showed, and a look is taken where one is due.

        ``None`` where nobody has looked yet, and of a child that has ended, since it did.
        """
        uid, version = child["metadata"]["uid"], child["metadata"].get("resourceVersion", "")
        phase = work_state(child).phase
        if phase == "Suspended":  # a queue holds it back: it has no pods
            return None
        ended = phase in ("Succeeded", "Failed")
        with self._lock:
            known = self._looks.get(uid)
            fresh = known is not None and self._is_fresh(known, ended=ended, version=version)
            due = not fresh and uid not in self._busy
            if due:
                self._busy.add(uid)
        if due:
            self._run(lambda: self._refresh(child, ended=ended, version=version if ended else ""))
            with self._lock:
                known = self._looks.get(uid)
        if known is None or (ended and known.version != version):
            return None
        return known.facts

    def due_in(self, uid: str) -> float | None:
        """Seconds until a look at a child is due; ``None`` of one that has ended, is unknown, or is being looked at.

        A visit a moment too early would put the look off until the visit after it.
        """
        with self._lock:
            known = self._looks.get(uid)
            if known is None or known.version or uid in self._busy:
                return None
        return max(DUE_SECONDS, known.at + self._interval_of(known) - self._clock())

    def forget(self, uid: str) -> None:
        """A child is gone; a look at it that is under way, or waits for its turn, is of no use any more."""
        with self._lock:
            self._looks.pop(uid, None)
            self._busy.discard(uid)

    def retain(self, uids: set[str]) -> None:
        """Drop what is remembered of all other children."""
        with self._lock:
            for uid in self._looks.keys() - uids:
                del self._looks[uid]
            self._busy &= uids

    def _is_fresh(self, look: _Look, *, ended: bool, version: str) -> bool:
        if ended:
            return look.version == version
        return self._clock() - look.at < self._interval_of(look)

    def _interval_of(self, look: _Look) -> float:
        """What does not start is looked at soon, however seldom those that run are asked."""
        return self._interval if look.facts.running else min(self._interval, STUCK_SECONDS)

    def _refresh(self, child: Object, *, ended: bool, version: str) -> None:
        uid, began = child["metadata"]["uid"], self._clock()
        with self._lock:
            if uid not in self._busy:
                return
            known = self._looks.get(uid)
        try:
            look = self._look(child, known, ended=ended, version=version, began=began)
        except ApiError as error:
            logger.warning("pods cannot be listed", extra={"child": child["metadata"]["name"], "error": str(error)})
            with self._lock:
                self._busy.discard(uid)
            return
        except BaseException:
            with self._lock:
                self._busy.discard(uid)
            raise
        with self._lock:
            if uid not in self._busy:  # the child went away meanwhile
                return
            self._busy.discard(uid)
            self._looks[uid] = look
        if known is None or known.facts != look.facts or known.version != version:
            self._told(child)

    def _look(self, child: Object, known: _Look | None, *, ended: bool, version: str, began: float) -> _Look:
        meta, gang = child["metadata"], child["kind"] != "Job"
        labels = meta.get("labels", {})
        pods, is_sample = self._list(child, ended=ended, gang=gang)
        events: list[Object] = []
        figures: Mapping[str, Any] | None = None
        told_at: datetime | None = None
        if not ended:
            stuck = [p["metadata"]["name"] for p in pods if is_stuck(p)]
            if len(pods) < max(1, work_state(child).wanted):  # what was to create them says why they are not there
                stuck.insert(0, meta["name"])
            for name in stuck[:2]:
                events += self._events(meta["namespace"], name)
            if labels.get(LABEL_TASK) == TASK_WORK:
                figures = self._figures(pods, running=None if gang else work_state(child).ready)
                told_at = self._now() if figures is not None else None
        if figures is None and known is not None:  # for a while what they told last still holds
            figures, told_at = known.facts.figures, known.facts.figures_at
        admitted = _admitted(child)
        # Pods that a queue takes away, and makes again once it admits the child, have not been replaced.
        ran = dict(known.ran) if known is not None and known.admitted == admitted else {}
        facts = pod_facts(pods, events, figures, now=self._now(), is_sample=is_sample)
        if gang:
            now_running = {p["metadata"]["name"]: p["metadata"]["uid"] for p in pods if is_running(p)}
            replaced = tuple(sorted(
                p["metadata"]["name"] for p in pods
                if ran.get(p["metadata"]["name"], p["metadata"]["uid"]) != p["metadata"]["uid"]
            ))  # fmt: skip
            facts, ran = replace(facts, replaced=replaced), {**now_running, **ran}
        problems = known.facts.problems if ended and known is not None and not facts.problems else facts.problems
        facts = replace(facts, figures_at=told_at, problems=problems, started=facts.started or bool(ran))
        return _Look(at=began, version=version, facts=facts, ran=ran, admitted=admitted)

    def _list(self, child: Object, *, ended: bool, gang: bool) -> tuple[list[Object], bool]:
        """Pods of this very child, and whether there may be more.

        A Job keeps the pods that failed: those that run are asked for by themselves, or they would be lost among them.
        """
        meta = child["metadata"]
        labels = meta.get("labels", {})
        selector = ",".join(f"{name}={labels[name]}" for name in _LABELS if name in labels)

        def listed(limit: int, phases: str | None = None) -> list[Object]:
            found = self._client.list(
                PODS, meta["namespace"], label_selector=selector, field_selector=phases, limit=limit
            )
            return list(found)

        # Of one that ended all that fit a page: the pod that says why may be any of them.
        limit = ENDED_PODS if ended else self._sample
        pods = listed(limit, None if ended or gang else _LIVING)
        is_sample = len(pods) >= limit
        status = child.get("status") or {}
        # A pod that failed is counted once it was replaced: where none is active, one may wait for that in vain.
        if not ended and not gang and (status.get("failed") or not status.get("active")):
            pods += listed(limit, _FAILED)
            is_sample = True
        # One of an object that had the same name, and is still leaving, has the same labels.
        return [p for p in pods if meta["uid"] in controller_uid(dict(p))], is_sample

    def _events(self, namespace: str, name: str) -> list[dict[str, Any]]:
        selector = f"involvedObject.name={name},type=Warning"
        return self._client.list(EVENTS, namespace, field_selector=selector, limit=self._sample)

    def _figures(self, pods: list[Object], *, running: int | None) -> dict[str, Any] | None:
        """What the pods that answer tell, together.

        Args:
            pods: Of the sample.
            running: Workers of an Indexed Job that run in all: the rates of a sample stand for all of them. ``None`` of
                a gang, where one speaks for all.
        """
        addresses = [ip for p in pods if is_running(p) and (ip := p["status"].get("podIP"))]
        if self._fetch is None or not addresses:
            return None
        asked: list[Future[Mapping[str, Any] | None]] = [self._fetchers.submit(self._fetch, a) for a in addresses]
        done, late = wait(asked, timeout=2 * ANSWER_SECONDS)
        for future in late:
            future.cancel()
        answers = [dict(a) for future in asked if future in done and (a := future.result()) is not None]
        if not answers:
            return None
        merged = merge_progress(answers)
        scale = 1.0 if running is None else max(running, len(addresses)) / len(answers)
        merged["rates"] = {name: rate * scale for name, rate in merged["rates"].items()}
        merged["sampled"] = len(answers) if scale > 1 else None
        return merged


def _admitted(child: Object) -> str:
    """Changes whenever the child is suspended or resumed: the launcher's condition stays, with the time of its turn."""
    conditions = (child.get("status") or {}).get("conditions") or ()
    return next((str(c.get("lastTransitionTime")) for c in conditions if c["type"] == "Suspended"), "")
