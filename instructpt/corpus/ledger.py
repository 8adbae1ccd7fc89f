"""The ledger of micro-shards: who works on which, and what is committed (protocols, section 3).

Three kinds of object below one prefix, and nothing but conditional creates::

    leases/<shard>/<epoch>               held by the worker whose body stands in it
    data/<shard>/<epoch>-<random>.<ext>  a name that no two writers share
    commits/<shard>                      created once; names the data object that counts

At most one commit exists per shard, because its create excludes. Leases only save work: a worker whose lease was
taken over may go on to the end and changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructpt.corpus.leases import Claim, ExclusiveCreates, Leases, Renewal, Seen
from instructpt.errors import ConditionFailedError, CorpusError, InstructPTError, NotFoundError, StorageError
from instructpt.storage import ObjectInfo, Store
from instructpt.storage.hashing import sha256_of_file

__all__ = ["Claim", "CommitRecord", "Ledger", "Renewal"]

log = logging.getLogger(__name__)

LIST_SECONDS = 60.0
"""While working, commits are listed at most this often."""

FEW = 8
"""Up to this many leased shards are looked at one by one; more by listing."""

ORPHAN_SECONDS = 24 * 3600.0
"""Orphans younger than this are left alone."""

_READERS = 16
_COMMIT_TRIES = 5
_SHARD = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._=-]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """What ``commits/<shard>`` says.

    Attributes:
        shard: Name of the micro-shard.
        object: Key of the data object, relative to the store.
        sha256: Of its bytes, in hexadecimal.
        bytes: Its size.
        record: What the worker stated: counts and the like.
    """

    shard: str
    object: str
    sha256: str
    bytes: int
    record: Mapping[str, Any]


class Ledger:
    """Claims, renews and commits micro-shards for one worker.

    :meth:`renew` may run in another thread; everything else is for one.

    Args:
        store: Where the ledger lives.
        prefix: Folder of the ledger in the store; empty for its root.
        worker_id: Stable over restarts of a worker and different for all that run at one time: a lease of this id
            is one from an earlier life, and is taken over without waiting.
        lease_seconds: How long others respect an unchanged lease of this worker.
        shards: Every micro-shard there is. Letters, digits, ``.``, ``_``, ``=`` and ``-``.
        parallel: Whether other workers may write too. False allows a store that ignores ``If-None-Match``.
        clock: Monotonic seconds.
        rng: Picks the shards to start at.

    Raises:
        CorpusError: A name of a shard is malformed or given twice.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        worker_id: str,
        lease_seconds: float,
        shards: Sequence[str],
        parallel: bool,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._base = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._rng = rng or random.Random()
        self._creates = ExclusiveCreates(store, parallel=parallel)
        self._leases = Leases(
            store,
            f"{self._base}leases/",
            creates=self._creates,
            worker_id=worker_id,
            lease_seconds=lease_seconds,
            clock=clock,
        )
        self._shards = _in_listing_order(shards)
        self._position = {shard: number for number, shard in enumerate(self._shards)}
        # Each shard is in exactly one of the three, or held by this worker. Dictionaries, for their order.
        self._free = dict.fromkeys(self._shards)
        self._taken: dict[str, None] = {}
        self._committed: set[str] = set()
        self._cursor: str | None = None
        self._listed_at: float | None = None
        self._looked_at: float | None = None
        self._patience = 1.0
        self._records: dict[str, tuple[str, CommitRecord]] = {}

    # ------------------------------------------------------------------ claim

    def claim(self) -> Claim | None:
        """A micro-shard to work on, or None when none can be had now; see :meth:`retry_after`.

        Starts at a random shard and goes on to the next. Where somebody else is found, one page of leases tells who
        else is ahead, and a new random start is made: so workers spread instead of following each other. Only when
        no shard is free are leases of others watched and taken over.

        Raises:
            ConfigError: ``parallel`` is set and the store's creates do not exclude.
            StorageError: The storage failed.
        """
        self._creates.check()
        if self._listed_at is None:
            self._list_commits()
        return self._take_free() or self._take_over()

    def claims(self, *, wait: Callable[[float], bool], on_idle: Callable[[], None] = lambda: None) -> Iterator[Claim]:
        """Claims until every shard is committed, or until others held the rest for twice the lease.

        Args:
            wait: Waits for so many seconds; True means stop now (such as ``Event.wait``).
            on_idle: Called before the first wait: the place to drop an engine. Again if there was work in between.

        Yields:
            Claims. Commit or release each before asking for the next.
        """
        idle_since: float | None = None
        while True:
            claim = self.claim()
            if claim is not None:
                idle_since = None
                yield claim
                continue
            if self.all_committed():
                return
            if idle_since is None:
                idle_since = self._clock()
                on_idle()
            waited = self._clock() - idle_since
            if waited >= 2 * self._lease_seconds or wait(max(self.retry_after(), 0.01)):
                return

    def retry_after(self) -> float:
        """Seconds until :meth:`claim` will look at others' leases again; 0 when it would do so now."""
        if self._looked_at is None:
            return 0.0
        return max(0.0, self._looked_at + self._patience - self._clock())

    def _take_free(self) -> Claim | None:
        while self._free:
            if self._cursor not in self._free:
                self._cursor = self._rng.choice(list(self._free))
            shard = self._cursor
            claim = self._take(shard, 1)
            if claim is not None:
                self._cursor = self._next_free(shard)
                return claim
            self._cursor = None
            for name, seen in self._leases.page(shard).items():
                self._note(name, seen)
        return None

    def _take(self, shard: str, epoch: int) -> Claim | None:
        # Taken by us or by somebody else, or, when the request fails, by either: the body will tell.
        self._free.pop(shard, None)
        self._taken[shard] = None
        claim = self._leases.take(shard, epoch)
        if claim is not None:
            del self._taken[shard]
            self._looked_at, self._patience = None, 1.0
        return claim

    def _next_free(self, shard: str) -> str | None:
        """The free shard nearest after this one, if there is one; another random start if not."""
        for number in range(self._position[shard] + 1, len(self._shards)):
            if self._shards[number] in self._free:
                return self._shards[number]
        return None

    def _note(self, shard: str, seen: Seen | None) -> None:
        """Take in what a listing of leases says about a shard that is not committed, nor ours."""
        if seen is None and shard in self._taken:  # it was released
            del self._taken[shard]
            self._free[shard] = None
        elif seen is not None and (shard in self._free or shard in self._taken):
            self._free.pop(shard, None)
            self._taken[shard] = None
            self._leases.watch(shard, seen)

    def _take_over(self) -> Claim | None:
        """Look at the leases of others, not too often, and take one that is ours or has expired."""
        if self.retry_after() > 0:
            return None
        if self._looked_at is not None:  # nothing came of the last look either
            self._patience = min(2 * self._patience, max(1.0, self._lease_seconds / 4))
        self._looked_at = self._clock()
        looked_at = self._look()
        claim = self._take_free()  # a lease was released
        if claim is not None:
            return claim
        for shard in looked_at:
            epoch = self._leases.may_take(shard)
            claim = self._take(shard, epoch) if epoch is not None else None
            if claim is not None:
                log.info("took over the lease of %s, epoch %d", shard, claim.epoch)
                return claim
        return None

    def _look(self) -> list[str]:
        """Learn which leased shards are committed by now and how the leases of the others stand.

        Returns:
            The shards looked at that are still leased, in random order: all, if they are few or it is time to list.
        """
        if len(self._taken) > FEW and self._may_list():
            self._list_commits()
            if len(self._taken) > FEW:
                seen = self._leases.all()
                for shard in list(self._taken):
                    self._note(shard, seen.get(shard))
                return self._rng.sample(list(self._taken), len(self._taken))
        few = self._rng.sample(list(self._taken), min(FEW, len(self._taken)))
        for shard in few:
            if self._store.exists(self._commit_key(shard)):
                self._mark_committed(shard)
            else:
                self._note(shard, self._leases.latest(shard))
        return [shard for shard in few if shard in self._taken]

    # ------------------------------------------------------- renew and release

    def renew(self, claim: Claim) -> bool:
        """Keep a claim; False when it was lost. See :meth:`Leases.renew`."""
        return self._leases.renew(claim)

    def renewing(self, claim: Claim) -> AbstractContextManager[Renewal]:
        """Renew ``claim`` in the background while the block runs. See :meth:`Leases.renewing`."""
        return self._leases.renewing(claim)

    def release(self, claim: Claim) -> None:
        """Give a claim back unfinished, so that nobody has to wait for it to expire."""
        self._leases.release(claim)
        if claim.shard not in self._committed:
            self._taken[claim.shard] = None

    # ----------------------------------------------------------------- commit

    def commit(
        self, claim: Claim, data: Path | bytes, record: Mapping[str, Any], *, extension: str = "parquet"
    ) -> bool:
        """Write the data under a name of its own, then commit the shard.

        Args:
            claim: The lease under which the data were made; it may have been lost meanwhile.
            data: The content, or the local file that holds it.
            record: What :class:`CommitRecord` will carry; JSON.
            extension: Of the data object.

        Returns:
            Whether these data are the shard's now. If not, somebody else's are, and these were deleted.

        Raises:
            StorageError: The storage failed. The commit may or may not have taken effect; calling again is safe.
        """
        key = f"{self._base}data/{claim.shard}/{claim.epoch}-{secrets.token_hex(8)}.{extension}"
        digest, size = _digest(data)
        body = json.dumps({"object": key, "sha256": digest, "bytes": size, "record": dict(record)}, sort_keys=True)
        self._creates.check()
        if isinstance(data, Path):
            self._store.put_file(key, data)
        else:
            self._store.put(key, data)
        won = self._create_commit(claim.shard, key, body.encode())
        self._leases.forget(claim)
        self._mark_committed(claim.shard)
        if not won:
            log.info("%s was committed by another worker first", claim.shard)
            self._store.delete(key)
        return won

    def _create_commit(self, shard: str, key: str, body: bytes) -> bool:
        for _ in range(_COMMIT_TRIES):
            try:
                self._creates.create(self._commit_key(shard), body)
            except ConditionFailedError:
                # Also what a client sees that repeats a request whose first answer was lost: then the commit is ours.
                # Not found: two creates collided and neither won (409), so once more.
                with contextlib.suppress(NotFoundError):
                    return self._read(shard).object == key
            else:
                return True
        where = f"{self._store.uri}/{self._commit_key(shard)}"
        raise StorageError(f"{where} can neither be created nor read", retryable=True)

    def uncommit(self, shard: str) -> CommitRecord | None:
        """Take a commit back so that the shard is worked on again. Its leases go, too; its data become an orphan.

        For a ledger at which no worker is running: workers do not forget a commit that they have seen.

        Returns:
            The commit, or None where there was none.
        """
        try:
            record = self._read(shard)
        except NotFoundError:
            record = None
        self._store.delete(self._commit_key(shard))
        self._leases.clear(shard)
        self._committed.discard(shard)
        self._taken.pop(shard, None)
        self._records.pop(shard, None)
        self._free[shard] = None
        return record

    # ------------------------------------------------------------------- read

    def committed(self) -> dict[str, CommitRecord]:
        """Every commit by shard, in ascending order of shards. Lists, and reads what was not read before.

        Raises:
            CorpusError: A commit cannot be parsed.
        """
        found = self._list_commits()
        new = [shard for shard, info in found.items() if self._records.get(shard, ("",))[0] != info.etag]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="commits") as pool:
            for shard, record in zip(new, pool.map(self._read, new), strict=True):
                self._records[shard] = (found[shard].etag, record)
        return {shard: self._records[shard][1] for shard in sorted(found)}

    def all_committed(self) -> bool:
        """Whether every shard is committed. May lag a minute behind other workers; is never True too early."""
        if len(self._committed) < len(self._shards) and self._may_list():
            self._list_commits()
        return len(self._committed) == len(self._shards)

    @property
    def num_committed(self) -> int:
        """Shards known to be committed, as of the last look. Makes no request."""
        return len(self._committed)

    def orphans(self) -> list[ObjectInfo]:
        """Data objects that no commit names and none ever will: their shard's commit names another one.

        What killed and superseded writers left. Data of a shard without a commit are none: their commit may be on its
        way. Deletes nothing.
        """
        root = f"{self._base}data/"
        found = list(self._store.list(root))  # before the commits: one that is made in between names what is here
        committed = self.committed()
        named = {record.object for record in committed.values()}
        return [info for info in found if info.key not in named and info.key[len(root) :].split("/")[0] in committed]

    def sweep(self, *, now: Callable[[], float] = time.time) -> int:
        """Report the orphans, and delete those not touched for :data:`ORPHAN_SECONDS`.

        A younger orphan may be that of a worker that is about to find
        its shard committed, and deletes it itself; where the store tells no times, all stay. A failure is logged
        only: nothing reads orphans.

        Args:
            now: Seconds since the epoch.

        Returns:
            How many were deleted.
        """
        deleted = 0
        try:
            found = self.orphans()
            for info in found:
                if info.modified is not None and now() - info.modified > ORPHAN_SECONDS:
                    self._store.delete(info.key)
                    deleted += 1
        except InstructPTError as error:
            log.warning("orphans below %s/%s could not be cleared: %s", self._store.uri, self._base, error)
            return deleted
        if found:
            size = sum(info.size for info in found)
            log.info("%d orphaned data objects (%d bytes), %d of them deleted", len(found), size, deleted)
        return deleted

    def _read(self, shard: str) -> CommitRecord:
        body = self._store.get(self._commit_key(shard))
        try:
            found = json.loads(body)
            return CommitRecord(
                shard=shard,
                object=found["object"],
                sha256=found["sha256"],
                bytes=found["bytes"],
                record=found["record"],
            )
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self._store.uri}/{self._commit_key(shard)}"
            raise CorpusError(f"{where} is no commit: {error!r}", fix="delete it to have the shard redone") from error

    def _may_list(self) -> bool:
        return self._listed_at is None or self._clock() - self._listed_at >= LIST_SECONDS

    def _list_commits(self) -> dict[str, ObjectInfo]:
        self._listed_at = self._clock()
        root = f"{self._base}commits/"
        named = ((info.key[len(root) :], info) for info in self._store.list(root))
        found = {shard: info for shard, info in named if shard in self._position}
        for shard in found:
            self._mark_committed(shard)
        return found

    def _mark_committed(self, shard: str) -> None:
        self._committed.add(shard)
        self._free.pop(shard, None)
        self._taken.pop(shard, None)

    def _commit_key(self, shard: str) -> str:
        return f"{self._base}commits/{shard}"


def _in_listing_order(shards: Sequence[str]) -> list[str]:
    """The shards in the order in which a listing of ``leases/<shard>/<epoch>`` runs over them."""
    for shard in shards:
        if not _SHARD.match(shard):
            raise CorpusError(f"{shard!r} is no name for a micro-shard: letters, digits, '.', '_', '=' and '-' only")
    if len(set(shards)) != len(shards):
        raise CorpusError("the list of micro-shards holds a name twice")
    return sorted(shards, key=lambda shard: f"{shard}/")


def _digest(data: Path | bytes) -> tuple[str, int]:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest(), len(data)
    return sha256_of_file(data), data.stat().st_size
