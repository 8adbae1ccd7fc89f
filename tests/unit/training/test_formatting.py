from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.api.v1alpha1.sourceformats import FORMATTINGS, Formatting, template_fault
from instructpt.training.formatting import Formatter

RECORD = {"q": "Who?", "a": "Ada.", "context": "Ada came."}


def split(formatting: Formatting | None, record=RECORD) -> tuple[str, str]:
    return Formatter(formatting, "q", "a").split(record)


@pytest.mark.parametrize(
    ("formatting", "prompt", "answer"),
    [
        (None, "Who?", " Ada."),
        (Formatting(name="space"), "Who?", " Ada."),
        (Formatting(name="newline"), "Who?\n", "Ada."),
        (Formatting(name="chat"), "<|user|>\nWho?\n<|assistant|>\n", "Ada."),
        (Formatting(template="Q: {question}\nA:  {answer} ###"), "Q: Who?\nA:", "  Ada. ###"),
        (Formatting(template="{context}\n{question} {answer}"), "Ada came.\nWho?", " Ada."),
        (Formatting(template='{{"q": "{question}", "{{a}}": "{answer}"}}'), '{"q": "Who?", "{a}": "', 'Ada."}'),
    ],
)  # fmt: skip
def test_a_record_becomes_a_prompt_and_what_is_learned(formatting, prompt, answer):
    assert split(formatting) == (prompt, answer)


def test_braces_in_a_record_are_text():
    record = {"q": "What is {answer}?", "a": "{question} {0}"}
    assert split(Formatting(name="newline"), record) == ("What is {answer}?\n", "{question} {0}")


def test_a_context_may_be_empty_or_absent_but_a_question_may_not():
    formatter = Formatter(Formatting(template="{context}|{question}|{answer}", context_field="input"), "q", "a")
    assert formatter.fields == ["q", "a", "input"]
    for record in ({"q": "x", "a": "y"}, {"q": "x", "a": "y", "input": None}, {"q": "x", "a": "y", "input": ""}):
        assert formatter.fault(record, formatter.fields) is None
        assert formatter.split(record) == ("|x|", "y")
    assert (
        formatter.fault({"q": "x", "a": "y", "input": 3}, formatter.fields) == "field 'input' holds int, not a string"
    )
    assert formatter.fault({"q": " ", "a": "y"}, formatter.fields) == "field 'q' is empty"
    assert "its fields are: q" in str(formatter.fault({"q": "x"}, formatter.fields))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{question}", "{answer} stands in it 0 times; write it once"),
        ("{question} {answer} {answer}", "{answer} stands in it 2 times"),
        ("{answer} {question}", "{question} follows {answer}; put {answer} last"),
        ("{context} {answer}", "{question} is missing; put it before {answer}"),
        ("{instruction} {answer}", "{instruction} is no placeholder; there are {question}, {answer} and {context}"),
        ("{question!r} {answer}", "{question!r} is no placeholder"),
        ("{} {question} {answer}", "{} is no placeholder"),
        ("{ {question} {answer}", "a lone '{' at character 0; write it twice"),
        ("{question} } {answer}", "a lone '}' at character 11"),
    ],
)
def test_a_wrong_template_is_refused_by_what_is_wrong_with_it(template, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Formatting(template=template)


@given(st.lists(st.sampled_from(["{question}", "{answer}", "{context}", "{{", "}}", "{", "}", "x", " ", "{other}"])))
def test_the_api_server_refuses_none_that_can_be_used(pieces):
    template = "".join(pieces)
    pattern = re.search(r"matches\(r'(.*)'\)", Formatting.rules[1].cel)
    assert pattern is not None
    if template_fault(template) is None:
        assert re.search(pattern[1], template)
        assert Formatter(Formatting(template=template), "q", "a").split({"q": "1", "a": "2"})


def test_named_formattings_are_templates_that_pass():
    assert {template_fault(text) for text in FORMATTINGS.values()} == {None}
