from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructpt.errors import ConfigError
from instructpt.synthesis import Pair, Shot, chains, profiles

PAIRS = (Pair("q", "a"),)
RENDER = profiles.load().render


def documents(count: int) -> list[str]:
    return [f"document {index}" for index in range(count)]


@pytest.mark.parametrize(
    ("count", "shots", "expected"),
    [
        (0, 3, []),
        (1, 3, [[0]]),
        (3, 3, [[0, 1, 2]]),
        (7, 3, [[0, 1, 2], [3, 4, 5], [6]]),
        (3, 1, [[0], [1], [2]]),
    ],
)
def test_chain_local(count: int, shots: int, expected: list[list[int]]):
    assert chains.arrange(documents(count), shots, "chain-local") == expected
    assert chains.arrange(documents(count), shots) == expected


@pytest.mark.parametrize(
    ("count", "shots", "expected"),
    [
        (0, 3, []),
        (1, 3, [[0]]),  # an IndexError in the reference
        (6, 2, [[0, 3], [1, 4], [2, 5]]),
        (9, 3, [[0, 3, 6], [1, 4, 7], [2, 5, 8]]),
        (5, 3, [[1, 3], [0, 2, 4]]),  # rounds 01 23 4: the left-over chain 1 3 comes before the chain it is put to
        (7, 2, [[3], [0, 4], [1, 5], [2, 6]]),
        (10, 4, [[1, 4, 7], [0, 3, 6, 9], [2, 5, 8]]),
        (3, 1, [[0], [1], [2]]),
    ],
)
def test_reference_rounds(count: int, shots: int, expected: list[list[int]]):
    assert chains.arrange(documents(count), shots, "reference") == expected


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 8), st.sampled_from(chains.LAYOUTS))
def test_every_document_stands_in_one_chain_in_order(count: int, shots: int, layout: str):
    arranged = chains.arrange(documents(count), shots, layout)
    assert sorted(index for chain in arranged for index in chain) == list(range(count))
    assert all(chain == sorted(chain) and 1 <= len(chain) <= shots for chain in arranged)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 8))
def test_reference_layout_follows_its_rounds(count: int, shots: int):
    width = -(-count // shots)
    for chain in chains.arrange(documents(count), shots, "reference"):
        assert all(later - earlier == width for earlier, later in zip(chain, chain[1:], strict=False))
        assert chain[0] < width


def test_wrong_arguments():
    with pytest.raises(ConfigError, match="shots=0"):
        chains.arrange([], 0, "chain-local")
    with pytest.raises(ConfigError, match="known: chain-local, reference"):
        chains.arrange([], 1, "other")


def test_reference_estimate():
    assert chains.estimate_tokens_reference("one two three") == 4.5


def step(chain: list[Shot], document: str, *, limit: int, shots: int = 3) -> chains.Step:
    return chains.advance(chain, document, shots=shots, render=RENDER, count_tokens=len, max_prompt_tokens=limit)


def test_first_document_of_a_chain():
    found = step([], "d", limit=100)
    assert (found.verdict, found.reason, found.prompt, found.shots) == ("afresh", "first-shot", RENDER([], "d"), ())
    assert found.prompt_tokens == len(found.prompt)


def test_chain_goes_on_while_it_fits_exactly():
    chain = [Shot("c", PAIRS)]
    length = len(RENDER(chain, "d"))
    assert chains.fits(chain, "d", render=RENDER, count_tokens=len, max_prompt_tokens=length)
    assert not chains.fits(chain, "d", render=RENDER, count_tokens=len, max_prompt_tokens=length - 1)
    found = step(chain, "d", limit=length)
    assert (found.verdict, found.prompt, found.shots) == ("continue", RENDER(chain, "d"), tuple(chain))
    shorter = step(chain, "d", limit=length - 1)
    assert (shorter.verdict, shorter.reason, shorter.prompt) == ("afresh", "does-not-fit", RENDER([], "d"))


def test_previous_shot_without_pairs_starts_afresh():
    found = step([Shot("b", PAIRS), Shot("c")], "d", limit=1000)
    assert (found.verdict, found.reason) == ("afresh", "previous-without-pairs")


def test_complete_chain_starts_afresh():
    found = step([Shot("b", PAIRS), Shot("c", PAIRS)], "d", limit=1000, shots=2)
    assert (found.verdict, found.reason) == ("afresh", "chain-complete")


def test_too_long_alone():
    found = step([Shot("c", PAIRS)], "d" * 50, limit=40)
    assert (found.verdict, found.reason, found.prompt) == ("too-long", "too-long", "")
    assert found.prompt_tokens == len(RENDER([], "d" * 50))


def run(outcomes: list[tuple[int, str, tuple[Pair, ...]]], limit: int, shots: int) -> list[chains.Entry]:
    """Walk documents of given outcomes through the state machine, as a worker does."""
    state, entries = chains.ChainState(), []
    for index, document, pairs in outcomes:
        found = step(list(state.shots), document, limit=limit, shots=shots)
        made = () if found.verdict == "too-long" else pairs
        reason = chains.TOO_LONG if found.verdict == "too-long" else chains.NO_PAIRS
        state, finished = state.record(index, document, made, afresh=found.verdict == "afresh", reason=reason)
        entries += finished
    return [*entries, *state.close()]


def test_a_document_without_pairs_takes_no_neighbour_with_it():
    entries = run([(0, "a", PAIRS), (1, "b", ()), (2, "c", PAIRS)], limit=1000, shots=3)
    assert [(entry.indices, entry.reason) for entry in entries] == [((0,), None), ((1,), "no-pairs"), ((2,), None)]


def test_a_too_long_document_takes_no_neighbour_with_it():
    entries = run([(0, "a", PAIRS), (1, "b" * 500, PAIRS), (2, "c", PAIRS)], limit=300, shots=3)
    assert [(entry.indices, entry.reason) for entry in entries] == [((0,), None), ((1,), "too-long"), ((2,), None)]
    assert entries[1].shots == (Shot("b" * 500),)


def test_a_whole_chain_is_one_entry():
    entries = run([(index, f"d{index}", PAIRS) for index in range(3)], limit=1000, shots=3)
    assert [(entry.indices, len(entry.shots)) for entry in entries] == [((0, 1, 2), 3)]


outcome = st.tuples(st.integers(1, 80), st.booleans())


@settings(deadline=None)
@given(st.lists(outcome, max_size=12), st.integers(40, 200), st.integers(1, 4))
def test_every_document_is_in_one_entry_and_every_prompt_fits(drawn: list[tuple[int, bool]], limit: int, shots: int):
    outcomes = [(index, "x" * length, PAIRS if good else ()) for index, (length, good) in enumerate(drawn)]
    entries = run(outcomes, limit, shots)
    assert [index for entry in entries for index in entry.indices] == list(range(len(drawn)))
    for entry in entries:
        assert len(entry.indices) == len(entry.shots) <= shots
        assert (entry.reason is None) == all(shot.pairs for shot in entry.shots)
        *before, last = entry.shots
        if entry.reason != chains.TOO_LONG:
            assert len(RENDER(before, last.document)) <= limit


@given(st.integers(0, 60), st.integers(1, 9))
def test_collections_hold_every_chain_of_the_reference_layout(count: int, shots: int):
    collected = chains.collections(count, shots)
    assert [chain for together in collected for chain in together] == chains.arrange("d" * count, shots, "reference")
    assert sorted(index for together in collected for chain in together for index in chain) == list(range(count))


def test_a_collection_is_a_continued_chain_after_the_one_left_over():
    assert chains.collections(5, 2) == [[[2], [0, 3]], [[1, 4]]]


def test_entries_are_gathered_by_collection_in_its_order():
    def entry(*indices: int) -> chains.Entry:
        return chains.Entry(indices=indices, shots=tuple(Shot(str(index)) for index in indices))

    # Documents 7 to 11 are those of the chains; 6 is of none.
    collected = [[[9], [7, 10]], [[8, 11]]]
    entries = [entry(6), entry(11), entry(7), entry(8), entry(9), entry(10)]
    gathered = chains.gather(entries, collected)
    assert [[found.indices for found in together] for together in gathered] == [
        [(9,), (7,), (10,)],
        [(8,), (11,)],
        [(6,)],
    ]


def test_an_estimate_holds_a_chain_back_but_never_a_lone_document():
    chain = [Shot("one", (Pair("q", "a"),))]
    arguments = {"shots": 3, "render": lambda c, d: "x" * (len(c) + 1), "count_tokens": len, "max_prompt_tokens": 5}
    assert chains.advance(chain, "d", estimate_tokens=lambda text: 6.0, **arguments).reason == chains.DOES_NOT_FIT
    assert chains.advance(chain, "d", estimate_tokens=lambda text: 5.0, **arguments).verdict == "continue"
    assert chains.advance([], "d", estimate_tokens=lambda text: 6.0, **arguments).verdict == "afresh"
