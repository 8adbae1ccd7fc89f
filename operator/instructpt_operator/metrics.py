"""``/metrics`` of the operator, named in parallel to controller-runtime so that known dashboards carry over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from instructpt.telemetry.exposition import Family, render
from instructpt_operator.manager import Manager
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.types import OURS


def render_metrics(manager: Manager, client: KubeClient, *, leading: bool, lease: str) -> bytes:
    """The figures of this moment in Prometheus's text format."""
    return render(_families(manager, client, leading=leading, lease=lease))


def _families(manager: Manager, client: KubeClient, *, leading: bool, lease: str) -> Iterable[Family]:
    yield Family(
        "instructpt_operator_reconcile_total", "counter", "Reconciles by kind and result.",
        [({"controller": kind, "result": r}, n) for kind, p in manager.pools.items() for r, n in p.results.items()],
    )  # fmt: skip
    yield Family(
        "workqueue_depth", "gauge", "Keys that a worker could take now.",
        [({"name": kind}, queue.stats().ready) for kind, queue in manager.queues.items()],
    )  # fmt: skip
    yield Family(
        "leader_election_master_status", "gauge", "1 where this process leads.", [({"name": lease}, int(leading))]
    )
    yield Family(
        "instructpt_operator_api_calls_total", "counter", "Calls of the API server by verb and status; 0: no answer.",
        [({"verb": verb, "code": str(code)}, n) for (verb, code), n in client.calls.items()],
    )  # fmt: skip
    yield Family(
        "instructpt_operator_writes_total", "counter", "Writes by verb.",
        [({"verb": verb}, n) for verb, n in manager.executor.writes.items()],
    )  # fmt: skip
    yield Family(
        "instructpt_operator_watch_silence_seconds", "gauge", "Seconds since the last event or bookmark of a watch.",
        [({"resource": plural}, seconds) for plural, seconds in sorted(_silence(manager).items())],
    )  # fmt: skip
    phases: Counter[tuple[str, str, str]] = Counter()
    for kind, namespace, name in manager.caches.all_keys():
        obj = manager.caches.get(kind, namespace, name) or {}
        phases[kind, namespace, obj.get("status", {}).get("phase", "Pending")] += 1
    yield Family(
        "instructpt_objects", "gauge", f"Objects by kind ({', '.join(OURS)}), namespace and phase.",
        [({"kind": k, "namespace": n, "phase": p}, count) for (k, n, p), count in sorted(phases.items())],
    )  # fmt: skip


def _silence(manager: Manager) -> dict[str, float]:
    """By type, of the namespace that has been silent for longest."""
    longest: dict[str, float] = {}
    for informer in manager.caches:
        longest[informer.type.plural] = max(longest.get(informer.type.plural, 0.0), informer.last_heard())
    return longest
