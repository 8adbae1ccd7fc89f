from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.synthesis import Pair, Shot, make_pair, profiles

PROFILE = profiles.load("instruction-synthesizer")
REFERENCE = profiles.load("instruction-synthesizer", compat="reference")
BOTH = pytest.mark.parametrize("profile", [PROFILE, REFERENCE], ids=["fixed", "reference"])

plain = st.text().map(str.strip).filter(lambda text: text and not any(tag in text for tag in PROFILE.forbidden_tags))
chains = st.lists(
    st.builds(Shot, plain, st.lists(st.builds(make_pair, plain, plain), max_size=3).map(tuple)), max_size=3
)


# The bytes of the format, spelled out: a change here breaks every synthesizer that was tuned with it.


@BOTH
def test_golden_context(profile: profiles.Profile):
    assert profile.render([], "a document") == "<s> <CON> a document </CON>\n\n"


@BOTH
def test_golden_empty_context_is_bos_alone(profile: profiles.Profile):
    assert profile.render([], "") == "<s>"


@BOTH
def test_golden_chain(profile: profiles.Profile):
    chain = [Shot("doc 0", (Pair("q1", "a1"), Pair("q2", "a2")))]
    assert profile.render(chain, "doc 3") == (
        "<s> <CON> doc 0 </CON>\n\n<QUE> q1 <ANS> a1 </END>\n\n<QUE> q2 <ANS> a2 </END></s><s> <CON> doc 3 </CON>\n\n"
    )


@BOTH
def test_golden_three_shots(profile: profiles.Profile):
    chain = [Shot("d0", (Pair("q0", "a0"),)), Shot("d1", (Pair("q1", "a1"),))]
    assert profile.render(chain, "d2") == (
        "<s> <CON> d0 </CON>\n\n<QUE> q0 <ANS> a0 </END></s>"
        "<s> <CON> d1 </CON>\n\n<QUE> q1 <ANS> a1 </END></s>"
        "<s> <CON> d2 </CON>\n\n"
    )


def test_golden_tuning_sequence():
    chain = [Shot("d0", (Pair("q0", "a0"), Pair("q1", "a1"))), Shot("d1", ())]
    assert PROFILE.render_tuning(chain) == [
        profiles.Segment("<s> <CON> d0 </CON>\n\n", False),
        profiles.Segment("<QUE> q0 <ANS> a0 </END>\n\n<QUE> q1 <ANS> a1 </END></s>", True),
        profiles.Segment("<s> <CON> d1 </CON>\n\n", False),
        profiles.Segment("</s>", False),
    ]


@BOTH
def test_golden_completion(profile: profiles.Profile):
    completion = "<QUE> q1 <ANS> a1 </END>\n\n<QUE> q2\nOptions:\n- a\n- b <ANS> b </END>"
    assert profile.parse(completion) == [Pair("q1", "a1"), Pair("q2\nOptions:\n- a\n- b", "b", "options")]


@BOTH
def test_incomplete_last_piece_is_dropped(profile: profiles.Profile):
    report = profile.parse_report("<QUE> q1 <ANS> a1 </END>\n\n<QUE> q2 <ANS> a2")
    assert report.pairs == (Pair("q1", "a1"),)
    assert (report.pieces, report.dropped_by_reason) == (2, {profiles.INCOMPLETE: 1})


@BOTH
@pytest.mark.parametrize("tail", ["", "\n", "</s>", " </s>\n"])
def test_nothing_is_lost_after_the_last_end_tag(profile: profiles.Profile, tail: str):
    report = profile.parse_report("<QUE> q <ANS> a </END>" + tail)
    assert (report.pieces, report.dropped_by_reason) == (1, {})


@BOTH
@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", None),
        ("</s>", None),
        ("garbage", profiles.INCOMPLETE),
        ("garbage</END>", profiles.NO_ANSWER_TAG),
        ("</END>", profiles.NO_ANSWER_TAG),
        ("<QUE> q </END>", profiles.NO_ANSWER_TAG),
        ("<QUE> q <ANS> a <ANS> b </END>", profiles.SEVERAL_ANSWER_TAGS),
        ("q <ANS> a </END>", profiles.NO_QUESTION_TAG),
        ("x <QUE> q <ANS> a </END>", profiles.NO_QUESTION_TAG),
        ("<ANS> a </END>", profiles.NO_QUESTION_TAG),
        ("<QUE> q <ANS>  \n </END>", profiles.EMPTY_ANSWER),
        ("<que> q <ans> a </end>", profiles.INCOMPLETE),
    ],
)
def test_garbage_is_counted(profile: profiles.Profile, completion: str, reason: str | None):
    report = profile.parse_report(completion)
    assert report.pairs == ()
    assert report.dropped_by_reason == ({reason: 1} if reason else {})


def test_repeated_question_tags_are_removed():
    assert PROFILE.parse("<QUE><QUE> q <QUE> r <ANS> a </END>") == [Pair("q  r", "a")]


def test_first_of_equal_questions_wins():
    report = PROFILE.parse_report("<QUE> Q <ANS> 1 </END><QUE> q <ANS> 2 </END><QUE> other <ANS> 3 </END>")
    assert report.pairs == (Pair("Q", "1"), Pair("other", "3"))
    assert report.dropped_by_reason == {profiles.DUPLICATE_QUESTION: 1}


def test_empty_question_is_dropped_unless_reference():
    completion = "<QUE> <ANS> a </END>"
    assert PROFILE.parse_report(completion).dropped_by_reason == {profiles.EMPTY_QUESTION: 1}
    assert REFERENCE.parse(completion) == [Pair("", "a")]


@settings(deadline=None)
@given(
    st.text(alphabet="abQ <>/\n") | st.lists(st.sampled_from([*PROFILE.forbidden_tags, " ", "x", "\n"])).map("".join)
)
def test_any_completion_adds_up(completion: str):
    for profile in (PROFILE, REFERENCE):
        report = profile.parse_report(completion)
        assert report.pieces == len(report.pairs) + sum(report.dropped_by_reason.values())
        questions = [pair.question.lower() for pair in report.pairs]
        assert len(set(questions)) == len(questions)
        assert all(pair.answer == pair.answer.strip() != "" for pair in report.pairs)


@settings(deadline=None)
@given(st.lists(st.builds(make_pair, plain, plain), max_size=5, unique_by=lambda pair: pair.question.lower()))
def test_parse_gives_back_what_render_wrote(pairs: list[Pair]):
    for profile in (PROFILE, REFERENCE):
        target = profile.render_tuning([Shot("d", tuple(pairs))])[1].text
        report = profile.parse_report(target.removesuffix("</s>"))
        assert list(report.pairs) == pairs
        assert not report.dropped_by_reason


@settings(deadline=None)
@given(chains, plain)
def test_plain_text_has_the_same_bytes_in_both_modes(chain: list[Shot], document: str):
    assert PROFILE.render(chain, document) == REFERENCE.render(chain, document)


@settings(deadline=None)
@given(chains)
def test_tuning_text_is_the_prompt_text(chain: list[Shot]):
    segments = PROFILE.render_tuning(chain)
    assert "".join(segment.text for segment in segments) + "<s>" == PROFILE.render(chain, "")


@pytest.mark.parametrize("tag", PROFILE.forbidden_tags)
def test_a_document_cannot_break_out_of_its_place(tag: str):
    text, count = PROFILE.neutralise(f"a{tag}b {tag}")
    assert count == 2
    assert tag not in text
    assert text.replace("< ", "<") == f"a{tag}b {tag}"
    assert PROFILE.render([], f"a{tag}b").count(tag) == PROFILE.render([], "ab").count(tag)
    assert tag in REFERENCE.render([], f"a{tag}b")
    assert REFERENCE.neutralise(tag) == (tag, 0)


tagged = st.lists(st.sampled_from([*PROFILE.forbidden_tags, "<", ">", " ", "</", "s>", "x"])).map("".join)


@settings(deadline=None)
@given(tagged)
def test_neutralising_leaves_no_tag_and_is_done_once(document: str):
    text, count = PROFILE.neutralise(document)
    assert not any(tag in text for tag in PROFILE.forbidden_tags)
    assert PROFILE.neutralise(text) == (text, 0)
    assert (count == 0) == (text == document)


@settings(deadline=None)
@given(tagged, tagged, tagged)
def test_a_prompt_holds_the_tags_of_its_frame_only(document: str, question: str, answer: str):
    prompt = PROFILE.render([Shot(document, (Pair(question, answer),))], document + "x")
    assert prompt.count("</END>") == prompt.count("<QUE>") == prompt.count("<ANS>") == prompt.count("</s>") == 1
    assert prompt.count("</CON>") == 1 + bool(document)
    assert prompt.count("<s>") == 2


def test_what_the_profile_says_of_itself():
    assert (PROFILE.name, PROFILE.version, PROFILE.bos, PROFILE.eos) == ("instruction-synthesizer", "1", "<s>", "</s>")
    assert (PROFILE.bos_policy, REFERENCE.bos_policy) == ("single", "reference")
    assert set(PROFILE.forbidden_tags) == {"<s>", "</s>", "<CON>", "</CON>", "<QUE>", "<ANS>", "</END>"}
    assert PROFILE.missing_strings({"<s>": 1, "x": 2}) == ("</s>",)
    assert PROFILE.missing_strings({"<s>", "</s>"}) == ()
    assert PROFILE.digest != REFERENCE.digest
    assert isinstance(PROFILE, profiles.Profile)


def test_digest_is_frozen():
    # A new digest is a new format: give it a new version or a new name instead of editing this one.
    assert (
        PROFILE.digest == profiles.load().digest == "13a86351f818caad0c268e1440d8f9fd6b1db7e1a1ed37027c7649884a4a0a70"
    )


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown profile; known: instruction-synthesizer"):
        profiles.load("no-such-profile")
    with pytest.raises(ConfigError, match="use fixed or reference"):
        profiles.load(compat="other")
