"""Corpora written for a test, and the inspection of them."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import InspectRun, ResolvedInput, RunSpec, StageResult
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.api.v1alpha1.corpusfilters import CorpusFilters
from instructpt.corpus import inspect
from instructpt.corpus.document import Document
from instructpt.corpus.manifest import Manifest, load_manifest
from instructpt.corpus.shards import iter_corpus
from instructpt.storage import Store, open_store
from instructpt.telemetry.context import WorkerContext

SPLIT = Split(tune=0.2, train=0.7, held_out=0.1)


@dataclasses.dataclass(kw_only=True)
class Corpus:
    """An inspection to run: source, output and settings."""

    uri: str
    output: str
    scratch: Path
    per_shard: int = 10
    shards: int | None = None
    tokenizer: str | None = None
    split: Split = SPLIT
    storage: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    filters: dict[str, Any] | None = None

    @property
    def spec(self) -> RunSpec:
        return RunSpec(
            verb="inspect",
            owner_kind="Corpus",
            owner_name="test",
            step="inspect",
            output=StorageSpec(uri=self.output, **self.storage),
            code_version="1.2.3",
            inspect=InspectRun(
                source=CorpusSource(uri=self.uri, **self.source),
                split=self.split,
                documents_per_shard=self.per_shard,
                shards=self.shards,
                tokenizer=self.tokenizer,
                filters=None if self.filters is None else CorpusFilters.model_validate(self.filters),
            ),
        )

    def context(self, replica: int = 0, replicas: int = 1) -> WorkerContext:
        return WorkerContext(
            worker_id=f"w{replica}", scratch=self.scratch / str(replica), replica=replica, replicas=replicas
        )

    def run(self, replica: int = 0, replicas: int = 1) -> WorkerContext:
        context = self.context(replica, replicas)
        inspect.run(self.spec, context)
        return context

    def finalize(self) -> StageResult:
        return inspect.finalize(self.spec, self.context())

    def inspect(self) -> StageResult:
        self.run()
        return self.finalize()

    @property
    def store(self) -> Store:
        return open_store(self.output, access=self.spec.output)

    @property
    def manifest(self) -> Manifest:
        return load_manifest(self.store)

    @property
    def input(self) -> ResolvedInput:
        return ResolvedInput(uri=self.output, **self.storage)

    def documents(self) -> list[Document]:
        return list(iter_corpus(self.input))

    def texts(self) -> list[str]:
        return [document.text for document in self.documents()]

    def dead_letters(self) -> list[dict[str, str]]:
        store = self.store
        found = [store.get(info.key) for info in store.list("dead-letters/")]
        return [json.loads(line) for data in found for line in data.splitlines()]


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Makes an inspection of ``uri`` into ``output`` (default: a folder of this test)."""

    def make(uri: str | Path, output: str | Path | None = None, **settings: Any) -> Corpus:
        names = {f.name for f in dataclasses.fields(Corpus)}
        own = {name: settings.pop(name) for name in list(settings) if name in names}
        where = str(output or tmp_path / "out")
        return Corpus(uri=str(uri), output=where, scratch=tmp_path / "scratch", source=settings, **own)

    return make


def jsonl(texts: list[str], field: str = "text") -> bytes:
    """Lines of objects with one field."""
    return b"".join(json.dumps({field: text}).encode() + b"\n" for text in texts)


def write(path: Path, texts: list[str], *, rows: int = 1000) -> Path:
    """A file in the format that its name says; ``rows`` in a row group or record batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    table = pa.table({"other": [1] * len(texts), "text": pa.array(texts, pa.string())})
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=rows)
    elif name.endswith(".feather"):
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table, max_chunksize=rows)
    elif name.endswith((".arrow", ".arrow.zst")):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table, max_chunksize=rows)
        data = sink.getvalue().to_pybytes()
        path.write_bytes(zstandard.compress(data) if name.endswith(".zst") else data)
    elif name.endswith(".gz"):
        half = len(texts) // 2  # two members, as appending tools leave them
        path.write_bytes(gzip.compress(jsonl(texts[:half])) + gzip.compress(jsonl(texts[half:])))
    elif name.endswith(".zst"):
        half = len(texts) // 2
        path.write_bytes(zstandard.compress(jsonl(texts[:half])) + zstandard.compress(jsonl(texts[half:])))
    elif name.endswith(".txt"):
        path.write_text("\n\n".join(texts))
    else:
        path.write_bytes(jsonl(texts))
    return path


@pytest.fixture
def write_corpus() -> Callable[..., Path]:
    """:func:`write`, for tests (which cannot import from here)."""
    return write
