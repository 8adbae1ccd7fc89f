"""A model's tokenizer as synthesis needs it: exact ids for a prompt, exact text for a completion."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructpt.api.v1alpha1.synthesisjob import Sampling
from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.synthesis.model import Pair, Shot
from instructpt.synthesis.profiles import DEFAULT_PROFILE, Profile

log = logging.getLogger(__name__)

_FIELD = "synthesizer.model"


class PromptTokenizer:
    """Wraps a Hugging Face tokenizer; no token is added or taken away behind the caller's back.

    Args:
        backend: A tokenizer of transformers.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._vocabulary: dict[str, int] = dict(backend.get_vocab())

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; ``add_special_tokens`` is for profiles whose BOS policy is ``reference``."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included, nothing cleaned up."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self._vocabulary

    def id_of(self, token: str) -> int:
        """The id of a token that is known to be in the vocabulary."""
        return self._vocabulary[token]


def load_tokenizer(folder: Path) -> PromptTokenizer:
    """The tokenizer in a model's folder.

    Raises:
        ConfigError: The folder holds none that can be read.
        EnvironmentNotReadyError: transformers is not installed.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise EnvironmentNotReadyError(
            f"tokenizers need transformers, which cannot be imported ({error})",
            fix="pip install 'instructpt[synthesis]'",
        ) from error
    try:
        return PromptTokenizer(transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True))
    # Every broken or missing file gives an exception of its own kind.
    except Exception as error:
        raise ConfigError(
            f"model folder {folder} holds no tokenizer that can be read ({type(error).__name__}: {error})",
            field=_FIELD,
            value=str(folder),
            fix="put tokenizer.json and tokenizer_config.json beside config.json",
        ) from error


def model_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model's folder.

    Raises:
        ConfigError: It is missing or no JSON object.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", field=_FIELD, value=str(folder), fix="give a complete model folder"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} is no JSON object", field=_FIELD, value=str(folder), fix="give a complete model folder"
        )
    return raw


def check_tuned_for(folder: Path, profile: str, *, model: str) -> None:
    """Refuse a synthesizer that this system tuned for another wire format: its pairs would not be parsed.

    A model without a manifest may be of any origin and is taken at its word; one that was trained for something else
    is named in the log.

    Raises:
        ConfigError: The profile is not the one that it was tuned for.
    """
    path = folder / "manifest.json"
    settings = json.loads(path.read_bytes()).get("settings", {}) if path.is_file() else {}
    objective = settings.get("objective")
    if objective is None:
        return
    if objective != "SynthesizerTuning":
        log.warning("the synthesizer was trained for something else", extra={"model": model, "objective": objective})
        return
    tuned = settings.get("profile") or DEFAULT_PROFILE
    if tuned != profile:
        raise ConfigError(
            f"{model} was tuned for profile {tuned}",
            field="synthesizer.profile",
            value=profile,
            fix=f"set profile: {tuned}, or name a synthesizer that was tuned for {profile}",
        )


def check_context(folder: Path, context_window: int) -> None:
    """Refuse a context window beyond the model's positions.

    Raises:
        ConfigError: Naming both numbers.
    """
    config = model_config(folder)
    text_config = config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    limit = config.get("max_position_embeddings", nested.get("max_position_embeddings"))
    if isinstance(limit, int) and context_window > limit:
        raise ConfigError(
            f"the model has {limit} positions",
            field="sampling.contextWindow",
            value=context_window,
            fix=f"use {limit} or less, or a model with a longer context",
        )


def check_room(profile: Profile, tokenizer: PromptTokenizer, sampling: Sampling) -> None:
    """Refuse a context that cannot hold one document and one answer.

    Raises:
        ConfigError: Naming what the profile alone takes.
    """
    special = profile.bos_policy == "reference"
    frame = len(tokenizer.encode(profile.render((), "a"), add_special_tokens=special))
    if frame + sampling.max_tokens > sampling.context_window:
        raise ConfigError(
            f"cannot hold a document and its answer: profile {profile.name} takes {frame} tokens around a document of "
            f"one letter, and sampling.maxTokens {sampling.max_tokens} for the answer",
            field="sampling.contextWindow",
            value=sampling.context_window,
            fix="raise it to hold your documents too, or lower sampling.maxTokens",
        )


def check_tokenizer(profile: Profile, tokenizer: PromptTokenizer, *, model: str) -> None:
    """Refuse a tokenizer that cannot represent the profile's strings.

    BOS and EOS must be single tokens, and a prompt with every tag must come back from its ids, white space aside.

    Raises:
        ConfigError: Naming what is missing.
    """
    missing = profile.missing_strings(tokenizer.vocabulary)
    if missing:
        raise ConfigError(
            f"its tokenizer has no token {' and no token '.join(missing)}, which profile {profile.name} needs",
            field=_FIELD,
            value=model,
            fix="use a synthesizer tuned for this profile, or the profile it was tuned for",
        )
    for string in (profile.bos, profile.eos):
        if tokenizer.encode(string) != [tokenizer.id_of(string)]:
            raise ConfigError(
                f"its tokenizer splits {string} into several tokens",
                field=_FIELD,
                value=model,
                fix=f"declare {string} as a special token in tokenizer.json",
            )
    prompt = profile.render([Shot("one", (Pair("two", "three"),))], "four")
    again = tokenizer.decode(tokenizer.encode(prompt))
    if "".join(again.split()) != "".join(prompt.split()):
        raise ConfigError(
            f"its tokenizer does not give back the strings of profile {profile.name}: {prompt!r} became {again!r}",
            field=_FIELD,
            value=model,
            fix="use the tokenizer that the synthesizer was tuned with",
        )
