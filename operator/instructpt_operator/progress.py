"""Asks a pod how far it is. It is not trusted to be one of ours: what it sends is bounded in size, time and shape."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from instructpt.cluster.context import METRICS_PORT

ANSWER_SECONDS = 2.0
_MAX_BYTES = 64 * 1024
_MAX_NAMES = 64
_MAX_NOTES, _MAX_NAME, _MAX_NOTE = 4, 63, 400

Fetch = Callable[[str], Mapping[str, Any] | None]
"""Address of a pod -> its ``/progress``, or ``None``."""


def fetch_progress(address: str, *, port: int = METRICS_PORT) -> Mapping[str, Any] | None:
    """``/progress`` of one pod, or ``None`` where it does not answer well, soon and briefly."""
    connection = http.client.HTTPConnection(address, port, timeout=ANSWER_SECONDS)
    cut: threading.Timer | None = None
    try:
        connection.connect()
        # A timeout of the socket begins anew with every byte; this one does not.
        cut = threading.Timer(ANSWER_SECONDS, _shut, (connection.sock,))
        cut.start()
        connection.request("GET", "/progress")
        answer = connection.getresponse()
        body = answer.read(_MAX_BYTES + 1)
        return checked(orjson.loads(body)) if answer.status == 200 and len(body) <= _MAX_BYTES else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        if cut is not None:
            cut.cancel()
        connection.close()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def checked(found: Any) -> Mapping[str, Any] | None:
    """Only an answer of the shape that is merged."""
    if not isinstance(found, dict) or not isinstance(found.get("unit"), str) or len(found["unit"]) > 63:
        return None
    if not all(isinstance(found.get(n), int) and found[n] >= 0 for n in ("done", "total")):
        return None
    speed = found.get("per_second", 0.0)
    if not isinstance(speed, int | float) or speed < 0:
        return None
    for part in ("counts", "rates", "gauges"):
        figures = found.get(part)
        if not isinstance(figures, dict) or len(figures) > _MAX_NAMES:
            return None
        if not all(isinstance(value, int | float) for value in figures.values()):
            return None
    out = {n: found[n] for n in ("done", "total", "unit", "counts", "rates", "gauges")} | {"per_second": speed}
    return {**out, "notes": _notes(found.get("notes"))}


def _notes(found: Any) -> dict[str, str]:
    """What can be shown of them: they go into a condition's message."""
    if not isinstance(found, dict):
        return {}
    told = [(n, t) for n, t in found.items() if isinstance(t, str) and len(n) <= _MAX_NAME]
    return {name: text[:_MAX_NOTE] for name, text in told[:_MAX_NOTES]}
