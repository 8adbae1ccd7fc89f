"""Leases of micro-shards (protocols, section 3): taken by conditional create, renewed, watched, taken over.

A lease is the object ``leases/<shard>/<epoch>``. Whoever holds one overwrites it now and then; whoever wants it waits
until its ETag was unchanged for the time that it states, on a monotonic clock of their own, and creates the next
epoch. No wall clock is read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from instructpt.errors import ConditionFailedError, ConfigError, InstructPTError, NotFoundError
from instructpt.storage import ObjectInfo, Store

log = logging.getLogger(__name__)

PAGE = 1000
"""Keys in one page of a listing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lease that this worker holds.

    Attributes:
        shard: Name of the micro-shard.
        epoch: 1 for the first claim of the shard, one more for each take-over.
        key: The lease object.
        nonce: Tells this lease's body from every other.
    """

    shard: str
    epoch: int
    key: str
    nonce: str


@dataclass(slots=True)
class Renewal:
    """The state of a background renewer.

    Attributes:
        lost: Set when somebody took the lease over: the work may be dropped.
        failures: Renewals that the storage failed; the next one is tried all the same.
        error: What ended the renewer early, if anything did.
    """

    lost: threading.Event = field(default_factory=threading.Event)
    failures: int = 0
    error: InstructPTError | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The latest lease of a shard, as a listing shows it."""

    epoch: int
    etag: str


@dataclass(slots=True)
class _Watch:
    """A lease of somebody else, and since when it stands unchanged on this worker's clock."""

    seen: Seen
    since: float
    lease_seconds: float | None = None  # None until the body was read


@dataclass(slots=True)
class _Held:
    """A lease of ours and when it was last written."""

    claim: Claim
    written: float
    renewals: int = 0


class ExclusiveCreates:
    """Creates that exclude a second writer, or a look before the write where there is only one writer.

    Args:
        store: Probed at the first use.
        parallel: Whether there may be other writers.
    """

    def __init__(self, store: Store, *, parallel: bool) -> None:
        self._store = store
        self._parallel = parallel
        self._conditional: bool | None = None

    def check(self) -> None:
        """Probe the store, once.

        Raises:
            ConfigError: There may be other writers, and the store would let two of them win.
        """
        if self._conditional is None:
            self._conditional = self._store.supports_conditional_create()
        if self._parallel and not self._conditional:
            raise ConfigError(
                f"{self._store.uri} ignores If-None-Match, so two writers could both win",
                fix="set parallelism: 1 or use a server that honours conditional writes (AWS S3, MinIO, versitygw)",
            )

    def create(self, key: str, body: bytes) -> None:
        """Write the object if the key is free.

        Raises:
            ConditionFailedError: It is not.
            ConfigError: As for :meth:`check`.
        """
        self.check()
        if self._conditional:
            self._store.create(key, body)
        elif self._store.exists(key):
            raise ConditionFailedError(f"{self._store.uri}/{key} already exists")
        else:
            self._store.put(key, body)


class Leases:
    """The leases of one worker and what it knows of those of others.

    :meth:`renew` may run in another thread; everything else is for one.

    Args:
        store: Where the leases are.
        root: Prefix of their keys, with a trailing slash.
        creates: How a lease is created.
        worker_id: Written into each lease.
        lease_seconds: How long others respect an unchanged lease of this worker.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        root: str,
        *,
        creates: ExclusiveCreates,
        worker_id: str,
        lease_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._root = root
        self._creates = creates
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._watched: dict[str, _Watch] = {}
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()

    # ---------------------------------------------------------------- our own

    def take(self, shard: str, epoch: int) -> Claim | None:
        """Create the lease of ``epoch``; None when somebody was first."""
        claim = Claim(shard=shard, epoch=epoch, key=self._key(shard, epoch), nonce=secrets.token_hex(8))
        started = self._clock()
        try:
            self._creates.create(claim.key, self._body(claim, 0))
        except ConditionFailedError:
            return None
        self._watched.pop(shard, None)
        with self._lock:
            self._held[shard] = _Held(claim, started)
        return claim

    def renew(self, claim: Claim) -> bool:
        """Overwrite our lease so that its ETag changes.

        Whether somebody took over is asked only when the last renewal is so long ago that somebody may have.

        Returns:
            False when the lease is no longer ours; nothing was written then.

        Raises:
            StorageError: The storage failed; try again.
        """
        with self._lock:
            held = self._held.get(claim.shard)
        if held is None or held.claim != claim:
            return False
        started = self._clock()
        may_be_lost = started - held.written > self._lease_seconds / 2
        if may_be_lost and self._store.exists(self._key(claim.shard, claim.epoch + 1)):
            # Told here alone: a lease that this worker let go of, since it has committed, is nobody's alarm.
            log.warning("the lease of %s, epoch %d, was taken over", claim.shard, claim.epoch)
            self.forget(claim)
            return False
        held.renewals += 1
        self._store.put(claim.key, self._body(claim, held.renewals))
        held.written = started
        return True

    @contextlib.contextmanager
    def renewing(self, claim: Claim) -> Iterator[Renewal]:
        """Renew ``claim`` in a thread every third of the lease while the block runs.

        Raises:
            ConfigError: The storage refused a renewal (raised at the end of the block).
        """
        renewal, stop = Renewal(), threading.Event()

        def run() -> None:
            while not stop.wait(self._lease_seconds / 3):
                try:
                    if not self.renew(claim):
                        renewal.lost.set()
                        return
                except InstructPTError as error:
                    renewal.failures += 1
                    log.warning("renewing the lease of %s failed: %s", claim.shard, error)
                    if isinstance(error, ConfigError):
                        renewal.error = error
                        return

        thread = threading.Thread(target=run, name=f"renew-{claim.shard}", daemon=True)
        thread.start()
        try:
            yield renewal
        finally:
            stop.set()
            thread.join()
        if renewal.error is not None:
            raise renewal.error

    def release(self, claim: Claim) -> None:
        """Delete our lease, so that nobody has to wait for it to expire."""
        if self.forget(claim):
            self._store.delete(claim.key)

    def forget(self, claim: Claim) -> bool:
        """No longer count ``claim`` as ours; False if it was not."""
        with self._lock:
            held = self._held.get(claim.shard)
            if held is None or held.claim != claim:
                return False
            del self._held[claim.shard]
            return True

    def clear(self, shard: str) -> None:
        """Delete every lease of a shard."""
        self._watched.pop(shard, None)
        with self._lock:
            self._held.pop(shard, None)
        for info in list(self._store.list(f"{self._root}{shard}/")):
            self._store.delete(info.key)

    # --------------------------------------------------------- those of others

    def latest(self, shard: str) -> Seen | None:
        """The lease of a shard, from one listing."""
        return self._latest(self._store.list(f"{self._root}{shard}/")).get(shard)

    def page(self, after: str) -> dict[str, Seen]:
        """The leases of the shards from ``after`` on, as far as one page of a listing tells."""
        return self._latest(itertools.islice(self._store.list(self._root, start_after=f"{self._root}{after}/"), PAGE))

    def all(self) -> dict[str, Seen]:
        """The lease of every shard that has one."""
        return self._latest(self._store.list(self._root))

    def _latest(self, found: Iterable[ObjectInfo]) -> dict[str, Seen]:
        latest: dict[str, Seen] = {}
        for info in found:
            shard, _, number = info.key[len(self._root) :].partition("/")
            if number.isdigit() and (shard not in latest or int(number) > latest[shard].epoch):
                latest[shard] = Seen(int(number), info.etag)
        return latest

    def watch(self, shard: str, seen: Seen) -> None:
        """Note the lease of somebody else; its time runs anew whenever it changed."""
        old = self._watched.get(shard)
        if old is None or old.seen != seen:
            known = old.lease_seconds if old is not None and old.seen.epoch == seen.epoch else None
            self._watched[shard] = _Watch(seen, self._clock(), known)

    def may_take(self, shard: str) -> int | None:
        """The next epoch, if the watched lease is ours from an earlier life or has expired; else None."""
        watch = self._watched.get(shard)
        if watch is None:
            return None
        if watch.lease_seconds is None:
            body = self._read(shard, watch.seen.epoch)
            if body is None:
                return None
            stated = body.get("leaseSeconds")
            watch.lease_seconds = float(stated) if isinstance(stated, int | float) else self._lease_seconds
            if body.get("worker") == self._worker_id:
                return watch.seen.epoch + 1
        return watch.seen.epoch + 1 if self._clock() - watch.since >= watch.lease_seconds else None

    def _read(self, shard: str, epoch: int) -> Mapping[str, Any] | None:
        """The body of a lease; None if it was released meanwhile, empty if no worker of this package wrote it."""
        try:
            body = json.loads(self._store.get(self._key(shard, epoch)))
        except NotFoundError:
            return None
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    def _key(self, shard: str, epoch: int) -> str:
        return f"{self._root}{shard}/{epoch}"

    def _body(self, claim: Claim, renewals: int) -> bytes:
        lease = {"worker": self._worker_id, "leaseSeconds": self._lease_seconds}
        return json.dumps({**lease, "nonce": claim.nonce, "renewals": renewals}).encode()
