from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.api.runspec import PreparedSource
from instructpt.api.v1alpha1.sourceformats import TaskCollection
from instructpt.errors import CorpusError
from instructpt.synthesis.model import Pair, Shot
from instructpt.training.sources import resolve
from instructpt.training.taskcollection import Fitting, TaskReader, datasets, sequences


def source(uri: Path, **tasks) -> PreparedSource:
    return PreparedSource(name="t", format="tasks", uri=str(uri), tasks=TaskCollection(**tasks) if tasks else None)


def write(path: Path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record(context: str, question: str, answer: str = "a", **more) -> dict:
    return {"context": context, "question": question, "answer": answer, **more}


def read(folder: Path, **tasks):
    """Data set -> examples as (context, questions), and the counts."""
    spec = source(folder, **tasks)
    counts: Counter[str] = Counter()
    found = {}
    for shard in resolve(spec).shards:
        for name, shots in TaskReader(shard.dataset, spec, counts).examples():
            found[name] = [(shot.document, [pair.question for pair in shot.pairs]) for shot in shots]
    return found, counts


def test_a_folder_is_a_data_set_and_so_is_a_file(tmp_path):
    for name in ("squad/b.jsonl", "squad/a.jsonl", "squad/more/c.jsonl", "boolq.jsonl", "race.dev.jsonl"):
        write(tmp_path / name, [record("c", "q")])
    spec = source(tmp_path)
    found = [shard.dataset for shard in resolve(spec).shards]
    assert [(d.name, [f.name for f in d.files]) for d in found] == [
        ("boolq", ["boolq.jsonl"]),
        ("race", ["race.dev.jsonl"]),
        ("squad", ["squad/a.jsonl", "squad/b.jsonl", "squad/more/c.jsonl"]),
    ]
    assert [shard.id for shard in resolve(spec).shards] == ["dataset-00000", "dataset-00001", "dataset-00002"]
    assert datasets([]) == ()


def test_records_of_one_context_are_one_example_and_a_field_may_name_the_data_set(tmp_path):
    write(tmp_path / "s" / "a.jsonl", [record("one", "q1", set="x"), record("two", "q1", set="x")])
    write(tmp_path / "s" / "b.jsonl", [record("one", "q2", set="x"), record("one", "q3", set="y")])
    found, counts = read(tmp_path)
    assert {name: sorted(examples) for name, examples in found.items()} == {
        "s": [("one", ["q1", "q2", "q3"]), ("two", ["q1"])]
    }
    assert counts["examples"] == 2
    by_field, _ = read(tmp_path, dataset_field="set")
    assert {name: sorted(examples) for name, examples in by_field.items()} == {
        "x": [("one", ["q1", "q2"]), ("two", ["q1"])],
        "y": [("one", ["q3"])],
    }


def test_lists_of_questions_and_answers_are_pairs_and_parquet_is_read_alike(tmp_path):
    rows = [{"passage": "c", "ask": ["q1", "q2", "Q1"], "say": ["a1", "a2", "again"]}]
    spec = {"question_field": "ask", "answer_field": "say", "tasks": TaskCollection(context_field="passage")}
    write(tmp_path / "j" / "a.jsonl", rows)
    (tmp_path / "p").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p" / "a.parquet")
    for folder in ("j", "p"):
        wanted = source(tmp_path / folder).model_copy(update=spec)
        counts: Counter[str] = Counter()
        [(_, [shot])] = list(TaskReader(resolve(wanted).shards[0].dataset, wanted, counts).examples())
        assert shot == Shot("c", (Pair("q1", "a1"), Pair("q2", "a2")))
        # As a parser takes it: questions that differ in case alone are one, and the first wins.
        assert counts["repeated_questions"] == 1


def test_of_too_many_examples_those_with_the_most_pairs_are_taken(tmp_path):
    pairs = {f"context {i}": i % 7 + 1 for i in range(40)}
    write(tmp_path / "d.jsonl", [record(c, f"q{n}") for c, count in pairs.items() for n in range(count)])
    found, counts = read(tmp_path, examples_per_dataset=12)
    taken = [context for context, _ in found["d"]]
    least = min(pairs[context] for context in taken)
    assert len(taken) == 12
    assert all(pairs[c] <= least for c in pairs if c not in taken)
    assert (counts["examples"], counts["over_cap"]) == (40, 28)


@given(seed=st.integers(0, 1000), cap=st.integers(1, 12))
def test_what_is_taken_is_no_matter_of_order_or_files(tmp_path_factory, seed, cap):
    rng = random.Random(seed)
    records = [record(f"c{rng.randrange(8)}", f"q{i}") for i in range(30)]
    folder = tmp_path_factory.mktemp("sets")
    write(folder / "one" / "d" / "a.jsonl", records)
    shuffled = rng.sample(records, len(records))
    write(folder / "two" / "d" / "a.jsonl", shuffled[:11])
    write(folder / "two" / "d" / "b.jsonl", shuffled[11:])
    one, counts = read(folder / "one", examples_per_dataset=cap)
    two, counts_two = read(folder / "two", examples_per_dataset=cap)
    assert [c for c, _ in one["d"]] == [c for c, _ in two["d"]]
    assert [set(q) for _, q in one["d"]] == [set(q) for _, q in two["d"]]
    assert counts == counts_two


def test_records_without_a_pair_are_passed_over_and_counted(tmp_path):
    bad = [{"context": "c"}, record("c", " "), record("c", ["q"], "a"), record("c", ["q"], ["a", "b"]), record("c", 3)]
    write(tmp_path / "d.jsonl", [*bad, record("c", "q")])
    found, counts = read(tmp_path)
    assert found == {"d": [("c", ["q"])]}
    assert counts["refused_records"] == len(bad)


def test_a_data_set_without_a_usable_record_names_field_and_fix(tmp_path):
    write(tmp_path / "d.jsonl", [{"text": "c", "question": "q", "answer": "a"}])
    with pytest.raises(CorpusError, match=r"d\.jsonl:1: no field 'context'.*text, question, answer") as refused:
        read(tmp_path)
    assert "tasks.contextField" in refused.value.fix


def shots(sizes: list[list[int]]) -> list[Shot]:
    """Contexts and pairs of so many tokens: the first number is the context's."""
    return [
        Shot(f"{i}-" + "c" * (c - 2 - len(str(i)) + 1), tuple(Pair("q" * p, "") for p in pairs))
        for i, (c, *pairs) in enumerate(sizes)
    ]


def parts(shot: Shot) -> list[str]:
    return [shot.document, "".join(pair.question for pair in shot.pairs)]


def fitting(length: int | None) -> Fitting:
    return Fitting(size=lambda texts: [len(text) for text in texts], length=length)


@given(
    sizes=st.lists(st.lists(st.integers(4, 30), min_size=2, max_size=6), max_size=20),
    most=st.integers(1, 5),
    length=st.integers(10, 90),
)
def test_sequences_fit_rows_and_nothing_is_lost_uncounted(sizes, most, length):
    fit = fitting(length)
    given_ = shots(sizes)
    made = list(sequences(given_, most, fit, parts))
    for chain in made:
        assert 1 <= len(chain) <= most
        assert sum(len(text) for shot in chain for text in parts(shot)) <= length
        assert all(shot.pairs for shot in chain)
    kept = [shot for chain in made for shot in chain]
    order = [s.document for s in given_ if s.document in {k.document for k in kept}]
    assert [s.document for s in kept] == order
    pairs = sum(len(s.pairs) for s in given_)
    assert fit.counts["pairs"] == pairs == sum(len(s.pairs) for s in kept) + fit.counts["pairs_cut"]
    assert len(given_) == len(kept) + fit.counts["too_long"]
    # As many as fit: the next shot would have been one too many, or too long.
    for chain, after in zip(made, made[1:], strict=False):
        both = sum(len(text) for shot in (*chain, after[0]) for text in parts(shot))
        assert len(chain) == most or both > length


def test_without_a_limit_only_the_number_counts():
    made = list(sequences(shots([[5, 5]] * 7), 3, fitting(None), parts))
    assert [len(chain) for chain in made] == [3, 3, 1]
