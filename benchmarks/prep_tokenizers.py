"""Tokenizers for ``bench-prep``, trained on its text: byte-level as GPT-2's, and with byte fallback as Mistral's."""

from __future__ import annotations

import json
from pathlib import Path

TOKENIZERS = ("byte-level", "byte-fallback")
VOCABULARY = 32_000
_BYTES = 8 << 20


def make(folder: Path) -> None:
    """Train those that are not there on the first 8 MB of ``m1.jsonl``, and publish them as a run's tokenizer."""
    from instructpt.training.tokenizer import train_tokenizer

    with (folder / "m1.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(_BYTES // 1000), lines, strict=False)]
    if not (folder / "byte-level" / "tokenizer.json").is_file():
        train_tokenizer(texts, folder / "byte-level", vocab_size=VOCABULARY, max_bytes=_BYTES)
    if not (folder / "byte-fallback" / "tokenizer.json").is_file():
        _byte_fallback(texts, folder / "byte-fallback")


def _byte_fallback(texts: list[str], folder: Path) -> None:
    """BPE over characters with spaces written as U+2581 and bytes for what the vocabulary lacks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*special, *names], show_progress=False, limit_alphabet=2000
    )
    trained.train_from_iterator(iter(texts[: len(texts) // 2]), trainer)
    wire = json.loads(trained.to_str())
    wire["added_tokens"] = [token for token in wire["added_tokens"] if token["content"] in special]
    # As Mistral's: the spaces are the normalizer's, and a text is one word.
    wire["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    wire["pre_tokenizer"] = None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(wire, ensure_ascii=False), encoding="utf-8")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**named, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
