"""Engine ``openai`` against a real HTTP server in this process, which fails on request: real ones do not."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import synthesis_support as support
from completion_server import Answer, Server, completion, in_thread
from pydantic import ValidationError

from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.errors import ConfigError, EnvironmentNotReadyError, SynthesisError
from instructpt.synthesis import openai_client
from instructpt.synthesis.engine import Completion, GenerationRequest, RequestFailedError, ScoreRequest, open_engine
from instructpt.synthesis.openai_engine import KEY, OpenAIEngine

SAMPLING = Sampling(context_window=256, max_tokens=60)


@asynccontextmanager
async def serving(
    script: Callable[[int, dict[str, Any]], Answer | None], folder: Path, *, owner: str = "", **args: Any
) -> AsyncIterator[tuple[Server, OpenAIEngine]]:
    server = Server(script)
    server.owner = owner
    await server.start()
    fast = {"backoff_seconds": 0.001, "max_attempts": 4, "timeout_seconds": 20}
    spec = Engine(name="openai", endpoint=server.endpoint, args={**fast, **args})
    engine = open_engine("openai", folder, spec, SAMPLING)
    assert isinstance(engine, OpenAIEngine)
    try:
        async with engine:
            yield server, engine
    finally:
        await server.stop()


def request(engine: OpenAIEngine, number: int = 0) -> GenerationRequest:
    ids = tuple(engine.tokenizer.encode(f"<s> <CON> {number} </CON>\n\n"))
    return GenerationRequest(prompt_ids=ids, max_tokens=60, stop_ids=(engine.tokenizer.id_of("</s>"),), seed=5)


def play(
    script: Callable[[int, dict[str, Any]], Answer | None],
    folder: Path,
    scene: Callable[[Server, OpenAIEngine], Awaitable[Any]],
    **args: Any,
) -> Any:
    async def main() -> Any:
        async with serving(script, folder, **args) as (server, engine):
            return await scene(server, engine)

    return asyncio.run(main())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    found = tmp_path_factory.mktemp("tokenizer")
    support.make_tokenizer(found)
    return found


async def once(server: Server, engine: OpenAIEngine) -> tuple[Completion, Server]:
    return await engine.generate(request(engine)), server


def test_prompts_go_as_token_ids_and_text_comes_back(folder: Path) -> None:
    found, server = play(lambda n, body: completion(), folder, once)
    assert (found.text, found.finish_reason, found.attempts) == (support.GOOD, "stop", 1)
    (body,) = server.asked
    assert body["prompt"][0] == 0
    assert {k: body[k] for k in ("model", "max_tokens", "temperature", "seed", "stop")} == {
        "model": "served",
        "max_tokens": 60,
        "temperature": 0.0,
        "seed": 5,
        "stop": ["</s>"],
    }
    found, _ = play(lambda n, body: completion("x", "length"), folder, once)
    assert found.finish_reason == "length"


def test_a_vllm_says_which_tokens_it_gave(folder: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        answer = completion("what its own tokenizer makes of it", token_ids=[ord("h"), ord("i"), 1])
        answer[1]["usage"] = {"prompt_tokens_details": {"cached_tokens": 7}}  # type: ignore[index]
        return answer

    found, server = play(script, folder, once, owner="vllm")
    assert (found.token_ids, found.finish_reason, found.cached_tokens) == ((ord("h"), ord("i"), 1), "stop", 7)
    (body,) = server.asked
    wanted = {"stop_token_ids": [1], "ignore_eos": True, "skip_special_tokens": False, "return_token_ids": True}
    assert {name: body[name] for name in wanted} == wanted
    assert "stop" not in body


def priced(number: int, body: dict[str, Any]) -> Answer:
    """What a vLLM says of a prompt's tokens: nothing of the first, of others also the likeliest one."""
    costs = [None, *({str(token): {"logprob": -token / 100}, "0": {"logprob": 0.0}} for token in body["prompt"][1:])]
    return completion(prompt_logprobs=costs)


def test_a_vllm_says_how_likely_a_text_is(folder: Path) -> None:
    asked = ScoreRequest(prompt_ids=(5, 6), continuation_ids=(7, 8))

    async def scene(server: Server, engine: OpenAIEngine) -> tuple[bool, tuple[float, ...], Server]:
        return engine.can_score, await engine.score(asked), server

    can, found, server = play(priced, folder, scene, owner="vllm")
    assert (can, found) == (True, (-0.07, -0.08))
    assert {k: server.asked[0][k] for k in ("prompt", "prompt_logprobs", "max_tokens", "temperature")} == {
        "prompt": [5, 6, 7, 8],
        "prompt_logprobs": 0,
        "max_tokens": 1,
        "temperature": 0.0,
    }
    with pytest.raises(RequestFailedError, match="gave no log-probabilities"):
        play(lambda n, body: completion(), folder, scene, owner="vllm")


@pytest.mark.parametrize("server", [{}, {"owner": "vllm", "prompt": "text"}])
def test_other_servers_cannot(folder: Path, server: dict[str, str]) -> None:
    async def scene(_: Server, engine: OpenAIEngine) -> bool:
        return engine.can_score

    assert play(priced, folder, scene, **server) is False


def test_a_server_that_takes_no_ids_gets_text(folder: Path) -> None:
    _, server = play(lambda n, body: completion(), folder, once, prompt="text")
    assert server.asked[0]["prompt"] == "<s> <CON> 0 </CON>\n\n"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_transient_failures_are_retried_and_counted(folder: Path, status: int) -> None:
    found, _ = play(lambda n, body: completion() if n == 3 else (status, "later", {}), folder, once)
    assert found.attempts == 3


def test_a_dropped_connection_is_retried(folder: Path) -> None:
    found, _ = play(lambda n, body: completion() if n == 2 else None, folder, once)
    assert found.attempts == 2


def test_the_server_is_waited_for_as_long_as_it_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr(openai_client.asyncio, "sleep", sleep)
    found, _ = play(lambda n, body: completion() if n == 2 else (429, "", {"retry-after": "7"}), folder, once)
    assert found.attempts == 2
    assert [seconds for seconds in slept if seconds][0] >= 7
    assert openai_client._retry_after({"retry-after": "86400"}) == openai_client.MAX_WAIT_SECONDS
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 25 < openai_client._retry_after({"retry-after": email.utils.format_datetime(soon, usegmt=True)}) <= 30
    assert openai_client._retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert openai_client._retry_after({"retry-after": "soon"}) == 0


def test_a_request_that_always_fails_fails_alone(folder: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        return (500, "broken", {}) if body["prompt"] == poison else completion()

    poison: list[int] = []

    async def scene(server: Server, engine: OpenAIEngine) -> list[Any]:
        poison.extend(request(engine, 2).prompt_ids)
        return await asyncio.gather(*(engine.generate(request(engine, n)) for n in range(5)), return_exceptions=True)

    found = play(script, folder, scene)
    assert [isinstance(x, Completion) for x in found] == [True, True, False, True, True]
    assert isinstance(found[2], RequestFailedError)
    assert found[2].attempts == 4


@pytest.mark.parametrize("answer", [(400, "too long", {}), (200, {"choices": []}, {}), (200, {"choices": "x"}, {})])
def test_a_refused_request_is_not_repeated(folder: Path, answer: Answer) -> None:
    async def scene(server: Server, engine: OpenAIEngine) -> int:
        with pytest.raises(SynthesisError) as caught:
            await engine.generate(request(engine))
        assert not caught.value.retryable
        return len(server.asked)

    assert play(lambda n, body: answer, folder, scene) == 1


def test_an_answer_that_is_no_json_is_retried(folder: Path) -> None:
    found, _ = play(lambda n, body: completion() if n == 2 else (200, "<html>", {}), folder, once)
    assert found.attempts == 2


def test_a_server_that_dies_and_returns_loses_nothing(folder: Path) -> None:
    async def scene(server: Server, engine: OpenAIEngine) -> list[Completion]:
        first = await engine.generate(request(engine))
        await server.stop()
        waiting = [asyncio.ensure_future(engine.generate(request(engine, n))) for n in range(4)]
        await asyncio.wait(waiting, timeout=0.05)
        assert not any(task.done() for task in waiting)
        await server.start()
        return [first, *await asyncio.gather(*waiting)]

    found = play(lambda n, body: completion(), folder, scene, max_attempts=40, backoff_seconds=0.02)
    assert [c.text for c in found] == [support.GOOD] * 5
    assert sum(c.attempts for c in found) > 5


def test_a_server_that_stays_away_is_the_environments_fault(folder: Path) -> None:
    async def scene(server: Server, engine: OpenAIEngine) -> None:
        await server.stop()
        with pytest.raises(EnvironmentNotReadyError, match="after 4 attempts; start the server"):
            await engine.generate(request(engine))
        await server.start()

    play(lambda n, body: completion(), folder, scene)


def test_a_request_that_alone_gets_no_answer_fails_alone(folder: Path) -> None:
    """Its connection is dropped each time, while others are answered: the server is there."""

    async def scene(server: Server, engine: OpenAIEngine) -> None:
        poison.extend(request(engine, 2).prompt_ids)
        failing = asyncio.ensure_future(engine.generate(request(engine, 2)))
        while not failing.done():
            await engine.generate(request(engine, 1))
        with pytest.raises(RequestFailedError, match="after 4 attempts"):
            await failing

    poison: list[int] = []
    play(lambda n, body: None if body["prompt"] == poison else completion(), folder, scene, backoff_seconds=0.05)


def test_an_overloaded_server_is_the_environments_fault(folder: Path) -> None:
    async def scene(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(EnvironmentNotReadyError, match="status 503"):
            await engine.generate(request(engine))

    play(lambda n, body: (503, "", {}), folder, scene)


@pytest.mark.parametrize(("status", "match"), [(401, "INSTRUCTPT_OPENAI_API_KEY"), (404, "engine.args.model")])
def test_wrong_settings_are_named(folder: Path, status: int, match: str) -> None:
    async def scene(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(ConfigError, match=match):
            await engine.generate(request(engine))

    play(lambda n, body: (status, "", {}), folder, scene)


def test_the_key_is_sent_and_never_shown(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY.variable, "from-environment")
    _, server = play(lambda n, body: completion(), folder, once)
    assert server.headers[-1]["authorization"] == "Bearer from-environment"
    path = tmp_path / "key"
    path.write_text("from-file\n")
    monkeypatch.setenv(KEY.file_variable, str(path))

    async def scene(server: Server, engine: OpenAIEngine) -> None:
        with pytest.raises(ConfigError) as caught:
            await engine.generate(request(engine))
        assert "from-file" not in str(caught.value)
        assert server.headers[-1]["authorization"] == "Bearer from-file"

    play(lambda n, body: (403, "", {}), folder, scene)
    assert "from-environment" not in caplog.text
    assert "from-file" not in caplog.text
    path.unlink()
    with pytest.raises(ConfigError, match=KEY.file_variable):
        KEY.read()


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"temprature": 1}, "engine.args.temprature"),
        ({"max_attempts": "4"}, "engine.args.max_attempts"),
        ({"max_attempts": 0}, "engine.args.max_attempts"),
        ({"timeout_seconds": True}, "engine.args.timeout_seconds"),
        ({"prompt": "words"}, "engine.args.prompt"),
    ],
)
def test_arguments_are_checked(folder: Path, args: dict[str, Any], field: str) -> None:
    spec = Engine(name="openai", endpoint="http://127.0.0.1:9/v1", args=args)
    with pytest.raises(ConfigError, match=field):
        open_engine("openai", folder, spec, SAMPLING)


def test_an_endpoint_without_a_scheme_is_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match="must be a URL that begins with http:// or https://"):
        Engine(name="openai", endpoint="server:8000")
    unchecked = Engine(name="openai", endpoint="http://server:8000").model_copy(update={"endpoint": "server:8000"})
    with pytest.raises(ConfigError, match=r"engine\.endpoint='server:8000'"):
        open_engine("openai", folder, unchecked, SAMPLING)


def test_a_whole_stage_over_a_server_that_stumbles(tmp_path: Path, synthesizer: Path) -> None:
    """Every fifth request fails once; the same verdicts as with the model in this process."""
    from instructpt.synthesis import worker

    texts = support.sentences(12)
    corpus = support.make_corpus(tmp_path, texts, per_shard=4)
    statuses: Counter[int] = Counter()

    def script(number: int, body: dict[str, Any]) -> Answer:
        status = {0: 500, 5: 429}.get(number % 10, 200)
        statuses[status] += 1
        return completion() if status == 200 else (status, "", {})

    server = Server(script)
    server.holds_first = True  # the first is answered only when a second is under way: one at a time would hang
    with in_thread(server):
        engine = {"name": "openai", "endpoint": server.endpoint, "concurrency": 4, "args": {"backoff_seconds": 0.001}}
        settings = {"sampling": {"contextWindow": 512, "maxTokens": 60}, "engine": engine, "shots": 2}
        spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=settings)
        result = support.run_stage(spec, tmp_path / "s")
    assert result.counts["augmented"] == 12
    assert result.counts["retries"] == statuses[500] + statuses[429] > 0
    assert worker.finalize(spec.finalizer(), support.context(tmp_path / "s")) == result
