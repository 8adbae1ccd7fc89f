"""Engine ``openai``: any server with the completions API of OpenAI, such as a vLLM fleet that is already there.

Prompts go as token ids to ``<endpoint>/completions``. A server that says it is a vLLM is asked for token ids in
return, so that a chain's next prompt repeats them as they are. How failures are met: :mod:`.openai_client`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from instructpt.errors import ConfigError
from instructpt.synthesis.engine import (
    BaseEngine,
    Completion,
    EngineSettings,
    FinishReason,
    GenerationRequest,
    RequestFailedError,
    ScoreRequest,
)
from instructpt.synthesis.openai_client import ApiKey, OpenAIClient
from instructpt.synthesis.tokenization import PromptTokenizer, load_tokenizer

KEY = ApiKey(variable="INSTRUCTPT_OPENAI_API_KEY", mounted=Path("/var/run/instructpt/secrets/openai/api-key"))
CONCURRENCY = 64

_ARGS: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "timeout_seconds": (int, float),
    "max_attempts": (int,),
    "backoff_seconds": (int, float),
    "body": (dict,),
    "prompt": (str,),
}
_OF_CLIENT = ("timeout_seconds", "max_attempts", "backoff_seconds")
_PROMPTS = ("ids", "text")


class OpenAIEngine(BaseEngine):
    """An engine behind HTTP.

    Args:
        client: Of its server.
        tokenizer: The served model's tokenizer.
        context_window: Prompt and completion together, in tokens.
        concurrency: Requests in flight.
        model: Name of the served model; empty takes the only one the server lists.
        body: More fields for each request.
        prompt: ``ids``, or ``text`` for servers that take no token ids; these add a BOS of their own.
    """

    def __init__(
        self,
        client: OpenAIClient,
        tokenizer: PromptTokenizer,
        *,
        context_window: int,
        concurrency: int,
        model: str = "",
        body: Mapping[str, Any] | None = None,
        prompt: str = "ids",
    ) -> None:
        super().__init__(tokenizer, context_window, concurrency)
        self._client = client
        self._model = model
        self._body = dict(body or {})
        self._sends_text = prompt == "text"
        self._is_vllm = False

    def progress(self) -> int:
        """Answers so far, refusals included: a server that says no is there."""
        return self._client.answers

    async def __aenter__(self) -> Self:
        self._client.open()
        try:
            self._choose(await self._models())
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Complete a prompt.

        Raises:
            RequestFailedError: The server refuses this request, or failed on it each time.
            EnvironmentNotReadyError: The server cannot be reached, or is overloaded for too long.
            ConfigError: The key, the model or the endpoint is wrong.
        """
        answer, attempts = await self._client.call("POST", "/completions", self._request(request))
        try:
            choice = answer["choices"][0]
            text, finished, given = str(choice["text"]), choice.get("finish_reason"), choice.get("token_ids")
            ids = tuple(int(token) for token in given) if given else ()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._no("completion", error, attempts) from error
        reason: FinishReason = "length" if finished == "length" else "stop"
        if ids:
            stopped = ids[-1] in request.stop_ids
            text = self.tokenizer.decode(ids[:-1] if stopped else ids)
        else:
            # The server gives text alone: the ids are those of the tokenizer that is at hand here.
            ids = tuple(self.tokenizer.encode(text)) + (request.stop_ids[:1] if reason == "stop" else ())
        return Completion(
            token_ids=ids, text=text, finish_reason=reason, attempts=attempts, cached_tokens=_cached_tokens(answer)
        )

    async def score(self, request: ScoreRequest) -> tuple[float, ...]:
        """Log-probabilities of a continuation, which a vLLM gives for the tokens of a prompt.

        Raises:
            RequestFailedError: The server refuses this request, failed on it each time, or gave none.
            EnvironmentNotReadyError: The server cannot be reached, or is overloaded for too long.
            ConfigError: The key, the model or the endpoint is wrong.
        """
        ids = [*request.prompt_ids, *request.continuation_ids]
        body = {**self._body, "model": self._model, "prompt": ids, "max_tokens": 1, "temperature": 0.0}
        answer, attempts = await self._client.call("POST", "/completions", {**body, "prompt_logprobs": 0})
        try:
            given = answer["choices"][0]["prompt_logprobs"]
            first = len(request.prompt_ids)
            found = [float(given[at][str(ids[at])]["logprob"]) for at in range(first, len(ids))]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._no("log-probabilities of the prompt", error, attempts) from error
        return tuple(found)

    def _no(self, what: str, error: Exception, attempts: int) -> RequestFailedError:
        return RequestFailedError(f"{self._client.endpoint} gave no {what}: {error!r}", attempts=attempts)

    def _request(self, request: GenerationRequest) -> dict[str, Any]:
        body = {
            **self._body,
            "model": self._model,
            "prompt": self._as_text(request.prompt_ids) if self._sends_text else list(request.prompt_ids),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if self._is_vllm:
            # As the engine in this process: ends at the profile's EOS alone, and says which tokens it gave.
            stop = {"stop_token_ids": list(request.stop_ids), "ignore_eos": True}
            return {**body, **stop, "skip_special_tokens": False, "return_token_ids": True}
        return {**body, "stop": [self.tokenizer.decode([stop]) for stop in request.stop_ids]}

    def _as_text(self, ids: Sequence[int]) -> str:
        """The prompt without the tokens that the server's tokenizer, which is the same, adds in front."""
        added = self.tokenizer.encode("", add_special_tokens=True)
        return self.tokenizer.decode(ids[len(added) :] if list(ids[: len(added)]) == added else ids)

    async def _models(self) -> list[tuple[str, str]]:
        """Names and owners of the models that the server lists; none where it lists none and one is named."""
        try:
            answer, _ = await self._client.call("GET", "/models", None)
            return [(str(model["id"]), str(model.get("owned_by", ""))) for model in answer["data"]]
        except ConfigError as error:
            if self._model and "404" in error.message:
                return []
            raise
        except (KeyError, TypeError, AttributeError, RequestFailedError) as error:
            if self._model:
                return []
            raise ConfigError(
                "the server's list of models cannot be read",
                field="engine.endpoint",
                value=self._client.endpoint,
                fix="set engine.args.model",
            ) from error

    def _choose(self, models: list[tuple[str, str]]) -> None:
        """The model to ask for, and whether a vLLM serves it.

        Raises:
            ConfigError: None is named and the server offers none or several.
        """
        if not self._model:
            if len(models) != 1:
                raise ConfigError(
                    f"the server offers {len(models)} models ({', '.join(name for name, _ in models[:5])})",
                    field="engine.endpoint",
                    value=self._client.endpoint,
                    fix="set engine.args.model to one of them",
                )
            self._model = models[0][0]
        self._is_vllm = (self._model, "vllm") in models
        # It takes ids and gives what they cost; others at best a text and a number of alternatives.
        self.can_score = self._is_vllm and not self._sends_text


def _cached_tokens(answer: Any) -> int:
    """Prompt tokens that the server had in its cache, where it says so."""
    try:
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    except (KeyError, TypeError, ValueError):
        return 0


def create(settings: EngineSettings) -> OpenAIEngine:
    """The engine for a server; the model's folder gives the tokenizer.

    Raises:
        ConfigError: The endpoint is missing, or an engine argument is unknown or of the wrong type.
        EnvironmentNotReadyError: httpx or transformers is not installed.
    """
    endpoint = settings.spec.endpoint
    if endpoint is None or not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            "engine openai needs the URL of a server",
            field="engine.endpoint",
            value=endpoint,
            fix="such as http://server:8000/v1",
        )
    args = dict(settings.spec.args)
    for name, value in args.items():
        wanted = _ARGS.get(name)
        if wanted is None:
            raise ConfigError(
                "engine openai does not know this argument",
                field=f"engine.args.{name}",
                value=value,
                fix=f"known: {', '.join(_ARGS)}",
            )
        if not isinstance(value, wanted) or isinstance(value, bool) or (isinstance(value, int | float) and value <= 0):
            names = " or ".join(kind.__name__ for kind in wanted)
            raise ConfigError("is of the wrong type", field=f"engine.args.{name}", value=value, fix=f"give a {names}")
    if args.get("prompt", "ids") not in _PROMPTS:
        raise ConfigError(
            "unknown form", field="engine.args.prompt", value=args["prompt"], fix=f"use {' or '.join(_PROMPTS)}"
        )
    concurrency = settings.spec.concurrency or CONCURRENCY
    client = OpenAIClient(
        endpoint,
        field="engine.endpoint",
        model_field="engine.args.model",
        key=KEY,
        connections=concurrency,
        **{name: args.pop(name) for name in _OF_CLIENT if name in args},
    )
    return OpenAIEngine(
        client,
        load_tokenizer(settings.model),
        context_window=settings.sampling.context_window,
        concurrency=concurrency,
        **args,
    )
