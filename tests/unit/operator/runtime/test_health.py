"""R20: liveness is progress, readiness is synced caches, and neither is ever a constant."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable, Iterator

import pytest
from fakeapi import FakeApi, eventually

from instructpt_operator.runtime.health import Health, HealthServer
from instructpt_operator.runtime.informer import Informer
from instructpt_operator.runtime.queue import WorkQueue
from instructpt_operator.runtime.worker import WorkerPool

Get = Callable[..., tuple[int, str]]


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def figures() -> list[bytes]:
    return [b"up 1\n"]


@pytest.fixture
def server(health: Health, figures: list[bytes]) -> Iterator[HealthServer]:
    server = HealthServer(health, lambda: figures[0], host="127.0.0.1", port=0)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def get(server: HealthServer) -> Get:
    def get(path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    return get


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_r20_nothing_checked_is_not_healthy(get: Get, path: str) -> None:
    assert get(path) == (503, "nothing is checked yet\n")


def test_r20_age_over_its_limit_fails_liveness_and_names_the_check(get: Get, health: Health) -> None:
    ages = {"informer-jobs": 0.0, "leader": 0.0}
    for name in ages:
        health.watch_age(name, lambda name=name: ages[name], 180)
    assert get("/healthz") == (200, "ok\n")
    ages["informer-jobs"] = 180.0
    assert get("/healthz")[0] == 200
    ages["informer-jobs"] = 181.0
    assert get("/healthz") == (503, "informer-jobs: no progress for 181 s (limit 180 s)\n")
    ages["informer-jobs"] = 1.0
    assert get("/healthz")[0] == 200


def test_r20_ended_thread_fails_liveness(get: Get, health: Health) -> None:
    alive = [True]
    health.watch_thread("workers", lambda: alive[0])
    assert get("/healthz?verbose=1")[0] == 200
    alive[0] = False
    assert get("/healthz") == (503, "workers: a thread has ended\n")


def test_r20_readiness_is_of_every_cache(get: Get, health: Health) -> None:
    synced = {"jobs": True, "corpora": False}
    for name in synced:
        health.watch_ready(name, lambda name=name: synced[name])
    assert get("/readyz") == (503, "corpora: not ready\n")
    synced["corpora"] = True
    assert get("/readyz") == (200, "ok\n")


def test_r20_check_that_raises_fails(get: Get, health: Health) -> None:
    def age() -> float:
        raise RuntimeError("of the check itself")

    health.watch_age("odd", age, 10)
    assert get("/healthz") == (503, "odd: the check raised RuntimeError\n")


def test_r20_names_are_unique(health: Health) -> None:
    health.watch_thread("a", lambda: True)
    with pytest.raises(ValueError, match="'a'"):
        health.watch_age("a", lambda: 0.0, 1)


def test_r20_probes_of_a_real_informer_and_pool(
    get: Get, health: Health, api: FakeApi, informer: Callable[..., Informer]
) -> None:
    now = [0.0]
    api.fault = lambda verb: "503"
    made = informer(start=False, clock=lambda: now[0])
    pool = WorkerPool(WorkQueue[str](), lambda key: None, clock=lambda: now[0])
    health.watch_ready("things", lambda: made.synced)
    health.watch_age("things", made.last_activity, 180)
    health.watch_thread("things-thread", lambda: made.alive)
    health.watch_age("workers", pool.last_activity, 180)
    made.start()
    eventually(lambda: made.stats.errors >= 3)
    assert get("/readyz") == (503, "things: not ready\n")
    assert get("/healthz")[0] == 200, "a server that is down is no reason to restart"
    api.fault = lambda verb: None
    assert made.wait_synced(20)
    assert get("/readyz")[0] == 200
    eventually(lambda: api.watchers and made.stats.watches >= 1)

    told: list[str] = []

    def is_stuck() -> bool:
        now[0] += 1000.0  # no bookmark, no error, nothing; what its thread was just about to do may still come once
        code, text = get("/healthz")
        told.append(text)
        return code == 503

    eventually(is_stuck)
    assert re.fullmatch(r"things: no progress for \d+000 s \(limit 180 s\)\n", told[-1])


def test_metrics_come_as_the_callable_has_them(get: Get, figures: list[bytes], health: Health) -> None:
    assert get("/metrics") == (200, "up 1\n")
    figures[0] = b"up 2\n"
    assert get("/metrics") == (200, "up 2\n")
    figures.clear()  # now it raises
    assert get("/metrics")[0] == 500
    assert get("/nonsense")[0] == 404


def test_client_that_says_nothing_holds_up_nobody(get: Get, server: HealthServer, health: Health) -> None:
    health.watch_thread("a", lambda: True)
    with socket.create_connection(("127.0.0.1", server.port)):
        assert get("/healthz")[0] == 200


def test_port_is_free_after_stop(health: Health) -> None:
    server = HealthServer(health, lambda: b"", host="127.0.0.1", port=0)
    server.start()
    server.stop()
    again = HealthServer(health, lambda: b"", host="127.0.0.1", port=server.port)
    again.stop()
