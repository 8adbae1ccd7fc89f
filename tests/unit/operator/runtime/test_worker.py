"""R7: several workers, none of which ends; R21: stopping in good order."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakeapi import eventually

from instructpt_operator.runtime.backoff import ExponentialBackoff
from instructpt_operator.runtime.queue import WorkQueue
from instructpt_operator.runtime.worker import WorkerPool

Make = Callable[..., tuple[WorkQueue[str], WorkerPool[str]]]


@pytest.fixture
def pool() -> Iterator[Make]:
    pools: list[WorkerPool[str]] = []

    def make(reconcile: Callable[[str], float | None], **options: Any) -> tuple[WorkQueue[str], WorkerPool[str]]:
        queue: WorkQueue[str] = WorkQueue(backoff=ExponentialBackoff(0.001, 0.01))
        pools.append(WorkerPool(queue, reconcile, **options))
        return queue, pools[-1]

    yield make
    for one in pools:
        one.stop()


def test_r7_five_workers_by_default_work_at_once_and_one_slow_key_blocks_no_other(pool: Make) -> None:
    release, running = threading.Event(), Counter[str]()
    done: list[str] = []

    def reconcile(key: str) -> None:
        running[key] += 1
        if key.startswith("slow"):
            assert release.wait(20)
        done.append(key)

    queue, made = pool(reconcile)
    made.start()
    for key in ["slow-1", "slow-2", "slow-3", "slow-4"]:
        queue.add(key)
    eventually(lambda: len(running) == 4)
    for number in range(20):
        queue.add(f"quick-{number}")
    eventually(lambda: len(done) == 20)
    assert queue.stats().processing == 4
    queue.add("slow-5")
    eventually(lambda: queue.stats().processing == 5)
    queue.add("waits")
    assert queue.stats().ready == 1
    release.set()
    eventually(lambda: len(done) == 26)
    assert max(running.values()) == 1


def test_r7_key_is_never_in_two_workers(pool: Make) -> None:
    inside, most, visits = Counter[str](), Counter[str](), Counter[str]()
    lock = threading.Lock()

    def reconcile(key: str) -> None:
        with lock:
            inside[key] += 1
            most[key] = max(most[key], inside[key])
            visits[key] += 1
        threading.Event().wait(0.001)
        with lock:
            inside[key] -= 1

    queue, made = pool(reconcile, workers=8)
    made.start()
    for number in range(400):
        queue.add(f"key-{number % 3}")
        if number % 10 == 0:
            threading.Event().wait(0.0005)
    eventually(lambda: queue.stats().processing == queue.stats().dirty == 0)
    assert set(most.values()) == {1}
    assert min(visits.values()) > 1


def test_r7_failure_is_logged_once_with_its_traceback_and_the_key_comes_back(
    pool: Make, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([ValueError("first"), KeyError("second")])
    calls: list[str] = []

    def reconcile(key: str) -> None:
        calls.append(key)
        error = next(failures, None)
        if error is not None:
            raise error

    queue, made = pool(reconcile, name="things")
    caplog.set_level(logging.INFO)
    made.start()
    queue.add("a")
    eventually(lambda: made.results["success"] == 1)
    assert calls == ["a"] * 3
    assert made.results == {"error": 2, "success": 1}
    assert queue.failures("a") == 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert all(record.exc_info and "things" in record.message and "a" in record.message for record in caplog.records)
    assert made.alive


def test_r7_delay_brings_the_key_back_and_forgets_its_failures(pool: Make) -> None:
    answers = iter([ValueError(), 0.001, 0.0, None])
    seen: list[tuple[str, float]] = []

    def reconcile(key: str) -> float | None:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    queue, made = pool(reconcile, workers=1, observe=lambda result, seconds: seen.append((result, seconds)))
    made.start()
    queue.add("a")
    eventually(lambda: len(seen) == 4)
    assert [result for result, _ in seen] == ["error", "requeue", "requeue", "success"]
    assert all(seconds >= 0 for _, seconds in seen)
    assert queue.failures("a") == 0
    assert queue.stats().delayed == 0


def test_r7_observer_that_raises_ends_no_worker(pool: Make) -> None:
    def observe(result: str, seconds: float) -> None:
        raise RuntimeError

    queue, made = pool(lambda key: None, workers=1, observe=observe)
    made.start()
    for key in "abc":
        queue.add(key)
    eventually(lambda: made.results["success"] == 3)
    assert made.alive


def test_r7_zero_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(WorkQueue[str](), lambda key: None, workers=0)


def test_r20_worker_that_ends_is_not_alive_and_gives_its_key_back(pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    class Kill(BaseException):
        pass

    def reconcile(key: str) -> None:
        raise Kill

    queue, made = pool(reconcile, workers=2)
    assert made.alive, "a standby's workers need not run"
    made.start()
    assert made.alive
    queue.add("a")
    eventually(lambda: not made.alive)
    eventually(lambda: queue.stats().processing == 0)


def test_r20_age_is_of_the_worker_that_is_longest_at_one_key(pool: Make) -> None:
    now = [0.0]
    release, inside = threading.Event(), threading.Event()

    def reconcile(key: str) -> None:
        if key == "stuck":
            inside.set()
            assert release.wait(20)

    queue, made = pool(reconcile, workers=2, clock=lambda: now[0])
    now[0] = 500.0
    assert made.last_activity() == 0, "a standby's workers have no age"
    made.start()
    queue.add("stuck")
    assert inside.wait(20)
    now[0] = 560.0
    queue.add("quick")  # the other worker is well
    eventually(lambda: made.results["success"] == 1)
    assert made.last_activity() == 60
    release.set()


def test_r21_stop_waits_for_what_runs_and_starts_nothing_new(pool: Make) -> None:
    release, inside = threading.Event(), threading.Event()
    done: list[str] = []

    def reconcile(key: str) -> float:
        inside.set()
        assert release.wait(20)
        done.append(key)
        return 0.0

    queue, made = pool(reconcile, workers=1)
    made.start()
    queue.add("runs")
    assert inside.wait(20)
    queue.add("waits")
    queue.add("runs")
    stopped: list[bool] = []
    stopper = threading.Thread(target=lambda: stopped.append(made.stop(20)))
    stopper.start()
    eventually(lambda: queue.stats().ready == 0)
    queue.add("late")
    assert stopped == []
    release.set()
    stopper.join(20)
    assert stopped == [True]
    assert done == ["runs"]
    assert not any(thread.is_alive() for thread in made._threads)


def test_r21_stop_gives_up_on_a_reconcile_that_does_not_end(pool: Make) -> None:
    release, inside = threading.Event(), threading.Event()

    def reconcile(key: str) -> None:
        inside.set()
        assert release.wait(20)

    queue, made = pool(reconcile)
    made.start()
    queue.add("a")
    assert inside.wait(20)
    assert made.stop(0.05) is False
    release.set()
    assert made.stop(20) is True


def test_r21_pool_that_never_started_stops_at_once(pool: Make) -> None:
    queue, made = pool(lambda key: None)
    queue.add("a")
    assert made.stop(20) is True
    assert made.results == {}
