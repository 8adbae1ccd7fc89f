"""A causal language model with its tokenizer, ready to be measured.

The only module here, with ``likelihood`` and ``generation``, that needs torch; import it where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instructpt.errors import ConfigError

MAX_CONTEXT = 2048
UNTRAINED_SEED = 20240620


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """What the measurements need of a model.

    Attributes:
        model: A transformers causal LM in evaluation mode: fp32 on a CPU, bf16 on a GPU.
        tokenizer: Its tokenizer.
        device: Where the model is.
        start: Token id before each document: BOS, else EOS; ``None`` when the tokenizer has neither.
        pad: Token id that fills batches; masked wherever it stands.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    start: int | None
    pad: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added; a string such as ``</s>`` in it is ordinary text.

        So does training (``training.encoder``): the bits are those of the tokens that a model was trained on.
        """
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.model.config.vocab_size)


def context_length(folder: Path, manifest_settings: Mapping[str, Any] | None = None) -> int:
    """Longest context to measure a model with, in tokens.

    The sequence length it was trained with where the manifest of its export states it (positions beyond it were never
    trained), else the config's ``max_position_embeddings``; at most ``MAX_CONTEXT``, which bounds the time a document
    takes.

    Raises:
        ConfigError: There is no config to read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the model has no readable config.json: {error}",
            field="spec.models",
            value=str(folder),
            fix="export it again",
        ) from error
    stated = (manifest_settings or {}).get("sequenceLength") or config.get("max_position_embeddings")
    return min(MAX_CONTEXT, int(stated or MAX_CONTEXT))


def load_model(folder: Path) -> LanguageModel:
    """The model in a Hugging Face folder.

    Raises:
        ConfigError: transformers cannot load what is there.
    """
    from transformers import AutoModelForCausalLM

    device = _device()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(device), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(folder, error) from error
    return _ready(model, folder, device)


def load_untrained(folder: Path) -> LanguageModel:
    """The same architecture and tokenizer with random weights from a fixed seed: what a model knows before training."""
    from transformers import AutoConfig, AutoModelForCausalLM

    device = _device()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(folder, error) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return _ready(model.to(_dtype(device)), folder, device)


def _ready(model: Any, folder: Path, device: torch.device) -> LanguageModel:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(folder, error) from error
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, start) if i is not None), 0)
    return LanguageModel(model=model.to(device).eval(), tokenizer=tokenizer, device=device, start=start, pad=pad)


def _unloadable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"transformers cannot load the model: {error}",
        field="spec.models",
        value=str(folder),
        fix="give a folder that AutoModelForCausalLM and AutoTokenizer can load",
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
