"""Texts -> items: tokenized, opened and closed, with the mask of the loss."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructpt.errors import CorpusError
from instructpt.training.encoder import TextEncoder
from instructpt.training.fastencoder import FastEncoder, Ids, first_difference
from instructpt.training.sources import Text
from instructpt.training.tokenshards import Item, token_type

_TEXTS = 512
SAMPLES = 4
"""Texts of a shard that both tokenizers encode at least, if it has so many; one more for every further batch."""


class Differs(Exception):
    """The fast tokenizer failed on a text or gave other ids than the right one: encode the shard with that one.

    Args:
        reason: ``sample-mismatch`` or ``encoding-failed``.
        detail: For people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Tokenizing:
    """Tokenizes the texts of one shard and counts them.

    A text that is not marked becomes BOS, its tokens, EOS (no BOS where the tokenizer has none); a marked one holds
    its own. A text with parts that carry no loss and none that does teaches nothing and is left out, and counted.

    Args:
        encoder: The tokenizer.
        sequence_length: Of the rows: of longer texts the documents' beginnings are found.
        fast: Does the work where it is given, for texts that are marked as it is; ``encoder`` then encodes samples.
        seed: Which texts are samples; such as the shard's id.

    Attributes:
        counts: ``items``, ``without_targets``.
        sampled: Texts that both tokenizers encoded.
        digest: Over all texts, in order: what the shard was made from.
    """

    def __init__(
        self, encoder: TextEncoder, sequence_length: int, *, fast: FastEncoder | None = None, seed: str = ""
    ) -> None:
        self._encoder = encoder
        self._length = sequence_length
        self._fast = fast
        self._seed = seed
        self._dtype = token_type(encoder.vocab_size)
        self.counts: Counter[str] = Counter({"items": 0, "without_targets": 0})
        self.sampled = 0
        self.digest = hashlib.sha256()

    def items(self, texts: Iterable[Text]) -> Iterator[Item]:
        """Items in the order of the texts; some hundred texts are in memory at a time.

        Raises:
            Differs: The fast tokenizer is wrong; begin again without it.
            CorpusError: A text holds what UTF-8 cannot express.
        """
        source = iter(texts)
        number = 0
        while batch := list(islice(source, _TEXTS)):
            kept = [text for text in batch if any(target for _, target in text.parts)]
            self.counts["without_targets"] += len(batch) - len(kept)
            self.counts["items"] += len(kept)
            for marked in {text.marked for text in kept}:
                assert all(text.marked == marked for text in kept), "a source is marked or it is not"
                yield from self._encode(kept, number, marked=marked)
            number += 1

    def _encode(self, texts: list[Text], number: int, *, marked: bool) -> Iterator[Item]:
        parts = [part for text in texts for part, _ in text.parts]
        try:
            self.digest.update("\0".join([*parts, ""]).encode())
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"a text holds half of a surrogate pair ({error.object[error.start : error.end]!a}), which no "
                "tokenizer encodes",
                fix="mend the file, or declare it as a Corpus: inspection sets such documents aside",
            ) from error
        ids = self._ids(texts, parts, number, marked=marked)
        opening = [] if marked or self._encoder.bos is None else [np.array([self._encoder.bos], dtype=np.uint32)]
        closing = [] if marked else [np.array([self._encoder.eos], dtype=np.uint32)]
        # All texts of the batch in one array, of which the items are views.
        pieces: list[Ids] = []
        ends, at = [], iter(ids)
        for text in texts:
            pieces += opening
            pieces += islice(at, len(text.parts))
            pieces += closing
            ends.append(len(pieces))
        sizes = np.fromiter((len(piece) for piece in pieces), dtype=np.int64, count=len(pieces))
        bounds = np.concatenate(([0], np.cumsum(sizes)))[[0, *ends]].tolist()
        tokens = np.concatenate(pieces).astype(self._dtype) if pieces else np.zeros(0, dtype=self._dtype)
        for index, text in enumerate(texts):
            begin, end = bounds[index], bounds[index + 1]
            if end > begin:
                first = ends[index - 1] if index else 0
                targets = _targets(text, sizes[first : ends[index]], len(opening))
                found = tokens[begin:end]
                inner = self._inner(text, found, len(opening), marked=marked) if len(found) > self._length else ()
                yield Item(tokens=found, targets=targets, documents=text.documents, inner=inner)

    def _ids(self, texts: list[Text], parts: list[str], number: int, *, marked: bool) -> list[Ids]:
        if self._fast is None or self._fast.marked != marked:
            return self._encoder.encode(parts, marked=marked)
        for index in samples(f"{self._seed}:{number}", len(texts), 1 if number else SAMPLES):
            found = first_difference(self._fast, [part for part, _ in texts[index].parts])
            if found is not None:
                raise Differs("sample-mismatch", found)
            self.sampled += 1
        try:
            return self._fast.encode(parts)
        except Exception as error:  # whatever the package raises; the shard is encoded by the other one
            raise Differs("encoding-failed", f"gigatoken: {type(error).__name__}: {error}") from error

    def _inner(self, text: Text, tokens: NDArray[Any], opening: int, *, marked: bool) -> tuple[int, ...]:
        """Tokens at which the second and later documents begin, where that is known: of one part alone."""
        if not text.starts or len(text.parts) != 1:
            return ()
        ids = tokens[opening : len(tokens) - (0 if marked else 1)]
        found = self._encoder.token_starts(text.parts[0][0], ids, text.starts, marked=marked)
        return tuple(opening + token for token in found)


def samples(seed: str, size: int, count: int) -> list[int]:
    """``count`` different numbers below ``size``, or all of them, drawn by ``seed``; ascending."""
    drawn = hashlib.sha256(seed.encode()).digest()
    order = sorted(range(size), key=lambda index: hashlib.sha256(drawn + index.to_bytes(8, "big")).digest())
    return sorted(order[:count])


def _targets(text: Text, sizes: NDArray[np.int64], opening: int) -> NDArray[np.bool_] | None:
    """The mask of a text whose pieces have these sizes; None where the loss is on all of them."""
    if all(target for _, target in text.parts):
        return None
    of_parts = [target for _, target in text.parts]
    closing = len(sizes) - opening - len(of_parts)
    return np.repeat(np.array([True] * opening + of_parts + [True] * closing), sizes)
