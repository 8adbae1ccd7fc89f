"""What a synthesis worker says of itself while it works: the ledger's totals, its own counts and rates."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from instructpt.synthesis.writers import Outcome
from instructpt.telemetry.progress import Progress

SECONDS = 1.0
"""Between two updates while documents come in."""
_COUNTS = (
    "documents", "augmented", "raw", "dead_letters", "parsed_pairs", "pairs", "prompt_tokens", "completion_tokens",
    "retries",
)  # fmt: skip
# By reason: of documents that have no pairs, and of pairs that were dropped.
_PREFIXES = ("raw_", "dead_letters_", "filtered_", "judge", "scored_", "unscored_")


class Report:
    """Figures of one worker.

    ``counts`` are those of committed micro-shards, as the manifest will add them up; rates and the share of prompt
    tokens that came from the engine's cache count every document.

    Args:
        progress: Where they go.
        total: Micro-shards of the stage.
        clock: Monotonic seconds.
    """

    def __init__(self, progress: Progress, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._begun = self._reported = clock()
        self._committed: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._look: Callable[[], Mapping[str, float]] = dict
        self._progress.update(done=0, total=total, unit="shards")

    def shards(self, done: int) -> None:
        """So many micro-shards are committed."""
        self._progress.update(done=done)

    def commit(self, done: int, counts: Mapping[str, int]) -> None:
        """A micro-shard was made; ``counts`` are empty where another worker's commit was first."""
        self._committed.update(counts)
        told = [*_COUNTS, *(name for name in self._committed if name.startswith(_PREFIXES))]
        self._progress.update(done=done, counts={name: self._committed[name] for name in told})
        self._rates()

    def document(self, outcome: Outcome) -> None:
        """A document has its verdict."""
        self._seen["documents"] += 1
        self._seen["prompt_tokens"] += outcome.prompt_tokens
        self._seen["cached_tokens"] += outcome.cached_tokens
        self._seen["completion_tokens"] += outcome.completion_tokens
        if self._clock() - self._reported >= SECONDS:
            self._rates()

    def watch(self, look: Callable[[], Mapping[str, float]]) -> None:
        """Show these values beside the rates, as they stand then."""
        self._look = look

    def _rates(self) -> None:
        self._reported = self._clock()
        seconds = max(self._reported - self._begun, 1e-9)
        self._progress.update(
            rates={
                "tokens_per_second": self._seen["completion_tokens"] / seconds,
                "documents_per_second": self._seen["documents"] / seconds,
            },
        )
        gauges = dict(self._look())
        if self._seen["prompt_tokens"]:
            gauges["prefix_cache_hits"] = self._seen["cached_tokens"] / self._seen["prompt_tokens"]
        self._progress.update(gauges=gauges)
