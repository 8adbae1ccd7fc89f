"""The prompts of one chain as token ids, so that an engine's prefix cache finds what it has already seen.

Tokenizing a finished chain anew rarely gives the ids that the engine generated, and from the first other id on the
cache holds nothing. So a prompt is what the engine saw last, prompt and completion, id for id, and only what follows
is tokenized. The text stays what the profile renders: where it edits a completion (a pair dropped, an end cut off),
ids are kept up to the edit.
"""

from __future__ import annotations

from collections.abc import Sequence

from instructpt.synthesis.engine import Completion
from instructpt.synthesis.tokenization import PromptTokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ChainPrompts:
    """Ids for the prompts of one chain.

    Args:
        tokenizer: The model's.
        eos: The string of the token at which a completion stops.
        add_special_tokens: Whether a chain's first prompt gets the tokenizer's own special tokens.
    """

    def __init__(self, tokenizer: PromptTokenizer, *, eos: str, add_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._eos = eos
        self._special = add_special_tokens
        self._text = ""
        self._ids: tuple[int, ...] = ()
        self._completion: Completion | None = None

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt; they begin with those that the engine has seen, as far as the text is the same."""
        completion = self._completion
        if completion is None or not text.startswith(self._text):
            return tuple(self._tokenizer.encode(text, add_special_tokens=self._special))
        rest = text[len(self._text) :]
        stopped = completion.token_ids[-1:] == (self._tokenizer.id_of(self._eos),)
        seen = completion.text + (self._eos if stopped else "")
        if rest.startswith(seen):
            return (*self._ids, *completion.token_ids, *self._tokenizer.encode(rest[len(seen) :]))
        kept, length = self._unedited(completion.token_ids, rest)
        added = (*kept, *self._tokenizer.encode(rest[length:]))
        if self._tokenizer.decode(added) != rest:  # a tokenizer whose pieces do not join at any place
            return tuple(self._tokenizer.encode(text, add_special_tokens=self._special))
        return (*self._ids, *added)

    def took(self, text: str, ids: Sequence[int], completion: Completion) -> None:
        """The engine was given this prompt and gave this completion."""
        self._text, self._ids, self._completion = text, tuple(ids), completion

    def _unedited(self, ids: Sequence[int], rest: str) -> tuple[tuple[int, ...], int]:
        """The most ids that ``rest`` begins with, and the length of their text."""
        low, high, length = 0, len(ids), 0
        while low < high:
            middle = (low + high + 1) // 2
            text = self._tokenizer.decode(ids[:middle])
            # A character cut in two decodes to a replacement, which proves nothing.
            if rest.startswith(text) and not text.endswith(_REPLACEMENT):
                low, length = middle, len(text)
            else:
                high = middle - 1
        return tuple(ids[:low]), length
