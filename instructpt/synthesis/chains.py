"""Chains: which documents follow one another as shots, and when a chain may go on.

Words: a *chain* is a run of documents in which every shot stands in the prompt of the next; M is the most shots a
chain has. Two layouts say which documents may form a chain; ``advance`` and ``record`` then decide document by
document whether it really goes on, which depends on what the synthesizer wrote and on the context's length.

Source: arXiv 2406.14491, section 2.2 (M-shot synthesis), and the reference implementation's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from instructpt.errors import ConfigError
from instructpt.synthesis.model import Pair, Shot

Layout = Literal["chain-local", "reference"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

TOO_LONG = "too-long"
NO_PAIRS = "no-pairs"

FIRST_SHOT = "first-shot"
PREVIOUS_WITHOUT_PAIRS = "previous-without-pairs"
CHAIN_COMPLETE = "chain-complete"
DOES_NOT_FIT = "does-not-fit"
CONTINUES = "continues"

Render = Callable[[Sequence[Shot], str], str]
CountTokens = Callable[[str], float]


def arrange(documents: Sequence[str], shots: int, layout: str = "chain-local") -> list[list[int]]:
    """The order of documents in chains, as indices; every index occurs exactly once.

    ``chain-local``: consecutive runs of ``shots`` documents, the last run may be shorter. The documents are those of
    one micro-shard, so that a shard depends on nothing but its own input.

    ``reference``: the documents are cut into ``shots`` rounds of ceil(N / shots); entry i of a round continues
    chain i. When the last round is shorter, the chains it leaves over come before the ones it continues: left-over
    chain j directly before chain j, unconnected to it. (The reference fails with an IndexError when a round is
    empty, as for one document and three shots, or leaves over more chains than it continues; here an empty round
    changes nothing and surplus chains come last.)

    Args:
        documents: The documents; only their number matters.
        shots: The most shots of a chain, at least 1.
        layout: ``chain-local`` or ``reference``.

    Raises:
        ConfigError: ``shots`` is below 1 or the layout is unknown.
    """
    if shots < 1:
        raise ConfigError("a chain has at least one shot", field="shots", value=shots, fix="use 1 or more")
    count = len(documents)
    if layout == "chain-local":
        return [list(range(start, min(start + shots, count))) for start in range(0, count, shots)]
    if layout == "reference":
        return [chain for together in collections(count, shots) for chain in together]
    raise ConfigError("unknown layout", field="layout", value=layout, fix=f"known: {', '.join(LAYOUTS)}")


def collections(count: int, shots: int) -> list[list[list[int]]]:
    """The chains of the layout ``reference``, by collection: those that end up at one place of its last round.

    The reference seeds its templates by collection, so the number of each matters. A collection is a chain that the
    last round continued, after the chain it left over, if any; surplus chains are collections of their own.
    """
    if not count:
        return []
    width = -(-count // shots)
    chains = [list(range(first, count, width)) for first in range(min(width, count))]
    # Only the last non-empty round can be short; it continues the first `last` chains.
    last = count - (len(chains[0]) - 1) * width
    continued, left_over = chains[:last], chains[last:]
    together = [[*left_over[index : index + 1], chain] for index, chain in enumerate(continued)]
    return together + [[chain] for chain in left_over[len(continued) :]]


def estimate_tokens_reference(text: str) -> float:
    """The reference's guess at a prompt's length, 1.5 tokens for every word between single spaces."""
    return len(text.split(" ")) * 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do with the next document of a chain.

    Attributes:
        verdict: ``continue`` the chain, start ``afresh``, or ``too-long``: the document alone exceeds the context.
        reason: Why: one of the reason constants of this module.
        prompt: The text to complete; empty when too long.
        prompt_tokens: Its length, or that of the document's own prompt when too long.
        shots: The earlier shots the prompt holds.
    """

    verdict: Literal["continue", "afresh", "too-long"]
    reason: str
    prompt: str
    prompt_tokens: float
    shots: tuple[Shot, ...]


def fits(
    chain: Sequence[Shot], document: str, *, render: Render, count_tokens: CountTokens, max_prompt_tokens: int
) -> bool:
    """Whether the prompt of ``document`` after ``chain`` has at most ``max_prompt_tokens`` tokens.

    Args:
        chain: The earlier shots; empty for the document alone.
        document: The next document.
        render: A profile's ``render``.
        count_tokens: The exact length of a prompt in tokens, as the engine will see it.
        max_prompt_tokens: The context window less the tokens to generate.
    """
    return count_tokens(render(chain, document)) <= max_prompt_tokens


def advance(
    chain: Sequence[Shot],
    document: str,
    *,
    shots: int,
    render: Render,
    count_tokens: CountTokens,
    max_prompt_tokens: int,
    estimate_tokens: CountTokens | None = None,
) -> Step:
    """Decide how ``document`` is synthesized after ``chain``; arguments as in ``fits`` and ``arrange``.

    It continues the chain if that has fewer than ``shots`` shots, its last shot has a pair, and the prompt fits;
    else it starts afresh. A document that does not fit even alone is ``too-long`` and takes no neighbour with it.
    With ``estimate_tokens`` a chain goes on only where the estimate fits as well; it never judges a lone document.
    """
    reason = CONTINUES
    if not chain:
        reason = FIRST_SHOT
    elif not chain[-1].pairs:
        reason = PREVIOUS_WITHOUT_PAIRS
    elif len(chain) >= shots:
        reason = CHAIN_COMPLETE
    if reason == CONTINUES:
        prompt = render(chain, document)
        length = count_tokens(prompt)
        likely = estimate_tokens(prompt) if estimate_tokens else length
        if max(likely, length) <= max_prompt_tokens:
            return Step(verdict="continue", reason=reason, prompt=prompt, prompt_tokens=length, shots=tuple(chain))
        reason = DOES_NOT_FIT
    prompt = render((), document)
    length = count_tokens(prompt)
    if length > max_prompt_tokens:
        return Step(verdict="too-long", reason=TOO_LONG, prompt="", prompt_tokens=length, shots=())
    return Step(verdict="afresh", reason=reason, prompt=prompt, prompt_tokens=length, shots=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the augmented corpus: a finished chain, or a lone document that stays without pairs.

    Attributes:
        indices: The documents, by index, in the order of ``shots``.
        shots: The documents with their pairs.
        reason: Why a lone document stays raw; ``None`` for a chain with pairs.
    """

    indices: tuple[int, ...]
    shots: tuple[Shot, ...]
    reason: str | None = None


def gather(entries: Sequence[Entry], collected: Sequence[Sequence[Sequence[int]]]) -> list[list[Entry]]:
    """Entries by collection, in the reference's order; those of no collection follow, each on its own.

    Args:
        entries: Finished rows, in any order.
        collected: The collections, as indices of documents (see ``collections``).
    """
    place: dict[int, tuple[int, int]] = {}
    for number, together in enumerate(collected):
        place |= {index: (number, at) for at, index in enumerate(index for chain in together for index in chain)}
    gathered: list[list[Entry]] = [[] for _ in collected]
    inside = [entry for entry in entries if entry.indices[0] in place]
    for entry in sorted(inside, key=lambda entry: place[entry.indices[0]]):
        gathered[place[entry.indices[0]][0]].append(entry)
    outside = sorted((entry for entry in entries if entry.indices[0] not in place), key=lambda entry: entry.indices[0])
    return [*gathered, *([entry] for entry in outside)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """An open chain; ``record`` and ``close`` give the next state and never change this one."""

    indices: tuple[int, ...] = ()
    shots: tuple[Shot, ...] = ()

    def close(self) -> tuple[Entry, ...]:
        """The open chain as a finished row; nothing if it is empty."""
        return (Entry(indices=self.indices, shots=self.shots),) if self.shots else ()

    def record(
        self, index: int, document: str, pairs: Sequence[Pair], *, afresh: bool, reason: str = NO_PAIRS
    ) -> tuple[ChainState, tuple[Entry, ...]]:
        """Take in what came of a document.

        A document with pairs joins the open chain, or opens a new one if it was synthesized ``afresh``. One without
        pairs (too long, failed, nothing parsed) becomes a row of its own with ``reason``, and the open chain is
        finished as it is: the next document starts afresh.

        Returns:
            The next state, and the rows finished by this document in their order.
        """
        shot = Shot(document, tuple(pairs))
        if not shot.pairs:
            return ChainState(), (*self.close(), Entry(indices=(index,), shots=(shot,), reason=reason))
        if afresh:
            return ChainState(indices=(index,), shots=(shot,)), self.close()
        return ChainState(indices=(*self.indices, index), shots=(*self.shots, shot)), ()
