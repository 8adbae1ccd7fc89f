"""Orders that are functions of a key alone, equal on every machine and in every version of numpy."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def permutation(key: str, size: int) -> NDArray[np.int64]:
    """A permutation of ``range(size)`` drawn by ``key``.

    Only the raw stream of PCG64 is used: numpy guarantees that it never changes, unlike what its Generator makes of it.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
    raw = np.random.PCG64(seed).random_raw(size) if size else np.zeros(0, dtype=np.uint64)
    order = np.argsort(raw)  # many times as fast as a stable sort, and the same where no two values are equal
    ordered = raw[order]
    if bool((ordered[1:] == ordered[:-1]).any()):
        order = np.argsort(raw, kind="stable")
    return order.astype(np.int64, copy=False)
