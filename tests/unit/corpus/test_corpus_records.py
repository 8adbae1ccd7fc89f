"""One record: a document, or a reason without its text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.records import DETAIL_LIMIT, ReadOptions, Refused, document_of, parse_object, too_long

OPTIONS = ReadOptions(max_document_bytes=20)


def outcome(line, options=OPTIONS, *, first=False):
    try:
        return document_of(parse_object(line, first=first), options, "a#0")
    except Refused as refused:
        return refused.at("a:1")


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "x"', "broken-json", "unexpected end"),
        (b"", "broken-json", "empty"),
        (b'{"text": "\\ud800"}', "broken-json", "surrogate"),
        (b'{"text": "\xff"}', "invalid-utf8", "byte 10"),
        (b"[1]", "wrong-type", "a list, not an object"),
        (b'{"text": 1.5}', "wrong-type", "a number, not a string"),
        (b'{"text": true}', "wrong-type", "a boolean, not a string"),
        (b'{"text": {}}', "wrong-type", "an object, not a string"),
        (b'{"text": null}', "missing-field", "no field 'text'"),
        (b'{"body": ""}', "missing-field", "no field 'text'"),
        (b'{"text": ""}', "empty", "holds no text"),
        (b'{"text": "\\u2003 \\n"}', "empty", "holds no text"),
        (b'{"text": "aaaaaaaaaaaaaaaaaaaaa"}', "too-large", "21 bytes, the limit is 20"),
        ('{"text": "éééééééééée"}'.encode(), "too-large", "21 bytes"),
    ],
)
def test_every_fault_has_its_reason(line, reason, detail):
    invalid = outcome(line)
    assert (invalid.reason, invalid.where) == (reason, "a:1")
    assert detail in invalid.detail


def test_the_longest_text_is_a_document():
    assert outcome('{"text": "éééééééééé"}'.encode()).text == "é" * 10


def test_a_missing_field_names_the_others():
    assert outcome(b'{"body": "x", "title": "y"}').known == ("body", "title")
    assert outcome(b'{"text": 1, "title": "y"}').known == ()


def test_a_byte_order_mark_is_cut_from_the_first_line_only():
    line = b'\xef\xbb\xbf{"text": "x"}'
    assert outcome(line, first=True).text == "x"
    assert outcome(line).reason == "broken-json"


@pytest.mark.parametrize(
    ("value", "id_"),
    [('"x"', "x"), ("12", "12"), ("null", None), ('""', None), ("true", None), ("1.5", None), ("[]", None)],
)
def test_ids(value, id_):
    result = outcome(f'{{"text": "x", "n": {value}}}'.encode(), ReadOptions(id_field="n"))
    assert (result.id if id_ else result.field) == (id_ or "n")


def test_a_skipped_record_tells_its_size():
    assert "5,000 bytes" in too_long(5000, 100).detail


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text(min_size=40))))
def test_details_are_short_and_hold_no_values(record):
    result = outcome(json.dumps(record).encode())
    if getattr(result, "reason", None):
        assert len(result.detail) <= DETAIL_LIMIT
        assert not any(isinstance(v, str) and v in result.detail for v in record.values())


@given(st.text(min_size=1, max_size=20).filter(lambda t: t.strip() and len(t.encode()) <= 20))
def test_good_text_comes_through_unchanged(text):
    assert outcome(json.dumps({"text": text}).encode()).text == text
    assert outcome(json.dumps({"text": text}, ensure_ascii=False).encode()).text == text
