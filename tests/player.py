"""Plays the kubelet on an API server that has none: pods start, run and end as a script says.

The objects, their validation, the Job controller and garbage collection are real; only what a container would have done
is played, by writing pod status as a kubelet does. PyTorchJobs are played as the training operator judges them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from instructpt.plan.naming import LABEL_ATTEMPT, LABEL_NAME, LABEL_STEP, LABEL_TASK, MANAGED_BY, OPERATOR
from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType

PODS = ResourceType(api_version="v1", kind="Pod", plural="pods")
CONFIG_MAPS = ResourceType(api_version="v1", kind="ConfigMap", plural="configmaps")
PYTORCHJOBS = ResourceType(api_version="kubeflow.org/v1", kind="PyTorchJob", plural="pytorchjobs")
MANAGED = f"{MANAGED_BY}={OPERATOR}"
NOT_ENDED = "status.phase!=Succeeded,status.phase!=Failed"
STOPPED = 75
UNSCHEDULABLE, DISRUPTED = "Unschedulable", "DisruptionTarget"
LONG_AGO = "2020-01-01T00:00:00Z"
"""When containers ended, as the Job controller is told: its back-off is then over at once."""


@dataclass(frozen=True)
class End:
    """How a worker ends.

    Attributes:
        code: Exit code.
        message: Termination message; of a finishing task that ends well a result is made up.
        reason: Of the container; ``Completed`` or ``Error`` unless given.
        disrupted: Whether the pod has the condition DisruptionTarget.
        wait: It runs until :meth:`Player.release`.
    """

    code: int = 0
    message: Mapping[str, Any] | None = None
    reason: str = ""
    disrupted: bool = False
    wait: bool = False


@dataclass(frozen=True)
class Stuck:
    """A pod that never starts, with what the kubelet says of it."""

    reason: str
    message: str


Script = Callable[[Mapping[str, str], int], "End | Stuck"]
"""Labels of a pod and how many pods of that name, step and task were played before -> what happens to it."""


def all_well(labels: Mapping[str, str], number: int) -> End:
    """Every worker ends well."""
    return End()


@dataclass
class Player:
    """One thread over one namespace, or all of them; use as a context manager.

    Attributes:
        nodes: Pods are bound to these in turn. Without any they are bound to none, and one that is deleted is gone as
            soon as nothing holds it; on a node it stays until the kubelet has seen it end.
        dead: Nodes whose kubelet does and says nothing any more.
        stopped: Exit code of workers that are asked to leave.
    """

    client: KubeClient
    namespace: str | None
    script: Script = all_well
    nodes: tuple[str, ...] = ()
    dead: set[str] = field(default_factory=set)
    stopped: int = STOPPED
    played: Counter[tuple[str, ...]] = field(default_factory=Counter)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    _bound: int = 0
    _turns: int = 0
    _done: dict[str, Any] = field(default_factory=dict)
    _free: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Player:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def release(self, step: str) -> None:
        """Let the waiting workers of a step end."""
        self._free.add(step)

    def lose(self, pod: Mapping[str, Any]) -> None:
        """What the pod garbage collector does to a pod whose node is gone: it is Failed, and deleted by force."""
        meta = pod["metadata"]
        lost = {"type": DISRUPTED, "status": "True", "reason": "DeletionByPodGC"}
        status = {"phase": "Failed", "conditions": [*_others(pod, DISRUPTED), lost]}
        self.client.merge_patch(PODS, meta["namespace"], meta["name"], {"status": status}, subresource="status")
        remove(self.client, pod)

    def forget(self) -> None:
        """Ask the script anew what happens to pods that have not ended."""
        self._done.clear()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                for job in self._trainings():
                    self._train(job)
                for pod in self.client.list(PODS, self.namespace, label_selector=MANAGED, field_selector=NOT_ENDED):
                    self._play(pod)
            except ApiError as error:
                if error.status not in (0, 404, 409, 429, 500, 503):
                    self.errors.append(str(error))

    def _trainings(self) -> list[dict[str, Any]]:
        try:
            return self.client.list(PYTORCHJOBS, self.namespace)
        except ApiError as error:
            if error.status == 404:
                return []
            raise

    def _play(self, pod: dict[str, Any]) -> None:
        meta, node = pod["metadata"], pod["spec"].get("nodeName")
        labels, uid = meta["labels"], meta["uid"]
        if node in self.dead:
            return
        if "deletionTimestamp" in meta:  # a worker that is asked to stop leaves with this
            self._end(pod, End(self.stopped))
            if node is not None:
                remove(self.client, pod)
            return
        if self.nodes and node is None:
            self._bind(pod)
        if uid not in self._done:
            key = (meta["namespace"], labels[LABEL_NAME], labels[LABEL_STEP], labels[LABEL_TASK])
            self._done[uid] = self.script(labels, self.played[key])
            self.played[key] += 1
        act = self._done[uid]
        if isinstance(act, Stuck):
            self._hold(pod, act)
        elif act.wait and labels[LABEL_STEP] not in self._free:
            self._status(pod, "Running", {"running": {"startedAt": _started(pod)}})
        else:
            self._end(pod, act)

    def _bind(self, pod: dict[str, Any]) -> None:
        meta, node = pod["metadata"], self.nodes[self._bound % len(self.nodes)]
        self._bound += 1
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": meta["name"]}, "target": target}
        self.client.request("POST", PODS.path(meta["namespace"], meta["name"], "binding"), body=body)

    def _end(self, pod: dict[str, Any], end: End) -> None:
        message = end.message
        if message is None and end.code == 0 and pod["metadata"]["labels"][LABEL_TASK] == "finalize":
            message = self._result(pod)
        terminated = {
            "exitCode": end.code,
            "reason": end.reason or ("Completed" if end.code == 0 else "Error"),
            "message": "" if message is None else json.dumps(message),
            "startedAt": _started(pod),
            "finishedAt": LONG_AGO,
        }
        self._status(pod, "Succeeded" if end.code == 0 else "Failed", {"terminated": terminated}, end.disrupted)

    def _result(self, pod: dict[str, Any]) -> dict[str, Any]:
        """What a real finishing task would leave: a function of its RunSpec."""
        volumes = pod["spec"]["volumes"]
        name = next(v["configMap"]["name"] for v in volumes if v.get("configMap"))
        spec = json.loads(self.client.get(CONFIG_MAPS, pod["metadata"]["namespace"], name)["data"]["runspec.json"])
        spec.pop("verb")
        body = {k: v for k, v in spec.items() if k not in ("parallelism", "ownerName", "ownerKind", "step")}
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        result = {
            "uri": spec["output"]["uri"],
            "digest": f"sha256:{digest}",
            "counts": {"documents": 100, "augmented": 100, "raw": 0, "dead_letters": 0, "pairs": 300, "steps": 50},
            "scores": {"final_loss": 2.5},
        }
        self.results[spec["output"]["uri"]] = result
        return result

    def _status(self, pod: dict[str, Any], phase: str, state: dict[str, Any], disrupted: bool = False) -> None:
        running = "running" in state
        containers = [
            {"name": c["name"], "image": c["image"], "imageID": "", "ready": running, "restartCount": 0, "state": state}
            for c in pod["spec"]["containers"]
        ]
        told = [
            c for c in pod.get("status", {}).get("conditions", ()) if c["type"] == DISRUPTED
        ]  # by whoever evicted it
        conditions = [{"type": "Ready", "status": "True" if running else "False"}, *told]
        if disrupted and not told:
            conditions.append({"type": DISRUPTED, "status": "True", "reason": "PreemptionByScheduler"})
        status = {"phase": phase, "containerStatuses": containers, "conditions": conditions, "startTime": LONG_AGO}
        self._write(pod, status)

    def _hold(self, pod: dict[str, Any], stuck: Stuck) -> None:
        if stuck.reason != UNSCHEDULABLE:
            self._status(pod, "Pending", {"waiting": {"reason": stuck.reason, "message": stuck.message}})
            return
        said = {"type": "PodScheduled", "status": "False", "reason": UNSCHEDULABLE, "message": stuck.message}
        self._write(pod, {"phase": "Pending", "containerStatuses": None, "conditions": [said]})

    def _write(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        meta, now = pod["metadata"], pod.get("status", {})
        types = {c["type"] for c in now.get("conditions", ())}
        if types == {c["type"] for c in status["conditions"]} and all(
            now.get(name) == status[name] for name in ("phase", "containerStatuses")
        ):
            return
        self.client.merge_patch(PODS, meta["namespace"], meta["name"], {"status": status}, subresource="status")

    def _train(self, job: dict[str, Any]) -> None:
        """Create the pods of a PyTorchJob that are missing, and judge it by them."""
        conditions = {c["type"] for c in job.get("status", {}).get("conditions", ()) if c["status"] == "True"}
        if "deletionTimestamp" in job["metadata"]:
            return
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        selector = f"training.kubeflow.org/job-name={name}"
        pods = self.client.list(PODS, namespace, label_selector=selector)
        if conditions & {"Succeeded", "Failed"}:
            self._clean_up(pods, ("Running", "Pending"))
            return
        if job["spec"]["runPolicy"].get("suspend"):
            self._clean_up(pods, ("Running", "Pending", None))
            if "Suspended" not in conditions:
                self._judge(job, "Suspended")
            return
        if "Suspended" in conditions:
            self._judge(job, "Suspended", holds=False)
            return
        made = self._create_pods(job, {p["metadata"]["name"] for p in pods})
        if made:
            if "Created" not in conditions:
                self._judge(job, "Created")
            return
        phases = [p.get("status", {}).get("phase") for p in pods]
        if "Failed" in phases:
            if "backoffLimit" in job["spec"]["runPolicy"]:  # as release 1.9 does: nobody can read what they left
                self._clean_up(pods, ("Running", "Pending", "Failed", "Succeeded"))
            self._judge(job, "Failed")
        elif all(p == "Succeeded" for p in phases):
            self._judge(job, "Succeeded")
        elif "Running" in phases and "Running" not in conditions:
            self._judge(job, "Running")

    def _clean_up(self, pods: list[dict[str, Any]], phases: tuple[str, ...]) -> None:
        """With ``cleanPodPolicy: Running`` what has not ended is deleted once the whole has."""
        for pod in pods:
            meta = pod["metadata"]
            if pod.get("status", {}).get("phase") in phases and "deletionTimestamp" not in meta:
                self.client.delete(PODS, meta["namespace"], meta["name"])

    def _create_pods(self, job: dict[str, Any], there: set[str]) -> int:
        meta, made = job["metadata"], 0
        for role, replica in job["spec"]["pytorchReplicaSpecs"].items():
            for index in range(replica.get("replicas", 1)):
                name = f"{meta['name']}-{role.lower()}-{index}"
                if name not in there:
                    self._create_pod(job, name, replica["template"])
                    made += 1
        return made

    def _create_pod(self, job: dict[str, Any], name: str, template: dict[str, Any]) -> None:
        meta = job["metadata"]
        owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": meta["name"], "uid": meta["uid"],
                 "controller": True, "blockOwnerDeletion": True}  # fmt: skip
        labels = {**template["metadata"]["labels"], "training.kubeflow.org/job-name": meta["name"]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": labels,
                "ownerReferences": [owner],
            },
            "spec": {**template["spec"], "restartPolicy": "Never"},
        }
        self.client.create(PODS, pod)

    def _judge(self, job: dict[str, Any], type_: str, *, holds: bool = True) -> None:
        self._turns += 1
        turned = f"2020-01-01T{self._turns // 3600:02}:{self._turns // 60 % 60:02}:{self._turns % 60:02}Z"
        condition = {"type": type_, "status": str(holds), "reason": f"PyTorchJob{type_}", "message": type_,
                     "lastTransitionTime": turned, "lastUpdateTime": turned}  # fmt: skip
        ends_running = type_ in ("Succeeded", "Failed", "Suspended")
        kept = [{**c, "status": "False"} if ends_running and c["type"] == "Running" else c
                for c in _others(job, type_)]  # fmt: skip
        replicas = {
            role: {"active": spec.get("replicas", 1) if type_ == "Running" else 0}
            for role, spec in job["spec"]["pytorchReplicaSpecs"].items()
        }
        status = {"conditions": [*kept, condition], "replicaStatuses": replicas}
        self.client.merge_patch(
            PYTORCHJOBS, job["metadata"]["namespace"], job["metadata"]["name"], {"status": status}, subresource="status"
        )


def _others(obj: Mapping[str, Any], type_: str) -> list[dict[str, Any]]:
    """Conditions of other types."""
    return [c for c in obj.get("status", {}).get("conditions", ()) if c["type"] != type_]


def remove(client: KubeClient, pod: Mapping[str, Any]) -> None:
    """Delete a pod without waiting for its kubelet."""
    meta = pod["metadata"]
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
    try:
        client.request("DELETE", PODS.path(meta["namespace"], meta["name"]), body=body)
    except ApiError as error:
        if error.status not in (404, 409):
            raise


def evict(client: KubeClient, pod: Mapping[str, Any]) -> None:
    """As ``kubectl drain`` does: by the API for evictions, which marks the pod and deletes it."""
    meta = pod["metadata"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": meta["name"]}}
    client.request("POST", PODS.path(meta["namespace"], meta["name"], "eviction"), body=body)


def _started(pod: Mapping[str, Any]) -> str:
    """When its container started: with the pod, which is what tells a pod from one that was created again."""
    return str(pod["metadata"]["creationTimestamp"])


def attempt_of(labels: Mapping[str, str]) -> int:
    """The attempt that a pod belongs to."""
    return int(labels[LABEL_ATTEMPT])
