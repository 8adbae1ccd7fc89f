from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.synthesis import Pair, Shot, make_pair, templates
from instructpt.synthesis.model import parts_of, with_options, with_reasoning
from instructpt.synthesis.templates.lint import overlap
from instructpt.synthesis.templates.patterns import Pattern, PatternSet, native, substitute, substitute_reference
from instructpt.synthesis.templates.shapes import letters

NATIVE = templates.load()
REFERENCE = templates.load(compat="reference")

word = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["{question}", "{document}", "{answer}", "{pairs}", "{n}", "{}", "\nOptions:\n- ", "\\1", "%s", "$x"]
)
options = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=30, unique=True)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    question, answer = draw(word), draw(word)
    if draw(st.booleans()):
        offered = draw(options)
        question = with_options(question, offered)
        answer = draw(st.sampled_from([*offered, answer]))
    return with_reasoning(question, draw(word), answer) if draw(st.booleans()) else make_pair(question, answer)


shots = st.builds(Shot, word, st.lists(pairs(), max_size=4).map(tuple))
chains = st.lists(shots, min_size=1, max_size=3)
seeds = st.integers(0, 10**6)


def in_order(text: str, parts: list[str]) -> bool:
    """Whether the parts stand in the text one after the other."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


@settings(deadline=None)
@given(chains, seeds)
def test_nothing_of_a_chain_is_lost(chain: list[Shot], seed: int):
    rendered = NATIVE.render_with_ids(chain, seed)
    assert not rendered.dropped
    assert in_order(rendered.text, [shot.document for shot in chain])
    for shot in chain:
        for pair in shot.pairs:
            parts = parts_of(pair.question, pair.answer)
            assert parts.stem in rendered.text
            assert parts.reasoning in rendered.text
            assert all(option in rendered.text for option in parts.options)
            gold = parts.conclusion.strip().removesuffix("." if parts.reasoning else "")
            assert gold in rendered.text


@settings(deadline=None)
@given(chains, seeds)
def test_same_chain_and_seed_same_text(chain: list[Shot], seed: int):
    assert NATIVE.render(chain, seed) == templates.load().render(tuple(chain), seed)


@settings(deadline=None)
@given(st.lists(st.builds(Shot, word), min_size=1, max_size=3), seeds)
def test_documents_without_pairs_stay_as_they_are(chain: list[Shot], seed: int):
    rendered = NATIVE.render_with_ids(chain, seed)
    assert rendered.text == "\n\n".join(shot.document for shot in chain)
    assert rendered.template_ids == ()
    assert len(NATIVE.render_rows(chain, seed)) == 1


def test_empty_chain_is_empty_text():
    assert NATIVE.render([], 0) == ""


def test_text_is_the_same_in_another_process():
    # Neither the hash seed nor anything else of a process may decide a pattern.
    code = (
        "from instructpt.synthesis import templates, Shot, Pair;"
        "print([templates.load().render([Shot('d', (Pair('q', 'a'), Pair('r', 'b')))], s) for s in range(20)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1


def shape_counts(chain: list[Shot], number: int = 4000) -> Counter[str]:
    return Counter(NATIVE.render_with_ids(chain, seed).template_ids[0] for seed in range(number))


def test_shapes_have_their_shares():
    two = (Pair("q1", "a1"), Pair("q2", "a2"))
    counts = shape_counts([Shot("d", two), Shot("e", two)])
    assert set(counts) == {"classic", "dialog", "numbered", "inline", "next-turn"}
    assert 0.77 < counts["classic"] / 4000 < 0.83
    assert all(0.035 < counts[shape] / 4000 < 0.065 for shape in counts.keys() - {"classic"})


def test_few_pairs_leave_two_shapes():
    two, one = (Pair("q1", "a1"), Pair("q2", "a2")), (Pair("q3", "a3"),)
    counts = shape_counts([Shot("d", two), Shot("e", one)])
    assert set(counts) == {"classic", "dialog"}
    assert 0.935 < counts["classic"] / 4000 < 0.965


def test_one_text_in_twenty_is_inverted():
    chain = [Shot("THE DOCUMENT", (Pair("THE QUESTION", "a1"), Pair("q2", "a2")))]
    inverted = 0
    for seed in range(4000):
        rendered = NATIVE.render_with_ids(chain, seed)
        if rendered.template_ids[0] in ("classic", "dialog") and any("inverted" in x for x in rendered.template_ids):
            inverted += 1
            assert rendered.text.index("THE QUESTION") < rendered.text.index("THE DOCUMENT")
    assert 0.03 < inverted / 4000 < 0.065


def test_few_texts_are_alike():
    chain = [Shot("d", (Pair("q1", "a1"), Pair("q2\nOptions:\n- a\n- b", "b")))]
    assert len({NATIVE.render(chain, seed) for seed in range(500)}) > 480


def find(chain: list[Shot], shape: str, used: templates.Templates = NATIVE) -> templates.Rendered:
    return next(
        rendered for seed in range(2000) if (rendered := used.render_with_ids(chain, seed)).template_ids[:1] == (shape,)
    )


def test_gold_answer_missing_from_its_options_keeps_the_pair():
    pair = make_pair("Which?\nOptions:\n- red\n- blue", "green")
    chain = [Shot("d", (pair,))]
    for seed in range(50):
        rendered = NATIVE.render_with_ids(chain, seed)
        assert rendered.repaired == {"gold-not-in-options": 1}
        assert pair.question in rendered.text
        assert "green" in rendered.text
        reference = REFERENCE.render_with_ids(chain, seed)
        assert reference.dropped == {"gold-not-in-options": 1}
        assert "green" not in reference.text


def test_more_than_26_options_are_all_listed():
    offered = [f"option{index}" for index in range(40)]
    chain = [Shot("d", (make_pair(with_options("Which?", offered), "option39"),))]
    for seed in range(50):
        rendered = NATIVE.render_with_ids(chain, seed)
        assert all(option in rendered.text for option in offered)
        assert not rendered.repaired
    assert REFERENCE.render_with_ids(chain, 1).dropped == {"too-many-options": 1, "gold-not-in-options": 1}


def test_more_than_26_numbered_questions_are_all_written():
    chain = [Shot("d", tuple(Pair(f"question{index};", f"answer{index};") for index in range(40)))]
    rendered = find(chain, "numbered")
    assert all(f"{kind}{index};" in rendered.text for kind in ("question", "answer") for index in range(40))
    reference = find(chain, "numbered", REFERENCE)
    assert reference.dropped == {"too-many-questions": 14}
    assert "question26;" not in reference.text


def test_lone_raw_document_adds_an_empty_text_in_reference_only():
    chain = [Shot("d")]
    assert [row.text for row in NATIVE.render_rows(chain, 1)] == ["d"]
    assert [row.text for row in REFERENCE.render_rows(chain, 1)] == ["", "d"]


def test_substitution_is_done_in_one_pass():
    values = {"document": "{question}", "question": "{document}"}
    assert substitute("{document} {question}", values) == "{question} {document}"
    assert substitute_reference("{document} {question}", values) == "{document} {document}"


def test_label_of_the_gold_option():
    chain = [Shot("d", (make_pair("Which?\nOptions:\n- red\n- blue", "blue"),))]
    lasts = {NATIVE.render(chain, seed).rsplit("\n", 1)[-1] for seed in range(400)}
    assert any(line.endswith("(B)") for line in lasts)
    assert any(line.endswith("blue") for line in lasts)


def test_letters_go_on_after_z():
    assert [letters(index) for index in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("category", "least"),
    [("free", 80), ("options", 48), ("cot", 150), ("options-cot", 48), ("openers", 100), ("joiners", 60)],
)
def test_diversity(category: str, least: int):
    assert len(native().patterns[category]) >= least


def test_native_set_is_sound():
    assert templates.lint() == []


def replaced(category: str, *texts: str) -> PatternSet:
    patterns: Mapping[str, tuple[Pattern, ...]] = MappingProxyType(
        {
            **native().patterns,
            category: tuple(Pattern(id=f"test-{index}", text=text) for index, text in enumerate(texts)),
        }
    )
    return PatternSet(patterns=patterns, styles=native().styles, digest="")


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        (["{question}"], "lacks {answer}"),
        (["{question} {answer} {other}"], "unknown placeholder {other}"),
        (["{question} {answer} {answer}"], "{answer} more than once"),
        (["{question} {answer}", "{question} {answer}"], "occurs twice"),
        (
            ["Now reply to this: {question}\nReply: {answer}", "Now reply to this: {question}\nReply = {answer}"],
            "too alike",
        ),
    ],
)
def test_linter_finds_faults(texts: list[str], fault: str):
    (found,) = templates.lint(replaced("free", *texts))
    assert fault in found


def test_linter_finds_wrong_styles_and_categories():
    assert "unknown category other" in templates.lint(replaced("other", "x"))[0]
    assert "exactly one of n, a, u" in templates.lint(replaced("number_styles", "x"))[0]
    without = PatternSet(patterns=native().patterns, styles={}, digest="")
    assert sorted(templates.lint(without)) == ["inline_examples: no styles", "labels: no styles", "speakers: no styles"]


def test_linter_finds_a_style_that_occurs_twice():
    styles = {**native().styles, "speakers": (native().styles["speakers"][0],) * 2}
    (found,) = templates.lint(PatternSet(patterns=native().patterns, styles=styles, digest=""))
    assert "occurs twice in speakers" in found


def test_overlap_is_of_the_shorter_pattern():
    assert overlap("a b c d e", "x a b c d e y") == 1.0
    assert overlap("a b c d", "a b c d") == 0.0


def test_unknown_compat_is_refused():
    with pytest.raises(ConfigError, match="use fixed or reference"):
        templates.load(compat="other")
