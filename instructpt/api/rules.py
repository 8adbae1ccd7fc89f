"""A rule that holds in Python and on the API server, in one set of words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """A cross-field rule, written once for pydantic and once for the API server, with one message.

    Attributes:
        message: What the user reads, locally and from kubectl; names the field and the fix.
        cel: The expression of the CRD; ``self`` is the object that carries the rule.
        holds: The same in Python. ``None`` for rules on transitions (``oldSelf``), which only a server can check, and
            for what a plan refuses in words of its own (``instructpt.api.checks``).
    """

    message: str
    cel: str
    holds: Callable[[Any], bool] | None = None
