"""Asks whether a namespace is being deleted: only where something hints at it, and seldom."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from instructpt_operator.runtime.client import ApiError, KubeClient, ResourceType

NAMESPACES = ResourceType(api_version="v1", kind="Namespace", plural="namespaces", namespaced=False)
ANSWER_HOLDS_SECONDS = 30.0

logger = logging.getLogger(__name__)


class NamespaceEnds:
    """Remembers the answers for a while. Thread-safe.

    Args:
        client: Reads namespaces.
        clock: Monotonic seconds.
    """

    def __init__(self, client: KubeClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[float, bool]] = {}

    def ends(self, name: str) -> bool:
        """Whether that namespace is on its way out; False where that cannot be known."""
        with self._lock:
            at, known = self._answers.get(name, (float("-inf"), False))
        if self._clock() - at < ANSWER_HOLDS_SECONDS:
            return known
        try:
            found = self._client.get(NAMESPACES, None, name)["metadata"].get("deletionTimestamp") is not None
        except ApiError as error:
            logger.warning("a namespace cannot be read", extra={"namespace": name, "error": str(error)})
            found = False
        with self._lock:
            self._answers[name] = (self._clock(), found)
        return found
