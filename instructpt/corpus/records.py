"""From a record as read (a JSON object, a row, a piece of text) to a document, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

from instructpt.corpus.document import Document

Reason = Literal["broken-json", "invalid-utf8", "missing-field", "wrong-type", "empty", "too-large"]

DETAIL_LIMIT = 200
_NAME_LIMIT = 100
_NAMES = 50
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How records are read; part of a corpus's settings, so that a span reads as it was inspected.

    Attributes:
        text_field: Field or column with the text.
        id_field: Field or column with the document id; None numbers the records.
        separator: What parts the documents of a text file; None makes each file one document.
        max_document_bytes: Longest text in UTF-8 bytes.
    """

    text_field: str = "text"
    id_field: str | None = None
    separator: str | None = None
    max_document_bytes: int = 1_000_000

    @property
    def max_record_bytes(self) -> int:
        """Longest line that is held in memory.

        JSON may escape one byte as six characters; beyond eight times the text and some room for other fields the
        record is skipped unread.
        """
        return 8 * self.max_document_bytes + 65_536

    def to_settings(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """A record that is no document: a dead letter.

    Attributes:
        reason: The class of fault, one word.
        where: Object and line or row.
        detail: What is wrong, at most 200 characters; never holds text of the record.
        field: The field at fault, where it is one.
        known: Names of the record's fields, where ``field`` is missing.
    """

    reason: Reason
    where: str
    detail: str
    field: str | None = None
    known: tuple[str, ...] = ()


class Refused(Exception):  # noqa: N818  # a verdict on one record, caught where the record is read
    """One record's fault, without its place."""

    def __init__(self, reason: Reason, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail
        self.field = field
        self.known: tuple[str, ...] = ()

    def at(self, where: str) -> Invalid:
        """The dead letter for a record at ``where``."""
        return Invalid(
            reason=self.reason, where=where, detail=self.detail[:DETAIL_LIMIT], field=self.field, known=self.known
        )


def too_long(size: int, limit: int) -> Refused:
    """The fault of a record that was skipped because it has ``size`` bytes, more than ``limit``."""
    return Refused("too-large", f"record of {size:,} bytes, the limit is {limit:,}")


def parse_object(line: bytes, *, first: bool = False) -> dict[str, Any]:
    """One line of jsonl as a JSON object.

    Args:
        line: Its bytes.
        first: The line begins its file, where a byte order mark may stand.

    Raises:
        Refused: ``broken-json``, ``invalid-utf8``, or ``wrong-type`` for JSON that is no object.
    """
    if first:
        line = line.removeprefix(_BOM)
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # orjson reports both alike; only the failing line is decoded a second time.
        decode_text(line)
        raise Refused("broken-json", str(error)) from None
    if not isinstance(value, dict):
        raise Refused("wrong-type", f"the line holds {_type_name(value)}, not an object")
    return value


def decode_text(data: bytes) -> str:
    """Bytes as UTF-8.

    Raises:
        Refused: ``invalid-utf8``, naming the byte's place.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("invalid-utf8", f"byte {error.start} of the text is not UTF-8 ({error.reason})") from None


def document_of(record: Mapping[str, Any], options: ReadOptions, default_id: str) -> Document:
    """The document in a record.

    Raises:
        Refused: ``missing-field``, ``wrong-type``, ``invalid-utf8``, ``empty`` or ``too-large``.
    """
    try:
        text = checked_text(record.get(options.text_field), options)
        if options.id_field is None:
            return Document(id=default_id, text=text)
        return Document(id=_checked_id(record.get(options.id_field), options.id_field), text=text)
    except Refused as refused:
        if refused.reason == "missing-field":
            refused.known = tuple(name[:_NAME_LIMIT] for name in list(record)[:_NAMES])
        raise


def checked_text(value: object, options: ReadOptions) -> str:
    """``value`` as a document's text.

    Raises:
        Refused: As for :func:`document_of`.
    """
    name = options.text_field
    if value is None:
        raise Refused("missing-field", f"no field {name!r}", name)
    if isinstance(value, bytes):
        value = decode_text(value)
    if not isinstance(value, str):
        raise Refused("wrong-type", f"field {name!r} holds {_type_name(value)}, not a string", name)
    # A character is at most four bytes: nearly every text is known to be short enough without encoding it.
    if 4 * len(value) > options.max_document_bytes and (size := len(value.encode())) > options.max_document_bytes:
        raise Refused("too-large", f"text of {size:,} bytes, the limit is {options.max_document_bytes:,}", name)
    if not value or value.isspace():
        raise Refused("empty", f"field {name!r} holds no text", name)
    return value


def _checked_id(value: object, name: str) -> str:
    if value is None or value == "":
        raise Refused("missing-field", f"no field {name!r}", name)
    if isinstance(value, bytes):
        value = decode_text(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused("wrong-type", f"field {name!r} holds {_type_name(value)}, not a string or number", name)
    return str(value)


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
