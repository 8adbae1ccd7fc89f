"""A cluster in memory for reconcilers: their actions are applied, pods end at once as a script says. No API server."""

from __future__ import annotations

import copy
import hashlib
import json
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from instructpt.api.v1alpha1 import KINDS
from instructpt.plan.naming import LABEL_ATTEMPT, LABEL_STEP, LABEL_TASK, TASK_FINALIZE
from instructpt.plan.refs import refs_of
from instructpt_operator.actions import ConfirmAbsent, ConfirmFresh, Create, Delete, Outcome, Patch, Ref
from instructpt_operator.observed import Observed, PodEnd, PodFacts, PodProblem
from instructpt_operator.reconcilers.config import Config
from instructpt_operator.reconcilers.decide import decide
from instructpt_operator.reconcilers.resources import parse

NAMESPACE = "lab"
RESYNC = timedelta(minutes=10)
Key = tuple[str, str]


@dataclass(frozen=True)
class Ends:
    """How every pod of a child ends."""

    code: int = 0
    message: Mapping[str, Any] | None = None
    reason: str = ""
    disrupted: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Runs:
    """The child's pods run, and tell their progress: now, or when they last did."""

    figures: Mapping[str, Any] | None = None
    told_at: datetime | None = None
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stuck:
    """The child's pods do not start."""

    reason: str
    message: str


Script = Callable[[str, str, int], "Ends | Runs | Stuck"]
"""(step label, task, attempt) -> what its pods do."""


def all_well(step: str, task: str, attempt: int) -> Ends:
    return Ends()


@dataclass
class Cluster:
    """Objects by kind and name, with a clock that moves only when told."""

    script: Script = all_well
    config: Config = field(default_factory=Config)
    objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    events: list[tuple[Key, str, str]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    created: Counter[str] = field(default_factory=Counter)
    conflicts: set[str] = field(default_factory=set)
    launcher_installed: bool = True
    namespace_ends: bool = False
    serial: int = 0
    held: set[str] = field(default_factory=set)
    """Names of what does not go although it was deleted: its pods stay."""
    changed: set[Key] = field(default_factory=set)
    due: dict[Key, datetime] = field(default_factory=dict)

    def apply(self, kind: str, name: str, spec: Mapping[str, Any]) -> Key:
        """Create an object of ours, with the defaults that the API server would fill in."""
        raw = {"apiVersion": "instructpt.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
        wire = KINDS[kind].model_validate(raw).to_wire()
        return self._put({**raw, "spec": wire["spec"]})

    def get(self, key: Key) -> dict[str, Any]:
        return self.objects[key]

    def status(self, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = self.objects[key].get("status", {})
        return found

    def condition(self, key: Key, type_: str) -> dict[str, Any]:
        return next((c for c in self.status(key).get("conditions", ()) if c["type"] == type_), {})

    def is_true(self, key: Key, type_: str) -> bool:
        return self.condition(key, type_).get("status") == "True"

    def edit(self, key: Key, **spec: Any) -> None:
        obj = self.objects[key]
        obj["spec"] = {**obj["spec"], **spec}
        obj["metadata"]["generation"] += 1
        self._tell(obj)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and what it owns."""
        self._delete(Ref(api_version="", kind=kind, namespace=NAMESPACE, name=name))

    def settle(self, *, rounds: int = 200, step_seconds: float = 5.0) -> None:
        """Visit what has changed and what asked to be visited, until nothing happens for a while; the clock moves.

        As with the real queue, an object that neither changes nor is due is not visited: a wake-up that a reconciler
        forgets to ask for shows here as an object that never goes on.
        """
        quiet = 0
        for _ in range(rounds):
            before = len(self.writes)
            for key in [k for k in self.objects if k[0] in KINDS]:
                if key in self.objects and (key in self.changed or self.due.get(key, self.now) <= self.now):
                    self.visit(key)
            self._kubelet()
            self.now += timedelta(seconds=step_seconds)
            soon = self.now + timedelta(minutes=1)
            asleep = not self.changed and all(at > soon for at in self.due.values())
            quiet = quiet + 1 if len(self.writes) == before else 0
            if quiet >= 3 and (asleep or quiet >= 20):
                return

    def restart(self) -> None:
        """The operator's process is another one: it visits everything."""
        self.changed |= {key for key in self.objects if key[0] in KINDS}

    def visit(self, key: Key) -> Outcome:
        """One visit, with its outcome carried out as the executor does."""
        self.changed.discard(key)
        raw = copy.deepcopy(self.objects[key])
        outcome = decide(raw, self.observe(key), self.now, self.config)
        conflict = self._act(raw, outcome)
        if conflict is not None:
            outcome = decide(raw, self.observe(key, name_conflict=conflict), self.now, self.config)
            self._act(raw, outcome)
        again = RESYNC if outcome.requeue_after is None else timedelta(seconds=outcome.requeue_after)
        self.due[key] = self.now + again
        return outcome

    def observe(self, key: Key, *, name_conflict: str | None = None) -> Observed:
        uid = self.objects[key]["metadata"]["uid"]
        owned = {k: copy.deepcopy(o) for k, o in self.objects.items() if _controller(o) == uid}
        children = {k: o for k, o in owned.items() if k[0] != "ConfigMap"}
        pods = {k[1]: f for k, o in children.items() if (f := self._facts(o)) is not None}
        return Observed(
            children=children, pods=pods, refs=_Refs(self), name_conflict=name_conflict,
            launcher_installed=self.launcher_installed, namespace_ends=self.namespace_ends,
        )  # fmt: skip

    def _act(self, raw: dict[str, Any], outcome: Outcome) -> str | None:
        for action in outcome.actions:
            match action:
                case ConfirmFresh() if self._is_stale(raw):
                    self.changed.add((raw["kind"], raw["metadata"]["name"]))
                    return None
                case ConfirmAbsent(ref=ref) if (ref.kind, ref.name) in self.objects:
                    self.changed.add((raw["kind"], raw["metadata"]["name"]))
                    return None
                case Create(object=obj):
                    name = obj["metadata"]["name"]
                    if name in self.conflicts:
                        return name
                    self._create(dict(obj), raw["metadata"]["uid"])
                case Patch(ref=ref, body=body):
                    obj = self.objects[ref.kind, ref.name]
                    obj["spec"] = _merged(obj["spec"], body["spec"])
                    obj["metadata"]["generation"] += 1
                    self.writes.append(f"patch {ref.name}")
                    self._tell(obj)
                case Delete(ref=ref):
                    self._delete(ref)
        key = (raw["kind"], raw["metadata"]["name"])
        if outcome.status is not None and key in self.objects and outcome.status != self.status(key):
            # The CRD would refuse more.
            status_of(raw["kind"]).model_validate(outcome.status)
            self.objects[key]["status"] = json.loads(json.dumps(outcome.status))
            self.writes.append(f"status {key[1]}")
            self._tell(self.objects[key])
        self.events += [(key, e.reason, e.message) for e in outcome.events]
        return None

    def _create(self, obj: dict[str, Any], uid: str) -> None:
        key = (obj["kind"], obj["metadata"]["name"])
        if key in self.objects:
            assert _controller(self.objects[key]) == uid, f"{key} is somebody else's"
            return
        if obj["kind"] in KINDS:
            spec = KINDS[obj["kind"]].model_validate(obj).to_wire()["spec"]
            obj = {**obj, "spec": spec}
        self._put(obj)
        self.created[key[1]] += 1
        self.writes.append(f"create {key[0]} {key[1]}")

    def _put(self, obj: dict[str, Any]) -> Key:
        self.serial += 1
        made = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        meta = {"namespace": NAMESPACE, "uid": f"uid-{self.serial}", "generation": 1, "creationTimestamp": made,
                **obj["metadata"]}  # fmt: skip
        key = (obj["kind"], meta["name"])
        self.objects[key] = copy.deepcopy({**obj, "metadata": meta})
        self._tell(self.objects[key])
        return key

    def _is_stale(self, raw: Mapping[str, Any]) -> bool:
        live = self.objects.get((raw["kind"], raw["metadata"]["name"]), {})
        return any(raw.get(part) != live.get(part) for part in ("spec", "status"))

    def _tell(self, obj: Mapping[str, Any]) -> None:
        """Wake whom the caches would: the object, its owner, and whoever refers to it."""
        key = (obj["kind"], obj["metadata"]["name"])
        uid = _controller(obj)
        for other, raw in self.objects.items():
            if other[0] not in KINDS:
                continue
            if other == key or raw["metadata"]["uid"] == uid or key in _refs(raw):
                self.changed.add(other)

    def _delete(self, ref: Ref) -> None:
        """In the foreground: what it owns goes first, and a while later it is gone itself."""
        obj = self.objects.get((ref.kind, ref.name))
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            return
        obj["metadata"]["deletionTimestamp"] = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.writes.append(f"delete {ref.name}")
        self._tell(obj)
        for key, child in list(self.objects.items()):
            if _controller(child) == obj["metadata"]["uid"]:
                self._delete(Ref(api_version="", kind=key[0], namespace=NAMESPACE, name=key[1]))

    def _collect(self) -> None:
        """What was deleted before this round and owns nothing any more is gone."""
        owners = {_controller(obj) for obj in self.objects.values()}
        for key, obj in list(self.objects.items()):
            if key[1] in self.held:
                continue
            if "deletionTimestamp" in obj["metadata"] and obj["metadata"]["uid"] not in owners:
                del self.objects[key]
                self.due.pop(key, None)
                self.changed.discard(key)
                self._tell(obj)

    def _played(self, obj: Mapping[str, Any]) -> Ends | Runs | Stuck:
        labels = obj["metadata"]["labels"]
        return self.script(labels[LABEL_STEP], labels[LABEL_TASK], int(labels[LABEL_ATTEMPT]))

    def _kubelet(self) -> None:
        """Judge Jobs and PyTorchJobs by what their pods do, and let go what was deleted."""
        self._collect()
        for obj in self.objects.values():
            if obj["kind"] not in ("Job", "PyTorchJob") or obj.get("status"):
                continue
            act = self._played(obj)
            if isinstance(act, Ends):
                good = "Complete" if obj["kind"] == "Job" else "Succeeded"
                type_ = good if act.code == 0 else "Failed"
                obj["status"] = {"conditions": [{"type": type_, "status": "True", "reason": "Played", "message": ""}]}
                self._tell(obj)

    def _facts(self, obj: Mapping[str, Any]) -> PodFacts | None:
        if obj["kind"] not in ("Job", "PyTorchJob"):
            return None
        act, name = self._played(obj), f"{obj['metadata']['name']}-0"
        if obj["metadata"]["name"] in self.held and "deletionTimestamp" in obj["metadata"]:
            return PodFacts(leaving=(f"{name} on node gone",))
        if isinstance(act, Stuck):
            return PodFacts(problems=(PodProblem(pod=name, reason=act.reason, message=act.message),))
        if isinstance(act, Runs):
            told_at = None if act.figures is None else act.told_at or self.now
            return PodFacts(running=1, figures=act.figures, figures_at=told_at, replaced=act.replaced)
        message = act.message
        if message is None and act.code == 0 and obj["metadata"]["labels"][LABEL_TASK] == TASK_FINALIZE:
            message = {**self._result(obj), **act.result}
        end = PodEnd(pod=name, exit_code=act.code, message=message, disrupted=act.disrupted, reason=act.reason)
        return PodFacts(ends=(end,)) if obj.get("status") else PodFacts(running=1)

    def _result(self, obj: Mapping[str, Any]) -> dict[str, Any]:
        volumes = obj["spec"]["template"]["spec"]["volumes"]
        name = next(v["configMap"]["name"] for v in volumes if v.get("configMap"))
        spec = json.loads(self.objects["ConfigMap", name]["data"]["runspec.json"])
        digest = hashlib.sha256(spec["output"]["uri"].encode()).hexdigest()
        counts = {"documents": 100, "augmented": 100, "dead_letters": 0, "pairs": 300, "steps": 50}
        scores = {"final_loss": 2.5}
        return {"uri": spec["output"]["uri"], "digest": f"sha256:{digest}", "counts": counts, "scores": scores}


def status_of(kind: str) -> type[BaseModel]:
    """The model of a kind's status."""
    wanted = KINDS[kind].model_fields["status"].annotation
    return next(t for t in typing.get_args(wanted) if isinstance(t, type) and issubclass(t, BaseModel))


def _refs(raw: Mapping[str, Any]) -> tuple[Key, ...]:
    try:
        return refs_of(parse(raw))
    except ValueError:
        return ()


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7396, as the API server merges."""
    if not isinstance(patch, Mapping):
        return patch
    out = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = _merged(out.get(key), value)
    return out


class _Refs(dict[Key, Any]):
    """Every object of ours, looked up by kind and name."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__({k: copy.deepcopy(o) for k, o in cluster.objects.items() if k[0] in KINDS})


def _controller(obj: Mapping[str, Any]) -> str | None:
    owners = obj["metadata"].get("ownerReferences", ())
    return next((o["uid"] for o in owners if o.get("controller")), None)
