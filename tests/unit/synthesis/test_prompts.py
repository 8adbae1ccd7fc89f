"""Prompts keep the ids that the engine saw, and their text is always what the profile renders."""

from __future__ import annotations

import synthesis_support as support
from hypothesis import given
from hypothesis import strategies as st

from instructpt.synthesis import Pair, Shot, profiles
from instructpt.synthesis.engine import Completion
from instructpt.synthesis.prompts import ChainPrompts
from instructpt.synthesis.tokenization import PromptTokenizer

TOKENIZER = PromptTokenizer(support.CharacterBackend())
PROFILE = profiles.load()
OWN = 5_000_000  # ids beyond every character's: what only an engine would give


class OddBackend(support.CharacterBackend):
    """Knows a second id for every character, which encoding never gives."""

    def decode(self, ids: list[int], **options: object) -> str:
        return super().decode([i - OWN if i >= OWN else i for i in ids], **options)


ODD = PromptTokenizer(OddBackend())


def generated(text: str, *, stopped: bool = True) -> Completion:
    ids = tuple(i + OWN for i in ODD.encode(text)) + ((ODD.id_of("</s>"),) if stopped else ())
    return Completion(token_ids=ids, text=text, finish_reason="stop" if stopped else "length")


def follow(completion: Completion, pairs: tuple[Pair, ...]) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Ids that the engine saw, ids of the next prompt, its text."""
    prompts = ChainPrompts(ODD, eos=PROFILE.eos)
    first = PROFILE.render((), "one")
    ids = prompts.ids(first)
    prompts.took(first, ids, completion)
    text = PROFILE.render([Shot("one", pairs)], "two")
    return (*ids, *completion.token_ids), prompts.ids(text), text


def test_a_completion_is_kept_id_for_id() -> None:
    completion = generated(support.GOOD)
    seen, ids, text = follow(completion, tuple(PROFILE.parse(completion.text)))
    assert ids[: len(seen)] == seen
    assert ODD.decode(ids) == text
    assert all(i < OWN for i in ids[len(seen) :])


def test_a_completion_cut_off_is_kept_up_to_its_last_pair() -> None:
    completion = generated(support.GOOD + "\n\n<QUE> And now? <ANS> It st", stopped=False)
    _, ids, text = follow(completion, tuple(PROFILE.parse(completion.text)))
    assert ODD.decode(ids) == text
    assert sum(i >= OWN for i in ids) == len(support.GOOD)


def test_a_pair_taken_out_ends_what_is_kept() -> None:
    completion = generated(support.GOOD)
    pairs = tuple(PROFILE.parse(completion.text))[1:]
    _, ids, text = follow(completion, pairs)
    assert ODD.decode(ids) == text
    assert sum(i >= OWN for i in ids) == len("<QUE> Wh")


def test_a_chain_that_starts_afresh_has_the_ids_of_its_text() -> None:
    prompts = ChainPrompts(ODD, eos=PROFILE.eos)
    prompts.took("<s> <CON> one </CON>\n\n", (1, 2, 3), generated(support.GOOD))
    text = PROFILE.render((), "three")
    assert prompts.ids(text) == tuple(ODD.encode(text))


def test_special_tokens_are_added_at_the_front_alone() -> None:
    prompts = ChainPrompts(TOKENIZER, eos=PROFILE.eos, add_special_tokens=True)
    first = PROFILE.render((), "one")
    ids = prompts.ids(first)
    assert ids[:2] == (0, 0)
    completion = Completion(token_ids=(*TOKENIZER.encode(support.GOOD), 1), text=support.GOOD, finish_reason="stop")
    prompts.took(first, ids, completion)
    text = PROFILE.render([Shot("one", tuple(PROFILE.parse(support.GOOD)))], "two")
    assert prompts.ids(text) == tuple(TOKENIZER.encode(text, add_special_tokens=True))


PIECES = st.sampled_from(
    ["<QUE> a? <ANS> b </END>", "\n\n", " ", "<QUE> c? <ANS> </END>", "<QUE> d", "\ufffd", "é", "<ANS>", "x </END>"]
)


@given(pieces=st.lists(PIECES, max_size=8), stopped=st.booleans(), keep=st.integers(0, 3))
def test_the_text_is_that_of_the_profile_whatever_was_generated(pieces: list[str], stopped: bool, keep: int) -> None:
    completion = generated("".join(pieces), stopped=stopped)
    pairs = tuple(PROFILE.parse(completion.text))[:keep]
    seen, ids, text = follow(completion, pairs)
    assert ODD.decode(ids) == text
    prompt = len(ODD.encode(PROFILE.render((), "one")))
    assert ids[:prompt] == seen[:prompt]
