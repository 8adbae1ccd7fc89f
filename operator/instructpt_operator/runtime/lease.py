"""Leader election on a ``coordination.k8s.io/v1`` Lease that fails closed.

The holder writes ``renewTime`` every few seconds. Nobody compares that time with a clock of its own: a candidate
measures on its monotonic clock how long it has seen *no change*, and the holder measures how long ago it *began* its
last renewal that succeeded. As the holder's limit is the shorter one, it has given up before anybody takes over.

There is no way back from losing the lease but a new process: whatever runs in this one may believe it still leads.
"""

from __future__ import annotations

import datetime
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from instructpt_operator.runtime.client import ApiError, ResourceType

LEASES = ResourceType(api_version="coordination.k8s.io/v1", kind="Lease", plural="leases")
CALL_SECONDS = 3.0

logger = logging.getLogger(__name__)


class LeaseClient(Protocol):
    """The one method of ``KubeClient`` that the election needs. Give it an instance that nothing else uses."""

    def request(
        self, method: str, path: str, *, body: Any = None, timeout_seconds: float | None = None
    ) -> dict[str, Any]:
        """One call."""
        ...


def boottime() -> float:
    """Monotonic seconds that go on while the machine is suspended, where the system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def unique_identity(name: str | None = None) -> str:
    """A holder's name that no other process has: the pod's name, or the host's, and random digits."""
    return f"{name or socket.gethostname()}_{uuid.uuid4().hex[:12]}"


class LeaderElector:
    """Takes the lease, keeps it, and ends the process when it is lost. Thread-safe.

    Args:
        client: An instance of its own, so that nobody else's calls delay a renewal.
        namespace: Of the Lease.
        name: Of the Lease; it is created if need be.
        identity: Differs from that of every other process: see :func:`unique_identity`.
        on_started: Called once, in a thread of its own, when this process leads. If it raises, the process ends.
        on_answer: Called when a try succeeds after one that failed: the API server is back. It must be quick.
        lease_seconds: How long a candidate waits without seeing a change; a whole number, as the API wants it.
        renew_deadline_seconds: Age of the last renewal beyond which this process no longer leads.
        retry_seconds: Between two tries, for holder and candidate.
        clock: Monotonic seconds, with the time that the machine was suspended.
        exit: Ends the process at once.
    """

    def __init__(
        self,
        client: LeaseClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_started: Callable[[], None],
        on_answer: Callable[[], None] = lambda: None,
        lease_seconds: int = 15,
        renew_deadline_seconds: float = 10.0,
        retry_seconds: float = 2.0,
        clock: Callable[[], float] = boottime,
        exit: Callable[[int], object] = os._exit,
    ) -> None:
        if not 0 < retry_seconds < renew_deadline_seconds < lease_seconds:
            raise ValueError(
                f"retry_seconds={retry_seconds} must be above 0 and below renew_deadline_seconds="
                f"{renew_deadline_seconds}, and that below lease_seconds={lease_seconds}"
            )
        self._client = client
        self._namespace, self._name, self.identity = namespace, name, identity
        self._on_started, self._on_answer = on_started, on_answer
        self._lease_seconds, self._deadline, self._retry = lease_seconds, renew_deadline_seconds, retry_seconds
        self._clock, self._exit = clock, exit
        self._turn = threading.Lock()  # one exchange with the API server at a time
        self._stop = threading.Event()
        self._over = False  # lost: no way back
        self._away = False  # the last try failed
        self._renewed_at: float | None = None  # when the last renewal began; None while not leading
        self._lease: Mapping[str, Any] | None = None  # as we last wrote it, or found it to be ours
        self._sight: tuple[str, ...] | None = None  # what another's lease looked like
        self._sight_at = 0.0  # when it was first seen to look so
        self._sight_seconds = 0.0  # how long it holds without a change

    def start(self) -> None:
        """Begin to try; returns at once."""
        threading.Thread(target=self._run, name="lease", daemon=True).start()
        threading.Thread(target=self._guard, name="lease-guard", daemon=True).start()

    def is_leader(self) -> bool:
        """Whether the lease was taken, and not been lost or released. Before a write ask :meth:`may_write`."""
        return self._renewed_at is not None and not self._over and not self._stop.is_set()

    def age_seconds(self) -> float:
        """Time since the last renewal that succeeded was begun; infinite while not leading."""
        renewed = self._renewed_at
        return math.inf if renewed is None else self._clock() - renewed

    def may_write(self) -> bool:
        """Whether this process leads and has renewed recently: to be asked right before each write."""
        return self.is_leader() and self.age_seconds() <= self._deadline

    def step(self) -> None:
        """One try to take or to renew the lease. No exception leaves it: each is a failed try."""
        with self._turn:
            if self._stop.is_set() or self.check():
                return
            leading = self._renewed_at is not None
            try:
                if leading:
                    self._renew()
                else:
                    self._acquire()
            except Exception as error:  # a timeout, a reset, a 500, a page of HTML: all the same
                logger.warning("lease %s: %s failed: %s", self._name, "renewal" if leading else "look", _brief(error))
                self._away = True
            else:
                if self._away:
                    self._away = False
                    self._on_answer()
            self.check()

    def check(self) -> bool:
        """End the process if the last renewal is too long ago; returns whether leadership is lost."""
        if not self._over and self._renewed_at is not None and self.age_seconds() > self._deadline:
            self._lose(f"not renewed for {self.age_seconds():.1f} s")
        return self._over

    def release(self) -> bool:
        """Give the lease up, so that another may take it at once; returns whether it was.

        From the call on nothing may be written. Without an answer the lease just runs out.
        """
        self._stop.set()
        # A renewal under way must end first, or it would take the lease back.
        if not self._turn.acquire(timeout=2 * CALL_SECONDS):
            return False
        try:
            if self._over or self._renewed_at is None or self._lease is None:
                return False
            self._renewed_at = None
            spec = {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            self._call("PUT", self._name, {**self._lease, "spec": spec})
            logger.info("lease %s: released", self._name)
            return True
        except Exception as error:
            logger.warning("lease %s: release failed: %s", self._name, _brief(error))
            return False
        finally:
            self._turn.release()

    def _run(self) -> None:
        while not self._stop.is_set() and not self._over:
            self.step()
            self._stop.wait(self._retry)

    def _guard(self) -> None:
        """Sees to the deadline also while a call hangs."""
        while not self._stop.is_set() and not self.check():
            left = self._deadline - self.age_seconds() if self._renewed_at is not None else self._retry
            self._stop.wait(min(max(left, 0.0) + 0.01, self._retry))

    def _lose(self, why: str) -> None:
        self._over = True
        logger.error("lease %s: lost, %s; the process ends", self._name, why)
        self._exit(1)

    def _renew(self) -> None:
        assert self._lease is not None
        try:
            self._write(self._lease)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            # Somebody wrote, or an earlier write of ours went through unnoticed. Only the lease itself can tell.
            lease = self._look()
            if lease is None or lease["spec"].get("holderIdentity") != self.identity:
                self._lose("it is gone" if lease is None else "it has another holder")
                return
            self._write(lease)

    def _acquire(self) -> None:
        lease = self._look()
        if lease is None:
            # A lease that somebody held until it was deleted may still be believed in.
            if not self._held():
                self._write(None)
        elif self._free(lease):
            self._write(lease)

    def _free(self, lease: Mapping[str, Any]) -> bool:
        """Whether a lease may be taken: nobody's, our own, or unchanged for as long as it holds."""
        spec = lease["spec"]
        holder = str(spec.get("holderIdentity") or "")
        if holder in ("", self.identity):
            self._sight = None
            return True
        sight = (holder, str(spec.get("renewTime")), str(lease["metadata"]["resourceVersion"]))
        if sight != self._sight:
            self._sight, self._sight_at = sight, self._clock()
            self._sight_seconds = float(spec.get("leaseDurationSeconds") or self._lease_seconds)
        return not self._held()

    def _held(self) -> bool:
        """Whether another's lease, as last seen, still holds."""
        return self._sight is not None and self._clock() - self._sight_at <= self._sight_seconds

    def _write(self, found: Mapping[str, Any] | None) -> None:
        """Write the lease as ours; where another was faster, ``resourceVersion`` makes that a 409."""
        began, now = self._clock(), _now()
        old = {} if found is None else found["spec"]
        ours = old.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._lease_seconds,
            "acquireTime": old.get("acquireTime") or now if ours else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (found is not None and not ours),
        }
        if found is None:
            metadata: Any = {"name": self._name, "namespace": self._namespace}
            lease = self._call("POST", None, {**_TYPE, "metadata": metadata, "spec": spec})
        else:
            lease = self._call("PUT", self._name, {**_TYPE, "metadata": found["metadata"], "spec": spec})
        if lease["spec"].get("holderIdentity") != self.identity:
            raise ValueError("the answer is not what was written")
        self._lease = lease
        if self._clock() - began > self._deadline:
            raise TimeoutError("the answer came too late to rely on it")
        first = self._renewed_at is None
        self._renewed_at = began
        if first and not self._stop.is_set():
            logger.info("lease %s: taken by %s", self._name, self.identity)
            threading.Thread(target=self._started, name="leader", daemon=True).start()

    def _started(self) -> None:
        try:
            self._on_started()
        except Exception:
            # A leader without workers would keep the others from working.
            logger.exception("lease %s: the leader could not start", self._name)
            self._over = True
            self._exit(1)

    def _look(self) -> Mapping[str, Any] | None:
        try:
            return self._call("GET", self._name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _call(self, method: str, name: str | None, body: Any = None) -> Mapping[str, Any]:
        path = LEASES.path(self._namespace, name)
        lease = self._client.request(method, path, body=body, timeout_seconds=CALL_SECONDS)
        if not lease["metadata"]["resourceVersion"] or not isinstance(lease.get("spec"), Mapping):
            raise ValueError("the answer is not a Lease")
        return lease


_TYPE = {"apiVersion": LEASES.api_version, "kind": LEASES.kind}


def _now() -> str:
    """The wall clock, for people to read."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
