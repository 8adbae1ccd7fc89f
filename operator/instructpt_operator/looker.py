"""Looks at the pods of children, bounded: one LIST per child every ten seconds, progress of at most twenty pods.

Pods are not watched (rule R5). A child that has ended is looked at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
import urllib3

from instructpt.cluster.context import METRICS_PORT
from instructpt.cluster.observe import work_state
from instructpt.plan.naming import LABEL_ATTEMPT, LABEL_KIND, LABEL_NAME, LABEL_STEP, LABEL_TASK, TASK_WORK
from instructpt.plan.progress import merge_progress
from instructpt_operator.actions import Object
from instructpt_operator.observed import PodFacts
from instructpt_operator.pods import is_running, is_stuck, pod_facts
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType

PODS = ResourceType(api_version="v1", kind="Pod", plural="pods")
EVENTS = ResourceType(api_version="v1", kind="Event", plural="events")

logger = logging.getLogger(__name__)

_LABELS = (LABEL_KIND, LABEL_NAME, LABEL_STEP, LABEL_TASK, LABEL_ATTEMPT)
_MAX_PROGRESS_BYTES = 64 * 1024
_PROGRESS_SECONDS = 2.0
ENDED_PODS = 500
"""Pods listed of a child that has ended: once, in one page."""

Fetch = Callable[[str], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    version: str
    facts: PodFacts


class PodLooker:
    """Remembers what it saw, so that a visit costs no call unless one is due. Thread-safe.

    Args:
        client: Lists pods and events.
        fetch: Pod address -> its ``/progress``, or ``None``; left out where progress is switched off.
        clock: Monotonic seconds.
        interval_seconds: Least time between two looks at a child that has not ended.
        sample: Pods at most, listed and asked.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval_seconds: float = 10.0,
        sample: int = 20,
    ) -> None:
        self._client, self._fetch, self._clock = client, fetch, clock
        self._interval, self._sample = interval_seconds, sample
        self._lock = threading.Lock()
        self._looks: dict[str, _Look] = {}

    def facts(self, child: Object) -> PodFacts | None:
        """What is known of a child's pods, after a look where one is due; ``None`` where nobody could look yet."""
        uid, version = child["metadata"]["uid"], child["metadata"].get("resourceVersion", "")
        phase = work_state(child).phase
        ended = phase in ("Succeeded", "Failed")
        if phase == "Suspended":  # a queue holds it back: it has no pods
            return None
        with self._lock:
            known = self._looks.get(uid)
        if known is not None and self._is_fresh(known, ended=ended, version=version):
            return known.facts
        try:
            facts = self._look(child, ended=ended)
        except ApiError as error:
            logger.warning("pods cannot be listed", extra={"child": child["metadata"]["name"], "error": str(error)})
            return known.facts if known is not None and not ended else None
        with self._lock:
            self._looks[uid] = _Look(self._clock(), version if ended else "", facts)
        return facts

    def forget(self, uid: str) -> None:
        """A child is gone."""
        with self._lock:
            self._looks.pop(uid, None)

    def _is_fresh(self, look: _Look, *, ended: bool, version: str) -> bool:
        if ended:
            return look.version == version
        return self._clock() - look.at < self._interval

    def _look(self, child: Object, *, ended: bool) -> PodFacts:
        meta = child["metadata"]
        labels = meta.get("labels", {})
        selector = ",".join(f"{name}={labels[name]}" for name in _LABELS if name in labels)
        # Of one that ended all that fit a page: the pod that says why may be any of them.
        limit = ENDED_PODS if ended else self._sample
        pods = self._client.list(PODS, meta["namespace"], label_selector=selector, limit=limit)
        events: list[Object] = []
        figures = None
        if not ended:
            stuck = [p["metadata"]["name"] for p in pods if is_stuck(p)] if pods else [meta["name"]]
            for name in stuck[:2]:
                events += self._events(meta["namespace"], name)
            if labels.get(LABEL_TASK) == TASK_WORK:
                figures = self._figures([p for p in pods if is_running(p)])
        return pod_facts(pods, events, figures, is_sample=len(pods) >= limit)

    def _events(self, namespace: str, name: str) -> list[dict[str, Any]]:
        field = f"involvedObject.name={name},type=Warning"
        return self._client.list(EVENTS, namespace, field_selector=field, limit=self._sample)

    def _figures(self, pods: list[dict[str, Any]]) -> dict[str, Any] | None:
        addresses = [ip for p in pods if (ip := p["status"].get("podIP"))]
        if self._fetch is None or not addresses:
            return None
        with ThreadPoolExecutor(max_workers=min(8, len(addresses))) as pool:
            answers = [dict(a) for a in pool.map(self._fetch, addresses) if a is not None]
        if not answers:
            return None
        merged = merge_progress(answers)
        # Rates of a sample stand for all that run (protocols.md 4).
        scale = len(addresses) / len(answers)
        merged["rates"] = {name: rate * scale for name, rate in merged["rates"].items()}
        return merged


def fetch_progress(address: str, *, port: int = METRICS_PORT) -> Mapping[str, Any] | None:
    """``/progress`` of one pod, or ``None`` where it does not answer well and soon."""
    host = f"[{address}]" if ":" in address else address
    pool = urllib3.PoolManager(retries=False, timeout=_PROGRESS_SECONDS)
    try:
        answer = pool.request("GET", f"http://{host}:{port}/progress", preload_content=False)
        body = answer.read(_MAX_PROGRESS_BYTES + 1)
        answer.release_conn()
        if answer.status != 200 or len(body) > _MAX_PROGRESS_BYTES:
            return None
        return _checked(orjson.loads(body))
    except (urllib3.exceptions.HTTPError, ValueError):
        return None
    finally:
        pool.clear()


def _checked(found: Any) -> Mapping[str, Any] | None:
    """Only an answer of the shape that is merged: a pod is not trusted to be one of ours."""
    if not isinstance(found, dict) or not isinstance(found.get("unit"), str) or len(found["unit"]) > 63:
        return None
    if not all(isinstance(found.get(n), int) and found[n] >= 0 for n in ("done", "total")):
        return None
    for part in ("counts", "rates", "gauges"):
        figures = found.get(part)
        if not isinstance(figures, dict) or not all(isinstance(v, int | float) for v in figures.values()):
            return None
    return {n: found[n] for n in ("done", "total", "unit", "counts", "rates", "gauges")}
