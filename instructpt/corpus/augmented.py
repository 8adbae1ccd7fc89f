"""The instruction-augmented corpus: one row per chain (design 3).

Rows are Parquet (zstd). A raw document that was not converted is a chain of one shot without pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Verdict = Literal["augmented", "raw", "dead-letter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One instruction-response pair."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotRow:
    """One document of a chain and what became of it.

    Attributes:
        document: Document id.
        text: The document, as given (neutralised where the profile had to).
        pairs: Its pairs, in order.
        verdict: ``augmented``, ``raw`` (kept unconverted) or ``dead-letter`` (text may be empty).
        reason: Why not ``augmented``; empty otherwise.
        attempts: Times that the engine was asked.
        prompt_tokens: Of its prompt; 0 without a model.
        completion_tokens: Of its completion; 0 without a model.
    """

    document: str
    text: str
    pairs: tuple[PairRow, ...]
    verdict: Verdict
    reason: str
    attempts: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRow:
    """One pre-training text and its origin.

    Attributes:
        id: ``<micro-shard>/<number>``.
        text: The templated text; empty for dead letters, which carry no text into training.
        shots: The chain's documents in order.
        templates: Ids of the templates used.
        seed: Seed of the templates.
    """

    id: str
    text: str
    shots: tuple[ShotRow, ...]
    templates: tuple[str, ...]
    seed: int


_PAIR = pa.struct([("question", pa.string()), ("answer", pa.string()), ("kind", pa.string())])
_SHOT = pa.struct(
    [
        ("document", pa.string()),
        ("text", pa.string()),
        ("pairs", pa.list_(_PAIR)),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("attempts", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("shots", pa.list_(_SHOT)),
        ("templates", pa.list_(pa.string())),
        ("seed", pa.int64()),
    ]
)


def write_chains(path: Path, rows: Iterable[ChainRow], *, row_group: int = 1000) -> None:
    """Write rows to a Parquet file; equal rows give equal bytes. Memory: one row group."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(_to_dict(row))
            if len(batch) >= row_group:
                writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))


def read_chains(path: Path) -> Iterator[ChainRow]:
    """Rows of one Parquet file, in order, a row group in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=500):
            for row in batch.to_pylist():
                yield _from_dict(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainText:
    """What of a chain a training text is made of.

    Attributes:
        text: The templated text; empty for dead letters.
        documents: How many documents are in it.
        texts: Theirs, in order; empty for texts too short to be asked for it.
    """

    text: str
    documents: int
    texts: tuple[str, ...] = ()


def read_texts(path: Path, *, longer_than: int = 0) -> Iterator[ChainText]:
    """As :func:`read_chains`, several times as fast: pairs and the rest are not decoded.

    Args:
        path: The file.
        longer_than: Texts of documents are decoded for chains of several whose text has more bytes than this.
    """
    columns = ["text", "shots.list.element.text", "shots.list.element.verdict"]
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=500, columns=columns):
            shots = batch.column("shots")
            flat = shots.flatten()
            texts, used = flat.field("text"), pc.not_equal(flat.field("verdict"), "dead-letter").to_pylist()
            ends = [0, *pc.cumulative_sum(shots.value_lengths()).to_pylist()]
            sizes = pc.binary_length(batch.column("text")).to_pylist()
            for row, text in enumerate(batch.column("text").to_pylist()):
                found = [i for i in range(ends[row], ends[row + 1]) if used[i]]
                wanted = found if len(found) > 1 and sizes[row] > longer_than else ()
                yield ChainText(text=text, documents=len(found), texts=tuple(texts[i].as_py() for i in wanted))


def _to_dict(row: ChainRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "text": row.text,
        "shots": [
            {
                "document": s.document,
                "text": s.text,
                "pairs": [{"question": p.question, "answer": p.answer, "kind": p.kind} for p in s.pairs],
                "verdict": s.verdict,
                "reason": s.reason,
                "attempts": s.attempts,
                "prompt_tokens": s.prompt_tokens,
                "completion_tokens": s.completion_tokens,
            }
            for s in row.shots
        ],
        "templates": list(row.templates),
        "seed": row.seed,
    }


def _from_dict(row: dict[str, Any]) -> ChainRow:
    shots = tuple(ShotRow(**{**s, "pairs": tuple(PairRow(**p) for p in s["pairs"])}) for s in row["shots"])
    return ChainRow(id=row["id"], text=row["text"], shots=shots, templates=tuple(row["templates"]), seed=row["seed"])
