"""Names of children, steps and places: the only home of such strings."""

from __future__ import annotations

import hashlib

from instructpt.api.base import StorageSpec

OBJECT_NAME_LIMIT = 40


def child_name(owner: str, step: str, *, limit: int = OBJECT_NAME_LIMIT) -> str:
    """``<owner>-<step>``, shortened to ``limit`` with 8 hex digits of the full name's sha256 where it is longer."""
    full = f"{owner}-{step}"
    if len(full) <= limit:
        return full
    digest = hashlib.sha256(full.encode()).hexdigest()[:8]
    return f"{full[: limit - 9].rstrip('-')}-{digest}"


def below(storage: StorageSpec, *parts: str) -> StorageSpec:
    """The same storage, further down."""
    return storage.model_copy(update={"uri": "/".join([storage.uri.rstrip("/"), *parts])})


def arm_step(arm: str, seed: int, *, seeds: int) -> str:
    """Step of one arm's training: ``train-instruct``, with ``-s<seed>`` where there are several seeds."""
    return f"train-{arm}" if seeds == 1 else f"train-{arm}-s{seed}"
