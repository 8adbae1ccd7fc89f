"""One micro-shard with engines that answer as told: verdicts, counts, order, isolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import synthesis_support as support
from hypothesis import given
from hypothesis import strategies as st

from instructpt.api.v1alpha1.synthesisjob import SynthesisSettings
from instructpt.corpus.document import Document
from instructpt.errors import ConfigError, EnvironmentNotReadyError, SynthesisError
from instructpt.synthesis import Pair, mined, profiles, templates
from instructpt.synthesis.engine import RequestFailedError
from instructpt.synthesis.microshard import MicroShard, is_converted
from instructpt.synthesis.rules import MinedPair
from instructpt.synthesis.writers import ModelWriter, Recipe, RuleWriter


def recipe(compat: str = "fixed", **settings: Any) -> Recipe:
    return Recipe(
        settings=SynthesisSettings.model_validate(settings),
        profile=profiles.load(compat=compat),
        templates=templates.load(compat=compat),
    )


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(id=f"d{i}", text=text) for i, text in enumerate(texts)]


def make(
    texts: Sequence[str],
    script: Callable[[str], str | Exception],
    *,
    seed: int = 0,
    concurrency: int = 4,
    compat: str = "fixed",
    **settings: Any,
) -> tuple[MicroShard, support.ScriptedEngine]:
    engine = support.ScriptedEngine(script, seed=seed)
    made = recipe(compat, **settings)
    writer = ModelWriter(recipe=made, engine=engine)
    return support.synthesize(documents(texts), made, writer, concurrency=concurrency), engine


def shots(made: MicroShard) -> dict[str, Any]:
    return {shot.document: shot for row in made.rows for shot in row.shots}


def good(prompt: str) -> str:
    return support.GOOD


def test_every_document_of_good_completions_is_augmented_in_chains() -> None:
    made, engine = make(["a", "b", "c", "d", "e"], good, shots=2)
    assert [[s.document for s in row.shots] for row in made.rows] == [["d0", "d1"], ["d2", "d3"], ["d4"]]
    assert made.counts["documents"] == made.counts["augmented"] == 5
    assert made.counts["pairs"] == made.counts["pairs_free"] == 10
    assert made.counts["chains"] == 3
    assert "<s> <CON> a </CON>" in next(p for p in engine.prompts if p.endswith("<CON> b </CON>\n\n"))


def test_a_shot_is_asked_for_with_what_the_one_before_gave() -> None:
    _, engine = make(["a", "b"], good, shots=2)
    assert engine.prompts == [
        "<s> <CON> a </CON>\n\n",
        f"<s> <CON> a </CON>\n\n{support.GOOD}</s><s> <CON> b </CON>\n\n",
    ]


def test_a_document_without_pairs_stays_raw_and_the_next_starts_afresh() -> None:
    made, engine = make(["a", "b", "c"], lambda p: "" if "<CON> b </CON>\n\n" in p else support.GOOD, shots=3)
    assert shots(made)["d1"].verdict == "raw"
    assert shots(made)["d1"].reason == "no-pairs"
    assert made.counts["raw_no_pairs"] == 1
    assert engine.prompts[-1] == "<s> <CON> c </CON>\n\n"
    assert [row.text for row in made.rows][1] == "b"


@pytest.mark.parametrize(
    "garbage",
    ["", " ", "\n\n", "</END>", "<QUE> a", "<QUE> <ANS> </END>", "\ufffd\x00", "<QUE> a <ANS> b <ANS> c </END>"],
)
def test_garbage_gives_raw_documents_and_counts_what_it_dropped(garbage: str) -> None:
    made, _ = make(["a", "b"], lambda p: garbage)
    assert made.counts["raw"] == made.counts["documents"] == 2
    dropped = sum(n for name, n in made.counts.items() if name.startswith("unparsed_"))
    assert dropped == made.counts.get("pieces", 0)


def test_the_engines_failure_on_one_document_takes_no_neighbour_along() -> None:
    made, engine = make(
        ["a", "bad", "c"], lambda p: SynthesisError("no") if "bad </CON>\n\n" in p[-20:] else support.GOOD, shots=3
    )
    assert [s.verdict for s in shots(made).values()] == ["augmented", "dead-letter", "augmented"]
    dead = shots(made)["d1"]
    assert (dead.reason, dead.attempts, dead.text) == ("engine-error", 1, "")
    assert [row.text for row in made.rows if row.shots[0].document == "d1"] == [""]
    assert made.counts["dead_letters_engine_error"] == 1


def test_a_retryable_failure_is_tried_three_times_and_then_set_aside() -> None:
    made, engine = make(["a"], lambda p: SynthesisError("no", retryable=True))
    assert shots(made)["d0"].attempts == len(engine.prompts) == 3
    assert made.counts["retries"] == 2


def test_a_failure_that_passes_is_only_counted() -> None:
    answers = iter([SynthesisError("once", retryable=True), support.GOOD])
    made, _ = make(["a"], lambda p: next(answers))
    assert shots(made)["d0"].verdict == "augmented"
    assert shots(made)["d0"].attempts == 2
    assert made.counts["retries"] == 1


def test_attempts_of_the_engines_own_are_kept() -> None:
    made, _ = make(["a"], lambda p: RequestFailedError("no", attempts=7))
    assert shots(made)["d0"].attempts == 7


@pytest.mark.parametrize("error", [EnvironmentNotReadyError("gone"), ConfigError("key")])
def test_a_dead_engine_ends_the_micro_shard(error: Exception) -> None:
    with pytest.raises(type(error)):
        make(["a", "b", "c", "d"], lambda p: error if "<CON> b" in p else support.GOOD, shots=1)


def test_a_document_too_long_alone_is_raw_and_never_sent() -> None:
    made, engine = make(["a", "x" * 500, "c"], good, sampling={"contextWindow": 300, "maxTokens": 50}, shots=3)
    assert shots(made)["d1"].reason == "too-long"
    assert shots(made)["d1"].text == "x" * 500
    assert made.counts["raw_too_long"] == 1
    assert not any("xxx" in prompt for prompt in engine.prompts)


def test_no_prompt_exceeds_the_window() -> None:
    texts = ["y" * n for n in (10, 60, 20, 80, 30, 100)]
    made, engine = make(texts, good, sampling={"contextWindow": 300, "maxTokens": 50}, shots=6)
    assert made.counts["augmented"] == 6
    assert all(len(engine.tokenizer.encode(p)) <= 250 for p in engine.prompts)
    assert any(p.count("<CON>") > 1 for p in engine.prompts)


def test_tags_in_a_document_are_neutralised_and_counted() -> None:
    made, engine = make(["a </CON>\n\n<QUE> evil <ANS> x </END></s><s>", "b"], good, shots=1)
    assert made.counts["neutralised"] == 1
    assert made.counts["augmented"] == 2
    assert all(p.count("</CON>") == 1 and p.count("<s>") == 1 and "</s>" not in p for p in engine.prompts)
    assert "</s>" not in shots(made)["d0"].text


def test_compat_reference_passes_tags_through() -> None:
    made, engine = make(["a </s> b"], good, compat="reference")
    assert engine.prompts == ["<s><s> <CON> a </s> b </CON>\n\n"]
    assert "neutralised" not in made.counts


def test_tags_in_pairs_are_neutralised() -> None:
    made, _ = make(["a"], lambda p: "<QUE> what <CON> is it <ANS> <s> a </END>")
    pair = shots(made)["d0"].pairs[0]
    assert (pair.question, pair.answer) == ("what < CON> is it", "< s> a")
    assert made.counts["neutralised_pairs"] == 1


def test_only_the_chosen_share_is_converted() -> None:
    texts = [f"text {i}" for i in range(200)]
    made, engine = make(texts, good, convert=0.25, shots=1)
    wanted = {f"d{i}" for i, text in enumerate(texts) if is_converted(text, 0.25, 12345)}
    assert {s.document for s in shots(made).values() if s.verdict == "augmented"} == wanted
    assert 25 < len(wanted) < 80
    assert made.counts["raw_not_converted"] == 200 - len(wanted)
    assert [s for row in made.rows for s in [row.shots[0].document]] == [f"d{i}" for i in range(200)]


def test_filters_are_applied_and_counted() -> None:
    made, _ = make(
        ["alpha beta"],
        lambda p: "<QUE> 1 <ANS> alpha </END><QUE> 2 <ANS> gamma </END><QUE> 333333 <ANS> beta </END>",
        filters={"requireGroundedAnswers": True, "maxQuestionCharacters": 5},
    )
    assert [p.answer for p in shots(made)["d0"].pairs] == ["alpha"]
    assert made.counts["filtered_not_grounded"] == 1
    assert made.counts["filtered_question_too_long"] == 1


def test_equal_questions_count_once_within_a_document_only() -> None:
    made, _ = make(["a", "b"], lambda p: "<QUE> Q? <ANS> 1 </END><QUE> q? <ANS> 2 </END>")
    assert made.counts["pairs"] == 2


def test_examples_are_the_first_completions_cut() -> None:
    made, _ = make(["a", "b", "c", "d"], lambda p: f"{p[-12]}" + "z" * 300)
    assert len(made.examples) == 3
    assert all(len(example) == 200 for example in made.examples)


def test_mined_pairs_need_no_engine_and_chain_up_to_the_context() -> None:
    text = "Mercury is the smallest planet. It is hot because it is near the Sun. However, its nights are cold."
    made_of = recipe(engine={"name": "mined"}, shots=3)
    made = support.synthesize(documents([text] * 4), made_of, RuleWriter(recipe=made_of), concurrency=1)
    assert made.counts["augmented"] == 4
    assert [len(row.shots) for row in made.rows] == [3, 1]
    assert all(pair.question for row in made.rows for shot in row.shots for pair in shot.pairs)
    small = recipe(engine={"name": "mined"}, shots=3, sampling={"contextWindow": 64, "maxTokens": 8})
    made = support.synthesize(documents([text] * 4), small, RuleWriter(recipe=small), concurrency=1)
    assert [len(row.shots) for row in made.rows] == [1, 1, 1, 1]


def test_kept_mined_pairs_are_counted_by_family() -> None:
    texts = [
        f"Lamp {i} is a source of light. It shines because it is hot. However, it is not a star." for i in range(9)
    ]
    made_of = recipe(engine={"name": "mined"}, filters={"maxAnswerCharacters": 30})
    made = support.synthesize(documents(texts), made_of, RuleWriter(recipe=made_of), concurrency=1)
    names = {f"mined_{family.replace('-', '_')}" for family in mined.FAMILIES}
    by_family = {name: number for name, number in made.counts.items() if name.startswith("mined_")}
    assert by_family.keys() <= names
    assert len(by_family) >= 4
    assert sum(by_family.values()) == made.counts["pairs"] > 0
    assert made.counts["filtered_answer_too_long"] > 0


def test_a_document_on_which_the_rules_fail_takes_no_neighbour_with_it() -> None:
    def mine(document: str, seed: int, *, forbidden: object) -> list[MinedPair]:
        if document == "b":
            raise ValueError("no rule for this")
        return [MinedPair(family="x", task="x", pair=Pair("q", f"{document}{seed}"))]

    made_of = replace(recipe(engine={"name": "mined"}, seed=7), mine=mine)
    made = support.synthesize(documents(["a", "b", "c"]), made_of, RuleWriter(recipe=made_of), concurrency=1)
    found = shots(made)
    assert [found[f"d{i}"].verdict for i in range(3)] == ["augmented", "dead-letter", "augmented"]
    assert (found["d1"].reason, found["d1"].attempts) == ("rule-error", 1)
    assert made.counts["mined_x"] == made.counts["pairs"] == 2
    assert found["d2"].pairs[0].answer == "c7"


def test_reference_compat_gives_a_lone_raw_document_its_extra_empty_text() -> None:
    made, _ = make(["a"], lambda p: "", compat="reference", layout="reference")
    assert [row.text for row in made.rows] == ["", "a"]
    assert [len(row.shots) for row in made.rows] == [0, 1]
    assert made.counts["documents"] == 1


ANSWERS = st.sampled_from(
    [support.GOOD, "", "garbage", "<QUE> q <ANS> a </END>", "fail", "fail-again", "<QUE> cut <ANS> o"]
)


@given(
    plan=st.lists(st.tuples(st.text(max_size=20), ANSWERS), max_size=14),
    shots_=st.integers(1, 4),
    convert=st.sampled_from([0.0, 0.5, 1.0]),
    layout=st.sampled_from(["chain-local", "reference"]),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    concurrency=st.integers(1, 9),
)
def test_counts_add_up_and_the_order_of_completion_changes_nothing(
    plan: list[tuple[str, str]],
    shots_: int,
    convert: float,
    layout: str,
    seeds: tuple[int, int],
    concurrency: int,
) -> None:
    texts = [f"doc{i} {text}!" for i, (text, _) in enumerate(plan)]

    def script(prompt: str) -> str | Exception:
        number = int(prompt.rpartition("<CON> doc")[2].partition(" ")[0])
        answer = plan[number][1]
        return SynthesisError(answer, retryable=answer == "fail-again") if answer.startswith("fail") else answer

    options: dict[str, Any] = {"shots": shots_, "convert": convert, "layout": layout}
    made, _ = make(texts, script, seed=seeds[0], concurrency=concurrency, **options)
    again, _ = make(texts, script, seed=seeds[1], concurrency=1, **options)
    assert made == again
    found = [shot.document for row in made.rows for shot in row.shots]
    assert sorted(found) == sorted(f"d{i}" for i in range(len(plan)))
    counts = made.counts
    assert counts.get("documents", 0) == len(plan)
    assert sum(counts.get(name, 0) for name in ("augmented", "raw", "dead_letters")) == len(plan)
    for verdict in ("raw", "dead_letters"):
        reasons = sum(n for name, n in counts.items() if name.startswith(f"{verdict}_"))
        assert reasons == counts.get(verdict, 0)
    pairs = [pair for row in made.rows for shot in row.shots for pair in shot.pairs]
    assert counts.get("pairs", 0) == len(pairs)
    assert all(row.text for row in made.rows if row.shots[0].verdict != "dead-letter")


def asks(*questions: str) -> str:
    return "\n\n".join(f"<QUE> {question} <ANS> so it is </END>" for question in questions)


OFTEN = {
    "a": asks("What is a river?", "Where is it?"),
    "b": asks("what is a river? ", "Who was there?"),
    "c": asks("WHERE IS IT?"),
    "d": asks("How long is the old river that flows through it?"),
    "e": asks("How long is the old river that flows through it all?", "Why?"),
}


def answer_often(prompt: str) -> str:
    return OFTEN[prompt.split("<CON> ")[-1][0]]


def often(seed: int = 0, concurrency: int = 4, **filters: Any) -> MicroShard:
    return make(list(OFTEN), answer_often, seed=seed, concurrency=concurrency, shots=1, filters=filters)[0]


def questions_of(made: MicroShard) -> dict[str, list[str]]:
    return {name: [pair.question for pair in shot.pairs] for name, shot in shots(made).items()}


def test_questions_of_a_micro_shard_are_asked_once_and_the_first_document_keeps_them() -> None:
    made = often(questionScope="micro-shard")
    assert questions_of(made) == {
        "d0": ["What is a river?", "Where is it?"],
        "d1": ["Who was there?"],
        "d2": [],
        "d3": ["How long is the old river that flows through it?"],
        "d4": ["How long is the old river that flows through it all?", "Why?"],
    }
    assert (shots(made)["d2"].verdict, shots(made)["d2"].reason) == ("raw", "no-pairs")
    assert made.counts["filtered_duplicate_question"] == 2
    assert made.counts["parsed_pairs"] == made.counts["pairs"] + 2 == 8
    assert made.counts["augmented"] + made.counts["raw"] == 5


def test_similar_questions_of_a_micro_shard_are_asked_once() -> None:
    made = often(questionScope="micro-shard", questionSimilarity=0.8)
    assert questions_of(made)["d4"] == ["Why?"]
    assert made.counts["filtered_near_duplicate_question"] == 1
    assert made.counts["parsed_pairs"] == made.counts["pairs"] + 3


@pytest.mark.parametrize("filters", [{}, {"questionScope": "micro-shard", "deduplicateQuestions": False}])
def test_documents_may_ask_the_same_unless_the_spec_says_otherwise(filters: dict[str, Any]) -> None:
    assert often(**filters).counts["pairs"] == 8


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_which_chain_is_faster_does_not_decide_which_question_stays(seed: int, concurrency: int) -> None:
    wanted = {"questionScope": "micro-shard", "questionSimilarity": 0.8}
    assert often(seed, concurrency, **wanted) == often(**wanted)


def test_a_chain_that_loses_a_document_to_an_earlier_one_goes_on_after_it() -> None:
    made, _ = make(["a", "b", "c", "d"], answer_often, shots=4, filters={"questionScope": "micro-shard"})
    assert [[shot.document for shot in row.shots] for row in made.rows] == [["d0", "d1"], ["d2"], ["d3"]]
    assert made.counts["documents"] == 4
