"""A byte-level BPE tokenizer trained on the run's own text, saved as a Hugging Face folder.

Equal texts and settings give equal bytes. It adds no special token when it encodes: who needs one puts it there.

Source: Sennrich et al., arXiv 1508.07909 (BPE); Radford et al., 2019, section 2.2 (byte-level).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instructpt.errors import ConfigError, EnvironmentNotReadyError

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL_TOKENS = (BOS, EOS, PAD)
MAX_BYTES = 32 << 20
"""Text that a tokenizer is trained on at most, in document order; more changes merges little and costs minutes."""

_UNBOUNDED = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training read and made.

    Attributes:
        vocab_size: Entries, special tokens included; fewer than asked for where the text has no more merges.
        documents: Texts read.
        text_bytes: UTF-8 bytes read.
        capped: Whether there was more text than ``MAX_BYTES``.
    """

    vocab_size: int
    documents: int
    text_bytes: int
    capped: bool


def train_tokenizer(
    texts: Iterable[str], folder: Path, *, vocab_size: int, tags: Sequence[str] = (), max_bytes: int = MAX_BYTES
) -> Trained:
    """Train on ``texts`` and write ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json``.

    Args:
        texts: Documents in order; read until ``max_bytes``.
        folder: Made if it is not there.
        vocab_size: Entries, special tokens and the 256 bytes included.
        tags: Ordinary strings that get a token each: those of a profile, which would cost several each otherwise.
        max_bytes: Cap.

    Raises:
        ConfigError: There is no text, or ``vocab_size`` has no room for bytes and special tokens.
        EnvironmentNotReadyError: The package ``tokenizers`` is missing.
    """
    least = 256 + len(SPECIAL_TOKENS) + len(tags)
    if vocab_size < least:
        raise ConfigError(
            "is too small for the 256 bytes and the special tokens",
            field="tokenizer.train.vocabSize",
            value=vocab_size,
            fix=f"use at least {least}",
        )
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise EnvironmentNotReadyError(
            "training a tokenizer needs the package tokenizers", fix="pip install 'instructpt[training]'"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(tags),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    capped = _Capped(texts, max_bytes)
    tokenizer.train_from_iterator(iter(capped), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    if capped.documents == 0:
        raise ConfigError("there is no text to train on", field="tokenizer.train", fix="name a corpus with text")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _UNBOUNDED,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", named)
    return Trained(
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
        documents=capped.documents,
        text_bytes=capped.size,
        capped=capped.cut,
    )


class _Capped:
    """Texts up to a number of bytes, counted."""

    def __init__(self, texts: Iterable[str], max_bytes: int) -> None:
        self._texts = texts
        self._max_bytes = max_bytes
        self.documents = 0
        self.size = 0
        self.cut = False

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            size = len(text.encode("utf-8", "replace"))
            if self.documents and self.size + size > self._max_bytes:
                self.cut = True
                return
            self.documents += 1
            self.size += size
            yield text


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
