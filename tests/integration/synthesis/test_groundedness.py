"""Groundedness by a model: by the synthesizer's own likelihood on real ones, and by a judge behind real HTTP."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import reader_model
import synthesis_support as support
from completion_server import Answer, Server, in_thread

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.api.v1alpha1.filters import Judge
from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.corpus.manifest import load_manifest
from instructpt.corpus.shards import iter_augmented
from instructpt.errors import ConfigError, EnvironmentNotReadyError, SynthesisError
from instructpt.storage import open_store
from instructpt.synthesis import Pair, profiles, worker
from instructpt.synthesis.engine import Completion, GenerationRequest, RequestFailedError, ScoreRequest, open_engine
from instructpt.synthesis.finalize import requeue
from instructpt.synthesis.judge import KEY, ServerJudge
from instructpt.synthesis.likelihood import NOT_GROUNDED, LikelihoodJudge

SAMPLING = Sampling(context_window=256, max_tokens=60)
PROFILE = profiles.load()


def reasons(folder: Path, asked: list[tuple[str, str]], min_gain: float) -> tuple[list[str | None], Counter[str]]:
    """Of pairs (word of the document, word of the answer)."""
    counts: Counter[str] = Counter()

    async def main() -> list[str | None]:
        async with open_engine("transformers", folder, Engine(name="transformers"), SAMPLING) as engine:
            judge = LikelihoodJudge(engine, PROFILE, min_gain)
            pairs = [(reader_model.document(d), Pair(reader_model.QUESTION, a)) for d, a in asked]
            return list(await asyncio.gather(*(judge.reason(pair, text, counts) for text, pair in pairs)))

    return asyncio.run(main()), counts


def test_an_answer_that_its_document_makes_likelier_stays_and_any_other_goes(reader: Path) -> None:
    asked = list(itertools.product(reader_model.WORDS, repeat=2))
    found, counts = reasons(reader, asked, 0.5)
    right = [reason is None for (word, answer), reason in zip(asked, found, strict=True) if word == answer]
    wrong = [reason == NOT_GROUNDED for (word, answer), reason in zip(asked, found, strict=True) if word != answer]
    assert all(right)
    assert all(wrong)
    assert counts == {"scored_pairs": len(asked)}
    # Eleven words are as likely without the document, so it is worth about log2(11) bits, over two tokens.
    assert all(reason == NOT_GROUNDED for reason in reasons(reader, asked[:1], math.log2(11))[0])
    assert reasons(reader, asked[1:2], -20.0)[0] == [None]


def test_a_pair_too_long_to_be_scored_stays_and_is_counted(reader: Path) -> None:
    found, counts = reasons(reader, [("b " * 200, "b")], 20.0)
    assert (found, counts) == ([None], {"unscored_pairs": 1})


class Misread:
    """A real engine that scores, behind a script that writes: of every third document the wrong word."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scored = 0

    def __call__(self, *args: Any, **kwargs: Any) -> support.ScriptedEngine:
        outer, real = self, open_engine("transformers", self.folder, Engine(name="transformers"), SAMPLING)

        class Scoring(support.ScriptedEngine):
            can_score = True

            async def score(self, request: ScoreRequest) -> tuple[float, ...]:
                outer.scored += 1
                return await real.score(request)

        engine = Scoring(self.script)
        engine.tokenizer = real.tokenizer
        return engine

    @staticmethod
    def script(prompt: str) -> str:
        word = prompt.rpartition("The word is ")[2].split(".")[0]
        at = reader_model.WORDS.index(word)
        return reader_model.completion(reader_model.WORDS[at + 1] if at % 3 == 0 else word)


def spec_for(corpus: ResolvedInput, output: Path, model: Path, **filters: Any) -> RunSpec:
    settings = {"sampling": {"contextWindow": 256, "maxTokens": 60}, "shots": 2, "filters": filters}
    return support.make_spec(corpus, output, model=model, settings=settings)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    texts = [reader_model.document(word) for word in reader_model.WORDS]
    return support.make_corpus(tmp_path_factory.mktemp("words"), texts, per_shard=4)


def test_a_stage_drops_what_the_synthesizer_read_wrongly_and_counts_it(
    words: ResolvedInput, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misread = Misread(reader)
    monkeypatch.setattr(worker, "open_engine", misread)
    spec = spec_for(words, tmp_path / "out", reader, minLikelihoodGain=0.5)
    ctx = support.context(tmp_path / "s")
    worker.run(spec, ctx)
    result = worker.finalize(spec.finalizer(), ctx)
    counts = load_manifest(open_store(result.uri)).counts
    wrong = len(range(0, len(reader_model.WORDS), 3))
    assert counts["filtered_not_grounded_by_likelihood"] == counts["raw_no_pairs"] == wrong == 4
    assert counts["parsed_pairs"] == counts["scored_pairs"] == 11 == counts["pairs"] + wrong
    assert misread.scored == 2 * 11
    told = ctx.progress.snapshot()["counts"]
    names = ("filtered_not_grounded_by_likelihood", "scored_pairs", "raw_no_pairs")
    assert {name: told[name] for name in names} == {name: counts[name] for name in names}


def test_the_engine_itself_reads_well_and_the_bytes_are_the_same_again(
    words: ResolvedInput, reader: Path, tmp_path: Path
) -> None:
    found = []
    for name in ("a", "b"):
        spec = spec_for(words, tmp_path / name, reader, minLikelihoodGain=0.5)
        counts = support.run_stage(spec, tmp_path / "s").counts
        assert counts["scored_pairs"] == counts["parsed_pairs"] > 5
        found.append(support.fingerprint(spec))
    assert found[0] == found[1]


def test_an_engine_without_probabilities_is_refused_before_a_document_is_asked_for(
    words: ResolvedInput, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = support.ScriptedEngine(Misread.script)
    monkeypatch.setattr(worker, "open_engine", lambda *a, **k: engine)
    with pytest.raises(ConfigError, match=r"filters\.minLikelihoodGain=0\.5: the engine gives no probabilities"):
        worker.run(spec_for(words, tmp_path / "out", reader, minLikelihoodGain=0.5), support.context(tmp_path / "s"))
    assert engine.prompts == []


# ---------------------------------------------------------------------- judge


def says(text: str | None) -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


def reads(number: int, body: dict[str, Any]) -> Answer:
    """A judge that looks whether the answer is in the document."""
    shown = body["messages"][-1]["content"]
    document, answer = shown.split("Document:\n")[1].split("\n\nQuestion:")[0], shown.rpartition("Answer:\n")[2]
    return says("Yes." if answer in document else "**No**, it is not.")


PAIR, DOCUMENT = Pair("Which word?", "river"), "The word is river."


def ask(server: Server, counts: Counter[str], pair: Pair = PAIR, **spec: Any) -> str | None:
    async def main() -> str | None:
        given = Judge.model_validate({"endpoint": server.endpoint, "servedModel": "served", **spec})
        async with ServerJudge(given, backoff_seconds=0.001, max_attempts=3) as judge:
            return await judge.reason(pair, DOCUMENT, counts)

    return asyncio.run(main())


def test_a_judge_sees_document_question_and_answer_and_says_yes_or_no() -> None:
    counts: Counter[str] = Counter()
    with in_thread(Server(reads)) as server:
        assert ask(server, counts) is None
        assert ask(server, counts, Pair("Which word?", "stone")) == "not-grounded-by-judge"
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("served", 0.0, 16)
    assert body["messages"][-1]["content"] == f"Document:\n{DOCUMENT}\n\nQuestion:\nWhich word?\n\nAnswer:\nriver"
    assert counts == {"judged_pairs": 2, "judge_unclear": 0}


@pytest.mark.parametrize("reply", ["Perhaps.", "", None, "<think>yes</think>", "42", "nope"])
def test_a_reply_that_is_neither_leaves_the_pair_and_is_counted(reply: str | None) -> None:
    counts: Counter[str] = Counter()
    with in_thread(Server(lambda number, body: says(reply))) as server:
        assert ask(server, counts) is None
    assert counts == {"judged_pairs": 1, "judge_unclear": 1}


@pytest.mark.parametrize("reply", ["no", "<think>Is it? Yes or ...</think>\n\nNo.", "  **NO**", "No, nothing of it."])
def test_thoughts_and_marks_around_a_no_do_not_hide_it(reply: str) -> None:
    with in_thread(Server(lambda number, body: says(reply))) as server:
        assert ask(server, Counter()) == "not-grounded-by-judge"


def test_what_is_wrong_with_a_judge_names_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(Server(reads)) as server:
        with pytest.raises(ConfigError, match=r"filters\.judge\.servedModel='other': .*it has served"):
            ask(server, Counter(), servedModel="other")
        server.script = lambda number, body: (401, "", {})
        monkeypatch.setenv(KEY.variable, "secret-key")
        with pytest.raises(ConfigError, match=KEY.variable) as caught:
            ask(server, Counter())
        assert "secret-key" not in str(caught.value)
        assert server.headers[-1]["authorization"] == "Bearer secret-key"
        server.script = lambda number, body: (400, "no", {})
        with pytest.raises(RequestFailedError, match="status 400"):
            ask(server, Counter())
        server.script = lambda number, body: (503, "later", {"retry-after": "0"})
        with pytest.raises(EnvironmentNotReadyError, match="status 503, after 3 attempts"):
            ask(server, Counter())
        server.script = lambda number, body: reads(number, body) if number % 3 == 0 else (429, "later", {})
        server.asked.clear()
        assert ask(server, Counter()) is None
        assert len(server.asked) == 3
    with pytest.raises(EnvironmentNotReadyError, match="after 3 attempts"):
        ask(server, Counter())


def test_a_stage_of_rules_is_judged_and_the_counts_add_up(tmp_path: Path) -> None:
    corpus = support.make_corpus(tmp_path, support.sentences(12), per_shard=4)
    plain = support.run_stage(support.make_spec(corpus, tmp_path / "plain"), tmp_path / "s")
    judged = 0

    def third(number: int, body: dict[str, Any]) -> Answer:
        # A function of what is shown, as the order in which pairs are judged is not.
        nonlocal judged
        judged += 1
        return says("no" if len(body["messages"][-1]["content"]) % 3 == 0 else "yes")

    with in_thread(Server(third)) as server:
        filters = {"judge": {"endpoint": server.endpoint, "servedModel": "served"}}
        spec = support.make_spec(corpus, tmp_path / "out", settings={"filters": filters})
        counts = support.run_stage(spec, tmp_path / "s").counts
    dropped = counts["filtered_not_grounded_by_judge"]
    assert 0 < dropped < counts["judged_pairs"] == judged == plain.counts["parsed_pairs"] == counts["parsed_pairs"]
    assert counts["pairs"] + dropped == counts["parsed_pairs"]
    assert counts["documents"] == counts["augmented"] + counts["raw"] == 12
    assert sum(number for name, number in counts.items() if name.startswith("mined_")) == counts["pairs"]
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert server.endpoint not in manifest
    assert '"judge"' in manifest


def test_a_document_whose_judge_fails_is_a_dead_letter_and_can_be_requeued(
    words: ResolvedInput, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "open_engine", Misread(reader))

    def stumbles(number: int, body: dict[str, Any]) -> Answer:
        return (400, "no", {}) if "is b." in body["messages"][-1]["content"] else says("yes")

    with in_thread(Server(stumbles)) as server:
        spec = spec_for(words, tmp_path / "out", reader, judge={"endpoint": server.endpoint, "servedModel": "served"})
        counts = support.run_stage(spec, tmp_path / "s").counts
        assert counts["dead_letters"] == counts["dead_letters_judge_error"] == counts["filtered_judge_error"] == 1
        assert counts["parsed_pairs"] == 11 == counts["pairs"] + 1
        (dead,) = [s for r in iter_augmented(ResolvedInput(uri=spec.output.uri)) for s in r.shots if not s.text]
        assert (dead.verdict, dead.reason, dead.pairs) == ("dead-letter", "judge-error", ())
        assert requeue(open_store(spec.output.uri), reason="judge-error") == 1
        server.script = lambda number, body: says("yes")
        repaired = support.run_stage(spec, tmp_path / "s").counts
    assert repaired["augmented"] == 11
    assert "filtered_judge_error" not in repaired


def test_a_judge_that_is_gone_ends_the_worker_before_anything_is_leased(
    words: ResolvedInput, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ServerJudge", lambda spec: ServerJudge(spec, backoff_seconds=0.001, max_attempts=2))
    monkeypatch.setattr(worker, "open_engine", Misread(reader))
    with in_thread(Server(reads)) as server:
        endpoint = server.endpoint
    spec = spec_for(words, tmp_path / "out", reader, judge={"endpoint": endpoint, "servedModel": "served"})
    with pytest.raises(EnvironmentNotReadyError, match="after 2 attempts"):
        worker.run(spec, support.context(tmp_path / "s"))
    assert not [info.key for info in open_store(spec.output.uri).list() if "/leases/" in info.key]


def test_a_completion_and_a_score_do_not_disturb_each_other(reader: Path) -> None:
    async def main() -> tuple[list[Completion], tuple[float, ...], tuple[float, ...]]:
        async with open_engine("transformers", reader, Engine(name="transformers"), SAMPLING) as engine:
            encode = engine.tokenizer.encode
            asked = [
                GenerationRequest(prompt_ids=tuple(encode(PROFILE.render((), reader_model.document(w)))), max_tokens=9)
                for w in reader_model.WORDS
            ]
            score = ScoreRequest(prompt_ids=tuple(encode("<s>")), continuation_ids=tuple(encode(" river stone")))
            alone = list(await asyncio.gather(*map(engine.generate, asked)))
            before = await engine.score(score)
            together = await asyncio.gather(*map(engine.generate, asked), engine.score(score))
            assert together[:-1] == alone
            for bad in (
                ScoreRequest(prompt_ids=(), continuation_ids=(5,)),
                ScoreRequest(prompt_ids=(5,), continuation_ids=()),
                ScoreRequest(prompt_ids=(5,) * 200, continuation_ids=(5,) * 100),
                ScoreRequest(prompt_ids=(5,), continuation_ids=(10_000,)),
            ):
                with pytest.raises(SynthesisError):
                    await engine.score(bad)
            return alone, before, together[-1]

    alone, before, after = asyncio.run(main())
    assert before == after
    assert len(alone) == 11
