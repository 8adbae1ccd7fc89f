"""What is tokenized: the texts of one source, shard by shard, and on which of their parts the loss is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from instructpt.api.runspec import PreparedSource
from instructpt.api.v1alpha1.corpus import Format
from instructpt.api.v1alpha1.mixturesource import OBJECTIVE_FORMATS, Objective
from instructpt.api.v1alpha1.sourceformats import TaskCollection
from instructpt.corpus.augmented import ChainRow, read_texts
from instructpt.corpus.files import iter_files
from instructpt.corpus.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    digest_of,
    load_manifest,
    load_objects,
    parse_manifest,
)
from instructpt.corpus.shards import CorpusReader, iter_augmented_shard, read_augmented_shard
from instructpt.corpus.sources import SourceObject, resolve_files
from instructpt.errors import ConfigError
from instructpt.storage import Store, open_store
from instructpt.synthesis import profiles, templates
from instructpt.synthesis.model import Shot, make_pair
from instructpt.training.formatting import Formatter
from instructpt.training.taskcollection import Dataset, Fitting, TaskReader, datasets, sequences

FileKind = Literal["tasks", "instructions", "jsonl", "parquet", "arrow", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One item: parts that are tokenized one by one and follow each other.

    Attributes:
        parts: Text, and whether the loss is taken on it.
        documents: Documents in it.
        marked: Whether strings of special tokens in it mean those tokens; BOS and EOS are then in it already.
        starts: Characters of its only part at which the second and later documents begin, ascending, where they are
            known: where the text may be cut if it is longer than a row.
    """

    parts: tuple[tuple[str, bool], ...]
    documents: int = 1
    marked: bool = False
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShard:
    """A micro-shard of the source's manifest, a file, or a data set of a collection of tasks.

    Attributes:
        id: Of the manifest's shard; ``file-<number>`` for files, ``dataset-<number>`` for data sets.
        entry: Of the manifest; None for the others.
        file: The file; None for the others.
        dataset: The data set; None for the others.
        documents: Documents to take at most; None takes all.
    """

    id: str
    entry: ShardEntry | None = None
    file: SourceObject | None = None
    dataset: Dataset | None = None
    documents: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source, resolved.

    Attributes:
        shards: In order.
        digest: Of its manifest; of the names and contents' sizes for files without a digest of their own.
    """

    spec: PreparedSource
    objective: Objective
    profile: str
    shards: tuple[SourceShard, ...]
    digest: str
    store: Store | None = None
    manifest: Manifest | None = None

    def texts(self, shard: SourceShard, scratch: Path, fit: Fitting | None = None) -> Iterator[Text]:
        """The texts of one shard, in order. Chains without text (dead letters) are left out.

        Args:
            shard: One of ``shards``.
            scratch: Folder for what is fetched.
            fit: What a sequence may hold; None sets no limit.

        Raises:
            CorpusError: An object changed, is damaged, or holds a record that cannot be used.
        """
        if shard.dataset is not None:
            yield from self._tasks(shard.dataset, fit or Fitting())
            return
        if shard.file is not None:
            yield from islice(self._file(shard.file), shard.documents)
            return
        assert self.store is not None
        assert self.manifest is not None
        assert shard.entry is not None
        if self.manifest.kind == "corpus":
            read = CorpusReader(self.store, self.manifest).read(shard.entry, split=self.spec.split)
            for document in islice(read, shard.documents):
                yield Text(parts=((document.text, True),))
            return
        objects = load_objects(self.store)
        if self.objective != "SynthesizerTuning" and shard.documents is None:
            # A token has at least a byte, but for what a tokenizer adds: no shorter text is longer than a row.
            least = (fit.length or 0) // 2 if fit is not None else 0
            decode = partial(read_texts, longer_than=least)
            chains = read_augmented_shard(self.store, self.manifest, objects, shard.entry, decode, scratch=scratch)
            for chain in chains:
                if chain.text:
                    yield _chain_text(chain.text, chain.documents, chain.texts)
            return
        rows = iter_augmented_shard(self.store, self.manifest, objects, shard.entry, scratch=scratch)
        left = shard.documents
        for row in rows:
            if left is not None and left <= 0:
                return
            left = None if left is None else left - len(row.shots)
            yield from self._chain(row)

    def _chain(self, row: ChainRow) -> Iterator[Text]:
        if self.objective != "SynthesizerTuning":
            if row.text:
                texts = [shot.text for shot in row.shots if shot.verdict != "dead-letter"]
                yield _chain_text(row.text, len(texts), texts)
            return
        shots = [
            Shot(document=s.text, pairs=tuple(make_pair(p.question, p.answer) for p in s.pairs))
            for s in row.shots
            if s.verdict != "dead-letter" and s.text
        ]
        if shots:
            yield self._tuning(shots)

    def _tuning(self, shots: Sequence[Shot]) -> Text:
        rendered = profiles.load(self.profile).render_tuning(shots)
        parts = tuple((segment.text, segment.is_target) for segment in rendered)
        return Text(parts=parts, documents=len(shots), marked=True)

    def _tasks(self, dataset: Dataset, fit: Fitting) -> Iterator[Text]:
        """Sequences in the profile's format; where it is no synthesizer that learns, as pre-training texts."""
        most = (self.spec.tasks or TaskCollection()).examples_per_sequence
        profile = profiles.load(self.profile)

        def parts(shot: Shot) -> list[str]:
            return [segment.text for segment in profile.render_tuning([shot])]

        for name, shots in TaskReader(dataset, self.spec, fit.counts).examples():
            for number, chain in enumerate(sequences(shots, most, fit, parts)):
                if self.objective == "SynthesizerTuning":
                    yield self._tuning(chain)
                else:
                    text = templates.load().render(chain, _seed(name, number))
                    yield Text(parts=((text, True),), documents=len(chain))

    def _file(self, file: SourceObject) -> Iterator[Text]:
        spec, kind = self.spec, _kind(self.spec)
        assert kind != "tasks", "a data set may be several files"
        if kind != "instructions":
            fields = [spec.text_field]
            for record in iter_files(file.uri, spec, kind, fields, field=f"source {spec.name}"):
                yield Text(parts=((record[spec.text_field], True),))
            return
        formatter = Formatter(spec.formatting, spec.question_field, spec.answer_field)
        for record in iter_files(
            file.uri, spec, "instructions", formatter.fields, field=f"source {spec.name}", fault=formatter.fault
        ):
            prompt, answer = formatter.split(record)
            if self.objective == "InstructionTuning":
                yield Text(parts=((prompt, False), (answer, True)))
            else:
                yield Text(parts=((prompt + answer, True),))


def _seed(name: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{name}\0{number}".encode()).digest()[:4], "big")


def _chain_text(text: str, documents: int, texts: Sequence[str]) -> Text:
    return Text(parts=((text, True),), documents=documents, starts=document_starts(text, texts))


def document_starts(text: str, documents: Sequence[str]) -> tuple[int, ...]:
    """Characters of a chain's text at which its second and later documents begin.

    A document that does not stand in the text as it was given, at the beginning of a line, is not found and left out.
    """
    found: list[int] = []
    at = 0
    for number, document in enumerate(documents):
        place = text.find(document, at) if number == 0 else text.find("\n" + document, at) + 1
        if number and document and place > 0:
            found.append(place)
        if place > 0 or not number:
            at = max(place, 0) + len(document)
    return tuple(found)


def _kind(spec: PreparedSource) -> FileKind:
    assert spec.format != "augmented"
    assert spec.format != "corpus"
    return spec.format


def resolve(
    spec: PreparedSource, objective: Objective = "Pretraining", profile: str = profiles.DEFAULT_PROFILE
) -> Source:
    """Find a source's shards.

    Raises:
        ConfigError: The format does not fit the objective or the place, or nothing is there.
        NotFoundError: Its manifest is not there.
    """
    needed = OBJECTIVE_FORMATS.get(objective, (spec.format,))
    if spec.format not in needed:
        raise ConfigError(
            f"objective {objective} learns answers and needs format {' or '.join(needed)}",
            field=f"mixture[{spec.name}].format",
            value=spec.format,
            fix=f"give a source of format {' or '.join(needed)}, or choose objective Pretraining",
        )
    profiles.load(profile)
    if spec.format not in ("augmented", "corpus"):
        return _files(spec, objective, profile)
    store = open_store(spec.uri, access=spec)
    load_manifest(store, digest=spec.digest)
    data = store.get(MANIFEST)
    manifest = parse_manifest(data, where=f"{store.uri}/{MANIFEST}")
    if manifest.kind != spec.format:
        raise ConfigError(
            f"{store.uri} holds a set of kind {manifest.kind}",
            field=f"mixture[{spec.name}].format",
            value=spec.format,
            fix=f"write format: {manifest.kind}",
        )
    shards = tuple(_shards(manifest, spec))
    if not shards:
        raise ConfigError(
            f"{store.uri} has no documents in this part",
            field=f"mixture[{spec.name}].split",
            value=spec.split or "all",
            fix="give this part of corpus.split a larger share, or name another part",
        )
    digest = digest_of(data)
    return Source(
        spec=spec, objective=objective, profile=profile, shards=shards, digest=digest, store=store, manifest=manifest
    )


def _shards(manifest: Manifest, spec: PreparedSource) -> Iterator[SourceShard]:
    name = spec.split if spec.split is not None and manifest.kind == "corpus" else "documents"
    left = spec.max_documents
    for entry in manifest.shards:
        found = int(entry.counts.get(name, 0))
        if not found or left == 0:
            continue
        taken = None if left is None else min(found, left)
        left = None if left is None or taken is None else left - taken
        yield SourceShard(id=entry.id, entry=entry, documents=taken)


def _files(spec: PreparedSource, objective: Objective, profile: str) -> Source:
    kind = _kind(spec)
    wanted: Format = "auto" if kind == "instructions" or kind == "tasks" else kind
    found = resolve_files(spec.uri, spec, wanted, field=f"mixture[{spec.name}]")
    named = "".join(f"{file.name}\0{file.size}\n" for file in found.objects)
    digest = spec.digest or "sha256:" + hashlib.sha256(named.encode()).hexdigest()
    shards: tuple[SourceShard, ...]
    if kind == "tasks":
        sets = datasets(found.objects)
        shards = tuple(SourceShard(id=f"dataset-{index:05d}", dataset=item) for index, item in enumerate(sets))
        return Source(spec=spec, objective=objective, profile=profile, shards=shards, digest=digest)
    if spec.max_documents is not None and len(found.objects) > 1:
        raise ConfigError(
            "holds for sources with a manifest and for single files, not for several files",
            field=f"mixture[{spec.name}].maxDocuments",
            value=spec.max_documents,
            fix="declare them as a Corpus",
        )
    shards = tuple(
        SourceShard(id=f"file-{index:05d}", file=file, documents=spec.max_documents)
        for index, file in enumerate(found.objects)
    )
    return Source(spec=spec, objective=objective, profile=profile, shards=shards, digest=digest)
