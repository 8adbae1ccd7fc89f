"""What the operator knows of the cluster: one informer per type and namespace, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from instructpt.plan.naming import MANAGED_BY, OPERATOR
from instructpt.plan.refs import refs_of
from instructpt_operator.actions import Object
from instructpt_operator.reconcilers.resources import parse
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.runtime.informer import Informer
from instructpt_operator.runtime.store import InformerEvent, controller_uid
from instructpt_operator.types import JOBS, OURS, launcher_type

Key = tuple[str, str, str]
"""Kind, namespace and name of an object of ours."""

OWNER, REFERS = "controller", "refers"


class Caches:
    """Informers of our kinds, of Jobs and of the launcher's objects.

    Args:
        client: Lists and watches.
        namespaces: To look at; empty means all.
        launcher: Name of the launcher for training; its type may be missing.
        on_change: Told of the key of each object of ours that a change concerns.
        on_gone: Told of the uid of each child that is gone.
        on_answer: Called when the API server answers again after it gave no answer at all.
    """

    def __init__(
        self, client: KubeClient, *, namespaces: Iterable[str], launcher: str, on_change: Callable[[Key], None],
        on_gone: Callable[[str], None] = lambda uid: None, on_answer: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._on_change, self._on_gone, self._on_answer = on_change, on_gone, on_answer
        self.launcher = launcher_type(launcher)
        self._informers: dict[str, list[Informer]] = {}
        managed = f"{MANAGED_BY}={OPERATOR}"
        wanted: list[str | None] = list(namespaces) or [None]
        for namespace in wanted:
            for kind, type_ in OURS.items():
                indexers = {OWNER: controller_uid, REFERS: _refers}
                informer = Informer(
                    client, type_, namespace=namespace, on_event=self._ours, indexers=indexers,
                    on_answer=self.hurry,
                )  # fmt: skip
                self._add(kind, informer)
            for type_, optional in ((JOBS, False), (self.launcher, True)):
                informer = Informer(
                    client, type_, namespace=namespace, label_selector=managed, on_event=self._child,
                    indexers={OWNER: controller_uid}, transform=_without_templates, optional=optional,
                    on_answer=self.hurry,
                )  # fmt: skip
                self._add(type_.kind, informer)

    def __iter__(self) -> Iterator[Informer]:
        """All informers."""
        return (informer for informers in self._informers.values() for informer in informers)

    def start(self) -> None:
        """Begin to list and watch."""
        for informer in self:
            informer.start()

    def stop(self) -> None:
        """End all informers."""
        for informer in self:
            informer.stop()

    @property
    def synced(self) -> bool:
        """Whether everything was listed once."""
        return all(informer.synced for informer in self)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object of ours."""
        found = (i.store.get(namespace, name) for i in self._informers[kind])
        return next((obj for obj in found if obj is not None), None)

    def all_keys(self) -> list[Key]:
        """Every object of ours."""
        return [_key(kind, obj) for kind in OURS for i in self._informers[kind] for obj in i.store.list()]

    def owned(self, uid: str) -> Mapping[tuple[str, str], Object]:
        """Objects whose controller has that uid, by kind and name."""
        found: dict[tuple[str, str], Object] = {}
        for kind, informers in self._informers.items():
            for informer in informers:
                for obj in informer.store.by_index(OWNER, uid):
                    found[kind, obj["metadata"]["name"]] = {
                        "apiVersion": informer.type.api_version,
                        "kind": kind,
                        **obj,
                    }
        return found

    def child_uids(self) -> set[str]:
        """Of every Job and every object of the launcher."""
        kinds = (JOBS.kind, self.launcher.kind)
        return {obj["metadata"]["uid"] for kind in kinds for i in self._informers[kind] for obj in i.store.list()}

    def feed(self, obj: Object) -> None:
        """Take in an object that was read or written, so that the next visit sees it."""
        kind, meta = obj.get("kind", ""), obj["metadata"]
        if kind not in OURS and meta.get("labels", {}).get(MANAGED_BY) != OPERATOR:
            return  # somebody else's Job: the informer does not see it, so neither may the cache
        for informer in self._informers.get(kind, ()):
            if informer.namespace in (None, meta.get("namespace")):
                informer.feed(dict(obj))

    def hurry(self) -> None:
        """The API server is back: whoever waits ever longer need not any more."""
        for informer in self:
            informer.hurry()
        self._on_answer()

    def _add(self, kind: str, informer: Informer) -> None:
        self._informers.setdefault(kind, []).append(informer)

    def _ours(self, event: InformerEvent) -> None:
        obj = event.object
        kind = obj["kind"]
        self._on_change(_key(kind, obj))
        self.tell_owner(obj)
        namespace = obj["metadata"]["namespace"]
        for other in OURS:
            for informer in self._informers.get(other, ()):
                for waiting in informer.store.by_index(REFERS, f"{namespace}/{kind}/{obj['metadata']['name']}"):
                    self._on_change(_key(other, waiting))

    def _child(self, event: InformerEvent) -> None:
        if event.kind == "DELETED":
            self._on_gone(event.object["metadata"]["uid"])
        self.tell_owner(event.object)

    def tell_owner(self, obj: Object) -> None:
        """Something concerns a child: whoever owns it is to be looked at."""
        for owner in obj["metadata"].get("ownerReferences") or ():
            if owner.get("controller") and owner["kind"] in OURS:
                self._on_change((owner["kind"], obj["metadata"]["namespace"], owner["name"]))


def _key(kind: str, obj: Object) -> Key:
    return kind, obj["metadata"]["namespace"], obj["metadata"]["name"]


def _refers(obj: dict[str, object]) -> Iterable[str]:
    """An indexer: what an object of ours refers to."""
    meta = obj["metadata"]
    assert isinstance(meta, dict)
    try:
        return [f"{meta['namespace']}/{kind}/{name}" for kind, name in refs_of(parse(obj))]
    except ValueError:  # a spec that the models refuse refers to nothing
        return []


def _without_templates(obj: dict[str, object]) -> dict[str, object]:
    """A Job as it is kept: its pod template is never read again."""
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return obj
    slim = {k: v for k, v in spec.items() if k not in ("template", "pytorchReplicaSpecs")}
    if "pytorchReplicaSpecs" in spec:
        slim["pytorchReplicaSpecs"] = {
            k: {"replicas": v.get("replicas", 1)} for k, v in spec["pytorchReplicaSpecs"].items()
        }
    return {**obj, "spec": slim}
