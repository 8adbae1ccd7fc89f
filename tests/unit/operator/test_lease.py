"""R15, F6, F7: the election fails closed. Clocks and the API server are simulated; two real processes: integration."""

from __future__ import annotations

import copy
import math
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from instructpt_operator.runtime.client import ApiError
from instructpt_operator.runtime.lease import CALL_SECONDS, LeaderElector, boottime, unique_identity


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Leases:
    """One Lease with the API server's rules: optimistic locking by resourceVersion, creation once."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.holders: list[str] = []  # after each write
        self.timeouts: list[float | None] = []

    def request(self, method: str, path: str, *, body: Any = None, timeout_seconds: float | None = None) -> Any:
        self.timeouts.append(timeout_seconds)
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/ns/leases")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound")
            return copy.deepcopy(self.lease)
        if method == "POST":
            if self.lease is not None:
                raise ApiError(409, "AlreadyExists")
        elif self.lease is None:
            raise ApiError(404, "NotFound")
        elif body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict")
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"] = {**body["metadata"], "resourceVersion": str(self.version)}
        self.holders.append(body["spec"]["holderIdentity"])
        return copy.deepcopy(self.lease)


class Link:
    """One process's way to the API server, with what can go wrong on it. A fault is (before the server acts, what)."""

    def __init__(self, server: Leases, clock: Clock) -> None:
        self.server, self.clock = server, clock
        self.fault: Callable[[str], None] | None = None
        self.fault_after: Callable[[str], None] | None = None
        self.answer: Any = None

    def request(self, method: str, path: str, *, body: Any = None, timeout_seconds: float | None = None) -> Any:
        if self.fault is not None:
            self.fault(method)
        answer = self.server.request(method, path, body=body, timeout_seconds=timeout_seconds)
        if self.fault_after is not None:
            self.fault_after(method)
        return answer if self.answer is None else self.answer


class Process:
    """A replica: its elector, and whether it ended."""

    def __init__(self, server: Leases, clock: Clock, identity: str) -> None:
        self.link = Link(server, clock)
        self.exits: list[int] = []
        self.started = threading.Event()
        self.answers: list[float] = []
        self.elector = LeaderElector(
            self.link,
            namespace="ns",
            name="operator",
            identity=identity,
            on_started=self.started.set,
            on_answer=lambda: self.answers.append(clock.now),
            clock=clock,
            exit=self.exits.append,
        )


def raising(error: Exception) -> Callable[[str], None]:
    def fail(method: str) -> None:
        raise error

    return fail


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Leases:
    return Leases()


@pytest.fixture
def pair(server: Leases, clock: Clock) -> tuple[Process, Process]:
    """A leader ``a`` and a candidate ``b`` that has seen it."""
    a, b = Process(server, clock, "a"), Process(server, clock, "b")
    a.elector.step()
    b.elector.step()
    assert (a.elector.may_write(), b.elector.may_write()) == (True, False)
    return a, b


def test_first_takes_the_lease_and_starts_once(server: Leases, clock: Clock) -> None:
    a = Process(server, clock, "a")
    assert a.elector.age_seconds() == math.inf
    a.elector.step()
    assert a.started.wait(5)
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 0
    assert server.lease["spec"]["leaseDurationSeconds"] == 15
    a.started.clear()
    taken = server.lease["spec"]["acquireTime"]
    for _ in range(5):
        clock.now += 2
        a.elector.step()
    assert not a.started.is_set()
    assert server.lease["spec"]["acquireTime"] == taken
    assert len(server.holders) == 6
    assert set(server.timeouts) == {CALL_SECONDS}


def test_two_that_create_at_once_make_one_leader(server: Leases, clock: Clock) -> None:
    a, b = Process(server, clock, "a"), Process(server, clock, "b")
    b.link.fault = lambda method: a.elector.step() if method == "POST" else None
    b.elector.step()
    assert (a.elector.is_leader(), b.elector.is_leader()) == (True, False)
    assert server.holders == ["a"]


def test_f6_killed_leader_is_followed_after_the_lease_and_not_before(
    server: Leases, clock: Clock, pair: tuple[Process, Process]
) -> None:
    _, b = pair
    killed = clock.now
    while not b.elector.is_leader():
        clock.now += 2
        b.elector.step()
    assert 15 < clock.now - killed <= 20
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1


def test_f4_the_end_of_an_outage_is_told_once_by_leader_and_candidate(
    clock: Clock, pair: tuple[Process, Process]
) -> None:
    for process in pair:
        assert process.answers == []
        process.link.fault = raising(ApiError(0, "NoAnswer"))
    for _ in range(3):
        clock.now += 2
        for process in pair:
            process.elector.step()
    back = clock.now = clock.now + 2
    for process in pair:
        process.link.fault = None
        process.elector.step()
        process.elector.step()
    assert [process.answers for process in pair] == [[back], [back]]


def test_f6_released_lease_is_taken_at_the_next_look(
    server: Leases, clock: Clock, pair: tuple[Process, Process]
) -> None:
    a, b = pair
    assert a.elector.release()
    assert not a.elector.may_write()
    clock.now += 2
    b.elector.step()
    assert b.elector.may_write()
    assert server.holders == ["a", "", "b"]
    a.elector.step()
    assert server.holders == ["a", "", "b"]
    assert not a.exits


def test_release_by_a_candidate_or_after_a_loss_writes_nothing(
    server: Leases, clock: Clock, pair: tuple[Process, Process]
) -> None:
    a, b = pair
    assert not b.elector.release()
    clock.now += 11
    assert a.elector.check()
    assert not a.elector.release()
    assert server.holders == ["a"]


def test_release_cannot_take_the_lease_from_a_successor(
    server: Leases, clock: Clock, pair: tuple[Process, Process]
) -> None:
    a, b = pair
    clock.now += 16  # a was frozen, and release() is the first thing it does
    b.elector.step()
    assert not a.elector.release()
    assert server.holders == ["a", "b"]


def test_f6_frozen_leader_may_not_write_once_its_renewal_is_old(
    server: Leases, clock: Clock, pair: tuple[Process, Process]
) -> None:
    a, b = pair
    clock.now += 10
    assert a.elector.may_write()
    clock.now += 0.1
    assert not a.elector.may_write()
    clock.now += 50
    b.elector.step()
    assert b.elector.may_write()
    calls = len(server.timeouts)
    a.elector.step()
    assert a.exits == [1]
    assert len(server.timeouts) == calls  # it did not even try
    assert not a.elector.is_leader()


def test_candidate_never_compares_wall_clocks(server: Leases, clock: Clock, pair: tuple[Process, Process]) -> None:
    _, b = pair
    assert server.lease is not None
    for n, renewed in enumerate(["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] * 5):
        # A clock far off in either direction: what counts is that the lease changes.
        server.lease["spec"]["renewTime"] = renewed
        server.lease["metadata"]["resourceVersion"] = f"9{n}"
        clock.now += 14
        b.elector.step()
        assert not b.elector.is_leader()
    clock.now += 15.1
    b.elector.step()
    assert b.elector.is_leader()


def test_candidate_waits_as_long_as_the_holder_was_promised(server: Leases, clock: Clock) -> None:
    a, b = Process(server, clock, "a"), Process(server, clock, "b")
    a.elector.step()
    assert server.lease is not None
    server.lease["spec"]["leaseDurationSeconds"] = 40
    b.elector.step()
    clock.now += 39
    b.elector.step()
    assert not b.elector.is_leader()
    clock.now += 2
    b.elector.step()
    assert b.elector.is_leader()


FAULTS = {
    "timeout": ApiError(0, "Timeout"),
    "reset": ApiError(0, "Unreachable", "Connection reset by peer"),
    "500": ApiError(500, "InternalError"),
    "429": ApiError(429, "TooManyRequests"),
    "401": ApiError(401, "Unauthorized"),
    "any": RuntimeError("a bug in a library"),
    "OSError": ConnectionResetError(),
}


@pytest.mark.parametrize("name", FAULTS)
def test_f7_failing_renewals_end_the_leader_before_another_leads(
    server: Leases, clock: Clock, pair: tuple[Process, Process], name: str
) -> None:
    a, b = pair
    a.link.fault = raising(FAULTS[name])
    began = clock.now
    while not b.elector.is_leader():
        clock.now += 0.5
        a.elector.step()
        b.elector.step()
        assert not (a.elector.may_write() and b.elector.may_write())
        if clock.now - began > 10:
            assert a.exits
    assert a.exits[0] == 1


@pytest.mark.parametrize(
    "answer", [{}, {"kind": "Status"}, {"metadata": {"resourceVersion": "7"}, "spec": None}, {"html": "<html>"}]
)
def test_f7_answers_that_are_no_lease_count_as_failures(
    clock: Clock, pair: tuple[Process, Process], answer: dict[str, Any]
) -> None:
    a, _ = pair
    a.link.answer = answer
    for _ in range(6):
        clock.now += 2
        a.elector.step()
    assert a.exits == [1]


def test_f7_one_failure_costs_nothing(clock: Clock, pair: tuple[Process, Process]) -> None:
    a, _ = pair
    for _ in range(20):
        clock.now += 4
        a.link.fault = raising(FAULTS["500"])
        a.elector.step()
        a.link.fault = None
        clock.now += 4
        a.elector.step()
    assert not a.exits
    assert a.elector.may_write()


def test_f7_conflict_with_another_holder_ends_the_leader_at_once(server: Leases, pair: tuple[Process, Process]) -> None:
    a, _ = pair
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "thief"
    server.lease["metadata"]["resourceVersion"] = "99"
    a.elector.step()
    assert a.exits == [1]
    assert not a.elector.may_write()
    assert server.holders == ["a"]


def test_f7_lease_that_was_deleted_ends_the_leader_and_is_not_made_again_early(
    server: Leases, clock: Clock, pair: tuple[Process, Process]
) -> None:
    a, b = pair
    server.lease = None
    clock.now += 1
    b.elector.step()
    assert not b.elector.is_leader()
    a.elector.step()
    assert a.exits == [1]
    clock.now += 15
    b.elector.step()
    assert b.elector.is_leader()


def test_edit_by_a_person_does_not_end_the_leader(server: Leases, clock: Clock, pair: tuple[Process, Process]) -> None:
    a, _ = pair
    assert server.lease is not None
    server.lease["metadata"] |= {"resourceVersion": "50", "annotations": {"note": "x"}}
    clock.now += 2
    a.elector.step()
    assert a.elector.may_write()
    assert not a.exits
    assert server.lease["metadata"]["annotations"] == {"note": "x"}


def test_renewal_that_went_through_unnoticed_is_found_again(
    server: Leases, clock: Clock, pair: tuple[Process, Process]
) -> None:
    a, _ = pair
    a.link.fault_after = raising(FAULTS["timeout"])
    clock.now += 2
    a.elector.step()
    assert a.elector.age_seconds() == 2  # it went through, but who knows when
    a.link.fault_after = None
    clock.now += 2
    a.elector.step()
    assert a.elector.age_seconds() == 0
    assert not a.exits


def test_lease_taken_unnoticed_is_found_again(server: Leases, clock: Clock) -> None:
    a = Process(server, clock, "a")
    a.link.fault_after = lambda method: raising(FAULTS["timeout"])(method) if method == "POST" else None
    a.elector.step()
    assert not a.elector.is_leader()
    a.elector.step()
    assert a.elector.may_write()


def test_renewal_counts_from_before_the_call(clock: Clock, pair: tuple[Process, Process]) -> None:
    a, _ = pair

    def slow(method: str) -> None:
        clock.now += 3

    a.link.fault_after = slow
    a.elector.step()
    assert a.elector.age_seconds() == 3


def test_answer_that_came_too_late_does_not_make_a_leader(server: Leases, clock: Clock) -> None:
    a = Process(server, clock, "a")

    def frozen(method: str) -> None:
        clock.now += 60

    a.link.fault_after = frozen
    a.elector.step()
    assert not a.elector.is_leader()
    assert not a.started.is_set()


def test_leader_that_cannot_start_ends(server: Leases, clock: Clock) -> None:
    ended = threading.Event()

    def broken() -> None:
        raise RuntimeError("no workers")

    elector = LeaderElector(
        Link(server, clock), namespace="ns", name="operator", identity="a", on_started=broken, clock=clock,
        exit=lambda code: ended.set() if code == 1 else None,
    )  # fmt: skip
    elector.step()
    assert ended.wait(5)
    assert not elector.may_write()


def test_hanging_call_does_not_delay_the_end(server: Leases) -> None:
    """The deadline is watched by a thread of its own."""
    ended, hang = threading.Event(), threading.Event()
    link = Link(server, Clock())
    elector = LeaderElector(
        link, namespace="ns", name="operator", identity="a", on_started=lambda: None,
        lease_seconds=2, renew_deadline_seconds=0.2, retry_seconds=0.05, exit=lambda code: ended.set(),
    )  # fmt: skip

    def hanging(method: str) -> None:
        if server.holders:
            hang.wait(30)

    link.fault = hanging
    elector.start()
    try:
        assert ended.wait(10)
        assert not elector.may_write()
    finally:
        hang.set()


@pytest.mark.parametrize("seed", range(30))
def test_f6_f7_never_two_leaders_whatever_happens(seed: int) -> None:
    """Three replicas on links that fail in every way, frozen, killed and restarted: at most one may write, ever."""
    rng, clock, server = random.Random(seed), Clock(), Leases()
    processes = [Process(server, clock, f"r{n}") for n in range(3)]
    awake_at = [0.0, 0.0, 0.0]
    leaders: list[str] = []
    faults = list(FAULTS.values()) + [ApiError(409, "Conflict"), ApiError(404, "NotFound")]
    for turn in range(1500):
        clock.now += rng.choice((0.1, 0.5, 1.0, 2.0))
        n = rng.randrange(3)
        if rng.random() < 0.01:
            awake_at[n] = clock.now + rng.uniform(1, 60)  # SIGSTOP
        if rng.random() < 0.005:
            processes[n] = Process(server, clock, f"r{n}-{turn}")  # SIGKILL
        process = processes[n]
        bad = rng.random()
        process.link.fault = raising(rng.choice(faults)) if bad < 0.1 else None
        process.link.fault_after = raising(FAULTS["timeout"]) if 0.1 < bad < 0.2 else None
        process.link.answer = {"kind": "Status"} if 0.2 < bad < 0.25 else None
        if clock.now >= awake_at[n]:
            if rng.random() < 0.003:
                process.elector.release()
            process.elector.step()
            if process.exits or process.elector._stop.is_set():
                processes[n] = Process(server, clock, f"r{n}-{turn}")
        writers = [p.elector.identity for p in processes if p.elector.may_write()]
        assert len(writers) <= 1, f"seed {seed}, turn {turn}: {writers}"
        if writers and leaders[-1:] != writers:
            leaders += writers
    assert len(leaders) > 3, f"seed {seed}: the simulation showed nothing: {leaders}"
    assert len(set(leaders)) == len(leaders), "a process that lost the lease led again"


def test_durations_that_cannot_be_safe_are_refused(server: Leases, clock: Clock) -> None:
    for lease, deadline, retry in ((10, 10, 2), (15, 2, 2), (15, 10, 0)):
        with pytest.raises(ValueError, match="retry_seconds"):
            LeaderElector(
                Link(server, clock), namespace="ns", name="n", identity="a", on_started=lambda: None,
                lease_seconds=lease, renew_deadline_seconds=deadline, retry_seconds=retry,
            )  # fmt: skip


def test_identities_differ_and_boottime_goes_on() -> None:
    assert unique_identity("pod") != unique_identity("pod")
    assert unique_identity("pod").startswith("pod_")
    first = boottime()
    assert boottime() >= first
