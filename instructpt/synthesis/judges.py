"""Filters that ask a model: one pair and its document at a time, after all filters that need none.

What they give is counted like any other filter's. Whom they ask may fail; then the pairs of that document are dropped
under a reason of their own and the document becomes a dead letter, so that it can be done again: to let its pairs
through would be to do without the filter that was asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.synthesis.filters import FilterResult
from instructpt.synthesis.model import Pair

log = logging.getLogger(__name__)

JUDGE_ERROR = "judge-error"
"""Reason of the dead letter, and of the dropped pairs, of a document whose judge failed."""


class PairJudge(Protocol):
    """A filter that has to wait for its answer."""

    async def reason(self, pair: Pair, document: str, counts: Counter[str]) -> str | None:
        """Why to drop the pair, or None.

        Args:
            pair: A pair that all other filters keep, tags neutralised.
            document: The document that it was made from, tags neutralised.
            counts: Of the micro-shard; what was asked and what came of it is added.

        Raises:
            SynthesisError: No answer to this pair, after all attempts.
            EnvironmentNotReadyError: Whom it asks is gone.
            ConfigError: Whom it asks refuses every pair.
        """


async def judge(
    pairs: Sequence[Pair], judges: Sequence[PairJudge], document: str, counts: Counter[str]
) -> FilterResult | None:
    """Keep what every judge lets through, or None where one of them failed. A later judge sees what earlier ones keep.

    Args:
        pairs: Pairs of one document, in their order.
        judges: In the order in which they are asked.
        document: The text of that document.
        counts: Of the micro-shard.

    Raises:
        EnvironmentNotReadyError: Whom a judge asks is gone.
        ConfigError: Whom a judge asks refuses every pair.
    """
    kept, dropped = tuple(pairs), Counter[str]()
    for one in judges:
        # All are waited for, so that nothing of this document is under way once it has its verdict.
        found = await asyncio.gather(*(one.reason(pair, document, counts) for pair in kept), return_exceptions=True)
        failed = False
        for reason in found:
            if isinstance(reason, EnvironmentNotReadyError | ConfigError) or (
                isinstance(reason, BaseException) and not isinstance(reason, Exception)
            ):
                raise reason
            if isinstance(reason, BaseException):
                log.warning("a pair could not be judged: %s", reason)
                failed = True
        if failed:
            return None
        dropped.update(str(reason) for reason in found if reason is not None)
        kept = tuple(pair for pair, reason in zip(kept, found, strict=True) if reason is None)
    return FilterResult(kept=kept, dropped_by_reason=dict(dropped))
