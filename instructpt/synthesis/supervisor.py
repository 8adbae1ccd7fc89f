"""Supervision of an engine: started when needed, watched, and started again when it dies or gets stuck.

A document whose engine died is asked for again and keeps its attempts: the fault was hardly its own. Should it have
been, the documents that were there at two deaths are asked for one at a time, and the one with which the engine dies
once more is set aside. How often an engine is started again is bounded; after that the worker leaves, and its
supervisor (the cluster, or the local run) decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from instructpt.errors import ConfigError, EnvironmentNotReadyError
from instructpt.synthesis.engine import Completion, Engine, GenerationRequest, RequestFailedError, ScoreRequest
from instructpt.synthesis.tokenization import PromptTokenizer

log = logging.getLogger(__name__)

_T = TypeVar("_T")

STUCK_SECONDS = "INSTRUCTPT_ENGINE_STUCK_SECONDS"
"""After so many seconds without any progress while requests wait, an engine counts as stuck."""
DEFAULT_STUCK_SECONDS = 900.0
MAX_RESTARTS = 3
"""Starts in a row of which none came to ``FRUITFUL`` completions."""
FRUITFUL = 100
_SUSPICIOUS = 2
"""Deaths of engines after which a request that was there each time is sent with no other such request beside it."""
_CLOSE_SECONDS = 60.0
_LOOKS = 20


@dataclass(slots=True)
class _Life:
    """An engine from its start to its end."""

    engine: Engine
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    answered: int = 0
    progress: int = 0
    moved: float = 0.0
    cause: EnvironmentNotReadyError | None = None


class SupervisedEngine:
    """An engine that is replaced when it fails as a whole.

    Args:
        start: Makes an engine; it is opened here.
        stuck_seconds: See ``STUCK_SECONDS``.
        backoff_seconds: Before the second start in vain; more before the third.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        start: Callable[[], Engine],
        *,
        stuck_seconds: float | None = None,
        backoff_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._stuck_seconds = _stuck_seconds() if stuck_seconds is None else stuck_seconds
        self._backoff_seconds = backoff_seconds
        self._clock = clock
        self._life: _Life | None = None
        self._lock = asyncio.Lock()
        self._suspects = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._fruitless = 0
        self._has_answered = False
        self._given_up: EnvironmentNotReadyError | None = None
        self.restarts = 0
        self.default_concurrency = 1
        self.context_window = 0
        self.deterministic = False
        self.can_score = False
        self.cache_tokens: int | None = None
        self._tokenizer: PromptTokenizer | None = None

    @property
    def tokenizer(self) -> PromptTokenizer:
        """The model's own tokenizer; the engine must have been opened once."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def in_flight(self) -> int:
        """Requests that wait for the engine."""
        return len(self._life.tasks) if self._life is not None else 0

    async def __aenter__(self) -> Self:
        await self._ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Complete a prompt, by as many engines as it takes.

        Raises:
            SynthesisError: The engine lives and this request failed.
            RequestFailedError: It was this request that killed the engine.
            EnvironmentNotReadyError: The engine cannot be kept alive.
        """
        return await self._carry(lambda engine: engine.generate(request))

    async def score(self, request: ScoreRequest) -> tuple[float, ...]:
        """Log-probabilities of a continuation, by as many engines as it takes; raises as :meth:`generate` does."""
        return await self._carry(lambda engine: engine.score(request))

    async def _carry(self, ask: Callable[[Engine], Coroutine[Any, Any, _T]]) -> _T:
        deaths = 0
        while True:
            async with self._suspects if deaths >= _SUSPICIOUS else contextlib.nullcontext():
                found = await self._attempt(ask)
            if not isinstance(found, EnvironmentNotReadyError):
                return found
            deaths += 1
            if deaths > _SUSPICIOUS and self._has_answered:
                self._fruitless = -1  # the cause is found: the next start counts from anew
                raise RequestFailedError(f"it ended the engine {deaths} times: {found}", attempts=deaths)

    async def _attempt(self, ask: Callable[[Engine], Coroutine[Any, Any, _T]]) -> _T | EnvironmentNotReadyError:
        """An answer, or what ended the engine meanwhile."""
        life = await self._ready()
        if not life.tasks:
            life.moved = self._clock()
        task: asyncio.Task[_T] = asyncio.ensure_future(ask(life.engine))
        life.tasks.add(task)
        try:
            answer = await task
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if life.cause is None or (ours is not None and ours.cancelling()):
                raise
            return life.cause
        except EnvironmentNotReadyError as error:
            if not error.retryable:
                raise
            self._bury(life, error)
            return error
        finally:
            life.tasks.discard(task)
        life.answered += 1
        life.moved = self._clock()
        self._has_answered = True
        return answer

    def progress(self) -> int:
        """That of the engine that is alive."""
        return self._life.engine.progress() if self._life is not None else 0

    async def check_health(self) -> None:
        """Nothing to ask for: a dead engine is replaced."""

    async def drop(self) -> None:
        """Close the engine while it is not needed; the next request starts it again."""
        async with self._lock:
            await self._end()

    async def close(self) -> None:
        """Close the engine for good."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await self.drop()

    # ------------------------------------------------------------------ lives

    async def _ready(self) -> _Life:
        """The engine that is alive, started if there is none.

        Raises:
            EnvironmentNotReadyError: It cannot start, or died too often.
        """
        if self._life is not None and self._life.cause is None:
            return self._life
        async with self._lock:
            if self._given_up is not None:
                raise self._given_up
            if self._life is not None and self._life.cause is not None:
                cause, answered = self._life.cause, self._life.answered
                await self._end()
                self._life = await self._open_again(cause, answered)
            elif self._life is None:
                self._life = await self._open()
            return self._life

    async def _open_again(self, cause: EnvironmentNotReadyError, answered: int) -> _Life:
        while True:
            self._count_death(cause, answered)
            await asyncio.sleep(self._backoff_seconds * (2 ** (self._fruitless - 1) - 1) if self._fruitless else 0)
            try:
                return await self._open()
            except EnvironmentNotReadyError as error:
                if not error.retryable:
                    raise
                cause, answered = error, 0

    async def _open(self) -> _Life:
        engine = self._start()
        await engine.__aenter__()
        self._tokenizer = engine.tokenizer
        self.context_window, self.default_concurrency = engine.context_window, engine.default_concurrency
        self.deterministic, self.cache_tokens = engine.deterministic, engine.cache_tokens
        # An engine of another distribution may be older than this.
        self.can_score = bool(getattr(engine, "can_score", False))
        life = _Life(engine, progress=engine.progress(), moved=self._clock())
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return life

    async def _end(self) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await life.engine.close()
        # A dead engine may fail in any way when it is closed, and is dead all the same.
        except Exception as error:
            if life.cause is None:
                raise
            log.warning("the dead engine did not close: %s", error)

    def _count_death(self, cause: EnvironmentNotReadyError, answered: int) -> None:
        self._fruitless = 0 if answered >= FRUITFUL else self._fruitless + 1
        if self._fruitless > MAX_RESTARTS:
            self._given_up = EnvironmentNotReadyError(
                f"{cause.message}; it was started again {MAX_RESTARTS} times in vain",
                fix=cause.fix or "read the worker's log for what the engine said",
            )
            raise self._given_up from cause
        self.restarts += 1
        log.warning("the engine is started again: %s", cause)

    def _bury(self, life: _Life, cause: EnvironmentNotReadyError) -> None:
        """This engine is gone; whoever waits for it asks the next one."""
        if life.cause is None:
            life.cause = cause
            for task in life.tasks:
                task.cancel()

    # --------------------------------------------------------------- watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._stuck_seconds / _LOOKS)
            life = self._life
            if life is not None and life.cause is None:
                await self._look(life)

    async def _look(self, life: _Life) -> None:
        try:
            await life.engine.check_health()
        except EnvironmentNotReadyError as error:
            self._bury(life, error)
            return
        progress = life.engine.progress()
        if progress != life.progress or not life.tasks:
            life.progress, life.moved = progress, self._clock()
        elif self._clock() - life.moved >= self._stuck_seconds:
            self._bury(
                life,
                EnvironmentNotReadyError(
                    f"the engine is stuck: {len(life.tasks)} requests and no progress for {self._stuck_seconds:.0f} s",
                    retryable=True,
                ),
            )


def _stuck_seconds() -> float:
    given = os.environ.get(STUCK_SECONDS, "")
    try:
        seconds = float(given) if given else DEFAULT_STUCK_SECONDS
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(
            "must be a number of seconds", field=STUCK_SECONDS, value=given, fix=f"set {STUCK_SECONDS}=900"
        )
    return seconds
