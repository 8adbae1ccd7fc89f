"""What kubelet and Prometheus ask of a process (R20): does it make progress, is it ready, what are its figures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Check = Callable[[], str | None]
"""Returns what is wrong, or ``None``."""


class Health:
    """The checks of a process. Where nothing is checked, nothing is known, and that is not healthy. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}

    def watch_age(self, name: str, age: Callable[[], float], limit_seconds: float) -> None:
        """Alive means that ``age()``, the seconds since the last progress, stays within a limit."""

        def check() -> str | None:
            seconds = age()
            return None if seconds <= limit_seconds else f"no progress for {seconds:.0f} s (limit {limit_seconds:g} s)"

        self._add(self._live, name, check)

    def watch_thread(self, name: str, alive: Callable[[], bool]) -> None:
        """Alive means that a thread, or each of several, is."""
        self._add(self._live, name, lambda: None if alive() else "a thread has ended")

    def watch_ready(self, name: str, ready: Callable[[], bool]) -> None:
        """Ready means that ``ready()``, for one that a cache is synced."""
        self._add(self._ready, name, lambda: None if ready() else "not ready")

    def liveness(self) -> list[str]:
        """What keeps the process from being alive, by name; empty if nothing does."""
        return self._failures(self._live)

    def readiness(self) -> list[str]:
        """What keeps the process from being ready, by name; empty if nothing does."""
        return self._failures(self._ready)

    def _add(self, checks: dict[str, Check], name: str, check: Check) -> None:
        with self._lock:
            if name in checks:
                raise ValueError(f"a check named {name!r} exists")
            checks[name] = check

    def _failures(self, checks: dict[str, Check]) -> list[str]:
        with self._lock:
            items = list(checks.items())
        if not items:
            return ["nothing is checked yet"]
        return [f"{name}: {wrong}" for name, check in items if (wrong := _ask(check)) is not None]


def _ask(check: Check) -> str | None:
    try:
        return check()
    except Exception as error:
        log.warning("a health check failed to run", exc_info=True)
        return f"the check raised {type(error).__name__}"


class HealthServer:
    """Serves ``/healthz``, ``/readyz`` and ``/metrics`` in threads of its own.

    Args:
        health: The checks.
        metrics: The body of ``/metrics``.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
    """

    def __init__(
        self, health: Health, metrics: Callable[[], bytes], *, host: str = "0.0.0.0", port: int = 8080
    ) -> None:
        self._server = _server_class(host)((host, port), _handler_class(health, metrics))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


class _Server6(_Server):
    address_family = AF_INET6


def _server_class(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


def _handler_class(health: Health, metrics: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # an answer is two writes
        timeout = REQUEST_SECONDS  # a client that says nothing holds no thread

        def do_GET(self) -> None:  # noqa: N802 - the name is the base class's
            path = self.path.split("?", 1)[0]
            if path == "/healthz":
                self._verdict(health.liveness())
            elif path == "/readyz":
                self._verdict(health.readiness())
            elif path == "/metrics":
                self._metrics()
            else:
                self._answer(404, b"not found\n")

        def _verdict(self, failures: list[str]) -> None:
            self._answer(503 if failures else 200, "".join(f"{line}\n" for line in failures or ["ok"]).encode())

        def _metrics(self) -> None:
            try:
                body = metrics()
            except Exception:
                log.warning("metrics failed", exc_info=True)
                self._answer(500, b"metrics failed\n")
            else:
                self._answer(200, body, METRICS_TYPE)

        def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            log.debug(format, *args)

    return Handler
