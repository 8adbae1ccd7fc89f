"""Which documents a stage takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.manifest import Manifest, ShardEntry
from instructpt.synthesis.microshard import is_converted
from instructpt.synthesis.work import take
from instructpt.synthesis.writers import seed_of

ENTRIES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


def manifest(counts: list[tuple[int, int]]) -> Manifest:
    shards = tuple(
        ShardEntry(id=f"{i:06d}", counts={"documents": a + b, "tune": a, "train": b}) for i, (a, b) in enumerate(counts)
    )
    return Manifest(kind="corpus", code_version="test", shards=shards)


@given(counts=ENTRIES, limit=st.none() | st.integers(1, 60), split=st.sampled_from([None, "tune", "train"]))
def test_the_first_documents_are_taken_in_order(
    counts: list[tuple[int, int]], limit: int | None, split: str | None
) -> None:
    parts = take(manifest(counts), split, limit)
    there = [{"tune": a, "train": b, None: a + b}[split] for a, b in counts]
    total = sum(there) if limit is None else min(limit, sum(there))
    assert sum(part.documents for part in parts) == total
    assert all(part.documents > 0 for part in parts)
    taken = [int(part.entry.id) for part in parts]
    assert taken == [i for i, n in enumerate(there) if n][: len(taken)]
    assert all(part.documents == there[int(part.entry.id)] for part in parts[:-1])


def test_nothing_is_taken_of_a_part_without_documents() -> None:
    assert take(manifest([(0, 3)]), "tune", None) == ()


@given(text=st.text(), seed=st.integers(0, 2**40))
def test_conversion_grows_with_the_share(text: str, seed: int) -> None:
    assert is_converted(text, 1.0, seed)
    assert not is_converted(text, 0.0, seed)
    assert is_converted(text, 0.7, seed) or not is_converted(text, 0.3, seed)


@given(seed=st.integers(0, 2**40), name=st.text())
def test_seeds_fit_the_column(seed: int, name: str) -> None:
    assert seed <= seed_of(seed, name) < seed + 2**32
    assert seed_of(seed, name) == seed_of(seed, name)
