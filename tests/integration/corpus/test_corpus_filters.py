"""Filters of documents: every one has a verdict, counts add up, and the outcome is a function of the documents."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest
from faults import FaultyStore, Killed, kill_points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructpt.api.v1alpha1.corpus import Split
from instructpt.corpus import inspect
from instructpt.corpus.manifest import MANIFEST
from instructpt.corpus.screening import REASONS
from instructpt.corpus.shards import CorpusReader
from instructpt.errors import ConfigError, CorpusError
from instructpt.storage import open_store

RNG = random.Random(5)
NUMBERS = itertools.count()
VOCABULARY = [f"word{i}" for i in range(5000)]


def text(words: int = 60) -> str:
    return " ".join(RNG.choice(VOCABULARY) for _ in range(words))


def changed(original: str, number: int, rng: random.Random = RNG) -> str:
    """The text with so many of its words replaced."""
    words = original.split()
    for place in rng.sample(range(len(words)), number):
        words[place] = f"other{rng.randrange(10**9)}"
    return " ".join(words)


BASE = [text() for _ in range(20)]
GERMAN = "Das ist ein Text in einer anderen Sprache, und er ist nicht lang, aber es sind auch keine wirren Worte."
LOOP = "again and again and over " * 30
QUESTION = "what is the name of the river that flows through the city where the old king was born"
MIXED = [
    *BASE[:10],
    BASE[3],  # duplicate
    "only three words",  # too-short
    text(400),  # too-long
    GERMAN,  # language
    LOOP,  # repetition
    f"{text(20)} {QUESTION} {text(20)}",  # contaminated
    *BASE[10:],
    BASE[3],  # duplicate
    BASE[12] + " end",  # near-duplicate
    LOOP,  # repetition, before it is a duplicate
]
EXPECTED = {
    "filtered": 9,
    "filtered-too-short": 1,
    "filtered-too-long": 1,
    "filtered-language": 1,
    "filtered-repetition": 2,
    "filtered-contaminated": 1,
    "filtered-duplicate": 2,
    "filtered-near-duplicate": 1,
}


@pytest.fixture
def everything(tmp_path):
    (tmp_path / "evaluation.jsonl").write_text(
        json.dumps({"question": QUESTION}) + "\n" + json.dumps({"question": "too short"}) + "\n"
    )
    return {
        "minWords": 5,
        "maxWords": 300,
        "maxRepetition": 0.3,
        "languages": ["en"],
        "decontaminate": {"sets": [{"uri": str(tmp_path / "evaluation.jsonl"), "textField": "question"}]},
        "deduplicate": "minhash",
    }


def filtered(counts):
    return {name: number for name, number in counts.items() if name.startswith("filtered")}


def check_counts(job):
    """Counts add up in every micro-shard and in all, and say what is read."""
    manifest = job.manifest
    reader = CorpusReader(job.store, manifest)
    for entry in manifest.shards:
        counts = entry.counts
        documents = list(reader.read(entry))
        assert counts["records"] == counts["documents"] + counts["filtered"] + counts["invalid"]
        assert counts["filtered"] == sum(n for name, n in counts.items() if name.startswith("filtered-"))
        assert counts["documents"] == len(documents) == counts["tune"] + counts["train"] + counts["heldOut"]
        assert counts["bytes"] == sum(len(d.text.encode()) for d in documents) == entry.bytes
        assert counts["words"] == sum(len(d.text.split()) for d in documents)
        for split in ("tune", "train", "heldOut"):
            assert counts[split] == len(list(reader.read(entry, split=split)))
    totals = Counter()
    for entry in manifest.shards:
        totals.update(entry.counts)
    assert dict(totals) == dict(manifest.counts)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
def test_every_document_has_one_verdict(tmp_path, corpus, write_corpus, everything, name):
    path = write_corpus(tmp_path / "in" / name, MIXED, rows=5)
    source = {"separator": "\n\n"} if name == "a.txt" else {}
    job = corpus(path, filters=everything, per_shard=5, **source)
    result = job.inspect()
    assert filtered(result.counts) == EXPECTED
    assert result.counts["documents"] == 20
    assert job.texts() == BASE
    check_counts(job)
    manifest = job.manifest
    assert manifest.format_version == 2
    verdicts = job.store.get(manifest.extra["filters"]["verdicts"])
    assert [REASONS[v] for v in verdicts].count("kept") == 20
    assert manifest.extra["evaluation"]["items"] == 2
    assert manifest.extra["evaluation"]["too_short"] == 1
    assert manifest.settings["filters"]["deduplicate"] == "minhash"


def test_each_filter_alone_drops_its_own(tmp_path, corpus, write_corpus, everything):
    path = write_corpus(tmp_path / "in" / "a.jsonl", MIXED)
    for number, (name, reasons) in enumerate(
        {
            "minWords": {"filtered-too-short": 1},
            "maxWords": {"filtered-too-long": 1},
            "maxRepetition": {"filtered-repetition": 2},
            "languages": {"filtered-language": 1},
            "decontaminate": {"filtered-contaminated": 1},
            "deduplicate": {"filtered-duplicate": 3, "filtered-near-duplicate": 1},
        }.items()
    ):
        job = corpus(path, tmp_path / str(number), filters={name: everything[name]})
        assert filtered(job.inspect().counts) == {"filtered": sum(reasons.values()), **reasons}, name
        check_counts(job)


def test_exact_keeps_what_is_only_alike(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", MIXED), filters={"deduplicate": "exact"})
    assert filtered(job.inspect().counts) == {"filtered": 3, "filtered-duplicate": 3}


def test_without_filters_nothing_is_written_of_them(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", MIXED))
    result = job.inspect()
    assert filtered(result.counts) == {}
    assert job.manifest.format_version == 1
    assert "filters" not in job.manifest.extra
    assert "filters" not in job.manifest.settings
    assert not [info.key for info in job.store.list() if "verdicts" in info.key or info.key.endswith(".rows")]


def test_near_duplicates_are_found_at_the_stated_similarity(tmp_path, corpus, write_corpus):
    """100 pairs a step; runs of 5 words: k changed words of 300 leave a similarity of about (296-5k)/(296+5k)."""
    rng = random.Random(11)
    found = {}
    for number in (3, 6, 12, 20):
        originals = [" ".join(rng.choice(VOCABULARY) for _ in range(300)) for _ in range(100)]
        texts = [t for one in originals for t in (one, changed(one, number, rng))]
        job = corpus(
            write_corpus(tmp_path / f"in{number}" / "a.jsonl", texts),
            tmp_path / f"out{number}",
            filters={"deduplicate": "minhash", "similarity": 0.8},
        )
        found[number] = job.inspect().counts.get("filtered-near-duplicate", 0)
        assert set(originals) <= set(job.texts()), "the first of a pair stays"
    # Similarities are about 0.90, 0.82, 0.66 and 0.50; predicted are 100, 96, 44 and 6 %.
    assert found[3] >= 97
    assert found[6] >= 90
    assert 25 <= found[12] <= 65
    assert found[20] <= 15


def test_a_second_deduplication_drops_nothing(tmp_path, corpus, write_corpus):
    rng = random.Random(3)
    texts = [changed(rng.choice(BASE), rng.randrange(8), rng) for _ in range(300)]
    first = corpus(write_corpus(tmp_path / "in" / "a.jsonl", texts), filters={"deduplicate": "minhash"})
    counts = first.inspect().counts
    assert counts["filtered-near-duplicate"] > 50
    again = corpus(
        write_corpus(tmp_path / "again" / "a.jsonl", first.texts()), tmp_path / "2", filters={"deduplicate": "minhash"}
    )
    assert filtered(again.inspect().counts) == {"filtered": 0}


def outcome(job):
    """What depends on no boundary: the documents that are kept, and the counts."""
    counts = {n: c for n, c in job.manifest.counts.items() if n != "tokens"}
    return [(d.id, d.text) for d in job.documents()], counts


def test_shards_and_workers_change_nothing(tmp_path, corpus, write_corpus, everything):
    folder = tmp_path / "in"
    for number in range(4):
        write_corpus(folder / f"{number}.jsonl", MIXED[number::4] + BASE[number * 3 : number * 3 + 5])
    outcomes = []
    for per_shard, order in ((1000, [0]), (3, [0]), (7, [2, 0, 1]), (1, [1, 0])):
        job = corpus(folder, tmp_path / f"out-{per_shard}", filters=everything, per_shard=per_shard)
        for replica in order:
            job.run(replica, len(order))
        job.finalize()
        check_counts(job)
        outcomes.append(outcome(job))
    assert all(one == outcomes[0] for one in outcomes)


def test_workers_that_come_in_any_order_give_the_same_manifest(tmp_path, corpus, write_corpus, everything):
    folder = tmp_path / "in"
    for number in range(4):
        write_corpus(folder / f"{number}.jsonl.gz", MIXED[number::4])
    manifests = set()
    for order in ([0], [0, 1, 2], [2, 1, 0]):
        job = corpus(folder, tmp_path / f"{order}", filters=everything)
        for replica in order:
            job.run(replica, len(order))
        job.finalize()
        manifests.add(job.store.get(MANIFEST))
    assert len(manifests) == 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_is_lost_whatever_the_documents(tmp_path, corpus, data):
    words = st.lists(st.sampled_from(["a", "b", "the", "und", "x"]), min_size=1, max_size=12).map(" ".join)
    texts = data.draw(st.lists(words, min_size=1, max_size=25))
    chosen = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "minWords": st.integers(1, 3),
                "maxWords": st.integers(6, 12),
                "maxRepetition": st.sampled_from([0.2, 0.6]),
                "deduplicate": st.sampled_from(["exact", "minhash"]),
                "similarity": st.sampled_from([0.5, 0.9]),
            },
        )
    )
    where = f"memory://filters-{next(NUMBERS)}"
    store = open_store(f"{where}/in")
    store.put("a.jsonl", b"".join(json.dumps({"text": t}).encode() + b"\n" for t in texts))
    job = corpus(f"{where}/in/", f"{where}/out", filters=chosen, per_shard=data.draw(st.integers(1, 30)))
    try:
        result = job.inspect()
    except CorpusError as error:
        assert "the filters leave out all of" in str(error)  # noqa: PT017  # any other is a failure
        return
    assert result.counts["documents"] + result.counts["filtered"] == len(texts)
    check_counts(job)
    kept = job.texts()
    if "deduplicate" in chosen:
        assert kept == [t for t in dict.fromkeys(texts) if t in set(kept)]
    else:
        assert kept == [t for t in texts if t in set(kept)]


def test_every_kill_leads_to_the_same_bytes(request, corpus, write_corpus, tmp_path, everything, monkeypatch):
    folder = tmp_path / "in"
    write_corpus(folder / "a.jsonl", MIXED[:15])
    write_corpus(folder / "b.jsonl.gz", MIXED[15:])
    where = f"memory://{request.node.name}"
    expected = None
    undisturbed = FaultyStore(open_store(f"{where}/0"))
    job = corpus(folder, f"{where}/0", filters=everything)
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "open_store", lambda uri, access=None: undisturbed)
        job.inspect()
    expected = {info.key: job.store.get(info.key) for info in job.store.list()}
    # n-grams; two results, two of rows, a raw copy; an older manifest taken away, source, verdicts and the manifest
    assert undisturbed.writes == 10
    for index, (number, moment) in enumerate(kill_points(undisturbed.writes), start=1):
        job = corpus(folder, f"{where}/{index}", filters=everything)
        faulty = FaultyStore(open_store(job.output), kill_at=number, moment=moment)
        with monkeypatch.context() as patch:
            patch.setattr(inspect, "open_store", lambda uri, access=None, faulty=faulty: faulty)
            with pytest.raises(Killed):
                job.inspect()
        job.inspect()
        assert {info.key: job.store.get(info.key) for info in job.store.list()} == expected, (number, moment)


def test_a_tokenizer_counts_what_is_kept(tmp_path, corpus, write_corpus, everything):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    path = write_corpus(tmp_path / "in" / "a.jsonl", MIXED)
    job = corpus(path, filters=everything, tokenizer=str(tmp_path / "tokenizer.json"))
    counts = job.inspect().counts
    assert counts["tokens"] == counts["words"] == 20 * 60


def test_filters_that_leave_out_everything_are_refused_with_the_numbers(tmp_path, corpus, write_corpus):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", ["a b", "c", "d"]), filters={"minWords": 9})
    with pytest.raises(
        CorpusError, match=r"spec.corpus.filters=\{'minWords': 9\}: .*leave out all of 3 documents: too-short 3"
    ):
        job.inspect()
    assert not job.store.exists(MANIFEST)


def test_verdicts_that_were_tampered_with_are_refused(tmp_path, corpus, write_corpus, everything):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", MIXED), filters=everything)
    job.inspect()
    key = job.manifest.extra["filters"]["verdicts"]
    found = bytearray(job.store.get(key))
    assert REASONS[found[10]] == "duplicate"
    found[10] = 0
    job.store.put(key, bytes(found))
    with pytest.raises(CorpusError, match="is not what the manifest counts"):
        job.texts()


def test_other_filters_inspect_again_and_a_changed_evaluation_set_is_another_object(
    tmp_path, corpus, write_corpus, everything
):
    path = write_corpus(tmp_path / "in" / "a.jsonl", MIXED)
    job = corpus(path, filters={"minWords": 5})
    assert job.inspect().counts["filtered"] == 1
    job.filters = everything
    assert filtered(job.inspect().counts) == EXPECTED
    first = job.manifest.extra["evaluation"]["digest"]
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"question": " ".join(BASE[0].split()[:20])}) + "\n")
    other = corpus(path, tmp_path / "other", filters=everything)
    assert other.inspect().counts["filtered-contaminated"] == 1
    assert BASE[0] not in other.texts()
    assert other.manifest.extra["evaluation"]["digest"] != first
    job.store.delete(MANIFEST)
    job.inspect()
    assert job.store.get(MANIFEST) == other.store.get(MANIFEST), "nothing judged by the set before is used again"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"question": "too short"}, "none of the 1 items has 13 words"),
        ({"answer": "x"}, r"sets\[0\].textField='question': .*is no item: missing-field"),
    ],
)
def test_an_evaluation_set_that_would_find_nothing_is_refused(
    tmp_path, corpus, write_corpus, everything, item, message
):
    (tmp_path / "evaluation.jsonl").write_text(json.dumps(item) + "\n")
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", MIXED), filters=everything)
    with pytest.raises(ConfigError, match=message):
        job.run()


def test_a_near_duplicate_never_stands_on_both_sides_of_a_split(tmp_path, corpus, write_corpus):
    texts = [t for one in BASE for t in (one, one + " end")]
    split = Split(tune=0.0, train=0.5, held_out=0.5)
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", texts), filters={"deduplicate": "minhash"}, split=split)
    job.inspect()
    assert job.texts() == BASE


def test_a_worker_tells_what_it_left_out(tmp_path, corpus, write_corpus, everything):
    job = corpus(write_corpus(tmp_path / "in" / "a.jsonl", MIXED), filters=everything)
    told = job.run().progress.snapshot()["counts"]
    assert told["filtered-repetition"] == 2
    assert told["filtered-language"] == 1
