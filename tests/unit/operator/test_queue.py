"""R6: dirty and processing sets, add-after, back-off per key, a shared rate for retries, shutdown."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from instructpt_operator.runtime.backoff import ExponentialBackoff, TokenBucket
from instructpt_operator.runtime.queue import QueueStats, WorkQueue


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(clock: FakeClock) -> WorkQueue[str]:
    return WorkQueue(clock=clock)


def drain(queue: WorkQueue[str]) -> list[str]:
    keys = []
    while (key := queue.get(0)) is not None:
        keys.append(key)
        queue.done(key)
    return keys


def test_keys_come_in_order_and_once(queue: WorkQueue[str]) -> None:
    for key in ["a", "b", "a", "c", "b"]:
        queue.add(key)
    assert drain(queue) == ["a", "b", "c"]


def test_r6_key_added_while_held_comes_back_after_done_and_not_before(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.get(0) == "a"
    queue.add("a")
    queue.add("a")
    assert queue.get(0) is None
    assert queue.stats() == QueueStats(ready=0, delayed=0, processing=1, dirty=1)
    queue.done("a")
    assert drain(queue) == ["a"]


def test_done_without_get_is_a_bug_and_says_so(queue: WorkQueue[str]) -> None:
    queue.add("a")
    with pytest.raises(ValueError, match="'a' is not being processed"):
        queue.done("a")


def test_add_after_waits_and_the_earliest_delay_counts(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 20)
    assert queue.stats().delayed == 1
    clock.now += 4.9
    assert queue.get(0) is None
    clock.now += 0.2
    assert drain(queue) == ["a"]
    clock.now += 100
    assert drain(queue) == []


def test_add_after_without_delay_is_add(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 0)
    queue.add_after("b", -1)
    assert drain(queue) == ["a", "b"]


def test_equal_due_times_keep_their_order_even_for_keys_that_cannot_be_compared(clock: FakeClock) -> None:
    queue: WorkQueue[object] = WorkQueue(clock=clock)
    keys = [("ns", "x"), "plain", 7]
    for key in keys:
        queue.add_after(key, 1)
    clock.now += 1
    assert [queue.get(0) for _ in keys] == keys


def test_a_delayed_key_that_is_added_now_still_comes_at_its_time(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 5)
    queue.add("a")
    assert drain(queue) == ["a"]
    clock.now += 5
    assert drain(queue) == ["a"]


def test_retries_of_a_key_wait_5_ms_to_300_s_and_forget_starts_anew(queue: WorkQueue[str]) -> None:
    delays = [queue.retry("a") for _ in range(20)]
    assert delays[:4] == [0.005, 0.010, 0.020, 0.040]
    assert delays[-4:] == [300.0] * 4
    assert queue.failures("a") == 20
    queue.forget("a")
    assert queue.failures("a") == 0
    assert queue.retry("a") == 0.005


def test_backoff_of_a_key_that_fails_for_ever_stays_finite() -> None:
    backoff: ExponentialBackoff[str] = ExponentialBackoff()
    assert max(backoff.fail("a") for _ in range(5000)) == 300.0


def test_retries_share_10_a_second_with_a_burst_of_100(queue: WorkQueue[int]) -> None:
    delays = [queue.retry(key) for key in range(150)]
    assert delays[:100] == [0.005] * 100
    assert delays[100:] == pytest.approx([0.1 * n for n in range(1, 51)])


def test_first_adds_never_wait_however_many_retries_there_were(queue: WorkQueue[int]) -> None:
    for key in range(500):
        queue.retry(key)
    queue.add(1000)
    assert queue.get(0) == 1000


def test_bucket_refills_to_its_burst_and_no_further(clock: FakeClock) -> None:
    bucket = TokenBucket(clock, per_second=10, burst=2)
    assert [bucket.reserve() for _ in range(3)] == [0.0, 0.0, pytest.approx(0.1)]
    clock.now += 3600
    assert [bucket.reserve() for _ in range(3)] == [0.0, 0.0, pytest.approx(0.1)]


def test_bucket_survives_a_clock_that_steps_back(clock: FakeClock) -> None:
    bucket = TokenBucket(clock, per_second=10, burst=1)
    assert bucket.reserve() == 0.0
    clock.now -= 100
    assert bucket.reserve() == pytest.approx(0.1)


@pytest.mark.parametrize(("base", "maximum"), [(0, 1), (-1, 1), (2, 1)])
def test_backoff_refuses_impossible_bounds(base: float, maximum: float) -> None:
    with pytest.raises(ValueError, match="base_seconds"):
        ExponentialBackoff(base, maximum)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_bucket_refuses_impossible_rates(clock: FakeClock, rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="per_second"):
        TokenBucket(clock, rate, burst)


def test_shutdown_refuses_new_keys_drops_waiting_ones_and_waits_for_held_ones(queue: WorkQueue[str]) -> None:
    queue.add("held")
    assert queue.get(0) == "held"
    queue.add("waiting")
    queue.add_after("later", 1)
    queue.shutdown()
    queue.add("new")
    queue.retry("new")
    assert queue.get() is None
    assert not queue.wait_idle(0)
    queue.done("held")
    assert queue.wait_idle(0)
    assert queue.stats() == QueueStats(ready=0, delayed=0, processing=0, dirty=0)


def test_shutdown_wakes_every_waiting_worker() -> None:
    queue: WorkQueue[str] = WorkQueue()
    got: list[str | None] = []
    threads = [threading.Thread(target=lambda: got.append(queue.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    queue.shutdown()
    for thread in threads:
        thread.join(30)
    assert got == [None] * 4


def test_a_waiting_worker_wakes_for_an_earlier_delay() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("late", 3600)
    got: list[str | None] = []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    queue.add_after("soon", 0.01)
    thread.join(30)
    assert got == ["soon"]


def test_workers_never_share_a_key_and_lose_nothing() -> None:
    """Writers bump versions and add keys; the last version of every key must be seen, by one worker at a time."""
    queue: WorkQueue[int] = WorkQueue()
    versions: Counter[int] = Counter()
    seen: dict[int, int] = {}
    held: set[int] = set()
    lock = threading.Lock()
    shared: list[int] = []

    def write(offset: int) -> None:
        for n in range(600):
            key = (n * 7 + offset) % 13
            with lock:
                versions[key] += 1
            if n % 3 == 0:
                queue.add_after(key, 0.0005)
            else:
                queue.add(key)

    def work() -> None:
        while (key := queue.get()) is not None:
            with lock:
                if key in held:
                    shared.append(key)
                held.add(key)
                version = versions[key]
            with lock:
                seen[key] = version
                held.discard(key)
            queue.done(key)

    workers = [threading.Thread(target=work) for _ in range(4)]
    writers = [threading.Thread(target=write, args=(offset,)) for offset in range(3)]
    for thread in [*workers, *writers]:
        thread.start()
    for thread in writers:
        thread.join(60)
    while queue.stats() != QueueStats(ready=0, delayed=0, processing=0, dirty=0):
        # The main thread helps: a key it takes counts as seen, and waiting in get() is waiting for a condition.
        if (key := queue.get(0.01)) is not None:
            with lock:
                seen[key] = versions[key]
            queue.done(key)
    queue.shutdown()
    for thread in workers:
        thread.join(30)
    assert shared == []
    assert seen == dict(versions)


KEYS = st.sampled_from("abcd")


class QueueMachine(RuleBasedStateMachine):
    """Any order of calls: a key is never in two workers, and every add is followed by a get of that key."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue: WorkQueue[str] = WorkQueue(clock=self.clock)
        self.held: list[str] = []
        self.owed: set[str] = set()
        self.due: dict[str, float] = {}

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.owed.add(key)

    @rule(key=KEYS, delay=st.floats(0.001, 30))
    def add_after(self, key: str, delay: float) -> None:
        self.queue.add_after(key, delay)
        self.due[key] = min(self.due.get(key, float("inf")), self.clock.now + delay)

    @rule(key=KEYS)
    def retry(self, key: str) -> None:
        delay = self.queue.retry(key)
        assert 0.005 <= delay <= 300
        self.due[key] = min(self.due.get(key, float("inf")), self.clock.now + delay)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        assert self.queue.failures(key) == 0

    @rule(seconds=st.floats(0, 60))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def get(self) -> None:
        self._mature()
        key = self.queue.get(0)
        if key is None:
            assert self.owed <= set(self.held), "a key that is owed and free was not handed out"
            return
        assert key not in self.held, "a key went to two workers"
        assert key in self.owed, "a key was handed out that nobody added"
        self.owed.discard(key)
        self.held.append(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.held))
        self.held.remove(key)
        self.queue.done(key)

    @invariant()
    def counts_agree(self) -> None:
        stats = self.queue.stats()
        assert stats.processing == len(self.held)
        assert stats.delayed <= len(self.due)

    def teardown(self) -> None:
        for key in self.held:
            self.queue.done(key)
        self.held.clear()
        self.clock.now += 1000
        self._mature()
        assert set(drain(self.queue)) == self.owed, "an add was lost"
        assert self.queue.stats() == QueueStats(ready=0, delayed=0, processing=0, dirty=0)

    def _mature(self) -> None:
        for key, at in list(self.due.items()):
            if at <= self.clock.now:
                del self.due[key]
                self.owed.add(key)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_f4_hurry_hands_out_what_failed_and_leaves_what_waits_for_its_time(
    clock: FakeClock, queue: WorkQueue[str]
) -> None:
    queue.add("held")
    assert queue.get(0) == "held"
    for key in ("held", "failed"):
        for _ in range(20):
            queue.retry(key)
    queue._due.pop("held")  # it was handed out, and is being tried
    queue.add_after("deadline", 3600)
    queue.hurry()
    assert queue.get(0) == "failed"
    assert queue.get(0) is None
    assert (queue.failures("failed"), queue.failures("held")) == (0, 0)
    assert queue.retry("held") < 0.1, "what was being tried begins anew, too"
    assert queue.stats().delayed == 2
