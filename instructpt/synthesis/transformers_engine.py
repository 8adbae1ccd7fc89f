"""Engine ``transformers``: a model of any architecture in this process, fp32 on a CPU, bf16 on a GPU.

Deterministic: requests are admitted in the order of their arrival, completions are computed in this thread between
two turns of the event loop, and nothing depends on the time. So what a micro-shard's requests come to is a function of
these requests alone, as long as the engine is idle when the first of them arrives, which a worker sees to.

Llama-shaped models complete several prompts in one forward pass (``llama_decoder``); others one after another.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from instructpt.errors import ConfigError, InstructPTError, SynthesisError
from instructpt.synthesis.engine import (
    BaseEngine,
    Completion,
    EngineSettings,
    FinishReason,
    GenerationRequest,
    ScoreRequest,
    require,
)
from instructpt.synthesis.tokenization import PromptTokenizer, check_context, load_tokenizer

log = logging.getLogger(__name__)

THREADS = "INSTRUCTPT_THREADS"
MAX_LANES = 16
CACHE_BYTES = 1 << 30
_INSTALL = "pip install 'instructpt[local]'"
_ARGS = ("device",)
# More threads do not pay below this size; one thread also makes results independent of the number of workers.
_SMALL_MODEL = 50_000_000
# Turns of the event loop in which those who were answered hand in their next requests.
_TURNS = 4


class Decoder(Protocol):
    """What advances completions; lanes as in ``LlamaDecoder``."""

    def admit(self, ids: Sequence[int]) -> Any:
        """Read a prompt into the next lane; logits of shape (vocabulary,)."""

    def step(self, tokens: Sequence[int]) -> Any:
        """Take in a token for each lane in use; logits of shape (lanes in use, vocabulary)."""

    def drop(self, lane: int) -> None:
        """Free a lane; the last lane in use moves to its place."""

    def score(self, ids: Sequence[int], first: int) -> Any:
        """Log-probabilities of ``ids[first:]``, each given all ids before it; no lane is used."""


class ModelDecoder:
    """Any causal model of transformers, one lane after another with a cache each.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self._torch = require("torch", needed_by="engine transformers", command=_INSTALL)
        self._cache_type = require("transformers", needed_by="engine transformers", command=_INSTALL).DynamicCache
        self._model = model
        self._caches: list[Any] = []

    def admit(self, ids: Sequence[int]) -> Any:
        """Read a prompt into the next lane; logits of shape (vocabulary,)."""
        cache = self._cache_type(config=self._model.config)
        logits = self._forward(ids, cache)
        self._caches.append(cache)
        return logits

    def step(self, tokens: Sequence[int]) -> Any:
        """Take in a token for each lane in use; logits of shape (lanes in use, vocabulary)."""
        return self._torch.stack([self._forward([t], c) for t, c in zip(tokens, self._caches, strict=True)])

    def drop(self, lane: int) -> None:
        """Free a lane; the last lane in use moves to its place."""
        self._caches[lane] = self._caches[-1]
        self._caches.pop()

    def score(self, ids: Sequence[int], first: int) -> Any:
        """Log-probabilities of ``ids[first:]``, each given all ids before it; no lane is used."""
        from instructpt.synthesis.llama_decoder import log_probabilities

        with self._torch.inference_mode():
            tokens = self._torch.tensor([list(ids)], device=self._model.device)
            logits = self._model(input_ids=tokens, use_cache=False).logits[0, first - 1 : -1]
            return log_probabilities(logits, ids[first:])

    def _forward(self, ids: Sequence[int], cache: Any) -> Any:
        with self._torch.inference_mode():
            tokens = self._torch.tensor([list(ids)], device=self._model.device)
            return self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]


@dataclass(slots=True)
class _Job:
    """A request on its way."""

    request: GenerationRequest
    answer: asyncio.Future[Completion]
    generator: Any
    token_ids: list[int] = field(default_factory=list)


class TransformersEngine(BaseEngine):
    """Serves requests in the event loop's own thread, several lanes at once.

    Args:
        decoder: What advances completions.
        tokenizer: The model's tokenizer.
        context_window: Prompt and completion together, in tokens.
        lanes: Completions at once.
    """

    deterministic = True
    can_score = True

    def __init__(self, decoder: Decoder, tokenizer: PromptTokenizer, *, context_window: int, lanes: int) -> None:
        super().__init__(tokenizer, context_window, lanes)
        self._torch = require("torch", needed_by="engine transformers", command=_INSTALL)
        self._decoder = decoder
        self._lanes = lanes
        self._waiting: deque[_Job] = deque()
        self._active: list[_Job] = []
        self._runner: asyncio.Task[None] | None = None

    async def generate(self, request: GenerationRequest) -> Completion:
        """Complete a prompt.

        Raises:
            SynthesisError: The prompt is empty or too long, or the model gave no finite logits.
        """
        length = len(request.prompt_ids) + request.max_tokens
        if not request.prompt_ids or length > self.context_window:
            raise SynthesisError(f"prompt and completion of {length} tokens in a window of {self.context_window}")
        generator = None
        if request.temperature > 0:
            generator = self._torch.Generator().manual_seed(request.seed)
        job = _Job(request, asyncio.get_running_loop().create_future(), generator)
        self._waiting.append(job)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await job.answer

    async def score(self, request: ScoreRequest) -> tuple[float, ...]:
        """Log-probabilities of a continuation, in one forward pass of its own: a function of the request alone.

        Raises:
            SynthesisError: A part is empty or both are too long, or the model gave no finite number.
        """
        first, ids = len(request.prompt_ids), [*request.prompt_ids, *request.continuation_ids]
        if not 0 < first < len(ids) <= self.context_window:
            raise SynthesisError(
                f"a prompt of {first} tokens and a text of {len(ids) - first} in a window of {self.context_window}"
            )
        try:
            found = tuple(float(value) for value in self._decoder.score(ids, first))
        # torch raises RuntimeError and its kin for anything from memory to shapes: it concerns this text alone.
        except Exception as error:
            raise SynthesisError(f"the model failed: {error}", retryable=True) from error
        if not all(map(math.isfinite, found)):
            raise SynthesisError("the model gave no finite probability")
        return found

    async def close(self) -> None:
        """Stop and forget what is under way."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        for job in (*self._active, *self._waiting):
            job.answer.cancel()
        self._waiting.clear()
        while self._active:
            self._leave(len(self._active) - 1)

    async def _run(self) -> None:
        """Serve; whoever waits hears of it when that ends in an error."""
        try:
            await self._serve()
        except Exception as error:
            for job in (*self._active, *self._waiting):
                _fail(job, error)
            raise

    async def _serve(self) -> None:
        """Until nothing is asked for: let callers act, admit, advance all lanes by one token."""
        turns = _TURNS
        while True:
            for _ in range(turns):
                await asyncio.sleep(0)
            for lane in reversed(range(len(self._active))):
                if self._active[lane].answer.done():  # cancelled by its caller
                    self._leave(lane)
            if not self._active and not self._waiting:
                return
            ended = self._admit()
            if self._active:
                ended += self._advance()
            turns = _TURNS if ended else 1

    def _admit(self) -> int:
        """Fill free lanes with waiting requests; how many of them ended at once."""
        ended = 0
        while self._waiting and len(self._active) < self._lanes:
            job = self._waiting.popleft()
            if job.answer.done():
                continue
            try:
                logits = self._decoder.admit(job.request.prompt_ids)
            # torch raises RuntimeError and its kin for anything from memory to shapes: it concerns this prompt alone.
            except Exception as error:
                _fail(job, error)
                ended += 1
                continue
            self._active.append(job)
            ended += self._take(logits[None], [len(self._active) - 1])
        return ended

    def _advance(self) -> int:
        """One token for each lane; how many requests ended."""
        try:
            logits = self._decoder.step([job.token_ids[-1] for job in self._active])
        except Exception as error:
            failed = len(self._active)
            for lane in reversed(range(failed)):
                _fail(self._active[lane], error)
                self._leave(lane)
            return failed
        return self._take(logits, range(len(self._active)))

    def _take(self, logits: Any, lanes: Sequence[int]) -> int:
        """Choose a token for each of ``lanes`` from its row of logits, and answer those that are done."""
        best, chosen = (part.tolist() for part in logits.float().max(dim=-1))
        ended: list[int] = []
        for row, lane in enumerate(lanes):
            job = self._active[lane]
            if not -float("inf") < best[row] < float("inf"):
                _fail(job, SynthesisError("the model gave no finite logits"))
                ended.append(lane)
                continue
            token = chosen[row] if job.generator is None else self._draw(logits[row], job)
            job.token_ids.append(token)
            if self._answer(job, token):
                ended.append(lane)
        for lane in sorted(ended, reverse=True):
            self._leave(lane)
        return len(ended)

    def _draw(self, logits: Any, job: _Job) -> int:
        """Nucleus sampling (arXiv 1904.09751): the fewest likeliest tokens that have ``top_p`` together."""
        shares = (logits.float().cpu() / job.request.temperature).softmax(dim=-1)
        shares, order = shares.sort(descending=True, stable=True)
        shares[shares.cumsum(dim=-1) - shares >= job.request.top_p] = 0.0
        return int(order[self._torch.multinomial(shares, 1, generator=job.generator)])

    def _answer(self, job: _Job, token: int) -> bool:
        """Answer the request if it is done."""
        stopped = token in job.request.stop_ids
        if not stopped and len(job.token_ids) < job.request.max_tokens:
            return False
        reason: FinishReason = "stop" if stopped else "length"
        text = self.tokenizer.decode(job.token_ids[:-1] if stopped else job.token_ids)
        if not job.answer.done():
            job.answer.set_result(Completion(token_ids=tuple(job.token_ids), text=text, finish_reason=reason))
        return True

    def _leave(self, lane: int) -> None:
        self._decoder.drop(lane)
        self._active[lane] = self._active[-1]
        self._active.pop()


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        known = isinstance(error, InstructPTError)
        job.answer.set_exception(error if known else SynthesisError(f"the model failed: {error}", retryable=True))


def load() -> None:
    """Import the libraries.

    Raises:
        EnvironmentNotReadyError: torch or transformers is not installed.
    """
    for library in ("torch", "transformers"):
        require(library, needed_by="engine transformers", command=_INSTALL)


def create(settings: EngineSettings) -> TransformersEngine:
    """The engine for a model's folder.

    Raises:
        ConfigError: The folder holds no causal model, its context is too short, or an engine argument is unknown.
        EnvironmentNotReadyError: torch or transformers is not installed.
    """
    device = _device(settings)
    torch = require("torch", needed_by="engine transformers", command=_INSTALL)
    transformers = require("transformers", needed_by="engine transformers", command=_INSTALL)
    check_context(settings.model, settings.sampling.context_window)
    tokenizer = load_tokenizer(settings.model)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(settings.model), dtype=dtype, local_files_only=True
        )
    # Broken weights, unknown architectures and missing files each give an exception of their own.
    except Exception as error:
        raise ConfigError(
            f"model folder {settings.model} cannot be loaded ({type(error).__name__}: {error})",
            field="synthesizer.model",
            value=str(settings.model),
            fix="give a complete folder of a causal language model",
        ) from error
    model = model.to(device).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    if device == "cpu":
        torch.set_num_threads(_threads(size, settings.parallelism))
    window = settings.sampling.context_window
    lanes = settings.spec.concurrency or _lanes(model.config, window, dtype.itemsize)
    return TransformersEngine(_decoder(model, lanes, window), tokenizer, context_window=window, lanes=lanes)


def _decoder(model: Any, lanes: int, window: int) -> Decoder:
    """The fast decoder where it gives the model's own results, else the model itself."""
    from instructpt.synthesis import llama_decoder

    if llama_decoder.supports(model):
        fast = llama_decoder.LlamaDecoder(model, lanes=lanes, length=window)
        if llama_decoder.agrees(fast, model):
            return fast
        log.warning("the fast decoder disagrees with the model; using the model's own forward")
    return ModelDecoder(model)


def _device(settings: EngineSettings) -> str:
    torch = require("torch", needed_by="engine transformers", command=_INSTALL)
    args = dict(settings.spec.args)
    unknown = next((name for name in args if name not in _ARGS), None)
    if unknown is not None:
        raise ConfigError(
            "engine transformers does not know this argument",
            field=f"engine.args.{unknown}",
            value=args[unknown],
            fix=f"known: {', '.join(_ARGS)}",
        )
    device = args.get("device", "auto")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError("unknown device", field="engine.args.device", value=device, fix="use auto, cpu or cuda")
    found = bool(torch.cuda.is_available())
    if device == "cuda" and not found:
        raise ConfigError("no GPU is usable here", field="engine.args.device", value=device, fix="use auto or cpu")
    return "cuda" if found and device != "cpu" else "cpu"


def _threads(size: int, parallelism: int) -> int:
    """Threads of a worker: as the environment says, else this machine's cores shared among the workers."""
    given = os.environ.get(THREADS, "")
    if given:
        if not given.isdigit() or int(given) < 1:
            raise ConfigError("must be a number of threads", field=THREADS, value=given, fix=f"set {THREADS}=1")
        return int(given)
    return 1 if size < _SMALL_MODEL else max(1, len(os.sched_getaffinity(0)) // parallelism)


def _lanes(config: Any, window: int, itemsize: int) -> int:
    """As many completions at once as the cache has room for at their longest."""
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    lane_bytes = 2 * int(config.num_hidden_layers) * kv_heads * size * window * itemsize
    return max(1, min(MAX_LANES, CACHE_BYTES // lane_bytes))
