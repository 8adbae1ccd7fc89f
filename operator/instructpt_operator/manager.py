"""Ties caches, queues, reconcilers and the executor together: a key in, one visit, when to come back out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from instructpt.plan.refs import refs_of
from instructpt_operator.actions import Object, Outcome
from instructpt_operator.caches import Caches, Key
from instructpt_operator.executor import Executor
from instructpt_operator.looker import PodLooker
from instructpt_operator.namespaces import NamespaceEnds
from instructpt_operator.observed import Observed, PodFacts
from instructpt_operator.reconcilers.common import is_settled
from instructpt_operator.reconcilers.config import Config
from instructpt_operator.reconcilers.decide import decide, is_left_alone
from instructpt_operator.reconcilers.resources import parse
from instructpt_operator.runtime.client import KubeClient
from instructpt_operator.runtime.queue import WorkQueue
from instructpt_operator.runtime.worker import RetryLater, WorkerPool
from instructpt_operator.types import OURS

logger = logging.getLogger(__name__)

LAUNCHER_CHECK_SECONDS = 30.0

Name = tuple[str, str]


class Manager:
    """Reconciles all objects. Informers run from the start, workers once this process leads (rule R16).

    Args:
        client: Reads what is not cached.
        caches: A function that makes the caches, given who is to be told of changes, and of a server that is back.
        looker: Looks at pods.
        make_executor: A function that makes the only writer, given where written objects are to be fed.
        config: Settings of the reconcilers.
        workers: Threads per kind.
        resync_seconds: Between two visits to everything.
        now: The wall clock.
    """

    def __init__(
        self,
        *,
        client: KubeClient,
        caches: Callable[[Callable[[Key], None], Callable[[], None]], Caches],
        looker: PodLooker,
        make_executor: Callable[[Callable[[Object], None]], Executor],
        config: Config,
        workers: int = 5,
        resync_seconds: float = 600.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client, self._looker, self._config, self._now = client, looker, config, now
        self.queues: dict[str, WorkQueue[Name]] = {kind: WorkQueue() for kind in OURS}
        self.caches = caches(self._changed, self._answered)
        looker.subscribe(self.caches.tell_owner)
        self._namespaces = NamespaceEnds(client)
        self.executor = make_executor(self.caches.feed)
        self.pools = {
            kind: WorkerPool(queue, partial(self._reconcile, kind), workers=workers, name=f"reconcile-{kind}")
            for kind, queue in self.queues.items()
        }
        self._resync_seconds = resync_seconds
        self._stopping = threading.Event()
        self._launcher_installed = True  # until the API server says otherwise

    def start(self) -> None:
        """Fill the caches; nothing is reconciled yet."""
        self._check_launcher()
        self.caches.start()
        threading.Thread(target=self._tick, name="resync", daemon=True).start()

    def lead(self) -> None:
        """Begin to reconcile: called when this process holds the lease and the caches are synced."""
        for pool in self.pools.values():
            pool.start()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Take no more keys, finish what runs; returns whether that came in time (rule R21). The caches go on."""
        self._stopping.set()
        for queue in self.queues.values():
            queue.shutdown()
        deadline = time.monotonic() + timeout_seconds
        return all([pool.stop(max(0.0, deadline - time.monotonic())) for pool in self.pools.values()])

    def visit(self, kind: str, name: Name) -> float | None:
        """One visit to one object; returns after how many seconds it is to be visited again."""
        raw = self.caches.get(kind, *name)
        if raw is None:
            return None
        observed = self.observe(raw)
        outcome = self._decide(raw, observed)
        result = self.executor.execute(raw, outcome, recompute=self._recompute)
        if result.conflict_name is not None or result.refused is not None:
            hindered = replace(observed, name_conflict=result.conflict_name, refused=result.refused)
            outcome = self._decide(raw, hindered)
            result = self.executor.execute(raw, outcome, recompute=self._recompute)
        if result.retry:
            raise RetryLater("its state was not what was assumed" if result.error is None else str(result.error))
        return self._in_time_for_looks(observed, result.requeue_after)

    def observe(self, raw: Object) -> Observed:
        """The owned state of an object, from the caches, with the pods that matter looked at."""
        meta = raw["metadata"]
        children = self.caches.owned(meta["uid"])
        pods: dict[str, PodFacts] = {}
        if not is_left_alone(raw):
            for (_, child_name), child in children.items():
                if not is_settled(raw, child) and (facts := self._looker.facts(child)) is not None:
                    pods[child_name] = facts
        refs: dict[tuple[str, str], Object | None] = {}
        try:
            wanted = refs_of(parse(raw))
        except ValueError:
            wanted = ()
        for kind, name in wanted:
            refs[kind, name] = self.caches.get(kind, meta["namespace"], name)
        ends = any(f.stranded for f in pods.values()) and self._namespaces.ends(meta["namespace"])
        return Observed(
            children=children, pods=pods, refs=refs, namespace_ends=ends, launcher_installed=self._launcher_installed
        )

    def _in_time_for_looks(self, observed: Observed, after: float | None) -> float | None:
        """When to come back: not a moment before a look at pods is due, which would put it off until the next visit."""
        if after is None:
            return None
        looked_at = [child for (_, name), child in observed.children.items() if name in observed.pods]
        due = [self._looker.due_in(child["metadata"]["uid"]) for child in looked_at]
        return min([after, *(seconds for seconds in due if seconds is not None)])

    def _decide(self, raw: Object, observed: Observed) -> Outcome:
        return decide(raw, observed, self._now(), self._config)

    def _recompute(self, live: Object) -> Outcome:
        return self._decide(live, self.observe(live))

    def _reconcile(self, kind: str, name: Name) -> float | None:
        return self.visit(kind, name)

    def _changed(self, key: Key) -> None:
        kind, namespace, name = key
        self.queues[kind].add((namespace, name))

    def _answered(self) -> None:
        for queue in self.queues.values():
            queue.hurry()

    def _tick(self) -> None:
        """Ask for everything now and then, and whether the launcher was installed meanwhile."""
        waited = 0.0
        while not self._stopping.wait(LAUNCHER_CHECK_SECONDS):
            waited += LAUNCHER_CHECK_SECONDS
            self._check_launcher()
            if waited >= self._resync_seconds:
                waited = 0.0
                self._looker.retain(self.caches.child_uids())
                for key in self.caches.all_keys():
                    self._changed(key)

    def _check_launcher(self) -> None:
        before = self._launcher_installed
        try:
            self._launcher_installed = self._client.serves(self.caches.launcher)
        except Exception as error:  # the API server is away: what was known stays
            logger.warning("cannot ask for the launcher's type", extra={"error": str(error)})
        if self._launcher_installed and not before:
            for key in self.caches.all_keys():
                self._changed(key)
