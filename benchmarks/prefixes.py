"""Prefix hits that a run could have had: what an engine with an endless cache would have found. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the engine saw it.

    Attributes:
        prompt: Ids given.
        completion: Ids that came.
        cached: Ids of the prompt that the engine had in its cache.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    cached: int = 0


def attainable(requests: Iterable[Request], block_size: int) -> int:
    """Prompt tokens that a cache without an end would have held, in the order in which requests ended.

    A cache keeps whole blocks. It holds a prompt and what was generated from it but for the last token, whose state is
    never computed; at least one token of a prompt is computed anew, to have something to go on from.
    """
    held: set[int] = set()
    found = 0
    for request in requests:
        limit = (len(request.prompt) - 1) // block_size
        for block, name in enumerate(_names(request.prompt, block_size)):
            if block >= limit or name not in held:
                break
            found += block_size
        held.update(_names([*request.prompt, *request.completion[:-1]], block_size))
    return found


def _names(ids: Sequence[int], block_size: int) -> Iterable[int]:
    """A name for each whole block, by its ids and all before it."""
    name = 0
    for start in range(0, len(ids) - block_size + 1, block_size):
        name = hash((name, tuple(ids[start : start + block_size])))
        yield name


def tally(requests: Sequence[Request], block_size: int) -> dict[str, int]:
    """Counts of a run: requests, tokens in and out, prompt tokens found in the cache, and those that could be."""
    return {
        "requests": len(requests),
        "prompt_tokens": sum(len(r.prompt) for r in requests),
        "completion_tokens": sum(len(r.completion) for r in requests),
        "cached_tokens": sum(r.cached for r in requests),
        "attainable_tokens": attainable(requests, block_size),
    }
