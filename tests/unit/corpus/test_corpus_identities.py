"""Double ids are found whatever the number of passes."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.corpus.identities import IdWriter, duplicates


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=8), max_size=4), st.sampled_from([32, 100, 1 << 20]))
def test_extra_documents_are_counted(units, pass_bytes):
    with tempfile.TemporaryDirectory() as folder:
        readers = []
        for number, ids in enumerate(units):
            path = Path(folder) / str(number)
            with IdWriter(path) as writer:
                for ordinal, id_ in enumerate(ids):
                    writer.add(id_, ordinal)
                writer.close()
            readers.append((len(ids), lambda path=path: path.open("rb")))
        extra, examples = duplicates(readers, pass_bytes=pass_bytes)
    counts = Counter(id_ for ids in units for id_ in ids)
    assert extra == sum(count - 1 for count in counts.values())
    assert bool(examples) == bool(extra)
    for pair in examples:
        names = {units[unit][ordinal] for unit, ordinal in pair}
        assert len(names) == 1
        assert pair[0] < pair[1]
