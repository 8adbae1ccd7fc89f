"""Texts -> items: tokenized, opened and closed, with the mask of the loss."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from instructpt.training.encoder import TextEncoder
from instructpt.training.sources import Text
from instructpt.training.tokenshards import Item

_TEXTS = 256


class Tokenizing:
    """Tokenizes the texts of one shard and counts them.

    A text that is not marked becomes BOS, its tokens, EOS (no BOS where the tokenizer has none); a marked one holds
    its own. A text with parts that carry no loss and none that does teaches nothing and is left out, and counted.

    Args:
        encoder: The tokenizer.

    Attributes:
        counts: ``items``, ``without_targets``.
        digest: Over all texts, in order: what the shard was made from.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self.counts: Counter[str] = Counter({"items": 0, "without_targets": 0})
        self.digest = hashlib.sha256()

    def items(self, texts: Iterable[Text]) -> Iterator[Item]:
        """Items in the order of the texts; some hundred texts are in memory at a time."""
        source = iter(texts)
        while batch := list(islice(source, _TEXTS)):
            kept = [text for text in batch if any(target for _, target in text.parts)]
            self.counts["without_targets"] += len(batch) - len(kept)
            self.counts["items"] += len(kept)
            for marked in {text.marked for text in kept}:
                assert all(text.marked == marked for text in kept), "a source is marked or it is not"
                yield from self._encode(kept, marked=marked)

    def _encode(self, texts: list[Text], *, marked: bool) -> Iterator[Item]:
        parts = [part for text in texts for part, _ in text.parts]
        for part in parts:
            self.digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        ids = iter(self._encoder.encode(parts, marked=marked))
        opening = [] if marked or self._encoder.bos is None else [self._encoder.bos]
        closing = [] if marked else [self._encoder.eos]
        for text in texts:
            pieces = [(np.array(opening, dtype=np.uint32), True)]
            pieces += [(next(ids), target) for _, target in text.parts]
            pieces.append((np.array(closing, dtype=np.uint32), True))
            targets = None
            if not all(target for _, target in text.parts):
                targets = np.repeat([target for _, target in pieces], [len(piece) for piece, _ in pieces])
            tokens = np.concatenate([piece for piece, _ in pieces])
            if len(tokens):
                yield Item(tokens=tokens, targets=targets, documents=text.documents)
