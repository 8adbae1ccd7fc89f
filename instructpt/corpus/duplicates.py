"""Which documents are duplicates of others, from columns of hashes on disk, in bounded memory.

The first document of a group stays, by its place in the corpus; so the outcome is a function of the documents alone,
whoever hashed them and in whatever order. Memory: 4 bytes a document for groups of near-duplicates, and one pass over
a column, which is cut by the value of the hash (a partition of a hash join) until it fits ``pass_bytes``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PASS_BYTES = 128 << 20
_CHUNK = 1 << 20
# Hash, place, and what sorting them takes.
_BYTES_EACH = 48


def equal_pairs(column: Path, taken: Any, *, pass_bytes: int = PASS_BYTES) -> Iterator[tuple[Any, Any]]:
    """Places of documents with an equal hash: each with the first of its group.

    Args:
        column: File of one ``<u8`` hash a document, in order.
        taken: A mask: which documents are compared.
        pass_bytes: Memory for one pass.

    Yields:
        Two arrays: places, and the places of their firsts.
    """
    passes = max(1, -(-int(np.count_nonzero(taken)) * _BYTES_EACH // pass_bytes))
    for number in range(passes):
        hashes, places = _load(column, taken, number, passes)
        order = np.argsort(hashes, kind="stable")  # equal ones stay in the order of their places
        hashes, places = hashes[order], places[order]
        begins = np.ones(len(hashes), dtype=bool)
        begins[1:] = hashes[1:] != hashes[:-1]
        firsts = places[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(places) else places
        yield places[~begins], firsts[~begins]


def _load(column: Path, taken: Any, number: int, passes: int) -> tuple[Any, Any]:
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    with column.open("rb") as file:
        for start in range(0, len(taken), _CHUNK):
            block = np.fromfile(file, dtype="<u8", count=_CHUNK)
            # The lowest bits of a hash decide its pass; those of equal hashes are equal.
            mine = np.flatnonzero(taken[start : start + _CHUNK] & (block % np.uint64(passes) == number))
            hashes.append(block[mine])
            places.append(mine + start)
    return np.concatenate(hashes), np.concatenate(places)


class Groups:
    """Documents joined into groups, each named by its first (union-find over arrays).

    Args:
        count: Documents.
    """

    def __init__(self, count: int) -> None:
        # 4 bytes a document up to 4 * 10^9 of them.
        self._before = np.arange(count, dtype=np.uint32 if count < 2**32 else np.uint64)

    def join(self, ones: Any, others: Any) -> None:
        """Put each of ``ones`` into the group of the one of ``others`` at the same index."""
        while True:
            left, right = self._firsts(ones), self._firsts(others)
            apart = left != right
            if not apart.any():
                return
            high, low = np.maximum(left, right)[apart], np.minimum(left, right)[apart]
            self._before[high] = low  # of several for one place the last wins; the others are joined next time

    def followers(self) -> Any:
        """A mask: which documents are not the first of their group."""
        return self._before != np.arange(len(self._before), dtype=self._before.dtype)

    def _firsts(self, places: Any) -> Any:
        found = self._before[places]
        while True:
            further = self._before[found]
            if np.array_equal(further, found):
                return found
            self._before[places] = further
            found = further
