"""Ids of documents must be unique: a check in bounded memory over hashes that inspection leaves per object.

Two documents with one id would make every later count ambiguous, so the corpus is refused rather than renamed.
Ids are compared by 64 bits of a hash: among 10^8 documents two different ids collide with probability 3 in 10,000.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from instructpt.storage.piped import Readable

RECORD = np.dtype([("hash", "<u8"), ("ordinal", "<u8")])
PASS_BYTES = 128 << 20
_CHUNK = RECORD.itemsize * 65_536


class IdWriter:
    """Writes (hash of the id, ordinal of the record in its unit) of every document into a local file."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._pending: list[tuple[int, int]] = []
        self.count = 0

    def __enter__(self) -> IdWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, id_: str, ordinal: int) -> None:
        """One document's id."""
        digest = hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._pending.append((int.from_bytes(digest, "little"), ordinal))
        self.count += 1
        if len(self._pending) >= 65_536:
            self._flush()

    def close(self) -> None:
        """Write the rest and end the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write(np.array(self._pending, dtype=RECORD).tobytes())
        self._pending = []


Place = tuple[int, int]
"""Number of the unit, and ordinal of the record in it."""


def duplicates(units: list[tuple[int, Any]], *, pass_bytes: int = PASS_BYTES) -> tuple[int, list[list[Place]]]:
    """Documents whose id another document before them has.

    Args:
        units: Number of ids and a function that opens the file of :class:`IdWriter`, for each unit in order.
        pass_bytes: Memory for one pass; the files are read once per pass.

    Returns:
        How many documents there are too many, and the places (unit, ordinal) of the first three ids that clash.
    """
    passes = max(1, -(-sum(count for count, _ in units) * 2 * RECORD.itemsize // pass_bytes))
    extra, examples = 0, []
    for number in range(passes):
        hashes, places = _load(units, number, passes)
        order = np.lexsort((places["ordinal"], places["unit"], hashes))
        hashes, places = hashes[order], places[order]
        again = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
        extra += len(again)
        for index in again[:3]:
            pair = [places[index - 1], places[index]]
            examples.append([(int(place["unit"]), int(place["ordinal"])) for place in pair])
    return extra, sorted(examples)[:3]


def _load(units: list[tuple[int, Any]], number: int, passes: int) -> tuple[Any, Any]:
    hashes, places = [np.empty(0, "<u8")], [np.empty(0, [("unit", "<u4"), ("ordinal", "<u8")])]
    for unit, (_, opener) in enumerate(units):
        with opener() as stream:
            for block in _blocks(stream):
                mine = block[block["hash"] % passes == number]
                place = np.empty(len(mine), places[0].dtype)
                place["unit"], place["ordinal"] = unit, mine["ordinal"]
                hashes.append(mine["hash"].copy())
                places.append(place)
    return np.concatenate(hashes), np.concatenate(places)


def _blocks(stream: Readable) -> Iterator[Any]:
    rest = b""
    while data := stream.read(_CHUNK):
        data = rest + data
        usable = len(data) - len(data) % RECORD.itemsize
        rest = data[usable:]
        yield np.frombuffer(data[:usable], dtype=RECORD)
