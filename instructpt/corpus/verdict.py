"""Whether a corpus can be used as it is: too many unreadable records, no text field, double ids, nothing there."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from instructpt.api.v1alpha1.corpus import CorpusSource
from instructpt.corpus.identities import duplicates
from instructpt.corpus.units import DEAD_LETTERS_PREFIX, OBJECTS_PREFIX, Tally, UnitResult
from instructpt.errors import ConfigError, CorpusError, InstructPTError
from instructpt.storage.base import Store

HOPELESS_RECORDS = 10_000
_FIELD = "spec.corpus"


def judge(results: Sequence[UnitResult], source: CorpusSource, output: Store) -> None:
    """Refuse a corpus that cannot be used.

    Raises:
        ConfigError: Most records lack the text or id field.
        CorpusError: No documents, or a larger share of unreadable records than ``maxInvalidShare``.
    """
    counts = Counter[str]()
    missing = Counter[str]()
    for result in results:
        counts.update(result.counts)
        missing.update(result.missing)
    records, invalid = counts["records"], counts["invalid"]
    if records == 0:
        raise CorpusError(
            "the corpus holds no records",
            field=f"{_FIELD}.uri",
            value=source.uri,
            fix="name objects that hold documents",
        )
    if invalid > source.max_invalid_share * records:
        for name, count in missing.most_common(1):
            if 2 * count > records:
                known = {field for result in results for field in result.known}
                raise missing_field(name, count, records, sorted(known), source)
        raise _too_many(results, counts, source, output)
    if counts["documents"] == 0:
        raise CorpusError(
            f"none of the {records:,} records is a document ({_examples(results)})",
            field=f"{_FIELD}.uri",
            value=source.uri,
            fix=f"see {output.uri}/{DEAD_LETTERS_PREFIX}",
        )


def missing_field(name: str, count: int, records: int, known: list[str], source: CorpusSource) -> InstructPTError:
    """The error for records that lack the text or id field."""
    which = "textField" if name == source.text_field else "idField"
    names = ", ".join(known[:50]) or "none"
    return ConfigError(
        f"{count:,} of {records:,} records have no such field",
        field=f"{_FIELD}.{which}",
        value=name,
        fix=f"set it to one of the fields that exist: {names}",
    )


def watch_hopeless(tally: Tally, source: CorpusSource) -> None:
    """End the reading of a large object early when none of its first 10,000 records has the field.

    Raises:
        ConfigError: So it is.
    """
    if tally.records != HOPELESS_RECORDS or source.max_invalid_share >= 0.5:
        return
    for name, count in tally.missing.most_common(1):
        if count == HOPELESS_RECORDS:
            raise missing_field(name, count, tally.records, sorted(tally.known), source)


def _too_many(
    results: Sequence[UnitResult], counts: Counter[str], source: CorpusSource, output: Store
) -> InstructPTError:
    invalid, records = counts["invalid"], counts["records"]
    reason = max((n for n in counts if n.startswith("invalid-")), key=lambda name: counts[name])
    remedy = f"raise {_FIELD}.maxDocumentBytes" if reason == "invalid-too-large" else "correct them"
    return CorpusError(
        f"{invalid:,} of {records:,} records ({invalid / records:.2%}) cannot be read: {_examples(results)}",
        field=f"{_FIELD}.maxInvalidShare",
        value=source.max_invalid_share,
        fix=f"{remedy} (all are listed in {output.uri}/{DEAD_LETTERS_PREFIX}) or raise {_FIELD}.maxInvalidShare",
    )


def _examples(results: Sequence[UnitResult]) -> str:
    first = [letter for result in results for letter in result.examples][:3]
    return "; ".join(f"{letter.where} {letter.reason} ({letter.detail})" for letter in first)


def check_unique_ids(results: Sequence[UnitResult], keys: Sequence[str], source: CorpusSource, output: Store) -> None:
    """Refuse a corpus in which two documents have the same id.

    Raises:
        ConfigError: So it is; names the first places.
    """
    if source.id_field is None:
        return
    extra, examples = duplicates(
        [
            (result.ids or 0, functools.partial(_open, output, f"{OBJECTS_PREFIX}{key}.ids"))
            for result, key in zip(results, keys, strict=True)
        ]
    )
    if extra:
        places = "; ".join(
            " and ".join(f"{results[unit].names[0]} record {ordinal}" for unit, ordinal in pair) for pair in examples
        )
        raise ConfigError(
            f"{extra:,} documents have the id of another one: {places}",
            field=f"{_FIELD}.idField",
            value=source.id_field,
            fix="make the ids unique, or leave idField empty, which numbers the documents",
        )


def _open(output: Store, key: str) -> AbstractContextManager[BinaryIO]:
    return output.open(key)
