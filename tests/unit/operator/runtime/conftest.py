"""A fake API server, clients of it, and a handler that checks what it is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from fakeapi import FakeApi, eventually
from kubernetes.client import Configuration

from instructpt_operator.runtime.client import KubeClient, ResourceType
from instructpt_operator.runtime.informer import Informer
from instructpt_operator.runtime.store import InformerEvent, Store
from instructpt_operator.runtime.transport import Transport

THING = ResourceType(api_version="test.dev/v1", kind="Thing", plural="things")


class Witness:
    """A handler. Fails on a sequence that no handler should have to understand, and knows what it should believe."""

    def __init__(self) -> None:
        self.events: list[InformerEvent] = []
        self.believed: dict[tuple[str, str], dict[str, Any]] = {}
        self.wrong: list[str] = []

    def __call__(self, event: InformerEvent) -> None:
        self.events.append(event)
        meta = event.object["metadata"]
        key = (meta["namespace"], meta["name"])
        known = self.believed.get(key)
        if event.old is not known:
            self.wrong.append(f"{event.kind} {key}: old is not what was told before")
        if (event.kind == "ADDED") != (known is None):
            self.wrong.append(f"{event.kind} {key}: known before: {known is not None}")
        if known is not None and known["metadata"]["uid"] != meta["uid"]:
            self.wrong.append(f"{event.kind} {key}: another uid")
        if event.kind == "DELETED":
            self.believed.pop(key, None)
        else:
            self.believed[key] = event.object

    def kinds(self) -> list[tuple[str, str]]:
        return [(event.kind, event.object["metadata"]["name"]) for event in self.events]

    def check(self, store: Store) -> None:
        assert self.wrong == []
        assert self.believed == {(obj["metadata"]["namespace"], obj["metadata"]["name"]): obj for obj in store.list()}


class Naps:
    """Waits that are noted rather than slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.until = 0.002

    def __call__(self, seconds: float) -> None:
        import time

        self.seconds.append(seconds)
        time.sleep(self.until)


def cached(informer: Informer) -> dict[tuple[str, str], tuple[str, str]]:
    """Uid and version of what an informer has, by key."""
    return {
        (o["metadata"]["namespace"], o["metadata"]["name"]): (o["metadata"]["uid"], o["metadata"]["resourceVersion"])
        for o in informer.store.list()
    }


def client_of(api: FakeApi, **options: Any) -> KubeClient:
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{api.port}"
    configuration.proxy = None
    configuration.api_key = {}
    settings: dict[str, Any] = {"qps": 10_000.0, "burst": 10_000, "timeout_seconds": 5.0, "user_agent": "test"}
    return KubeClient(Transport(configuration, **(settings | options)))


@pytest.fixture
def seed() -> int:
    """Of everything random; set INSTRUCTPT_TEST_SEED to run one again."""
    seed = int(os.environ.get("INSTRUCTPT_TEST_SEED") or Random().randrange(10**9))
    print(f"INSTRUCTPT_TEST_SEED={seed}")
    return seed


@pytest.fixture
def api(seed: int) -> Iterator[FakeApi]:
    server = FakeApi(seed)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(api: FakeApi) -> KubeClient:
    return client_of(api)


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
def informer(client: KubeClient, witness: Witness, naps: Naps, seed: int) -> Iterator[Callable[..., Informer]]:
    """Makes informers that are stopped in the end."""
    made: list[Informer] = []

    def make(start: bool = True, **options: Any) -> Informer:
        settings: dict[str, Any] = {"on_event": witness, "random": Random(seed), "wait": naps}
        made.append(Informer(options.pop("client", client), THING, **(settings | options)))
        if start:
            made[-1].start()
            assert made[-1].wait_synced(20)
        return made[-1]

    yield make
    for one in made:
        one.stop()


def agree(api: FakeApi, informer: Informer) -> None:
    """Wait until the cache is what the server has."""
    eventually(lambda: cached(informer) == api.truth(), "the cache to be what the server has")
