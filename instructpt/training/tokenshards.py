r"""Token shards: packed rows of one micro-shard in one memory-mapped file.

Layout, little-endian, every array aligned to 64 bytes::

    b"IPTTOKS1"  uint64 header bytes  header (JSON)  arrays in the order of the header

===================  ======  ==================================================================================
array                type    content
===================  ======  ==================================================================================
tokens               u2, u4  shape (tokens,): rows one after the other, without padding
row_tokens           i8      shape (rows + 1,): row r holds ``tokens[row_tokens[r]:row_tokens[r + 1]]``
row_segments         i8      shape (rows + 1,): row r holds segments ``row_segments[r]:row_segments[r + 1]``
segment_tokens       i8      shape (segments + 1,): first token of each segment; attention never leaves a segment
segment_documents    u4      shape (segments,): documents that begin in the segment; 0 where it continues a cut one
segment_items        u4      shape (segments,): place of the item in the micro-shard; absent in older shards
row_loss             u4      shape (rows,): tokens of the row that are targets
loss_bits            u1      shape (ceil(tokens / 8),): bit set where a token is a target; absent when all are
===================  ======  ==================================================================================

The first token of a segment is never a target: nothing in its segment stands before it. Equal
content gives equal bytes.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructpt.errors import ConfigError, CorpusError
from instructpt.training.packing import Packing, pack

MAGIC = b"IPTTOKS1"
ALIGN = 64
EXTENSION = "tokens"
_NAMES = (
    "tokens", "row_tokens", "row_segments", "segment_tokens", "segment_documents", "segment_items", "row_loss",
    "loss_bits",
)  # fmt: skip
_TYPES = {"row_tokens": "<i8", "row_segments": "<i8", "segment_tokens": "<i8", "segment_documents": "<u4"}
_TYPES |= {"segment_items": "<u4", "row_loss": "<u4", "loss_bits": "|u1"}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One text, tokenized: the unit that packing keeps whole.

    Attributes:
        tokens: Shape (tokens,), at least one.
        targets: Shape (tokens,): whether the loss is taken on a token; None takes it on all.
        documents: Documents in it: M for a chain.
        inner: Tokens at which the second and later documents begin, ascending, as far as they are known. An item longer
            than a row is cut there.
    """

    tokens: Array
    targets: NDArray[np.bool_] | None
    documents: int
    inner: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One packed row.

    Attributes:
        tokens: Shape (tokens,).
        segments: Shape (segments + 1,): where segments begin in the row, and its length.
        targets: Shape (tokens,): whether the loss is taken on a token; False on the first of a segment.
    """

    tokens: Array
    segments: NDArray[np.int64]
    targets: NDArray[np.bool_]

    def head(self, tokens: int) -> Row:
        """Its first tokens."""
        if tokens >= len(self.tokens):
            return self
        inside = self.segments[self.segments < tokens]
        return Row(tokens=self.tokens[:tokens], segments=np.append(inside, tokens), targets=self.targets[:tokens])


def token_type(vocab_size: int) -> str:
    """The smaller of uint16 and uint32 that holds every id.

    Raises:
        ConfigError: Neither does.
    """
    if vocab_size > 1 << 32:
        raise ConfigError(
            "token shards hold ids of at most 32 bits",
            field="tokenizer",
            value=f"{vocab_size} entries",
            fix="take a tokenizer with fewer",
        )
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def pack_items(
    items: Sequence[Item], sequence_length: int, *, dtype: str, seed: str
) -> tuple[dict[str, Array], dict[str, int]]:
    """Arrays of a shard, and what was cut.

    Returns:
        The arrays; and ``cut_items``, items longer than a row, and ``cut_documents``, documents that are longer than a
        row on their own, or whose place in their item is not known: no other document is cut.

    Raises:
        ConfigError: An id does not fit into ``dtype``.
        AssertionError: A token was lost or came twice; cannot happen, and is checked on every shard.
    """
    lengths = np.fromiter((len(item.tokens) for item in items), dtype=np.int64, count=len(items))
    inner = {i: item.inner for i, item in enumerate(items) if item.inner}
    packing = pack(lengths, sequence_length, seed=seed, inner=inner)
    segment_tokens = np.concatenate(([0], np.cumsum(packing.lengths))).astype("<i8")
    arrays: dict[str, Array] = {
        "tokens": _tokens(items, packing, dtype),
        "row_segments": packing.row_pieces.astype("<i8"),
        "row_tokens": segment_tokens[packing.row_pieces],
        "segment_tokens": segment_tokens,
        "segment_documents": _documents(items, packing),
        "segment_items": packing.items.astype("<u4"),
    }
    assert len(arrays["tokens"]) == int(lengths.sum()), "packing lost or doubled tokens"
    targets = _targets(items, packing, segment_tokens)
    if any(item.targets is not None for item in items):
        arrays["loss_bits"] = np.packbits(targets, bitorder="little")
    running = np.concatenate(([0], np.cumsum(targets)))
    arrays["row_loss"] = np.diff(running[arrays["row_tokens"]]).astype("<u4")
    long = np.flatnonzero(lengths > sequence_length).tolist()
    cut = sum(_longer(int(lengths[i]), items[i].inner, sequence_length) for i in long)
    return arrays, {"cut_items": packing.cut_items, "cut_documents": cut}


def _longer(length: int, inner: Sequence[int], row_length: int) -> int:
    """How many of an item's documents are longer than a row."""
    return int(np.count_nonzero(np.diff([0, *inner, length]) > row_length))


def _tokens(items: Sequence[Item], packing: Packing, dtype: str) -> Array:
    """The tokens of all pieces, one after the other."""
    if not items:
        return np.zeros(0, dtype=dtype)
    whole = [items[i].tokens for i in packing.items.tolist()]
    if packing.cut_items:
        starts = packing.starts.tolist()
        ends = (packing.starts + packing.lengths).tolist()
        whole = [tokens[a:b] for tokens, a, b in zip(whole, starts, ends, strict=True)]
    tokens = np.concatenate(whole)
    if tokens.dtype.itemsize > np.dtype(dtype).itemsize and int(tokens.max()) > np.iinfo(dtype).max:
        raise ConfigError(
            f"id {int(tokens.max())} does not fit into {np.dtype(dtype).name}, the type of ids in this shard",
            field="tokenizer",
            fix="pack again: the type follows from the tokenizer's largest id",
        )
    narrow: Array = tokens.astype(dtype, copy=False)
    return narrow


def _documents(items: Sequence[Item], packing: Packing) -> Array:
    """How many documents begin in each piece. What is not known to begin elsewhere begins with its item."""
    counts = np.fromiter((item.documents for item in items), dtype=np.int64, count=len(items))
    found = np.where(packing.starts == 0, counts[packing.items] if len(items) else 0, 0)
    for piece in np.flatnonzero(packing.starts).tolist() if packing.cut_items else ():
        inner = items[int(packing.items[piece])].inner
        begin = int(packing.starts[piece])
        end = begin + int(packing.lengths[piece])
        found[piece] = bisect_left(inner, end) - bisect_left(inner, begin)
    moved = np.bincount(packing.items, weights=np.where(packing.starts == 0, 0, found), minlength=len(items))
    counted: Array = (found - np.where(packing.starts == 0, moved[packing.items], 0)).astype("<u4")
    return counted


def _targets(items: Sequence[Item], packing: Packing, segment_tokens: Array) -> NDArray[np.bool_]:
    """Whether the loss is taken on each token; never on the first of a piece."""
    targets = np.ones(int(segment_tokens[-1]), dtype=bool)
    if any(item.targets is not None for item in items):
        ends = packing.starts + packing.lengths
        pieces = zip(packing.items.tolist(), packing.starts.tolist(), ends.tolist(), strict=True)
        for (i, a, b), at in zip(pieces, segment_tokens[:-1].tolist(), strict=True):
            mask = items[i].targets
            if mask is not None:
                targets[at : at + b - a] = mask[a:b]
    targets[segment_tokens[:-1]] = False
    return targets


def counts_of(arrays: dict[str, Array], sequence_length: int) -> dict[str, int]:
    """Rows, tokens, loss tokens, documents and the room that stayed empty."""
    rows = len(arrays["row_loss"])
    tokens = len(arrays["tokens"])
    return {
        "rows": rows,
        "tokens": tokens,
        "loss_tokens": int(arrays["row_loss"].sum(dtype=np.int64)),
        "documents": int(arrays["segment_documents"].sum(dtype=np.int64)),
        "padding": rows * sequence_length - tokens,
    }


def write_shard(path: Path, arrays: dict[str, Array], *, sequence_length: int) -> None:
    """Write the arrays to one file."""
    present = [(name, np.ascontiguousarray(arrays[name])) for name in _NAMES if name in arrays]
    entries, at = [], 0
    for name, array in present:
        entries.append({"name": name, "dtype": array.dtype.str, "size": len(array), "offset": at})
        at += _aligned(array.nbytes)
    header = json.dumps({"sequence_length": sequence_length, "arrays": entries}, sort_keys=True).encode()
    header += b" " * (_aligned(len(MAGIC) + 8 + len(header)) - len(MAGIC) - 8 - len(header))
    with path.open("wb") as stream:
        stream.write(MAGIC + len(header).to_bytes(8, "little") + header)
        for _, array in present:
            stream.write(array.data)
            stream.write(b"\0" * (_aligned(array.nbytes) - array.nbytes))


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


class TokenShard:
    """A shard, memory-mapped: opening reads the header alone.

    Raises:
        CorpusError: The file is no token shard, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        try:
            mapped: Array = np.memmap(path, dtype=np.uint8, mode="r")
            if mapped[: len(MAGIC)].tobytes() != MAGIC:
                raise ValueError("it does not begin as one")
            size = int.from_bytes(mapped[len(MAGIC) : len(MAGIC) + 8].tobytes(), "little")
            begin = len(MAGIC) + 8 + size
            header = json.loads(mapped[len(MAGIC) + 8 : begin].tobytes())
            self._arrays = {e["name"]: _view(mapped, begin + e["offset"], e) for e in header["arrays"]}
            self.sequence_length = int(header["sequence_length"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "remove it, to have it fetched again"
            raise CorpusError(f"{path} is no token shard: {error}", fix=fix) from error

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self._arrays["row_loss"])

    @property
    def row_sizes(self) -> NDArray[np.int64]:
        """Shape (rows,): tokens of each row."""
        return np.diff(self._arrays["row_tokens"])

    @property
    def row_loss(self) -> NDArray[np.int64]:
        """Shape (rows,): targets of each row."""
        return self._arrays["row_loss"].astype(np.int64)

    @property
    def row_documents(self) -> NDArray[np.int64]:
        """Shape (rows,): documents that begin in each row."""
        running = np.concatenate(([0], np.cumsum(self._arrays["segment_documents"], dtype=np.int64)))
        return np.diff(running[self._arrays["row_segments"]])

    def row_items(self, index: int) -> list[int] | None:
        """Places in the micro-shard of the items in a row; None where the shard does not know."""
        if "segment_items" not in self._arrays:
            return None
        a, b = (int(x) for x in self._arrays["row_segments"][index : index + 2])
        return [int(item) for item in self._arrays["segment_items"][a:b]]

    def row(self, index: int) -> Row:
        """One row; ``tokens`` is a view into the file."""
        first, end = (int(x) for x in self._arrays["row_tokens"][index : index + 2])
        a, b = (int(x) for x in self._arrays["row_segments"][index : index + 2])
        segments = np.asarray(self._arrays["segment_tokens"][a : b + 1], dtype=np.int64) - first
        targets = np.ones(end - first, dtype=bool)
        if "loss_bits" in self._arrays:
            bits = np.unpackbits(self._arrays["loss_bits"][first // 8 : end // 8 + 1], bitorder="little")
            targets = bits[first % 8 : first % 8 + end - first].astype(bool)
        targets[segments[:-1]] = False
        return Row(tokens=self._arrays["tokens"][first:end], segments=segments, targets=targets)


def _view(mapped: Array, offset: int, entry: dict[str, Any]) -> Array:
    dtype = np.dtype(entry["dtype"])
    end = offset + int(entry["size"]) * dtype.itemsize
    if end > len(mapped):
        raise ValueError(f"array {entry['name']} ends at byte {end} of {len(mapped)}")
    view: Array = mapped[offset:end].view(dtype)
    return view
