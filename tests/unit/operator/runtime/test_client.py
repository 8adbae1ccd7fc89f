"""R8: a budget, Retry-After, a timeout on every call, enough connections; and what the client sends."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fakeapi import FakeApi
from kubernetes.client import Configuration

from instructpt_operator.runtime.client import FIELD_MANAGER, ApiError, KubeClient, ResourceType
from instructpt_operator.runtime.errors import MESSAGE_CHARS
from instructpt_operator.runtime.transport import THROTTLE_RETRIES, THROTTLE_SECONDS, Transport

from .conftest import THING, client_of

NODE = ResourceType(api_version="v1", kind="Node", plural="nodes", namespaced=False)
WRITE = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
TOKEN = "eyJhbGciOi.secret.token"


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Scripted:
    """A server that answers as it is told: status, body, headers; then 200 and ``{}``."""

    answers: list[tuple[int, bytes, dict[str, str]]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    hold: threading.Barrier | None = None
    port: int = 0

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.answers.append((status, data, {name.replace("_", "-"): value for name, value in headers.items()}))


@pytest.fixture
def server() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            script.connections.add(self.client_address)
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.seen.append(Seen(self.command, url.path, query, headers, json.loads(body) if body else None))
            if script.hold is not None:
                script.hold.wait(20)
            status, answer, headers = script.answers.pop(0) if script.answers else (200, b"{}", {})
            self.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads, http_server.block_on_close = True, False
    script.port = http_server.server_address[1]
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,))
    thread.start()
    yield script
    http_server.shutdown()
    thread.join()
    http_server.server_close()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def client(server: Scripted, time: Time) -> KubeClient:
    return client_of(server, clock=time, sleep=time.sleep)  # type: ignore[arg-type]


def error_of(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("type_", "args", "path"),
    [
        (THING, (), "/apis/test.dev/v1/things"),
        (THING, ("n",), "/apis/test.dev/v1/namespaces/n/things"),
        (THING, ("n", "a"), "/apis/test.dev/v1/namespaces/n/things/a"),
        (THING, ("n", "a", "status"), "/apis/test.dev/v1/namespaces/n/things/a/status"),
        (THING, ("n", "../x?y"), "/apis/test.dev/v1/namespaces/n/things/..%2Fx%3Fy"),
        (NODE, (), "/api/v1/nodes"),
        (NODE, (None, "a"), "/api/v1/nodes/a"),
        (NODE, ("ignored", "a"), "/api/v1/nodes/a"),
    ],
)
def test_paths(type_: ResourceType, args: tuple[Any, ...], path: str) -> None:
    assert type_.path(*args) == path


def test_one_object_of_a_namespaced_type_needs_a_namespace() -> None:
    with pytest.raises(ValueError, match="needs a namespace"):
        THING.path(None, "a")


def test_writes_name_their_manager_and_are_strict(server: Scripted, client: KubeClient) -> None:
    obj = {"apiVersion": "test.dev/v1", "kind": "Thing", "metadata": {"namespace": "n", "name": "a"}}
    client.create(THING, obj)
    client.replace(THING, obj, subresource="status")
    client.merge_patch(THING, "n", "a", {"spec": {}}, subresource="scale")
    client.apply(THING, obj, force=True)
    client.delete(THING, "n", "a", uid="u", propagation="Foreground")
    path = "/apis/test.dev/v1/namespaces/n/things"
    assert [(seen.method, seen.path, seen.query) for seen in server.seen] == [
        ("POST", path, WRITE),
        ("PUT", f"{path}/a/status", WRITE),
        ("PATCH", f"{path}/a/scale", WRITE),
        ("PATCH", f"{path}/a", WRITE | {"force": "true"}),
        ("DELETE", f"{path}/a", {}),
    ]
    assert [seen.headers["content-type"] for seen in server.seen] == [
        "application/json",
        "application/json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
        "application/json",
    ]
    assert server.seen[0].body == server.seen[3].body == obj
    assert server.seen[4].body["preconditions"] == {"uid": "u"}
    assert server.seen[4].body["propagationPolicy"] == "Foreground"
    assert client.calls == {("create", 200): 1, ("update", 200): 1, ("patch", 200): 2, ("delete", 200): 1}


def test_items_of_a_list_get_their_type(server: Scripted, client: KubeClient) -> None:
    server.answer(200, {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}]})
    server.answer(200, {"metadata": {"resourceVersion": "8"}, "items": None})
    items = client.list(THING, "n", label_selector="a=b", field_selector="c=d", limit=20)
    assert items == [{"apiVersion": "test.dev/v1", "kind": "Thing", "metadata": {"name": "a"}}]
    assert server.seen[0].query == {"labelSelector": "a=b", "fieldSelector": "c=d", "limit": "20"}
    assert client.list(THING) == []


@pytest.mark.parametrize(
    ("status", "body", "reason", "message"),
    [
        (409, {"reason": "AlreadyExists", "message": "it is there"}, "AlreadyExists", "it is there"),
        (409, b"", "Conflict", ""),
        (404, b"404 page not found", "NotFound", "404 page not found"),
        (502, b"<html>Bad Gateway</html>", "BadGateway", "<html>Bad Gateway</html>"),
        (302, b"", "Found", ""),
    ],
)
def test_refusal_says_what_the_server_said(
    server: Scripted, client: KubeClient, status: int, body: Any, reason: str, message: str
) -> None:
    server.answer(status, body)
    error = error_of(lambda: client.get(THING, "n", "a"))
    assert (error.status, error.reason, error.message, error.retry_after) == (status, reason, message, None)


def test_long_refusal_is_cut(server: Scripted, client: KubeClient) -> None:
    server.answer(500, b"x" * 50_000)
    error = error_of(lambda: client.get(THING, "n", "a"))
    assert error.message.startswith("xxx")
    assert len(error.message) <= MESSAGE_CHARS + 10


@pytest.mark.parametrize("body", [b"<html></html>", b"", b"[]", b'{"metadata": '], ids=["html", "empty", "list", "cut"])
def test_answer_that_is_no_object_is_no_answer(server: Scripted, client: KubeClient, body: bytes) -> None:
    server.answer(200, body)
    error = error_of(lambda: client.get(THING, "n", "a"))
    assert (error.status, error.reason) == (0, "BadBody")


@pytest.mark.parametrize("body", [{}, {"metadata": {}}, {"metadata": {"resourceVersion": "1"}, "items": [{}]}])
def test_answer_that_is_no_list_is_no_answer(server: Scripted, client: KubeClient, body: Any) -> None:
    server.answer(200, body)
    assert error_of(lambda: client.list(THING)).reason == "BadBody"


@pytest.mark.parametrize(
    ("status", "message", "fine"),
    [
        (404, "not found", True),
        (409, "Precondition failed: UID in precondition: u, UID in object meta: v", True),
        (409, "the UID in the precondition (u) does not match the UID in record (v)", True),
        (409, "the object has been modified", False),
        (403, "forbidden", False),
    ],
)
def test_delete_of_what_is_gone_or_another_is_fine(
    server: Scripted, client: KubeClient, status: int, message: str, fine: bool
) -> None:
    server.answer(status, {"message": message})
    if fine:
        client.delete(THING, "n", "a", uid="u")
    else:
        assert error_of(lambda: client.delete(THING, "n", "a", uid="u")).status == status


def test_type_is_served_or_not(server: Scripted, client: KubeClient) -> None:
    server.answer(200, {"resources": [{"name": "things"}, {"name": "things/status"}]})
    server.answer(200, {"resources": [{"name": "others"}]})
    server.answer(404, b"404 page not found")
    assert [client.serves(THING) for _ in range(3)] == [True, False, False]
    server.answer(403)
    assert error_of(lambda: client.serves(THING)).status == 403


def test_r8_requests_beyond_the_burst_wait_for_the_rate(server: Scripted, time: Time) -> None:
    client = client_of(server, qps=10.0, burst=5, clock=time, sleep=time.sleep)  # type: ignore[arg-type]
    for _ in range(25):
        client.get(THING, "n", "a")
    assert len(server.seen) == 25
    assert len(time.sleeps) == 20
    assert time.now == pytest.approx(2.0)


def test_r8_retry_after_is_honoured(server: Scripted, client: KubeClient, time: Time) -> None:
    server.answer(429, Retry_After="3")
    server.answer(429)
    server.answer(200, {"ok": True})
    assert client.get(THING, "n", "a") == {"ok": True}
    assert time.sleeps == [3.0, 1.0]
    assert client.calls == {("get", 429): 2, ("get", 200): 1}


def test_r8_retry_after_is_bounded_in_number(server: Scripted, client: KubeClient, time: Time) -> None:
    for _ in range(THROTTLE_RETRIES + 5):
        server.answer(429, Retry_After="1")
    error = error_of(lambda: client.create(THING, {"metadata": {"namespace": "n", "name": "a"}}))
    assert (error.status, error.retry_after) == (429, 1.0)
    assert len(server.seen) == THROTTLE_RETRIES + 1
    assert time.now <= THROTTLE_SECONDS


@pytest.mark.parametrize("after", ["11", "3600", "1000000000"])
def test_r8_retry_after_is_bounded_in_time(server: Scripted, client: KubeClient, time: Time, after: str) -> None:
    server.answer(429, Retry_After=after)
    error = error_of(lambda: client.get(THING, "n", "a"))
    assert error.retry_after == float(after), "the caller may wait, the worker does not"
    assert time.sleeps == []


def test_r8_odd_retry_after_is_ignored(server: Scripted, client: KubeClient, time: Time) -> None:
    server.answer(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
    server.answer(429, Retry_After="-5")
    server.answer(429, Retry_After="nan")
    client.get(THING, "n", "a")
    assert time.sleeps == [1.0, 1.0, 1.0]


def test_r8_list_and_watch_of_an_informer_leave_the_wait_to_it(
    server: Scripted, client: KubeClient, time: Time
) -> None:
    server.answer(429, Retry_After="2")
    server.answer(429, Retry_After="2")
    assert error_of(lambda: list(client.pages(THING))).retry_after == 2.0
    watch = {"resource_version": "1", "timeout_seconds": 300, "read_timeout_seconds": 75}
    assert error_of(lambda: client.watch(THING, **watch)).retry_after == 2.0
    assert len(server.seen) == 2
    assert time.sleeps == []


@pytest.fixture
def silent() -> Iterator[Scripted]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Scripted(port=listener.getsockname()[1])


CALLS: dict[str, Callable[[KubeClient], object]] = {
    "get": lambda client: client.get(THING, "n", "a"),
    "list": lambda client: client.list(THING),
    "pages": lambda client: list(client.pages(THING)),
    "create": lambda client: client.create(THING, {"metadata": {"namespace": "n", "name": "a"}}),
    "replace": lambda client: client.replace(THING, {"metadata": {"namespace": "n", "name": "a"}}),
    "merge_patch": lambda client: client.merge_patch(THING, "n", "a", {}),
    "apply": lambda client: client.apply(THING, {"metadata": {"namespace": "n", "name": "a"}}),
    "delete": lambda client: client.delete(THING, "n", "a"),
    "serves": lambda client: client.serves(THING),
    "watch": lambda client: client.watch(THING, resource_version="1", timeout_seconds=300, read_timeout_seconds=0.05),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_r8_every_call_has_a_timeout(silent: Scripted, call: Callable[[KubeClient], object]) -> None:
    client = client_of(silent, timeout_seconds=0.05)  # type: ignore[arg-type]
    error = error_of(lambda: call(client))
    assert (error.status, error.reason) == (0, "Timeout")


def test_r8_body_that_drips_is_cut_off() -> None:
    """Each read of a socket is in time, the whole is not."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.01):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            client = client_of(Scripted(port=listener.getsockname()[1]), timeout_seconds=0.3)  # type: ignore[arg-type]
            error = error_of(lambda: client.get(THING, "n", "a"))
        finally:
            stop.set()
            thread.join()
    assert (error.status, error.reason) == (0, "Timeout")


def test_refused_connection_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = client_of(Scripted(port=port))  # type: ignore[arg-type]
    error = error_of(lambda: client.get(THING, "n", "a"))
    assert (error.status, error.reason) == (0, "Unreachable")
    assert client.calls == {("get", 0): 1}


def test_r8_connections_of_all_threads_are_kept_open(
    server: Scripted, kubeconfig: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = KubeClient.connect(str(kubeconfig), connections=8)
    server.hold = threading.Barrier(8)  # so that all calls of a round run at once
    for _ in range(5):
        threads = [threading.Thread(target=client.get, args=(THING, "n", "a")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.seen) == 40
    assert len(server.connections) == 8
    assert "pool is full" not in caplog.text


@pytest.fixture
def kubeconfig(server: Scripted, tmp_path: Path) -> Path:
    """Of the scripted server, with a token."""
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
                "users": [{"name": "u", "user": {"token": TOKEN}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path


def test_token_is_sent_and_never_logged(server: Scripted, kubeconfig: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = KubeClient.connect(str(kubeconfig), user_agent="operator/1")
    server.answer(401, {"message": "who are you"})
    error = error_of(lambda: client.get(THING, "n", "a"))
    assert server.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert server.seen[0].headers["user-agent"] == "operator/1"
    assert TOKEN not in caplog.text + repr(error) + str(error) + repr(vars(client))


def test_token_with_a_line_end_is_sent_without_and_not_quoted_in_an_error(server: Scripted) -> None:
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{server.port}"
    configuration.api_key = {"authorization": f"bearer {TOKEN}\n"}
    transport = Transport(configuration, qps=10, burst=10, timeout_seconds=5, user_agent="x")
    transport.send("get", "GET", "/")
    assert server.seen[0].headers["authorization"] == f"bearer {TOKEN}"


def test_token_that_cannot_be_read_is_an_error_of_the_api(server: Scripted) -> None:
    def hook(configuration: Configuration) -> None:
        raise FileNotFoundError("/var/run/secrets/token")

    configuration = Configuration()
    configuration.api_key = {"authorization": "bearer x"}
    configuration.refresh_api_key_hook = hook
    transport = Transport(configuration, qps=10, burst=10, timeout_seconds=5, user_agent="x")
    error = error_of(lambda: transport.send("get", "GET", "/"))
    assert (error.status, error.reason) == (0, "NoCredentials")


def test_watch_ends_when_it_is_closed_by_another_thread(api: FakeApi) -> None:
    api.put("a")
    stream = client_of(api).watch(THING, resource_version="0", timeout_seconds=300, read_timeout_seconds=60)
    seen: list[str] = []
    first = threading.Event()

    def read() -> None:
        for event in stream:
            seen.append(event["object"]["metadata"]["name"])
            first.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(20)
    stream.close()
    thread.join(20)
    assert not thread.is_alive()
    assert seen == ["a"]
    assert list(stream) == []
