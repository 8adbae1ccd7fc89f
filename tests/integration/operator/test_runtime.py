"""The client and the informer against a real API server: certificates and tokens, pages, a true 410, restarts."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apiserver as control_plane
import pytest
from apiserver import ApiServer
from cluster import binaries
from fakeapi import eventually
from kubernetes.config import incluster_config

from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType
from instructpt_operator.runtime.informer import Informer
from instructpt_operator.runtime.store import InformerEvent, controller_uid

pytestmark = pytest.mark.cluster

CONFIG_MAP = ResourceType(api_version="v1", kind="ConfigMap", plural="configmaps")
NAMESPACE = ResourceType(api_version="v1", kind="Namespace", plural="namespaces", namespaced=False)
ACCOUNT = ResourceType(api_version="v1", kind="ServiceAccount", plural="serviceaccounts")
MISSING = ResourceType(api_version="kubeflow.org/v9", kind="Nothing", plural="nothings")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server of this module alone, for it is paused, killed and compacted."""
    if not binaries.is_ready(control_plane.NEEDED) and shutil.which("go") is None:
        pytest.skip(binaries.NO_GO)
    with control_plane.api_server(tmp_path_factory.mktemp("runtime")) as running:
        yield running


@pytest.fixture
def client(server: ApiServer) -> KubeClient:
    return KubeClient.connect(str(server.kubeconfig), timeout_seconds=10)


@pytest.fixture
def namespace(client: KubeClient) -> str:
    name = f"t-{uuid.uuid4().hex[:10]}"
    client.create(NAMESPACE, {"metadata": {"name": name}})
    return name


def config_map(namespace: str, name: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "x"}},
        "data": data,
    }


class Handler:
    """Checks that events make sense, and keeps what they say."""

    def __init__(self) -> None:
        self.kinds: list[tuple[str, str]] = []
        self.believed: dict[str, dict[str, Any]] = {}

    def __call__(self, event: InformerEvent) -> None:
        name = event.object["metadata"]["name"]
        known = self.believed.get(name)
        sensible = event.old is known and (event.kind == "ADDED") == (known is None)
        self.kinds.append((event.kind if sensible else f"wrong {event.kind}", name))
        if event.kind == "DELETED":
            self.believed.pop(name, None)
        else:
            self.believed[name] = event.object


class Gate:
    """Instead of a wait: passes at once, or holds the informer until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.waits = 0

    def __call__(self, seconds: float) -> None:
        self.waits += 1
        time.sleep(0.05)
        self.open.wait(60)


@pytest.fixture
def make(client: KubeClient, namespace: str) -> Iterator[Callable[..., Informer]]:
    made: list[Informer] = []

    def make(**options: Any) -> Informer:
        made.append(Informer(client, CONFIG_MAP, namespace=namespace, label_selector="app=x", **options))
        made[-1].start()
        assert made[-1].wait_synced(30)
        return made[-1]

    yield make
    for one in made:
        one.stop()


def versions(objects: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {o["metadata"]["name"]: (o["metadata"]["uid"], o["metadata"]["resourceVersion"]) for o in objects}


def agree(client: KubeClient, namespace: str, informer: Informer, handler: Handler) -> None:
    truth = versions(client.list(CONFIG_MAP, namespace, label_selector="app=x"))
    eventually(lambda: versions(informer.store.list()) == truth, "the cache to be what the server has")
    eventually(lambda: versions(list(handler.believed.values())) == truth)
    assert not [kind for kind, _ in handler.kinds if kind.startswith("wrong")]


def compact(server: ApiServer, client: KubeClient) -> None:
    """Make etcd forget everything up to now."""
    revision = next(client.pages(CONFIG_MAP, limit=1))[1]
    body = json.dumps({"revision": str(revision), "physical": True}).encode()
    request = urllib.request.Request(f"{server.etcd_url}/v3/kv/compaction", data=body, method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def test_r1_pages_of_a_real_list_are_complete_and_of_one_version(client: KubeClient, namespace: str) -> None:
    for number in range(7):
        client.create(CONFIG_MAP, config_map(namespace, f"m-{number}"))
    pages = list(client.pages(CONFIG_MAP, namespace, label_selector="app=x", limit=3))
    assert [len(items) for items, _ in pages] == [3, 3, 1]
    assert len({version for _, version in pages}) == 1
    items = [item for page, _ in pages for item in page]
    assert {item["metadata"]["name"] for item in items} == {f"m-{number}" for number in range(7)}
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("v1", "ConfigMap")}


def test_r1_cache_follows_creates_updates_and_deletes(
    client: KubeClient, namespace: str, make: Callable[..., Informer]
) -> None:
    handler = Handler()
    client.create(CONFIG_MAP, config_map(namespace, "before"))
    informer = make(on_event=handler, indexers={"owner": controller_uid})
    owner = client.get(CONFIG_MAP, namespace, "before")["metadata"]["uid"]
    child = config_map(namespace, "child", a="1")
    child["metadata"]["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "before", "uid": owner, "controller": True}
    ]
    client.create(CONFIG_MAP, child)
    eventually(lambda: informer.store.get(namespace, "child"))
    assert [o["metadata"]["name"] for o in informer.store.by_index("owner", owner)] == ["child"]
    assert "managedFields" not in informer.store.get(namespace, "child")["metadata"]
    client.merge_patch(CONFIG_MAP, namespace, "child", {"data": {"a": "2"}})
    unlabelled = config_map(namespace, "not-ours")
    unlabelled["metadata"]["labels"] = {}
    client.create(CONFIG_MAP, unlabelled)
    client.delete(CONFIG_MAP, namespace, "before", propagation="Orphan")
    client.delete(CONFIG_MAP, namespace, "child")
    client.create(CONFIG_MAP, config_map(namespace, "child", a="3"))
    agree(client, namespace, informer, handler)
    assert handler.kinds[0] == ("ADDED", "before")
    assert [kind for kind in handler.kinds if kind[1] == "child"] == [
        ("ADDED", "child"),
        ("MODIFIED", "child"),
        ("DELETED", "child"),
        ("ADDED", "child"),
    ]
    assert (informer.stats.lists, informer.stats.watches, informer.stats.errors) == (1, 1, 0)


def test_r2_true_410_leads_to_a_relist_with_the_deletions_of_the_gap(
    server: ApiServer, client: KubeClient, namespace: str, make: Callable[..., Informer]
) -> None:
    handler, gate = Handler(), Gate()
    for name in ("stays", "goes", "changes", "is-replaced"):
        client.create(CONFIG_MAP, config_map(namespace, name))
    informer = make(on_event=handler, wait=gate)
    eventually(lambda: informer.stats.watches == 1)
    gate.open.clear()
    server.restart_apiserver()  # breaks the watch, and the informer now waits at the gate
    eventually(lambda: gate.waits)
    handler.kinds.clear()
    client.delete(CONFIG_MAP, namespace, "goes")
    client.merge_patch(CONFIG_MAP, namespace, "changes", {"data": {"a": "1"}})
    client.delete(CONFIG_MAP, namespace, "is-replaced")
    client.create(CONFIG_MAP, config_map(namespace, "is-replaced"))
    client.create(CONFIG_MAP, config_map(namespace, "comes"))
    compact(server, client)
    server.restart_apiserver()
    gate.open.set()
    agree(client, namespace, informer, handler)
    assert informer.stats.relists == 1
    assert sorted(handler.kinds) == [
        ("ADDED", "comes"),
        ("ADDED", "is-replaced"),
        ("DELETED", "goes"),
        ("DELETED", "is-replaced"),
        ("MODIFIED", "changes"),
    ]


def test_f4_killed_and_restarted_server_loses_no_event(
    server: ApiServer, client: KubeClient, namespace: str, make: Callable[..., Informer]
) -> None:
    handler = Handler()
    client.create(CONFIG_MAP, config_map(namespace, "a"))
    informer = make(on_event=handler, wait=Gate())
    for round_ in range(2):
        client.create(CONFIG_MAP, config_map(namespace, f"before-{round_}"))
        server.stop()
        errors = informer.stats.errors
        eventually(lambda errors=errors: informer.stats.errors > errors + 2)
        assert informer.store.get(namespace, "a") is not None, "an outage empties no cache"
        server.start("kube-apiserver")
        client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"round": str(round_)}})
        client.create(CONFIG_MAP, config_map(namespace, f"after-{round_}"))
        client.delete(CONFIG_MAP, namespace, f"before-{round_}")
        agree(client, namespace, informer, handler)
    assert informer.alive
    assert {("ADDED", f"after-{r}") for r in range(2)} <= set(handler.kinds)
    assert {("DELETED", f"before-{r}") for r in range(2)} <= set(handler.kinds)


def test_f4_paused_server_times_out_and_the_cache_catches_up(
    server: ApiServer, namespace: str, make: Callable[..., Informer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructpt_operator.runtime.informer.READ_SECONDS", 1.0)
    handler = Handler()
    informer = make(on_event=handler, wait=Gate())
    quick = KubeClient.connect(str(server.kubeconfig), timeout_seconds=1)
    quick.create(CONFIG_MAP, config_map(namespace, "a"))
    eventually(lambda: informer.store.get(namespace, "a"))
    server.pause()
    try:
        with pytest.raises(ApiError) as caught:
            quick.get(CONFIG_MAP, namespace, "a")
        errors = informer.stats.errors
        eventually(lambda: informer.stats.errors > errors + 1)
    finally:
        server.resume()
    assert (caught.value.status, caught.value.reason) == (0, "Timeout")

    def answers() -> bool:
        with contextlib.suppress(ApiError):
            quick.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"x": "y"}})
            return True
        return False

    eventually(answers)
    agree(quick, namespace, informer, handler)


def test_f3_fed_object_is_not_told_twice(client: KubeClient, namespace: str, make: Callable[..., Informer]) -> None:
    handler = Handler()
    informer = make(on_event=handler)
    informer.feed(client.create(CONFIG_MAP, config_map(namespace, "a", x="1")))
    assert informer.store.get(namespace, "a")["data"] == {"x": "1"}
    informer.feed(client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"x": "2"}}))
    assert informer.store.get(namespace, "a")["data"] == {"x": "2"}
    client.create(CONFIG_MAP, config_map(namespace, "last"))
    agree(client, namespace, informer, handler)
    assert handler.kinds == [("ADDED", "a"), ("MODIFIED", "a"), ("ADDED", "last")]


def test_stop_wakes_a_watch_over_tls(make: Callable[..., Informer]) -> None:
    informer = make()
    eventually(lambda: informer.stats.watches == 1 and informer._stream is not None)
    informer.stop()
    assert not informer._thread.is_alive()
    assert informer.stats.errors == 0


def test_type_that_is_not_served_has_no_objects(client: KubeClient) -> None:
    assert client.serves(CONFIG_MAP)
    assert not client.serves(MISSING)
    informer = Informer(client, MISSING, optional=True)
    informer.start()
    assert informer.wait_synced(30)
    informer.stop()
    assert informer.store.list() == []


def test_writes_are_guarded(client: KubeClient, namespace: str) -> None:
    made = client.create(CONFIG_MAP, config_map(namespace, "a"))
    with pytest.raises(ApiError) as taken:
        client.create(CONFIG_MAP, config_map(namespace, "a"))
    assert (taken.value.status, taken.value.reason) == (409, "AlreadyExists")
    with pytest.raises(ApiError) as strict:
        client.create(CONFIG_MAP, config_map(namespace, "b") | {"dota": {}})
    assert strict.value.status == 400
    client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"x": "y"}})
    with pytest.raises(ApiError) as stale:
        client.replace(CONFIG_MAP, made)
    assert (stale.value.status, stale.value.reason) == (409, "Conflict")
    client.delete(CONFIG_MAP, namespace, "a", uid="00000000-0000-0000-0000-000000000000")
    assert client.get(CONFIG_MAP, namespace, "a")["data"] == {"x": "y"}
    assert client.apply(CONFIG_MAP, config_map(namespace, "c", k="v"))["data"] == {"k": "v"}
    client.delete(CONFIG_MAP, namespace, "a", uid=made["metadata"]["uid"])
    client.delete(CONFIG_MAP, namespace, "a")
    with pytest.raises(ApiError) as gone:
        client.get(CONFIG_MAP, namespace, "a")
    assert (gone.value.status, gone.value.reason) == (404, "NotFound")


def test_token_of_a_pod_is_read_again_when_it_was_rotated(
    server: ApiServer, client: KubeClient, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"

    def put_token_of(account: str) -> None:
        client.create(ACCOUNT, {"metadata": {"namespace": namespace, "name": account}})
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = client.request("POST", ACCOUNT.path(namespace, account, "token"), body=body)
        token.write_text(answer["status"]["token"])

    now = datetime.datetime.now()

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return now

    monkeypatch.setattr(incluster_config.datetime, "datetime", Clock)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(server.folder / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rsplit(":", 1)[1])

    def who(pod: KubeClient) -> str:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = pod.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)
        return str(answer["status"]["userInfo"]["username"]).rsplit(":", 1)[1]

    put_token_of("first")
    pod = KubeClient.connect()
    assert who(pod) == "first"
    put_token_of("second")
    assert who(pod) == "first", "it is read once a minute"
    now += datetime.timedelta(seconds=61)
    assert who(pod) == "second"
