"""Reading a finished corpus: the documents of a micro-shard, of a whole corpus, and the chains of an augmented one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pyarrow as pa

from instructpt.api.base import Access
from instructpt.api.runspec import ResolvedInput
from instructpt.api.v1alpha1.corpus import Split
from instructpt.api.v1alpha1.synthesisjob import SplitName
from instructpt.corpus.augmented import ChainRow, read_chains
from instructpt.corpus.document import Document, split_of
from instructpt.corpus.filtered import Verdicts, screened
from instructpt.corpus.manifest import SOURCE, Manifest, ShardEntry, Span, load_manifest, load_objects
from instructpt.corpus.rawframes import raw_options
from instructpt.corpus.readers import read_span
from instructpt.corpus.records import ReadOptions
from instructpt.corpus.sources import locate
from instructpt.errors import CorpusError, NotFoundError
from instructpt.storage import open_store
from instructpt.storage.base import Store
from instructpt.storage.hashing import sha256_of_file, sha256_of_object, sha256_of_stream

T = TypeVar("T")

_KEPT = b"\0"
_AGAIN = "inspect the corpus again, into an empty storage"


class CorpusReader:
    """Reads the micro-shards of one inspected corpus. Keeps a client and what it verified between them.

    Args:
        store: Root of the corpus (where its manifest lies).
        manifest: Its manifest.
        access: How the corpus's source is reached, where spans lie in it; None takes what the inspection used.

    Raises:
        CorpusError: The manifest is of another kind.
    """

    def __init__(self, store: Store, manifest: Manifest, access: Access | None = None) -> None:
        if manifest.kind != "corpus":
            raise CorpusError(f"{store.uri} holds a set of kind {manifest.kind}, not a corpus")
        self._store = store
        self._given = access
        source: Mapping[str, Any] = manifest.settings["source"]
        self._options = ReadOptions(**{name: value for name, value in source.items() if name != "format"})
        self._split = Split.model_validate(manifest.settings["split"])
        self._root = str(manifest.extra.get("root", ""))
        self._verdicts = Verdicts(store, manifest)
        self._stores: dict[str, Store] = {}
        self._recorded: dict[str, Any] | None = None
        self._verified: dict[str, str] = {}

    def read(self, entry: ShardEntry, *, split: SplitName | None = None) -> Iterator[Document]:
        """Documents of one micro-shard that filters keep, in order; of one part where ``split`` is given.

        Raises:
            CorpusError: Its object has changed since the inspection, or is damaged.
            NotFoundError: Its object is gone.
        """
        span = entry.span
        if span is None:
            raise CorpusError(f"micro-shard {entry.id} of {self._store.uri} has no span", fix=_AGAIN)
        found, wanted = 0, screened(entry) if "documents" in entry.counts else None
        verdicts = self._verdicts.of(entry)
        for document in self._documents(entry, span):
            left_out = verdicts is not None and verdicts[found : found + 1] != _KEPT
            found += 1
            if not left_out and (split is None or split_of(document.text, self._split) == split):
                yield document
        if wanted is not None and found != wanted:
            raise _changed(span, f"{found} documents where the inspection found {wanted}")

    def _documents(self, entry: ShardEntry, span: Span) -> Iterator[Document]:
        in_source = "://" in span.uri or span.uri.startswith("/")
        if in_source:
            store, key = self._source(span.uri)
            self._verify(store, key, span)
            options, name = self._options, span.uri.removeprefix(self._root)
        else:
            store, key = self._store, span.uri
            self._verify_frame(entry, span)
            options, name = raw_options(self._options), span.uri
        for result in read_span(store, key, span, options, name=name):
            if isinstance(result, Document):
                yield result

    def _source(self, uri: str) -> tuple[Store, str]:
        location, key = locate(uri)
        if location.uri not in self._stores:
            access = self._given or Access.model_validate(self._record().get("access", {}))
            self._stores[location.uri] = open_store(location.uri, access=access)
        return self._stores[location.uri], key

    def _verify(self, store: Store, key: str, span: Span) -> None:
        """Refuse an object that is not the one that was inspected."""
        try:
            now = store.head(key).etag
        except NotFoundError as error:
            raise NotFoundError(f"{span.uri}, which the corpus {self._store.uri} consists of, is gone") from error
        if now == span.etag or self._verified.get(span.uri) == now:
            return
        if not span.etag.startswith("sha256:"):
            raise _changed(span, f"etag {now} where the inspection found {span.etag}")
        # On a file system the etag tells of times and inodes: a copied or touched file is still the same content.
        etags: Mapping[str, str] = self._record().get("etags", {})
        if etags.get(span.uri) != now and f"sha256:{sha256_of_object(store, key)}" != span.etag:
            raise _changed(span, "other content")
        self._verified[span.uri] = now

    def _verify_frame(self, entry: ShardEntry, span: Span) -> None:
        try:
            with self._store.open(span.uri, start=span.start, length=span.length) as stream:
                digest = sha256_of_stream(stream)
        except NotFoundError as error:
            raise NotFoundError(f"{self._store.uri}/{span.uri} is gone", fix=_AGAIN) from error
        if digest != entry.sha256:
            raise _changed(replace(span, uri=f"{self._store.uri}/{span.uri}"), "other bytes")

    def _record(self) -> dict[str, Any]:
        """What the inspection left beside the manifest about the source."""
        if self._recorded is None:
            self._recorded = orjson.loads(self._store.get(SOURCE)) if self._store.exists(SOURCE) else {}
        return self._recorded


def _changed(span: Span, what: str) -> CorpusError:
    return CorpusError(f"{span.uri} has changed since the corpus was inspected: {what}", fix=_AGAIN)


def iter_shard(
    store: Store,
    manifest: Manifest,
    entry: ShardEntry,
    access: Access | None = None,
    *,
    split: SplitName | None = None,
) -> Iterator[Document]:
    """Documents of one micro-shard; who reads many keeps a :class:`CorpusReader`.

    Args:
        store: Root of the corpus.
        manifest: Its manifest.
        entry: One of its shards.
        access: How the corpus's source is reached; None takes what the inspection used.
        split: Only this part.

    Raises:
        CorpusError: Its object has changed since the inspection, or is damaged.
    """
    return CorpusReader(store, manifest, access).read(entry, split=split)


def open_corpus(input_: ResolvedInput) -> tuple[CorpusReader, Manifest]:
    """A finished corpus and its manifest.

    Raises:
        ConfigError: Its digest is not the one that was asked for.
        NotFoundError: There is no manifest.
    """
    store = open_store(input_.uri, access=input_)
    manifest = load_manifest(store, digest=input_.digest)
    return CorpusReader(store, manifest), manifest


def iter_corpus(input_: ResolvedInput, split: SplitName | None = None) -> Iterator[Document]:
    """Documents of a finished corpus, shard by shard; of one part where ``split`` is given.

    Raises:
        ConfigError: Its digest is not the one that was asked for.
        CorpusError: An object has changed since the inspection, or is damaged.
    """
    reader, manifest = open_corpus(input_)
    for entry in manifest.shards:
        yield from reader.read(entry, split=split)


def iter_augmented(input_: ResolvedInput, *, scratch: Path | None = None) -> Iterator[ChainRow]:
    """Chains of a finished augmented corpus, shard by shard, each verified before its first row.

    Args:
        input_: Where its manifest lies.
        scratch: Folder for one shard at a time; None takes the system's.

    Raises:
        ConfigError: Its digest is not the one that was asked for.
        CorpusError: A shard is missing, corrupt, or the set is of another kind.
    """
    store = open_store(input_.uri, access=input_)
    manifest = load_manifest(store, digest=input_.digest)
    objects = load_objects(store)
    for entry in manifest.shards:
        yield from iter_augmented_shard(store, manifest, objects, entry, scratch=scratch)


def iter_augmented_shard(
    store: Store, manifest: Manifest, objects: Mapping[str, str], entry: ShardEntry, *, scratch: Path | None = None
) -> Iterator[ChainRow]:
    """Chains of one shard of an augmented corpus; see :func:`read_augmented_shard`."""
    return read_augmented_shard(store, manifest, objects, entry, read_chains, scratch=scratch)


def read_augmented_shard(
    store: Store,
    manifest: Manifest,
    objects: Mapping[str, str],
    entry: ShardEntry,
    read: Callable[[Path], Iterator[T]],
    *,
    scratch: Path | None = None,
) -> Iterator[T]:
    """What ``read`` makes of the file of one shard of an augmented corpus.

    Args:
        store: Root of the augmented corpus.
        manifest: Its manifest.
        objects: Shard id to key, from :func:`~instructpt.corpus.manifest.load_objects`.
        entry: One of its shards.
        read: Such as :func:`~instructpt.corpus.augmented.read_chains`.
        scratch: Folder for the downloaded shard, which is removed again.

    Raises:
        CorpusError: The shard is missing, corrupt, or the set is of another kind.
    """
    if manifest.kind != "augmented":
        raise CorpusError(f"{store.uri} holds a set of kind {manifest.kind}, not an augmented corpus")
    key = objects.get(entry.id)
    where = f"shard {entry.id} of {store.uri}"
    fix = "synthesize it again into an empty storage, or restore the object"
    if key is None:
        raise CorpusError(f"{where} is not listed in objects.json", fix=fix)
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="instructpt-shard-") as folder:
        path = Path(folder) / "shard.parquet"
        try:
            store.download(key, path)
        except NotFoundError as error:
            raise CorpusError(f"{where} is gone ({key})", fix=fix) from error
        if sha256_of_file(path) != entry.sha256:
            raise CorpusError(f"{where} ({key}) is corrupt: its bytes are not those of the manifest", fix=fix)
        try:
            yield from read(path)
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{where} ({key}) is no augmented corpus: {error}", fix=fix) from error
