"""The worker's small HTTP server: ``/progress`` and ``/metrics``, nothing else."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from instructpt.telemetry.metrics import registry_for
from instructpt.telemetry.progress import Progress


@contextmanager
def serve(progress: Progress, verb: str, *, host: str, port: int) -> Iterator[int]:
    """Serve while the block runs; yields the port that is listened on.

    Args:
        progress: Figures to serve.
        verb: The worker's verb.
        host: Address to bind; loopback on a laptop.
        port: 0 picks a free one.
    """
    registry = registry_for(progress, verb)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/progress":
                self._answer("application/json", json.dumps(progress.snapshot()).encode())
            elif self.path == "/metrics":
                self._answer(CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self.send_error(404)

        def _answer(self, content_type: str, body: bytes) -> None:
            # Who asked may have lost patience while this worker was busy: no reason for a traceback in its log.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a log line."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="telemetry", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
