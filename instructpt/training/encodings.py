"""Which tokenizer encoded a shard, and why not the fast one: counted by shard, summed up by finalize.

It depends on what a worker has installed, and the ids do not depend on it: so it stands in ``encodings.json`` beside
the manifest and in no digest.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from instructpt.storage import Store
from instructpt.training.encoder import TextEncoder
from instructpt.training.fastencoder import FastEncoder, Unproved, prove
from instructpt.training.tokenizing import Differs

log = logging.getLogger(__name__)

FILE = "encodings.json"
SWITCH = "INSTRUCTPT_FAST_TOKENIZER"
"""Environment variable; ``0`` leaves all to the Hugging Face tokenizer."""


@dataclass(slots=True)
class Choice:
    """The fast tokenizer as long as nothing speaks against it, and what does."""

    fast: FastEncoder | None
    reason: str = ""

    def give_up(self, error: Differs, shard: str) -> None:
        """Leave this shard and all further ones to the other tokenizer."""
        log.warning(
            "shard %s: %s (%s); it and all that follow are encoded by the slow tokenizer", shard, error, error.reason
        )
        self.fast, self.reason = None, error.reason


def choose(oracle: TextEncoder, *, marked: bool = False) -> Choice:
    """The fast tokenizer if it is there and proved, for texts that are ``marked`` or not; says in the log why not."""
    if os.environ.get(SWITCH) == "0":
        return Choice(None, "switched-off")
    found = prove(oracle, marked=marked)
    if isinstance(found, Unproved):
        log.warning("texts are encoded by the slow tokenizer: %s (%s)", found.detail, found.reason)
        return Choice(None, found.reason)
    return Choice(found)


def record_of(choice: Choice, items: int, sampled: int) -> dict[str, Any]:
    """What the commit of a shard says."""
    if choice.fast is not None:
        return {"fast": items, "sampled": sampled}
    return {"slow": items, "reason": choice.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encodings:
    """Totals of a source.

    Attributes:
        fast: Texts that the fast tokenizer encoded.
        slow: Texts that the Hugging Face tokenizer encoded.
        sampled: Texts that both encoded, with equal ids.
        reasons: Why texts were not left to the fast one: reason -> texts.
    """

    fast: int = 0
    slow: int = 0
    sampled: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def total(cls, records: Iterable[Mapping[str, Any]]) -> Encodings:
        """Of the records of commits; those of earlier versions name no tokenizer and count as slow."""
        found: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for record in records:
            made = record.get("encoding") or {"slow": record["counts"].get("items", 0), "reason": "earlier-version"}
            found.update({name: int(made.get(name, 0)) for name in ("fast", "slow", "sampled")})
            if made.get("slow"):
                reasons[str(made["reason"])] += int(made["slow"])
        return cls(**found, reasons=dict(sorted(reasons.items())))

    def counts(self) -> dict[str, int]:
        """Flat, for the stage's result and for metrics."""
        flat = {"texts_fast": self.fast, "texts_slow": self.slow, "texts_sampled": self.sampled}
        return flat | {f"texts_slow_{reason.replace('-', '_')}": texts for reason, texts in self.reasons.items()}

    def publish(self, store: Store) -> None:
        """Write it beside the manifest."""
        wire = {"fast": self.fast, "slow": self.slow, "sampled": self.sampled, "reasons": dict(self.reasons)}
        store.put(FILE, json.dumps(wire, sort_keys=True).encode())

    @classmethod
    def load(cls, store: Store) -> Encodings | None:
        """What was written; None where nothing was."""
        return cls(**json.loads(store.get(FILE))) if store.exists(FILE) else None
