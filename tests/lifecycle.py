"""Cases of the life of an object: what is done, what must show, and what the docs say of it."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instructpt.plan.naming import LABEL_NAME, LABEL_STEP, LABEL_TASK, TASK_WORK
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType
from instructpt_operator.types import JOBS, OURS

Object = dict[str, Any]

CASES = Path(__file__).parents[1] / "docs" / "user-guides" / "lifecycle-cases.json"
WRITE = os.environ.get("INSTRUCTPT_WRITE_DOCS") == "1"
SHOWN_SECONDS = 15.0
"""From the moment when Kubernetes knows to the condition on our object."""

PODS = ResourceType(api_version="v1", kind="Pod", plural="pods")
EVENTS = ResourceType(api_version="v1", kind="Event", plural="events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the API server has of one case."""

    object: Object
    pods: list[Object]
    events: list[Object]
    jobs: list[Object]

    def of(self, step: str) -> Seen:
        """The same, of the workers of one step alone."""
        wanted = {LABEL_STEP: step, LABEL_TASK: TASK_WORK}
        pods = [p for p in self.pods if wanted.items() <= p["metadata"]["labels"].items()]
        return replace(self, pods=pods)

    def waits(self, *reasons: str) -> bool:
        """Whether a pod's container waits for one of these reasons."""
        return any(
            state.get("waiting", {}).get("reason") in reasons
            for pod in self.pods
            for status in pod.get("status", {}).get("containerStatuses", ())
            for state in [status.get("state", {})]
        )

    def ended(self, *, reason: str = "") -> bool:
        """Whether a pod's container ended with an error."""
        return any(
            end.get("exitCode", 0) != 0 and reason in ("", end.get("reason"))
            for pod in self.pods
            for status in pod.get("status", {}).get("containerStatuses", ())
            for end in [status.get("state", {}).get("terminated", {})]
        )

    def told(self, *reasons: str) -> bool:
        """Whether there is an event of one of these reasons."""
        return any(event.get("reason") in reasons for event in self.events)

    def unschedulable(self) -> bool:
        """Whether the scheduler found no node."""
        return any(
            (c["type"], c["status"]) == ("PodScheduled", "False")
            for pod in self.pods
            for c in pod.get("status", {}).get("conditions", ())
        )

    def job_failed(self, part: str) -> bool:
        """Whether a Job with this in its name has failed."""
        return any(
            (c["type"], c["status"]) == ("Failed", "True")
            for job in self.jobs
            if part in job["metadata"]["name"]
            for c in job.get("status", {}).get("conditions", ())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: an object of ours, what is wrong around it, and what must show.

    Attributes:
        why: The cause, for the docs.
        do: What the user does about it, for the docs.
        shows: Condition and reason.
        says: Part of the message: what to do.
        about: Part of the message that tells it from the same condition for another cause, such as a busy node.
        knows: Whether Kubernetes knows of it by now.
        before: Objects of Kubernetes that are there before.
        start: Creates the object, and does what has to be done around that; in a thread of its own. Without one the
            object is just created.
        fix: Does what the user would; the object must then become Complete. Without one it has failed, and stays so.
        namespace: Which of the two namespaces of the test.
    """

    name: str
    object: Object
    why: str
    do: str
    shows: tuple[str, str]
    says: str
    about: str = ""
    knows: Callable[[Seen], bool] = lambda seen: True
    before: tuple[Object, ...] = ()
    start: Callable[[Any], None] | None = None
    fix: Callable[[Any], None] | None = None
    namespace: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether the same object goes on after the fix."""
        return self.fix is not None


@dataclass
class Mark:
    """When Kubernetes knew, and when and how our condition showed."""

    knew: float | None = None
    shown: float | None = None
    condition: Object = field(default_factory=dict)
    history: list[str] = field(default_factory=list)


class Watcher(threading.Thread):
    """Looks at everything in the namespaces four times a second, and notes when a case was known and when it showed."""

    def __init__(self, client: KubeClient, namespaces: tuple[str, ...], cases: tuple[Case, ...]) -> None:
        super().__init__(name="watcher", daemon=True)
        self._client, self._namespaces, self._cases = client, namespaces, cases
        self._stopping = threading.Event()
        self.marks = {case.name: Mark() for case in cases}

    def run(self) -> None:
        while not self._stopping.wait(0.25):
            for index, namespace in enumerate(self._namespaces):
                try:
                    self._look(index, namespace)
                except ApiError:  # the next look tells
                    continue

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def _look(self, index: int, namespace: str) -> None:
        now = time.monotonic()
        kinds = sorted({case.object["kind"] for case in self._cases})
        ours = {(kind, o["metadata"]["name"]): o for kind in kinds for o in self._client.list(OURS[kind], namespace)}
        pods, events = self._client.list(PODS, namespace), self._client.list(EVENTS, namespace)
        jobs = self._client.list(JOBS, namespace)
        for case in self._cases:
            obj = ours.get((case.object["kind"], case.object["metadata"]["name"]))
            if obj is None or case.namespace != index:
                continue
            name = obj["metadata"]["name"]
            seen = Seen(
                object=obj,
                pods=[p for p in pods if p["metadata"].get("labels", {}).get(LABEL_NAME) == name],
                events=[e for e in events if e.get("involvedObject", {}).get("name", "").startswith(f"{name}-")],
                jobs=[j for j in jobs if j["metadata"].get("labels", {}).get(LABEL_NAME) == name],
            )
            self._note(case, seen, now)

    def _note(self, case: Case, seen: Seen, now: float) -> None:
        mark = self.marks[case.name]
        if mark.knew is None and case.knows(seen):
            mark.knew = now
        conditions = seen.object.get("status", {}).get("conditions", ())
        true = " ".join(f"{c['type']}/{c['reason']}" for c in conditions if c["status"] == "True")
        if true and (not mark.history or mark.history[-1] != true):
            mark.history.append(true)
        for condition in conditions:
            says = condition["status"] == "True" and (condition["type"], condition["reason"]) == case.shows
            if says and case.about in condition["message"] and mark.shown is None:
                mark.shown, mark.condition = now, condition


def normalised(text: str, case: Case, namespace: str, endpoint: str) -> str:
    """A message without what differs from run to run: pods, addresses, the namespace."""
    name = re.escape(case.object["metadata"]["name"])
    text = text.replace(endpoint, "<endpoint>").replace(namespace, "<namespace>")
    text = re.sub(rf"\b{name}-[a-z]+(-finalize)?-\d+(-\d+)?-([a-z0-9]{{5}}\b)?", "<pod>", text)
    text = text.replace("<pod>master-0", "<pod of the master>").replace("<pod>worker-0", "<pod of the worker>")
    text = re.sub(r"\b\d+\.\d+\.\d+\.\d+(:\d+)?(->)?", "<address>", text)
    text = re.sub(r"(<address>)+", "<address>", text)
    text = re.sub(r"\betag [0-9a-f]{32}\b", "etag ...", text)
    text = re.sub(r"\bfound [0-9a-f]{32}\b", "found ...", text)
    return re.sub(r"\b\d+/\d+ nodes are available: .*?(?=; add nodes)", "0/<n> nodes are available: ...", text)


def documented(section: str) -> dict[str, Any]:
    """One section of the committed cases, by name."""
    if not CASES.exists():
        return {}
    return {entry["case"]: entry for entry in json.loads(CASES.read_text())[section]}


def check_documented(section: str, entry: Mapping[str, Any], order: list[str]) -> None:
    """Compare an entry with the committed one, or write it where ``INSTRUCTPT_WRITE_DOCS=1``.

    Raises:
        AssertionError: It is another.
    """
    if not WRITE:
        found = documented(section).get(entry["case"])
        assert found == entry, f"not as in {CASES.name}: run with INSTRUCTPT_WRITE_DOCS=1, then tools/lifecycle_docs.py"
        return
    everything = json.loads(CASES.read_text()) if CASES.exists() else {}
    entries = {e["case"]: e for e in everything.get(section, ()) if e["case"] in order}
    entries[entry["case"]] = dict(entry)
    everything[section] = [entries[name] for name in order if name in entries]
    CASES.write_text(json.dumps(dict(sorted(everything.items())), indent=1, ensure_ascii=False) + "\n")
