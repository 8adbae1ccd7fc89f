"""A document, and the hash that decides on which side of a split it falls."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from instructpt.api.v1alpha1.corpus import Split
from instructpt.api.v1alpha1.synthesisjob import SplitName


class Document(NamedTuple):
    """One text of a corpus. A tuple, because millions are made.

    Attributes:
        id: Unique in its corpus: the value of ``idField``, or ``<object>#<ordinal in the object>``.
        text: Never empty.
    """

    id: str
    text: str


def content_hash(text: str) -> str:
    """sha256 of the text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split_position(text: str) -> float:
    """Where in [0, 1) the text's content hash falls; equal texts fall on equal places."""
    return int(content_hash(text)[:13], 16) / float(16**13)


def split_of(text: str, split: Split) -> SplitName:
    """The part that a text belongs to: tune, then train, then heldOut along [0, 1)."""
    position = split_position(text)
    if position < split.tune:
        return "tune"
    if position < split.tune + split.train or split.held_out == 0.0:
        return "train"
    return "heldOut"
