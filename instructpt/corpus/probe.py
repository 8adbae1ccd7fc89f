"""A short look at a corpus before anything is spent: about how many documents and bytes it holds."""

from __future__ import annotations

from dataclasses import dataclass

from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.corpus import builtin
from instructpt.corpus.document import Document
from instructpt.corpus.readers import read_object
from instructpt.corpus.records import ReadOptions
from instructpt.corpus.sources import SourceObject, resolve_source
from instructpt.storage.base import Store

MAX_SAMPLE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusProbe:
    """What was found.

    Attributes:
        documents: In all; an estimate where ``sampled`` is smaller.
        bytes: UTF-8 bytes of text in all, likewise.
        sampled: Documents that were read.
    """

    documents: int
    bytes: int
    sampled: int


def probe_corpus(source: CorpusSource, *, limit: int = MAX_SAMPLE) -> CorpusProbe:
    """Read at most ``limit`` documents and scale by the stored bytes that they came from.

    Raises:
        ConfigError: The corpus does not exist, or nothing in it can be read.
        StorageError: It cannot be reached.
    """
    found = resolve_source(source)
    if found.store is None:
        documents = builtin.documents()
        return CorpusProbe(documents=len(documents), bytes=sum(_size(d) for d in documents), sampled=len(documents))
    options = ReadOptions(
        text_field=source.text_field, id_field=source.id_field, separator=source.separator,
        max_document_bytes=source.max_document_bytes,
    )  # fmt: skip
    stored = sum(o.size for o in found.objects)
    count = text = read = 0
    for number, object_ in enumerate(found.objects):
        share, documents_, bytes_ = _sample(found.store, object_, options, limit - count)
        count, text, read = count + documents_, text + bytes_, read + round(share * object_.size)
        if count >= limit and number + 1 < len(found.objects):
            break
    scale = stored / read if read else 1.0
    return CorpusProbe(documents=round(count * scale), bytes=round(text * scale), sampled=count)


def _sample(store: Store, object_: SourceObject, options: ReadOptions, limit: int) -> tuple[float, int, int]:
    """Share of the object that was read, documents, bytes of text."""
    stored = 0

    def seen(data: bytes) -> None:
        nonlocal stored
        stored += len(data)

    documents = text = 0
    ended = True
    for item in read_object(store, object_, options, seen=seen):
        if isinstance(item.result, Document):
            documents += 1
            text += _size(item.result)
        if documents >= limit:
            ended = False
            break
    if ended or object_.size == 0:
        return 1.0, documents, text
    # Row groups and buffered reads run ahead of the records, so the text itself is the better measure where it is less.
    share = min(1.0, max(text, 1) / object_.size if object_.compression is None else stored / object_.size)
    return share, documents, text


def _size(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))
