"""What a pod may answer when it is asked how far it is."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time

import pytest
from podmaker import FIGURES

from instructpt_operator.progress import ANSWER_SECONDS, checked, fetch_progress


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (json.dumps(FIGURES), True),
        (json.dumps({**FIGURES, "extra": 1}), True),
        ("{", False),
        ("[]", False),
        (json.dumps({**FIGURES, "done": -1}), False),
        (json.dumps({**FIGURES, "gauges": {"loss": "x"}}), False),
        (json.dumps({**FIGURES, "note": "x" * 70_000}), False),
        (json.dumps({**FIGURES, "per_second": -1}), False),
        (json.dumps({**FIGURES, "counts": {f"c{n}": n for n in range(65)}}), False),
    ],
)
def test_an_answer_of_a_pod_is_checked(body: str, good: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        found = fetch_progress("127.0.0.1", port=server.server_address[1])
        thread.join(5)
    assert (found == FIGURES) if good else (found is None)


def test_notes_are_bounded_and_what_is_none_is_left_out() -> None:
    figures = {"done": 1, "total": 2, "unit": "steps", "counts": {}, "rates": {}, "gauges": {}}
    notes = {"long": "x" * 1000, "number": 7, "n" * 100: "x", **{f"n{i}": "x" for i in range(9)}}
    found = checked({**figures, "notes": notes})
    assert found is not None
    assert {n: len(text) for n, text in found["notes"].items()} == {"long": 400, "n0": 1, "n1": 1, "n2": 1}
    for nothing in ({}, None, "x", [1]):
        told = checked({**figures, "notes": nothing})
        assert told is not None
        assert told["notes"] == {}


def test_a_pod_that_does_not_answer_is_no_error() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    assert fetch_progress("127.0.0.1", port=port) is None


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["headers", "body"])
def test_a_pod_that_drips_is_cut_off(start: bytes) -> None:
    """A byte now and then keeps the timeout of a socket from ever being over."""
    done = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(start)
            while not done.wait(0.2):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,), daemon=True)
        thread.start()
        began = time.monotonic()
        assert fetch_progress("127.0.0.1", port=server.getsockname()[1]) is None
        took = time.monotonic() - began
        done.set()
        thread.join(5)
    assert took < 5 * ANSWER_SECONDS  # it would go on for ever
