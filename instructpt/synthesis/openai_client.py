"""A client of servers with OpenAI's HTTP interface: retries with back-off and jitter, and whose fault a failure is.

Transient failures are tried again for a bounded number of times, at the pace that ``Retry-After`` asks for. A request
that fails while others are answered fails alone; when none is answered, the server is gone. The API key is read for
each request, so that rotation works, and never stands in a log or message.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.synthesis.engine import RequestFailedError, require

MAX_WAIT_SECONDS = 60.0
# The server says: later. Anything else in the 500s may be this one request's fault.
_UNAVAILABLE = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """Where a server's key stands: the file that a variable names, a mounted file, else a variable.

    Attributes:
        variable: Variable with the key.
        mounted: File that is read when no other is named.
    """

    variable: str
    mounted: Path | None = None

    @property
    def file_variable(self) -> str:
        """Variable with the path of a file."""
        return f"{self.variable}_FILE"

    def read(self) -> str:
        """The key as it stands now; empty without one.

        Raises:
            ConfigError: The named file does not exist.
        """
        named = os.environ.get(self.file_variable)
        path = Path(named) if named else self.mounted
        if path is not None:
            try:
                return path.read_text().strip()
            except FileNotFoundError:
                if named:
                    raise ConfigError(
                        "there is no such file", field=self.file_variable, value=named, fix="correct the path"
                    ) from None
        return os.environ.get(self.variable, "").strip()


class _AgainError(Exception):
    """A transient failure.

    Args:
        message: What happened.
        available: Whether the server is there at all, so that the fault may lie with the request.
        retry_after: Seconds that the server asked to wait.
    """

    def __init__(self, message: str, *, available: bool, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.available = available
        self.retry_after = retry_after


class OpenAIClient:
    """A client of one server.

    Args:
        endpoint: Base URL, ending in ``/v1``.
        field: Of the spec, that gives the endpoint.
        model_field: Of the spec, that gives the name of the served model.
        key: Where its key stands.
        connections: Kept open between requests.
        timeout_seconds: For one attempt.
        max_attempts: Attempts for one request.
        backoff_seconds: First wait between attempts; doubles.
        needed_by: Who needs the HTTP library, for the message where it is missing.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        field: str,
        model_field: str,
        key: ApiKey,
        connections: int,
        timeout_seconds: float = 600.0,
        max_attempts: int = 8,
        backoff_seconds: float = 0.5,
        needed_by: str = "engine openai",
    ) -> None:
        self._httpx = require("httpx", needed_by=needed_by)
        self.endpoint = endpoint.rstrip("/")
        self._field = field
        self._model_field = model_field
        self._key = key
        self._connections = connections
        self._timeout = timeout_seconds
        self._max_attempts = max_attempts
        self._backoff = wait_random_exponential(multiplier=backoff_seconds, max=MAX_WAIT_SECONDS)
        self._client: Any = None
        self.answers = 0
        """Answers so far, refusals included: a server that says no is there."""

    def open(self) -> None:
        """Get ready for requests."""
        limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=self._connections)
        self._client = self._httpx.AsyncClient(timeout=self._timeout, limits=limits)

    async def close(self) -> None:
        """Close the connections; closing twice is harmless."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[Any, int]:
        """The server's answer, and how many attempts it took.

        Raises:
            RequestFailedError: The server refuses this request, or failed on it each time.
            EnvironmentNotReadyError: The server cannot be reached, or is overloaded for too long.
            ConfigError: The key, the model or the endpoint is wrong.
        """
        attempts, before, latest = 0, self.answers, self.answers
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._max_attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_AgainError),
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    attempts += 1
                    try:
                        answer = await self._once(method, path, body, attempts)
                    except _AgainError:
                        before, latest = latest, self.answers
                        raise
        except _AgainError as error:
            message = f"{self.endpoint}{path}: {error}, after {attempts} attempts"
            # Others were answered since it failed the last time but one: the server is there.
            if error.available or self.answers > before:
                raise RequestFailedError(message, attempts=attempts) from error
            raise EnvironmentNotReadyError(message, fix="start the server, then run again", retryable=True) from error
        return answer, attempts

    def _wait(self, state: RetryCallState) -> float:
        """Back-off with jitter, but at least what the server asked for."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, _AgainError) else 0.0
        return asked + self._backoff(state)

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None, attempts: int) -> Any:
        key = self._key.read()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = await self._client.request(method, self.endpoint + path, json=body, headers=headers)
        except self._httpx.TransportError as error:
            raise _AgainError(f"{type(error).__name__} {error}".strip(), available=False) from error
        except self._httpx.InvalidURL as error:
            raise self._wrong(str(error), "give a URL that ends in /v1") from error
        status = int(answer.status_code)
        if status < 500 and status != 429:
            self.answers += 1
        if status >= 500 or status == 429:
            raise _AgainError(
                f"status {status}", available=status not in _UNAVAILABLE, retry_after=_retry_after(answer.headers)
            )
        if status in (401, 403):
            variable, file = self._key.variable, self._key.file_variable
            raise self._wrong(
                f"the server refuses the API key (status {status})",
                f"set {variable}, or {file} to a file that holds the key",
            )
        if status == 404:
            raise self._wrong(
                f"the server does not know {path} or the model {(body or {}).get('model', '')!r} (status 404)",
                f"give the base URL that ends in /v1, and the name that the server serves in {self._model_field}",
            )
        if status >= 300:
            raise RequestFailedError(f"{self.endpoint}{path}: status {status}: {answer.text[:200]}", attempts=attempts)
        try:
            return answer.json()
        except ValueError as error:
            raise _AgainError("an answer that is no JSON", available=True) from error

    def _wrong(self, message: str, fix: str) -> ConfigError:
        return ConfigError(message, field=self._field, value=self.endpoint, fix=fix)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header, which may also be a date; bounded."""
    given = headers.get("retry-after", "0")
    try:
        seconds = float(given)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(given)
            seconds = (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS)
