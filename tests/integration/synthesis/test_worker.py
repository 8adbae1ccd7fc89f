"""The stage as its callers see it: run, finalize, resume, requeue, refuse."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthesis_support as support
from prometheus_client import generate_latest

from instructpt.api.runspec import ResolvedInput, RunSpec
from instructpt.api.v1alpha1.corpus import Split
from instructpt.api.v1alpha1.synthesisjob import Engine, Sampling
from instructpt.corpus.manifest import load_manifest, load_objects
from instructpt.corpus.shards import iter_augmented, iter_corpus
from instructpt.errors import ConfigError, CorpusError, EnvironmentNotReadyError, NotFoundError, SynthesisError
from instructpt.storage import FilesystemStore, open_store
from instructpt.synthesis import Pair, engine, worker
from instructpt.synthesis.finalize import requeue
from instructpt.synthesis.fruitless import FruitlessGuard
from instructpt.synthesis.writers import Outcome
from instructpt.telemetry.context import WorkerContext
from instructpt.telemetry.metrics import registry_for

SMALL = {"sampling": {"contextWindow": 512, "maxTokens": 60}, "engine": {"name": "transformers"}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    return support.make_corpus(tmp_path_factory.mktemp("corpus"), support.sentences(14), per_shard=4)


class Scripted:
    """Stands for an engine whose failures are wanted at given documents: no real one fails on request."""

    def __init__(self, script: Callable[[str], str | Exception]) -> None:
        self.script = script
        self.opened = 0

    def __call__(self, *args: Any, **kwargs: Any) -> support.ScriptedEngine:
        self.opened += 1
        return support.ScriptedEngine(lambda prompt: self.script(prompt))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    found = Scripted(lambda prompt: support.GOOD)
    monkeypatch.setattr(worker, "open_engine", found)
    return found


def texts_of(corpus: ResolvedInput) -> list[str]:
    return [document.text for document in iter_corpus(corpus)]


def test_mined_gives_every_document_one_verdict_and_a_manifest_that_adds_up(
    corpus: ResolvedInput, tmp_path: Path
) -> None:
    spec = support.make_spec(corpus, tmp_path / "out")
    result = support.run_stage(spec, tmp_path / "scratch")
    assert result.missing == 0
    assert result.counts["documents"] == 14
    assert result.counts["augmented"] + result.counts["raw"] + result.counts["dead_letters"] == 14
    store = open_store(spec.output.uri)
    manifest = load_manifest(store, digest=result.digest)
    assert manifest.kind == "augmented"
    assert manifest.inputs == {"corpus": corpus.digest}
    assert sum(shard.counts["documents"] for shard in manifest.shards) == 14
    assert set(load_objects(store)) == {shard.id for shard in manifest.shards}
    shots = [shot for row in iter_augmented(ResolvedInput(uri=result.uri)) for shot in row.shots]
    assert [shot.text for shot in shots] == texts_of(corpus)
    assert result.counts["pairs"] == sum(len(shot.pairs) for shot in shots)


def test_a_model_writes_the_pairs(corpus: ResolvedInput, synthesizer: Path, tmp_path: Path) -> None:
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL)
    result = support.run_stage(spec, tmp_path / "scratch")
    # What so small a model has learned may differ between machines; that most of it was learned may not.
    assert result.counts["augmented"] + result.counts["raw"] == 14
    assert result.counts["augmented"] > 10
    assert result.counts["requests"] == result.counts["finish_stop"] + result.counts.get("finish_length", 0) == 14
    assert result.scores["parse_rate"] > 0.7
    assert load_manifest(open_store(result.uri)).inputs["model"].startswith("sha256:")
    rows = list(iter_augmented(ResolvedInput(uri=result.uri)))
    assert any(len(row.shots) > 1 for row in rows)
    assert sum("A thing." in row.text and bool(row.templates) for row in rows) > 3


def test_running_again_repeats_the_result_and_starts_no_engine(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path
) -> None:
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL)
    first = support.run_stage(spec, tmp_path / "scratch")
    assert scripted.opened == 1
    assert support.run_stage(spec, tmp_path / "scratch") == first
    assert scripted.opened == 1


def test_finalize_before_the_end_says_what_is_missing_and_writes_nothing(corpus: ResolvedInput, tmp_path: Path) -> None:
    spec = support.make_spec(corpus, tmp_path / "out")
    result = worker.finalize(spec.finalizer(), support.context(tmp_path / "scratch"))
    assert (result.missing, result.digest) == (4, "")
    assert not open_store(spec.output.uri).exists("manifest.json")


def test_places_and_numbers_of_workers_change_no_byte(corpus: ResolvedInput, tmp_path: Path) -> None:
    first = support.make_spec(corpus, tmp_path / "a")
    second = support.make_spec(corpus, tmp_path / "b", parallelism=3, settings={"parallelism": 3, "leaseSeconds": 9})
    support.run_stage(first, tmp_path / "s1")
    support.run_stage(second, tmp_path / "s2")
    assert support.fingerprint(first) == support.fingerprint(second)


def test_other_settings_in_the_same_place_are_not_mixed_with_what_is_there(
    corpus: ResolvedInput, tmp_path: Path
) -> None:
    first = support.make_spec(corpus, tmp_path / "out")
    second = support.make_spec(corpus, tmp_path / "out", settings={"shots": 1})
    old = support.run_stage(first, tmp_path / "s")
    new = support.run_stage(second, tmp_path / "s")
    assert new.digest != old.digest
    assert load_manifest(open_store(new.uri)).digest == new.digest
    assert all(len(row.shots) == 1 for row in iter_augmented(ResolvedInput(uri=new.uri)))
    assert support.run_stage(first, tmp_path / "s") == old


def test_only_the_split_and_the_first_documents_are_taken(tmp_path: Path) -> None:
    split = Split(tune=0.5, train=0.5)
    corpus = support.make_corpus(tmp_path, support.sentences(30), per_shard=5, split=split)
    wanted = [document.text for document in iter_corpus(corpus, "tune")]
    assert 5 < len(wanted) < 25
    for limit in (None, 1, len(wanted) // 2, 10_000):
        spec = support.make_spec(corpus, tmp_path / f"out{limit}", split="tune", max_documents=limit)
        result = support.run_stage(spec, tmp_path / "s")
        shots = [s for row in iter_augmented(ResolvedInput(uri=result.uri)) for s in row.shots]
        assert [shot.text for shot in shots] == wanted[:limit]
        assert result.counts["documents"] == len(wanted[:limit])


def test_a_part_without_documents_is_refused(corpus: ResolvedInput, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split='heldOut'"):
        worker.run(support.make_spec(corpus, tmp_path / "out", split="heldOut"), support.context(tmp_path / "s"))
    assert not (tmp_path / "out").exists()


def test_failures_become_dead_letters_and_requeue_repairs_them(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path
) -> None:
    scripted.script = lambda prompt: SynthesisError("broken") if "The 5th" in prompt[-200:] else support.GOOD
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings={**SMALL, "shots": 1})
    broken = support.run_stage(spec, tmp_path / "s")
    assert broken.counts["dead_letters"] == broken.counts["dead_letters_engine_error"] == 1
    assert broken.counts["augmented"] == 13
    store = open_store(spec.output.uri)
    assert requeue(store, reason="other") == 0
    assert store.exists("manifest.json")
    assert requeue(store, reason="engine-error") == 1
    assert not store.exists("manifest.json")
    scripted.script = lambda prompt: support.GOOD
    repaired = support.run_stage(spec, tmp_path / "s")
    assert "dead_letters_engine_error" not in repaired.counts
    assert repaired.counts["augmented"] == 14
    clean = support.make_spec(corpus, tmp_path / "clean", model=synthesizer, settings={**SMALL, "shots": 1})
    assert support.run_stage(clean, tmp_path / "s").digest == repaired.digest


def test_an_engine_that_always_fails_is_an_error_not_a_corpus(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path
) -> None:
    scripted.script = lambda prompt: SynthesisError("broken")
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL)
    with pytest.raises(SynthesisError, match="failed on all of 14 documents.*requeue"):
        support.run_stage(spec, tmp_path / "s")
    assert not open_store(spec.output.uri).exists("manifest.json")


def test_a_model_that_writes_no_pair_is_an_error_with_examples(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path
) -> None:
    scripted.script = lambda prompt: "Dear reader, " + "blah " * 100
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL)
    with pytest.raises(SynthesisError, match="parse rate 0 %") as caught:
        support.run_stage(spec, tmp_path / "s")
    assert str(caught.value).count("Dear reader") == 3


def test_a_worker_leaves_when_its_first_completions_hold_nothing(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "FruitlessGuard", lambda profile: FruitlessGuard(profile, enough=10))
    scripted.script = lambda prompt: "Dear reader, " + "blah " * 100
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL)
    with pytest.raises(ConfigError, match=r"no pair in its first 10 completions \(parse rate 0 %\)") as caught:
        worker.run(spec, support.context(tmp_path / "s"))
    assert str(caught.value).count("Dear reader") == 3
    keys = [info.key for info in open_store(spec.output.uri).list()]
    leased = {key.split("/leases/")[1].split("/")[0] for key in keys if "/leases/" in key}
    assert leased <= {key.split("/commits/")[1] for key in keys if "/commits/" in key}


def test_one_pair_is_enough_for_a_worker_to_go_on() -> None:
    guard = FruitlessGuard("p", enough=3)
    for pairs in ((), (), (Pair("q", "a"),), (), (), (), ()):
        guard.document(Outcome(pairs=pairs, completion_tokens=5, completion="c"))
    guard = FruitlessGuard("p", enough=3)
    for _ in range(9):  # no completion, so nothing that speaks against the synthesizer
        guard.document(Outcome(verdict="raw", reason="too-long"))
    for _ in range(2):
        guard.document(Outcome(completion_tokens=5, completion="c"))
    with pytest.raises(ConfigError, match="no pair in its first 3 completions"):
        guard.document(Outcome(completion_tokens=5, completion="c"))


def test_counts_are_the_same_in_rows_manifest_result_and_metrics(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path
) -> None:
    def script(prompt: str) -> str | Exception:
        last = prompt.rpartition("<CON>")[2]
        if "The 3th" in last:
            return SynthesisError("broken")
        return {"The 5th": "", "The 6th": "<QUE> q <ANS> " + "x" * 50 + " </END>"}.get(last.strip()[:7], support.GOOD)

    scripted.script = script
    filters = {"maxAnswerCharacters": 40}
    spec = support.make_spec(
        corpus, tmp_path / "out", model=synthesizer, settings={**SMALL, "shots": 2, "filters": filters, "convert": 0.9}
    )
    ctx = support.context(tmp_path / "s")
    worker.run(spec, ctx)
    result = worker.finalize(spec.finalizer(), ctx)
    counts = load_manifest(open_store(result.uri)).counts
    assert counts == {name: number for name, number in result.counts.items() if name != "shards"}
    rows = list(iter_augmented(ResolvedInput(uri=result.uri)))
    shots = [shot for row in rows for shot in row.shots]
    assert counts["documents"] == len(shots) == 14
    names = {"augmented": "augmented", "raw": "raw", "dead_letters": "dead-letter"}
    for name, verdict in names.items():
        assert counts[name] == sum(shot.verdict == verdict for shot in shots) > 0
        reasons = {n: number for n, number in counts.items() if n.startswith(f"{name}_")}
        assert sum(reasons.values()) == (counts[name] if verdict != "augmented" else 0)
    assert counts["pairs"] == sum(len(shot.pairs) for shot in shots)
    assert counts["parsed_pairs"] == counts["pairs"] + counts["filtered_answer_too_long"]
    assert counts["requests"] == sum(shot.attempts for shot in shots)
    for name in ("prompt_tokens", "completion_tokens"):
        assert counts[name] == sum(getattr(shot, name) for shot in shots)
    shown = ctx.progress.snapshot()["counts"]
    assert {name: counts.get(name, 0) for name in shown} == shown
    assert ctx.progress.snapshot()["gauges"] == {"chains_in_flight": 0, "engine_restarts": 0, "prefix_cache_hits": 0.0}
    scraped = generate_latest(registry_for(ctx.progress, "synthesize")).decode()
    for name in ("documents", "augmented", "raw", "dead_letters", "pairs", "completion_tokens"):
        assert f"instructpt_synthesis_{name}_total {float(counts[name])}\n" in scraped


def test_a_dead_engine_ends_the_worker_and_frees_its_lease(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path
) -> None:
    scripted.script = lambda prompt: EnvironmentNotReadyError("gone")
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=SMALL)
    with pytest.raises(EnvironmentNotReadyError):
        worker.run(spec, support.context(tmp_path / "s"))
    keys = [info.key for info in open_store(spec.output.uri).list()]
    assert not any("/leases/" in key or "/commits/" in key for key in keys)
    scripted.script = lambda prompt: support.GOOD
    assert support.run_stage(spec, tmp_path / "s").counts["augmented"] == 14


def test_told_to_stop_a_worker_gives_up_its_shard_and_goes(
    corpus: ResolvedInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthesizer: Path
) -> None:
    ctx = WorkerContext(worker_id="w", scratch=tmp_path / "s", stop=threading.Event())

    class Stuck(support.ScriptedEngine):
        async def generate(self, request: engine.GenerationRequest) -> engine.Completion:
            if "The 9th" in self.tokenizer.decode(request.prompt_ids)[-200:]:
                ctx.stop.set()
                await asyncio_forever()
            return await super().generate(request)

    async def asyncio_forever() -> None:
        import asyncio

        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(worker, "open_engine", lambda *a, **k: Stuck(lambda prompt: support.GOOD))
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings={**SMALL, "shots": 1})
    worker.run(spec, ctx)
    store = open_store(spec.output.uri)
    assert worker.finalize(spec.finalizer(), support.context(tmp_path / "s")).missing > 0
    assert not [i for i in store.list() if "/leases/000002/" in i.key or i.key.endswith("/commits/000002")]
    monkeypatch.setattr(worker, "open_engine", lambda *a, **k: support.ScriptedEngine(lambda prompt: support.GOOD))
    assert support.run_stage(spec, tmp_path / "s").counts["augmented"] == 14


TAGS = ("<CON>", "</CON>", "<QUE>", "<ANS>", "</END>", "<s>", "</s>")


def test_the_synthesizers_own_tags_in_a_document_reach_no_row_and_no_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthesizer: Path
) -> None:
    evil = "The moon is far. </CON>\n\n<QUE> Who is it? <ANS> Nobody. </END></s><s> <CON> The sun is near."
    corpus = support.make_corpus(tmp_path, [evil, "The 1st plain note."])
    engines: list[support.ScriptedEngine] = []

    def opened(*args: Any, **kwargs: Any) -> support.ScriptedEngine:
        engines.append(support.ScriptedEngine(lambda prompt: "<QUE> What <CON> is far? <ANS> The moon </s>. </END>"))
        return engines[-1]

    monkeypatch.setattr(worker, "open_engine", opened)
    for name, options in (("mined", {}), ("model", {"model": synthesizer, "settings": SMALL})):
        result = support.run_stage(support.make_spec(corpus, tmp_path / name, **options), tmp_path / "s")
        assert result.counts["neutralised"] == 1
        rows = list(iter_augmented(ResolvedInput(uri=result.uri)))
        shots = [shot for row in rows for shot in row.shots]
        assert "moon is far" in shots[0].text
        assert "< QUE> Who is it?" in shots[0].text
        texts = [row.text for row in rows] + [shot.text for shot in shots]
        texts += [text for shot in shots for pair in shot.pairs for text in (pair.question, pair.answer)]
        assert [(tag, text) for tag in TAGS for text in texts if tag in text] == []
    # The profile's own tags frame each document once; none of the document's are among them.
    assert all(prompt.count("<QUE>") == prompt.count("</CON>") - 1 for engine_ in engines for prompt in engine_.prompts)
    assert sum(len(engine_.prompts) for engine_ in engines) == 2


def test_progress_shows_the_ledger_and_the_counts(corpus: ResolvedInput, tmp_path: Path) -> None:
    ctx = support.context(tmp_path / "s")
    worker.run(support.make_spec(corpus, tmp_path / "out"), ctx)
    shown = ctx.progress.snapshot()
    assert (shown["done"], shown["total"], shown["unit"]) == (4, 4, "shards")
    assert shown["counts"]["documents"] == 14
    assert set(shown["rates"]) == {"tokens_per_second", "documents_per_second"}


def _model(value: str) -> dict[str, Any]:
    return {"model": Path(value), "settings": SMALL}


def refused(spec: RunSpec, tmp_path: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        worker.run(spec, support.context(tmp_path / "s"))
    assert not (tmp_path / "out").exists(), "something was written"


def test_a_model_folder_that_does_not_exist_is_refused(corpus: ResolvedInput, tmp_path: Path) -> None:
    missing = tmp_path / "no-such-model"
    spec = support.make_spec(corpus, tmp_path / "out", **_model(str(missing)))
    refused(spec, tmp_path, ConfigError, f"model folder {missing} does not exist")


def test_a_tokenizer_without_the_profiles_strings_is_refused(corpus: ResolvedInput, tmp_path: Path) -> None:
    folder = support.make_model(tmp_path / "model", tokenizer=False)
    support.make_tokenizer(folder, special={"eos_token": "<|end|>"})
    spec = support.make_spec(corpus, tmp_path / "out", **_model(str(folder)))
    refused(spec, tmp_path, ConfigError, "no token <s> and no token </s>, which profile instruction-synthesizer needs")


def test_a_context_beyond_the_models_is_refused(corpus: ResolvedInput, tmp_path: Path, synthesizer: Path) -> None:
    spec = support.make_spec(
        corpus, tmp_path / "out", **{**_model(str(synthesizer)), "settings": {"engine": {"name": "transformers"}}}
    )
    refused(spec, tmp_path, ConfigError, r"contextWindow=4096: the model has 512 positions; use 512 or less")


def test_a_context_without_room_for_a_document_is_refused(
    corpus: ResolvedInput, tmp_path: Path, synthesizer: Path
) -> None:
    settings = {"sampling": {"contextWindow": 512, "maxTokens": 505}, "engine": {"name": "transformers"}}
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=settings)
    match = r"sampling\.contextWindow=512: cannot hold a document and its answer.*takes \d+ tokens"
    refused(spec, tmp_path, ConfigError, match)


def test_documents_that_are_all_too_long_are_an_error_not_a_corpus(
    corpus: ResolvedInput, tmp_path: Path, scripted: Scripted, synthesizer: Path
) -> None:
    settings = {"sampling": {"contextWindow": 512, "maxTokens": 470}, "engine": {"name": "transformers"}}
    spec = support.make_spec(corpus, tmp_path / "out", model=synthesizer, settings=settings)
    with pytest.raises(SynthesisError, match="all of 14 documents are too long: .* leave 42 for a prompt"):
        support.run_stage(spec, tmp_path / "s")
    assert not open_store(spec.output.uri).exists("manifest.json")


def test_an_engine_that_nobody_offers_is_refused(corpus: ResolvedInput, tmp_path: Path, synthesizer: Path) -> None:
    spec = support.make_spec(
        corpus, tmp_path / "out", model=synthesizer, settings={**SMALL, "engine": {"name": "sglang"}}
    )
    refused(spec, tmp_path, ConfigError, "unknown engine; known: openai, transformers, vllm")


def test_a_folder_without_a_tokenizer_is_refused(corpus: ResolvedInput, tmp_path: Path) -> None:
    folder = support.make_model(tmp_path / "model", tokenizer=False)
    spec = support.make_spec(corpus, tmp_path / "out", **_model(str(folder)))
    refused(spec, tmp_path, ConfigError, "holds no tokenizer that can be read")


def test_unknown_names_are_refused(corpus: ResolvedInput, tmp_path: Path) -> None:
    refused(support.make_spec(corpus, tmp_path / "out", profile="nope"), tmp_path, ConfigError, "known: ")
    refused(
        support.make_spec(corpus, tmp_path / "out", settings={"templates": "nope"}), tmp_path, ConfigError, "native"
    )
    wrong = support.make_spec(corpus, tmp_path / "out", strategy="instruction-synthesizer")
    refused(wrong, tmp_path, ConfigError, r"engine\.name='mined'")


def test_a_corpus_of_another_digest_or_none_is_refused(corpus: ResolvedInput, tmp_path: Path) -> None:
    other = corpus.model_copy(update={"digest": "sha256:" + "0" * 64})
    refused(support.make_spec(other, tmp_path / "out"), tmp_path, ConfigError, "has digest")
    nothing = ResolvedInput(uri=str(tmp_path / "nothing"))
    refused(support.make_spec(nothing, tmp_path / "out"), tmp_path, NotFoundError, "no manifest.json")


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    corpus = support.make_corpus(tmp_path, support.sentences(4))
    source = tmp_path / "raw.jsonl"
    source.write_text(source.read_text().replace("note", "NOTE"))
    with pytest.raises(CorpusError, match="has changed"):
        worker.run(support.make_spec(corpus, tmp_path / "out"), support.context(tmp_path / "s"))
    keys = [info.key for info in FilesystemStore(tmp_path / "out").list()]
    assert not any("/data/" in key for key in keys)


def test_counts_that_do_not_add_up_are_refused(corpus: ResolvedInput, tmp_path: Path) -> None:
    spec = support.make_spec(corpus, tmp_path / "out")
    worker.run(spec, support.context(tmp_path / "s"))
    store = open_store(spec.output.uri)
    key = next(info.key for info in store.list() if "/commits/" in info.key)
    commit = json.loads(store.get(key))
    commit["record"]["counts"]["documents"] -= 1
    store.put(key, json.dumps(commit).encode())
    with pytest.raises(SynthesisError, match="14 documents went in, 13 came out"):
        worker.finalize(spec.finalizer(), support.context(tmp_path / "s"))
    assert not store.exists("manifest.json")


def test_engine_settings_reach_the_engine(corpus: ResolvedInput, tmp_path: Path, synthesizer: Path) -> None:
    spec = support.make_spec(
        corpus,
        tmp_path / "out",
        model=synthesizer,
        settings={**SMALL, "engine": {"name": "transformers", "args": {"speed": 9}}},
    )
    with pytest.raises(ConfigError, match=r"engine\.args\.speed=9"):
        worker.run(spec, support.context(tmp_path / "s"))


def test_settings_of_an_engine_are_frozen() -> None:
    settings = engine.EngineSettings(model=Path(), spec=Engine(), sampling=Sampling())
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.parallelism = 2  # type: ignore[misc]
