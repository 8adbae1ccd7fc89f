"""Engines: what turns prompts into completions, behind one protocol that takes token ids.

An engine serves one worker. Requests may come in any number at once; each is answered the moment it is done, and one
that fails takes no other with it. Two kinds of failure are told apart: a SynthesisError concerns one request, an
EnvironmentNotReadyError means that the engine as a whole is gone and the worker had better leave.

Another distribution adds an engine through the entry-point group ``instructpt.engines`` (an ``EngineFactory``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from instructpt.api.v1alpha1.synthesisjob import Engine as EngineSpec
from instructpt.api.v1alpha1.synthesisjob import Sampling
from instructpt.errors import ConfigError, EnvironmentNotReadyError, SynthesisError
from instructpt.synthesis.registry import Registry
from instructpt.synthesis.tokenization import PromptTokenizer

ENTRY_POINT_GROUP = "instructpt.engines"
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and how to complete it.

    Attributes:
        prompt_ids: The prompt, as token ids; nothing is added to it.
        max_tokens: The most tokens to generate.
        temperature: 0 is greedy.
        top_p: Nucleus; 1 is all.
        seed: Of the draws when the temperature is not 0.
        stop_ids: Generation ends after one of these.
        priority: Among waiting requests the lowest goes first, where the engine can choose.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came of a request.

    Attributes:
        token_ids: What was generated, the stop token included.
        text: The same as text, without the stop token.
        finish_reason: ``stop`` at a stop token, ``length`` at ``max_tokens``.
        attempts: Times the engine was asked, retries included.
        cached_tokens: Of the prompt, as far as the engine had them in its cache and says so.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    attempts: int = 1
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """A prompt and a continuation whose probability is asked for.

    Attributes:
        prompt_ids: The prompt, as token ids; not empty, nothing is added to it.
        continuation_ids: What follows it; not empty.
    """

    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of prompt and continuation together; an engine needs room for one more."""
        return len(self.prompt_ids) + len(self.continuation_ids)


class RequestFailedError(SynthesisError):
    """One request failed for good, after the engine's own retries.

    Args:
        message: What happened.
        attempts: Times that the engine asked.
    """

    def __init__(self, message: str, *, attempts: int) -> None:
        super().__init__(message)
        self.attempts = attempts


@runtime_checkable
class Engine(Protocol):
    """A model that generates. Opened and closed by ``async with``."""

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The model's own tokenizer."""

    @property
    def context_window(self) -> int:
        """Prompt and completion together, in tokens."""

    @property
    def default_concurrency(self) -> int:
        """Requests in flight that keep the engine busy."""

    @property
    def deterministic(self) -> bool:
        """Whether a micro-shard's completions are a function of its requests, as long as nothing else is under way."""

    @property
    def cache_tokens(self) -> int | None:
        """Tokens that its prefix cache holds; None where there is none or the engine cannot tell."""

    def progress(self) -> int:
        """A number that changes whenever work gets on; constant where the engine cannot tell."""

    async def check_health(self) -> None:
        """See whether the engine still lives.

        Raises:
            EnvironmentNotReadyError: It does not.
        """

    async def generate(self, request: GenerationRequest) -> Completion:
        """Complete a prompt.

        Raises:
            SynthesisError: This request failed; ``retryable`` says whether the same one may succeed later.
            EnvironmentNotReadyError: The engine is gone.
        """

    @property
    def can_score(self) -> bool:
        """Whether :meth:`score` works; known once the engine is open."""

    async def score(self, request: ScoreRequest) -> tuple[float, ...]:
        """Natural logarithm of the probability of each token of a continuation, given all before it.

        Raises:
            SynthesisError: This request failed; ``retryable`` says whether the same one may succeed later.
            EnvironmentNotReadyError: The engine is gone.
            ConfigError: This engine cannot score.
        """

    async def close(self) -> None:
        """Give back processes, memory and connections; closing twice is harmless."""

    async def __aenter__(self) -> Self:
        """Start what has to be started."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


class BaseEngine:
    """The life cycle that every engine shares.

    Args:
        tokenizer: The model's tokenizer.
        context_window: Prompt and completion together, in tokens.
        default_concurrency: Requests in flight when the spec does not say.
    """

    deterministic = False
    can_score = False
    cache_tokens: int | None = None

    def __init__(self, tokenizer: PromptTokenizer, context_window: int, default_concurrency: int) -> None:
        self.tokenizer = tokenizer
        self.context_window = context_window
        self.default_concurrency = default_concurrency

    def progress(self) -> int:
        """Cannot tell."""
        return 0

    async def check_health(self) -> None:
        """Nothing to look at."""

    async def score(self, request: ScoreRequest) -> tuple[float, ...]:
        """Cannot score.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{type(self).__name__} gives no probabilities of a text", field="engine.name")

    async def close(self) -> None:
        """Nothing to give back."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine is made from.

    Attributes:
        model: Folder with the model, or for a remote engine with its tokenizer.
        spec: ``engine`` of the spec.
        sampling: ``sampling`` of the spec.
        parallelism: Workers that may share this machine.
    """

    model: Path
    spec: EngineSpec
    sampling: Sampling
    parallelism: int = 1


EngineFactory = Callable[[EngineSettings], Engine]
registry: Registry[EngineFactory] = Registry("engine", ENTRY_POINT_GROUP)


def _lazy(module: str) -> EngineFactory:
    def factory(settings: EngineSettings) -> Engine:
        engine: Engine = importlib.import_module(module).create(settings)
        return engine

    return factory


_MODULES = {name: f"instructpt.synthesis.{name}_engine" for name in ("transformers", "vllm", "openai")}
for _name, _module in _MODULES.items():
    registry.register(_name, _lazy(_module))


def load_libraries(name: str) -> None:
    """Import what the engine called ``name`` needs, before a lease is held; that of a plug-in is its own matter.

    Raises:
        EnvironmentNotReadyError: A package is not installed; names the command.
    """
    if name in _MODULES:
        load = getattr(importlib.import_module(_MODULES[name]), "load", None)
        if load is not None:
            load()


def open_engine(
    name: str, model_path: Path, engine_spec: EngineSpec, sampling: Sampling, *, parallelism: int = 1
) -> Engine:
    """The engine called ``name``, to be used as an asynchronous context manager.

    Args:
        name: ``transformers``, ``vllm``, ``openai`` or a plug-in.
        model_path: Folder with the model, or with its tokenizer for ``openai``.
        engine_spec: ``engine`` of the spec.
        sampling: ``sampling`` of the spec.
        parallelism: Workers that may share this machine.

    Raises:
        ConfigError: The name or an engine argument is unknown, or the model does not fit the spec.
        EnvironmentNotReadyError: A package that the engine needs is not installed; names the command.
    """
    settings = EngineSettings(model=model_path, spec=engine_spec, sampling=sampling, parallelism=parallelism)
    return registry.get(name)(settings)


def require(module: str, *, needed_by: str, command: str = "pip install 'instructpt[synthesis]'") -> ModuleType:
    """Import an optional library.

    Raises:
        EnvironmentNotReadyError: It is not installed, or cannot be loaded; names the one command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentNotReadyError(
            f"{needed_by} needs {module}, which cannot be imported ({error})", fix=command
        ) from error
