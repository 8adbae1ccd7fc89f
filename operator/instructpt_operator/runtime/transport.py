"""HTTP to an API server: JSON in and out, a budget of requests, a timeout on each, errors as one exception.

The pool, the certificates and the tokens are those of the ``kubernetes`` client; its generated models and its watch
helper are not used. Nothing here logs a header or a body.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import orjson
import urllib3
from kubernetes.client import ApiClient, Configuration
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError, NewConnectionError, TimeoutError
from urllib3.response import BaseHTTPResponse

from instructpt_operator.runtime.backoff import TokenBucket
from instructpt_operator.runtime.errors import MESSAGE_CHARS, ApiError, decode, refusal

CONNECT_SECONDS = 10.0
THROTTLE_RETRIES = 3  # of one call that the server answered with 429
THROTTLE_SECONDS = 10.0  # that one call waits for the server's Retry-After, all retries together
NOT_LEADER = "NotLeader"  # reason of a write that was not sent, because this process no longer leads

_READ_BYTES = 1 << 16


@contextlib.contextmanager
def _no_answer() -> Iterator[None]:
    """Turns what a socket and urllib3 raise into an ApiError of status 0."""
    try:
        yield
    except (OSError, HTTPError, http.client.HTTPException) as error:
        # urllib3 counts a refused connection among its timeouts.
        late = isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError)
        reason = "Timeout" if late else "Unreachable"
        raise ApiError(0, reason, f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]) from error


class WatchStream:
    """The events of one watch, as they come. ``close`` may be called from any thread and ends the iteration at once."""

    def __init__(self, response: BaseHTTPResponse) -> None:
        self._response = response
        self._buffer = b""
        self._lock = threading.Lock()
        self._closed = False
        self._reading = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """The next event, ``{"type": ..., "object": {...}}``.

        Raises:
            StopIteration: The server ended the watch, or ``close`` was called.
            ApiError: The connection broke, was silent for too long, or carried something else.
        """
        while b"\n" not in self._buffer:
            data = self._read()
            if not data:
                self._response.close()
                if not self._buffer or self._closed:
                    raise StopIteration
                data = b"\n"  # what is left is an event, or not even JSON
            self._buffer += data
        if self._closed:
            raise StopIteration
        line, self._buffer = self._buffer.split(b"\n", 1)
        event = decode(line)
        if not isinstance(event.get("type"), str) or not isinstance(event.get("object"), dict):
            raise ApiError(0, "BadBody", f"not an event of a watch: {line[:80]!r}")
        return event

    def _read(self) -> bytes:
        with self._lock:
            self._reading = not self._closed
        if not self._reading:
            return b""
        try:
            with _no_answer():
                return self._response.read1(_READ_BYTES)
        except (ApiError, ValueError, AttributeError):
            # After close() a read fails in as many ways as there are states to catch it in.
            if self._closed:
                return b""
            raise
        finally:
            with self._lock:
                self._reading = False
                closed = self._closed
            if closed or sys.exception() is not None:
                self._response.close()

    def close(self) -> None:
        """End the watch; a thread that waits for its next event is woken."""
        with self._lock:
            self._closed = True
            if self._reading:
                # Only this wakes the reader; to close the response would wait for the lock that the reader holds.
                with contextlib.suppress(OSError, ValueError, RuntimeError):
                    self._response.shutdown()
                return
        self._response.close()


class Transport:
    """Sends requests within a budget. Thread-safe.

    Args:
        configuration: Where the server is and how to be known there.
        qps: Requests per second, averaged.
        burst: Requests that may go at once.
        timeout_seconds: Of a call that does not say otherwise.
        user_agent: Who the server's log says we are.
        throttle_retries: How often a call is sent again that the server answers with 429.
        clock: Monotonic seconds.
        sleep: Waits for the budget and for Retry-After.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        qps: float,
        burst: int,
        timeout_seconds: float,
        user_agent: str,
        throttle_retries: int = THROTTLE_RETRIES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._configuration = configuration
        self._pool: urllib3.PoolManager = ApiClient(configuration).rest_client.pool_manager
        self._host = str(configuration.host).rstrip("/")
        self._timeout = timeout_seconds
        self._user_agent = user_agent
        self._throttle_retries = throttle_retries
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._bucket = TokenBucket(clock, qps, burst)
        self._calls: Counter[tuple[str, int]] = Counter()
        self.may_write: Callable[[], bool] | None = None

    @property
    def calls(self) -> Counter[tuple[str, int]]:
        """How many requests ended how, by verb and status; a copy."""
        with self._lock:
            return self._calls.copy()

    def send(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_seconds: float | None = None,
        throttle_retries: int | None = None,
    ) -> dict[str, Any]:
        """One call; asked again a few times where the server says 429, for as long as it says, within bounds.

        Raises:
            ApiError: It was refused, or there was no answer.
        """
        timeout = self._timeout if timeout_seconds is None else timeout_seconds
        data = None if body is None else orjson.dumps(body)
        patience = THROTTLE_SECONDS
        retries = self._throttle_retries if throttle_retries is None else throttle_retries
        for retry in range(retries + 1):
            try:
                return self._once(verb, method, path, query, data, content_type, timeout)
            except ApiError as error:
                wait = 1.0 if error.retry_after is None else error.retry_after
                if error.status != 429 or retry == retries or wait > patience:
                    raise
                patience -= wait
                self._sleep(wait)
        raise AssertionError("unreachable")

    def stream(self, path: str, *, query: Mapping[str, str], read_timeout_seconds: float) -> WatchStream:
        """Open a watch. The connection may be silent for ``read_timeout_seconds``.

        Raises:
            ApiError: It was refused, or there was no answer.
        """
        response = self._open("watch", "GET", path, query, None, "application/json", read_timeout_seconds)
        if response.status == 200:
            return WatchStream(response)
        raise self._read_refusal(response, self._timeout)

    def _once(
        self, verb: str, method: str, path: str, query: Mapping[str, str] | None, body: bytes | None,
        content_type: str, timeout: float,
    ) -> dict[str, Any]:  # fmt: skip
        response = self._open(verb, method, path, query, body, content_type, timeout)
        if not 200 <= response.status < 300:
            raise self._read_refusal(response, timeout)
        return decode(self._read_all(response, timeout))

    def _open(
        self, verb: str, method: str, path: str, query: Mapping[str, str] | None, body: bytes | None,
        content_type: str, read_timeout: float,
    ) -> BaseHTTPResponse:  # fmt: skip
        headers = self._headers()
        if body is not None:
            headers["Content-Type"] = content_type
        url = f"{self._host}{path}?{urlencode(query)}" if query else self._host + path
        timeout = urllib3.Timeout(connect=min(CONNECT_SECONDS, read_timeout), read=read_timeout)
        self._spend()
        # Asked here, because the budget and Retry-After may have held the call up for longer than a lease lasts.
        if method != "GET" and self.may_write is not None and not self.may_write():
            raise ApiError(0, NOT_LEADER, "not sent: this process may not write any more")
        status = 0
        try:
            with _no_answer():
                response = self._pool.request(
                    method, url, body=body, headers=headers, retries=False, preload_content=False, timeout=timeout
                )
            status = response.status
            return response
        except ApiError as error:
            if error.reason == "Timeout":
                # The idle connections may be as dead as this one; each would cost another timeout.
                self._pool.clear()
            raise
        finally:
            with self._lock:
                self._calls[(verb, status)] += 1

    def _spend(self) -> None:
        with self._lock:
            wait = self._bucket.reserve()
        if wait > 0:
            self._sleep(wait)

    def _headers(self) -> dict[str, str]:
        """Who we are; a token is read again by the ``kubernetes`` client when it is due."""
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        try:
            settings = self._configuration.auth_settings()
        except (OSError, ConfigException) as error:
            raise ApiError(0, "NoCredentials", f"{type(error).__name__}: {error}") from error
        for setting in settings.values():
            # A line end in a token would be an illegal header, and the complaint about it would quote the token.
            headers[setting["key"]] = " ".join(setting["value"].split())
        return headers

    def _read_refusal(self, response: BaseHTTPResponse, timeout: float) -> ApiError:
        try:
            body = self._read_all(response, timeout)
        except ApiError:
            body = b""  # the status says enough
        return refusal(response.status, body, response.headers.get("Retry-After"))

    def _read_all(self, response: BaseHTTPResponse, timeout: float) -> bytes:
        """The body. A timeout of a socket is of one read only, so that of the whole is watched here."""
        deadline = self._clock() + timeout
        parts = []
        try:
            with _no_answer():
                while part := response.read1(_READ_BYTES):
                    parts.append(part)
                    if self._clock() > deadline:
                        raise ApiError(0, "Timeout", f"the body took longer than {timeout:g} s")
        except ApiError:
            response.close()
            raise
        return b"".join(parts)
