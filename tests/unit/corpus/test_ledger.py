"""The ledger's promises, under kills at every write, lost answers and every interleaving that Hypothesis finds."""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field

import pytest
from faults import FaultyStore, Killed, kill_points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructpt.corpus.ledger import ORPHAN_SECONDS, Ledger
from instructpt.errors import ConditionFailedError, ConfigError, CorpusError, StorageError
from instructpt.storage import FilesystemStore, MemoryStore

LEASE = 60.0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def make(store, shards, *, worker="w0", clock=None, parallel=True, seed=0) -> Ledger:
    return Ledger(
        store,
        "syn/ledger",
        worker_id=worker,
        lease_seconds=LEASE,
        shards=shards,
        parallel=parallel,
        clock=clock or Clock(),
        rng=random.Random(seed),
    )


def names(number: int) -> list[str]:
    return [f"s{i:05d}" for i in range(number)]


def work_off(ledger: Ledger) -> list[str]:
    done = []
    while (claim := ledger.claim()) is not None:
        assert ledger.commit(claim, f"data of {claim.shard}".encode(), {"documents": 1})
        done.append(claim.shard)
    return done


# --------------------------------------------------------------------- one worker


def test_one_worker_commits_everything_once():
    store = MemoryStore()
    ledger = make(store, names(20))
    assert sorted(work_off(ledger)) == names(20)
    assert ledger.all_committed()
    assert ledger.num_committed == 20
    assert ledger.claim() is None
    assert ledger.orphans() == []


def test_layout_on_storage_is_the_protocols():
    store = MemoryStore()
    ledger = make(store, ["a"])
    claim = ledger.claim()
    lease = json.loads(store.get("syn/ledger/leases/a/1"))
    assert (lease["worker"], lease["leaseSeconds"]) == ("w0", 60.0)
    ledger.commit(claim, b"rows", {"documents": 3}, extension="parquet")
    commit = json.loads(store.get("syn/ledger/commits/a"))
    assert commit["object"].startswith("syn/ledger/data/a/1-")
    assert commit["object"].endswith(".parquet")
    assert store.get(commit["object"]) == b"rows"
    assert commit["sha256"] == hashlib.sha256(b"rows").hexdigest()
    assert (commit["bytes"], commit["record"]) == (4, {"documents": 3})


def test_commit_of_a_file_and_committed(tmp_path):
    store = FilesystemStore(tmp_path / "root")
    ledger = make(store, ["b", "a"])
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"rows of a file")
    for _ in range(2):
        ledger.commit(ledger.claim(), path, {"n": 1})
    found = make(store, ["b", "a"], worker="reader").committed()
    assert list(found) == ["a", "b"]
    assert {r.sha256 for r in found.values()} == {hashlib.sha256(b"rows of a file").hexdigest()}
    assert store.get(found["a"].object) == b"rows of a file"


def test_a_rerun_skips_what_is_committed():
    store = MemoryStore()
    work_off(make(store, names(5)))
    counted = FaultyStore(store)
    again = make(counted, names(8), worker="w1")
    assert sorted(work_off(again)) == names(8)[5:]
    assert sum(i.key.startswith("syn/ledger/leases/s00000") for i in store.list()) == 1


def test_commits_of_unknown_shards_do_not_count():
    store = MemoryStore()
    work_off(make(store, ["a", "zz"]))
    ledger = make(store, ["a", "b"])
    assert not ledger.all_committed()
    assert list(ledger.committed()) == ["a"]


def test_two_starts_differ():
    starts = {make(MemoryStore(), names(100), seed=i).claim().shard for i in range(20)}
    assert len(starts) > 10


@pytest.mark.parametrize("bad", ["", "a/b", "../a", ".hidden", "a b", "ü"])
def test_bad_shard_names(bad):
    with pytest.raises(CorpusError, match="micro-shard"):
        make(MemoryStore(), ["ok", bad])


def test_double_shard_names():
    with pytest.raises(CorpusError, match="twice"):
        make(MemoryStore(), ["a", "b", "a"])


def test_a_damaged_commit_names_itself():
    store = MemoryStore()
    store.put("syn/ledger/commits/a", b"{not json")
    with pytest.raises(CorpusError, match="commits/a is no commit.*delete it"):
        make(store, ["a"]).committed()


# ------------------------------------------------------------- leases and take over


def test_a_live_lease_is_respected_and_an_expired_one_taken_over():
    store, clock = MemoryStore(), Clock()
    first = make(store, ["a"], worker="w1", clock=clock)
    second = make(store, ["a"], worker="w2", clock=clock)
    claim = first.claim()
    for _ in range(6):  # two minutes with renewals in time
        assert second.claim() is None
        clock.now += 20
        assert first.renew(claim)
    assert second.claim() is None
    clock.now += 59
    assert second.claim() is None
    clock.now += 15
    taken = second.claim()
    assert (taken.shard, taken.epoch) == ("a", 2)
    assert not first.renew(claim)  # late, so it asks, and learns
    assert second.commit(taken, b"second", {})
    assert not first.commit(claim, b"first", {})
    record = second.committed()["a"]
    assert store.get(record.object) == b"second"
    assert second.orphans() == []  # the loser deleted its own


def test_a_superseded_writer_may_still_win_the_commit_and_changes_nothing_else():
    store, clock = MemoryStore(), Clock()
    first, second = (make(store, ["a"], worker=w, clock=clock) for w in ("w1", "w2"))
    claim = first.claim()
    assert second.claim() is None
    clock.now += 61
    taken = second.claim()
    assert first.commit(claim, b"first", {})
    assert not second.commit(taken, b"second", {})
    assert store.get(second.committed()["a"].object) == b"first"
    assert second.orphans() == []


def test_committing_twice_leaves_the_first():
    store = MemoryStore()
    ledger = make(store, ["a"])
    claim = ledger.claim()
    assert ledger.commit(claim, b"first", {})
    assert not ledger.commit(claim, b"second", {})
    assert store.get(ledger.committed()["a"].object) == b"first"
    assert ledger.orphans() == []


def test_orphans_of_killed_writers_are_reported_and_old_ones_deleted(tmp_path, caplog):
    caplog.set_level("INFO")
    store = FilesystemStore(tmp_path)
    ledger = make(store, ["a"])
    ledger.commit(ledger.claim(), b"rows", {})
    kept = ledger.committed()["a"].object
    assert ledger.sweep() == 0
    assert not caplog.records
    store.put("syn/ledger/data/a/1-left.parquet", b"12345")
    store.put("syn/other/data/a/1-left.parquet", b"of another ledger")
    written = store.head(kept).modified
    assert ledger.sweep(now=lambda: written + ORPHAN_SECONDS - 60) == 0
    assert "1 orphaned data objects (5 bytes), 0 of them deleted" in caplog.text
    assert ledger.sweep(now=lambda: written + ORPHAN_SECONDS + 60) == 1
    assert "1 orphaned data objects (5 bytes), 1 of them deleted" in caplog.text
    assert ledger.orphans() == []
    assert store.get(kept) == b"rows"
    assert store.exists("syn/other/data/a/1-left.parquet")


def test_orphans_that_cannot_be_deleted_or_have_no_time_end_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    for inner in (MemoryStore(), FilesystemStore(tmp_path)):
        ledger = make(inner, ["a"])
        ledger.commit(ledger.claim(), b"rows", {})
        inner.put("syn/ledger/data/a/1-left.parquet", b"12345")
        assert make(FaultyStore(inner, fail_at=frozenset({1})), ["a"]).sweep(now=lambda: 1e12) == 0
        assert inner.exists("syn/ledger/data/a/1-left.parquet")
    assert "could not be cleared" in caplog.text
    assert "1 orphaned data objects" in caplog.text


class CommittedMeanwhile(FilesystemStore):
    """A frozen worker, whose data lie there for days, commits between the two listings of a sweep."""

    def __init__(self, root, body):
        super().__init__(root)
        self.body, self.lists = body, 0

    def list(self, prefix="", *, start_after=""):
        self.lists += 1
        if self.lists == 2:
            self.create("syn/ledger/commits/b", self.body)
        return super().list(prefix, start_after=start_after)


@pytest.mark.parametrize("when", ["not yet", "in between"])
def test_i4_a_sweep_leaves_the_data_of_a_commit_that_is_on_its_way(tmp_path, when):
    store = FilesystemStore(tmp_path)
    assert make(store, ["a"]).commit(make(store, ["a"]).claim(), b"rows", {})
    live = "syn/ledger/data/b/1-frozen.parquet"
    store.put(live, b"rows, too")
    if when == "in between":
        body = {"object": live, "sha256": hashlib.sha256(b"rows, too").hexdigest(), "bytes": 9, "record": {}}
        store = CommittedMeanwhile(tmp_path, json.dumps(body).encode())
    assert make(store, ["a", "b"]).sweep(now=lambda: 1e12) == 0
    assert store.get(live) == b"rows, too"


def test_own_lease_of_an_earlier_life_is_taken_at_once():
    store, clock = MemoryStore(), Clock()
    make(store, names(3), worker="w1", clock=clock, seed=1).claim()
    make(store, names(3), worker="w2", clock=clock, seed=2).claim()
    reborn = make(store, names(3), worker="w1", clock=clock, seed=3)
    epochs = Counter()
    while (claim := reborn.claim()) is not None:
        epochs[claim.epoch] += 1
        reborn.commit(claim, b"x", {})
    assert epochs == {1: 1, 2: 1}  # the free shard and its own; not that of w2
    assert clock.now == 1000.0


def test_a_worker_never_takes_over_what_it_holds():
    store, clock = MemoryStore(), Clock()
    ledger = make(store, ["a", "b"], clock=clock)
    assert {ledger.claim().shard, ledger.claim().shard} == {"a", "b"}
    clock.now += 1000
    assert ledger.claim() is None


def test_a_released_claim_is_free_for_everybody():
    store, clock = MemoryStore(), Clock()
    first, second = (make(store, ["a"], worker=w, clock=clock) for w in ("w1", "w2"))
    claim = first.claim()
    assert second.claim() is None
    first.release(claim)
    assert not first.renew(claim)
    clock.now += second.retry_after()
    assert second.claim().epoch == 1


def test_epoch_ten_is_after_epoch_nine():
    store, clock = MemoryStore(), Clock()
    for epoch in range(1, 11):
        store.put(f"syn/ledger/leases/a/{epoch}", json.dumps({"worker": "x", "leaseSeconds": 60}).encode())
    ledger = make(store, ["a"], clock=clock)
    assert ledger.claim() is None
    clock.now += 61
    assert ledger.claim().epoch == 11


def test_a_foreign_lease_body_still_expires():
    store, clock = MemoryStore(), Clock()
    store.put("syn/ledger/leases/a/1", b"not json")
    ledger = make(store, ["a"], clock=clock)
    assert ledger.claim() is None
    clock.now += 61
    assert ledger.claim().epoch == 2


def test_uncommit_has_the_shard_redone():
    store = MemoryStore()
    work_off(make(store, names(3)))
    before = make(store, names(3)).committed()
    ledger = make(store, names(3), worker="requeue")
    assert ledger.uncommit("s00001") == before["s00001"]
    assert ledger.uncommit("s00001") is None
    again = make(store, names(3), worker="w9")
    assert not again.all_committed()
    assert work_off(again) == ["s00001"]
    assert [i.key for i in again.orphans()] == [before["s00001"].object]


def test_background_renewal_keeps_the_lease_and_notices_its_loss(caplog):
    store = MemoryStore()
    ledger = Ledger(store, "", worker_id="w1", lease_seconds=0.06, shards=["a"], parallel=True)
    claim = ledger.claim()
    etag = store.head("leases/a/1").etag
    with ledger.renewing(claim) as renewal:
        while store.head("leases/a/1").etag == etag:
            assert not renewal.lost.wait(0.005)
        # A take-over is seen when a renewal comes late: make it late by putting the successor before each.
        store.put("leases/a/2", b"{}")
        ledger._leases._held["a"].written -= 10
        assert renewal.lost.wait(10)
    assert renewal.error is None
    assert not ledger.renew(claim)
    assert "the lease of a, epoch 1, was taken over" in caplog.text


def test_a_lease_that_its_worker_let_go_of_is_no_alarm(caplog):
    ledger = Ledger(MemoryStore(), "", worker_id="w1", lease_seconds=0.06, shards=["a"], parallel=True)
    claim = ledger.claim()
    with ledger.renewing(claim) as renewal:
        ledger.release(claim)
        assert renewal.lost.wait(10)
    assert not caplog.records


def test_background_renewal_survives_outages_and_reports_refusals():
    class Ailing(MemoryStore):
        error: Exception | None = None
        tries = threading.Semaphore(0)

        def put(self, key, data):
            if self.error is not None and "/leases/" in f"/{key}":
                self.tries.release()
                raise self.error
            return super().put(key, data)

    store = Ailing()
    ledger = Ledger(store, "", worker_id="w1", lease_seconds=0.06, shards=["a"], parallel=True)
    claim = ledger.claim()
    store.error = StorageError("down", retryable=True)
    with ledger.renewing(claim) as renewal:
        for _ in range(3):
            assert store.tries.acquire(timeout=10)
        store.error = None
    assert renewal.failures >= 2
    assert not renewal.lost.is_set()
    store.error = ConfigError("refused")

    def work() -> None:
        with ledger.renewing(claim):
            assert store.tries.acquire(timeout=10)
            while any(t.name == "renew-a" for t in threading.enumerate()):
                pass

    store.tries = threading.Semaphore(0)
    with pytest.raises(ConfigError, match="refused"):
        work()


# --------------------------------------------------------------- conditional create


def test_parallel_writers_are_refused_where_creates_do_not_exclude():
    store = FaultyStore(MemoryStore(), conditional=False)
    with pytest.raises(ConfigError) as caught:
        make(store, ["a"]).claim()
    assert str(caught.value) == (
        "memory://private ignores If-None-Match, so two writers could both win; set parallelism: 1 or use a server "
        "that honours conditional writes (AWS S3, MinIO, versitygw)"
    )
    assert list(store.list()) == []


def test_reading_needs_no_probe():
    store = FaultyStore(MemoryStore(), conditional=False)
    ledger = make(store, ["a"])
    assert ledger.committed() == {}
    assert not ledger.all_committed()


def test_one_writer_works_where_creates_do_not_exclude():
    store = FaultyStore(MemoryStore(), conditional=False)
    ledger = make(store, names(4), parallel=False)
    assert sorted(work_off(ledger)) == names(4)
    assert work_off(make(store, names(4), parallel=False, worker="w1")) == []


def test_a_lost_answer_to_the_commit_is_recognised_as_ones_own():
    class Repeating(MemoryStore):
        """Answers a create like a client whose first request took effect and was sent again."""

        def create(self, key, data):
            super().create(key, data)
            if "/commits/" in key:
                raise ConditionFailedError("412 on the second attempt")

    store = Repeating()
    ledger = make(store, ["a"])
    assert ledger.commit(ledger.claim(), b"mine", {})
    assert store.get(ledger.committed()["a"].object) == b"mine"


def test_a_collision_that_nobody_won_is_tried_again():
    class Colliding(MemoryStore):
        left = 2

        def create(self, key, data):
            if "/commits/" in key and self.left:
                self.left -= 1
                raise ConditionFailedError("409")
            return super().create(key, data)

    store = Colliding()
    ledger = make(store, ["a"])
    assert ledger.commit(ledger.claim(), b"mine", {})
    store.left = 99
    store.delete("syn/ledger/commits/a")
    with pytest.raises(StorageError, match="neither be created nor read"):
        ledger.commit(ledger.claim() or make(store, ["a"], worker="w0").claim(), b"mine", {})


# ------------------------------------------------------------------------ claims()


def test_claims_ends_when_all_is_committed():
    ledger = make(MemoryStore(), names(4))
    idle = []
    for claim in ledger.claims(wait=lambda _: pytest.fail("nothing to wait for"), on_idle=lambda: idle.append(1)):
        ledger.commit(claim, b"", {})
    assert ledger.all_committed()
    assert idle == []


def test_claims_waits_for_others_at_most_twice_the_lease():
    store, clock = MemoryStore(), Clock()
    other = make(store, names(2), worker="other", clock=clock)
    held = other.claim()
    idle, slept = [], []

    def wait(seconds: float) -> bool:
        slept.append(seconds)
        clock.now += seconds
        other.renew(held)
        return False

    mine = make(store, names(2), worker="w1", clock=clock, seed=5)
    for claim in mine.claims(wait=wait, on_idle=lambda: idle.append(clock.now)):
        mine.commit(claim, b"", {})
    assert mine.num_committed == 1
    assert idle == [1000.0]
    assert 120 <= clock.now - 1000 < 150
    assert len(slept) < 15


def test_claims_stops_when_told():
    store = MemoryStore()
    make(store, ["a"], worker="other").claim()
    assert list(make(store, ["a"], worker="w1").claims(wait=lambda _: True)) == []


# ---------------------------------------------------------- kills and interleavings


class Written(MemoryStore):
    """Refuses what the protocol forbids: a commit that changes, data that are overwritten."""

    def put(self, key, data):
        if "/data/" in key:
            assert not self.exists(key), f"{key} was written twice"
        if "/commits/" in key:
            assert not self.exists(key), f"{key} was committed twice"
        return super().put(key, data)


class Stage:
    """Runs workers in threads, one request at a time, in the order that a seed gives."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self._rng = rng
        self._change = threading.Condition()
        self._parked: dict[str, float] = {}  # name of a thread -> when it may go on
        self._live = 0
        self._running: str | None = None
        self.errors: list[BaseException] = []

    def start(self, body) -> None:
        with self._change:
            self._live += 1
        threading.Thread(target=self._run, args=(body,), name=f"worker-{self._live}", daemon=True).start()

    def _run(self, body) -> None:
        self.park(0.0, first=True)
        try:
            body()
        except BaseException as error:  # noqa: BLE001  # handed to the test
            self.errors.append(error)
        with self._change:
            self._live -= 1
            self._running = None
            self._change.notify_all()

    def park(self, seconds: float, *, first: bool = False) -> None:
        me = threading.current_thread().name
        with self._change:
            self._parked[me] = self.clock.now + seconds
            if not first:
                self._running = None
            self._change.notify_all()
            assert self._change.wait_for(lambda: self._running == me, timeout=60)

    def play(self) -> None:
        while True:
            with self._change:
                still = lambda: self._running is None and len(self._parked) == self._live  # noqa: E731
                assert self._change.wait_for(still, timeout=60)
                if not self._parked:
                    break
                ready = sorted(t for t, when in self._parked.items() if when <= self.clock.now)
                if not ready:
                    self.clock.now = min(self._parked.values())
                    continue
                self._running = self._rng.choice(ready)
                del self._parked[self._running]
                self._change.notify_all()
        if self.errors:
            raise self.errors[0]


class StagedStore(FaultyStore):
    def __init__(self, stage: Stage, inner, **faults) -> None:
        super().__init__(inner, **faults)
        self._stage = stage

    def _count(self, verb: str) -> None:
        self._stage.park(0.1)
        super()._count(verb)


@dataclass
class Life:
    worker: str
    kill_at: int | None
    moment: str
    fail_at: frozenset[int] = field(default_factory=frozenset)


def live(stage: Stage, store: Written, shards: list[str], lives: list[Life], seconds: float, seed: int) -> None:
    """One worker through its lives; the last one is not killed."""
    for number, life in enumerate(lives):
        staged = StagedStore(stage, store, kill_at=life.kill_at, moment=life.moment, fail_at=life.fail_at)
        try:
            ledger = make(staged, shards, worker=life.worker, clock=stage.clock, seed=seed + number)
            one_life(stage, ledger, f"{life.worker}/{number}", seconds)
        except Killed:
            continue
        except StorageError as error:
            if not error.retryable:
                raise
            stage.park(1.0)  # a worker that ends with an error is started again
        else:
            return
    raise AssertionError("the last life must survive")


def one_life(stage: Stage, ledger: Ledger, who: str, seconds: float) -> None:
    def wait(delay: float) -> bool:
        stage.park(delay)
        return False

    for claim in ledger.claims(wait=wait):
        for _ in range(2):
            stage.park(seconds / 2)
            if not ledger.renew(claim):
                break  # a worker may stop here, or go on and commit: going on is the harder case
        ledger.commit(claim, f"{claim.shard} by {who}".encode(), {"documents": 1})


def check(store: Written, shards: list[str], clock: Clock) -> None:
    ledger = make(store, shards, worker="checker", clock=clock)
    found = ledger.committed()
    assert sorted(found) == sorted(shards)
    for shard, record in found.items():
        data = store.get(record.object)
        assert data.decode().startswith(f"{shard} by ")
        assert (record.sha256, record.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert len({record.object for record in found.values()}) == len(shards)


@st.composite
def lives(draw, worker: str) -> list[Life]:
    found = []
    for number in range(draw(st.integers(0, 3))):
        same = draw(st.booleans())
        found.append(
            Life(
                worker=worker if same else f"{worker}-{number}",
                kill_at=draw(st.integers(1, 12)),
                moment=draw(st.sampled_from(["before", "after"])),
                fail_at=draw(st.frozensets(st.integers(1, 12), max_size=1)),
            )
        )
    return [*found, Life(worker=worker, kill_at=None, moment="before")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_kills_and_interleavings_commit_every_shard_once(data):
    shards = names(data.draw(st.integers(1, 5), label="shards"))
    workers = data.draw(st.integers(2, 4), label="workers")
    # 200 s without a renewal outlast the lease: workers that live are superseded and go on.
    seconds = data.draw(st.sampled_from([200.0, 50.0, 1.0]), label="seconds per shard")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    clock, store = Clock(), Written()
    stage = Stage(clock, random.Random(seed))
    scripts = [data.draw(lives(f"w{number}"), label=f"lives of w{number}") for number in range(workers)]
    for number, script in enumerate(scripts):
        stage.start(lambda script=script, number=number: live(stage, store, shards, script, seconds, seed + number))
    stage.play()
    # Whoever waited twice the lease for a dead worker has left: that is what attempt n+1 is for.
    for attempt in range(2):
        again = Stage(clock, random.Random(seed))
        script = [Life(worker=f"again-{attempt}", kill_at=None, moment="before")]
        again.start(lambda script=script, again=again: live(again, store, shards, script, 1.0, seed))
        again.play()
    check(store, shards, clock)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("same_id", [True, False])
def test_a_kill_at_every_write_of_one_worker(conditional, same_id):
    shards = names(3)

    def run(store, worker: str, clock: Clock) -> None:
        ledger = make(store, shards, worker=worker, clock=clock, parallel=conditional)

        def wait(seconds: float) -> bool:
            clock.now += seconds
            return False

        for claim in ledger.claims(wait=wait):
            ledger.renew(claim)
            ledger.commit(claim, f"{claim.shard} by {worker}".encode(), {})

    whole = FaultyStore(MemoryStore())
    run(whole, "w", Clock())
    points = list(kill_points(whole.writes))
    assert len(points) == 2 * 4 * len(shards)
    for kill_at, moment in points:
        clock, store = Clock(), Written()
        with pytest.raises(Killed):
            run(FaultyStore(store, kill_at=kill_at, moment=moment, conditional=conditional), "w", clock)
        run(FaultyStore(store, conditional=conditional), "w" if same_id else "other", clock)
        check(store, shards, clock)
        if same_id:
            assert clock.now == 1000.0, "nobody waits for one's own lease"


def test_real_threads_race_for_shards(tmp_path):
    store = FilesystemStore(tmp_path)
    shards = names(40)
    won: list[str] = []

    def run(number: int) -> None:
        ledger = make(store, shards, worker=f"w{number}", seed=number)
        for claim in ledger.claims(wait=lambda _: True):
            if ledger.commit(claim, f"{claim.shard} by w{number}".encode(), {}):
                won.append(claim.shard)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == shards
    check(store, shards, Clock())


# ------------------------------------------------------------------------ requests


def simulate(shards: int, workers: int, seconds: float) -> tuple[Counter[str], float]:
    """Requests of ``workers`` that take ``seconds`` for a micro-shard and renew every third of the lease."""
    clock, store, names_ = Clock(), MemoryStore(), names(shards)
    counted = [FaultyStore(store) for _ in range(workers)]
    ledgers = [make(s, names_, worker=f"w{i}", clock=clock, seed=i) for i, s in enumerate(counted)]
    rng = random.Random(0)
    queue = [(clock.now + rng.random(), i, None, 0.0) for i in range(workers)]
    while queue:
        clock.now, me, claim, left = heapq.heappop(queue)
        ledger = ledgers[me]
        if claim is not None and left > 0:
            assert ledger.renew(claim)
        elif claim is not None:
            assert ledger.commit(claim, b"rows", {"documents": 2000})
            claim = None
        if claim is None:
            claim = ledger.claim()
            if claim is None:
                if not ledger.all_committed():
                    heapq.heappush(queue, (clock.now + max(ledger.retry_after(), 0.01), me, None, 0.0))
                continue
            left = seconds * rng.uniform(0.8, 1.2)
        step = min(left, LEASE / 3)
        heapq.heappush(queue, (clock.now + step, me, claim, left - step))
    total: Counter[str] = Counter()
    for s in counted:
        total += s.requests
    return total, clock.now - 1000.0


@pytest.mark.parametrize(
    ("workers", "seconds"), [(1, 30.0), (8, 30.0), (16, 0.5), pytest.param(32, 60.0, marks=pytest.mark.slow)]
)
def test_at_most_eight_requests_per_micro_shard_at_ten_thousand(workers, seconds):
    requests, _ = simulate(10_000, workers, seconds)
    reading = 10_000 + 10  # what finalize adds: a listing, and one read per commit
    assert (requests.total() + reading) / 10_000 <= 8, requests


def test_finalize_reads_each_commit_once():
    store = MemoryStore()
    work_off(make(store, names(1500)))
    counted = FaultyStore(store)
    ledger = make(counted, names(1500), worker="finalize")
    assert len(ledger.committed()) == 1500
    assert counted.requests == {"list": 2, "get": 1500}
    assert len(ledger.committed()) == 1500
    assert counted.requests == {"list": 4, "get": 1500}
