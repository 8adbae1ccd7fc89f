"""Engine ``openai``: any server with the completions API of OpenAI, such as a vLLM fleet that is already there.

Prompts go as token ids to ``<endpoint>/completions``. A server that says it is a vLLM is asked for token ids in
return, so that a chain's next prompt repeats them as they are. Transient failures are retried with back-off and
jitter, for a bounded number of times, at the pace that ``Retry-After`` asks for. A request that fails while others are
answered fails alone; when none is answered, the server is gone. The API key never stands in a log or message.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.synthesis.engine import (
    BaseEngine,
    Completion,
    EngineSettings,
    FinishReason,
    GenerationRequest,
    RequestFailedError,
    require,
)
from instructpt.synthesis.tokenization import PromptTokenizer, load_tokenizer

KEY = "INSTRUCTPT_OPENAI_API_KEY"
KEY_FILE = "INSTRUCTPT_OPENAI_API_KEY_FILE"
MOUNTED_KEY = Path("/var/run/instructpt/secrets/openai/api-key")
CONCURRENCY = 64
MAX_WAIT_SECONDS = 60.0

_ARGS: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "timeout_seconds": (int, float),
    "max_attempts": (int,),
    "backoff_seconds": (int, float),
    "body": (dict,),
    "prompt": (str,),
}
_PROMPTS = ("ids", "text")
# The server says: later. Anything else in the 500s may be this one request's fault.
_UNAVAILABLE = (429, 502, 503, 504)


class _AgainError(Exception):
    """A transient failure.

    Args:
        message: What happened.
        available: Whether the server is there at all, so that the fault may lie with the request.
        retry_after: Seconds that the server asked to wait.
    """

    def __init__(self, message: str, *, available: bool, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.available = available
        self.retry_after = retry_after


class OpenAIEngine(BaseEngine):
    """A client of one server.

    Args:
        endpoint: Base URL, ending in ``/v1``.
        tokenizer: The served model's tokenizer.
        context_window: Prompt and completion together, in tokens.
        concurrency: Requests in flight.
        model: Name of the served model; empty takes the only one the server lists.
        timeout_seconds: For one attempt.
        max_attempts: Attempts for one request.
        backoff_seconds: First wait between attempts; doubles.
        body: More fields for each request.
        prompt: ``ids``, or ``text`` for servers that take no token ids; these add a BOS of their own.
    """

    def __init__(
        self,
        endpoint: str,
        tokenizer: PromptTokenizer,
        *,
        context_window: int,
        concurrency: int,
        model: str = "",
        timeout_seconds: float = 600.0,
        max_attempts: int = 8,
        backoff_seconds: float = 0.5,
        body: Mapping[str, Any] | None = None,
        prompt: str = "ids",
    ) -> None:
        super().__init__(tokenizer, context_window, concurrency)
        self._httpx = require("httpx", needed_by="engine openai")
        self._endpoint = endpoint.rstrip("/")
        self._model = model
        self._timeout = timeout_seconds
        self._max_attempts = max_attempts
        self._backoff = wait_random_exponential(multiplier=backoff_seconds, max=MAX_WAIT_SECONDS)
        self._body = dict(body or {})
        self._sends_text = prompt == "text"
        self._client: Any = None
        self._is_vllm = False
        self._answers = 0

    def progress(self) -> int:
        """Answers so far, refusals included: a server that says no is there."""
        return self._answers

    async def __aenter__(self) -> Self:
        limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=self.default_concurrency)
        self._client = self._httpx.AsyncClient(timeout=self._timeout, limits=limits)
        try:
            self._choose(await self._models())
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Complete a prompt.

        Raises:
            RequestFailedError: The server refuses this request, or failed on it each time.
            EnvironmentNotReadyError: The server cannot be reached, or is overloaded for too long.
            ConfigError: The key, the model or the endpoint is wrong.
        """
        answer, attempts = await self._call("POST", "/completions", self._request(request))
        try:
            choice = answer["choices"][0]
            text, finished, given = str(choice["text"]), choice.get("finish_reason"), choice.get("token_ids")
            ids = tuple(int(token) for token in given) if given else ()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise RequestFailedError(f"{self._endpoint} gave no completion: {error!r}", attempts=attempts) from error
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
            answer, _ = await self._call("GET", "/models", None)
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
                value=self._endpoint,
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
                    value=self._endpoint,
                    fix="set engine.args.model to one of them",
                )
            self._model = models[0][0]
        self._is_vllm = (self._model, "vllm") in models

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[Any, int]:
        """The server's answer, and how many attempts it took."""
        attempts, before, latest = 0, self._answers, self._answers
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._max_attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_AgainError),
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    attempts += 1
                    try:
                        answer = await self._once(method, path, body, attempts)
                    except _AgainError:
                        before, latest = latest, self._answers
                        raise
        except _AgainError as error:
            message = f"{self._endpoint}{path}: {error}, after {attempts} attempts"
            # Others were answered since it failed the last time but one: the server is there.
            if error.available or self._answers > before:
                raise RequestFailedError(message, attempts=attempts) from error
            raise EnvironmentNotReadyError(message, fix="start the server, then run again", retryable=True) from error
        return answer, attempts

    def _wait(self, state: RetryCallState) -> float:
        """Back-off with jitter, but at least what the server asked for."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, _AgainError) else 0.0
        return asked + self._backoff(state)

    async def _once(self, method: str, path: str, body: Mapping[str, Any] | None, attempts: int) -> Any:
        key = _api_key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = await self._client.request(method, self._endpoint + path, json=body, headers=headers)
        except self._httpx.TransportError as error:
            raise _AgainError(f"{type(error).__name__} {error}".strip(), available=False) from error
        except self._httpx.InvalidURL as error:
            raise ConfigError(
                str(error), field="engine.endpoint", value=self._endpoint, fix="give a URL that ends in /v1"
            ) from error
        status = int(answer.status_code)
        if status < 500 and status != 429:
            self._answers += 1
        if status >= 500 or status == 429:
            raise _AgainError(
                f"status {status}", available=status not in _UNAVAILABLE, retry_after=_retry_after(answer.headers)
            )
        if status in (401, 403):
            raise ConfigError(
                f"the server refuses the API key (status {status})",
                field="engine.endpoint",
                value=self._endpoint,
                fix=f"set {KEY}, or {KEY_FILE} to a file that holds the key",
            )
        if status == 404:
            raise ConfigError(
                f"the server does not know {path} or the model {self._model!r} (status 404)",
                field="engine.endpoint",
                value=self._endpoint,
                fix="give the base URL that ends in /v1, and the name that the server serves in engine.args.model",
            )
        if status >= 300:
            raise RequestFailedError(f"{self._endpoint}{path}: status {status}: {answer.text[:200]}", attempts=attempts)
        try:
            return answer.json()
        except ValueError as error:
            raise _AgainError("an answer that is no JSON", available=True) from error


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header, which may also be a date; bounded."""
    given = headers.get("retry-after", "0")
    try:
        seconds = float(given)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(given)
            seconds = (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS)


def _cached_tokens(answer: Any) -> int:
    """Prompt tokens that the server had in its cache, where it says so."""
    try:
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    except (KeyError, TypeError, ValueError):
        return 0


def _api_key() -> str:
    """The key as it stands now, so that rotation works: a file first, then the environment."""
    named = os.environ.get(KEY_FILE)
    path = Path(named) if named else MOUNTED_KEY
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        if named:
            raise ConfigError("there is no such file", field=KEY_FILE, value=named, fix="correct the path") from None
        return os.environ.get(KEY, "").strip()


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
    return OpenAIEngine(
        endpoint,
        load_tokenizer(settings.model),
        context_window=settings.sampling.context_window,
        concurrency=settings.spec.concurrency or CONCURRENCY,
        **args,
    )
