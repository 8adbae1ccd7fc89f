"""What an API server's refusal, its silence or its nonsense looks like to a caller."""

from __future__ import annotations

import http.client
from typing import Any

import orjson

MESSAGE_CHARS = 500
_REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired",
            422: "Invalid", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable",
            504: "Timeout"}  # fmt: skip


class ApiError(Exception):
    """The API server refused, or did not answer.

    Attributes:
        status: HTTP status; 0 where there was no usable answer: refused, reset, timed out, or not JSON. A write may
            have happened then.
        reason: As Kubernetes says it: ``AlreadyExists``, ``Conflict``, ``Expired`` ... With status 0: ``Unreachable``,
            ``Timeout``, ``BadBody`` or ``NoCredentials``.
        message: What the server said, cut to a few hundred characters.
        retry_after: Seconds that the server asked to wait, if it did.
    """

    def __init__(self, status: int, reason: str, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


def decode(body: bytes) -> dict[str, Any]:
    """An object from its JSON.

    Raises:
        ApiError: It is no JSON object; reason ``BadBody``.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(0, "BadBody", f"the answer is not JSON: {body[:80]!r}") from error
    if not isinstance(value, dict):
        raise ApiError(0, "BadBody", f"the answer is a {type(value).__name__}, not an object")
    return value


def refusal(status: int, body: bytes, retry_after: str | None) -> ApiError:
    """The error that an answer stands for.

    Args:
        status: HTTP status.
        body: A ``Status`` as JSON, or whatever stood between the server and us.
        retry_after: The header.
    """
    reason, message = _REASONS.get(status, http.client.responses.get(status, "Unknown").replace(" ", "")), ""
    try:
        said = decode(body)
        reason, message = str(said.get("reason") or reason), str(said.get("message") or "")
    except ApiError:
        message = body.decode("utf-8", "replace")
    # It may be a date, which no API server sends.
    wait = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
    return ApiError(status, reason, shortened(message), wait)


def shortened(message: str) -> str:
    """Its two ends: a refusal repeats the whole object first and says at last what is wrong with it."""
    if len(message) <= MESSAGE_CHARS:
        return message
    half = MESSAGE_CHARS // 2
    return f"{message[:half]} ... {message[-half:]}"
