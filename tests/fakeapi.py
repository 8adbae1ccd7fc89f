"""A small HTTP server with the list and watch of Kubernetes, for faults that a real one does not give on demand.

It serves one namespaced type, ``things`` of ``test.dev/v1``. Its state is the truth; what a watch shows of it is up to
a mangler. Everything random comes from a seed.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PATH = "/apis/test.dev/v1"
WAIT_SECONDS = 60.0
Event = dict[str, Any]
Mangle = Callable[[Event], list[Event]]


def as_it_is(event: Event) -> list[Event]:
    """The mangler of a server that works."""
    return [event]


@dataclass
class Mangler:
    """Drops, doubles, delays and so reorders events."""

    rng: random.Random
    drop: float = 0.15
    double: float = 0.15
    delay: float = 0.3
    held: list[Event] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"dropped": 0, "doubled": 0, "delayed": 0})

    def __call__(self, event: Event) -> list[Event]:
        out: list[Event] = []
        fate = self.rng.random()
        if fate < self.drop:
            self.counts["dropped"] += 1
        elif fate < self.drop + self.double:
            self.counts["doubled"] += 1
            out += [event, event]
        elif fate < self.drop + self.double + self.delay:
            self.counts["delayed"] += 1
            self.held.append(event)
        else:
            out.append(event)
        if self.held and self.rng.random() < 0.4:
            self.rng.shuffle(self.held)
            out.append(self.held.pop())
        return out


def eventually(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until something is true.

    Raises:
        AssertionError: It did not become true in time.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.003)


class Watcher:
    """One open watch: lines to send, and ``None`` where it ends."""

    def __init__(self) -> None:
        self.lines: deque[bytes | None] = deque()


class FakeApi:
    """The server.

    Attributes:
        requests: Verb and query of every request, in order.
        fault: Asked on every request, with its verb, how to fail: ``"500"``, ``"429"``, ``"html"``, ``"garbage"``,
            ``"reset"`` or None.
        mangle: What a watch shows of an event; a list is always the truth.
        retry_after: Header of a 429.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.version = 100
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.fault: Callable[[str], str | None] = lambda verb: None
        self.mangle: Mangle = as_it_is
        self.retry_after: str | None = None
        self.page_items: int | None = None  # caps the limit of a client
        self.on_page: Callable[[int], None] = lambda number: None  # called before each page of a list is made
        self.frozen = False
        self._log: list[Event] = []
        self._floor = 0
        self._serial = 0
        self._snapshots: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self.changed = threading.Condition(threading.RLock())
        self.watchers: list[Watcher] = []
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    # --- state

    def put(self, name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
        """Create or change an object."""
        with self.changed:
            known = self.objects.get((namespace, name))
            self.version += 1
            if known is None:
                self._serial += 1
                uid = f"uid-{self._serial}"
            else:
                uid = known["metadata"]["uid"]
            obj = {
                "apiVersion": "test.dev/v1",
                "kind": "Thing",
                "metadata": {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(self.version),
                             "managedFields": [{"manager": "somebody"}]},
                "spec": spec,
            }  # fmt: skip
            self.objects[(namespace, name)] = obj
            self._publish({"type": "ADDED" if known is None else "MODIFIED", "object": obj})
            return obj

    def remove(self, name: str, namespace: str = "default") -> None:
        """Delete an object."""
        with self.changed:
            obj = self.objects.pop((namespace, name))
            self.version += 1
            last = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
            self._publish({"type": "DELETED", "object": last})

    def truth(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Uid and version of every object, by key: what a cache must come to."""
        with self.changed:
            return {
                key: (obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]) for key, obj in self.objects.items()
            }

    def _publish(self, event: Event) -> None:
        self._log.append(event)
        for shown in self.mangle(event):
            self.send(shown)

    # --- faults of watches

    def send(self, event: Event) -> None:
        """An event, true or not, to every open watch."""
        self.send_raw(json.dumps(event).encode() + b"\n")

    def send_raw(self, line: bytes) -> None:
        """Bytes to every open watch."""
        with self.changed:
            for watcher in self.watchers:
                watcher.lines.append(line)
            self.changed.notify_all()

    def bookmark(self) -> None:
        """Tell every open watch how far it has come."""
        self.send({"type": "BOOKMARK", "object": {"kind": "Thing", "metadata": {"resourceVersion": str(self.version)}}})

    def compact(self) -> None:
        """Forget the past: a watch from an older version gets 410."""
        with self.changed:
            self._floor = self.version
            self._log.clear()

    def expire_watches(self) -> None:
        """Forget the past, and say so in every open watch."""
        with self.changed:
            self.compact()
            self.send(
                {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "old"}}
            )
            self.end_watches()

    def end_watches(self) -> None:
        """End every watch in good order, as a server does when the time of a watch is over."""
        with self.changed:
            for watcher in self.watchers:
                watcher.lines.append(None)
            self.watchers.clear()
            self.changed.notify_all()

    def freeze(self, frozen: bool = True) -> None:
        """Hold back whatever watches have to say; the connections stay open."""
        with self.changed:
            self.frozen = frozen
            self.changed.notify_all()

    # --- the server itself

    def start(self) -> None:
        """Listen, on the port that was had before if any."""
        api = self

        class Handler(_Handler):
            server_api = api

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and break those that are open."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self.changed:
            self.watchers.clear()
            self.frozen = False
            connections, self._connections = self._connections, set()
            self.changed.notify_all()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def count(self, verb: str) -> int:
        """How many requests of a verb came in."""
        with self.changed:
            return sum(1 for seen, _ in self.requests if seen == verb)

    def list_page(self, query: dict[str, str]) -> dict[str, Any] | None:
        """A page of a list; None where its token has expired."""
        with self.changed:
            limit = min(int(query.get("limit", "0")) or 10**9, self.page_items or 10**9)
            token = query.get("continue")
            if token is None:
                self._serial += 1
                token = f"{self._serial}-0"
                self._snapshots[token.split("-")[0]] = (self.version, list(self.objects.values()))
            snapshot, start = token.split("-")
            if snapshot not in self._snapshots:
                return None
            version, items = self._snapshots[snapshot]
            end = int(start) + limit
            metadata = {"resourceVersion": str(version)}
            if end < len(items):
                metadata["continue"] = f"{snapshot}-{end}"
            bare = [
                {k: v for k, v in item.items() if k not in ("apiVersion", "kind")} for item in items[int(start) : end]
            ]
            return {"kind": "ThingList", "apiVersion": "test.dev/v1", "metadata": metadata, "items": bare}

    def expire_lists(self) -> None:
        """Forget the lists that are under way."""
        with self.changed:
            self._snapshots.clear()

    def open_watch(self, version: int) -> Watcher | None:
        """A watch with what came since a version; None where that is too long ago."""
        with self.changed:
            if version < self._floor:
                return None
            watcher = Watcher()
            for event in self._log:
                if int(event["object"]["metadata"]["resourceVersion"]) > version:
                    watcher.lines += [json.dumps(shown).encode() + b"\n" for shown in self.mangle(event)]
            self.watchers.append(watcher)
            self.changed.notify_all()
            return watcher


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_api: FakeApi

    def setup(self) -> None:
        super().setup()
        with self.server_api.changed:
            self.server_api._connections.add(self.connection)

    def finish(self) -> None:
        with self.server_api.changed:
            self.server_api._connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Tests print what they need."""

    def do_GET(self) -> None:
        api = self.server_api
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        verb = "watch" if query.get("watch") == "true" else "list"
        with api.changed:
            api.requests.append((verb, query))
            pages = sum(1 for seen, _ in api.requests if seen == "list")
        fault = api.fault(verb)
        if fault is not None:
            self._fail(fault)
        elif not url.path.startswith(PATH):
            self._answer(404, b"404 page not found\n", "text/plain")
        elif verb == "list":
            api.on_page(pages)
            page = api.list_page(query)
            self._expired() if page is None else self._answer(200, json.dumps(page).encode())
        else:
            watcher = api.open_watch(int(query["resourceVersion"]))
            self._expired() if watcher is None else self._stream(watcher)

    def _expired(self) -> None:
        self._status(410, "Expired")

    def _status(self, code: int, reason: str, **headers: str) -> None:
        body = json.dumps({"kind": "Status", "code": code, "reason": reason, "message": f"fake {reason}"}).encode()
        self._answer(code, body, **headers)

    def _fail(self, fault: str) -> None:
        if fault == "reset":
            self.close_connection = True
        elif fault == "html":
            self._answer(200, b"<html><body>captive portal</body></html>", "text/html")
        elif fault == "garbage":
            self._answer(200, b'{"kind": "ThingList", "items": [{"metadata"')
        elif fault == "429":
            retry = self.server_api.retry_after
            self._status(429, "TooManyRequests", **({} if retry is None else {"Retry-After": retry}))
        else:
            self._status(int(fault), "InternalError")

    def _answer(self, code: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, watcher: Watcher) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        api = self.server_api
        for line in _lines(api, watcher):
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            except OSError:
                return
        with contextlib.suppress(OSError):
            self.wfile.write(b"0\r\n\r\n")


def _lines(api: FakeApi, watcher: Watcher) -> Iterator[bytes]:
    while True:
        with api.changed:
            while not watcher.lines or api.frozen:
                if not watcher.lines and watcher not in api.watchers:
                    return
                api.changed.wait()
            line = watcher.lines.popleft()
        if line is None:
            return
        yield line
