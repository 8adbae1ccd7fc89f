"""An engine that dies or gets stuck is replaced, a bounded number of times, and its documents lose no attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import synthesis_support as support

from instructpt.errors import ConfigError, EnvironmentNotReadyError, SynthesisError
from instructpt.synthesis import supervisor
from instructpt.synthesis.engine import Completion, GenerationRequest, RequestFailedError, ScoreRequest
from instructpt.synthesis.supervisor import MAX_RESTARTS, SupervisedEngine

DEAD = EnvironmentNotReadyError("core is dead", retryable=True)
REQUEST = GenerationRequest(prompt_ids=(3,), max_tokens=5)


class Mortal(support.ScriptedEngine):
    """Answers, dies or hangs, as its number in the row of engines says."""

    def __init__(self, behave: Callable[[int], Any]) -> None:
        super().__init__(lambda prompt: support.GOOD)
        self.behave = behave
        self.asked = 0
        self.closed = 0

    async def generate(self, request: GenerationRequest) -> Completion:
        self.asked += 1
        number = self.asked
        await asyncio.sleep(0)
        what = self.behave(number)
        if what == "hang":
            await asyncio.get_running_loop().create_future()
        if isinstance(what, Exception):
            raise what
        return await super().generate(request)

    async def close(self) -> None:
        self.closed += 1


class Row:
    """Starts one engine after another."""

    def __init__(self, *behaviours: Callable[[int], Any]) -> None:
        self.behaviours = behaviours
        self.engines: list[Mortal] = []

    def __call__(self) -> Mortal:
        behave = self.behaviours[min(len(self.engines), len(self.behaviours) - 1)]
        self.engines.append(Mortal(behave))
        return self.engines[-1]


def lives(number: int) -> str:
    return "answers"


def dies(number: int) -> Any:
    return DEAD


def supervised(row: Row, **options: Any) -> SupervisedEngine:
    return SupervisedEngine(row, **{"stuck_seconds": 30.0, "backoff_seconds": 0.0, **options})


def test_documents_of_a_dead_engine_are_asked_for_again_and_keep_their_attempts() -> None:
    row = Row(lambda n: DEAD if n == 3 else "hang", lives)

    async def main() -> None:
        async with supervised(row) as engine:
            found = await asyncio.gather(*(engine.generate(REQUEST) for _ in range(5)))
            assert [completion.attempts for completion in found] == [1] * 5
            assert engine.restarts == 1
        assert [e.closed for e in row.engines] == [1, 1]
        assert row.engines[1].asked == 5

    asyncio.run(main())


def test_a_text_is_scored_again_by_the_next_engine() -> None:
    class Scoring(Mortal):
        can_score = True

        async def score(self, request: ScoreRequest) -> tuple[float, ...]:
            await self.generate(REQUEST)
            return (-1.0,)

    engines = [Scoring(dies), Scoring(lives)]

    async def main() -> None:
        async with SupervisedEngine(lambda: engines.pop(0), stuck_seconds=30, backoff_seconds=0) as engine:
            assert engine.can_score
            assert await engine.score(ScoreRequest(prompt_ids=(3,), continuation_ids=(4,))) == (-1.0,)
            assert engine.restarts == 1

    asyncio.run(main())


def test_an_engine_that_dies_again_and_again_is_given_up() -> None:
    row = Row(dies)

    async def main() -> list[Any]:
        async with supervised(row) as engine:
            return await asyncio.gather(*(engine.generate(REQUEST) for _ in range(3)), return_exceptions=True)

    found = asyncio.run(main())
    assert len(row.engines) == 1 + MAX_RESTARTS
    assert all(engine.closed for engine in row.engines)
    assert all(isinstance(error, EnvironmentNotReadyError) for error in found)  # no document is blamed
    assert all("core is dead; it was started again 3 times in vain" in str(error) for error in found)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_document_that_kills_every_engine_is_found_and_set_aside(place: int) -> None:
    poison = GenerationRequest(prompt_ids=(66,), max_tokens=5)
    started: list[Poisoned] = []

    class Poisoned(Mortal):
        async def generate(self, request: GenerationRequest) -> Completion:
            if request is poison:
                for _ in range(3):
                    await asyncio.sleep(0)
                raise DEAD
            if len(started) <= 2:
                await asyncio.get_running_loop().create_future()
            return await super().generate(request)

    def start() -> Poisoned:
        started.append(Poisoned(lives))
        return started[-1]

    async def main() -> list[Any]:
        async with SupervisedEngine(start, stuck_seconds=30, backoff_seconds=0) as engine:
            asked = [REQUEST] * 4
            asked.insert(place, poison)
            found = await asyncio.gather(*map(engine.generate, asked), return_exceptions=True)
            return [*found, await engine.generate(REQUEST)]

    found = asyncio.run(main())
    convicted = found.pop(place)
    assert isinstance(convicted, RequestFailedError)
    assert f"it ended the engine {convicted.attempts} times: core is dead" in str(convicted)
    assert [completion.attempts for completion in found] == [1] * 5
    assert 3 <= convicted.attempts == len(started) - 1 <= 4


def test_one_that_did_its_work_in_between_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FRUITFUL", 2)
    row = Row(*[lambda n: DEAD if n == 3 else "answers"] * 9)

    async def main() -> int:
        async with supervised(row) as engine:
            for _ in range(16):
                await engine.generate(REQUEST)
            return engine.restarts

    assert asyncio.run(main()) == 7


def test_an_engine_without_progress_while_requests_wait_counts_as_dead() -> None:
    row = Row(lambda n: "hang", lives)

    async def main() -> None:
        async with supervised(row, stuck_seconds=0.05) as engine:
            await asyncio.wait_for(asyncio.gather(*(engine.generate(REQUEST) for _ in range(3))), 20)
            assert engine.restarts == 1
            assert row.engines[0].closed == 1

    asyncio.run(main())


def test_a_slow_engine_that_gets_on_is_left_alone() -> None:
    release = asyncio.Event()
    looks = 0

    class Slow(Mortal):
        def progress(self) -> int:
            nonlocal looks
            looks += 1
            if looks > 60:
                release.set()
            return looks

        async def generate(self, request: GenerationRequest) -> Completion:
            await release.wait()
            return await super().generate(request)

    async def main() -> None:
        async with SupervisedEngine(lambda: Slow(lives), stuck_seconds=0.02) as engine:
            await asyncio.wait_for(engine.generate(REQUEST), 20)
            assert engine.restarts == 0

    asyncio.run(main())


def test_an_idle_engine_never_counts_as_stuck_and_a_dropped_one_comes_back() -> None:
    row = Row(lives)

    async def main() -> None:
        async with supervised(row, stuck_seconds=0.01) as engine:
            await asyncio.sleep(0.05)
            assert engine.restarts == 0
            await engine.drop()
            assert row.engines[0].closed == 1
            await engine.generate(REQUEST)
        assert (len(row.engines), engine.restarts) == (2, 0)

    asyncio.run(main())


@pytest.mark.parametrize("error", [SynthesisError("this one"), ConfigError("key"), EnvironmentNotReadyError("gone")])
def test_other_failures_go_through_as_they_are(error: Exception) -> None:
    row = Row(lambda n: error)

    async def main() -> None:
        async with supervised(row) as engine:
            with pytest.raises(type(error)):
                await engine.generate(REQUEST)
            assert engine.restarts == 0

    asyncio.run(main())


def test_a_restart_that_fails_is_tried_again_and_the_first_start_is_not() -> None:
    starts: list[int] = []

    def start() -> Mortal:
        starts.append(1)
        if len(starts) in (2, 3):
            raise EnvironmentNotReadyError("no memory", retryable=True)
        return Mortal(dies if len(starts) == 1 else lives)

    async def main() -> None:
        async with SupervisedEngine(start, stuck_seconds=30, backoff_seconds=0) as engine:
            await engine.generate(REQUEST)
            assert engine.restarts == 3

    asyncio.run(main())

    def never() -> Mortal:
        raise EnvironmentNotReadyError("no memory", retryable=True)

    async def once() -> None:
        with pytest.raises(EnvironmentNotReadyError, match="^no memory$"):
            async with SupervisedEngine(never, stuck_seconds=30):
                pass

    asyncio.run(once())


def test_the_patience_can_be_set_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(supervisor.STUCK_SECONDS, "12")
    assert supervisor._stuck_seconds() == 12
    monkeypatch.setenv(supervisor.STUCK_SECONDS, "soon")
    with pytest.raises(ConfigError, match=supervisor.STUCK_SECONDS):
        supervisor._stuck_seconds()
