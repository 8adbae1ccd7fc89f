"""Everything that happened to Jobs and to objects of ours, as the API server's own watch told it."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operators import is_true, wait_for
from player import PYTORCHJOBS

from instructpt.plan.naming import LABEL_ATTEMPT
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType
from instructpt_operator.types import JOBS, OURS

CHILDREN = ("Job", "PyTorchJob")
ENDS = ("Complete", "Failed")


@dataclass
class History:
    """Events of all namespaces, in order by type. Every version of every object is seen: it is one long watch."""

    events: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, kind: str, event: dict[str, Any]) -> None:
        """Keep an event."""
        with self._lock:
            obj = event["object"]
            self.events[obj["metadata"]["namespace"], kind].append((event["type"], obj))

    def of(self, namespace: str, kind: str) -> list[tuple[str, dict[str, Any]]]:
        """Events of one kind in one namespace: (type of the event, object)."""
        with self._lock:
            return list(self.events[namespace, kind])

    def created(self, namespace: str) -> dict[str, list[str]]:
        """Uids of all Jobs and PyTorchJobs that ever existed, by ``kind/name``."""
        found: dict[str, list[str]] = defaultdict(list)
        for kind in CHILDREN:
            for _, obj in self.of(namespace, kind):
                uids = found[f"{kind}/{obj['metadata']['name']}"]
                if obj["metadata"]["uid"] not in uids:
                    uids.append(obj["metadata"]["uid"])
        return dict(found)

    def attempts(self, namespace: str, step: str, kind: str = "Job") -> list[int]:
        """Attempts of the workers of a step, in the order of their creation."""
        found: dict[str, int] = {}
        for _, obj in self.of(namespace, kind):
            labels = obj["metadata"].get("labels") or {}
            if (labels.get("instructpt.dev/step"), labels.get("instructpt.dev/task")) == (step, "work"):
                found.setdefault(obj["metadata"]["uid"], int(labels[LABEL_ATTEMPT]))
        return list(found.values())

    def check_ends_stay(self, namespace: str) -> None:
        """I3: what is Complete or Failed once is so ever after."""
        ended: dict[str, str] = {}
        for kind in OURS:
            for _, obj in self.of(namespace, kind):
                now = [type_ for type_ in ENDS if is_true(obj, type_)]
                uid = obj["metadata"]["uid"]
                assert len(now) <= 1, f"{kind}: {now}"
                if uid in ended:
                    assert now == [ended[uid]], f"{kind} was {ended[uid]}, then {now}"
                elif now:
                    ended[uid] = now[0]

    def check_one_attempt_at_a_time(self, namespace: str) -> None:
        """R11: workers of an attempt are created only after those of the one before are gone."""
        for kind in CHILDREN:
            living: dict[tuple[str, str, str], str] = {}
            for type_, obj in self.of(namespace, kind):
                meta = obj["metadata"]
                labels = meta.get("labels") or {}
                if "instructpt.dev/name" not in labels:  # somebody else's
                    continue
                key = (labels["instructpt.dev/name"], labels["instructpt.dev/step"], labels["instructpt.dev/task"])
                if type_ == "ADDED":
                    assert key not in living, f"{meta['name']} was created beside {living[key]}"
                    living[key] = meta["name"]
                elif type_ == "DELETED":
                    living.pop(key, None)


@contextlib.contextmanager
def recorded(kubeconfig: Path) -> Iterator[History]:
    """Record while the context lasts."""
    client, history = KubeClient.connect(str(kubeconfig), qps=500, burst=500, connections=12), History()
    stop, streams, threads = threading.Event(), [], []
    for type_ in (*OURS.values(), JOBS, PYTORCHJOBS):
        stream = wait_for(lambda type_=type_: _open(client, type_), otherwise=f"{type_.plural} cannot be watched")
        streams.append(stream)
        threads.append(threading.Thread(target=_follow, args=(type_, stream, history, stop), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield history
    finally:
        stop.set()
        for stream in streams:
            stream.close()
        for thread in threads:
            thread.join(5)


def _open(client: KubeClient, type_: ResourceType) -> Any:
    version = list(client.pages(type_))[-1][1]
    try:
        return client.watch(type_, resource_version=version, timeout_seconds=600, read_timeout_seconds=600)
    except ApiError as error:
        if error.status == 429:  # a type that was just installed
            return None
        raise


def _follow(type_: ResourceType, stream: Any, history: History, stop: threading.Event) -> None:
    try:
        for event in stream:
            if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                history.take(type_.kind, event)
    except ApiError:
        if not stop.is_set():
            raise
