"""The token shards of a run on this machine: fetched once, verified, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instructpt.api.runspec import TrainSource
from instructpt.corpus.manifest import Manifest, load_manifest, load_objects
from instructpt.errors import ConfigError, CorpusError
from instructpt.storage import FilesystemStore, Store, open_store
from instructpt.storage.hashing import sha256_of_file
from instructpt.training.mixture import SourceRows
from instructpt.training.tokenshards import EXTENSION, Row, TokenShard


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Where one source lies on this machine.

    Attributes:
        digest: Of its manifest.
        paths: Its shards in the order of the manifest.
        shards: Their names there.
    """

    digest: str
    paths: tuple[str, ...]
    shards: tuple[str, ...] = ()


def fetch_tokens(source: TrainSource, cache: Path, *, sequence_length: int, tokenizer: str) -> Fetched:
    """Fetch and verify the shards of a source; those of a folder stay where they are.

    Args:
        source: A set of kind ``tokens``.
        cache: Folder for what is fetched, named by content.
        sequence_length: Of the run; the rows must have been packed for it.
        tokenizer: Content of the run's tokenizer; the rows must have been made with it.

    Raises:
        ConfigError: The set was made for another sequence length or tokenizer.
        CorpusError: A shard is missing or corrupt.
        NotFoundError: The set is not finished.
    """
    store = open_store(source.uri, access=source)
    manifest = load_manifest(store, digest=source.digest)
    _check(source, manifest, sequence_length, tokenizer)
    objects = load_objects(store)
    paths = []
    for entry in manifest.shards:
        sha256 = str(entry.sha256)
        path = _fetch(store, objects.get(entry.id, ""), sha256, cache)
        if path is None:
            raise CorpusError(
                f"token shard {entry.id} of {store.uri} is missing or corrupt", fix="remove its manifest and pack again"
            )
        paths.append(str(path))
    return Fetched(digest=manifest.digest, paths=tuple(paths), shards=tuple(entry.id for entry in manifest.shards))


def _fetch(store: Store, key: str, sha256: str, cache: Path) -> Path | None:
    """The verified file; None where there is no such object with that content."""
    if not key:
        return None
    if isinstance(store, FilesystemStore):
        path = store.path(key)
        return path if path.is_file() and sha256_of_file(path) == sha256 else None
    path = cache / f"{sha256}.{EXTENSION}"
    for _ in range(2):
        if path.is_file() and sha256_of_file(path) == sha256:
            return path
        if not store.exists(key):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(key, path)
    return None


def _check(source: TrainSource, manifest: Manifest, sequence_length: int, tokenizer: str) -> None:
    field = f"sources[{source.name}]"
    if manifest.kind != "tokens":
        raise ConfigError(f"{source.uri} holds a set of kind {manifest.kind}, not tokens", field=field)
    packed = manifest.settings.get("sequence_length")
    if packed != sequence_length:
        raise ConfigError(
            f"its rows were packed for {packed} tokens",
            field=f"{field}.sequenceLength",
            value=sequence_length,
            fix="pack it for this length",
        )
    made_with = manifest.settings.get("tokenizer")
    if made_with != tokenizer:
        raise ConfigError(
            f"its rows were made with another tokenizer: content {made_with}, the run's is {tokenizer}",
            field=field,
            value=source.uri,
            fix="pack it with the run's",
        )


class TokenSource:
    """The rows of one source, over all of its shards.

    Args:
        source: Its part in the mixture.
        fetched: Its files.
    """

    def __init__(self, source: TrainSource, fetched: Fetched) -> None:
        self._source = source
        self._shards = [TokenShard(Path(path)) for path in fetched.paths]
        self._ids = fetched.shards or tuple(str(number) for number in range(len(self._shards)))
        counts = [shard.num_rows for shard in self._shards]
        self._first: NDArray[np.int64] = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self.row_loss: NDArray[np.int64] = _joined([shard.row_loss for shard in self._shards])

    def rows(self) -> SourceRows:
        """What the mixture needs to know."""
        return SourceRows(
            name=self._source.name,
            weight=self._source.weight,
            max_repeats=self._source.max_repeats,
            repeats=self._source.repeats,
            max_tokens=self._source.max_tokens,
            tokens=_joined([shard.row_sizes for shard in self._shards]),
            documents=_joined([shard.row_documents for shard in self._shards]),
        )

    def row(self, index: int) -> Row:
        """One row."""
        shard = self._shard(index)
        return self._shards[shard].row(index - int(self._first[shard]))

    def place(self, index: int) -> str:
        """Where a row comes from, for people: micro-shard, row, and the places of its documents in the micro-shard."""
        shard = self._shard(index)
        row = index - int(self._first[shard])
        items = self._shards[shard].row_items(row)
        named = "" if items is None else f", documents {', '.join(str(item) for item in items)}"
        return f"{self._source.name}: micro-shard {self._ids[shard]}, row {row}{named}"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
