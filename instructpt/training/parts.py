"""One rank's part of a checkpoint: a copy in host memory, then one safetensors file that says what it holds.

``<key>.<i>`` is flat tensor i: ``param`` in fp32 and one tensor for each moment. The header's metadata lists the pieces
of each flat tensor, so that :class:`Parts` finds any range of any parameter in the parts of all ranks together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from instructpt.corpus.manifest import FileEntry
from instructpt.errors import TrainingError
from instructpt.training.pieces import Piece, by_name, spans

PARAM = "param"
_PIECES = "pieces"
_CHUNK = 8 << 20
_DTYPES = {torch.float32: "F32", torch.uint8: "U8", torch.int64: "I64", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """Tensors of one length that lie alike.

    Attributes:
        tensors: Shape (elements,) each: ``param`` and the moments, by key.
        pieces: What each of them holds.
        is_copy: Whether every rank holds the same.
    """

    tensors: Mapping[str, Tensor]
    pieces: tuple[Piece, ...]
    is_copy: bool = False


class HostCopy:
    """Memory on the host for the state of one rank: made once, page-locked where there is a GPU, filled each time.

    Args:
        flats: Whose shapes it has.
    """

    def __init__(self, flats: Sequence[Flat]) -> None:
        self._kept = [
            {key: torch.zeros(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for key, t in flat.tensors.items()}
            for flat in flats
        ]
        self._stream: torch.cuda.Stream | None = None

    @property
    def bytes(self) -> int:
        """That it takes."""
        return sum(t.numel() * t.element_size() for kept in self._kept for t in kept.values())

    def take(self, flats: Sequence[Flat], done: torch.cuda.Event | None = None) -> list[Flat]:
        """Copy the state; nothing may change it meanwhile. What is given back shares the memory.

        Args:
            flats: Of the shapes that this memory was made for.
            done: On a GPU: when the state is as it is to be copied. The copy has a stream of its own.
        """
        if done is None:
            return self._copied(flats)
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(done)
            out = self._copied(flats)
        self._stream.synchronize()
        return out

    def _copied(self, flats: Sequence[Flat]) -> list[Flat]:
        for flat, kept in zip(flats, self._kept, strict=True):
            for key, tensor in flat.tensors.items():
                kept[key].copy_(tensor.detach(), non_blocking=True)
        return [Flat(tensors=kept, pieces=f.pieces) for f, kept in zip(flats, self._kept, strict=True)]


def write_part(path: Path, flats: Sequence[Flat], small: Mapping[str, Tensor]) -> FileEntry:
    """Write a part, in chunks and hashed on the way; threads of the interpreter go on meanwhile.

    Args:
        path: Of the new file.
        flats: On the CPU.
        small: Further tensors on the CPU, by name.

    Raises:
        OSError: The disk is full, or fails.
    """
    named = {f"{key}.{i}": t for i, flat in enumerate(flats) for key, t in flat.tensors.items()}
    named |= small
    listed = [[[p.name, p.shape, p.start, p.offset, p.size] for p in flat.pieces] for flat in flats]
    header: dict[str, Any] = {"__metadata__": {_PIECES: json.dumps(listed)}}
    end = 0
    for name, tensor in named.items():
        size = tensor.numel() * tensor.element_size()
        shape, dtype = list(tensor.shape), _DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, count = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as stream:
        head = len(text).to_bytes(8, "little") + text
        for view in (memoryview(head), *map(_bytes_of, named.values())):
            for at in range(0, len(view), _CHUNK):
                chunk = view[at : at + _CHUNK]
                _write_all(stream, chunk)
                digest.update(chunk)
                count += len(chunk)
    return FileEntry(path=path.name, bytes=count, sha256=digest.hexdigest())


def _write_all(stream: Any, chunk: memoryview) -> None:
    while len(chunk):
        chunk = chunk[stream.write(chunk) :]


def _bytes_of(tensor: Tensor) -> memoryview:
    raw: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


class Parts:
    """The parts of all ranks, read by range; nothing is held in memory.

    Args:
        paths: Files that :func:`write_part` wrote, all of one checkpoint.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[Any] = [safe_open(str(path), framework="pt") for path in paths]
        self._flats: list[tuple[int, int]] = []
        pieces: list[tuple[Piece, ...]] = []
        for number, file in enumerate(self._files):
            for index, flat in enumerate(json.loads(file.metadata()[_PIECES])):
                self._flats.append((number, index))
                pieces.append(tuple(Piece(name=n, shape=tuple(s), start=a, offset=o, size=k) for n, s, a, o, k in flat))
        self._held = by_name(pieces)

    @property
    def names(self) -> list[str]:
        """Of all parameters."""
        return list(self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a parameter.

        Raises:
            TrainingError: The checkpoint has no such parameter.
        """
        if name not in self._held:
            raise TrainingError(f"the checkpoint has no parameter {name}")
        return self._held[name][0][1].shape

    def whole(self, key: str, name: str) -> Tensor:
        """A parameter, or a moment of it, in its shape."""
        shape = self.shape(name)
        return self.read(key, name, 0, math.prod(shape)).view(shape)

    def read(self, key: str, name: str, start: int, size: int) -> Tensor:
        """Elements ``start:start + size`` of a flattened parameter, or of a moment of it.

        Raises:
            TrainingError: The parts do not hold them all.
        """
        self.shape(name)
        found = list(spans(self._held[name], start, size, name=name))
        read = [self._slice(key, *self._flats[s.source])[s.offset : s.offset + s.size] for s in found]
        return read[0] if len(read) == 1 else torch.cat(read) if read else torch.zeros(0)

    def _slice(self, key: str, number: int, index: int) -> Any:
        return self._files[number].get_slice(f"{key}.{index}")

    def small(self, prefix: str) -> dict[str, Tensor]:
        """Further tensors whose name begins so, without that beginning."""
        return {
            name.removeprefix(prefix): file.get_tensor(name)
            for file in self._files
            for name in file.keys()  # noqa: SIM118 - it is no mapping
            if name.startswith(prefix)
        }
