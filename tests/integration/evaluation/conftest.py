"""A real corpus of small documents, two tiny random models, and the RunSpecs that measure them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instructpt.api.base import StorageSpec
from instructpt.api.runspec import EvaluatedModel, EvaluateRun, InspectRun, ResolvedInput, RunSpec, StageResult
from instructpt.api.v1alpha1.corpus import CorpusSource, Split
from instructpt.api.v1alpha1.evaluationjob import EvaluationSettings
from instructpt.corpus.augmented import ChainRow, PairRow, ShotRow, write_chains
from instructpt.corpus.manifest import FileEntry, Manifest, ShardEntry, publish_manifest
from instructpt.storage import open_store
from instructpt.telemetry.context import WorkerContext

# Several threads on models this small only wait for each other, and the number of threads may change the last bits.
torch.set_num_threads(1)

WORDS = ["river", "stone", "garden", "window", "letter", "engine", "market", "winter", "copper", "silver", "harbour"]


def sentence(number: int) -> str:
    a, b, c = (WORDS[(number * k + k) % len(WORDS)] for k in (5, 7, 11))
    return f"The {a} of the {b} is used to carry the {c} in the year {1900 + number}."


def text(number: int) -> str:
    return f"Notes on the {WORDS[number % len(WORDS)]}\n\n" + " ".join(sentence(number * 3 + i) for i in range(4))


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., WorkerContext]:
    def make(**changes: Any) -> WorkerContext:
        return WorkerContext(worker_id="w0", scratch=tmp_path / "scratch", **changes)

    return make


@pytest.fixture
def corpus(tmp_path: Path, context: Callable[..., WorkerContext]) -> ResolvedInput:
    from instructpt.corpus import inspect

    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": text(i)}) + "\n" for i in range(60)))
    spec = RunSpec(
        verb="inspect", owner_kind="Corpus", owner_name="c", step="corpus", code_version="test",
        output=StorageSpec(uri=str(tmp_path / "corpus")),
        inspect=InspectRun(
            source=CorpusSource(uri=str(source)), split=Split(tune=0.0, train=0.6, held_out=0.4), documents_per_shard=20
        ),
    )  # fmt: skip
    ctx = context()
    inspect.run(spec, ctx)
    result = inspect.finalize(spec.finalizer(), ctx)
    return ResolvedInput(uri=result.uri, digest=result.digest)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    trained.train_from_iterator([text(i) for i in range(60)], trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ResolvedInput]:
    """A tiny Llama in a folder with a manifest, as training exports it; trained for some steps where asked."""

    def make(seed: int, *, steps: int = 0, context: int = 256) -> ResolvedInput:
        torch.manual_seed(seed)
        fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        config = LlamaConfig(
            vocab_size=len(fast), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=512, bos_token_id=fast.bos_token_id,
            eos_token_id=fast.eos_token_id, pad_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        losses = fit(model, fast, steps)
        folder = tmp_path_factory.mktemp(f"model-{seed}")
        model.save_pretrained(folder)
        fast.save_pretrained(folder)
        files = tuple(
            FileEntry(path=p.name, bytes=p.stat().st_size, sha256=hashlib.sha256(p.read_bytes()).hexdigest())
            for p in sorted(folder.iterdir())
        )
        lines = [
            {"step": i, "loss": loss, "learning_rate": 0.003, "grad_norm": 1.0, "tokens": 800}
            for i, loss in enumerate(losses)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        speeds = [{"step": i, "tokens_per_second": 9000 + i % 7 * 40} for i in range(len(losses))]
        (folder / "throughput.jsonl").write_text("".join(json.dumps(line) + "\n" for line in speeds))
        manifest = Manifest(
            kind="model", code_version="test", settings={"sequenceLength": context}, files=files,
            counts={"tokens": 800 * steps, "steps": steps, "unique_documents": 4 * steps},
            extra={"receipt": [{"name": "raw", "tokens": 800 * steps, "unique_documents": 4 * steps, "passes": 1.5}]},
        )  # fmt: skip
        return ResolvedInput(uri=str(folder), digest=publish_manifest(open_store(str(folder)), manifest))

    return make


def fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> list[float]:
    """A few steps on texts of the same kind as the corpus, so that the model beats its untrained twin."""
    if not steps:
        return []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        batch = [[tokenizer.bos_token_id, *tokenizer.encode(text(100 + step * 4 + i))][:96] for i in range(4)]
        width = min(len(ids) for ids in batch)
        ids = torch.tensor([b[:width] for b in batch])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture
def spec_of(tmp_path: Path, corpus: ResolvedInput) -> Callable[..., RunSpec]:
    """A RunSpec over (name, seed, model) triples."""

    def make(
        models: list[tuple[str, int | None, ResolvedInput]], *, output: str = "scores",
        baseline: str | None = "vanilla", **settings: Any,
    ) -> RunSpec:  # fmt: skip
        values = {"max_documents": 12, "max_questions": 18, "max_answer_tokens": 8} | settings
        return RunSpec(
            verb="evaluate", owner_kind="EvaluationJob", owner_name="e", step="evaluation", code_version="test",
            output=StorageSpec(uri=str(tmp_path / output)),
            evaluate=EvaluateRun(
                models=tuple(EvaluatedModel(name=n, seed=s, **dict(m)) for n, s, m in models), baseline=baseline,
                corpus=corpus, settings=EvaluationSettings(**values),
            ),
        )  # fmt: skip

    return make


@pytest.fixture
def evaluate(context: Callable[..., WorkerContext]) -> Callable[[RunSpec], StageResult]:
    """Run and finalize."""

    def make(spec: RunSpec) -> StageResult:
        from instructpt.evaluation import worker

        worker.run(spec, context())
        return worker.finalize(spec.finalizer(), context())

    return make


@pytest.fixture
def augmented(tmp_path: Path) -> ResolvedInput:
    """A small augmented corpus, pairs by the rules and texts by the templates."""
    from instructpt.synthesis import Shot, templates
    from instructpt.synthesis.mined import mine

    rows = []
    for chain in range(12):
        shots = [Shot(text(chain * 2 + i), tuple(mine(text(chain * 2 + i), 1, 1 + chain % 4))) for i in range(2)]
        rows.append(
            ChainRow(
                id=f"000000/{chain}", text=templates.load().render(shots, chain), templates=("t",), seed=chain,
                shots=tuple(
                    ShotRow(
                        document=f"d{chain * 2 + i}", text=shot.document, verdict="augmented", reason="", attempts=1,
                        prompt_tokens=0, completion_tokens=0,
                        pairs=tuple(PairRow(question=p.question, answer=p.answer, kind=p.kind) for p in shot.pairs),
                    )
                    for i, shot in enumerate(shots)
                ),
            )
        )  # fmt: skip
    path = tmp_path / "augmented/data/0.parquet"
    path.parent.mkdir(parents=True)
    write_chains(path, rows)
    shard = ShardEntry(id="000000", bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    manifest = Manifest(
        kind="augmented", code_version="test", shards=(shard,), counts={"documents": 24, "augmented": 24}
    )
    store = open_store(str(tmp_path / "augmented"))
    digest = publish_manifest(store, manifest, objects={"000000": "data/0.parquet"})
    return ResolvedInput(uri=str(tmp_path / "augmented"), digest=digest)
