from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow
from instructpt.synthesis.model import Pair, make_pair, parts_of
from instructpt.synthesis.worlds import judge, make_example, make_examples, score, write_collection
from instructpt.synthesis.worlds.__main__ import main
from instructpt.synthesis.worlds.domains import DOMAINS
from instructpt.synthesis.worlds.vocabulary import KINDS, is_held_out

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "tasks"


@given(seed=st.integers(0, 10_000), domain=st.sampled_from(DOMAINS), held_out=st.booleans())
def test_every_answer_of_an_example_is_right_and_stands_in_its_text(seed, domain, held_out):
    example = make_example(str(seed), domain, held_out=held_out)
    assert example == make_example(str(seed), domain, held_out=held_out)
    assert 1 <= len(example.pairs) <= 5
    for pair, fact in zip(example.pairs, example.facts, strict=False):
        assert judge(example, pair) == "right"
        parts = parts_of(pair.question, pair.answer)
        assert parts.conclusion in ("Yes", "No", fact.value)
        assert fact.value.lower() in example.context.lower()
        wrong = "No" if pair.answer == "Yes" else "Yes" if pair.answer == "No" else "Nobody"
        assert judge(example, make_pair(pair.question, wrong)) == "wrong"
    assert not any(mark in example.context for mark in ("{", "<"))


def test_training_and_held_out_share_no_name_and_no_held_out_wording():
    train, unseen = make_examples(1, 150), make_examples(1, 150, held_out=True)
    for examples, side in ((train, False), (unseen, True)):
        for example in examples:
            domain = next(d for d in DOMAINS if d.name == example.domain)
            for fact in example.facts:
                if domain.subject in ("person", "place"):
                    assert {is_held_out(word) for word in fact.subject.split()} == {side}
    last = [a.says[-1] for d in DOMAINS for a in d.attributes]
    marks = {max(says.replace("{s}", "|").replace("{v}", "|").split("|"), key=len) for says in last}
    assert not any(mark in example.context for mark in marks for example in train)
    assert sum(any(mark in example.context for mark in marks) for example in unseen) > 100


def test_wordings_are_different_and_name_subject_and_value():
    for domain in DOMAINS:
        for attribute in domain.attributes:
            assert attribute.kind in KINDS
            assert len(set(attribute.says)) == len(attribute.says) >= 5
            assert all(says.count("{s}") == says.count("{v}") == 1 for says in (*attribute.says, *attribute.checks))
            assert all(ask.count("{s}") == 1 and "{v}" not in ask for ask in attribute.asks)
        questions = [q for a in domain.attributes for q in (*a.asks, *a.checks)]
        assert len(set(questions)) == len(questions)


def test_what_a_document_does_not_state_is_unknown():
    example = make_example("1", DOMAINS[0])
    asked = Pair("Where was Nobody At All born?", "Nowhere")
    assert judge(example, asked) == "unknown"
    assert judge(example, Pair("What is the meaning of it?", "42")) == "unknown"
    fact = example.facts[0]
    ask = DOMAINS[0].attribute(fact.attribute).asks[0].format(s=fact.subject)
    assert judge(example, make_pair(f"{ask}\nOptions:\n- one\n- two", fact.value)) == "wrong"


def test_a_synthesizers_pairs_are_scored_by_document_and_pair():
    first, second = make_examples(3, 1)[:2]
    good = tuple(PairRow(question=p.question, answer=p.answer, kind=p.kind) for p in first.pairs)
    bad = (PairRow(question=good[0].question, answer="Nobody", kind="free"),)
    shots = tuple(
        ShotRow(
            document=str(i), text=text, pairs=pairs, verdict="augmented", reason="", attempts=1, prompt_tokens=0,
            completion_tokens=0,
        )
        for i, (text, pairs) in enumerate([(first.context, good + bad), (second.context, ()), ("another text", bad)])
    )  # fmt: skip
    made = score([first, second], [ChainRow(id="0/0", text="t", shots=shots, templates=(), seed=1)])
    assert (made.documents, made.with_pairs, made.parse_rate) == (2, 1, 0.5)
    assert (made.pairs, made.right, made.wrong, made.unknown) == (len(good) + 1, len(good), 1, 0)
    assert made.accuracy == pytest.approx(len(good) / (len(good) + 1))


def test_the_collection_of_the_repository_is_what_the_command_writes(tmp_path):
    written = write_collection(tmp_path, make_examples(1, 12))
    assert (
        {p.name for p in written} == {p.name for p in EXAMPLES.glob("*.jsonl")} == {f"{d.name}.jsonl" for d in DOMAINS}
    )
    for path in written:
        assert path.read_bytes() == (EXAMPLES / path.name).read_bytes(), f"python -m {main.__module__} tasks again"


def test_a_corpus_is_documents_alone(tmp_path, capsys):
    main(["corpus", str(tmp_path / "c" / "unseen.jsonl"), "--examples", "3", "--seed", "5"])
    lines = [json.loads(line) for line in (tmp_path / "c" / "unseen.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"text"}] * 18
    assert {line["text"] for line in lines} == {e.context for e in make_examples(5, 3, held_out=True)}
    assert "18 documents" in capsys.readouterr().out
