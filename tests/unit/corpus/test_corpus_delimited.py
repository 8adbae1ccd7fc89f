"""Cutting streams at delimiters: as a plain split would, in bounded memory, whatever the chunks."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructpt.corpus.delimited import pieces, read_lines, read_pieces, read_whole
from instructpt.corpus.document import Document
from instructpt.corpus.records import ReadOptions

DATA = st.text(alphabet="ab\n", max_size=60).map(str.encode)


@given(DATA, st.sampled_from([b"\n", b"\n\n", b"ab", b"aba"]), st.integers(1, 12), st.integers(1, 70))
@example(b"aaaaaaaaaa\n\n\nb", b"\n\n", 3, 1)
def test_pieces_are_those_of_split(data, delimiter, limit, chunk):
    expected = data.split(delimiter)
    if not expected[-1]:
        expected.pop()
    found = list(pieces(io.BytesIO(data), delimiter, limit, chunk=chunk))
    assert [content for _, _, content in found] == [part if len(part) <= limit else None for part in expected]
    position = 0
    for (start, end, _), part in zip(found, expected, strict=True):
        assert start == position
        assert data[start : start + len(part)] == part
        position = end
    assert position == len(data)


class Endless:
    """A stream of one endless line that counts what was asked."""

    def __init__(self, size):
        self.left = size
        self.largest = 0

    def read(self, size=-1, /):
        assert size > 0
        self.largest = max(self.largest, size)
        count = min(size, self.left)
        self.left -= count
        return b"x" * count


def test_an_endless_line_is_read_in_chunks():
    stream = Endless(5_000_000)
    assert list(pieces(stream, b"\n", 1000, chunk=4096)) == [(0, 5_000_000, None)]
    assert stream.largest == 4096


def test_lines_number_records_and_lines():
    data = b'{"text": "a"}\n\n{bad\r\n  \n{"text": "b"}'
    found = list(read_lines(io.BytesIO(data), ReadOptions(), name="f"))
    assert [(start, end) for start, end, _ in found] == [(0, 14), (15, 21), (24, 37)]
    assert found[0][2] == Document(id="f#0", text="a")
    assert (found[1][2].where, found[1][2].reason) == ("f:3", "broken-json")
    assert found[2][2] == Document(id="f#2", text="b")


def test_a_span_goes_on_where_it_begins():
    data = b'{"text": "a"}\n{"text": "b"}\n{bad\n'
    found = list(read_lines(io.BytesIO(data[14:]), ReadOptions(), name="f", base=14, first=1, lines=False))
    assert [(start, end) for start, end, _ in found] == [(14, 28), (28, 33)]
    assert found[0][2].id == "f#1"
    assert found[1][2].where == "f record 2"


def test_pieces_of_text_lose_line_ends_only():
    data = "\ufeff one \n\n\n\n\n\ntwo\n\n \n\nüber\n".encode()
    found = [result for _, _, result in read_pieces(io.BytesIO(data), "\n\n", ReadOptions(), name="f")]
    assert [(d.id, d.text) for d in found] == [("f#0", " one "), ("f#1", "two"), ("f#2", "über")]


def test_pieces_of_text_can_be_invalid():
    found = [
        r for _, _, r in read_pieces(io.BytesIO(b"a---\xff---bb"), "---", ReadOptions(max_document_bytes=1), name="f")
    ]
    assert [getattr(r, "reason", None) for r in found] == [None, "invalid-utf8", "too-large"]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"text", None), (b"\xff", "invalid-utf8"), (b" \n", "empty"), (b"x" * 70_000, "too-large")]
)
def test_whole_files(data, reason):
    size, result = read_whole(io.BytesIO(data), ReadOptions(max_document_bytes=100), name="f")
    assert size == len(data)
    assert getattr(result, "reason", None) == reason
    if reason is None:
        assert result == Document(id="f#0", text="text")
