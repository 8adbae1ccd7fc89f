"""Merge patches that turn one JSON object into another, and guards that they meet the one they are meant for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from instructpt_operator.runtime.errors import ApiError


def plain(value: Any) -> Any:
    """JSON as it comes back from a server: nothing that is null, and no NaN, which JSON cannot hold."""
    if isinstance(value, Mapping):
        items = {str(name): plain(item) for name, item in value.items()}
        return {name: item for name, item in items.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch that makes ``new`` of ``old``: null for what vanished, lists as a whole. ``new`` is plain."""
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = difference(before, value)
            if inner:
                patch[name] = inner
        elif name not in old or value != before:
            patch[name] = value
    return patch


def guarded(body: Mapping[str, Any], **guards: str) -> dict[str, Any]:
    """The body of a patch that the API server refuses where the object is another one: see :func:`is_another`."""
    set_ = {name: value for name, value in guards.items() if value}
    return {**body, "metadata": {**body.get("metadata", {}), **set_}}


def is_another(error: ApiError) -> bool:
    """Whether a guarded patch met another object, or another version of it. A uid is "immutable" to the API server."""
    return error.status == 409 or (error.status == 422 and "metadata.uid: Invalid value" in error.message)
