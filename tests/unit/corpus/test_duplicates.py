from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructpt.corpus.duplicates import Groups, equal_pairs


def pairs(path: Path, hashes: list[int], taken: list[bool] | None = None, pass_bytes: int = 1 << 20) -> dict[int, int]:
    path.write_bytes(np.array(hashes, dtype="<u8").tobytes())
    mask = np.array(taken if taken is not None else [True] * len(hashes), dtype=bool)
    found: dict[int, int] = {}
    for ones, firsts in equal_pairs(path, mask, pass_bytes=pass_bytes):
        found.update(zip(ones.tolist(), firsts.tolist(), strict=True))
    return found


def test_each_is_paired_with_the_first_of_its_value(tmp_path: Path) -> None:
    assert pairs(tmp_path / "c", [7, 3, 7, 9, 3, 7]) == {2: 0, 4: 1, 5: 0}
    assert pairs(tmp_path / "c", []) == {}


def test_what_is_not_taken_is_no_ones_first(tmp_path: Path) -> None:
    assert pairs(tmp_path / "c", [7, 7, 7], [False, True, True]) == {2: 1}


@pytest.mark.parametrize("pass_bytes", [1, 500, 1 << 20])
def test_the_number_of_passes_changes_nothing(tmp_path: Path, pass_bytes: int) -> None:
    hashes = np.random.default_rng(1).integers(0, 50, 300).tolist()
    firsts = {value: hashes.index(value) for value in hashes}
    expected = {i: firsts[value] for i, value in enumerate(hashes) if firsts[value] != i}
    assert pairs(tmp_path / "c", hashes, pass_bytes=pass_bytes) == expected


edges = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


@given(edges, st.randoms())
def test_groups_are_the_connected_components_in_any_order(joined: list[tuple[int, int]], rng) -> None:
    component = list(range(30))
    for _ in range(30):
        for one, other in joined:
            low = min(component[one], component[other])
            component = [low if c in (component[one], component[other]) else c for c in component]
    rng.shuffle(joined)
    groups = Groups(30)
    half = len(joined) // 2
    for part in (joined[:half], joined[half:]):
        groups.join(np.array([e[0] for e in part], dtype=int), np.array([e[1] for e in part], dtype=int))
    assert groups.followers().tolist() == [c != i for i, c in enumerate(component)]


def test_a_long_chain_is_one_group() -> None:
    groups = Groups(10_000)
    groups.join(np.arange(1, 10_000), np.arange(0, 9_999))
    assert groups.followers().tolist() == [False] + [True] * 9_999
