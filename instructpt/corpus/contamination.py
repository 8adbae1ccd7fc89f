"""Whether a text holds what an evaluation asks: word n-grams that it shares with evaluation sets.

The n-grams are built once, as one object named by its digest, before anything is judged by them (protocols.md 2).
N-grams of 13 words are those of GPT-3's decontamination (Brown et al. 2020, arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from instructpt.api.base import Access
from instructpt.api.runspec import canonical_json
from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.api.v1alpha1.decontamination import Decontamination, EvaluationSet
from instructpt.corpus import builtin
from instructpt.corpus.document import Document
from instructpt.corpus.readers import read_object
from instructpt.corpus.records import ReadOptions
from instructpt.corpus.sources import BUILTIN, Source, resolve_source
from instructpt.corpus.text.words import Hashes, hash_words, ngram_hashes, words_of
from instructpt.errors import ConfigError
from instructpt.storage import Scheme, parse_uri
from instructpt.storage.base import Store

PREFIX = "evaluation-ngrams/"
_VERSION = 1
_BATCH = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationNgrams:
    """N-grams of evaluation sets. Memory: 8 bytes each.

    Attributes:
        hashes: Their hashes, sorted, each once.
        n: Words in an n-gram.
        min_matches: Different n-grams that a text must share to be contaminated.
        items: Items of the sets.
        too_short: Those with fewer than ``n`` words, which nothing can be found of.
        digest: Of the object.
    """

    hashes: Hashes
    n: int
    min_matches: int
    items: int
    too_short: int
    digest: str

    def to_manifest(self) -> dict[str, Any]:
        """What a manifest says of them."""
        return {
            "digest": self.digest, "ngrams": len(self.hashes), "items": self.items, "too_short": self.too_short
        }  # fmt: skip

    def contaminate(self, text: str) -> bool:
        """Whether a text shares enough n-grams with the sets."""
        found = np.unique(ngram_hashes(hash_words(words_of(text)), self.n))
        if not len(found) or not len(self.hashes):
            return False
        places = np.minimum(np.searchsorted(self.hashes, found), len(self.hashes) - 1)
        return int(np.count_nonzero(self.hashes[places] == found)) >= self.min_matches


def check_sets_here(wanted: Decontamination, field: str) -> None:
    """Refuse sets on this machine that are not there; what lies in a bucket is left to the workers.

    Raises:
        ConfigError: Nothing is at a path, or nothing there has a known format.
    """
    for index, one in enumerate(wanted.sets):
        if not one.uri.startswith(BUILTIN) and parse_uri(one.uri).scheme is Scheme.FILE:
            resolve_source(_source(one), field=f"{field}.sets[{index}]")


def evaluation_ngrams(wanted: Decontamination, store: Store, prefix: str = "", *, field: str) -> EvaluationNgrams:
    """The n-grams of the sets as they are now: read from the store, or built and left there.

    Args:
        wanted: Sets and size of n-grams.
        store: Where the object lies.
        prefix: Below which it lies there, with a slash at its end.
        field: Path of the section in the spec, for messages.

    Raises:
        ConfigError: A set is not there, an item cannot be read, or no item is long enough.
    """
    sources = [resolve_source(_source(s), field=f"{field}.sets[{i}]") for i, s in enumerate(wanted.sets)]
    listing = [[[o.uri, o.etag, o.size] for o in source.objects] for source in sources]
    decides = {"version": _VERSION, "sets": [s.to_wire() for s in wanted.sets], "listing": listing, "n": wanted.ngram}
    key = f"{prefix}{PREFIX}{hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:32]}.bin"
    if store.exists(key):
        data = store.get(key)
    else:
        data = _build(wanted, sources, field)
        store.put(key, data)
    head, _, body = data.partition(b"\n")
    figures = orjson.loads(head)
    return EvaluationNgrams(
        hashes=np.frombuffer(body, dtype="<u8"),
        n=wanted.ngram,
        min_matches=wanted.min_matches,
        items=figures["items"],
        too_short=figures["too_short"],
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
    )


def _build(wanted: Decontamination, sources: list[Source], field: str) -> bytes:
    """A line of JSON with figures, then the hashes: a function of the sets' content."""
    known = np.empty(0, dtype=np.uint64)
    pending: list[Hashes] = []
    items = too_short = size = 0
    for index, (one, source) in enumerate(zip(wanted.sets, sources, strict=True)):
        for text in _texts(one, source, f"{field}.sets[{index}]"):
            found = ngram_hashes(hash_words(words_of(text)), wanted.ngram)
            items += 1
            too_short += not len(found)
            pending.append(found)
            size += len(found)
            if size >= _BATCH:
                known, pending, size = np.unique(np.concatenate([known, *pending])), [], 0
    known = np.unique(np.concatenate([known, *pending]))
    if not len(known):
        raise ConfigError(
            f"none of the {items} items has {wanted.ngram} words",
            field=f"{field}.ngram",
            value=wanted.ngram,
            fix="lower it, or name a field with longer texts",
        )
    head = orjson.dumps({"items": items, "too_short": too_short, "n": wanted.ngram}, option=orjson.OPT_SORT_KEYS)
    return head + b"\n" + known.astype("<u8").tobytes()


def _texts(wanted: EvaluationSet, source: Source, field: str) -> Iterator[str]:
    if source.store is None:
        yield from (document.text for document in builtin.documents())
        return
    options = ReadOptions(text_field=wanted.text_field, max_document_bytes=10_000_000)
    for object_ in source.objects:
        for item in read_object(source.store, object_, options):
            if not isinstance(item.result, Document):
                # Read over, it would let through what it holds.
                raise ConfigError(
                    f"{item.result.where} is no item: {item.result.reason} ({item.result.detail})",
                    field=f"{field}.textField",
                    value=wanted.text_field,
                    fix="name a field that every item has, or correct the set",
                )
            yield item.result.text


def _source(wanted: EvaluationSet) -> CorpusSource:
    access = {name: getattr(wanted, name) for name in Access.model_fields}
    return CorpusSource(uri=wanted.uri, format=wanted.format, text_field=wanted.text_field, **access)
